"""The settings of a daemon: its shares, and what holds for all of them. The only place that reads the environment."""

import os
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any, Final, Literal, cast

from ._core import VersionTable
from .cache import AUTO, Cache
from .classes import find, made
from .errors import ConfigError, hinted, one_line
from .filesystem import FileSystem
from .host import MOST_NODES, inode_watches
from .ids import id_map
from .passthrough import Passthrough
from .policy import Policy
from .sandbox import Mode, Sandbox, Seccomp, is_privileged
from .server import Server, default_request_queues
from .xattrmap import XattrMap

LEVELS: Final = ("off", "error", "warn", "info", "debug", "trace")
"""What is logged: this and all before it."""

_FIRST_INHERITED_FD: Final = 3  # SD_LISTEN_FDS_START of sd_listen_fds(3)


@dataclass(frozen=True, slots=True, kw_only=True)
class Share:
    """One share: a directory or a file system of one's own, how it is cached and who may reach it.

    Args:
        directory: The directory to share; None where `fs` needs none.
        fs: A class, or whatever makes a file system when it is called, as ``module:Class``; None shares the directory as it is.
            A subclass of `Passthrough` gets the directory and the settings that belong to it.
        arguments: More keyword arguments for `fs`.
        socket: Path of the vhost-user socket to make; None with an inherited one.
        fd: Descriptor of an inherited socket; None to make one.
        tag: Name under which guests mount the share.
        request_queues: Request queues of the device.
        once: End with the first guest instead of waiting for the next.
        reconnect_timeout: Seconds for which the session of a VMM whose connection is lost is kept, if it can come back; 0 for
            not at all.
        migration_on_error: What becomes of a guest that is migrated here if a part of what it has is not here: abort or
            guest-error.
        socket_mode: Permission bits of the socket.
        socket_group: Group of the socket; None leaves that of the process.
        slow_threads: Threads for requests that have to wait for a disk, at most.
        dax_window: Size of the DAX window, as in 1G; 0 for none.
        cache: What guests may keep.
        version_slots: Slots of the version table; None takes the default where there is a `coherence_dir`, and no table
            otherwise.
        coherence_dir: The version table is shared with all shares and daemons that name this directory.
        read_only: Refuse every change with EROFS.
        writeback: Let guests collect writes and send them later.
        xattr: Serve extended attributes.
        xattrmap: Rules that rename them on the host.
        posix_acl: Serve POSIX ACLs; takes `xattr` with it.
        security_label: Give new files the security labels that the guest wants for them.
        posix_lock: Take the fcntl locks of guests on the host.
        flock: The same for flock.
        node_descriptors: Descriptors for the files that one guest remembers, at most. None takes half the limit of open files,
            0 is no limit.
        descriptors: Descriptors that one guest holds in all, at most: for files that it remembers, has open, or has locked.
            None takes seven eighths of the limit of open files, divided among the shares; 0 is no limit.
        nodes: Files that one guest remembers, at most; 0 is no limit.
        allow_direct_io: Open host files with O_DIRECT where the guest's program does.
        announce_submounts: Tell the guest where another file system of the host begins.
        readdirplus: Offer listings that bring the attributes along.
        killpriv_v2: Clear setuid and setgid at writes and truncations.
        ownership: Who owns what a guest creates: `caller` insists on its user there, `auto` takes the user of this process
            where it lacks the privileges, `xattr` keeps owners, modes and devices in an extended attribute.
        idmap: Let the guest make idmapped mounts.
        translate_uid: Users of the guest that are called something else on the host, as in ``map:0:100000:65536``; see
            `virtiofs.ids`.
        translate_gid: The same for groups.
        dax: Which files guests map: never, always, inode (as 64K), or from a size on.
        policy: What holds for single files instead.
        origin: Where it was read, for messages.
    """

    directory: str | None = None
    fs: str | None = None
    arguments: Mapping[str, Any] = field(default_factory=dict)
    socket: str | None = None
    fd: int | None = None
    tag: str = "virtiofs"
    request_queues: int = field(default_factory=default_request_queues)
    once: bool = False
    reconnect_timeout: float = 30.0
    migration_on_error: Literal["abort", "guest-error"] = "abort"
    socket_mode: int = 0o600
    socket_group: str | None = None
    slow_threads: int = 16
    dax_window: str = "0"
    cache: Cache = AUTO
    version_slots: int | None = None
    coherence_dir: str | None = None
    read_only: bool = False
    writeback: bool = False
    xattr: bool = False
    xattrmap: XattrMap | None = None
    posix_acl: bool = False
    security_label: bool = False
    posix_lock: bool = True
    flock: bool = True
    node_descriptors: int | None = None
    descriptors: int | None = None
    nodes: int = MOST_NODES
    allow_direct_io: bool = False
    announce_submounts: bool = True
    readdirplus: bool = True
    killpriv_v2: bool = True
    ownership: Literal["auto", "caller", "xattr"] = "auto"
    idmap: bool = False
    translate_uid: tuple[str, ...] = ()
    translate_gid: tuple[str, ...] = ()
    dax: str = "64K"
    policy: Policy | None = None
    origin: str | None = field(default=None, compare=False, repr=False)

    @property
    def has_table(self) -> bool:
        """Whether there is a version table."""
        return self.version_slots is not None or self.coherence_dir is not None

    @property
    def has_window(self) -> bool:
        """Whether there is a DAX window."""
        return self.dax_window != "0"

    def version_table(self) -> VersionTable | None:
        """Returns the version table that is asked for, or None.

        Raises:
            ConfigError: There is no such table.
            OSError: The directory cannot be used.
        """
        if not self.has_table:
            return None
        try:
            table = VersionTable(self.version_slots, directory=self.coherence_dir)
        except ValueError as error:
            raise ConfigError(f"version_slots: {error}") from None
        if self.directory is not None:
            try:
                table.watch(self.directory)
            except OSError:
                # Not privileged, or a file system that tells nobody.
                table.watch_inodes(inode_watches())
        return table

    def filesystem(self, table: VersionTable | None = None) -> FileSystem:
        """Returns the file system that is shared.

        Args:
            table: Its version table; None for one as its settings say.

        Raises:
            ConfigError: There is no such class, or it does not take these settings.
            OSError: The directory cannot be shared.
        """
        make = Passthrough if self.fs is None else find(self.fs)
        if isinstance(make, type) and issubclass(make, Passthrough):
            if self.directory is None:
                raise hinted(ConfigError("which directory is to be shared?"), "name an existing one")
            settings = {name: getattr(self, name) for name in SETTINGS}
            if (table := table or self.version_table()) is not None:
                settings["version_table"] = table
            return made(make, self.fs, self.directory, self.cache, **settings, **self.arguments)
        default = Share()
        for name in ("directory", "cache", *SETTINGS):
            if getattr(self, name) != getattr(default, name):
                raise hinted(
                    ConfigError(f"{self.fs} shares no directory of this host and takes no {name}"),
                    "give it what it takes as arguments",
                )
        fs = made(make, self.fs, **self.arguments)
        if (table := table or self.version_table()) is not None:
            fs.version_table = table
        return fs

    def server(self, table: VersionTable | None = None) -> Server:
        """Returns the server of the share, not started; `table` as in `filesystem`."""
        return Server(
            self.filesystem(table),
            socket=self.socket,
            fd=self.fd,
            tag=self.tag,
            request_queues=self.request_queues,
            once=self.once,
            reconnect_timeout=self.reconnect_timeout,
            migration_on_error=self.migration_on_error,
            socket_mode=self.socket_mode,
            socket_group=self.socket_group,
            slow_threads=self.slow_threads,
            dax_window=self.dax_window,
        )


_names: Final = [field.name for field in fields(Share)]
SETTINGS: Final = tuple(_names[_names.index("read_only") : _names.index("origin")])
"""Settings of a share that are keyword arguments of `Passthrough`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """What one daemon serves.

    Args:
        shares: The shares. Locks of guests hold between all of them.
        log_level: What is logged: off, error, warn, info, debug or trace.
        syslog: Log to syslog instead of standard error.
        rlimit_nofile: Limit of open files; None for the highest, 0 leaves it as it is.
        sandbox: How the process of `virtiofs serve` is confined: `namespace`, `chroot`, `none`, or `auto` for the
            strongest way that works. `servers` confines nothing.
        seccomp: What happens at system calls that serving does not take; None for `kill`, for EPERM where Python methods
            serve guests, or `none` where nothing is confined.
        modcaps: Capabilities to keep beside those that serving takes (``+name``), or to give up as well (``-name``).
        file_handles: Keep the right to open files by handle; see `virtiofs.sandbox.Sandbox`.
        uid_map: Users of a user namespace to serve in, as in ``:0:100000:65536:``: the first one in it, what that is outside,
            and how many. Only with namespaces.
        gid_map: The same for groups.

    Raises:
        ConfigError: There is no such mode, action or capability.
    """

    shares: tuple[Share, ...]
    log_level: str = "info"
    syslog: bool = False
    rlimit_nofile: int | None = None
    sandbox: Mode = "auto"
    seccomp: Seccomp | None = None
    modcaps: str | None = None
    file_handles: bool = False
    uid_map: tuple[str, ...] = ()
    gid_map: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        self.confinement()

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> "Config":
        """Reads a configuration in TOML; docs/configuration.md has every key.

        Raises:
            ConfigError: Something in it is wrong; the message begins with file and line.
            OSError: It cannot be read.
        """
        from .configfile import read

        return read(os.fspath(path))

    def confinement(self) -> Sandbox:
        """Returns how the process that serves is confined.

        Raises:
            ConfigError: Something is asked for that does not exist, or not for these shares.
        """
        handles = self.file_handles or any(share.node_descriptors for share in self.shares)
        window = any(share.has_window for share in self.shares)
        asked = Sandbox(
            mode=self.sandbox,
            seccomp=self.seccomp,
            modcaps=self.modcaps,
            file_handles=handles,
            window=window,
            uid_map=tuple(map(id_map, self.uid_map)),
            gid_map=tuple(map(id_map, self.gid_map)),
        )
        if self.sandbox in ("namespace", "chroot") and any(share.has_table for share in self.shares):
            raise hinted(
                ConfigError("a share with a version table cannot be confined: its threads watch whole file systems"),
                "leave the table out, or give --sandbox=auto to have its system calls filtered",
            )
        if asked.maps and self.sandbox == "auto":
            if (needs := self.needs()) is not None:
                raise hinted(
                    ConfigError(f"--uid-map and --gid-map are for namespaces, and there are none: {needs}"),
                    "leave them out, or give --sandbox=namespace",
                )
            asked = replace(asked, mode="namespace")  # nothing less has ids of its own
        return asked

    def needs(self) -> str | None:
        """Returns why the process that serves may need more of the host than its shares, if it does.

        `auto` filters its system calls alone then.
        """
        if any(share.fs is not None for share in self.shares):
            return "Python methods serve guests"
        if any(share.policy is not None and share.policy.asks_python for share in self.shares):
            return "a policy asks Python"
        if any(share.has_table for share in self.shares):
            return "the threads of a version table watch whole file systems"
        if any(share.has_window for share in self.shares) and is_privileged():
            return "ends of files are mapped into the DAX window by mounts, which take CAP_SYS_ADMIN"
        return None

    def confinable(self) -> "Config":
        """Returns the same with directories by the paths that they have from every working directory, symlinks followed."""
        shares = [
            share
            if share.directory is None or not os.path.isdir(share.directory)
            else replace(share, directory=os.path.realpath(share.directory))
            for share in self.shares
        ]
        return replace(self, shares=tuple(shares))

    def servers(self) -> list[Server]:
        """Returns the servers of all shares, not started.

        Raises:
            ConfigError: A share cannot be served.
            OSError: Nor can what it names.
        """
        servers = []
        tables: dict[tuple[int, int, int | None], VersionTable] = {}
        for share in self.shares:
            try:
                servers.append(share.server(_common(share, tables)))
            except (ConfigError, OSError) as error:
                if share.origin is None:
                    raise
                raise ConfigError(f"{share.origin}: {one_line(error)}") from error
        for server in servers:
            if isinstance(server.fs, Passthrough):
                server.fs.neighbours = len(servers)
        return servers


def _common(share: Share, tables: dict[tuple[int, int, int | None], VersionTable]) -> VersionTable | None:
    """Returns the version table of all shares of one directory, or None if this share finds its own or has none."""
    if not share.has_table or share.coherence_dir is not None or share.directory is None:
        return None
    try:
        status = os.stat(share.directory)
    except OSError:
        # Whoever serves it says what is wrong with it.
        return None
    key = (status.st_dev, status.st_ino, share.version_slots)
    if key not in tables and (table := share.version_table()) is not None:
        tables[key] = table
    return tables.get(key)


def level(name: str) -> Literal["off", "error", "warn", "info", "debug", "trace"]:
    """Returns a level of the log by one of its names.

    Raises:
        ConfigError: There is none of this name.
    """
    called = {"err": "error", "warning": "warn"}.get(name, name)
    if called not in LEVELS:
        raise ConfigError(f"unknown log level {name!r}: choose one of {', '.join(LEVELS)}")
    return cast(Literal["off", "error", "warn", "info", "debug", "trace"], called)


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
