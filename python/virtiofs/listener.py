"""The socket that a virtual machine monitor connects to: made by us, or inherited."""

import errno
import fcntl
import os
import socket
import stat
import time
from types import TracebackType
from typing import Final, Self

from .errors import ConfigError, hinted

PATH_MAX: Final = 107
"""Longest path of a Unix socket, in bytes: `sun_path` of unix(7) without the closing NUL."""


class Listener:
    """A Unix stream socket that listens.

    The socket appears with its final mode and group, and takes connections only after that. What a dead server left at the
    path is replaced; what a live one listens at is refused. `close` removes the path again, if it is still ours.

    Args:
        path: Where the socket is made.
        mode: Its permission bits.
        group: Name or number of the group it belongs to; None leaves that of the process.

    Raises:
        ConfigError: The path is empty or too long, or there is no such group.
        OSError: The path is in use (EADDRINUSE), is not a socket (EEXIST), or cannot be made there.
    """

    def __init__(self, path: str | os.PathLike[str], *, mode: int = 0o600, group: str | int | None = None) -> None:
        self.path = os.fspath(path)
        length = len(os.fsencode(self.path))
        if not 0 < length <= PATH_MAX or "\0" in self.path:
            raise hinted(
                ConfigError(f"a socket path has 1 to {PATH_MAX} bytes, this one has {length}: {self.path!r}"),
                "take a shorter one, as in /run/virtiofs.sock",
            )
        gid = -1 if group is None else _group(group)
        self._identity: tuple[int, int] | None = None
        self._process: Final = os.getpid()
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        try:
            self._make(mode, gid)
        except BaseException:
            self.close()
            raise

    def _make(self, mode: int, gid: int) -> None:
        # bind(2) gives the file the mode of the socket's own inode, so nobody gets in before group and mode stand.
        os.fchmod(self._socket.fileno(), 0)
        with _Turn(os.path.dirname(self.path) or "."):
            self._clear()
            try:
                self._socket.bind(self.path)
            except OSError as error:
                raise _refused(error, self.path) from None
            made = os.lstat(self.path)
            self._identity = (made.st_dev, made.st_ino)
            if gid != -1:
                try:
                    os.chown(self.path, -1, gid)
                except PermissionError as error:
                    raise hinted(error, f"only root and members of group {gid} may give the socket to it") from None
            os.chmod(self.path, mode)
            self._socket.listen(1)

    def _clear(self) -> None:
        """Removes a socket that nobody listens at any more."""
        try:
            found = os.lstat(self.path)
        except FileNotFoundError:
            return
        except OSError as error:
            raise _refused(error, self.path) from None
        if not stat.S_ISSOCK(found.st_mode):
            raise hinted(
                FileExistsError(errno.EEXIST, "there is something that is not a socket", self.path),
                "name another socket path, or move that away",
            )
        # A datagram socket cannot connect to a stream socket, but is told apart whether there is one: EPROTOTYPE if somebody
        # has it, ECONNREFUSED if not. A real connection would end servers that serve a single guest.
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as probe:
            try:
                probe.connect(self.path)
            except ConnectionRefusedError:
                os.unlink(self.path)
                return
            except FileNotFoundError:
                return
            except PermissionError as error:
                raise _refused(error, self.path) from None
            except OSError:
                pass
        raise hinted(
            OSError(errno.EADDRINUSE, "another program listens there", self.path),
            "end it, or name another socket path",
        )

    def fileno(self) -> int:
        """Returns the descriptor of the socket, -1 once closed."""
        return self._socket.fileno()

    def leave(self) -> None:
        """Closes the socket, which a fork of this process goes on with, and leaves its path until `close`."""
        self._socket.close()

    def close(self) -> None:
        """Closes the socket and removes its path, which only the process that made it does. May be called again."""
        identity, self._identity = self._identity, None
        if identity is not None and self._process == os.getpid():
            try:
                found = os.lstat(self.path)
                if (found.st_dev, found.st_ino) == identity:
                    os.unlink(self.path)
            except OSError:
                pass  # somebody else removed it, or its directory
        self._socket.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class _Turn:
    """A lock on a directory, so that two servers that start at once do not take each other's new socket for a dead one."""

    def __init__(self, directory: str) -> None:
        self._directory = directory
        self._fd = -1

    def __enter__(self) -> None:
        try:
            self._fd = os.open(self._directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError:
            return  # what is wrong with the directory, bind(2) says better
        deadline = time.monotonic() + 1.0
        while time.monotonic() < deadline:
            try:
                fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                time.sleep(0.01)
            except OSError:
                return  # a file system without locks
            else:
                return

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._fd >= 0:
            os.close(self._fd)


def adopt(fd: int) -> socket.socket:
    """Takes over `fd`, a Unix stream socket that listens or is connected.

    Raises:
        ConfigError: `fd` is not open, or is something else.
    """
    try:
        adopted = socket.socket(fileno=fd)
    except OSError as error:
        raise hinted(
            ConfigError(f"descriptor {fd} is no socket ({os.strerror(error.errno or 0)})"),
            "hand down a listening Unix stream socket, as systemd does",
        ) from None
    if adopted.family != socket.AF_UNIX or adopted.type != socket.SOCK_STREAM:
        adopted.detach()
        raise hinted(
            ConfigError(f"descriptor {fd} is no Unix stream socket"), "hand down a listening one, as systemd does"
        )
    if not adopted.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
        try:
            adopted.getpeername()
        except OSError:
            adopted.detach()
            raise hinted(
                ConfigError(f"the socket at descriptor {fd} neither listens nor is connected"),
                "call listen(2) on it before it is handed down",
            ) from None
    adopted.set_inheritable(False)
    adopted.setblocking(True)
    return adopted


def _group(group: str | int) -> int:
    if isinstance(group, int):
        return group
    import grp

    try:
        return grp.getgrnam(group).gr_gid
    except KeyError:
        if group.isascii() and group.isdigit():
            return int(group)
        raise hinted(ConfigError(f"there is no group {group!r}"), "see getent group") from None


def _refused(error: OSError, path: str) -> OSError:
    error.filename = path
    directory = os.path.dirname(path) or "."
    if isinstance(error, FileNotFoundError):
        return hinted(error, f"make its directory first: mkdir -p {directory}")
    if isinstance(error, PermissionError):
        return hinted(error, "name a socket path in a directory that you may write to")
    return error
