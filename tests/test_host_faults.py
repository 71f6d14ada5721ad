"""What goes wrong on the host under a share goes through to the guest as the error that it is, and service goes on."""

import errno
import os
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.daemon import Daemon, Start
from tests.errnos import fails
from tests.python_fs.conftest import eventually
from virtiofs.testing import Guest

root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to mount")
fuse = pytest.mark.skipif(not os.path.exists("/dev/fuse"), reason="needs /dev/fuse")
KIB = b"x" * 1024


@contextmanager
def tmpfs(where: Path, options: str) -> Iterator[None]:
    subprocess.run(["mount", "-t", "tmpfs", "-o", options, "none", where], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", where], check=True)


@root
def test_a_full_file_system(start: Start, share: Path, tmp_path: Path) -> None:
    full = share / "sub"
    with tmpfs(full, "size=256K"):
        daemon = start(full, "--socket", tmp_path / "s")
        acknowledged: list[int] = []
        with Guest(tmp_path / "s") as guest:
            with fails(errno.ENOSPC):
                for number in range(1000):
                    with guest.open(f"{number}", os.O_CREAT | os.O_RDWR) as file:
                        file.write_at(0, KIB * 4)
                        file.sync()
                        acknowledged.append(number)
            assert len(acknowledged) > 30
            assert guest.statfs().bfree == 0
            with fails(errno.ENOSPC):
                guest.write_file("one more", KIB * 8)
            # What was acknowledged is there, for the guest and for the host.
            for number in acknowledged:
                assert guest.read_file(f"{number}") == KIB * 4
                assert (full / f"{number}").read_bytes() == KIB * 4
            for number in acknowledged[:10]:
                guest.unlink(f"{number}")
            guest.write_file("again", KIB * 8)
            assert guest.read_file("again") == KIB * 8
        assert daemon.end() == 0


@root
def test_no_more_inodes(start: Start, share: Path, tmp_path: Path) -> None:
    with tmpfs(share / "sub", "nr_inodes=20"):
        start(share / "sub", "--socket", tmp_path / "s")
        with Guest(tmp_path / "s") as guest:
            with fails(errno.ENOSPC):
                for number in range(100):
                    guest.mkdir(f"{number}")
            with fails(errno.ENOSPC):
                guest.write_file("file", b"")
            guest.rmdir("0")
            # The inode goes when the guest has forgotten it, which it tells on a queue of its own.
            eventually(lambda: guest.statfs().ffree > 0)
            guest.write_file("file", b"")


@root
def test_a_file_system_that_turns_read_only(start: Start, share: Path, tmp_path: Path) -> None:
    with tmpfs(share / "sub", "size=1M"):
        start(share / "sub", "--socket", tmp_path / "s")
        with Guest(tmp_path / "s") as guest:
            guest.write_file("file", b"before")
            subprocess.run(["mount", "-o", "remount,ro", share / "sub"], check=True)
            with fails(errno.EROFS):
                guest.write_file("new", b"")
            assert guest.read_file("file") == b"before"
            subprocess.run(["mount", "-o", "remount,rw", share / "sub"], check=True)
            guest.write_file("new", b"")


@root
def test_a_file_system_that_is_unmounted(start: Start, share: Path, tmp_path: Path) -> None:
    with tmpfs(share / "sub", "size=1M"):
        (share / "sub" / "file").write_text("mounted")
        daemon = start(share / "sub", "--socket", tmp_path / "s")
    (share / "sub" / "file").write_text("below")
    # What was served is served, until nobody needs it any more.
    for _ in range(2):
        with Guest(tmp_path / "s") as guest:
            assert guest.read_file("file") == b"mounted"
            guest.write_file("new", b"new")
    assert (share / "sub" / "file").read_text() == "below"
    assert daemon.end() == 0


def test_a_directory_that_is_replaced(start: Start, share: Path, tmp_path: Path) -> None:
    daemon = start(share, "--socket", tmp_path / "s")
    with Guest(tmp_path / "s") as guest:
        share.rename(tmp_path / "moved")
        share.mkdir()
        (share / "hello").write_text("an impostor\n")
        assert guest.read_file("hello") == b"hello from the host\n"
        guest.write_file("new", b"")
        assert (tmp_path / "moved" / "new").exists()
        shutil.rmtree(tmp_path / "moved")
        with fails(errno.ENOENT):
            guest.read_file("sub/deep")
        with fails(errno.ENOENT):
            guest.mkdir("more")
    with Guest(tmp_path / "s") as guest, fails(errno.ENOENT):
        guest.listdir()
    assert daemon.end() == 0
    assert (share / "hello").read_text() == "an impostor\n"


def test_files_larger_than_the_server_may_write(start: Start, share: Path, tmp_path: Path) -> None:
    daemon = start(share, "--socket", tmp_path / "s", wrap=("prlimit", "--fsize=100000"))
    with Guest(tmp_path / "s") as guest:
        guest.write_file("small", KIB * 90)
        with guest.open("small", os.O_RDWR) as file, fails(errno.EFBIG):
            file.write_at(200_000, KIB)
        with fails(errno.EFBIG):
            guest.truncate("small", 200_000)
        assert guest.read_file("small") == KIB * 90
    assert daemon.end() == 0


def test_more_open_files_than_the_server_may_have(start: Start, share: Path, tmp_path: Path) -> None:
    daemon = start(share, "--socket", tmp_path / "s", "--rlimit-nofile=80")
    for number in range(200):
        (share / f"{number}").write_text(f"{number}")
    with Guest(tmp_path / "s") as guest:
        handles = []
        with fails(errno.ENFILE):
            for number in range(200):
                handles.append(guest.open(f"{number}"))  # noqa: PERF401 those before the failure are needed
        assert len(handles) > 10
        assert handles[0].read_at(0, 10) == b"0"
        for handle in handles:
            handle.close()
        guest.drop_caches()
        assert guest.read_file("150") == b"150"
    assert daemon.descriptors() <= 80
    with Guest(tmp_path / "s") as guest:
        assert guest.read_file("199") == b"199"
    assert daemon.end() == 0


FAULTY = """
import errno, os, time
from virtiofs import Open
from virtiofs.memory import MemoryFS

class Faulty(MemoryFS):
    lanes = 16

    def fault(self, node, what):
        for name, child in self.root.names.items():
            if child is node and name.startswith(what + "-"):
                raise OSError(getattr(errno, name.split("-")[1]), name)

    def open(self, request, node, flags):
        return Open(direct_io=node is self.root.names.get("short"))

    def short(self, node, size):
        return min(size, 1024) if node is self.root.names.get("short") else size

    def wait(self, node):
        while node is self.root.names.get("slow") and not os.path.exists(os.environ["GO_ON"]):
            time.sleep(0.01)

    def read(self, request, node, handle, offset, size):
        self.fault(node, "read")
        return super().read(request, node, handle, offset, self.short(node, size))

    def write(self, request, node, handle, offset, data):
        self.fault(node, "write")
        return super().write(request, node, handle, offset, bytes(data)[: self.short(node, len(data))])

    def fsync(self, request, node, handle, datasync):
        self.fault(node, "fsync")
        self.wait(node)
"""


@pytest.fixture
def faulty(start: Start, tmp_path: Path) -> Iterator[tuple[Path, Daemon]]:
    """A directory on a disk that fails for files by their names, and a share of it."""
    (tmp_path / "modules").mkdir()
    (tmp_path / "modules" / "faulty.py").write_text(FAULTY)
    disk = tmp_path / "disk"
    disk.mkdir()
    env = {"PYTHONPATH": str(tmp_path / "modules"), "GO_ON": str(tmp_path / "go on")}
    mounted = start("faulty:Faulty", disk, command="mount", env=env)
    daemon = start(disk, "--socket", tmp_path / "s", "--allow-direct-io")
    yield disk, daemon
    daemon.kill()
    assert mounted.end() == 0


@root
@fuse
def test_a_disk_that_fails(faulty: tuple[Path, Daemon], tmp_path: Path) -> None:
    _, daemon = faulty
    with Guest(tmp_path / "s") as guest:
        guest.write_file("good", b"good")
        for error in (errno.EIO, errno.EDQUOT, errno.ENOSPC):
            name = errno.errorcode[error]
            guest.write_file(f"read-{name}", KIB)
            with guest.open(f"read-{name}", os.O_RDONLY | os.O_DIRECT) as file, fails(error):
                file.read_at(0, 1024)
            with guest.open(f"write-{name}", os.O_CREAT | os.O_WRONLY | os.O_DIRECT) as file, fails(error):
                file.write_at(0, KIB)
            with guest.open(f"fsync-{name}", os.O_CREAT | os.O_RDWR) as file:
                file.write_at(0, KIB)
                with fails(error):
                    file.sync()
            assert guest.read_file("good") == b"good"
    assert daemon.end() == 0


@root
@fuse
def test_a_disk_that_does_a_part_at_a_time(faulty: tuple[Path, Daemon], tmp_path: Path) -> None:
    """A guest takes a short answer for the end of the file, so it gets none as long as there is more."""
    disk, daemon = faulty
    content = os.urandom(64 << 10)
    with Guest(tmp_path / "s") as guest:
        guest.write_file("short", b"")
        with guest.open("short", os.O_RDWR) as file:
            file.write_at(0, content)
            assert file.read_at(0, len(content)) == content
            assert file.read_at(60 << 10, 64 << 10) == content[60 << 10 :]
        assert guest.stat("short").size == len(content)
    assert (disk / "short").read_bytes() == content
    assert daemon.end() == 0


@root
@fuse
def test_a_slow_disk_holds_up_who_waits_for_it(faulty: tuple[Path, Daemon], tmp_path: Path) -> None:
    disk, daemon = faulty
    (disk / "slow").write_bytes(KIB)
    with Guest(tmp_path / "s") as guest, ThreadPoolExecutor(8) as threads:
        guest.write_file("good", KIB)
        with guest.open("slow", os.O_RDWR | os.O_DIRECT) as file, guest.open("good", os.O_RDWR) as good:
            waiting = [threads.submit(file.sync) for _ in range(4)]
            try:
                for number in range(200):
                    good.write_at(number, b"y")
                    assert good.read_at(number, 2) == b"yx"
                    assert guest.stat("good").size == 1024
                assert not any(one.done() for one in waiting)
            finally:
                (tmp_path / "go on").touch()
            assert [one.result(30) for one in waiting] == [None] * 4
            assert file.read_at(0, 1024) == KIB
    assert daemon.end() == 0


@root
@fuse
def test_a_server_that_is_stopped_and_continued(faulty: tuple[Path, Daemon], tmp_path: Path) -> None:
    """System calls that wait end with EINTR then, in the middle of whatever they do: no guest hears of it."""
    _, daemon = faulty
    (tmp_path / "go on").touch()
    ends = threading.Event()

    def interrupt() -> None:
        while not ends.is_set():
            os.kill(daemon.serving, signal.SIGSTOP)
            time.sleep(0.001)
            os.kill(daemon.serving, signal.SIGCONT)
            time.sleep(0.002)

    interrupter = threading.Thread(target=interrupt)
    with Guest(tmp_path / "s") as guest:
        interrupter.start()
        try:
            for number in range(150):
                content = os.urandom(100_000)
                with guest.open(f"{number % 5}", os.O_CREAT | os.O_RDWR | os.O_DIRECT * (number % 2)) as file:
                    file.write_at(0, content[:98304])
                    file.sync()
                    assert file.read_at(0, 98304) == content[:98304]
                guest.rename(f"{number % 5}", "renamed")
                assert "renamed" in guest.listdir()
                guest.rename("renamed", f"{number % 5}")
        finally:
            ends.set()
            interrupter.join()
    assert daemon.end() == 0
