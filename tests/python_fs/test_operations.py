"""Every operation of a Python file system, asked by a guest."""

import errno
import fcntl
import gc
import os
import stat
import struct
import weakref

import pytest

from tests.errnos import fails
from tests.python_fs.conftest import eventually
from tests.python_fs.tree import Inode, Tree
from virtiofs import Attr, Open
from virtiofs.operations import OPERATIONS
from virtiofs.testing import Guest

ROOT = 1


def test_names(guest: Guest, tree: Tree) -> None:
    guest.mkdir("dir", 0o750)
    guest.write_file("dir/file", b"content")
    guest.symlink("dir/file", "link")
    assert guest.readlink("link") == "dir/file"
    assert guest.read_file("link") == b"content"
    guest.link("dir/file", "hard")
    assert guest.stat("hard").ino == guest.stat("dir/file").ino
    assert guest.stat("hard").nlink == 2
    guest.rename("hard", "dir/moved")
    assert sorted(guest.listdir("dir")) == ["file", "moved"]
    guest.mknod("fifo", stat.S_IFIFO | 0o600)
    assert stat.S_ISFIFO(guest.stat("fifo").mode)
    guest.unlink("dir/moved")
    with fails(errno.ENOTEMPTY):
        guest.rmdir("dir")
    guest.unlink("dir/file")
    guest.rmdir("dir")
    assert sorted(tree.root.names) == ["fifo", "link"]
    with fails(errno.EINVAL):
        guest.rename("fifo", "other", 1)


@pytest.mark.parametrize("name", ["x" * 255, "two words", "ä☃", "\udcff\udcfe", "new\nline"])
def test_names_of_all_kinds(guest: Guest, tree: Tree, name: str) -> None:
    guest.write_file(name, b"1")
    assert list(tree.root.names) == [name]
    assert guest.listdir() == [name]
    assert [entry.name for entry in guest.scandir()] == [name]


def test_attributes(guest: Guest, tree: Tree) -> None:
    guest.write_file("file", b"0123456789")
    guest.chmod("file", 0o604)
    guest.chown("file", 11, 12)
    guest.truncate("file", 4)
    guest.utime("file", -5, 7_000_000_001)
    found = guest.stat("file")
    assert (found.mode, found.uid, found.gid, found.size) == (stat.S_IFREG | 0o604, 11, 12, 4)
    assert (found.atime_ns, found.mtime_ns) == (-5, 7_000_000_001)
    assert bytes(tree.root.names["file"].data) == b"0123"
    assert found.ctime_ns > 1_600_000_000 * 10**9


def test_ownership_is_the_callers(tree: Tree) -> None:
    with Guest(tree, uid=1234, gid=56) as guest:
        guest.mkdir("mine")
        assert (guest.stat("mine").uid, guest.stat("mine").gid) == (1234, 56)


def test_data(guest: Guest, tree: Tree) -> None:
    data = os.urandom(3 << 20)
    guest.write_file("file", data)
    assert tree.root.names["file"].data == data
    assert guest.read_file("file") == data
    with guest.open("file", os.O_RDWR) as file:
        assert file.read_at(len(data) - 3, 100) == data[-3:]
        assert file.read_at(len(data) + 3, 100) == b""
        file.write_at(5, b"hello")
        file.sync()
        file.allocate(len(data), 10)
        assert file.seek(3, os.SEEK_HOLE) == len(data) + 10
        with fails(errno.ENXIO):
            file.seek(1 << 40, os.SEEK_DATA)
        with guest.open("copy", os.O_RDWR | os.O_CREAT) as copy:
            assert file.copy_to(5, copy, 0, 5) == 5
            assert copy.read_at(0, 100) == b"hello"


def test_handles_come_back_and_are_closed_once(guest: Guest, tree: Tree) -> None:
    guest.write_file("file", b"1")
    assert [handle[0] for handle in tree.closed] == ["created"]
    with guest.open("file", os.O_RDONLY):
        pass
    assert tree.closed[1][0] == "handle"
    guest.listdir()
    assert [handle[0] for handle in tree.closed] == ["created", "handle", "directory"]


def test_listing_is_whole_whatever_the_pieces(guest: Guest, tree: Tree) -> None:
    names = {f"name-{number}": Inode(Attr(stat.S_IFREG | 0o600)) for number in range(500)}
    tree.root.names.update(names)
    client = guest.client
    for plus in (False, True):
        directory = client.opendir(ROOT)
        seen, offset = [], 0
        while listed := client.readdir(ROOT, directory.handle, offset, 400, plus=plus):
            seen += [entry.name for entry in listed]
            offset = listed[-1].cookie
        client.releasedir(ROOT, directory.handle)
        assert seen == [".", "..", *names]
    assert tree.calls.count("readdir") == tree.calls.count("readdirplus") == 1


def test_a_listing_stands_still_while_names_go(guest: Guest, tree: Tree) -> None:
    tree.root.names.update({f"{number:03}": Inode(Attr(stat.S_IFREG | 0o600)) for number in range(100)})
    client = guest.client
    directory = client.opendir(ROOT)
    first = client.readdir(ROOT, directory.handle, 0, 1000)
    tree.root.names.clear()
    rest = client.readdir(ROOT, directory.handle, first[-1].cookie, 1 << 16)
    assert [entry.name for entry in first + rest][2:] == [f"{number:03}" for number in range(100)]
    assert [entry.name for entry in client.readdir(ROOT, directory.handle, 0)] == [".", ".."], (
        "from the start it is new"
    )
    client.releasedir(ROOT, directory.handle)


def test_extended_attributes(guest: Guest, tree: Tree) -> None:
    guest.write_file("file", b"")
    guest.setxattr("file", "user.colour", b"blue")
    guest.setxattr("file", "user.size", bytes(1000))
    assert guest.getxattr("file", "user.colour") == b"blue"
    assert guest.listxattr("file") == ["user.colour", "user.size"]
    with fails(errno.ERANGE):
        guest.client.getxattr(guest.node("file"), "user.size", 10)
    guest.removexattr("file", "user.colour")
    with fails(errno.ENODATA):
        guest.getxattr("file", "user.colour")


def test_the_whole(guest: Guest) -> None:
    found = guest.statfs()
    assert (found.blocks, found.bfree, found.bavail, found.bsize, found.namelen) == (1000, 250, 250, 4096, 255)
    guest.sync()


def raw(guest: Guest, opcode: int, node: int, body: bytes, room: int = 0) -> bytes:
    """Asks for an operation that the guest has no word for, and returns the reply behind its header."""
    _, reply = guest.client.raw(opcode, node, body, room=16 + room)
    error = -struct.unpack_from("<i", reply, 4)[0]
    if error:
        raise OSError(error, os.strerror(error))
    return reply[16:]


def test_birth_times(guest: Guest, tree: Tree) -> None:
    guest.write_file("file", b"123")
    reply = raw(guest, 52, guest.node("file"), struct.pack("<IIQII", 0, 0, 0, 0, 0xFFF), 288)
    mask, _, _, _, _, _, mode = struct.unpack_from("<IIQIIIH", reply, 32)
    size = struct.unpack_from("<Q", reply, 32 + 40)[0]
    seconds, nanoseconds = struct.unpack_from("<qI", reply, 32 + 80)
    assert (mask, mode, size) == (0xFFF, stat.S_IFREG | 0o644, 3)
    assert (seconds, nanoseconds) == (1, 234_567_890)


def test_ioctl(guest: Guest) -> None:
    guest.write_file("file", b"")
    with guest.open("file") as file:
        reply = raw(guest, 39, file.node, struct.pack("<QIIQII", file.handle, 0, 0xC0046600, 0, 4, 4) + b"abcd", 20)
    assert struct.unpack_from("<i", reply)[0] == 7
    assert reply[16:] == b"dcba"


def test_locks(guest: Guest, tree: Tree) -> None:
    guest.write_file("file", b"")

    def lock(opcode: int, owner: int, kind: int, room: int = 0) -> bytes:
        body = struct.pack("<QQQQIIII", file.handle, owner, 0, 99, kind, 1, 0, 0)
        return raw(guest, opcode, file.node, body, room)

    with guest.open("file") as file:
        lock(32, 1, fcntl.F_WRLCK)
        with fails(errno.EAGAIN):
            lock(32, 2, fcntl.F_WRLCK)
        start, end, kind, _ = struct.unpack("<QQII", lock(31, 2, fcntl.F_WRLCK, 24))
        assert (start, end, kind) == (0, 99, fcntl.F_WRLCK)
        lock(32, 1, fcntl.F_UNLCK)
        assert struct.unpack("<QQII", lock(31, 2, fcntl.F_WRLCK, 24))[2] == fcntl.F_UNLCK
        lock(33, 2, fcntl.F_WRLCK)
    assert len(tree.root.names["file"].locks) == 1


def test_files_without_a_name(guest: Guest, tree: Tree) -> None:
    reply = raw(guest, 51, ROOT, struct.pack("<IIII", os.O_RDWR, 0o600, 0, 0) + b"\0", 144)
    node, handle = struct.unpack_from("<Q", reply)[0], struct.unpack_from("<Q", reply, 128)[0]
    assert guest.client.write(node, handle, 0, b"nameless") == 8
    assert guest.client.link(node, ROOT, "named").node == node
    guest.client.release(node, handle)
    assert bytes(tree.root.names["named"].data) == b"nameless"


def test_access(guest: Guest) -> None:
    raw(guest, 34, ROOT, struct.pack("<II", os.R_OK, 0))
    with fails(errno.EACCES):
        raw(guest, 34, ROOT, struct.pack("<II", os.X_OK, 0))


def test_all_operations_are_tested_here(guest: Guest, tree: Tree) -> None:
    """The tests above, once more on one tree, leave none out."""
    for test in (test_names, test_attributes, test_data, test_extended_attributes, test_locks):
        tree.root.names.clear()
        guest.drop_caches()
        test(guest, tree)
    tree.root.names.clear()
    guest.drop_caches()
    test_birth_times(guest, tree)
    test_ioctl(guest)
    test_files_without_a_name(guest, tree)
    test_the_whole(guest)
    raw(guest, 34, ROOT, struct.pack("<II", os.R_OK, 0))
    guest.scandir()
    directory = guest.client.opendir(ROOT)
    guest.client.readdir(ROOT, directory.handle)
    raw(guest, 30, ROOT, struct.pack("<QII", directory.handle, 0, 0))
    guest.client.releasedir(ROOT, directory.handle)
    asked = {{"rename2": "rename", "copy_file_range_64": "copy_file_range"}.get(name, name) for name in tree.calls}
    assert asked | {"forget"} == set(OPERATIONS)


def test_the_same_object_comes_back_and_goes_when_it_is_forgotten(guest: Guest, tree: Tree) -> None:
    guest.write_file("file", b"1")
    node = guest.node("file")
    guest.rename("file", "other")
    assert guest.client.lookup(ROOT, "other").node == node
    guest.client.forget(node, 1)
    lost = weakref.ref(tree.root.names.pop("other"))
    assert lost() is not None
    guest.drop_caches()
    eventually(lambda: len(tree.forgotten) == 1)
    assert tree.forgotten.pop() is lost()
    gc.collect()
    assert lost() is None, "nobody holds the object any more"
    with fails(errno.ESTALE):
        guest.client.getattr(node)


def test_strings_and_numbers_are_one_node_if_they_are_equal(guest: Guest, tree: Tree) -> None:
    from virtiofs import Entry, FileSystem, Request

    class Numbers(FileSystem):
        def lookup(self, request: Request, parent: object, name: str) -> Entry:
            node = int(name) if name.isdecimal() else name.lower()
            return Entry(node, self.getattr(request, node, None))

        def getattr(self, request: Request, node: object, handle: object) -> Attr:
            kind = stat.S_IFDIR if node is self else stat.S_IFREG
            return Attr(kind | 0o700, size=node if isinstance(node, int) else 0)

    with Guest(Numbers()) as guest:
        first = guest.client.lookup(ROOT, "1000000")
        assert guest.client.lookup(ROOT, "01000000").node == first.node
        assert guest.client.lookup(ROOT, "Name").node == guest.client.lookup(ROOT, "name").node != first.node
        assert guest.client.getattr(first.node).size == 1_000_000


def test_sessions_begin_and_end(tree: Tree) -> None:
    for _ in range(2):
        with Guest(tree) as guest:
            guest.write_file("file", b"1")
            handle = guest.open("file")
            assert tree.sessions[-1] == "begin"
            del handle
        eventually(lambda: tree.sessions[-1] == "end")
        tree.root.names.clear()
    assert tree.sessions.count("begin") == 2


def test_what_a_class_lacks() -> None:
    """A guest falls back where there is a way, and is told so where there is none."""
    from virtiofs import FileSystem, Request

    class Bare(FileSystem):
        def getattr(self, request: Request, node: object, handle: object) -> Attr:
            return Attr(stat.S_IFDIR | 0o755)

    with Guest(Bare()) as guest:
        assert guest.stat().is_dir
        assert not guest.exists("anything")
        with fails(errno.EPERM):
            guest.mkdir("dir")
        with fails(errno.ENOTDIR):
            guest.listdir()
        with fails(errno.ENOSYS):
            guest.client.create(ROOT, "file", os.O_RDWR)
        with fails(errno.ENOSYS):
            guest.client.getxattr(ROOT, "user.x")
        assert guest.statfs().namelen == 255
        opened = guest.client.open(ROOT, os.O_RDONLY)
        guest.client.release(ROOT, opened.handle)


def test_read_only(tree: Tree) -> None:
    tree.read_only = True
    tree.root.names["file"] = Inode(Attr(stat.S_IFREG | 0o666))
    with Guest(tree) as guest:
        assert guest.read_file("file") == b""
        with fails(errno.EROFS):
            guest.mkdir("dir")
        with fails(errno.EROFS):
            guest.chmod("file", 0)
    assert not {"mkdir", "setattr"} & set(tree.calls)


def test_values() -> None:
    attr = Attr(stat.S_IFREG | 0o640, size=1000)
    assert (attr.blocks, attr.permissions, attr.nlink) == (2, 0o640, 1)
    assert attr.replace(size=4096).blocks == 8
    assert attr.replace(size=1, blocks=64).blocks == 64
    with pytest.raises(TypeError, match="colour"):
        attr.replace(colour=1)
    there = os.stat("/")
    copied = Attr.from_stat(there)
    assert (copied.ino, copied.mode, copied.mtime_ns) == (there.st_ino, there.st_mode, there.st_mtime_ns)
    assert Open("x", keep_cache=True).flags == 2
    assert Open("x") == Open("x") != Open("y")
