"""A file system with every operation, in memory, that notes what it was asked: for tests alone."""

import errno
import fcntl
import os
import stat
from collections.abc import Iterator
from typing import Any

from virtiofs import Attr, Changes, DirEntry, Entry, FileSystem, Lock, Open, Request, Statfs


class Inode:
    """A node."""

    def __init__(self, attr: Attr, target: str = "") -> None:
        self.attr = attr
        self.data = bytearray()
        self.target = target
        self.names: dict[str, Inode] = {}
        self.xattrs: dict[str, bytes] = {}
        self.locks: list[Lock] = []

    @property
    def now(self) -> Attr:
        return self.attr.replace(size=len(self.data)) if self.attr.is_file else self.attr


class Tree(FileSystem):
    """Names, data, xattrs, locks."""

    def __init__(self) -> None:
        self.root = Inode(Attr(stat.S_IFDIR | 0o755, nlink=2))
        self.calls: list[str] = []
        self.forgotten: list[Inode] = []
        self.closed: list[Any] = []
        self.sessions: list[str] = []

    def note(self, request: Request) -> None:
        self.calls.append(request.operation)

    def made(self, request: Request, parent: Inode, name: str, mode: int, target: str = "") -> Entry:
        self.note(request)
        if name in parent.names:
            raise FileExistsError(name)
        parent.names[name] = node = Inode(Attr(mode, uid=request.uid, gid=request.gid), target)
        return Entry(node, node.now)

    def init(self) -> None:
        self.sessions.append("begin")

    def destroy(self) -> None:
        self.sessions.append("end")

    def forget(self, node: Inode) -> None:
        self.forgotten.append(node)

    def lookup(self, request: Request, parent: Inode, name: str) -> Entry | None:
        self.note(request)
        node = parent.names.get(name)
        return None if node is None else Entry(node, node.now)

    def getattr(self, request: Request, node: Inode, handle: Any) -> Attr:
        self.note(request)
        return node.now

    def statx(self, request: Request, node: Inode, handle: Any, mask: int) -> Attr:
        self.note(request)
        return node.now.replace(btime_ns=1_234_567_890)

    def setattr(self, request: Request, node: Inode, handle: Any, changes: Changes) -> Attr:
        self.note(request)
        if changes.size is not None:
            del node.data[changes.size :]
            node.data.extend(bytes(changes.size - len(node.data)))
        node.attr = changes.apply(node.now)
        return node.now

    def readlink(self, request: Request, node: Inode) -> str:
        self.note(request)
        return node.target

    def symlink(self, request: Request, parent: Inode, name: str, target: str) -> Entry:
        return self.made(request, parent, name, stat.S_IFLNK | 0o777, target)

    def mknod(self, request: Request, parent: Inode, name: str, mode: int, rdev: int) -> Entry:
        return self.made(request, parent, name, mode)

    def mkdir(self, request: Request, parent: Inode, name: str, mode: int) -> Entry:
        return self.made(request, parent, name, stat.S_IFDIR | mode)

    def unlink(self, request: Request, parent: Inode, name: str) -> None:
        self.note(request)
        del parent.names[name]

    def rmdir(self, request: Request, parent: Inode, name: str) -> None:
        self.note(request)
        if parent.names[name].names:
            raise OSError(errno.ENOTEMPTY, name)
        del parent.names[name]

    def rename(self, request: Request, parent: Inode, name: str, new_parent: Inode, new_name: str, flags: int) -> None:
        self.note(request)
        if flags:
            raise OSError(errno.EINVAL, "flags")
        new_parent.names[new_name] = parent.names.pop(name)

    def link(self, request: Request, node: Inode, new_parent: Inode, new_name: str) -> Entry:
        self.note(request)
        new_parent.names[new_name] = node
        node.attr = node.attr.replace(nlink=node.attr.nlink + 1)
        return Entry(node, node.now)

    def open(self, request: Request, node: Inode, flags: int) -> Open:
        self.note(request)
        return Open(["handle", flags])

    def create(self, request: Request, parent: Inode, name: str, flags: int, mode: int) -> tuple[Entry, Open]:
        return self.made(request, parent, name, stat.S_IFREG | mode), Open(["created", flags])

    def tmpfile(self, request: Request, parent: Inode, flags: int, mode: int) -> tuple[Entry, Open]:
        self.note(request)
        node = Inode(Attr(stat.S_IFREG | mode, nlink=0))
        return Entry(node, node.now), Open(["tmpfile", flags])

    def read(self, request: Request, node: Inode, handle: Any, offset: int, size: int) -> memoryview:
        self.note(request)
        return memoryview(bytes(node.data))[offset : offset + size]

    def write(self, request: Request, node: Inode, handle: Any, offset: int, data: bytes) -> int:
        self.note(request)
        node.data.extend(bytes(max(0, offset - len(node.data))))
        node.data[offset : offset + len(data)] = data
        return len(data)

    def flush(self, request: Request, node: Inode, handle: Any) -> None:
        self.note(request)

    def release(self, request: Request, node: Inode, handle: Any) -> None:
        self.note(request)
        self.closed.append(handle)

    def fsync(self, request: Request, node: Inode, handle: Any, data_only: bool) -> None:
        self.note(request)

    def fallocate(self, request: Request, node: Inode, handle: Any, offset: int, size: int, mode: int) -> None:
        self.note(request)
        node.data.extend(bytes(max(0, offset + size - len(node.data))))

    def lseek(self, request: Request, node: Inode, handle: Any, offset: int, whence: int) -> int:
        self.note(request)
        if offset >= len(node.data):
            raise OSError(errno.ENXIO, "past the end")
        return offset if whence == os.SEEK_DATA else len(node.data)

    def copy_file_range(
        self,
        request: Request,
        node: Inode,
        handle: Any,
        offset: int,
        to_node: Inode,
        to_handle: Any,
        to_offset: int,
        size: int,
    ) -> int:
        self.note(request)
        piece = node.data[offset : offset + size]
        to_node.data[to_offset : to_offset + len(piece)] = piece
        return len(piece)

    def ioctl(
        self, request: Request, node: Inode, handle: Any, command: int, argument: int, data: bytes, size: int
    ) -> tuple[int, bytes]:
        self.note(request)
        return 7, data[::-1][:size]

    def getlk(self, request: Request, node: Inode, handle: Any, lock: Lock) -> Lock | None:
        self.note(request)
        return next((there for there in node.locks if there.owner != lock.owner), None)

    def setlk(self, request: Request, node: Inode, handle: Any, lock: Lock) -> None:
        self.note(request)
        if lock.kind == fcntl.F_UNLCK:
            node.locks = [there for there in node.locks if there.owner != lock.owner]
        elif self.getlk(request, node, handle, lock):
            raise BlockingIOError
        else:
            node.locks.append(lock)

    def setlkw(self, request: Request, node: Inode, handle: Any, lock: Lock) -> None:
        self.setlk(request, node, handle, lock)

    def opendir(self, request: Request, node: Inode, flags: int) -> Open:
        self.note(request)
        return Open(["directory", flags])

    def readdir(self, request: Request, node: Inode, handle: Any) -> Iterator[DirEntry]:
        self.note(request)
        for name, child in node.names.items():
            yield DirEntry(name, child.attr.mode)

    def readdirplus(self, request: Request, node: Inode, handle: Any) -> Iterator[DirEntry]:
        self.note(request)
        for name, child in node.names.items():
            yield DirEntry(name, entry=Entry(child, child.now))

    def releasedir(self, request: Request, node: Inode, handle: Any) -> None:
        self.note(request)
        self.closed.append(handle)

    def fsyncdir(self, request: Request, node: Inode, handle: Any, data_only: bool) -> None:
        self.note(request)

    def statfs(self, request: Request, node: Inode) -> Statfs:
        self.note(request)
        return Statfs(blocks=1000, bfree=250, files=10)

    def syncfs(self, request: Request, node: Inode) -> None:
        self.note(request)

    def setxattr(self, request: Request, node: Inode, name: str, value: bytes, flags: int) -> None:
        self.note(request)
        node.xattrs[name] = value

    def getxattr(self, request: Request, node: Inode, name: str) -> bytes:
        self.note(request)
        try:
            return node.xattrs[name]
        except KeyError:
            raise OSError(errno.ENODATA, name) from None

    def listxattr(self, request: Request, node: Inode) -> list[str]:
        self.note(request)
        return list(node.xattrs)

    def removexattr(self, request: Request, node: Inode, name: str) -> None:
        self.note(request)
        del node.xattrs[name]

    def access(self, request: Request, node: Inode, mask: int) -> None:
        self.note(request)
        if mask & os.X_OK:
            raise PermissionError
