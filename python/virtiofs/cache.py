"""What a guest may keep in its own memory, and for how long.

A mode is a plain value; the server gets nothing of it but numbers: three timeouts and the flags of an open. So a mode of one's
own is one line::

    quick = AUTO.replace(attr_timeout=0.1, entry_timeout=0.1)

===========  ===========================================  ============================================================
mode         names and attributes                         data
===========  ===========================================  ============================================================
`NONE`       never kept: every access asks the host       not kept; files can still be mapped
`METADATA`   kept for a day                               not kept; files can still be mapped
`AUTO`       kept for one second                          kept while the file is open, dropped at open if it changed
`ALWAYS`     kept for ever                                kept for ever, directory listings and symlinks too
===========  ===========================================  ============================================================

`METADATA` and `ALWAYS` are for directories that nobody else changes while a guest uses them. Directories are opened without a
message in both, files where the answer would say nothing: see `Cache`, `opens`.
"""

import math
from dataclasses import dataclass, replace
from typing import Any, Final

from . import _core
from .errors import ConfigError, hinted

_DAY: Final = 86400.0
_UNITS: Final = {"growth": "a number"}


@dataclass(frozen=True, slots=True)
class Cache:
    """How much a guest keeps, and how long.

    Args:
        name: What the mode is called in logs and messages.
        attr_timeout: Seconds for which the guest trusts attributes (size, mode, times). 0 asks each time, `math.inf` never
            again.
        entry_timeout: Seconds for which it trusts that a name leads to an inode.
        negative_timeout: Seconds for which it trusts that a name does not exist.
        direct_io: Reads and writes go to the host each time, past the guest's page cache.
        keep_cache: Cached data outlives close and open, as long as size and modification time of the file stay.
        cache_listings: Directory listings are kept until the directory changes.
        cache_symlinks: Targets of symlinks are kept.
        opens: Each open and close of a file or directory is a message. None leaves it out for directories whose listings are
            kept, and, with `keep_cache`, for the files of a share where its answer would say nothing: one that is read-only,
            takes no locks on the host, has no policy about single opens, and is served by who may read all of it. False leaves
            it out for all files. Then the guest alone checks who may open what, its locks hold inside it alone, what the host
            refuses shows at the first read or write, errors of writes on network file systems at fsync, and what was
            written stays open for writing here for a while, so that the host cannot execute it.
        growth: The timeouts of names and attributes follow the file: so many seconds per second that it has not changed,
            and the timeouts above at most. 0 leaves them as they are.
        restless: With `growth`: seconds after a change for which nothing is trusted.

    Raises:
        ConfigError: A timeout is negative or not a number, `direct_io` and `keep_cache` are both set, or `opens` is False
            without `keep_cache`.
    """

    name: str
    attr_timeout: float = 0.0
    entry_timeout: float = 0.0
    negative_timeout: float = 0.0
    direct_io: bool = False
    keep_cache: bool = False
    cache_listings: bool = False
    cache_symlinks: bool = False
    opens: bool | None = None
    growth: float = 0.0
    restless: float = 0.0

    def __post_init__(self) -> None:
        for field in ("attr_timeout", "entry_timeout", "negative_timeout", "growth", "restless"):
            value = getattr(self, field)
            if math.isnan(value) or value < 0:
                raise ConfigError(f"{field} is {_UNITS.get(field, 'in seconds')}, from 0 on, not {value}")
        if self.direct_io and self.keep_cache:
            raise ConfigError("direct_io keeps no data, so keep_cache cannot be set with it")

        if self.opens is False and not self.keep_cache:
            raise hinted(
                ConfigError("who opens without a message keeps data over opens"),
                "take cache=always, or keep_cache=True",
            )

    @classmethod
    def adaptive(cls, max: float, *, growth: float = 0.1, restless: float = 2.0) -> "Cache":  # noqa: A002
        """Returns a mode that trusts what has been quiet for long for longer, and what changes not at all.

        Another guest is behind by a tenth (`growth`) of the time for which a file has not changed, and by `max` seconds at
        most. A file that changed in the last `restless` seconds is asked for each time, and so are names that do not exist.
        """
        return cls("adaptive", attr_timeout=max, entry_timeout=max, growth=growth, restless=restless)

    def replace(self, **changes: Any) -> "Cache":
        """Returns the same mode with some fields changed."""
        return replace(self, **changes)

    @property
    def open_flags(self) -> int:
        """FOPEN flags of the answer to the open of a file."""
        flags = 0
        if self.direct_io:
            flags |= _core.FOPEN["DIRECT_IO"] | _core.FOPEN["PARALLEL_DIRECT_WRITES"]
        if self.keep_cache:
            flags |= _core.FOPEN["KEEP_CACHE"]
        return flags

    @property
    def dir_open_flags(self) -> int:
        """FOPEN flags of the answer to the open of a directory."""
        return _core.FOPEN["CACHE_DIR"] | _core.FOPEN["KEEP_CACHE"] if self.cache_listings else 0

    @property
    def features(self) -> frozenset[str]:
        """Features of the FUSE session that the mode wants."""
        wanted = {
            "AUTO_INVAL_DATA": True,
            # Single files may be read past the cache in any mode: by a rule, by their open, since they are append-only.
            "DIRECT_IO_ALLOW_MMAP": True,
            "CACHE_SYMLINKS": self.cache_symlinks,
        }
        return frozenset(name for name, on in wanted.items() if on)


NONE: Final = Cache("none", direct_io=True)
"""Nothing is kept: what one guest or the host changes, every other sees at its next access."""

METADATA: Final = Cache(
    "metadata", attr_timeout=_DAY, entry_timeout=_DAY, negative_timeout=_DAY, direct_io=True, cache_listings=True
)
"""Names and attributes are kept for a day, data is not."""

AUTO: Final = Cache("auto", attr_timeout=1.0, entry_timeout=1.0, negative_timeout=1.0)
"""Names and attributes are kept for a second, data from open to close. The default."""

ALWAYS: Final = Cache(
    "always",
    attr_timeout=math.inf,
    entry_timeout=math.inf,
    negative_timeout=math.inf,
    keep_cache=True,
    cache_listings=True,
    cache_symlinks=True,
)
"""All is kept for ever."""

MODES: Final = {
    "none": NONE,
    "never": NONE,
    "metadata": METADATA,
    "auto": AUTO,
    "adaptive": Cache.adaptive(max=60),
    "always": ALWAYS,
}
"""The modes by the names that configuration uses."""


def mode(name: str) -> Cache:
    """Returns the mode called `name`.

    Raises:
        ConfigError: There is none.
    """
    try:
        return MODES[name]
    except KeyError:
        raise ConfigError(f"unknown cache mode {name!r}: choose one of {', '.join(MODES)}") from None
