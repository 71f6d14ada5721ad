"""One Python file system, by every way there is to it."""

import errno
import filecmp
import os
import shutil
import sqlite3
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any, Literal

import pytest

from tests import takes
from tests.errnos import fails
from tests.python_fs.conftest import eventually
from virtiofs import Device, Entry, GuestMemory, Node, Open, Passthrough, Request, mount
from virtiofs.memory import MemoryFS
from virtiofs.testing import Guest

WAYS: list[Literal["socket", "device", "registers"]] = ["socket", "device", "registers"]

fuse = [pytest.mark.root, takes.mounts]


class Upper(Passthrough):
    """A directory in which names are found in lower case alone, however they are asked for."""

    asked: list[str]

    def lookup(self, request: Request, parent: Node, name: str) -> Entry | None:
        self.asked.append(name)
        return super().lookup(request, parent, name.lower())


class Slow(MemoryFS):
    """Files whose data come when they are let through."""

    def __init__(self) -> None:
        super().__init__()
        self.reading = threading.Event()
        self.through = threading.Event()

    def read(self, request: Request, node: Any, handle: Any, offset: int, size: int) -> bytes:
        self.reading.set()
        assert self.through.wait(20)
        return super().read(request, node, handle, offset, size)


class Failing(MemoryFS):
    def read(self, *_: Any) -> bytes:
        raise ZeroDivisionError("on purpose")


@pytest.fixture
def there(tmp_path: Path) -> Path:
    path = tmp_path / "mnt"
    path.mkdir()
    return path


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "source"
    path.mkdir()
    return path


@pytest.mark.parametrize("way", WAYS)
def test_an_embedded_guest_finds_it(way: Literal["socket", "device", "registers"], source: Path) -> None:
    with Guest(MemoryFS(), way=way) as guest:
        guest.makedirs("a/b")
        guest.write_file("a/b/file", bytes(range(256)) * 5000)
        assert guest.read_file("a/b/file") == bytes(range(256)) * 5000
        assert guest.listdir("a") == ["b"]
    fs = Upper(source)
    fs.asked = []
    (source / "file").write_text("native")
    with Guest(fs, way=way) as guest:
        assert guest.read_file("FILE") == b"native"
        assert fs.asked == ["FILE"]


def test_a_device_that_closes_lets_what_is_in_flight_finish() -> None:
    fs = Slow()
    with Device(fs, "slow", GuestMemory()) as device, Guest(device) as guest:
        guest.write_file("file", b"content")
        got: list[bytes] = []
        reader = threading.Thread(target=lambda: got.append(guest.read_file("file")))
        reader.start()
        assert fs.reading.wait(10)
        pausing = threading.Thread(target=device.pause)
        pausing.start()
        fs.through.set()
        pausing.join(20)
        assert not pausing.is_alive()
        device.resume()
        reader.join(20)
        assert got == [b"content"]


class TestMounted:
    """At a directory of this host."""

    pytestmark = fuse

    def test_files_directories_and_links(self, there: Path, tmp_path: Path) -> None:
        tree = tmp_path / "tree"
        shutil.copytree(Path(__file__).parents[2] / "python", tree, ignore=shutil.ignore_patterns("*.so"))
        fs = MemoryFS()
        with mount(fs, there) as served:
            shutil.copytree(tree, there / "copy")
            compared = filecmp.dircmp(tree, there / "copy")
            assert (compared.left_only, compared.right_only, compared.diff_files) == ([], [], [])
            assert subprocess.run(["diff", "-r", tree, there / "copy"], check=False).returncode == 0
            os.symlink("copy", there / "link")
            os.link(there / "copy" / "virtiofs" / "cli.py", there / "hard")
            assert (there / "hard").stat().st_nlink == 2
            assert (there / "link" / "virtiofs" / "cli.py").samefile(there / "hard")
            os.setxattr(there / "hard", "user.x", b"1")
            assert os.listxattr(there / "hard") == ["user.x"]
            with fails(errno.ENOTEMPTY):
                (there / "copy").rmdir()
            shutil.rmtree(there / "copy")
            assert sorted(os.listdir(there)) == ["hard", "link"]
            assert served.stats().panics == 0
        assert not os.path.ismount(there)
        assert set(fs.root.names) == {"hard", "link"}

    def test_a_database(self, there: Path) -> None:
        with mount(MemoryFS(), there):
            database = sqlite3.connect(there / "database")
            database.execute("create table numbers (n integer)")
            database.executemany("insert into numbers values (?)", [(n,) for n in range(5000)])
            database.commit()
            database.close()
            database = sqlite3.connect(there / "database")
            assert database.execute("select sum(n) from numbers").fetchone() == (12497500,)
            assert database.execute("pragma integrity_check").fetchone() == ("ok",)
            database.close()

    def test_programs_run_from_it(self, there: Path) -> None:
        with mount(MemoryFS(), there):
            (there / "module.py").write_text("print('run from memory')")
            done = subprocess.run([sys.executable, there / "module.py"], capture_output=True, text=True, check=True)
            assert done.stdout == "run from memory\n"
            shutil.copy("/bin/true", there / "true")
            assert subprocess.run([there / "true"], check=False).returncode == 0

    def test_one_method_over_a_directory(self, source: Path, there: Path) -> None:
        fs = Upper(source)
        fs.asked = []
        (source / "file").write_text("native")
        with mount(fs, there):
            assert (there / "FILE").read_text() == "native"
            assert fs.asked == ["FILE"]
            (there / "new").write_text("made")
        assert (source / "new").read_text() == "made"

    def test_data_of_a_descriptor(self, there: Path) -> None:
        class Backed(MemoryFS):
            reads = 0

            def open(self, request: Request, node: Any, flags: int) -> Open:
                fd = os.memfd_create("backed")
                os.write(fd, bytes(node.data))
                return Open(backing=fd)

            def read(self, *_: Any) -> bytes:
                self.reads += 1
                return b""

        fs = Backed()
        with mount(fs, there):
            (there / "file").write_bytes(b"x" * 100_000)
            assert (there / "file").read_bytes() == b"x" * 100_000
        assert fs.reads == 0

    def test_a_method_that_fails_fails_alone(self, there: Path) -> None:
        with mount(Failing(), there) as served:
            (there / "file").write_bytes(b"content")
            with fails(errno.EIO):
                (there / "file").read_bytes()
            assert os.listdir(there) == ["file"]
            assert served.stats().panics == 0

    def test_it_ends_while_a_method_runs(self, there: Path) -> None:
        fs = Slow()
        with mount(fs, there) as served:
            (there / "file").write_bytes(b"content")
            # A process of its own: this one must not wait for itself when the mount goes.
            reader = subprocess.Popen([sys.executable, "-c", f"open({str(there / 'file')!r}, 'rb').read()"])
            try:
                assert fs.reading.wait(20)
                ending = threading.Thread(target=served.close)
                ending.start()
                eventually(lambda: not os.path.ismount(there))
                fs.through.set()
                ending.join(20)
                assert not ending.is_alive()
            finally:
                fs.through.set()
                reader.wait(20)
