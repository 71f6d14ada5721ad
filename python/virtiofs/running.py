"""What this process serves now: ended before the interpreter goes, heard in `logging` until then."""

import atexit
import os
from collections.abc import Callable
from typing import Protocol

from . import _core

_running: dict["Closable", Callable[[], None]] = {}


class Closable(Protocol):
    """Something with threads of its own."""

    def close(self) -> None:
        """Ends it."""


def log_to_python() -> None:
    """Sends native events to `logging`, unless the program has chosen a native sink or they go there already."""
    if _running or _core.log_sink() != "nowhere":
        return
    import logging

    level = logging.getLogger("virtiofs").getEffectiveLevel()
    if level < logging.DEBUG:
        _core.log_to_python("trace")
    elif level < logging.INFO:
        _core.log_to_python("debug")
    elif level < logging.WARNING:
        _core.log_to_python("info")
    elif level < logging.ERROR:
        _core.log_to_python("warn")
    else:
        _core.log_to_python("error")


def add(served: Closable, forked: Callable[[], None] = lambda: None) -> None:
    """Notes that `served` runs. In a fork of the process, `forked` lets go of what the fork must not keep."""
    if not _running:
        atexit.register(_close_all)
    _running[served] = forked


def discard(served: Closable) -> None:
    """Notes that `served` runs no more."""
    _running.pop(served, None)
    if not _running:
        atexit.unregister(_close_all)
        if _core.log_sink() == "python":
            _core.log_stop()


def _close_all() -> None:
    for served in list(_running):
        served.close()


def _forked() -> None:
    for forked in _running.values():
        forked()


os.register_at_fork(after_in_child=_forked)
