"""virtio-mmio registers before a device, for a VMM that only forwards its guest's accesses."""

from typing import Final, Self, final

from . import _core, saved
from ._core import GuestMemory, Workers
from .device import Device
from .filesystem import FileSystem
from .queues import Interrupt, as_interrupt

SIZE: Final = 0x200
"""Bytes of guest addresses that the registers take."""


@final
class MmioTransport(_core.Mmio):
    """The registers of one device (virtio 1.3, 4.2.2; layout version 2).

    The guest's driver starts and resets the device by what it writes; the VMM may pause, resume and close it. What a driver
    does in a wrong order is answered as the specification says, and otherwise ignored: no access raises. For a Linux guest the
    device is ``virtio_mmio.device=512@ADDRESS:IRQ`` on its command line, or a node ``virtio,mmio`` in its device tree.
    Its driver finds the DAX window, of a device that has one, where `Device.place_window` has put it.

    Args:
        device: The device, which is ready.
        interrupt: What happens when the guest is to be interrupted: an eventfd, or a function that a thread of ours calls.
    """

    device: Device
    """The device behind the registers."""

    @classmethod
    def restore(
        cls,
        saved_registers: bytes,
        fs: FileSystem,
        memory: GuestMemory,
        interrupt: Interrupt | None = None,
        *,
        missing: saved.Missing = "fail",
        slow_threads: int = 16,
        workers: Workers | None = None,
    ) -> Self:
        """Makes registers and a device that go on where others were saved: see `Device.restore`. The device is paused.

        Args:
            saved_registers: What `save` has returned.
            fs: The same directory with the same settings.
            memory: The guest's memory, as it was.
            interrupt: As for new registers.
            missing: As of `Device.restore`.
            slow_threads: As of `Device`.
            workers: As of `Device`.

        Raises:
            RestoreError: Something that the guest has is missing, and that is to fail.
            ConfigError: These are no bytes of `save`, or `fs` does not offer what the guest relies on.
            ValueError: The memory does not have the queues.
        """
        options = {"slow_threads": slow_threads, "workers": workers}
        with Device._like(saved_registers, fs, memory, missing, options, registers=True) as (device, may_lose):
            self = cls(device, interrupt)
            device.lost = saved.lost(self._resume(saved_registers, may_lose))
        return self

    def __new__(cls, device: Device, interrupt: Interrupt | None = None) -> Self:
        """Puts registers before `device`."""
        self = super().__new__(cls, device._native, as_interrupt(interrupt))
        self.device = device
        return self
