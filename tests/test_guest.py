"""A host directory through the embedded guest, end to end."""

import errno
import os
import stat
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.errnos import fails
from virtiofs import ALWAYS, AUTO, METADATA, NONE, Cache, Passthrough, Server, _core
from virtiofs.testing import Guest

ROOT = 1


Mount = Callable[..., Guest]


@pytest.fixture(params=["socket", "device", "registers"])
def mount(request: pytest.FixtureRequest) -> Mount:
    """Mounts a file system over vhost-user, on a device by its queue addresses, or through its registers."""

    def mount(fs: Passthrough, **options: Any) -> Guest:
        return Guest(fs, way=request.param, **options)

    return mount


@pytest.fixture(params=[NONE, METADATA, AUTO, ALWAYS], ids=lambda mode: mode.name)
def guest(request: pytest.FixtureRequest, mount: Mount, share: Path) -> Iterator[Guest]:
    mode: Cache = request.param
    with mount(Passthrough(share, mode, xattr=True)) as guest:
        yield guest


def test_reads_what_the_host_wrote(guest: Guest, share: Path) -> None:
    assert guest.read_file("hello") == b"hello from the host\n"
    assert sorted(guest.listdir()) == ["hello", "sub"]
    assert guest.read_file("/sub/deep") == b"deep"
    found, real = guest.stat("hello"), (share / "hello").stat()
    assert (found.size, found.mode, found.nlink, found.uid, found.gid) == (
        real.st_size,
        real.st_mode,
        real.st_nlink,
        real.st_uid,
        real.st_gid,
    )
    assert (found.mtime_ns, found.ino) == (real.st_mtime_ns, real.st_ino)
    assert found.is_file
    assert not found.is_dir
    assert guest.stat().is_dir


def test_the_host_has_what_the_guest_wrote(guest: Guest, share: Path) -> None:
    data = os.urandom(3 << 20)
    guest.write_file("sub/new", data)
    assert (share / "sub" / "new").read_bytes() == data
    guest.write_file("sub/new", b"shorter")
    assert (share / "sub" / "new").read_bytes() == b"shorter"


def test_names(guest: Guest, share: Path) -> None:
    guest.mkdir("dir", 0o750)
    assert stat.S_IMODE((share / "dir").stat().st_mode) == 0o750
    guest.symlink("../hello", "dir/link")
    assert os.readlink(share / "dir" / "link") == "../hello"
    assert guest.readlink("dir/link") == "../hello"
    assert guest.read_file("dir/link") == b"hello from the host\n"
    assert guest.lstat("dir/link").is_symlink
    guest.link("hello", "dir/hard")
    assert guest.stat("hello").ino == guest.stat("dir/hard").ino
    assert guest.stat("hello").nlink == 2
    guest.rename("dir/hard", "moved")
    assert (share / "moved").samefile(share / "hello")
    guest.unlink("moved")
    guest.unlink("dir/link")
    guest.rmdir("dir")
    assert sorted(os.listdir(share)) == ["hello", "sub"]


@pytest.mark.parametrize("name", ["x" * 255, "two words", "\u00e4\u2603", "\udcff\udcfe", "new\nline", ".hidden"])
def test_names_of_all_kinds(guest: Guest, share: Path, name: str) -> None:
    guest.write_file(name, b"1")
    assert (share / name).read_bytes() == b"1"
    assert name in guest.listdir()
    guest.unlink(name)
    assert not guest.exists(name)


def test_errors_are_those_of_the_host(guest: Guest) -> None:
    with pytest.raises(FileNotFoundError):
        guest.stat("missing")
    with pytest.raises(FileExistsError):
        guest.mkdir("sub")
    with pytest.raises(NotADirectoryError):
        guest.stat("hello/below")
    with fails(errno.ENOTEMPTY):
        guest.rmdir("sub")
    with fails(errno.ENAMETOOLONG):
        guest.write_file("x" * 256, b"")


def test_attributes(guest: Guest, share: Path) -> None:
    guest.chmod("hello", 0o640)
    assert guest.stat("hello").permissions == 0o640
    guest.utime("hello", 1_000_000_001, 2_000_000_002_000_000_003)
    found = (share / "hello").stat()
    assert (found.st_atime_ns, found.st_mtime_ns) == (1_000_000_001, 2_000_000_002_000_000_003)
    guest.truncate("hello", 5)
    assert (share / "hello").read_bytes() == b"hello"
    if os.geteuid() == 0:
        guest.chown("hello", 1234, 4321)
        found = (share / "hello").stat()
        assert (found.st_uid, found.st_gid) == (1234, 4321)


def test_extended_attributes(guest: Guest, share: Path) -> None:
    guest.setxattr("hello", "user.colour", b"blue")
    assert os.getxattr(share / "hello", "user.colour") == b"blue"
    assert guest.getxattr("hello", "user.colour") == b"blue"
    assert "user.colour" in guest.listxattr("hello")
    guest.removexattr("hello", "user.colour")
    with fails(errno.ENODATA):
        guest.getxattr("hello", "user.colour")


def test_files(guest: Guest, share: Path) -> None:
    with guest.open("file", os.O_RDWR | os.O_CREAT | os.O_EXCL) as file:
        file.write_at(1 << 32, b"far")
        assert file.read_at((1 << 32) - 1, 10) == b"\0far"
        assert file.seek(0, os.SEEK_DATA) > 0
        file.sync()
        guest.unlink("file")
        assert file.stat().nlink == 0
        file.truncate(3)
        assert file.read() == b"\0\0\0"
    with pytest.raises(ValueError, match="closed"):
        file.read()
    with guest.open("log", os.O_WRONLY | os.O_CREAT | os.O_APPEND) as log:
        log.write_at(0, b"one")
        log.write_at(0, b"two")
    assert (share / "log").read_bytes() == b"onetwo"


def test_copies_on_the_host(guest: Guest, share: Path) -> None:
    with guest.open("hello") as source, guest.open("copy", os.O_RDWR | os.O_CREAT) as target:
        assert source.copy_to(6, target, 0, 100) == 14
    assert (share / "copy").read_bytes() == b"from the host\n"


def test_listing_of_many(guest: Guest, share: Path) -> None:
    names = {f"{number:04}-{'x' * (number % 200)}" for number in range(2000)}
    for name in names:
        (share / "sub" / name).touch()
    assert set(guest.listdir("sub")) == names | {"deep"}
    entries = guest.scandir("sub")
    assert {entry.name for entry in entries} == names | {"deep"}
    assert {stat.S_IFMT(entry.kind) for entry in entries} == {stat.S_IFREG}


def test_all_nodes_are_given_back(guest: Guest, share: Path) -> None:
    for number in range(100):
        (share / "sub" / str(number)).touch()
    assert len(guest.walk()) == 103
    guest.drop_caches()
    assert guest.nodes_held() == 0
    assert guest.read_file("hello")


def test_read_only(mount: Mount, share: Path) -> None:
    with mount(Passthrough(share, read_only=True)) as guest:
        assert guest.read_file("hello")
        changes: list[Callable[[], None]] = [
            lambda: guest.write_file("new", b""),
            lambda: guest.write_file("hello", b""),
            lambda: guest.mkdir("new"),
            lambda: guest.unlink("hello"),
            lambda: guest.rename("hello", "new"),
            lambda: guest.chmod("hello", 0o777),
        ]
        for change in changes:
            with fails(errno.EROFS):
                change()
    assert (share / "hello").read_text() == "hello from the host\n"
    assert sorted(os.listdir(share)) == ["hello", "sub"]


def test_without_extended_attributes(mount: Mount, share: Path) -> None:
    os.setxattr(share / "hello", "user.secret", b"1")
    # A kernel tells its programs EOPNOTSUPP and never asks again.
    with mount(Passthrough(share)) as guest:
        with fails(errno.ENOSYS):
            guest.getxattr("hello", "user.secret")
        with fails(errno.ENOSYS):
            guest.setxattr("hello", "user.new", b"1")


def test_guests_do_not_leave_the_directory(mount: Mount, share: Path, tmp_path: Path) -> None:
    (tmp_path / "outside").write_text("secret")
    (share / "escape").symlink_to(tmp_path)
    with mount(Passthrough(share)) as guest:
        escape = guest.client.lookup(ROOT, "escape")
        with pytest.raises(NotADirectoryError):
            guest.client.lookup(escape.node, "outside")
        with fails(errno.ELOOP):
            guest.client.open(escape.node, os.O_RDONLY)
        for name in ("..", ".", "", "a/b", "/etc", b"a\0b"):
            with fails(errno.EINVAL):
                guest.client.lookup(ROOT, name)


def test_modes_send_their_timeouts_and_flags(mount: Mount, share: Path) -> None:
    for mode, timeout in ((NONE, 0), (AUTO, 1), (METADATA, 86400), (AUTO.replace(entry_timeout=0.25), 0.25)):
        with mount(Passthrough(share, mode)) as guest:
            entry = guest.client.lookup(ROOT, "hello")
            assert entry.entry_timeout == timeout
            assert entry.attr_timeout == mode.attr_timeout
            assert guest.client.open(entry.node, os.O_RDONLY).flags & mode.open_flags == mode.open_flags
    with mount(Passthrough(share, ALWAYS)) as guest:
        for_ever = guest.client.lookup(ROOT, "hello").entry_timeout
        assert for_ever is not None
        assert for_ever > 100 * 365 * 86400


def test_files_past_the_cache_can_be_mapped(mount: Mount, share: Path) -> None:
    for mode in (NONE, METADATA, AUTO, ALWAYS):
        with mount(Passthrough(share, mode)) as guest:
            opened = guest.client.open(guest.node("hello"), os.O_RDONLY)
            assert bool(opened.flags & _core.FOPEN["DIRECT_IO"]) == mode.direct_io
            # Without it, mmap with MAP_SHARED says ENODEV in the guest, also of a file that a rule takes out of the cache.
            assert guest.client.session["flags"] & _core.INIT["DIRECT_IO_ALLOW_MMAP"]


def test_access_times_are_left_alone_where_a_program_says_so(mount: Mount, share: Path) -> None:
    os.utime(share / "hello", (1, 2_000_000_000))
    with mount(Passthrough(share)) as guest, guest.open("hello", os.O_RDONLY | os.O_NOATIME) as file:
        assert file.read() == b"hello from the host\n"
    assert (share / "hello").stat().st_atime == 1


def test_negative_answers_are_cached_as_long_as_the_mode_says(mount: Mount, share: Path) -> None:
    with mount(Passthrough(share, AUTO)) as guest:
        entry = guest.client.lookup(ROOT, "missing")
        assert (entry.node, entry.entry_timeout) == (0, 1.0)
    with mount(Passthrough(share, NONE)) as guest, pytest.raises(FileNotFoundError):
        guest.client.lookup(ROOT, "missing")


@pytest.mark.root
@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to create files for others")
def test_files_belong_to_the_caller_in_the_guest(mount: Mount, share: Path) -> None:
    share.chmod(0o777)
    with mount(Passthrough(share, ownership="caller"), uid=1234, gid=4321) as guest:
        guest.write_file("mine", b"")
        guest.mkdir("dir")
        guest.symlink("mine", "link")
        guest.client.set_caller(0, 0)
        guest.write_file("roots", b"")
    for name in ("mine", "dir", "link"):
        found = (share / name).lstat()
        assert (found.st_uid, found.st_gid) == (1234, 4321), name
    assert (share / "roots").stat().st_uid == 0


def test_threads_share_a_guest(mount: Mount, share: Path) -> None:
    failures: list[BaseException] = []

    def work(guest: Guest, number: int) -> None:
        try:
            for turn in range(20):
                name, data = f"{number}-{turn}", bytes([number]) * 5000
                guest.write_file(name, data)
                assert guest.read_file(name) == data
                guest.unlink(name)
        except BaseException as error:
            failures.append(error)

    with mount(Passthrough(share), request_queues=4) as guest:
        threads = [threading.Thread(target=work, args=(guest, number)) for number in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert not failures
    assert sorted(os.listdir(share)) == ["hello", "sub"]


def test_statistics(share: Path) -> None:
    with Guest(Passthrough(share)) as guest:
        guest.read_file("hello")
        assert guest.server is not None
        stats = guest.server.stats()
        assert stats.connected
        assert stats.connections == 1
        assert stats.requests["READ"] >= 1
        assert stats.malformed == stats.panics == 0
        # opcode 4095 is in no protocol; a WRITE of one byte is too short for its own arguments
        assert guest.client.raw(4095, ROOT, room=0)[1][4:8] == (-errno.ENOSYS & 0xFFFFFFFF).to_bytes(4, "little")
        assert guest.client.raw(16, ROOT, b"x", room=8)[1][4:8] == (-errno.EINVAL & 0xFFFFFFFF).to_bytes(4, "little")
        assert guest.server.stats().malformed >= 1
        assert guest.read_file("hello")


def test_fewer_and_more_queues_than_the_device_has(share: Path, tmp_path: Path) -> None:
    for asked, given in ((1, 3), (3, 3), (8, 3)):
        with (
            Server(Passthrough(share), socket=tmp_path / "s", request_queues=3) as server,
            Guest(server, request_queues=asked) as guest,
        ):
            assert guest.client.session["request_queues"] == given
            assert guest.read_file("hello")
