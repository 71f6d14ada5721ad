r"""File systems in Python: one class, one method for each operation.

::

    import stat
    from virtiofs import Attr, DirEntry, Entry, FileSystem, Server


    class Hello(FileSystem):
        text = b"hello, guest\n"

        def lookup(self, request, parent, name):
            if name == "hello":
                return Entry("hello", self.getattr(request, "hello", None))

        def getattr(self, request, node, handle):
            if node == "hello":
                return Attr(stat.S_IFREG | 0o444, size=len(self.text))
            return Attr(stat.S_IFDIR | 0o555, nlink=2)

        def readdir(self, request, node, handle):
            yield DirEntry("hello", stat.S_IFREG)

        def read(self, request, node, handle, offset, size):
            return self.text[offset : offset + size]

**Nodes** are your own objects. What a lookup answers as ``Entry(node, ...)`` comes back in later calls, the same object
each time; it is let go of when the guest has forgotten it. One object is one inode, whatever names it has. Strings and
numbers are one node if they are equal. The root is `FileSystem.root`.

**Handles** are your own objects as well: what an open answers as ``Open(handle)`` comes back in the calls that have a
handle, until `release`. With ``Open(backing=fd)`` the data of the file never come back to Python: they are read from and
written to that descriptor natively. It is duplicated at once: close yours, as ``with open(path, "rb") as file: return
Open(backing=file)`` does.

**Errors**: raise `OSError`, and the guest's program gets its errno; `FileNotFoundError`, `PermissionError` and their like
will do without a number. `NotImplementedError` is EOPNOTSUPP. Anything else is logged, once for each kind, and EIO for
the guest; the server goes on.

**Threads**: one at a time, unless the class says `lanes`. A method may be ``async def``: then others are called while it
awaits.
"""
# Over 400 lines, since it is one method with its documentation for each of 40 operations.

import errno
import os
from collections.abc import AsyncIterable, Awaitable, Iterable, Mapping
from types import MappingProxyType
from typing import Any, TypeAlias, TypeVar

from . import _core, plan
from .cache import AUTO, Cache
from .host import MOST_NODES
from .operations import default
from .types import Attr, Buffer, Changes, DirEntry, Entry, Lock, Open, Request, Statfs

_T = TypeVar("_T")
Answer: TypeAlias = _T | Awaitable[_T]
"""What a method answers, or what will be awaited for it."""

_FEATURES = (
    "ABORT_ERROR",
    "ASYNC_DIO",
    "ASYNC_READ",
    "BIG_WRITES",
    "INIT_EXT",
    "MAX_PAGES",
    "NO_EXPORT_SUPPORT",
    "PARALLEL_DIROPS",
    "SETXATTR_EXT",
)


class FileSystem:
    """A file system for guests, or for this host, made of Python methods.

    A class defines the operations that it has; what it lacks answers as the method's documentation says here, and costs
    no call. Only `getattr` is needed. `explain` tells for a class who serves what.

    Each method gets the request first (who asks, in the guest), then the node or the parent directory and the name, then
    the rest. Names are `str` as in `os`: bytes that are no UTF-8 are surrogates. Offsets and sizes are bytes, times
    nanoseconds since the epoch.
    """

    root: Any = None
    """The node of the root directory; None stands for the file system itself."""

    cache: Cache = AUTO
    """What a guest may keep, and how long: what an `Entry` or `Open` does not say otherwise."""

    read_only: bool = False
    """Refuse every change with EROFS, before it reaches a method."""

    writeback: bool = False
    """Let the guest collect writes and send them later. Only where nobody else changes the files."""

    version_table: "_core.VersionTable | None" = None
    """Where changes are told, for those who remember what they were told: see ``docs/version-table.md`` and `changed`."""

    lanes: int = 1
    """Threads that methods are called from. With one, methods need no locks."""

    most_nodes: int = MOST_NODES
    """Nodes that one guest remembers at most. Past it lookups and creations are ENFILE, and listings go on without attributes.
    0 is no bound."""

    most_handles: int | None = None
    """Handles with an object, files with a backing, and directories being listed that one guest has at most, of each. Past it
    opens are ENFILE, and no method is called. None takes seven eighths of the limit of open files, 0 is no bound."""

    deadlines: Mapping[str, float] = MappingProxyType({})
    """Seconds that a request may take, by operation; after that the guest gets EIO, whatever the method is at. A coroutine is
    cancelled. What is not named may take for ever, and its caller in the guest cannot be killed meanwhile."""

    @property
    def features(self) -> frozenset[str]:
        """Features of the FUSE session that are wanted. Those that the class cannot keep are left out of `init_flags`."""
        return frozenset(_FEATURES) | self.cache.features | ({"WRITEBACK_CACHE"} if self.writeback else frozenset())

    @property
    def init_flags(self) -> int:
        """The bits of the features to accept where a guest offers them. For servers, which ask once."""
        return plan.init_flags(self)

    def engine(self) -> "_core.HostDir | _core.Routed":
        """Returns what the native side serves. For servers, which ask once."""
        return plan.engine(self)

    def native_engine(self, *, attr_timeout: float | None = None) -> "_core.HostDir | None":
        """Returns the native file system beneath, if there is one.

        Args:
            attr_timeout: Seconds for which a guest trusts attributes in its answers; None for those of `cache`.
        """
        return None

    def changed(self, node: Any) -> None:
        """Says that a node changed: its data or attributes, or the names in a directory. Call it after the change.

        Whoever remembers something of it by `version_table` asks again, in all guests and mounts at once; without a table this
        does nothing, and what guests remember lasts as long as `cache` says.

        What guests change by methods of the class is said by itself, for the nodes that the method was given. Other nodes
        that such a change concerns are for the method to tell: the one whose name `unlink` took away, if its attributes count
        names.

        Args:
            node: As it was answered in an `Entry`, or `root`. A string or number is the same node in all processes that share
                a table; any other object is its own in this process.
        """
        if (table := self.version_table) is None:
            return
        if node is self or node is self.root:
            table.root_changed()
        else:
            table.node_changed(node)

    # Saved devices.

    def save_node(self, node: Any) -> bytes | str | None:
        """Says by what `restore_node` finds a node again, in this process or another: see `Device.save`.

        Called for each node that the guest has, but for the root and for those of a host directory, which are found natively.

        Returns:
            Text or bytes; None if the node cannot be found again, as here. It is listed as lost then.
        """
        return None

    def restore_node(self, saved: Any) -> Any:
        """Finds a node again: see `Device.restore`. Not the root.

        Args:
            saved: What `save_node` has returned.

        Returns:
            The object that is the node from now on.

        Raises:
            OSError: It is gone, for this reason.
        """
        raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))

    def save_handle(self, node: Any, handle: Any) -> bytes | str | None:
        """Says by what `restore_handle` opens a file or directory again.

        Called for each open one that has an object or a backing. Native files of a host directory are opened again natively,
        and what was opened without either needs nothing.

        Args:
            node: What is open.
            handle: The object, or None.

        Returns:
            Text or bytes; None if it cannot be opened again, as here. It is listed as lost then.
        """
        return None

    def restore_handle(self, node: Any, saved: Any) -> Open:
        """Opens a file or directory again.

        Args:
            node: What was open.
            saved: What `save_handle` has returned.

        Returns:
            The handle, with a backing if the one that was saved had one. Its flags count for nothing.

        Raises:
            OSError: It is gone, for this reason.
        """
        raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))

    # The session.

    @default(0, "nothing")
    def init(self) -> Answer[None]:
        """A session begins: a guest has mounted the file system, or did so again after a reset.

        Or one that was saved goes on, and its nodes and handles were found again.
        """

    @default(0, "nothing")
    def destroy(self) -> Answer[None]:
        """The session is over. All nodes and handles of it are let go of without a `forget` or `release` for each."""

    @default(0, "nothing")
    def forget(self, node: Any) -> Answer[None]:
        """The guest has forgotten a node: it comes in no call any more, unless a lookup answers it again."""

    # Names and attributes.

    @default(errno.ENOENT, "there is nothing but the root")
    def lookup(self, request: Request, parent: Any, name: str) -> Answer[Entry | None]:
        """Looks a name up.

        Returns:
            The node with its attributes, and how long the guest may trust both; None if there is no such name, which the guest
            remembers for `cache.negative_timeout`.

        Raises:
            FileNotFoundError: There is no such name, and the guest is to ask again each time.
            OSError: Whatever else.
        """
        raise NotImplementedError

    @default(errno.ENOSYS, "refused at the start: a file system needs it")
    def getattr(self, request: Request, node: Any, handle: Any) -> Answer[Attr | Entry]:
        """Tells a node's attributes.

        Args:
            request: Who asks.
            node: The node.
            handle: The open file that they are asked of, or None.

        Returns:
            The attributes; an Entry with them says with its `attr_timeout` how long they hold. The type in `mode` never
            changes for a node; `ino` 0 is replaced by a number of the node's own.
        """
        raise NotImplementedError

    @default(errno.ENOSYS, "the guest takes getattr, and knows no birth times")
    def statx(self, request: Request, node: Any, handle: Any, mask: int) -> Answer[Attr | Entry]:
        """As `getattr`, asked when somebody wants a birth time (`btime_ns`); `mask` has the STATX bits that are wanted."""
        raise NotImplementedError

    @default(errno.EPERM, "modes, owners, times and sizes stay as they are")
    def setattr(self, request: Request, node: Any, handle: Any, changes: Changes) -> Answer[Attr | Entry]:
        """Changes attributes: those of `changes` that are not None. Truncation comes here, as a change of `size`.

        Returns:
            All attributes as they are now. ``changes.apply(attr)`` makes them.
        """
        raise NotImplementedError

    @default(errno.EINVAL, "there are no symlinks")
    def readlink(self, request: Request, node: Any) -> Answer[str | bytes]:
        """Returns the target of a symlink: 1 to 4095 bytes."""
        raise NotImplementedError

    @default(errno.EPERM, "none can be made")
    def symlink(self, request: Request, parent: Any, name: str, target: str) -> Answer[Entry]:
        """Makes a symlink for `request.uid` and `request.gid`.

        Raises:
            FileExistsError: The name is taken; the guest has looked, but may be late.
        """
        raise NotImplementedError

    @default(errno.EPERM, "none can be made")
    def mknod(self, request: Request, parent: Any, name: str, mode: int, rdev: int) -> Answer[Entry]:
        """Makes a file, FIFO, socket or device node for `request.uid` and `request.gid`; `mode` has its type and permissions.

        Where `create` is lacking, files are made by this and then opened.
        """
        raise NotImplementedError

    @default(errno.EPERM, "none can be made")
    def mkdir(self, request: Request, parent: Any, name: str, mode: int) -> Answer[Entry]:
        """Makes a directory for `request.uid` and `request.gid`; `mode` has permissions alone, the umask applied."""
        raise NotImplementedError

    @default(errno.EPERM, "names stay")
    def unlink(self, request: Request, parent: Any, name: str) -> Answer[None]:
        """Removes a name that is no directory. The node lives on while the guest has it open or remembers it."""
        raise NotImplementedError

    @default(errno.EPERM, "directories stay")
    def rmdir(self, request: Request, parent: Any, name: str) -> Answer[None]:
        """Removes an empty directory; ENOTEMPTY otherwise."""
        raise NotImplementedError

    @default(errno.EPERM, "names stay; programs copy and remove")
    def rename(
        self, request: Request, parent: Any, name: str, new_parent: Any, new_name: str, flags: int
    ) -> Answer[None]:
        """Renames, over what is there unless it is a directory that is not empty.

        Args:
            request: Who asks.
            parent: Where the name is.
            name: The name.
            new_parent: Where it goes; may be the same directory.
            new_name: What it is to be called.
            flags: RENAME_NOREPLACE (1), RENAME_EXCHANGE (2), RENAME_WHITEOUT (4); EINVAL for those that are not served.
        """
        raise NotImplementedError

    @default(errno.EPERM, "a file has one name")
    def link(self, request: Request, node: Any, new_parent: Any, new_name: str) -> Answer[Entry]:
        """Gives a node one more name; the answer has the same node."""
        raise NotImplementedError

    # Files.

    @default(0, "every file opens, without a handle")
    def open(self, request: Request, node: Any, flags: int) -> Answer[Open | None]:
        """Opens a file; the guest's kernel has checked permissions by the attributes.

        Args:
            request: Who asks.
            node: The file.
            flags: Those of open(2): the access mode, O_APPEND, O_DIRECT and the like. Never O_CREAT, O_EXCL, O_TRUNC:
                those come as other operations.

        Returns:
            The handle for later calls, or a descriptor that serves the data (`Open.backing`), or both, and what the guest may
            keep. None is an Open of nothing.
        """
        raise NotImplementedError

    @default(errno.ENOSYS, "the guest takes mknod and open")
    def create(
        self, request: Request, parent: Any, name: str, flags: int, mode: int
    ) -> Answer[tuple[Entry, Open | None]]:
        """Makes a file for `request.uid` and `request.gid` and opens it, or opens what is there unless `flags` have O_EXCL."""
        raise NotImplementedError

    @default(errno.ENOSYS, "EOPNOTSUPP for good; programs make a file with a name")
    def tmpfile(self, request: Request, parent: Any, flags: int, mode: int) -> Answer[tuple[Entry, Open | None]]:
        """Makes a file without a name, in the file system of `parent`, and opens it. A `link` may name it later."""
        raise NotImplementedError

    @default(errno.EIO, "files cannot be read, but for backings")
    def read(self, request: Request, node: Any, handle: Any, offset: int, size: int) -> Answer[Buffer]:
        """Reads.

        Returns:
            The bytes, in anything that has a buffer. Fewer than `size` mean that the file ends there, and nothing else.
        """
        raise NotImplementedError

    @default(errno.EROFS, "files cannot be written, but for backings")
    def write(self, request: Request, node: Any, handle: Any, offset: int, data: bytes) -> Answer[int | None]:
        """Writes. `data` is yours to keep.

        Returns:
            How many bytes were written, None for all.
        """
        raise NotImplementedError

    @default(errno.ENOSYS, "the guest does not ask again, and close always succeeds")
    def flush(self, request: Request, node: Any, handle: Any) -> Answer[None]:
        """Somebody closes the file, maybe not for the last time. What this raises, close(2) answers."""
        raise NotImplementedError

    @default(0, "the handle is let go of")
    def release(self, request: Request, node: Any, handle: Any) -> Answer[None]:
        """The file was closed for the last time: `handle` comes in no call any more. close(2) waits, but gets no error."""
        raise NotImplementedError

    @default(errno.ENOSYS, "fsync(2) succeeds at once; that of a backing reaches it")
    def fsync(self, request: Request, node: Any, handle: Any, data_only: bool) -> Answer[None]:
        """Makes what was written to the file outlast a crash."""
        raise NotImplementedError

    @default(errno.ENOSYS, "EOPNOTSUPP for good; programs write zeros")
    def fallocate(self, request: Request, node: Any, handle: Any, offset: int, size: int, mode: int) -> Answer[None]:
        """Reserves room, or makes holes: `mode` is made of KEEP_SIZE (1), PUNCH_HOLE (2) and ZERO_RANGE (16)."""
        raise NotImplementedError

    @default(errno.ENOSYS, "the whole file counts as data")
    def lseek(self, request: Request, node: Any, handle: Any, offset: int, whence: int) -> Answer[int]:
        """Finds the next data or hole from `offset` on: `whence` is `os.SEEK_DATA` or `os.SEEK_HOLE`. ENXIO past the end."""
        raise NotImplementedError

    @default(errno.ENOSYS, "the guest reads and writes instead")
    def copy_file_range(
        self,
        request: Request,
        node: Any,
        handle: Any,
        offset: int,
        to_node: Any,
        to_handle: Any,
        to_offset: int,
        size: int,
    ) -> Answer[int]:
        """Copies within the file system, without the data passing through the guest.

        Returns:
            How many bytes were copied; the guest asks again for the rest.

        Raises:
            OSError: EXDEV makes the guest copy by itself.
        """
        raise NotImplementedError

    @default(errno.ENOTTY, "there are none")
    def ioctl(
        self, request: Request, node: Any, handle: Any, command: int, argument: int, data: bytes, size: int
    ) -> Answer[Buffer | tuple[int, Buffer] | None]:
        """Does what a command says whose number tells how much data goes in, and how much (`size`) may come out.

        Returns:
            What comes out, after the result if that is not 0.

        Raises:
            OSError: ENOTTY for commands that are not known.
        """
        raise NotImplementedError

    # Locks: without these the guest keeps them among its own processes.

    @default(errno.ENOSYS, "locks hold within each guest")
    def getlk(self, request: Request, node: Any, handle: Any, lock: Lock) -> Answer[Lock | None]:
        """Returns a lock that is in the way of `lock`, or None."""
        raise NotImplementedError

    @default(errno.ENOSYS, "locks hold within each guest")
    def setlk(self, request: Request, node: Any, handle: Any, lock: Lock) -> Answer[None]:
        """Sets a lock, or clears it (`lock.kind` is F_UNLCK), without waiting.

        Raises:
            BlockingIOError: Another is in the way.
        """
        raise NotImplementedError

    @default(errno.EAGAIN, "as if the lock were taken")
    def setlkw(self, request: Request, node: Any, handle: Any, lock: Lock) -> Answer[None]:
        """Sets a lock and waits for it. Make it ``async def``: the unlock that it waits for comes by the same lane."""
        raise NotImplementedError

    # Directories.

    @default(0, "every directory opens, without a handle")
    def opendir(self, request: Request, node: Any, flags: int) -> Answer[Open | None]:
        """Opens a directory, as `open`, but without a backing."""
        raise NotImplementedError

    @default(errno.ENOTDIR, "nothing can be listed")
    def readdir(
        self, request: Request, node: Any, handle: Any
    ) -> Answer[Iterable[DirEntry | str]] | AsyncIterable[DirEntry | str]:
        """Lists a directory as a whole; called once for each listing of a guest, which gets it in pieces. May be a generator.

        Returns:
            The names, each with its type and inode number where they are known. "." and ".." are added.
        """
        raise NotImplementedError

    @default(errno.ENOSYS, "the guest looks up what it wants to know more of")
    def readdirplus(
        self, request: Request, node: Any, handle: Any
    ) -> Answer[Iterable[DirEntry | str]] | AsyncIterable[DirEntry | str]:
        """Lists as `readdir`, with an `Entry` in each `DirEntry`, which saves a lookup. One without is looked up."""
        raise NotImplementedError

    @default(0, "the handle is let go of")
    def releasedir(self, request: Request, node: Any, handle: Any) -> Answer[None]:
        """The directory was closed."""
        raise NotImplementedError

    @default(errno.ENOSYS, "fsync(2) succeeds at once")
    def fsyncdir(self, request: Request, node: Any, handle: Any, data_only: bool) -> Answer[None]:
        """Makes changes of names in the directory outlast a crash."""
        raise NotImplementedError

    # The whole.

    @default(0, "sizes of 0, names of up to 255 bytes")
    def statfs(self, request: Request, node: Any) -> Answer[Statfs]:
        """Tells how large the file system is and how full: what df(1) shows."""
        raise NotImplementedError

    @default(errno.ENOSYS, "sync(2) succeeds at once")
    def syncfs(self, request: Request, node: Any) -> Answer[None]:
        """Makes all that was written outlast a crash."""
        raise NotImplementedError

    # Extended attributes.

    @default(errno.ENOSYS, "EOPNOTSUPP for good")
    def setxattr(self, request: Request, node: Any, name: str, value: bytes, flags: int) -> Answer[None]:
        """Sets an extended attribute; `flags` are `os.XATTR_CREATE` (EEXIST), `os.XATTR_REPLACE` (ENODATA)."""
        raise NotImplementedError

    @default(errno.ENOSYS, "EOPNOTSUPP for good")
    def getxattr(self, request: Request, node: Any, name: str) -> Answer[Buffer]:
        """Returns the value of an extended attribute, at most 64 KiB; ENODATA if there is none."""
        raise NotImplementedError

    @default(errno.ENOSYS, "EOPNOTSUPP for good")
    def listxattr(self, request: Request, node: Any) -> Answer[Iterable[str]]:
        """Returns the names of the extended attributes."""
        raise NotImplementedError

    @default(errno.ENOSYS, "EOPNOTSUPP for good")
    def removexattr(self, request: Request, node: Any, name: str) -> Answer[None]:
        """Removes an extended attribute; ENODATA if there is none."""
        raise NotImplementedError

    @default(errno.ENOSYS, "the guest's kernel checks permissions by itself, as Linux does in any case")
    def access(self, request: Request, node: Any, mask: int) -> Answer[None]:
        """Checks whether the caller may read (4), write (2) or execute (1); EACCES if not."""
        raise NotImplementedError
