"""How a VMM sets up a device's queues, and by which descriptors and functions the two reach each other."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, TypeAlias

from . import _core


class HasFileno(Protocol):
    """Something with a descriptor, as `socket.socket` or a file."""

    def fileno(self) -> int:
        """Returns the descriptor."""


Descriptor: TypeAlias = int | HasFileno
Interrupt: TypeAlias = Descriptor | Callable[[], object]
"""What happens when the guest is to be interrupted: an eventfd is written, or a function is called by a thread of ours."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Queue:
    """A virtqueue as the guest's driver has set it up. The device takes copies of the descriptors.

    Attributes:
        size: Entries of the ring, a power of two up to 32768.
        desc: Guest address of the descriptor table.
        avail: Guest address of the available ring ("driver area").
        used: Guest address of the used ring ("device area").
        kick: An eventfd (or the read end of a pipe) that is written when the driver notifies the device. None for a VMM that
            calls `Device.notify`, which works in either case.
        call: How the driver is interrupted: an eventfd (or the write end of a pipe), or a function without arguments. None for
            a driver that polls.
        next: Position in the available ring to begin with: 0 for a ring that is new.
    """

    size: int
    desc: int
    avail: int
    used: int
    kick: Descriptor | None = None
    call: Interrupt | None = None
    next: int = 0

    def _native(self) -> "_core._Queue":
        kick = None if self.kick is None else as_descriptor(self.kick)
        return (self.size, self.desc, self.avail, self.used, self.next, kick, as_interrupt(self.call))


def as_descriptor(value: Descriptor) -> int:
    """Returns the number of a descriptor."""
    return value if isinstance(value, int) else value.fileno()


def as_interrupt(value: Interrupt | None) -> int | Callable[[], object] | None:
    """Returns a function as it is, else the number of a descriptor."""
    if value is None or isinstance(value, int):
        return value
    return value.fileno() if hasattr(value, "fileno") else value
