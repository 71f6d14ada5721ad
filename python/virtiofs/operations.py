"""What the methods of a file system are: of no use alone, done natively, or handlers."""

import errno
import functools
import os
from collections.abc import Callable
from typing import Any, Final, TypeVar

_F = TypeVar("_F", bound=Callable[..., Any])

OPERATIONS: Final = (
    "lookup",
    "forget",
    "getattr",
    "statx",
    "setattr",
    "readlink",
    "symlink",
    "mknod",
    "mkdir",
    "unlink",
    "rmdir",
    "rename",
    "link",
    "open",
    "create",
    "tmpfile",
    "read",
    "write",
    "flush",
    "release",
    "fsync",
    "fallocate",
    "lseek",
    "copy_file_range",
    "ioctl",
    "getlk",
    "setlk",
    "setlkw",
    "opendir",
    "readdir",
    "readdirplus",
    "releasedir",
    "fsyncdir",
    "statfs",
    "syncfs",
    "setxattr",
    "getxattr",
    "listxattr",
    "removexattr",
    "access",
)
"""All operations that a class may define, in the order in which they are told of."""

MOMENTS: Final = ("init", "destroy")
"""Methods that are told of a session's begin and end."""


def default(number: int, then: str) -> Callable[[_F], _F]:
    """Marks a method that only stands for an operation that a class lacks.

    Args:
        number: The errno that the operation answers. ENOSYS says for good that there is no such operation; 0 stands for
            an answer that needs no handler.
        then: What that means.
    """

    def mark(method: _F) -> _F:
        @functools.wraps(method)
        def lacking(self: object, *_: object, **__: object) -> Any:
            raise OSError(number or errno.ENOSYS, os.strerror(number or errno.ENOSYS))

        lacking.lacks = number  # type: ignore[attr-defined]
        lacking.then = then  # type: ignore[attr-defined]
        return lacking  # type: ignore[return-value]

    return mark


def native(method: _F) -> _F:
    """Marks a method that the native file system does without Python, unless a subclass overrides it."""
    method.native = True  # type: ignore[attr-defined]
    return method
