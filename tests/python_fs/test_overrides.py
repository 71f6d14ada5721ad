"""A host directory some of whose operations are Python's."""

import errno
import gc
import os
from pathlib import Path
from typing import Any

import pytest

from tests.errnos import fails
from tests.python_fs.conftest import eventually
from virtiofs import (
    Attr,
    Changes,
    ConfigError,
    DirEntry,
    Entry,
    FileSystem,
    Node,
    Open,
    Passthrough,
    Request,
    Server,
    _core,
    explain,
)
from virtiofs.memory import MemoryFS
from virtiofs.operations import OPERATIONS
from virtiofs.testing import Guest

ROOT = 1


def test_a_subclass_without_overrides_is_the_native_one(share: Path) -> None:
    class Same(Passthrough):
        """Nothing."""

    assert explain(Same).is_native
    assert type(Same(share).engine()) is type(Passthrough(share).engine()) is _core.HostDir
    assert Same(share).init_flags == Passthrough(share).init_flags


def test_an_override_is_asked_and_has_the_native_one(share: Path) -> None:
    class Shouting(Passthrough):
        asked: list[str] = []

        def lookup(self, request: Request, parent: Node, name: str) -> Entry | None:
            self.asked.append(name)
            if name == "secret":
                return None
            return super().lookup(request, parent, name.lower())

    (share / "secret").write_text("hidden")
    with Guest(Shouting(share)) as guest:
        assert guest.read_file("HELLO") == b"hello from the host\n"
        assert not guest.exists("secret")
        with fails(errno.ENOENT):
            guest.read_file("sub/none")
        assert guest.read_file("sub/deep") == b"deep"
        assert guest.stat("Hello").ino == (share / "hello").stat().st_ino
        guest.write_file("new", b"native all the way")
        assert guest.server is not None
        requests = guest.server.stats().requests
    assert (share / "new").read_bytes() == b"native all the way"
    assert "READDIRPLUS" not in requests
    assert "secret" in Shouting.asked


def test_mixins(share: Path) -> None:
    class Counting:
        opened = 0

        def open(self, request: Request, node: Node, flags: int) -> Any:
            type(self).opened += 1
            return super().open(request, node, flags)  # type: ignore[misc]

    class Refusing:
        def open(self, request: Request, node: Node, flags: int) -> Any:
            if node.path.name == "hello":
                raise PermissionError
            return super().open(request, node, flags)  # type: ignore[misc]

    class Both(Counting, Refusing, Passthrough):
        """Nothing of its own."""

    with Guest(Both(share)) as guest:
        with fails(errno.EACCES):
            guest.read_file("hello")
        assert guest.read_file("sub/deep") == b"deep"
        guest.write_file("made", b"by mknod and open")
    assert Both.opened == 3
    assert (share / "made").read_bytes() == b"by mknod and open"


class Everything(Passthrough):
    """Each operation is Python's, and does what the native one does."""


def _through(name: str) -> Any:
    def method(self: Any, *arguments: Any) -> Any:
        self.asked.add(name)
        return getattr(super(Everything, self), name)(*arguments)

    return method


for _name in OPERATIONS:
    setattr(Everything, _name, _through(_name))


def test_everything_through_python(share: Path) -> None:
    fs = Everything(share, xattr=True)
    fs.asked = set()  # type: ignore[attr-defined]
    data = os.urandom(2 << 20)
    with Guest(fs) as guest:
        guest.makedirs("a/b")
        guest.write_file("a/b/file", data)
        assert guest.read_file("a/b/file") == data
        assert (share / "a/b/file").read_bytes() == data
        guest.symlink("b/file", "a/link")
        assert guest.read_file("a/link") == data
        guest.link("a/b/file", "hard")
        assert guest.stat("hard").nlink == 2
        guest.chmod("hard", 0o604)
        guest.utime("hard", 1, 2)
        guest.truncate("hard", 5)
        assert (share / "hard").stat().st_mtime_ns > 2
        assert (share / "hard").read_bytes() == data[:5]
        guest.rename("hard", "a/moved")
        assert sorted(guest.listdir("a")) == ["b", "link", "moved"]
        assert {entry.name: entry.entry is not None for entry in guest.scandir("a")}.keys() == {"b", "link", "moved"}
        guest.setxattr("a/moved", "user.x", b"value")
        assert guest.getxattr("a/moved", "user.x") == b"value"
        assert "user.x" in guest.listxattr("a/moved")
        guest.removexattr("a/moved", "user.x")
        assert guest.statfs().blocks == os.statvfs(share).f_blocks
        guest.sync()
        with guest.open("a/moved", os.O_RDWR) as file:
            file.allocate(0, 8192)
            file.write_at(4096, b"x")
            file.sync()
            assert file.seek(0, os.SEEK_DATA) == 0
            with guest.open("copy", os.O_RDWR | os.O_CREAT) as copy:
                assert file.copy_to(0, copy, 0, 5) == 5
        guest.unlink("copy")
        guest.remove_tree("a")
        assert sorted(os.listdir(share)) == ["hello", "sub"]
        with fails(errno.ENOENT):
            guest.unlink("none")
        guest.drop_caches()
        server = guest.server
        assert server is not None
        gc.collect()
        eventually(lambda: server.stats().nodes == 1)
        assert server.stats().handles == 0
    assert fs.asked >= set(OPERATIONS) - {  # type: ignore[attr-defined]
        "tmpfile", "ioctl", "getlk", "setlk", "setlkw", "fsyncdir", "access", "statx", "mknod",
    }  # fmt: skip


def test_nodes(share: Path) -> None:
    class Keeping(Passthrough):
        kept: list[Entry] = []
        gone: list[Node] = []

        def lookup(self, request: Request, parent: Node, name: str) -> Entry | None:
            entry = super().lookup(request, parent, name)
            if entry is not None:
                self.kept.append(entry)
            return entry

        def forget(self, node: Node) -> None:
            self.gone.append(node)

    with Guest(Keeping(share)) as guest:
        guest.stat("sub/deep")
        nodes = [entry.node for entry in Keeping.kept]
        assert [node.path for node in nodes] == [share / "sub", share / "sub/deep"]
        descriptor = nodes[0].descriptor()
        assert os.fstat(descriptor).st_ino == (share / "sub").stat().st_ino
        os.close(descriptor)
        again = guest.client.lookup(ROOT, "sub")
        assert Keeping.kept[-1].node == nodes[0] != nodes[1]
        assert len({entry.node for entry in Keeping.kept}) == 2
        guest.client.forget(again.node, 1)
        guest.drop_caches()
        assert nodes[0].path == share / "sub", "the object holds it"
        assert not Keeping.gone
        Keeping.kept.clear()
        del nodes
        assert guest.stat("sub/deep").size == 4


def test_changed_answers(share: Path) -> None:
    class Larger(Passthrough):
        def getattr(self, request: Request, node: Node, handle: Any) -> Attr:
            return super().getattr(request, node, handle).replace(uid=4711)

        def setattr(self, request: Request, node: Node, handle: Any, changes: Changes) -> Attr:
            if changes.mode is not None:
                raise PermissionError
            return super().setattr(request, node, handle, changes)

        def readdir(self, request: Request, node: Node, handle: Any) -> list[DirEntry]:
            return [*super().readdir(request, node, handle), DirEntry("extra")]

    with Guest(Larger(share)) as guest:
        assert guest.stat("hello").uid == 4711
        assert sorted(guest.listdir()) == ["extra", "hello", "sub"]
        with fails(errno.EACCES):
            guest.chmod("hello", 0)
        guest.truncate("hello", 3)
    assert (share / "hello").read_bytes() == b"hel"


def test_explain(share: Path) -> None:
    class Opening(Passthrough):
        async def open(self, request: Request, node: Node, flags: int) -> Open:  # type: ignore[override]
            return super().open(request, node, flags)

    plan = explain(Opening)
    text = str(plan)
    assert "Opening: 1 operations in Python" in text
    assert [route.operation for route in plan.by("Python")] == ["open"]
    assert "create, tmpfile: Python has open; the guest makes files by mknod and open" in text
    assert "ATOMIC_O_TRUNC" in text
    assert "ENOSYS: Python has open" in text
    assert not Opening(share).init_flags & _core.INIT["ATOMIC_O_TRUNC"]
    assert "READDIRPLUS" not in text


@pytest.mark.parametrize(
    ("operation", "lacking", "refused"),
    [
        ("lookup", {"readdirplus"}, {"DO_READDIRPLUS", "READDIRPLUS_AUTO"}),
        ("readdir", {"readdirplus"}, {"DO_READDIRPLUS", "READDIRPLUS_AUTO", "NO_OPENDIR_SUPPORT"}),
        ("mknod", {"create", "tmpfile"}, {"ATOMIC_O_TRUNC"}),
        ("getattr", {"statx"}, {"NO_OPEN_SUPPORT"}),
        ("read", {"copy_file_range"}, {"MAP_ALIGNMENT", "NO_OPEN_SUPPORT"}),
        ("write", {"copy_file_range"}, {"MAP_ALIGNMENT", "NO_OPEN_SUPPORT"}),
        ("setattr", set(), {"ATOMIC_O_TRUNC", "NO_OPEN_SUPPORT"}),
        ("mkdir", set(), set()),
    ],
)
def test_what_an_override_switches_off(share: Path, operation: str, lacking: set[str], refused: set[str]) -> None:
    kind = type("Kind", (Passthrough,), {operation: lambda self, *arguments: None})
    plan = explain(kind)
    assert {route.operation for route in plan.by("-")} - {"init", "destroy"} == lacking
    assert plan.refused == refused
    assert kind(share).init_flags == Passthrough(share).init_flags & ~sum(_core.INIT[name] for name in refused)
    # A method is told who asks.
    idmap = bool(kind(share, idmap=True).init_flags & _core.INIT["ALLOW_IDMAP"])
    assert idmap == (operation in ("mkdir", "mknod"))


def test_a_class_without_getattr_is_refused() -> None:
    class Nothing(FileSystem):
        """Nothing."""

    with pytest.raises(ConfigError, match="Nothing has no getattr"):
        Nothing().engine()


def test_unknown_deadlines_are_refused(share: Path) -> None:
    class Hasty(Passthrough):
        deadlines = {"opne": 1.0}

        def unlink(self, request: Request, parent: Node, name: str) -> None:
            """Nothing."""

    with pytest.raises(ConfigError, match="opne"):
        Hasty(share).engine()


def test_files_are_mapped_where_data_are_native(share: Path) -> None:
    class Looks(Passthrough):
        def lookup(self, request: Request, parent: Node, name: str) -> Entry | None:
            return super().lookup(request, parent, name)

    class Reads(Passthrough):
        def read(self, request: Request, node: Node, handle: Any, offset: int, size: int) -> bytes:
            return b"mine"

    assert explain(Looks).maps_files
    assert not explain(Reads).maps_files
    assert not explain(MemoryFS).maps_files
    assert "MAP_ALIGNMENT: Python has read; the guest maps nothing (DAX)" in explain(Reads).off
    with Guest(Looks(share, dax="always"), dax=True) as guest:
        assert guest.read_file("hello") == (share / "hello").read_bytes()
    with pytest.raises(ConfigError, match="Reads has no files that guests could map"):
        Server(Reads(share), socket=share / "socket", dax_window="2M")
