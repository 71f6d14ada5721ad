"""The operations of a host directory: native, unless a subclass overrides them."""

from typing import Any

from ._core import Native
from .filesystem import FileSystem
from .operations import native
from .types import Attr, Buffer, Changes, DirEntry, Entry, Lock, Open, Request, Statfs


class NativeOperations(FileSystem):
    """What a subclass of `Passthrough` calls by ``super()``.

    Each method does natively, and without the interpreter, what its namesake in `FileSystem` says. Nodes are `Node`;
    handles are numbers. What a method returns can be returned as it is, or changed.
    """

    @native
    def lookup(self, request: Request, parent: Any, name: str) -> Entry | None:
        return Native.lookup(request, parent, name)

    @native
    def getattr(self, request: Request, node: Any, handle: Any) -> Attr:
        return Native.getattr(request, node, handle)

    @native
    def statx(self, request: Request, node: Any, handle: Any, mask: int) -> Attr:
        return Native.statx(request, node, handle, mask)

    @native
    def setattr(self, request: Request, node: Any, handle: Any, changes: Changes) -> Attr:
        return Native.setattr(request, node, handle, changes)

    @native
    def readlink(self, request: Request, node: Any) -> str:
        return Native.readlink(request, node)

    @native
    def symlink(self, request: Request, parent: Any, name: str, target: str) -> Entry:
        return Native.symlink(request, parent, name, target)

    @native
    def mknod(self, request: Request, parent: Any, name: str, mode: int, rdev: int) -> Entry:
        return Native.mknod(request, parent, name, mode, rdev)

    @native
    def mkdir(self, request: Request, parent: Any, name: str, mode: int) -> Entry:
        return Native.mkdir(request, parent, name, mode)

    @native
    def unlink(self, request: Request, parent: Any, name: str) -> None:
        return Native.unlink(request, parent, name)

    @native
    def rmdir(self, request: Request, parent: Any, name: str) -> None:
        return Native.rmdir(request, parent, name)

    @native
    def rename(self, request: Request, parent: Any, name: str, new_parent: Any, new_name: str, flags: int) -> None:
        return Native.rename(request, parent, name, new_parent, new_name, flags)

    @native
    def link(self, request: Request, node: Any, new_parent: Any, new_name: str) -> Entry:
        return Native.link(request, node, new_parent, new_name)

    @native
    def open(self, request: Request, node: Any, flags: int) -> Open:
        return Native.open(request, node, flags)

    @native
    def create(self, request: Request, parent: Any, name: str, flags: int, mode: int) -> tuple[Entry, Open]:
        return Native.create(request, parent, name, flags, mode)

    @native
    def tmpfile(self, request: Request, parent: Any, flags: int, mode: int) -> tuple[Entry, Open]:
        return Native.tmpfile(request, parent, flags, mode)

    @native
    def read(self, request: Request, node: Any, handle: Any, offset: int, size: int) -> bytes:
        return Native.read(request, node, handle, offset, size)

    @native
    def write(self, request: Request, node: Any, handle: Any, offset: int, data: Buffer) -> int:
        return Native.write(request, node, handle, offset, data)

    @native
    def flush(self, request: Request, node: Any, handle: Any) -> None:
        return Native.flush(request, node, handle)

    @native
    def fsync(self, request: Request, node: Any, handle: Any, data_only: bool) -> None:
        return Native.fsync(request, node, handle, data_only)

    @native
    def fallocate(self, request: Request, node: Any, handle: Any, offset: int, size: int, mode: int) -> None:
        return Native.fallocate(request, node, handle, offset, size, mode)

    @native
    def lseek(self, request: Request, node: Any, handle: Any, offset: int, whence: int) -> int:
        return Native.lseek(request, node, handle, offset, whence)

    @native
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
    ) -> int:
        return Native.copy_file_range(request, node, handle, offset, to_node, to_handle, to_offset, size)

    @native
    def ioctl(
        self, request: Request, node: Any, handle: Any, command: int, argument: int, data: Buffer, size: int
    ) -> tuple[int, bytes]:
        return Native.ioctl(request, node, handle, command, argument, data, size)

    @native
    def getlk(self, request: Request, node: Any, handle: Any, lock: Lock) -> Lock | None:
        return Native.getlk(request, node, handle, lock)

    @native
    def setlk(self, request: Request, node: Any, handle: Any, lock: Lock) -> None:
        return Native.setlk(request, node, handle, lock)

    @native
    def setlkw(self, request: Request, node: Any, handle: Any, lock: Lock) -> None:
        return Native.setlkw(request, node, handle, lock)

    @native
    def opendir(self, request: Request, node: Any, flags: int) -> Open:
        return Native.opendir(request, node, flags)

    @native
    def readdir(self, request: Request, node: Any, handle: Any) -> list[DirEntry]:
        return Native.readdir(request, node, handle)

    @native
    def readdirplus(self, request: Request, node: Any, handle: Any) -> list[DirEntry]:
        listed = []
        for entry in Native.readdir(request, node, handle):
            try:
                listed.append(DirEntry(entry.name, entry=Native.lookup(request, node, entry.name)))
            except OSError:
                listed.append(entry)
        return listed

    @native
    def fsyncdir(self, request: Request, node: Any, handle: Any, data_only: bool) -> None:
        return Native.fsyncdir(request, node, handle, data_only)

    @native
    def statfs(self, request: Request, node: Any) -> Statfs:
        return Native.statfs(request, node)

    @native
    def syncfs(self, request: Request, node: Any) -> None:
        return Native.syncfs(request, node)

    @native
    def setxattr(self, request: Request, node: Any, name: str, value: Buffer, flags: int) -> None:
        return Native.setxattr(request, node, name, value, flags)

    @native
    def getxattr(self, request: Request, node: Any, name: str) -> bytes:
        return Native.getxattr(request, node, name)

    @native
    def listxattr(self, request: Request, node: Any) -> list[str]:
        return Native.listxattr(request, node)

    @native
    def removexattr(self, request: Request, node: Any, name: str) -> None:
        return Native.removexattr(request, node, name)

    @native
    def access(self, request: Request, node: Any, mask: int) -> None:
        return Native.access(request, node, mask)

    @native
    def release(self, request: Request, node: Any, handle: Any) -> None:
        """The native file system closes its handles by itself."""
        return

    @native
    def releasedir(self, request: Request, node: Any, handle: Any) -> None:
        """The native file system closes its handles by itself."""
        return

    @native
    def forget(self, node: Any) -> None:
        """The native file system forgets by itself."""
        return
