"""What operations answer."""

import stat
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Attr:
    """Attributes of an inode, named as in `os.stat_result`. Times are nanoseconds since the epoch."""

    ino: int
    mode: int
    nlink: int
    uid: int
    gid: int
    rdev: int
    size: int
    blocks: int
    blksize: int
    atime_ns: int
    mtime_ns: int
    ctime_ns: int
    flags: int = 0

    @property
    def is_dir(self) -> bool:
        """Whether it is a directory."""
        return stat.S_ISDIR(self.mode)

    @property
    def is_file(self) -> bool:
        """Whether it is a regular file."""
        return stat.S_ISREG(self.mode)

    @property
    def is_symlink(self) -> bool:
        """Whether it is a symlink."""
        return stat.S_ISLNK(self.mode)

    @property
    def permissions(self) -> int:
        """The mode without the type."""
        return stat.S_IMODE(self.mode)


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """A name that was looked up: its node id, which guests count and forget, and how long both may be trusted (seconds)."""

    node: int
    generation: int
    entry_timeout: float
    attr_timeout: float
    attr: Attr


@dataclass(frozen=True, slots=True, kw_only=True)
class DirEntry:
    """One name of a directory listing. `kind` is the type as in `Attr.mode`; `entry` is there if it was asked for."""

    name: str
    ino: int
    kind: int
    cookie: int
    entry: Entry | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Open:
    """An open file or directory: the handle, and the FOPEN flags that came with it."""

    handle: int
    flags: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Statfs:
    """What statfs(2) says. Sizes are in units of `frsize` bytes."""

    blocks: int
    bfree: int
    bavail: int
    files: int
    ffree: int
    bsize: int
    frsize: int
    namelen: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Stats:
    """Counters of a server since it started.

    Args:
        sessions: Guests that have connected.
        requests: Requests answered, by the name of the operation.
        errors: Error replies among them.
        malformed: Chains, headers or arguments that no honest guest sends.
        panics: Faults of ours that ended a single request, with EIO.
    """

    sessions: int
    requests: dict[str, int]
    errors: dict[str, int]
    malformed: int
    panics: int
