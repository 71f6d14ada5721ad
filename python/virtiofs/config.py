"""The settings of a server, and the only place that reads them from the environment."""

import os
from dataclasses import dataclass, field
from typing import Final, Literal

from .cache import AUTO, Cache
from .errors import ConfigError, hinted
from .passthrough import Passthrough
from .server import Server, default_request_queues
from .xattrmap import XattrMap

_FIRST_INHERITED_FD: Final = 3  # SD_LISTEN_FDS_START of sd_listen_fds(3)


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """One share: a directory, how it is cached and who may reach it.

    Args:
        directory: The directory to share.
        socket: Path of the vhost-user socket to make; None with an inherited one.
        fd: Descriptor of an inherited socket; None to make one.
        tag: Name under which guests mount the share.
        request_queues: Request queues of the device.
        once: End with the first guest instead of waiting for the next.
        socket_mode: Permission bits of the socket.
        socket_group: Group of the socket; None leaves that of the process.
        slow_threads: Threads for requests that have to wait for a disk, at most.
        cache: What guests may keep.
        read_only: As in `Passthrough`, like all that follow.
    """

    directory: str
    socket: str | None = None
    fd: int | None = None
    tag: str = "virtiofs"
    request_queues: int = field(default_factory=default_request_queues)
    once: bool = False
    socket_mode: int = 0o600
    socket_group: str | None = None
    slow_threads: int = 16
    cache: Cache = AUTO
    read_only: bool = False
    writeback: bool = False
    xattr: bool = False
    xattrmap: XattrMap | None = None
    posix_acl: bool = False
    security_label: bool = False
    posix_lock: bool = True
    flock: bool = True
    node_descriptors: int | None = None
    allow_direct_io: bool = False
    announce_submounts: bool = True
    readdirplus: bool = True
    killpriv_v2: bool = True
    ownership: Literal["auto", "caller"] = "auto"

    def filesystem(self) -> Passthrough:
        """Returns the file system that is shared."""
        return Passthrough(
            self.directory,
            self.cache,
            read_only=self.read_only,
            writeback=self.writeback,
            xattr=self.xattr,
            xattrmap=self.xattrmap,
            posix_acl=self.posix_acl,
            security_label=self.security_label,
            posix_lock=self.posix_lock,
            flock=self.flock,
            node_descriptors=self.node_descriptors,
            allow_direct_io=self.allow_direct_io,
            announce_submounts=self.announce_submounts,
            readdirplus=self.readdirplus,
            killpriv_v2=self.killpriv_v2,
            ownership=self.ownership,
        )

    def server(self) -> Server:
        """Returns the server of the share, not started."""
        return Server(
            self.filesystem(),
            socket=self.socket,
            fd=self.fd,
            tag=self.tag,
            request_queues=self.request_queues,
            once=self.once,
            socket_mode=self.socket_mode,
            socket_group=self.socket_group,
            slow_threads=self.slow_threads,
        )


def inherited_fd() -> int | None:
    """Returns the socket that systemd handed down (sd_listen_fds(3)), or None. Children will not take it for theirs.

    Raises:
        ConfigError: There is more than one.
    """
    count, pid = os.environ.get("LISTEN_FDS", ""), os.environ.get("LISTEN_PID", "")
    if not count.isdecimal() or not pid.isdecimal() or int(pid) != os.getpid() or int(count) == 0:
        return None
    for name in ("LISTEN_FDS", "LISTEN_PID", "LISTEN_FDNAMES"):
        os.environ.pop(name, None)
    if int(count) > 1:
        raise hinted(
            ConfigError(f"systemd handed {count} sockets down, one can be served"),
            "give the socket unit a single ListenStream=",
        )
    return _FIRST_INHERITED_FD
