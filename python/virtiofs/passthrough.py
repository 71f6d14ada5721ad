"""Serve a directory of this host."""

import errno
import os
import resource
import stat
from collections.abc import Iterable
from typing import Final, Literal

from . import _core
from .cache import AUTO, Cache
from .dax import SMALL, files
from .errors import ConfigError, hinted
from .host import MOST_NODES, may_change_owners, most_descriptors
from .ids import translation
from .nativeops import NativeOperations
from .opens import directories_hindrance, hindrance, tells_something
from .policy import Policy
from .xattrmap import XattrMap, parse

_ALWAYS: Final = (
    "ABORT_ERROR",
    "ASYNC_DIO",
    "ASYNC_READ",
    "ATOMIC_O_TRUNC",
    "BIG_WRITES",
    "CREATE_SUPP_GROUP",
    "DONT_MASK",
    "HAS_IOCTL_DIR",
    "INIT_EXT",
    "MAX_PAGES",
    "NO_EXPORT_SUPPORT",
    "PARALLEL_DIROPS",
    "SETXATTR_EXT",
)
"""Features of the FUSE session that every share takes when the guest offers them."""


KEPT: Final = "user.virtiofs.stat"
"""Extended attribute for ``ownership="xattr"``: ``uid:gid:mode``, in octal with the type, and ``:major:minor`` of a device."""


class Passthrough(NativeOperations):
    """A directory of this host as a file system for guests.

    Guests never leave the directory, whatever symlinks, renames or races they try: names are resolved one by one from open
    directories, never as paths.

    All operations are native. A subclass that overrides one is asked for that one alone, and has the native one as
    ``super()``::

        class Logged(Passthrough):
            def open(self, request, node, flags):
                print(node.path)
                return super().open(request, node, flags)

    Args:
        directory: The directory. It is opened now, and stays the one that is served if its name changes later.
        cache: What guests may keep; see `virtiofs.cache`.
        read_only: Refuse every change with EROFS.
        writeback: Let guests collect writes and send them later, at close or fsync at the latest. Only for directories that
            one guest alone writes to.
        xattr: Serve extended attributes.
        xattrmap: What the guest's extended attributes are called on the host: rules as in `virtiofs.xattrmap`, such as
            ``:map::user.virtiofs.:``; takes `xattr` with it.
        posix_acl: Serve POSIX ACLs; takes `xattr` with it.
        security_label: Give new files the security labels (SELinux, Smack) that the guest's kernel wants for them, from their
            first moment; takes `xattr` with it.
        allow_direct_io: Open host files with O_DIRECT where the guest's program does. Otherwise O_DIRECT goes past the guest's
            page cache only.
        announce_submounts: Tell the guest where another file system of the host begins, so that inode numbers stay unique.
        readdirplus: Offer listings that bring the attributes along.
        posix_lock: Take the fcntl locks of guests on the host, where they hold against other guests and processes of the host.
            Otherwise each guest keeps its own.
        flock: The same for flock.
        node_descriptors: Descriptors for the files that one guest remembers at most; beyond that, those used longest ago are
            held by file handle, where the host allows it (CAP_DAC_READ_SEARCH). None takes half the limit of open files,
            0 is no limit.
        descriptors: Descriptors that one guest holds in all, at most: for files that it remembers, has open, or has locked.
            Past it the guest gets ENFILE. None takes seven eighths of the limit of open files, 0 is no limit.
        nodes: Files that one guest remembers, at most, each of which takes some hundred bytes. Past it the guest gets
            ENFILE. 0 is no limit.
        killpriv_v2: Clear setuid and setgid at writes and truncations, so that the guest need not ask before each write.
        policy: What holds for single files instead: rules by name, path, kind, size, owner, or a function of yours.
        version_table: Where the share tells of every change, for those who remember what they were told: see
            ``docs/version-table.md``. Several shares, and several daemons, may have one.
        ownership: Who owns what a guest creates: `caller` insists on the user and group in the guest, which takes privileges;
            `auto` takes the user of this process where it lacks them. With `xattr` guests see the owners, modes and devices
            that they want, none of which takes privileges: they are kept in an extended attribute (`KEPT`) of plain files
            and directories, which are all this process's and closed to others. What has none is as it is on the host.
            Not with `posix_acl`.
        idmap: Let the guest make idmapped mounts of the share, as containers with user namespaces want them. Linux then says
            who asks only where something is made, so setuid and setgid are cleared also when the guest's root allocates
            blocks of a file or copies into it by the server. Not for subclasses that override more than what makes
            files: they are told who asks.
        translate_uid: Users of the guest that are called something else on the host: rules as in `virtiofs.ids`, such as
            ``map:0:100000:65536``.
        translate_gid: The same for groups.
        dax: Which files guests map where the device has a DAX window: those of at least so many bytes (a number, or text
            such as 64K; `inode` is that), all (`always`) or none (`never`). A guest that mounts with ``dax=always``
            or ``dax=never`` decides by itself.

    Raises:
        OSError: There is no such directory, it is none, or it may not be read.
        PermissionError: `ownership` is `caller`, and this process may not give files away.
        ConfigError: `xattrmap` or a translation cannot be read; or they, or `ownership`, do not go with `posix_acl`, or not
            with the file system of `directory`; or the cache mode's `opens` is False, and something needs them.
    """

    def __init__(
        self,
        directory: str | os.PathLike[str],
        cache: Cache = AUTO,
        *,
        read_only: bool = False,
        writeback: bool = False,
        xattr: bool = False,
        xattrmap: XattrMap | str | None = None,
        posix_acl: bool = False,
        security_label: bool = False,
        allow_direct_io: bool = False,
        announce_submounts: bool = True,
        readdirplus: bool = True,
        killpriv_v2: bool = True,
        posix_lock: bool = True,
        flock: bool = True,
        node_descriptors: int | None = None,
        descriptors: int | None = None,
        nodes: int = MOST_NODES,
        policy: Policy | None = None,
        version_table: _core.VersionTable | None = None,
        ownership: Literal["auto", "caller", "xattr"] = "auto",
        idmap: bool = False,
        translate_uid: str | Iterable[str] = (),
        translate_gid: str | Iterable[str] = (),
        dax: int | str = SMALL,
    ) -> None:
        if ownership == "caller" and not may_change_owners():
            raise hinted(
                PermissionError(errno.EPERM, "this user may not create files for others, as ownership=caller wants"),
                "run as root, or take ownership=auto",
            )
        self.directory: Final = os.path.abspath(_checked(os.fspath(directory)))
        self.cache = cache
        self.read_only = read_only
        self.writeback = writeback
        names = parse(xattrmap) if isinstance(xattrmap, str) else xattrmap
        if posix_acl and names is not None and names.moves_acls:
            raise hinted(
                ConfigError("xattrmap: with ACLs served, system.posix_acl_access and _default must stay what they are"),
                "begin with :ok:all:system.posix_acl_:system.posix_acl_:, or serve no ACLs",
            )
        self.xattrmap: Final = names
        self.xattr: Final = xattr or posix_acl or security_label or names is not None
        self.posix_acl: Final = posix_acl
        self.security_label: Final = security_label
        self.allow_direct_io: Final = allow_direct_io
        self.announce_submounts: Final = announce_submounts
        self._plus: Final = readdirplus
        self.killpriv_v2: Final = killpriv_v2
        self.posix_lock: Final = posix_lock
        self.flock: Final = flock
        for what, number in (("node_descriptors", node_descriptors), ("descriptors", descriptors), ("nodes", nodes)):
            if number is not None and number < 0:
                raise hinted(ConfigError(f"{what}: {number} is no number of {what.split('_')[-1]}"), "take 0 or more")
        self.node_descriptors: Final = node_descriptors
        self.descriptors: Final = descriptors
        self.nodes: Final = nodes
        self.neighbours = 1
        self.policy: Final = policy
        self.version_table = version_table
        self.ownership: Final = ownership
        self.idmap: Final = idmap
        self.translate_uid: Final = translation(translate_uid)
        self.translate_gid: Final = translation(translate_gid)
        translates = policy is not None and policy.translates
        if posix_acl and (translates or self.translate_uid.ranges or self.translate_gid.ranges):
            raise hinted(
                ConfigError("translated ids do not go with ACLs, which name the host's"),
                "serve no ACLs, or translate none",
            )
        if ownership == "xattr":
            if posix_acl:
                raise hinted(
                    ConfigError("ownership=xattr does not go with ACLs, which the host would apply to this process"),
                    "serve no ACLs",
                )
            _must_keep(self.directory)
        self.dax: Final = files(dax)
        if cache.opens is False and (why := self._hindrance()) is not None:
            raise hinted(ConfigError(f"files cannot be opened without a message: {why}"), "leave --no-opens out")

    def __repr__(self) -> str:
        settings = [repr(self.directory), f"cache={self.cache.name}"]
        flags = ("read_only", "writeback", "xattr", "posix_acl", "security_label", "allow_direct_io", "idmap")
        settings += [name for name in flags if getattr(self, name)]
        if self.xattrmap is not None:
            settings.append(f"xattrmap={str(self.xattrmap)!r}")
        return f"Passthrough({', '.join(settings)})"

    @property
    def features(self) -> frozenset[str]:
        """Features of the FUSE session that are wanted."""
        names = list(_ALWAYS)
        if self._plus:
            names += ["DO_READDIRPLUS", "READDIRPLUS_AUTO"]
        if self.killpriv_v2:
            names.append("HANDLE_KILLPRIV_V2")
        if self.posix_lock:
            names.append("POSIX_LOCKS")
        if self.flock:
            names.append("FLOCK_LOCKS")
        if self.announce_submounts:
            names.append("SUBMOUNTS")
        if self.writeback:
            names.append("WRITEBACK_CACHE")
        if self.posix_acl:
            names.append("POSIX_ACL")
        if self.security_label:
            names.append("SECURITY_CTX")
        if self.idmap:
            names.append("ALLOW_IDMAP")
        if self._opens_files_by_itself():
            names.append("NO_OPEN_SUPPORT")
        if directories_hindrance(self.cache, self.policy) is None:
            names.append("NO_OPENDIR_SUPPORT")
        return self.cache.features | frozenset(names)

    def _hindrance(self) -> str | None:
        return hindrance(self.cache, self.policy, allow_direct_io=self.allow_direct_io)

    def _opens_files_by_itself(self) -> bool:
        """Whether a guest opens files without a message."""
        if self.cache.opens is not None:
            return not self.cache.opens
        told = tells_something(read_only=self.read_only, posix_lock=self.posix_lock, flock=self.flock)
        return self._hindrance() is None and told is None

    def native_engine(self, *, attr_timeout: float | None = None) -> _core.HostDir:
        """Returns the native file system with these settings."""
        limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        of_nodes, in_all = self.node_descriptors, self.descriptors
        if of_nodes is None:
            of_nodes = max(64, limit // 2 // self.neighbours)
        if in_all is None:
            in_all = most_descriptors(self.neighbours)
        return _core.HostDir(
            self.directory,
            attr_timeout=self.cache.attr_timeout if attr_timeout is None else attr_timeout,
            entry_timeout=self.cache.entry_timeout,
            negative_timeout=self.cache.negative_timeout,
            open_flags=self.cache.open_flags,
            dir_open_flags=self.cache.dir_open_flags,
            read_only=self.read_only,
            writeback=self.writeback,
            xattr=self.xattr,
            xattr_names=self.xattrmap.native if self.xattrmap is not None else [],
            posix_acl=self.posix_acl,
            allow_direct_io=self.allow_direct_io,
            announce_submounts=self.announce_submounts,
            node_descriptors=of_nodes,
            descriptors=in_all,
            nodes=self.nodes,
            dax=self.dax,
            versions=self.version_table,
            rules=None if self.policy is None else self.policy.native(attr_timeout=attr_timeout),
            users=self.translate_uid.native if self.translate_uid.ranges else None,
            groups=self.translate_gid.native if self.translate_gid.ranges else None,
            kept=os.fsencode(KEPT) if self.ownership == "xattr" else None,
            pace=(self.cache.restless, self.cache.growth) if self.cache.growth else None,
        )


def _must_keep(directory: str) -> None:
    """Checks that the file system of `directory` has extended attributes for users."""
    try:
        os.getxattr(directory, KEPT)
    except OSError as error:
        if error.errno == errno.EOPNOTSUPP:
            raise hinted(
                ConfigError(f"ownership=xattr: the file system of {directory} keeps no extended attributes for users"),
                "share a directory on ext4, xfs or btrfs, or on a tmpfs of Linux 6.6",
            ) from None
        if error.errno != errno.ENODATA:
            raise


def _checked(directory: str) -> str:
    """Returns `directory` if it can be served."""
    if not directory:
        raise hinted(ConfigError("the directory to share has no name"), "name an existing directory")
    if "\0" in directory:
        raise ConfigError(f"a path has no NUL: {directory!r}")
    try:
        found = os.stat(directory)
    except FileNotFoundError as error:
        raise hinted(error, "name an existing directory, or make it: mkdir -p") from None
    except PermissionError as error:
        raise hinted(error, "this user may not reach it: run as one who may") from None
    if not stat.S_ISDIR(found.st_mode):
        raise hinted(NotADirectoryError(errno.ENOTDIR, "not a directory", directory), "only directories can be shared")
    if not os.access(directory, os.R_OK | os.X_OK, effective_ids=True):
        raise hinted(
            PermissionError(errno.EACCES, "permission denied", directory),
            "this user may not read and search it: run as one who may, or change its mode",
        )
    return directory
