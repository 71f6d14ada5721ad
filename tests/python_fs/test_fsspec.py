"""Shares of fsspec's file systems: one in memory, archives, and a server that speaks S3."""

import errno
import os
import random
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from tests import s3
from tests.errnos import fails
from tests.python_fs.conftest import eventually
from virtiofs import ConfigError
from virtiofs.fsspecfs import FsspecFS
from virtiofs.testing import Guest

BLOCK = 64 << 10


class Counted(MemoryFileSystem):  # type: ignore[misc]
    """Counts what is fetched, and may be told to fail."""

    protocol = "counted"
    cachable = False

    def __init__(self) -> None:
        super().__init__(global_store=False)
        self.fetched: list[tuple[int, int]] = []
        self.failing = False

    def cat_file(self, path: str, start: int | None = None, end: int | None = None, **kwargs: Any) -> bytes:
        self.fetched.append((start or 0, end or 0))
        data: bytes = super().cat_file(path, start=start, end=end, **kwargs)
        return data

    def put_file(self, *arguments: Any, **options: Any) -> None:
        if self.failing:
            raise OSError(errno.ECONNREFUSED, "the server is away")
        super().put_file(*arguments, **options)


Make = Callable[..., FsspecFS]


@pytest.fixture
def memory() -> Counted:
    return Counted()


@pytest.fixture
def make(tmp_path: Path) -> Iterator[Make]:
    """Makes shares with small blocks, and closes them."""
    made: list[FsspecFS] = []

    def make(target: Any, **options: Any) -> FsspecFS:
        made.append(FsspecFS(target, **{"cache_dir": tmp_path, "block_size": BLOCK, **options}))
        return made[-1]

    yield make
    for fs in made:
        fs.close()


@pytest.fixture(scope="module")
def server() -> Iterator[s3.S3]:
    with s3.serving() as server:
        yield server


def noise(size: int) -> bytes:
    return random.Random(size).randbytes(size)


def test_cached_blocks_are_read_natively(memory: Counted, make: Make) -> None:
    data = noise(10 * BLOCK + 100)
    memory.pipe("/file", data)
    with Guest(make(memory, read_ahead=0)) as guest:
        assert guest.server is not None
        with guest.open("file") as file:
            assert file.read_at(3 * BLOCK + 10, 100) == data[3 * BLOCK + 10 :][:100]
            assert memory.fetched == [(3 * BLOCK, 4 * BLOCK)], "one block"
            assert file.read_at(4 * BLOCK - 10, 20) == data[4 * BLOCK - 10 :][:20], "half of it is there"
            assert file.seek(0, os.SEEK_HOLE) == len(data), "what is not there is no hole"
            assert file.read_at(10 * BLOCK, BLOCK) == data[10 * BLOCK :]
            assert guest.read_file("file") == data
            assert sorted(memory.fetched) == [(n * BLOCK, min((n + 1) * BLOCK, len(data))) for n in range(11)]
            memory.rm_file("/file")
            assert file.read_at(0, len(data)) == data, "it is all here"
            with fails(errno.ENOENT):
                guest.drop_caches()
                guest.read_file("file")


def test_reading_ahead(memory: Counted, make: Make) -> None:
    memory.pipe("/file", noise(16 * BLOCK))
    with Guest(make(memory, read_ahead=4 * BLOCK)) as guest, guest.open("file") as file:
        for block in (0, 1, 2):
            file.read_at(block * BLOCK, BLOCK)
        eventually(lambda: len(memory.fetched) >= 5)
        assert {begin for begin, _ in memory.fetched} <= {n * BLOCK for n in range(16)}
        assert len(set(memory.fetched)) == len(memory.fetched), "nothing twice"
        far = len(memory.fetched)
        assert far < 12
        file.read_at(14 * BLOCK, 10)
        assert memory.fetched[-1] == (14 * BLOCK, 15 * BLOCK), "a jump is no reading on"


def test_the_cache_has_a_bound(memory: Counted, make: Make) -> None:
    data = noise(40 * BLOCK)
    memory.pipe("/file", data)
    fs = make(memory, cache_size=8 * BLOCK)
    with Guest(fs) as guest:
        for _ in range(2):
            assert guest.read_file("file") == data
            guest.drop_caches()
        assert fs._blocks.used <= 8 * BLOCK
        (file,) = fs._blocks._files
        # Some file systems count their own blocks of numbers as well.
        assert os.fstat(file.fd).st_blocks * 512 <= 10 * BLOCK, "the disk has it back"
        assert len(memory.fetched) > 40, "what went is fetched anew"


def test_writing_back(memory: Counted, make: Make) -> None:
    data = noise(3 * BLOCK)
    memory.pipe("/old", data)
    fs = make(memory)
    with Guest(fs) as guest:
        guest.write_file("new", b"made here")
        assert memory.cat("/new") == b"made here"
        with guest.open("old", os.O_RDWR) as file:
            file.write_at(BLOCK, b"changed")
            changed = data[:BLOCK] + b"changed" + data[BLOCK + 7 :]
            assert memory.cat("/old") == data, "not before it is closed"
            file.write_at(len(data), b"more")
            assert guest.stat("old").size == len(data) + 4
            file.sync()
            assert memory.cat("/old") == changed + b"more"
        before = len(memory.fetched)
        assert guest.read_file("old") == changed + b"more"
        assert len(memory.fetched) == before, "what was written is cached"
        guest.truncate("old", 10)
        assert memory.cat("/old") == data[:10]
        guest.truncate("old", 0)
        assert memory.cat("/old") == b""
        guest.write_file("empty", b"")
        assert memory.cat("/empty") == b""
        for name in ("new", "old", "empty"):
            guest.unlink(name)
        assert guest.listdir() == []
    assert fs._blocks.used == 0


def test_what_cannot_be_written_back(memory: Counted, make: Make) -> None:
    with Guest(make(memory)) as guest:
        file = guest.open("file", os.O_RDWR | os.O_CREAT)
        file.write_at(0, b"kept")
        memory.failing = True
        with fails(errno.ECONNREFUSED):
            file.sync()
        memory.failing = False
        file.sync()
        assert memory.cat("/file") == b"kept"
        file.write_at(0, b"Kept")
        # The guest goes away with the file open.
    assert memory.cat("/file") == b"Kept"


def test_names(memory: Counted, make: Make) -> None:
    memory.pipe({"/dir/a": b"a", "/dir/b": b"b"})
    with Guest(make(memory)) as guest:
        assert guest.listdir("dir") == ["a", "b"]
        with guest.open("dir/a") as held, guest.open("dir/b") as replaced:
            guest.unlink("dir/a")
            assert held.read() == b"a", "who has it open keeps it"
            guest.write_file("c", b"c")
            guest.rename("c", "dir/b")
            assert replaced.read() == b"b"
        assert guest.read_file("dir/b") == b"c"
        guest.makedirs("empty/below")
        with fails(errno.ENOTEMPTY):
            guest.rmdir("empty")
        guest.rename("dir", "moved")
        assert guest.read_file("moved/b") == b"c"
        with fails(errno.ENOTEMPTY):
            guest.rename("empty", "moved")
        guest.remove_tree("empty")
        assert guest.listdir() == ["moved"]
        with fails(errno.EPERM):
            guest.chmod("moved/b", 0o600)
    assert memory.cat("/moved/b") == b"c"
    assert not memory.exists("/dir/b")


def test_others_change_it(memory: Counted, make: Make) -> None:
    memory.pipe("/file", noise(BLOCK))
    fs = make(memory)
    fs.cache = fs.cache.replace(attr_timeout=0.0, entry_timeout=0.0)
    with Guest(fs) as guest, guest.open("file") as old:
        assert old.read() == noise(BLOCK)
        memory.pipe("/file", b"new")
        assert guest.read_file("file") == b"new"
        assert old.read_at(0, 10) == noise(BLOCK)[:10], "who has the old one open reads that"
        memory.rm("/file")
        assert not guest.exists("file")


def test_an_archive(tmp_path: Path, make: Make) -> None:
    with zipfile.ZipFile(tmp_path / "archive.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("dir/file", noise(5 * BLOCK))
        archive.writestr("top", b"top")
    fs = make(f"zip::file://{tmp_path}/archive.zip", read_only=True)
    with Guest(fs) as guest:
        assert sorted(guest.listdir()) == ["dir", "top"]
        assert guest.read_file("dir/file") == noise(5 * BLOCK)
        assert guest.stat("top").mode & 0o777 == 0o444
        with fails(errno.EROFS):
            guest.write_file("new", b"")
        with fails(errno.EROFS):
            guest.open("top", os.O_RDWR)


def test_s3(server: s3.S3, make: Make) -> None:
    data = noise(20 * BLOCK)
    server.bucket("plain", **{"logs/monday": b"rain", "large": data, "logs/deep/er": b""})
    fs = make("s3://plain", **server.options)
    with Guest(fs) as guest:
        assert sorted(guest.listdir()) == ["large", "logs"]
        assert sorted(guest.listdir("logs")) == ["deep", "monday"]
        assert guest.stat("large").mtime_ns > 1_600_000_000 * 10**9
        assert guest.read_file("large") == data
        guest.write_file("logs/tuesday", b"sun")
        assert server.get("plain", "logs/tuesday") == b"sun"
        guest.makedirs("new/below")
        guest.write_file("new/below/file", data)
        assert server.get("plain", "new/below/file") == data
        guest.rename("new", "renamed")
        assert guest.read_file("renamed/below/file") == data
        with guest.open("large", os.O_RDWR) as file:
            file.write_at(5, b"middle")
        assert server.get("plain", "large") == data[:5] + b"middle" + data[11:]
        guest.remove_tree("renamed")
        guest.unlink("logs/deep/er")
        assert guest.listdir("logs/deep") == [], "it was there, and nobody removed it"
        guest.rmdir("logs/deep")
        assert not guest.exists("logs/deep")
        with fails(errno.ENOENT):
            guest.read_file("nothing")
    assert server.keys("plain") == ["large", "logs/monday", "logs/tuesday"]


def test_s3_below_a_prefix(server: s3.S3, make: Make) -> None:
    server.bucket("other", **{"a/b/c": b"deep", "a/x": b"not here"})
    fs = make(fsspec.filesystem("s3", **server.options), root="other/a/b")
    with Guest(fs) as guest:
        assert guest.listdir() == ["c"]
        assert guest.read_file("c") == b"deep"


def test_bad_arguments(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="nosuch"):
        FsspecFS("nosuch://bucket")
    with pytest.raises(ConfigError, match="'much' is no size"):
        FsspecFS("memory://", cache_size="much")
    with pytest.raises(ConfigError, match="options are for file systems that are named by a URL: key"):
        FsspecFS(Counted(), key="1")
