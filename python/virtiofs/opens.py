"""Where guests open files and directories without a message.

Linux leaves OPEN, FLUSH and RELEASE out for a whole mount once an OPEN was answered with ENOSYS, and takes FOPEN_KEEP_CACHE for
granted then; the same for directories. The native side finds the file by its node. What an open would have told, or what it
would have been told, must not be missed.
"""

from typing import Final

from . import _core
from .cache import Cache
from .host import has_capability
from .policy import Policy

FEATURES: Final = frozenset(("NO_OPEN_SUPPORT", "NO_OPENDIR_SUPPORT"))
"""Features of the session by which it is agreed on."""

FILES: Final = ("open", "flush", "release")
"""Operations on files that are not sent then."""

DIRECTORIES: Final = ("opendir", "releasedir")
"""The same for directories."""

_DEFAULT: Final = _core.FOPEN["KEEP_CACHE"]
_DIRECTORY_DEFAULT: Final = _core.FOPEN["KEEP_CACHE"] | _core.FOPEN["CACHE_DIR"]


def hindrance(cache: Cache, policy: Policy | None, *, allow_direct_io: bool) -> str | None:
    """Returns why files cannot be opened without a message, whoever asks for it."""
    if cache.open_flags != _DEFAULT:
        return "data is not kept over opens"
    if allow_direct_io:
        return "the host is to know of O_DIRECT"
    if policy is None:
        return None
    if policy.sees_opens:
        return "the policy is asked at each open"
    for rule in policy:
        mask, bits = rule.native()["open_flags"]
        if _DEFAULT & ~mask | bits != _DEFAULT:
            return "a rule says of single files how they are read"
    return None


def tells_something(*, read_only: bool, posix_lock: bool, flock: bool) -> str | None:
    """Returns what an open of a file still tells where nothing hinders to leave it out."""
    if not read_only:
        return "what is opened for writing"
    if posix_lock or flock:
        return "when locks on the host end"
    if not has_capability("DAC_OVERRIDE"):
        return "what this process may not read"
    return None


def directories_hindrance(cache: Cache, policy: Policy | None) -> str | None:
    """Returns why directories cannot be opened without a message."""
    if cache.opens:
        return "each open is to be a message"
    if cache.dir_open_flags != _DIRECTORY_DEFAULT:
        return "listings are not kept"
    if any(rule.native()["dir_open_flags"] not in (None, _DIRECTORY_DEFAULT) for rule in policy or ()):
        return "a rule says of single directories whether listings are kept"
    return None
