"""The device inside a virtual machine monitor that is written in Python."""

import itertools
import mmap
import os
import weakref
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final, Literal, Self

from . import _core, dax, running, saved
from ._core import GuestMemory, Workers
from .filesystem import FileSystem
from .queues import Descriptor, Interrupt, Queue, as_descriptor, as_interrupt
from .server import check_device
from .types import DeviceStats, InFlight, Lost

DEVICE_ID: Final = 26
"""The virtio device id of a file system device."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SharedMemory:
    """A piece of this process's memory that the device offers to its guest.

    Attributes:
        id: By what the driver asks for it (virtio 1.3, 2.10): 0 is the DAX window, 1 the version table.
        size: Bytes.
        host_address: Where it begins in this process: the window at a multiple of 2 MiB, the table at a page. Given to the
            guest as memory, once (KVM_SET_USER_MEMORY_REGION, the table with KVM_MEM_READONLY): what is mapped in the window
            comes and goes by itself.
        guest_address: Where `Device.place_window` or `Device.place_version_table` has said that the guest sees it, or None.
        fd: Descriptor of the table, which can only be read, for a VMM that maps it by itself; it is open as long as the device
            lives. None for the window.
    """

    id: int
    size: int
    host_address: int
    guest_address: int | None
    fd: int | None = None


class Device:
    """A virtio-fs device for one guest, to be a part of a VMM.

    The VMM brings guest memory, the addresses of queues, and a way to interrupt the guest; native threads do the rest and never
    wait for the interpreter. There is no thread before `start`, and none after `reset` or `close`. Methods may be called from
    any thread; those that stop queues wait for the requests in flight. What is asked of a device in the wrong state is a
    `StateError` and changes nothing::

        memory = GuestMemory()
        memory.add_fd(0, ram, 1 << 30)
        with Device(Passthrough("/srv/data"), "data", memory) as device:
            device.start(features, [hiprio, requests])

    Attributes:
        lost: Of a device that was restored: what its guest has had, and finds stale.

    Args:
        fs: What is served. One file system may be served by any number of devices: each has a session of its own.
        tag: Name under which the guest mounts it: 1 to 36 bytes of UTF-8.
        memory: The guest's memory. Regions may come and go while the device runs.
        request_queues: Request queues, 1 to 255. With the hiprio queue there is one more.
        slow_threads: Threads, at most, for requests that have to wait for a disk. They are made when needed and go when idle.
        workers: Threads to use that are shared with other devices, `slow_threads` among them. None for a thread per queue,
            which answers sooner: it looks for requests before it sleeps.
        dax_window: Bytes of the DAX window, into which guests map files: a power of two from 2 MiB to 32 GiB, or text such as
            1G; 0 for none. It takes addresses of this process, and no memory. See docs/dax.md.

    Raises:
        ConfigError: A setting cannot be served.
        OSError: The file system cannot be opened, or there is no room for the window.
    """

    def __init__(
        self,
        fs: FileSystem,
        tag: str,
        memory: GuestMemory,
        *,
        request_queues: int = 1,
        slow_threads: int = 16,
        workers: Workers | None = None,
        dax_window: int | str = 0,
    ) -> None:
        check_device(tag, request_queues, slow_threads)
        self.fs: Final = fs
        self.tag: Final = tag
        self.memory: Final = memory
        self.request_queues: Final = request_queues
        window = dax.local(dax_window)
        self._process: Final = os.getpid()
        running.log_to_python()
        self._native: Final = _core.Device(
            fs.engine(),
            memory,
            tag=tag,
            request_queues=request_queues,
            slow_threads=slow_threads,
            workers=workers,
            want=fs.init_flags | (dax.FLAGS if window else 0),
            window=window,
            follow=fs.version_table,
        )
        self.lost: Sequence[Lost] = ()
        self._exit: Final = _Exit(self)
        running.add(self._exit)
        weakref.finalize(self, running.discard, self._exit).atexit = False

    @property
    def device_id(self) -> int:
        """The virtio device id: 26."""
        return DEVICE_ID

    @property
    def features(self) -> int:
        """The feature bits that are offered to the driver."""
        return self._native.features

    @property
    def accepted_features(self) -> int:
        """The feature bits that the driver accepted; 0 while the device is ready."""
        return self._native.accepted

    @property
    def queue_count(self) -> int:
        """Queues of the device: hiprio (index 0) and the request queues.

        One more, at index 1, for a driver that accepted VIRTIO_FS_F_NOTIFICATION (bit 0).
        """
        return 1 + self.request_queues + (self.accepted_features & 1)

    @property
    def state(self) -> Literal["ready", "running", "paused", "closed"]:
        """What the device does: it can be started, serves its queues, stands still for the time, or is over."""
        return self._native.state

    @property
    def queues(self) -> list[Queue]:
        """The queues that are set up, without their descriptors. Of a paused device `next` is where each one goes on."""
        return [
            Queue(size=size, desc=desc, avail=avail, used=used, next=position)
            for _, size, desc, avail, used, position in self._native.queues()
        ]

    def read_config(self, offset: int, size: int) -> bytes:
        """Returns `size` bytes of the configuration space (tag, number of request queues), zeros behind its end."""
        return self._native.read_config(offset, size)

    def write_config(self, offset: int, data: bytes) -> None:
        """Refuses: nothing in the configuration space of a file system device can be written.

        Raises:
            PermissionError: Always. A guest's write is to be ignored.
        """
        raise PermissionError(f"the configuration space is read-only: {len(data)} bytes at {offset}")

    def start(self, features: int, queues: Sequence[Queue]) -> None:
        """Starts to serve.

        Args:
            features: The feature bits that the driver accepted: VERSION_1 (bit 32), and no others than `features`.
            queues: The queues, hiprio first. There may be fewer request queues than the device has.

        Raises:
            StateError: The device is not ready.
            ValueError: The features were not offered, or a queue cannot be: then none was started.
        """
        self._native.start(features, [queue._native() for queue in queues])

    def notify(self, queue: int) -> None:
        """Says that the driver has put something into a queue. Returns at once.

        Raises:
            StateError: The device neither runs nor is paused.
            ValueError: There is no such queue.
        """
        self._native.notify(queue)

    def pause(self) -> None:
        """Stops all queues, after the requests in flight. Nothing of the guest's memory is read or written any more.

        Requests that wait for a lock of another guest go on waiting, and are answered after `resume`.

        Raises:
            StateError: The device does not run.
        """
        self._native.pause()

    def resume(self) -> None:
        """Goes on from where the queues stopped.

        Raises:
            StateError: The device is not paused.
            ValueError: A queue's place is no longer guest memory; the device stays paused.
        """
        self._native.resume()

    def save(self) -> bytes:
        """Returns the paused device as bytes, from which `restore` makes one that goes on, here or in another process.

        They have the positions of the queues, the features, and the guest's session: nodes, open files and directories, locks,
        and what is mapped in the DAX window; neither guest memory nor contents of files. The device stays as it is. Who can
        change these bytes can open files: keep them as the guest's memory is kept. Nodes and handles that are objects of Python
        are said by `FileSystem.save_node` and `save_handle`, which this calls.

        Raises:
            StateError: The device is not paused.
        """
        return self._native.save()

    @classmethod
    def restore(
        cls,
        saved_device: bytes,
        fs: FileSystem,
        memory: GuestMemory,
        *,
        kicks: Sequence[Descriptor | None] = (),
        calls: Sequence[Interrupt | None] = (),
        missing: saved.Missing = "fail",
        slow_threads: int = 16,
        workers: Workers | None = None,
    ) -> Self:
        """Makes a device that goes on where another one was saved. It is paused: `resume` lets it serve.

        The other one is closed before, or its locks are in the way. Nodes are found again by file handle where this process may
        open those (CAP_DAC_READ_SEARCH), else by path, and only if they are the same inodes. The DAX window is where it was,
        with what was mapped; its memory is to be given to the guest again. Each queue interrupts its driver once.

        Args:
            saved_device: What `save` has returned.
            fs: The same directory with the same settings, or another object of the same class: its `restore_node` and
                `restore_handle` are called for what is Python's.
            memory: The guest's memory, as it was when the device was saved.
            kicks: By queue, hiprio first: what is written when the driver notifies the device, as in `Queue`.
            calls: By queue: how the driver is interrupted, as in `Queue`.
            missing: What to do if something that the guest has is gone, as a file that was deleted: `fail`, or go
                on and make it `stale`, so that the guest gets ESTALE and EBADF for it. `lost` says what that is.
            slow_threads: As for a new device.
            workers: As for a new device.

        Raises:
            RestoreError: Something is missing, and that is to fail.
            ConfigError: These are no bytes of `save`, or `fs` does not offer what the guest relies on.
            ValueError: The memory does not have the queues.
        """
        options = {"slow_threads": slow_threads, "workers": workers}
        with cls._like(saved_device, fs, memory, missing, options) as (device, may_lose):
            wires = [
                (None if kick is None else as_descriptor(kick), as_interrupt(call))
                for kick, call in itertools.zip_longest(kicks, calls)
            ]
            device.lost = saved.lost(device._native.restore(saved_device, wires, may_lose))
        return device

    @classmethod
    @contextmanager
    def _like(
        cls,
        saved_device: bytes,
        fs: FileSystem,
        memory: GuestMemory,
        missing: saved.Missing,
        options: dict[str, Any],
        *,
        registers: bool = False,
    ) -> Iterator[tuple[Self, bool]]:
        """Makes a device like the one that was saved, and says whether things may be missing. Closes it if it cannot go on."""
        tag, request_queues, window = saved.shape(saved_device, registers=registers)
        may_lose = saved.may_lose(missing)
        device = cls(fs, tag, memory, request_queues=request_queues, dax_window=window, **options)
        try:
            yield device, may_lose
        except BaseException:
            device.close()
            raise

    def reset(self) -> None:
        """Forgets the driver: its queues and features, and its session with all nodes, open files and locks.

        Raises:
            StateError: The device is closed.
        """
        self._native.reset()

    def close(self) -> None:
        """Ends the device and its threads. May be called again; in a fork of the process that made it, it does nothing."""
        if self._process == os.getpid():
            self._native.close()
            running.discard(self._exit)

    @property
    def shared_memory(self) -> list[SharedMemory]:
        """What the device has for its guest's address space: the DAX window, and the version table of its file system."""
        regions = []
        if (window := self._native.window) is not None:
            size, host, guest = window
            regions.append(SharedMemory(id=0, size=size, host_address=host, guest_address=guest))
        if (table := self._native.version_table) is not None:
            size, host, fd, guest = table
            regions.append(SharedMemory(id=1, size=size, host_address=host, guest_address=guest, fd=fd))
        return regions

    def place_version_table(self, guest_address: int | None) -> None:
        """Says where the guest sees the version table: None for nowhere. `MmioTransport` tells the driver.

        Raises:
            ValueError: The guest could not map it there: the address is no multiple of the size of a page.
        """
        if guest_address is not None and guest_address % mmap.PAGESIZE:
            raise ValueError(f"the version table cannot lie at {guest_address:#x}, which is no multiple of a page")
        self._native.place_table(guest_address)

    def place_window(self, guest_address: int | None) -> None:
        """Says where the guest sees the DAX window: None for nowhere, as while a PCI bar is off.

        Requests may have buffers in the window, which are read and written as the files that are mapped there. `memory` is told
        where that is, and must not have the window as a region of its own. A device without a window takes no notice.

        Raises:
            ValueError: The guest has memory there, or could not map it (the address is a multiple of 2 MiB).
        """
        if guest_address is not None and guest_address % dax.GRANULE:
            raise ValueError(f"the DAX window cannot lie at {guest_address:#x}, which is no multiple of 2 MiB")
        self._native.place_window(guest_address)

    def handle_sigbus(self, host_address: int) -> bool:
        """Puts zeros where an access of this process got SIGBUS, if that lies in the DAX window, and says whether it does.

        For a VMM whose own handler comes before the one that is installed with a window, which does the same.
        """
        return self._native.handle_sigbus(host_address)

    def handle_efault(self, guest_address: int) -> bool:
        """Says whether the guest can go on when KVM_RUN has failed with EFAULT at an address of the DAX window.

        A file that became shorter while it was mapped ends there: zeros take the place of what it does not have. False where
        the guest had no business: nothing is mapped, or not for writing. Linux 5.14 or newer.
        """
        return self._native.handle_efault(guest_address)

    def stats(self) -> DeviceStats:
        """Returns the state and the counters of all sessions so far."""
        return DeviceStats(**self._native.stats())

    def in_flight(self) -> list[InFlight]:
        """Returns the requests that Python methods are at or that wait for one, the oldest first."""
        return [InFlight(*flight) for flight in self._native.in_flight()]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<Device {self.tag!r} of {self.fs!r}: {self.state if self._process == os.getpid() else 'forked'}>"


class _Exit:
    """Closes a device that is still there when the interpreter goes, and does not keep it until then."""

    def __init__(self, device: Device) -> None:
        self._device = weakref.ref(device)

    def close(self) -> None:
        if (device := self._device()) is not None:
            device.close()
