"""Telling of opens without anybody in a guest waiting for it."""

import atexit
import os
import queue
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from .errors import ConfigError
from .faults import report


@dataclass(frozen=True, slots=True, kw_only=True)
class OpenEvent:
    """A file that a guest opened, or was refused.

    Args:
        time_ns: When, in nanoseconds since the epoch.
        path: The file on the host, as an absolute path.
        flags: Those of open(2).
        uid: Who asked, in the guest.
        gid: The group of who asked.
        pid: The process in the guest.
        errno: Why it was refused; 0 if it was not.
        replaced: Another file took its place.
    """

    time_ns: int
    path: str
    flags: int
    uid: int
    gid: int
    pid: int
    errno: int
    replaced: bool


class Audit:
    """Calls a function with each event, on a thread of its own. When it does not keep up, events are lost and counted.

    Args:
        function: Called with one event at a time. What it raises is logged, once for each kind.
        size: Events that wait for it, at most.

    Raises:
        ConfigError: No event could wait.
    """

    def __init__(self, function: Callable[[OpenEvent], object], size: int = 4096) -> None:
        if size < 1:
            raise ConfigError(f"1 event or more has to wait, not {size}")
        self.function: Final = function
        self.lost = 0
        """Events that nobody was told of."""
        self._waiting: queue.Queue[OpenEvent] = queue.Queue(size)
        self._lock = threading.Lock()
        self._process: int | None = None

    def tell(self, event: OpenEvent) -> None:
        """Notes an event. Never waits for the function."""
        if self._process != os.getpid():
            self._start()
        try:
            self._waiting.put_nowait(event)
        except queue.Full:
            self.lost += 1

    def flush(self, timeout: float = 1.0) -> bool:
        """Waits until nothing waits for the function any more; False if that takes longer than `timeout` seconds."""
        deadline = time.monotonic() + timeout
        while self._waiting.unfinished_tasks:
            if time.monotonic() > deadline:
                return False
            time.sleep(0.005)
        return True

    def _start(self) -> None:
        with self._lock:
            # A fork of the process has none of its threads.
            if self._process != os.getpid():
                self._process = os.getpid()
                threading.Thread(target=self._run, name="virtiofs-audit", daemon=True).start()
                atexit.register(self.flush)

    def _run(self) -> None:
        while True:
            event = self._waiting.get()
            try:
                self.function(event)
            except Exception as error:
                report("audit", error)
            finally:
                self._waiting.task_done()
