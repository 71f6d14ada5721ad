"""A guest without a virtual machine, to test file systems and servers with.

It is the driver's half of the device: real virtqueues in shared memory, the vhost-user protocol or registers, and a FUSE
client that holds the server to what Linux demands of a reply. No root, no kernel module, no image::

    from virtiofs import Passthrough
    from virtiofs.testing import Guest

    with Guest(Passthrough("/srv/data")) as guest:
        guest.write_file("notes/today", b"hello")
        assert guest.listdir("notes") == ["today"]
"""

import os
import tempfile
from typing import Any, Literal, Protocol, Self

from . import _core
from ._core import GuestMemory
from .device import Device
from .errors import ConfigError, ProtocolError
from .filesystem import FileSystem
from .mmio import MmioTransport
from .server import Server

__all__ = ["Guest"]


class Guest(_core.Guest):
    """A share, mounted in this process. Ends with its ``with`` block, or with `close`.

    Paths are relative to the root of the share, with or without a leading slash; symlinks are followed as a kernel does,
    absolute ones from the root of the share. What the server refuses is raised as the OSError that it is; a reply
    against the protocol as `ProtocolError`; no reply as TimeoutError. Several threads may use one guest.

    Args:
        target: What is mounted: a file system, which gets a server or device of its own for the time; a `Server` that runs; the
            path of the socket of any vhost-user-fs daemon; or a `Device` or `MmioTransport`, whose memory and queues the guest
            brings.
        way: How a file system is mounted: over vhost-user, by the addresses of queues, or as a driver of virtio-mmio.
        timeout: Seconds to wait for a reply.
        connect_timeout: Seconds to wait for somebody to listen at the socket.
        request_queues: Request queues to use, if the device has as many.
        queue_size: Descriptors of each queue, a power of two.
        max_pages: Largest read or write in pages of 4 KiB; the queue and the server may lower it.
        uid: User who asks; None for the user of this process.
        gid: Group who asks.
        init_flags: Features of FUSE to offer; None for those of Linux.
        dax: Use the DAX window of a device that has one; a file system gets one of 64 MiB.
        whole_pages: Map as QEMU 11.1 does: nothing that lies behind the end of a file, and no file that may not be written.
        versions: The version table of the share: names, absent names and attributes are kept for exactly as long as it says.
            True for the one that a device shows its guest (shared memory region 1).
        notifications: Take the queue of notifications, if the device has one (its file system has a version table): names,
            absent names and attributes are kept for as long as the server says, unless it says otherwise there.

    Raises:
        OSError: Nobody listens, or the server went away.
        ProtocolError: The server broke the protocol.
    """

    server: Server | None
    """The server, if it was given or made here."""
    device: Device | None
    """The device, if it was given or made here."""
    _made: "_Made | None"
    _mounted: bool

    def __new__(
        cls,
        target: "FileSystem | Server | Device | MmioTransport | str | os.PathLike[str]",
        *,
        way: Literal["socket", "device", "registers"] = "socket",
        **options: Any,
    ) -> Self:
        """Mounts the share."""
        made: _Made | None = None
        if isinstance(target, FileSystem):
            dax = bool(options.get("dax"))
            made = _PrivateServer(target, dax=dax) if way == "socket" else _PrivateDevice(target, way, options)
            target = made.target
        native: str | os.PathLike[str] | Device | _core.Device | _core.Mmio | None
        native = target.path if isinstance(target, Server) else target
        native = target._native if isinstance(target, Device) else native
        if not isinstance(native, (str, os.PathLike, _core.Device, _core.Mmio)):
            raise ConfigError(
                f"a guest needs a file system, a device, or a server or socket with a path, not {target!r}"
            )
        try:
            self = super().__new__(cls, native, **options)
        except BaseException:
            if made is not None:
                made.close()
            raise
        self.server = target if isinstance(target, Server) else None
        self.device = target.device if isinstance(target, MmioTransport) else None
        if isinstance(target, Device):
            self.device = target
        self._made, self._mounted = made, True
        return self

    def close(self) -> None:
        """Unmounts the share, and ends the server that was made for it. May be called again."""
        mounted, self._mounted = self._mounted, False
        try:
            if mounted:
                self.unmount()
        finally:
            if self._made is not None:
                self._made.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            self.close()
        except (OSError, ProtocolError):
            if kind is None:
                raise


class _Made(Protocol):
    """What a guest has of its own."""

    @property
    def target(self) -> Server | Device | MmioTransport:
        """What is mounted."""

    def close(self) -> None:
        """Ends it."""


class _PrivateServer:
    """A server at a socket that nobody else knows."""

    def __init__(self, fs: FileSystem, *, dax: bool) -> None:
        self._directory = tempfile.TemporaryDirectory(prefix="virtiofs-")
        try:
            socket = os.path.join(self._directory.name, "socket")
            self.target = Server(fs, socket=socket, tag="testing", dax_window="64M" if dax else 0).start()
        except BaseException:
            self._directory.cleanup()
            raise

    def close(self) -> None:
        self.target.close()
        self._directory.cleanup()


class _PrivateDevice:
    """A device without a VMM."""

    def __init__(self, fs: FileSystem, way: str, options: dict[str, Any]) -> None:
        if way not in ("device", "registers"):
            raise ConfigError(f"a way to a file system is socket, device or registers, not {way!r}")
        queues, window = options.get("request_queues", 1), "64M" if options.get("dax") else 0
        self._device = Device(fs, "testing", GuestMemory(), request_queues=queues, dax_window=window)
        if way == "registers":
            self._device.place_window(1 << 40)
            self._device.place_version_table(1 << 39)
        self.target: Device | MmioTransport = self._device if way == "device" else MmioTransport(self._device)

    def close(self) -> None:
        self._device.close()
