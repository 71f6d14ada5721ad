"""A file system in memory: of use by itself, and an example of one that can do most of what there is."""

import errno
import itertools
import os
import stat
import time
from collections.abc import Iterator
from typing import Any

from .filesystem import FileSystem
from .types import Attr, Changes, DirEntry, Entry, Open, Request, Statfs

_EXCHANGE = 2  # RENAME_EXCHANGE of renameat2(2); NOREPLACE is 1


class Inode:
    """A file, directory, symlink or whatever else has a mode. `attr` is kept true but for its size."""

    __slots__ = ("attr", "data", "names", "parent", "xattrs")

    def __init__(self, mode: int, ino: int, uid: int = 0, gid: int = 0, rdev: int = 0) -> None:
        now = time.time_ns()
        self.attr = Attr(
            mode, ino=ino, uid=uid, gid=gid, rdev=rdev, atime_ns=now, mtime_ns=now, ctime_ns=now, btime_ns=now
        )
        self.data = bytearray()
        self.names: dict[str, Inode] = {}
        self.parent: Inode | None = None
        self.xattrs: dict[str, bytes] = {}

    @property
    def now(self) -> Attr:
        """The attributes."""
        if self.attr.is_dir:
            return self.attr.replace(nlink=2 + sum(child.attr.is_dir for child in self.names.values()))
        return self.attr.replace(size=len(self.data))

    def touch(self, *, data: bool = True, links: int = 0) -> None:
        """Sets the times of a change; `links` names came."""
        now = time.time_ns()
        changes = {"mtime_ns": now} if data else {}
        self.attr = self.attr.replace(ctime_ns=now, nlink=self.attr.nlink + links, **changes)


class MemoryFS(FileSystem):
    """A file system that lives as long as this object; each guest that mounts it finds what the last one left.

    Args:
        size: Bytes of data that it may hold.
    """

    def __init__(self, size: int = 1 << 30) -> None:
        self.size = size
        self.used = 0
        self._numbers = itertools.count(1)
        self.root = Inode(stat.S_IFDIR | 0o755, next(self._numbers), os.getuid(), os.getgid())

    def __repr__(self) -> str:
        return f"MemoryFS({self.size})"

    def _resize(self, node: Inode, size: int) -> None:
        if self.used + size - len(node.data) > self.size:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        self.used += size - len(node.data)
        del node.data[size:]
        node.data.extend(bytes(size - len(node.data)))

    def _make(self, request: Request, parent: Inode, name: str, mode: int, rdev: int = 0) -> Entry:
        if name in parent.names:
            raise FileExistsError(name)
        gid = request.gid
        if parent.attr.mode & stat.S_ISGID:
            gid = parent.attr.gid
            mode |= stat.S_ISGID if stat.S_ISDIR(mode) else 0
        node = Inode(mode, next(self._numbers), request.uid, gid, rdev)
        node.parent = parent if stat.S_ISDIR(mode) else None
        parent.names[name] = node
        parent.touch()
        return Entry(node, node.now)

    def _drop(self, parent: Inode, name: str) -> None:
        node = parent.names.pop(name)
        parent.touch()
        node.touch(data=False, links=-1)
        if node.attr.nlink == 0:
            self.used -= len(node.data)  # what is still open is held for free

    def lookup(self, request: Request, parent: Inode, name: str) -> Entry | None:
        node = parent.names.get(name)
        return None if node is None else Entry(node, node.now)

    def getattr(self, request: Request, node: Inode, handle: Any) -> Attr:
        return node.now

    def statx(self, request: Request, node: Inode, handle: Any, mask: int) -> Attr:
        return node.now

    def setattr(self, request: Request, node: Inode, handle: Any, changes: Changes) -> Attr:
        if changes.size is not None:
            self._resize(node, changes.size)
        node.attr = changes.apply(node.attr)
        return node.now

    def readlink(self, request: Request, node: Inode) -> bytes:
        return bytes(node.data)

    def symlink(self, request: Request, parent: Inode, name: str, target: str) -> Entry:
        node: Inode = self._make(request, parent, name, stat.S_IFLNK | 0o777).node
        node.data[:] = os.fsencode(target)
        self.used += len(node.data)
        return Entry(node, node.now)

    def mknod(self, request: Request, parent: Inode, name: str, mode: int, rdev: int) -> Entry:
        return self._make(request, parent, name, mode, rdev)

    def mkdir(self, request: Request, parent: Inode, name: str, mode: int) -> Entry:
        return self._make(request, parent, name, stat.S_IFDIR | mode)

    def unlink(self, request: Request, parent: Inode, name: str) -> None:
        if _known(parent, name).attr.is_dir:
            raise IsADirectoryError(name)
        self._drop(parent, name)

    def rmdir(self, request: Request, parent: Inode, name: str) -> None:
        node = _known(parent, name)
        if not node.attr.is_dir:
            raise NotADirectoryError(name)
        if node.names:
            raise OSError(errno.ENOTEMPTY, os.strerror(errno.ENOTEMPTY))
        self._drop(parent, name)

    def rename(self, request: Request, parent: Inode, name: str, new_parent: Inode, new_name: str, flags: int) -> None:
        node, there = _known(parent, name), new_parent.names.get(new_name)
        above: Inode | None = new_parent
        while above is not None:
            if above is node:
                raise OSError(errno.EINVAL, "a directory does not go into itself")
            above = above.parent
        if flags == _EXCHANGE:
            parent.names[name] = _known(new_parent, new_name)
        elif flags > 1:
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        elif there is node:
            return
        else:
            if there is not None:
                if flags:
                    raise FileExistsError(new_name)
                if there.attr.is_dir:
                    if not node.attr.is_dir:
                        raise IsADirectoryError(new_name)
                    self.rmdir(request, new_parent, new_name)
                elif node.attr.is_dir:
                    raise NotADirectoryError(new_name)
                else:
                    self._drop(new_parent, new_name)
            del parent.names[name]
        new_parent.names[new_name] = node
        for moved, directory in ((node, new_parent), (there, parent)):
            if moved is not None and moved.attr.is_dir and (moved is node or flags):
                moved.parent = directory
        for changed in (parent, new_parent):
            changed.touch()
        node.touch(data=False)

    def link(self, request: Request, node: Inode, new_parent: Inode, new_name: str) -> Entry:
        if new_name in new_parent.names:
            raise FileExistsError(new_name)
        if node.attr.nlink == 0:
            self.used += len(node.data)
        new_parent.names[new_name] = node
        node.touch(data=False, links=1)
        new_parent.touch()
        return Entry(node, node.now)

    def create(self, request: Request, parent: Inode, name: str, flags: int, mode: int) -> tuple[Entry, Open | None]:
        there = parent.names.get(name)
        if there is None:
            return self._make(request, parent, name, stat.S_IFREG | mode), None
        if flags & os.O_EXCL or not there.attr.is_file:
            raise FileExistsError(name)
        return Entry(there, there.now), None

    def tmpfile(self, request: Request, parent: Inode, flags: int, mode: int) -> tuple[Entry, Open | None]:
        node = Inode(stat.S_IFREG | mode, next(self._numbers), request.uid, request.gid)
        node.touch(links=-1)
        return Entry(node, node.now), None

    def read(self, request: Request, node: Inode, handle: Any, offset: int, size: int) -> bytes:
        return bytes(memoryview(node.data)[offset : offset + size])

    def write(self, request: Request, node: Inode, handle: Any, offset: int, data: bytes) -> int:
        if offset + len(data) > len(node.data):
            self._resize(node, offset + len(data))
        node.data[offset : offset + len(data)] = data
        node.touch()
        return len(data)

    def fallocate(self, request: Request, node: Inode, handle: Any, offset: int, size: int, mode: int) -> None:
        keep_size, punch_hole, zero_range = 1, 2, 16
        if mode & ~(keep_size | punch_hole | zero_range):
            raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))
        if not mode & keep_size and offset + size > len(node.data):
            self._resize(node, offset + size)
        if mode & (punch_hole | zero_range):
            end = min(offset + size, len(node.data))
            node.data[offset:end] = bytes(max(0, end - offset))
        node.touch()

    def readdir(self, request: Request, node: Inode, handle: Any) -> Iterator[DirEntry]:
        for name, child in node.names.items():
            yield DirEntry(name, child.attr.mode, child.attr.ino)

    def readdirplus(self, request: Request, node: Inode, handle: Any) -> Iterator[DirEntry]:
        for name, child in node.names.items():
            yield DirEntry(name, entry=Entry(child, child.now))

    def statfs(self, request: Request, node: Inode) -> Statfs:
        return Statfs(blocks=self.size // 4096, bfree=(self.size - self.used) // 4096, files=1 << 32, ffree=1 << 32)

    def setxattr(self, request: Request, node: Inode, name: str, value: bytes, flags: int) -> None:
        if flags & os.XATTR_CREATE and name in node.xattrs:
            raise FileExistsError(name)
        if flags & os.XATTR_REPLACE and name not in node.xattrs:
            raise OSError(errno.ENODATA, name)
        node.xattrs[name] = value
        node.touch(data=False)

    def getxattr(self, request: Request, node: Inode, name: str) -> bytes:
        try:
            return node.xattrs[name]
        except KeyError:
            raise OSError(errno.ENODATA, name) from None

    def listxattr(self, request: Request, node: Inode) -> list[str]:
        return list(node.xattrs)

    def removexattr(self, request: Request, node: Inode, name: str) -> None:
        self.getxattr(request, node, name)
        del node.xattrs[name]
        node.touch(data=False)


def _known(parent: Inode, name: str) -> Inode:
    try:
        return parent.names[name]
    except KeyError:
        raise FileNotFoundError(name) from None
