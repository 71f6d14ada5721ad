"""A guest without a virtual machine, to test file systems and servers with.

It is the driver's half of the device: real virtqueues in shared memory, the vhost-user protocol, and a FUSE client that holds
the server to what Linux demands of a reply. No root, no kernel module, no image::

    from virtiofs import Passthrough
    from virtiofs.testing import Guest

    with Guest(Passthrough("/srv/data")) as guest:
        guest.write_file("notes/today", b"hello")
        assert guest.listdir("notes") == ["today"]
"""

import os
import tempfile
from typing import Any, Self

from . import _core
from .errors import ConfigError, ProtocolError
from .passthrough import Passthrough
from .server import Server

__all__ = ["Guest"]


class Guest(_core.Guest):
    """A share, mounted in this process. Ends with its ``with`` block, or with `close`.

    Paths are relative to the root of the share, with or without a leading slash; symlinks are followed as a kernel does,
    absolute ones from the root of the share. What the server refuses is raised as the OSError that it is; a reply
    against the protocol as `ProtocolError`; no reply as TimeoutError. Several threads may use one guest.

    Args:
        target: What is mounted: a file system, which gets a server of its own for the time; a `Server` that runs; or the path
            of the socket of any vhost-user-fs daemon.
        timeout: Seconds to wait for a reply.
        connect_timeout: Seconds to wait for somebody to listen at the socket.
        request_queues: Request queues to use, if the device has as many.
        queue_size: Descriptors of each queue, a power of two.
        max_pages: Largest read or write in pages of 4 KiB; the queue and the server may lower it.
        uid: User who asks; None for the user of this process.
        gid: Group who asks.
        init_flags: Features of FUSE to offer; None for those of Linux.

    Raises:
        OSError: Nobody listens, or the server went away.
        ProtocolError: The server broke the protocol.
    """

    server: Server | None
    """The server, if it was given or made here."""
    _made: "_Private | None"
    _mounted: bool

    def __new__(cls, target: "Passthrough | Server | str | os.PathLike[str]", **options: Any) -> Self:
        """Mounts the share."""
        made = _Private(target) if isinstance(target, Passthrough) else None
        server = made.server if made is not None else target if isinstance(target, Server) else None
        path = server.path if server is not None else target
        if not isinstance(path, (str, os.PathLike)):
            raise ConfigError(f"a guest needs a file system, or a server or socket with a path, not {target!r}")
        try:
            self = super().__new__(cls, path, **options)
        except BaseException:
            if made is not None:
                made.close()
            raise
        self.server, self._made, self._mounted = server, made, True
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


class _Private:
    """A server at a socket that nobody else knows."""

    def __init__(self, fs: Passthrough) -> None:
        self._directory = tempfile.TemporaryDirectory(prefix="virtiofs-")
        try:
            self.server = Server(fs, socket=os.path.join(self._directory.name, "socket"), tag="testing").start()
        except BaseException:
            self._directory.cleanup()
            raise

    def close(self) -> None:
        self.server.close()
        self._directory.cleanup()
