"""What this process may do on this host: capabilities and limits."""

import errno
import resource
from typing import Final

from .errors import hinted

_CAPABILITIES: Final = {"CHOWN": 0, "DAC_OVERRIDE": 1, "SETGID": 6, "SETUID": 7, "SYS_ADMIN": 21, "SYS_RESOURCE": 24}
"""Bits of capabilities(7)."""

OWNER_CAPABILITIES: Final = ("CHOWN", "SETGID", "SETUID")
"""What a process needs to create files for others and to give them away."""

MOST_NODES: Final = 1 << 22
"""Files that a guest remembers at most: as many as a guest of 4 GiB has memory for, and about 1 GiB of ours."""

_MOST_OPEN_FILES: Final = 1_000_000
"""More than this no guest of a sensible size keeps open."""


def has_capability(name: str) -> bool:
    """Whether this process has the capability CAP_`name` in effect."""
    with open("/proc/self/status", encoding="ascii", errors="replace") as file:
        for line in file:
            if line.startswith("CapEff:"):
                return bool(int(line.split()[1], 16) >> _CAPABILITIES[name] & 1)
    return False


def may_change_owners() -> bool:
    """Whether this process can create files for any user."""
    return all(has_capability(name) for name in OWNER_CAPABILITIES)


def most_descriptors(neighbours: int = 1) -> int:
    """Returns how many descriptors one guest may hold, beside those of other shares of this process.

    What is left is for sockets, guests' memory and queues, and what the program itself opens.
    """
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    return max(64, (limit - max(64, limit // 8)) // neighbours)


def reachable_open_files() -> int:
    """Returns how many open files `raise_open_files` would reach."""
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    return max(hard, min(_MOST_OPEN_FILES, _nr_open())) if has_capability("SYS_RESOURCE") else hard


def raise_open_files(wanted: int | None = None) -> int:
    """Raises the limit of open files, since each inode that a guest knows can hold one, and returns it.

    Args:
        wanted: The limit; None for the highest that this process may have, up to 1,000,000; 0 leaves it as it is.

    Raises:
        PermissionError: `wanted` is above what this process may have.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if wanted == 0:
        return soft
    limit = reachable_open_files() if wanted is None else wanted
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (limit, max(limit, hard)))
    except (ValueError, OSError):
        if wanted is None:
            return soft
        raise hinted(
            PermissionError(errno.EPERM, f"the limit of open files cannot be raised from {hard} to {wanted}"),
            "run as root, or raise it with ulimit -n or LimitNOFILE=",
        ) from None
    return limit


def _nr_open() -> int:
    """Returns the most open files that this kernel lets a process have."""
    try:
        with open("/proc/sys/fs/nr_open", encoding="ascii") as file:
            return int(file.read())
    except (OSError, ValueError):
        return 1 << 20


def inode_watches() -> int:
    """Returns how many inodes one daemon may watch: half of what all programs of its user may (inotify(7))."""
    try:
        with open("/proc/sys/fs/inotify/max_user_watches") as limit:
            return max(1, int(limit.read()) // 2)
    except (OSError, ValueError):
        return 4096
