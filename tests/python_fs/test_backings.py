"""Opens that answer a descriptor: the data never come to Python."""

import errno
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.errnos import fails
from tests.python_fs.conftest import eventually
from tests.python_fs.tree import Inode, Tree
from virtiofs import Attr, Entry, Node, Open, Passthrough, Request
from virtiofs.testing import Guest


class Backed(Tree):
    """A tree whose files are memfds."""

    def __init__(self) -> None:
        super().__init__()
        self.files: dict[Inode, int] = {}

    def file(self, node: Inode) -> int:
        if node not in self.files:
            self.files[node] = os.memfd_create("backing")
        return self.files[node]

    def getattr(self, request: Request, node: Inode, handle: Any) -> Attr:
        attr = super().getattr(request, node, handle)
        return attr.replace(size=os.fstat(self.file(node)).st_size) if attr.is_file else attr

    def open(self, request: Request, node: Inode, flags: int) -> Open:
        self.note(request)
        return Open("handle", backing=self.file(node))

    def create(self, request: Request, parent: Inode, name: str, flags: int, mode: int) -> tuple[Entry, Open]:
        entry = self.made(request, parent, name, stat.S_IFREG | mode)
        return entry, Open(backing=self.file(entry.node))


@pytest.fixture
def backed() -> Iterator[Backed]:
    fs = Backed()
    yield fs
    for fd in fs.files.values():
        os.close(fd)


def test_data_stay_native(backed: Backed) -> None:
    data = os.urandom(3 << 20)
    with Guest(backed) as guest:
        guest.write_file("file", data)
        assert guest.read_file("file") == data
        with guest.open("file", os.O_RDWR) as file, guest.open("copy", os.O_RDWR | os.O_CREAT) as copy:
            file.allocate(len(data), 4096)
            file.sync()
            assert file.seek(0, os.SEEK_HOLE) > 0
            assert file.copy_to(0, copy, 0, 100) == 100
            assert copy.read_at(0, 200) == data[:100]
        assert guest.stat("file").size == len(data) + 4096
        assert os.pread(backed.file(backed.root.names["file"]), 10, 0) == data[:10]
    assert not {"read", "write", "fallocate", "lseek", "copy_file_range_64"} & set(backed.calls)
    assert {"open", "create", "flush", "release", "fsync"} <= set(backed.calls), "whoever wants to know is told"
    assert backed.closed == [None, "handle", None, "handle"]


def test_a_class_that_only_opens(tmp_path: Path) -> None:
    """What it lacks is native for backings."""
    from virtiofs import DirEntry, FileSystem

    (tmp_path / "data").write_bytes(b"on the host")

    class One(FileSystem):
        def lookup(self, request: Request, parent: object, name: str) -> Entry | None:
            return Entry("data", self.getattr(request, "data", None)) if name == "data" else None

        def getattr(self, request: Request, node: object, handle: Any) -> Attr:
            if node == "data":
                return Attr.from_stat((tmp_path / "data").stat())
            return Attr(stat.S_IFDIR | 0o755)

        def readdir(self, request: Request, node: object, handle: Any) -> list[DirEntry | str]:
            return ["data"]

        def open(self, request: Request, node: object, flags: int) -> Open:
            with open(tmp_path / "data", "r+b") as file:
                return Open(backing=file)

    with Guest(One()) as guest:
        before = len(os.listdir("/proc/self/fd"))
        with guest.open("data", os.O_RDWR) as file:
            assert file.read() == b"on the host"
            file.write_at(0, b"On")
            file.sync()
        assert guest.listdir() == ["data"]
        # The handler has closed its descriptor, and the server the duplicate.
        eventually(lambda: len(os.listdir("/proc/self/fd")) == before)
    assert (tmp_path / "data").read_bytes() == b"On the host"


def test_a_share_with_other_files(share: Path, tmp_path: Path) -> None:
    """An open of a host directory answers another file than the one that is there."""
    (tmp_path / "other").write_bytes(b"something else")

    class Redacted(Passthrough):
        def open(self, request: Request, node: Node, flags: int) -> Open:
            if node.path.name == "hello":
                with open(tmp_path / "other", "rb") as file:
                    return Open(backing=file)
            return super().open(request, node, flags)

    with Guest(Redacted(share)) as guest:
        with guest.open("hello") as file:
            assert file.read_at(0, 100) == b"something else"
            assert file.stat().size == 20, "attributes are still those of the node"
        assert guest.read_file("sub/deep") == b"deep"


def test_a_descriptor_that_is_none(tree: Tree, caplog: pytest.LogCaptureFixture) -> None:
    tree.root.names["file"] = Inode(Attr(stat.S_IFREG | 0o600))
    tree.open = lambda request, node, flags: Open(backing=9999)  # type: ignore[method-assign]
    with Guest(tree) as guest, fails(errno.EIO):
        guest.open("file")
    assert "Tree.open must return an open descriptor as backing, not 9999" in caplog.text


def test_sessions_leave_no_descriptors(backed: Backed) -> None:
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(3):
        with Guest(backed) as guest:
            guest.write_file("file", b"1")
            left = guest.client.open(guest.node("file"), os.O_RDWR)
            assert left.handle
        backed.root.names.clear()
        del guest
    eventually(lambda: len(os.listdir("/proc/self/fd")) <= before + len(backed.files))
