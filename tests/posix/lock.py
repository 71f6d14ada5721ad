"""fcntl(2) locks with all of their fields, which ``fcntl.lockf`` hides."""

from __future__ import annotations

import fcntl
import struct
import time
from collections.abc import Callable
from dataclasses import dataclass

F_OFD_GETLK, F_OFD_SETLK, F_OFD_SETLKW = 36, 37, 38
_FLOCK = struct.Struct("hhqqi4x")


@dataclass(frozen=True)
class Lock:
    """struct flock, counted from the start of the file; length 0 reaches to any end."""

    type: int
    start: int = 0
    length: int = 0
    pid: int = 0


def lock(file: int, command: int, wanted: Lock, whence: int = 0) -> Lock:
    """fcntl(2) with a lock command; answers what the kernel left in the structure."""
    packed = _FLOCK.pack(wanted.type, whence, wanted.start, wanted.length, wanted.pid)
    kind, _, start, length, pid = _FLOCK.unpack(fcntl.fcntl(file, command, packed))
    return Lock(kind, start, length, pid)


def after_close(take: Callable[..., object], *arguments: object) -> None:
    """Take a lock whose holder was just closed.

    close(2) of a FUSE file returns before the server has heard of it (RELEASE is not waited for), so a lock that goes
    with the last descriptor may stand for a moment more; on a local disk the first attempt succeeds.
    """
    deadline = time.monotonic() + 5
    while True:
        try:
            take(*arguments)
        except BlockingIOError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.01)
        else:
            return
