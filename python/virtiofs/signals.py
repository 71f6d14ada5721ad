"""Serving until a signal comes."""

import os
import select
import signal
from collections.abc import Callable, Iterable
from typing import Final, Protocol

ENDING: Final = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
"""Signals that end what is served."""


class Waitable(Protocol):
    """Something with a descriptor that becomes readable when it has ended."""

    def fileno(self) -> int:
        """Returns the descriptor."""


def ended(served: Waitable, timeout: float | None) -> bool:
    """Waits until it has ended, for so many seconds at most, and says whether it has. Signals are handled meanwhile."""
    poll = select.poll()
    poll.register(served, select.POLLIN)
    return bool(poll.poll(None if timeout is None else timeout * 1000))


def until_signal(start: Callable[[], Iterable[Waitable]]) -> int | None:
    """Serves until SIGTERM, SIGINT or SIGHUP comes or all that is served ended by itself. Only for the main thread.

    Args:
        start: Called first, with the signals watched already; returns what is served.

    Returns:
        The number of the signal, or None.
    """
    wake, note = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    wakeup = signal.set_wakeup_fd(note, warn_on_full_buffer=False)
    before = [signal.signal(number, lambda *_: None) for number in ENDING]
    try:
        poll = select.poll()
        poll.register(wake, select.POLLIN)
        served = {each.fileno() for each in start()}
        for fd in served:
            poll.register(fd, select.POLLIN)
        while served:
            ready = {fd for fd, _ in poll.poll()}
            if wake in ready:
                for number in os.read(wake, 64):
                    if number in ENDING:
                        return number
            for fd in ready & served:
                poll.unregister(fd)
                served.discard(fd)
        return None
    finally:
        # A second signal while what was served is closed acts as it did before.
        for number, handler in zip(ENDING, before, strict=True):
            signal.signal(number, handler)
        signal.set_wakeup_fd(wakeup)
        os.close(wake)
        os.close(note)
