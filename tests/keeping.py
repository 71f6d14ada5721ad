"""A directory of the host in Python alone, with nodes and handles that are objects, which it says and finds again."""

import errno
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from virtiofs import Attr, DirEntry, Entry, FileSystem, Open, Request


@dataclass(eq=False)
class Inode:
    """A node."""

    path: Path


@dataclass(eq=False)
class File:
    """An open file."""

    fd: int


class Keeping(FileSystem):
    """Serves `directory`. Names that begin with "backed" are opened with a backing; what is called "odd" cannot be saved."""

    def __init__(self, directory: Path) -> None:
        self.root = Inode(directory)
        self.inodes: dict[Path, Inode] = {}
        self.begun = 0

    def init(self) -> None:
        self.begun += 1

    def inode(self, path: Path) -> Inode:
        os.stat(path)
        return self.inodes.setdefault(path, Inode(path))

    def lookup(self, request: Request, parent: Inode, name: str) -> Entry:
        inode = self.inode(parent.path / name)
        return Entry(inode, self.getattr(request, inode, None))

    def getattr(self, request: Request, node: Inode, handle: File | None) -> Attr:
        return Attr.from_stat(os.stat(node.path))

    def open(self, request: Request, node: Inode, flags: int) -> Open:
        return self.opened(node, "r+")

    def opened(self, node: Inode, mode: str) -> Open:
        fd = os.open(node.path, os.O_RDWR if mode == "r+" else os.O_RDONLY)
        if not node.path.name.startswith("backed"):
            return Open(File(fd))
        copy = Open(backing=os.dup(fd))
        os.close(fd)
        return copy

    def read(self, request: Request, node: Inode, handle: File, offset: int, size: int) -> bytes:
        return os.pread(handle.fd, size, offset)

    def release(self, request: Request, node: Inode, handle: File) -> None:
        os.close(handle.fd)

    def readdir(self, request: Request, node: Inode, handle: Any) -> list[DirEntry]:
        return [DirEntry(name) for name in os.listdir(node.path)]

    def save_node(self, node: Inode) -> str | None:
        return None if node.path.name == "odd" else os.fspath(node.path.relative_to(self.root.path))

    def restore_node(self, saved: Any) -> Inode:
        return self.inode(self.root.path / saved)

    def save_handle(self, node: Inode, handle: File | None) -> bytes:
        return b"r+"

    def restore_handle(self, node: Inode, saved: Any) -> Open:
        if saved != b"r+":
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        return self.opened(node, saved.decode())
