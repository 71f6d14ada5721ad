"""What is told of methods that fail in a way that is no answer to a guest."""

import errno
import traceback
from typing import Final

from . import _core

_MOST: Final = 1000
"""Kinds that are remembered."""

_NUMBERS: Final = {
    FileNotFoundError: errno.ENOENT,
    FileExistsError: errno.EEXIST,
    PermissionError: errno.EACCES,
    NotADirectoryError: errno.ENOTDIR,
    IsADirectoryError: errno.EISDIR,
    BlockingIOError: errno.EAGAIN,
    BrokenPipeError: errno.EPIPE,
    TimeoutError: errno.ETIMEDOUT,
    NotImplementedError: errno.EOPNOTSUPP,
}

_told: set[tuple[str, type[BaseException], str, int]] = set()


def number(error: BaseException) -> int:
    """Returns the errno that a guest gets for an exception of a method."""
    if isinstance(error, OSError) and (error.errno or 0) > 0:
        return error.errno or 0
    return next((number for kind, number in _NUMBERS.items() if isinstance(error, kind)), errno.EIO)


def report(name: str, error: BaseException) -> None:
    """Logs an exception of the method called `name` with its traceback, the first time that one of its kind comes.

    One kind is one exception class at one place of one method. The request was answered with EIO.
    """
    frames = traceback.extract_tb(error.__traceback__)
    file, line = (frames[-1].filename, frames[-1].lineno or 0) if frames else ("", 0)
    kind = (name, type(error), file, line)
    if kind in _told or len(_told) >= _MOST:
        return
    _told.add(kind)
    what = f"{name} {error}" if not frames else f"{name} raised {type(error).__name__}: {error}"
    text = f"{what}; the guest gets EIO, and more of this kind are not told"
    if _core.log_sink() in ("python", "nowhere"):
        import logging

        logging.getLogger("virtiofs.python").error("%s", text, exc_info=error if frames else None)
        return
    _core.log("error", text)
    for entry in traceback.format_exception(error) if frames else ():
        for part in entry.rstrip().splitlines():
            _core.log("error", part)
