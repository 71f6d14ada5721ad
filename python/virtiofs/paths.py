"""File systems by path, as users of fusepy write them.

Any object will do whose methods are called and answer as those of fusepy's ``Operations``: ``getattr(path, fh)`` gives a
dict with ``st_mode`` and so on, ``read(path, size, offset, fh)`` bytes, ``open(path, flags)`` a number. So a file system
that was written for fusepy (or mfusepy, refuse) serves a virtual machine by one line::

    Server(PathFileSystem(MyOperations()), socket="/run/fs.sock")
"""

import errno
import os
from collections.abc import Iterator, Mapping
from typing import Any

from .filesystem import FileSystem
from .types import Attr, Changes, DirEntry, Entry, Open, Request, Statfs


class Name:
    """A node: a name in a directory. What it is called changes along with the directories above."""

    __slots__ = ("children", "name", "parent")

    def __init__(self, parent: "Name | None", name: str) -> None:
        self.parent = parent
        self.name = name
        self.children: dict[str, Name] = {}

    @property
    def path(self) -> str:
        """The path from the root, which is "/"."""
        parts = []
        node: Name = self
        while node.parent is not None:
            parts.append(node.name)
            node = node.parent
        return "/" + "/".join(reversed(parts))


class PathFileSystem(FileSystem):
    """Calls an object by paths.

    Args:
        operations: Its methods are those of fusepy's ``Operations``: `getattr` and `readdir` at least. One that is
            missing, or raises NotImplementedError, is refused with EOPNOTSUPP; closing and syncing go without.
    """

    def __init__(self, operations: Any) -> None:
        self.operations = operations
        self.root = Name(None, "")

    def __repr__(self) -> str:
        return f"PathFileSystem({self.operations!r})"

    def init(self) -> None:
        """Calls ``init("/")``."""
        if hasattr(self.operations, "init"):
            self.operations.init("/")

    def destroy(self) -> None:
        """Calls ``destroy("/")``."""
        if hasattr(self.operations, "destroy"):
            self.operations.destroy("/")

    def forget(self, node: Name) -> None:
        """Lets go of a name, unless names below it are known."""
        while node.parent is not None and not node.children and node.parent.children.get(node.name) is node:
            del node.parent.children[node.name]
            node = node.parent

    def _call(self, name: str, *arguments: Any) -> Any:
        method = getattr(self.operations, name, None)
        if method is None:
            raise NotImplementedError(name)
        return method(*arguments)

    def _attr(self, node: Name, handle: Any) -> Attr:
        found = self._call("getattr", node.path, handle)
        return _attr(found) if isinstance(found, Mapping) else found

    def _entry(self, parent: Name, name: str) -> Entry:
        node = parent.children.get(name)
        if node is None:
            node = Name(parent, name)
        attr = self._attr(node, None)
        parent.children[name] = node
        return Entry(node, attr)

    def _join(self, parent: Name, name: str) -> str:
        return parent.path.rstrip("/") + "/" + name

    def lookup(self, request: Request, parent: Name, name: str) -> Entry | None:
        """Calls `getattr`."""
        try:
            return self._entry(parent, name)
        except OSError as error:
            if error.errno == errno.ENOENT:
                return None
            raise

    def getattr(self, request: Request, node: Name, handle: Any) -> Attr:
        """Calls ``getattr(path, fh)``."""
        return self._attr(node, handle)

    def setattr(self, request: Request, node: Name, handle: Any, changes: Changes) -> Attr:
        """Calls `chmod`, `chown`, `truncate` and `utimens` as far as they are asked for."""
        path = node.path
        if changes.mode is not None:
            self._call("chmod", path, changes.mode)
        if changes.uid is not None or changes.gid is not None:
            uid, gid = (-1 if given is None else given for given in (changes.uid, changes.gid))
            self._call("chown", path, uid, gid)
        if changes.size is not None:
            self._call("truncate", path, changes.size, handle)
        if changes.atime_ns is not None or changes.mtime_ns is not None:
            now = self._attr(node, handle)
            times = (
                now.atime_ns if changes.atime_ns is None else changes.atime_ns,
                now.mtime_ns if changes.mtime_ns is None else changes.mtime_ns,
            )
            self._call("utimens", path, tuple(nanoseconds / 1e9 for nanoseconds in times))
        return self._attr(node, handle)

    def readlink(self, request: Request, node: Name) -> Any:
        """Calls ``readlink(path)``."""
        return self._call("readlink", node.path)

    def symlink(self, request: Request, parent: Name, name: str, target: str) -> Entry:
        """Calls ``symlink(path, target)``."""
        self._call("symlink", self._join(parent, name), target)
        return self._entry(parent, name)

    def mknod(self, request: Request, parent: Name, name: str, mode: int, rdev: int) -> Entry:
        """Calls ``mknod(path, mode, device)``."""
        self._call("mknod", self._join(parent, name), mode, rdev)
        return self._entry(parent, name)

    def mkdir(self, request: Request, parent: Name, name: str, mode: int) -> Entry:
        """Calls ``mkdir(path, mode)``."""
        self._call("mkdir", self._join(parent, name), mode)
        return self._entry(parent, name)

    def unlink(self, request: Request, parent: Name, name: str) -> None:
        """Calls ``unlink(path)``."""
        self._call("unlink", self._join(parent, name))
        parent.children.pop(name, None)

    def rmdir(self, request: Request, parent: Name, name: str) -> None:
        """Calls ``rmdir(path)``."""
        self._call("rmdir", self._join(parent, name))
        parent.children.pop(name, None)

    def rename(self, request: Request, parent: Name, name: str, new_parent: Name, new_name: str, flags: int) -> None:
        """Calls ``rename(old, new)``, which knows no flags."""
        if flags:
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        self._call("rename", self._join(parent, name), self._join(new_parent, new_name))
        node = parent.children.pop(name, None)
        new_parent.children.pop(new_name, None)
        if node is not None:
            node.parent, node.name = new_parent, new_name
            new_parent.children[new_name] = node

    def open(self, request: Request, node: Name, flags: int) -> Open | None:
        """Calls ``open(path, flags)``."""
        if not hasattr(self.operations, "open"):
            return None
        return Open(self._call("open", node.path, flags))

    def create(self, request: Request, parent: Name, name: str, flags: int, mode: int) -> tuple[Entry, Open]:
        """Calls ``create(path, mode)``."""
        handle = self._call("create", self._join(parent, name), mode)
        return self._entry(parent, name), Open(handle)

    def read(self, request: Request, node: Name, handle: Any, offset: int, size: int) -> Any:
        """Calls ``read(path, size, offset, fh)``."""
        return self._call("read", node.path, size, offset, handle)

    def write(self, request: Request, node: Name, handle: Any, offset: int, data: bytes) -> Any:
        """Calls ``write(path, data, offset, fh)``."""
        return self._call("write", node.path, data, offset, handle)

    def flush(self, request: Request, node: Name, handle: Any) -> None:
        """Calls ``flush(path, fh)``, if it is there."""
        if hasattr(self.operations, "flush"):
            self.operations.flush(node.path, handle)

    def release(self, request: Request, node: Name, handle: Any) -> None:
        """Calls ``release(path, fh)``, if it is there."""
        if hasattr(self.operations, "release"):
            self.operations.release(node.path, handle)

    def fsync(self, request: Request, node: Name, handle: Any, data_only: bool) -> None:
        """Calls ``fsync(path, datasync, fh)``, if it is there."""
        if hasattr(self.operations, "fsync"):
            self.operations.fsync(node.path, data_only, handle)

    def readdir(self, request: Request, node: Name, handle: Any) -> Iterator[DirEntry]:
        """Calls ``readdir(path, fh)``, which gives names, or tuples of a name, attributes and an offset."""
        for item in self._call("readdir", node.path, handle):
            name, found = (item, None) if isinstance(item, str) else item[:2]
            yield DirEntry(name, found.get("st_mode", 0) if isinstance(found, Mapping) else 0)

    def statfs(self, request: Request, node: Name) -> Statfs:
        """Calls ``statfs(path)``, if it is there."""
        found = self.operations.statfs(node.path) if hasattr(self.operations, "statfs") else {}
        names = {"blocks": "f_blocks", "bfree": "f_bfree", "bavail": "f_bavail", "files": "f_files", "ffree": "f_ffree"}
        names |= {"bsize": "f_bsize", "frsize": "f_frsize", "namelen": "f_namemax"}
        return Statfs(**{ours: found[theirs] for ours, theirs in names.items() if found.get(theirs)})

    def setxattr(self, request: Request, node: Name, name: str, value: bytes, flags: int) -> None:
        """Calls ``setxattr(path, name, value, options)``."""
        self._call("setxattr", node.path, name, value, flags)

    def getxattr(self, request: Request, node: Name, name: str) -> Any:
        """Calls ``getxattr(path, name)``."""
        return self._call("getxattr", node.path, name)

    def listxattr(self, request: Request, node: Name) -> Any:
        """Calls ``listxattr(path)``."""
        return self._call("listxattr", node.path)

    def removexattr(self, request: Request, node: Name, name: str) -> None:
        """Calls ``removexattr(path, name)``."""
        self._call("removexattr", node.path, name)


def _attr(found: Mapping[str, Any]) -> Attr:
    """Returns attributes that came as a dict. Times are seconds, or with a name that ends in ``_ns`` nanoseconds."""

    def nanoseconds(name: str) -> int:
        exact = found.get(name + "_ns")
        return int(exact if exact is not None else found.get(name, 0) * 1_000_000_000)

    given = {
        name: found["st_" + name]
        for name in ("ino", "nlink", "uid", "gid", "rdev", "blocks", "blksize")
        if "st_" + name in found
    }
    return Attr(
        found["st_mode"],
        size=found.get("st_size", 0),
        atime_ns=nanoseconds("st_atime"),
        mtime_ns=nanoseconds("st_mtime"),
        ctime_ns=nanoseconds("st_ctime"),
        **given,
    )
