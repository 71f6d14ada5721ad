"""A vhost-user socket and what runs behind it: threads, signals, shutdown."""

import os
import platform
import shlex
import socket as _sockets
from collections.abc import Callable
from typing import Final, Literal, Self

from . import _core, running
from .dax import FLAGS, window
from .errors import ConfigError, hinted
from .filesystem import FileSystem
from .listener import Listener, adopt
from .plan import explain
from .qemu import PROGRAM, WINDOW_DEVICE
from .signals import Waitable, ended, until_signal
from .types import InFlight, Stats

TAG_MAX: Final = 36
"""Longest tag in bytes: the field in the device's configuration space."""


class Server:
    """Serves a file system to the virtual machines that connect to a vhost-user socket, one after the other.

    The threads that do it are native and never wait for the interpreter; methods of a Python file system are called by
    threads of their own. Nothing is made before `start`, and nothing is left
    after `close`; a ``with`` block does both::

        with Server(Passthrough("/srv/data"), socket="/run/data.sock", tag="data") as server:
            server.wait()

    Args:
        fs: What is served.
        socket: Path of the socket to make.
        fd: Descriptor of a socket to take over instead: one that listens, or one that is connected already. It is the
            server's from `start` on, which closes it.
        tag: Name under which guests mount it (``mount -t virtiofs TAG /mnt``): 1 to 36 bytes of UTF-8.
        request_queues: Request queues of the device. None for one per processor, up to 4. A guest may use fewer.
        once: End when the first guest goes, instead of waiting for the next.
        reconnect_timeout: Seconds for which what a guest has (nodes, open files, locks) is kept when the connection to its
            VMM is lost, for a VMM that can come back (VHOST_USER_PROTOCOL_F_INFLIGHT_SHMFD); 0 for not at all. Another VMM
            ends it. See docs/reconnection.md.
        migration_on_error: What becomes of a guest that is migrated here when a part of what it has is not here: ``abort``
            refuses it, ``guest-error`` lets it go on, with ESTALE and EBADF for that part.
        socket_mode: Permission bits of the socket.
        socket_group: Name or number of the group of the socket; None leaves that of the process.
        slow_threads: Threads, at most, for requests that have to wait for a disk. They are made when needed and go when idle.
        dax_window: Bytes of the DAX window, into which guests map files: a power of two, 2 MiB at least; 0 for none. See
            docs/dax.md for who can use it.
        dax_barrier: Wait, after each mapping, until the VMM has done more than promise it. QEMU 11.1 needs that; a VMM that
            does not know VHOST_USER_BACKEND_SHARED_OBJECT_LOOKUP needs it off.

    Raises:
        ConfigError: A setting cannot be served.
    """

    def __init__(
        self,
        fs: FileSystem,
        *,
        socket: str | os.PathLike[str] | None = None,
        fd: int | None = None,
        tag: str = "virtiofs",
        request_queues: int | None = None,
        once: bool = False,
        reconnect_timeout: float = 30.0,
        migration_on_error: Literal["abort", "guest-error"] = "abort",
        socket_mode: int = 0o600,
        socket_group: str | int | None = None,
        slow_threads: int = 16,
        dax_window: int | str = 0,
        dax_barrier: bool = True,
    ) -> None:
        if (socket is None) == (fd is None):
            raise hinted(
                ConfigError("a server needs one socket"), "give a path for it to be made, or a descriptor to take over"
            )
        if request_queues is None:
            request_queues = default_request_queues()
        check_device(tag, request_queues, slow_threads)
        if not 0 <= socket_mode <= 0o777:
            raise ConfigError(f"permission bits are 0 to 0777, not {socket_mode:#o}")
        if not 0 <= reconnect_timeout <= 86_400:
            raise ConfigError(f"a lost connection is waited for 0 to 86400 seconds, not {reconnect_timeout}")
        if migration_on_error not in ("abort", "guest-error"):
            raise ConfigError(f"unknown value {migration_on_error!r}: choose one of abort, guest-error")
        self.fs: Final = fs
        self.path: Final = None if socket is None else os.fspath(socket)
        self.tag: Final = tag
        self.request_queues: Final = request_queues
        self.once: Final = once
        self.reconnect_timeout: Final = reconnect_timeout
        self.migration_on_error: Final = migration_on_error
        self.slow_threads: Final = slow_threads
        self.dax_window: Final = window(dax_window)
        if self.dax_window and not explain(fs).maps_files:
            raise hinted(
                ConfigError(f"{type(fs).__name__} has no files that guests could map: their data are Python's"),
                "serve it without a DAX window; explain() tells which methods are in the way",
            )
        self.dax_barrier: Final = dax_barrier
        self._absolute = None if self.path is None else os.path.abspath(self.path)
        self._fd = fd
        self._mode = socket_mode
        self._group = socket_group
        self._listener: Listener | None = None
        self._inherited: _sockets.socket | None = None
        self._started = False
        self._daemon: _core.Daemon | None = None
        self._process: int | None = None

    def bind(self) -> Self:
        """Makes the socket, or takes it over. VMMs can connect from now on, and wait until the server starts.

        Raises:
            OSError: The socket cannot be made.
        """
        if self._listener is None and self._inherited is None:
            if self._fd is not None:
                self._inherited = adopt(self._fd)
            else:
                assert self.path is not None
                self._listener = Listener(self.path, mode=self._mode, group=self._group)
        return self

    def leave(self) -> None:
        """Leaves the socket to a fork of this process, which serves; `close` removes its path here nevertheless."""
        if self._listener is not None:
            self._listener.leave()
        if self._inherited is not None:
            self._inherited.close()

    def open(self) -> Self:
        """Opens what is served, in the process that will serve it. What that gives up from now on, the threads do not have.

        Raises:
            OSError: The socket cannot be made, or what is served cannot be opened.
            RuntimeError: It was opened before.
        """
        if self._daemon is not None:
            raise RuntimeError("a server is started once")
        self._process = os.getpid()
        self.bind()
        socket = self._inherited or self._listener
        assert socket is not None
        try:
            running.log_to_python()
            self._daemon = _core.Daemon(
                self.fs.engine(),
                socket.fileno(),
                tag=self.tag,
                request_queues=self.request_queues,
                once=self.once,
                reconnect=self.reconnect_timeout,
                may_lose=self.migration_on_error == "guest-error",
                slow_threads=self.slow_threads,
                want=self.fs.init_flags | (FLAGS if self.dax_window else 0),
                dax_window=self.dax_window,
                dax_barrier=self.dax_barrier,
                follow=self.fs.version_table,
            )
        except BaseException:
            self.close()
            raise
        finally:
            if self._inherited is not None:
                self._inherited.close()  # the native side has a descriptor of its own
        running.add(self)
        return self

    def start(self) -> Self:
        """Makes the socket and starts to serve. Returns at once.

        Raises:
            OSError: The socket or a thread cannot be made.
            RuntimeError: The server was started before.
        """
        if self._started:
            raise RuntimeError("a server is started once")
        if self._daemon is None:
            self.open()
        assert self._daemon is not None
        self._started = True
        try:
            self._daemon.start()
        except BaseException:
            self.close()
            raise
        return self

    def wait(self, timeout: float | None = None) -> bool:
        """Waits until the server ends: by `close`, or by the guest's leave with `once`. Signals are handled meanwhile.

        Args:
            timeout: Seconds to wait; None for as long as it takes.

        Returns:
            Whether it has ended. True as well when it never started.
        """
        return True if self._daemon is None else ended(self._daemon, timeout)

    def fileno(self) -> int:
        """Returns a descriptor that becomes readable when the server has ended, for poll(2) and event loops.

        Raises:
            ValueError: The server does not run.
        """
        if self._daemon is None:
            raise ValueError("the server does not run")
        return self._daemon.fileno()

    def run(self, started: Callable[[], None] = lambda: None) -> int | None:
        """Serves until SIGTERM, SIGINT or SIGHUP comes or the server ends by itself. Only for the main thread.

        Args:
            started: Called once the server serves, which it is started for if it does not yet.

        Returns:
            The number of the signal, or None.
        """

        def begin() -> list[Waitable]:
            if self._daemon is None:
                self.start()
            started()
            return [self]

        return until_signal(begin)

    def close(self) -> None:
        """Ends the session of the guest, joins all threads and removes the socket. May be called again.

        In a fork of the process that serves it does nothing.
        """
        if self._process not in (None, os.getpid()):
            return  # a fork of the process that serves: the threads and the socket are not here
        if self._daemon is not None:
            self._daemon.stop()
        if self._listener is not None:
            self._listener.close()
        running.discard(self)

    def stats(self) -> Stats:
        """Returns the counters of all sessions so far.

        Raises:
            ValueError: The server was never started.
        """
        if self._daemon is None:
            raise ValueError("the server was not started")
        return Stats(**self._daemon.stats())

    def in_flight(self) -> list[InFlight]:
        """Returns the requests that Python methods are at or that wait for one, the oldest first."""
        return [] if self._daemon is None else [InFlight(*flight) for flight in self._daemon.in_flight()]

    def qemu_arguments(self, memory: str = "2G") -> list[str]:
        """Returns the arguments with which QEMU gives the share to a guest of `memory` bytes (with K, M or G)."""
        if self.dax_window:
            # The only device of QEMU 11.1 that has a window takes what the daemon says of itself, and must be told how many
            # bytes that is: a tag and the number of queues.
            device = f"{WINDOW_DEVICE},chardev=fs0,virtio-id=26,num_vqs={1 + self.request_queues}"
            device += f",vq_size=1024,config_size={TAG_MAX + 4}"
        else:
            queues = "" if self.request_queues == 1 else f",num-request-queues={self.request_queues}"
            device = f"vhost-user-fs-pci,chardev=fs0,tag={_qemu(self.tag)},queue-size=1024{queues}"
        path = self._absolute or "SOCKET"
        return [
            "-m",
            memory,
            "-object",
            f"memory-backend-memfd,id=mem,size={memory},share=on",
            "-machine",
            ("q35" if platform.machine() == "x86_64" else "virt") + ",memory-backend=mem",
            "-chardev",
            f"socket,id=fs0,path={_qemu(path)}",
            "-device",
            device,
        ]

    def qemu_line(self) -> str:
        """Returns those arguments as a line for the shell."""
        return shlex.join([PROGRAM, *self.qemu_arguments()])

    def __enter__(self) -> Self:
        return self if self._daemon is not None else self.start()

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"Server({self.fs!r}, socket={self.path!r}, tag={self.tag!r})"


def serve(
    fs: FileSystem,
    socket: str | os.PathLike[str],
    *,
    tag: str = "virtiofs",
    request_queues: int | None = None,
    once: bool = False,
) -> Server:
    """Starts a `Server` at the path `socket` and returns it; close it, or use it in a ``with`` block."""
    return Server(fs, socket=socket, tag=tag, request_queues=request_queues, once=once).start()


def check_device(tag: str, request_queues: int, slow_threads: int) -> None:
    """Checks that guests can mount by `tag`, and that there are neither too few queues and threads nor too many.

    Raises:
        ConfigError: It is not so.
    """
    length = len(tag.encode(errors="surrogateescape"))
    if not 0 < length <= TAG_MAX:
        raise hinted(ConfigError(f"a tag has 1 to {TAG_MAX} bytes, this one has {length}: {tag!r}"), "set another tag")
    if "\n" in tag or "\0" in tag:
        raise hinted(ConfigError(f"a tag has no newline and no NUL: {tag!r}"), "set another tag")
    if not 1 <= request_queues <= _core.MAX_REQUEST_QUEUES:
        raise ConfigError(f"request queues are 1 to {_core.MAX_REQUEST_QUEUES}, not {request_queues}")
    if not 1 <= slow_threads <= 1024:
        raise ConfigError(f"threads for slow requests are 1 to 1024, not {slow_threads}")


def default_request_queues() -> int:
    """Returns one queue per processor that this process may use, up to 4."""
    return min(4, len(os.sched_getaffinity(0)))


def _qemu(value: str) -> str:
    """Returns `value` as an option of QEMU takes it."""
    return value.replace(",", ",,")
