"""A guest that does everything to get out of its share, with and without the sandbox, and sees and changes nothing outside."""

import errno
import os
import random
import stat
import struct
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest

import virtiofs
from tests.daemon import Start
from virtiofs.mountpoint import procfs_within
from virtiofs.testing import Guest

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")

ROOT = 1
SECRET = b"nobody's business\n"
OPCODES = range(1, 54)
"""All of the protocol but INIT (26) and DESTROY (38), which are left out below, and the commands of CUSE and DAX mappings."""


class Outside:
    """A directory beside the share; at the end it is as it was."""

    def __init__(self, path: Path) -> None:
        self.path = path
        path.mkdir()
        self.secret = path / "secret"
        self.secret.write_bytes(SECRET)
        (path / "directory").mkdir()
        self._before = self._seen()

    def _seen(self) -> list[tuple[object, ...]]:
        found = [self.path, *sorted(self.path.rglob("*"))]
        return [(path, (s := path.lstat()).st_mode, s.st_uid, s.st_size, s.st_nlink, s.st_mtime_ns) for path in found]

    def is_untouched(self) -> bool:
        return self._seen() == self._before and self.secret.read_bytes() == SECRET


@pytest.fixture
def outside(tmp_path: Path) -> Iterator[Outside]:
    outside = Outside(tmp_path / "outside")
    yield outside
    assert outside.is_untouched()


@pytest.fixture(params=["namespace", "none"])
def guest(request: pytest.FixtureRequest, start: Start, share: Path, tmp_path: Path) -> Iterator[Guest]:
    daemon = start(share, "--socket", tmp_path / "s", "--sandbox", request.param, "--cache=none", "--xattr")
    with Guest(tmp_path / "s") as guest:
        yield guest
        guest.stat()  # the server is well
    assert "panicked" not in daemon.log()


def number(call: Callable[..., object], *arguments: object, **keywords: object) -> int:
    """The errno of a call that fails."""
    with pytest.raises(OSError) as caught:
        call(*arguments, **keywords)
    assert caught.value.errno is not None
    return caught.value.errno


def error(reply: bytes) -> int:
    """The errno of a reply, 0 if there is none."""
    return -int(struct.unpack_from("<i", reply, 4)[0])


@pytest.mark.parametrize(
    "name", [b"..", b".", b"", b"/", b"../outside", b"sub/../..", b"/etc/passwd", b"sub/deep", b"a\0b/.."]
)
def test_names_are_single_components(guest: Guest, outside: Outside, name: bytes) -> None:
    client = guest.client
    sub = guest.node("sub")
    requests = [
        (1, name + b"\0"),  # LOOKUP
        (6, name + b"\0target\0"),  # SYMLINK
        (8, struct.pack("<IIII", stat.S_IFREG | 0o666, 0, 0, 0) + name + b"\0"),  # MKNOD
        (9, struct.pack("<II", 0o777, 0) + name + b"\0"),  # MKDIR
        (10, name + b"\0"),  # UNLINK
        (11, name + b"\0"),  # RMDIR
        (12, struct.pack("<Q", ROOT) + name + b"\0moved\0"),  # RENAME
        (12, struct.pack("<Q", ROOT) + b"deep\0" + name + b"\0"),
        (13, struct.pack("<Q", guest.node("hello")) + name + b"\0"),  # LINK
        (35, struct.pack("<IIII", os.O_RDWR | os.O_CREAT, 0o666, 0, 0) + name + b"\0"),  # CREATE
        (45, struct.pack("<QII", ROOT, 0, 0) + name + b"\0moved\0"),  # RENAME2
    ]
    if b"\0" in name:
        # The name ends at its first NUL; what is behind it is another argument, or nothing.
        requests = requests[:1]
    for opcode, body in requests:
        _, reply = client.raw(opcode, sub, body, room=256)
        assert error(reply) in (errno.EINVAL, errno.ENOENT), (opcode, name)
    assert guest.listdir("sub") == ["deep"]
    assert sorted(guest.listdir()) == ["hello", "sub"]


def test_symlinks_are_never_followed(guest: Guest, outside: Outside, share: Path) -> None:
    client = guest.client
    for name, target in (
        ("file", outside.secret),
        ("dir", outside.path),
        ("up", Path("../outside")),
        # The server has these open, or stands there: as its own calls by way of /proc/self/fd would follow them.
        ("root", Path("/proc/self/root")),
        ("cwd", Path("/proc/thread-self/cwd")),
        ("fd", Path("/proc/self/fd/3")),
        ("program", Path("/proc/self/exe")),
    ):
        guest.symlink(target, name)
        node = client.lookup(ROOT, name).node
        assert number(client.lookup, node, "secret") == errno.ENOTDIR
        assert number(client.create, node, "new", os.O_RDWR) == errno.ENOTDIR
        assert number(client.opendir, node) == errno.ENOTDIR
        for flags in (os.O_RDONLY, os.O_RDWR, os.O_WRONLY | os.O_TRUNC, os.O_PATH, os.O_RDONLY | os.O_DIRECTORY):
            assert number(client.open, node, flags) in (errno.ELOOP, errno.ENOTDIR)
        with suppress(OSError):
            client.setattr(node, mode=0o777)
        with suppress(OSError):
            client.setattr(node, uid=12345, mtime_ns=1)
        assert number(client.setattr, node, size=0) in (errno.EINVAL, errno.ELOOP, errno.EBADF)
        with suppress(OSError):
            client.setxattr(node, "user.escape", b"1")
        client.link(node, ROOT, name + "-linked")
        assert (share / f"{name}-linked").is_symlink()
    assert os.listxattr(outside.secret) == []


def test_a_path_that_changes_under_the_walk(guest: Guest, outside: Outside, share: Path) -> None:
    """Directory, symlink to the outside and file take turns under one name, at the host's and at the guest's hands."""
    (share / "real").mkdir()
    (share / "real" / "secret").write_bytes(b"inside")
    (share / "link").symlink_to(outside.path)
    stop = threading.Event()

    def exchange() -> None:
        while not stop.is_set():
            os.rename(share / "real", share / "spare")
            os.rename(share / "link", share / "real")
            os.rename(share / "real", share / "link")
            os.rename(share / "spare", share / "real")

    thread = threading.Thread(target=exchange)
    thread.start()
    try:
        client, found = guest.client, 0
        for _ in range(3000):
            with suppress(OSError):
                top = client.lookup(ROOT, "real").node
                node = client.lookup(top, "secret").node
                handle = client.open(node, os.O_RDWR).handle
                assert client.read(node, handle, 0, 100) == b"inside"
                client.release(node, handle)
                found += 1
            with suppress(OSError):
                client.unlink(client.lookup(ROOT, "real").node, "directory")
            with suppress(OSError):
                client.mkdir(client.lookup(ROOT, "real").node, "made")
    finally:
        stop.set()
        thread.join()
    assert found > 0


def test_a_directory_that_is_moved_out_while_the_guest_is_in_it(guest: Guest, outside: Outside, share: Path) -> None:
    """The host may move what it likes: the guest keeps what it holds, if anything, and finds nothing beside it."""
    client = guest.client
    sub, deep = guest.node("sub"), guest.node("sub/deep")
    (share / "sub").rename(share.parent / "moved")
    try:
        for name in ("..", "../outside", "../outside/secret"):
            assert number(client.lookup, sub, name) == errno.EINVAL
        for name in ("outside", "share", "moved"):
            assert number(client.lookup, sub, name) == errno.ENOENT
        with suppress(PermissionError):  # of some kernels' Landlock
            handle = client.open(deep, os.O_RDONLY).handle
            assert client.read(deep, handle, 0, 100) == b"deep"
            client.release(deep, handle)
        with suppress(PermissionError):
            handle = client.opendir(sub).handle
            assert {entry.name for entry in client.readdir(sub, handle)} <= {".", "..", "deep"}
            client.releasedir(sub, handle)
    finally:
        (share.parent / "moved").rename(share / "sub")
    assert guest.read_file("sub/deep") == b"deep"


def test_parents_that_are_renamed_during_a_walk(outside: Outside, share: Path, start: Start, tmp_path: Path) -> None:
    """Directories move about, out of the share too, and trade places with symlinks, while a guest works in them."""
    deep = share / "a" / "b" / "c" / "d"
    deep.mkdir(parents=True)
    (deep / "inside").write_bytes(b"inside")
    (share / "link").symlink_to(outside.path)
    (beside := tmp_path / "beside").mkdir()
    (beside / "secret").write_bytes(SECRET)
    stop = threading.Event()

    # By descriptors: a path of the host's would lead through the symlinks.
    places = [os.open(path, os.O_PATH | os.O_DIRECTORY) for path in (share / "a", beside, share)]

    def by_the_host() -> None:
        while not stop.is_set():
            for place in range(3):
                os.rename("b", "b", src_dir_fd=places[place], dst_dir_fd=places[(place + 1) % 3])

    def by_another_guest() -> None:
        with Guest(tmp_path / "s2") as guest:
            while not stop.is_set():
                for old, new in (("a", "link"), ("a/b/c", "up"), ("up", "a/b/c"), ("link", "a")):
                    with suppress(OSError):
                        guest.rename(old, new, flags=2 if "link" in (old, new) else 0)  # RENAME_EXCHANGE

    start(share, "--socket", tmp_path / "s2", "--sandbox=none", "--cache=none")
    for sandbox in ("namespace", "none"):
        daemon = start(share, "--socket", tmp_path / "s", f"--sandbox={sandbox}", "--cache=none")
        stop.clear()
        threads = [threading.Thread(target=by_the_host), threading.Thread(target=by_another_guest)]
        with Guest(tmp_path / "s") as guest:
            for thread in threads:
                thread.start()
            try:
                _walks(guest, rounds=1500)
            finally:
                stop.set()
                for thread in threads:
                    thread.join()
            guest.stat()
        assert "panicked" not in daemon.log()
        assert daemon.end() == 0
    for place in places:
        os.close(place)
    # What was beside the share was neither found nor changed, and what was moved there came back.
    assert (beside / "secret").read_bytes() == SECRET
    assert os.listdir(beside) == ["secret"]


def _walks(guest: Guest, rounds: int) -> None:
    """Goes down by what LOOKUP says, tries to get up and aside from there, and makes and moves things where it is."""
    client, down, read = guest.client, 0, 0
    for count in range(rounds):
        node = ROOT
        for name in (("a", "b", "c", "d"), ("b", "c", "d"), ("link", "b", "c", "d"), ("up", "d"))[count % 4]:
            try:
                node = client.lookup(node, name).node
            except OSError:
                break
            down += 1
            assert number(client.lookup, node, "secret") in (errno.ENOENT, errno.ENOTDIR, errno.ESTALE, errno.EACCES)
            assert number(client.lookup, node, "..") == errno.EINVAL
            with suppress(OSError):
                handle = client.opendir(node).handle
                names = {entry.name for entry in client.readdir(node, handle, plus=True)}
                assert "secret" not in names
                client.releasedir(node, handle)
            for call, arguments in (
                (client.mkdir, (node, "made")),
                (client.rename, (node, "made", ROOT, "made")),
                (client.rename, (ROOT, "made", node, "made")),
                (client.rmdir, (node, "made")),
                (client.rmdir, (ROOT, "made")),
                (client.unlink, (node, "secret")),
            ):
                with suppress(OSError):
                    call(*arguments)
        with suppress(OSError):
            file = client.lookup(node, "inside").node
            handle = client.open(file, os.O_RDONLY).handle
            assert client.read(file, handle, 0, 100) == b"inside"
            client.release(file, handle)
            read += 1
    assert down > rounds // 10
    assert read > 0


def test_the_parent_of_the_share_is_not_told_of(guest: Guest, outside: Outside) -> None:
    """A listing has "." and "..", as all have, and no node for either."""
    client = guest.client
    for node in (ROOT, guest.node("sub")):
        handle = client.opendir(node).handle
        entries = {entry.name: entry for entry in client.readdir(node, handle, plus=True)}
        for name in (".", ".."):
            assert entries[name].entry is None, entries[name]
        client.releasedir(node, handle)


def test_magic_links(share: Path, outside: Outside, start: Start, tmp_path: Path) -> None:
    """A procfs below the share: its links lead to roots of processes, its files are their memory, and no guest gets there."""
    (share / "memory").touch()
    subprocess.run(["mount", "-t", "proc", "proc", share / "sub"], check=True)
    subprocess.run(["mount", "--bind", "/proc/self/mem", share / "memory"], check=True)
    try:
        for sandbox in ("namespace", "none"):
            daemon = start(share, "--socket", tmp_path / "s", f"--sandbox={sandbox}")
            with Guest(tmp_path / "s") as guest:
                client = guest.client
                for name in ("sub", "memory"):
                    assert number(client.lookup, ROOT, name) == errno.EACCES
                handle = client.opendir(ROOT).handle
                entries = {entry.name: entry for entry in client.readdir(ROOT, handle, plus=True)}
                assert entries["sub"].entry is None
                assert entries["memory"].entry is None
                client.releasedir(ROOT, handle)
            assert f"{share / 'sub'} is a procfs" in daemon.log()
            assert daemon.end() == 0
    finally:
        subprocess.run(["umount", share / "sub", share / "memory"], check=True)


def test_a_procfs_is_no_share(tmp_path: Path) -> None:
    (tmp_path / "bound").mkdir()
    subprocess.run(["mount", "--bind", "/proc/sys", tmp_path / "bound"], check=True)
    try:
        for directory in (Path("/proc/self"), tmp_path / "bound"):
            with pytest.raises(PermissionError, match="a procfs is not shared"):
                Guest(virtiofs.Passthrough(directory))
    finally:
        subprocess.run(["umount", tmp_path / "bound"], check=True)


@pytest.mark.parametrize("place", ["proc", "proc/sys/kernel", "sp ace/proc"])
def test_a_procfs_is_told_of_wherever_it_is(tmp_path: Path, place: str) -> None:
    """Not what a share should have: its files are of processes, among them the one that serves."""
    top = tmp_path / "sp ace"
    (top / "proc").mkdir(parents=True)
    (tmp_path / "proc").mkdir()
    point = top / "proc" if place.startswith("sp ace") else tmp_path / "proc"
    shared = top if place.startswith("sp ace") else tmp_path / place
    assert procfs_within(str(tmp_path)) is None
    subprocess.run(["mount", "-t", "proc", "proc", point], check=True)
    try:
        assert procfs_within(str(shared)) == str(point)
        assert procfs_within(str(tmp_path)) == str(point)
        assert procfs_within("/") is not None
        (tmp_path / "process").mkdir()
        assert procfs_within(str(tmp_path / "process")) is None
    finally:
        subprocess.run(["umount", point], check=True)


def test_a_bind_mount_is_not_a_way_back(share: Path, start: Start, tmp_path: Path) -> None:
    """What the host mounts into the share is shared; its parents are not, and nothing is moved across."""
    beside = tmp_path / "beside"
    (beside / "inner").mkdir(parents=True)
    (beside / "not shared").write_bytes(SECRET)
    subprocess.run(["mount", "--bind", beside / "inner", share / "sub"], check=True)
    try:
        for sandbox in ("namespace", "none"):
            daemon = start(share, "--socket", tmp_path / "s", f"--sandbox={sandbox}")
            with Guest(tmp_path / "s") as guest:
                node = guest.node("sub")
                assert number(guest.client.lookup, node, "..") == errno.EINVAL
                assert number(guest.client.rename, ROOT, "hello", node, "hello") == errno.EXDEV
                assert number(guest.client.link, guest.node("hello"), node, "hello") == errno.EXDEV
                guest.write_file("sub/f", b"")
            assert daemon.end() == 0
    finally:
        subprocess.run(["umount", share / "sub"], check=True)
    assert sorted(os.listdir(beside)) == ["inner", "not shared"]
    assert os.listdir(beside / "inner") == ["f"]


def test_hard_links_are_made_of_what_is_shared(guest: Guest, outside: Outside, share: Path) -> None:
    client = guest.client
    for node in (0, 2, 3, 12345, 1 << 63, (1 << 64) - 1):
        with suppress(OSError):
            client.link(node, ROOT, "stolen")
    guest.symlink(outside.secret, "link")
    client.link(client.lookup(ROOT, "link").node, ROOT, "linked")
    assert (share / "linked").is_symlink()
    assert outside.secret.stat().st_nlink == 1
    assert not (share / "stolen").exists() or (share / "stolen").stat().st_ino != outside.secret.stat().st_ino


def test_made_up_nodes_and_handles(guest: Guest, outside: Outside) -> None:
    """Whatever numbers a guest sends for nodes and handles, they mean what the server gave, or nothing."""
    client, made_up = guest.client, random.Random(1)
    given = {ROOT, *(guest.node(path) for path in ("hello", "sub", "sub/deep"))}
    numbers = [*range(2, 300), *(made_up.getrandbits(bits) for bits in (16, 32, 48, 63, 64) for _ in range(300))]
    for node in set(numbers) - given:
        assert number(client.getattr, node) in (errno.ESTALE, errno.ENOENT)
        assert number(client.lookup, node, "secret") in (errno.ESTALE, errno.ENOENT)
        assert number(client.open, node, os.O_RDONLY) in (errno.ESTALE, errno.ENOENT)
    file = guest.node("hello")
    handle = client.open(file, os.O_RDONLY).handle
    for other in set(numbers) - {handle}:
        assert number(client.read, file, other, 0, 1) == errno.EBADF
        assert number(client.write, file, other, 0, b"x") == errno.EBADF
    client.release(file, handle)


def test_devices_and_fifos_are_not_the_hosts(guest: Guest, share: Path) -> None:
    """A guest's device numbers are for the guest: opening one opens nothing of the host, and waits for nothing."""
    for name, mode, device in (
        ("memory", stat.S_IFCHR | 0o666, os.makedev(1, 1)),
        ("zero", stat.S_IFCHR | 0o666, os.makedev(1, 5)),
        ("disk", stat.S_IFBLK | 0o666, (share.stat().st_dev)),
        ("fifo", stat.S_IFIFO | 0o666, 0),
        ("socket", stat.S_IFSOCK | 0o666, 0),
    ):
        guest.mknod(name, mode, device)
        node = guest.node(name)
        for flags in (os.O_RDONLY, os.O_RDWR, os.O_WRONLY | os.O_NONBLOCK):
            number(guest.client.open, node, flags)
        number(guest.client.setattr, node, size=0)


def test_ioctls_are_those_of_files(guest: Guest) -> None:
    file = guest.node("hello")
    handle = guest.client.open(file, os.O_RDWR).handle
    for command in (0x5413, 0x541B, 0x1, 0x40049409, 0xC0184908, 0x801C581E, 0x00001277, 0xFFFFFFFF):
        body = struct.pack("<QIIQII", handle, 0, command, 0, 64, 64) + bytes(64)
        assert error(guest.client.raw(39, file, body, room=256)[1]) in (errno.ENOTTY, errno.EINVAL), hex(command)
    guest.client.release(file, handle)


def test_random_requests(guest: Guest, outside: Outside, share: Path) -> None:
    """Opcodes, nodes and bodies by chance, with bytes of real requests among them; then the share is still served."""
    chance = random.Random(9)
    client = guest.client
    nodes = [guest.node(path) for path in ("", "hello", "sub", "sub/deep")]
    words = [
        b"..\0",
        b"../outside\0",
        b"secret\0",
        b"hello\0",
        b"sub\0",
        b"\0",
        struct.pack("<Q", 1),
        bytes(16),
        b"\xff" * 8,
    ]
    for _ in range(4000):
        opcode = chance.choice([number for number in OPCODES if number not in (26, 38)])
        node = chance.choice([*nodes, chance.getrandbits(64), 0])
        body = b"".join(
            chance.choice([*words, chance.randbytes(chance.randrange(24))]) for _ in range(chance.randrange(6))
        )
        client.raw(opcode, node, body, room=chance.choice([0, 16, 64, 4096]))
    assert stat.S_ISDIR(guest.stat().mode)
