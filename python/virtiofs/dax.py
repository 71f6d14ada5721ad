"""The DAX window: how large it is, and which files guests map instead of reading and writing them.

A guest that maps a file has its data in the host's memory alone: no copy of its own, no message per access, and what others
change is seen at once. Each mapping takes 2 MiB of the window and a message, which small files are not worth.
"""

from typing import Final

from . import _core
from .errors import ConfigError, hinted

GRANULE: Final = 2 << 20
"""Bytes that a Linux guest maps at a time, and of the smallest window."""

SMALL: Final = 64 << 10
"""Files of less bytes than this are not worth a mapping."""

FLAGS: Final = sum(_core.INIT[name] for name in ("MAP_ALIGNMENT", "HAS_INODE_DAX", "EXPLICIT_INVAL_DATA"))
"""Features of FUSE that a device with a window accepts beside those of its file system."""

LOCAL_MAX: Final = 32 << 30
"""Bytes of the largest window in one's own process, which may have 65530 mappings: a guest can make three of each granule."""

_UNITS: Final = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}


def size(value: int | str) -> int:
    """Returns a number of bytes: a number, or text with K, M, G or T behind it.

    Raises:
        ConfigError: It is none.
    """
    if isinstance(value, str):
        digits = value.rstrip("KMGTkmgtiBb")
        unit = value[len(digits) :].upper().removesuffix("B").removesuffix("I")
        if not (digits.isascii() and digits.isdecimal()) or len(digits) > 30 or unit not in _UNITS:
            raise hinted(ConfigError(f"{value!r} is no size"), "say 512M or 1G, for example")
        value = int(digits) * _UNITS[unit]
    return value


def window(value: int | str) -> int:
    """Returns the size of a window in bytes; 0 is none.

    Raises:
        ConfigError: No window can have this size.
    """
    wanted = size(value)
    if wanted and (wanted < GRANULE or wanted & (wanted - 1)):
        larger = 1 << max(wanted - 1, GRANULE - 1).bit_length()
        raise hinted(
            ConfigError(f"a DAX window of {value} is none: its size is a power of two, 2M at least"),
            f"take {larger >> 20}M" if larger < 1 << 30 else f"take {larger >> 30}G",
        )
    if wanted >= 1 << 46:
        raise hinted(ConfigError(f"a DAX window of {value} is larger than any guest can address"), "take 1G")
    return wanted


def local(value: int | str) -> tuple[int, int] | None:
    """Returns size and largest number of mappings of a window in this process, or None for no window.

    Raises:
        ConfigError: No such window can be.
    """
    wanted = window(value)
    if wanted > LOCAL_MAX:
        raise hinted(ConfigError(f"a DAX window of {value} takes more mappings than a process may have"), "take 32G")
    return (wanted, wanted // GRANULE) if wanted else None


def files(which: int | str) -> int | None:
    """Returns from how many bytes on files are to be mapped: `never` (None), `always` (0), `inode` (`SMALL`), or a size.

    Raises:
        ConfigError: It is none of these.
    """
    if which == "never":
        return None
    if which == "always":
        return 0
    if which == "inode":
        return SMALL
    try:
        least = size(which)
    except ConfigError:
        least = -1
    if not 0 <= least < 1 << 63:
        raise ConfigError(f"which files are mapped: never, always, inode, or from a size on (64K), not {which!r}")
    return least
