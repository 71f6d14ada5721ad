"""File systems that come along."""

import errno
import os
import stat
from collections.abc import Iterator
from typing import Any

from tests.errnos import fails
from virtiofs.memory import MemoryFS
from virtiofs.paths import PathFileSystem
from virtiofs.testing import Guest


def test_memory() -> None:
    fs = MemoryFS(size=1 << 20)
    with Guest(fs) as guest:
        guest.makedirs("a/b")
        guest.write_file("a/b/file", b"content")
        guest.symlink("b/file", "a/link")
        assert guest.read_file("a/link") == b"content"
        guest.link("a/b/file", "hard")
        assert guest.stat("hard").nlink == 2
        assert guest.stat("a").nlink == 3
        guest.rename("a/b", "moved")
        assert guest.stat("a").nlink == 2
        guest.mkdir("moved/below")
        with fails(errno.EINVAL):
            guest.rename("moved", "moved/below/itself")
        with fails(errno.ENOTEMPTY):
            guest.rmdir("moved")
        with fails(errno.ENOSPC):
            guest.write_file("large", bytes(2 << 20))
        guest.setxattr("hard", "user.x", b"1")
        assert guest.listxattr("hard") == ["user.x"]
        guest.rename("hard", "moved/file", 2)
        guest.unlink("hard")
    with Guest(fs) as guest:
        assert guest.read_file("moved/file") == b"content", "it outlives its guests"
        guest.remove_tree("moved")
        guest.remove_tree("a")
        guest.unlink("large")
    assert fs.used == 0


class Operations:
    """As one would write it for fusepy."""

    def __init__(self) -> None:
        self.files = {"/": None, "/dir": None, "/dir/file": b"by path"}  # type: dict[str, bytes | None]
        self.released: list[Any] = []

    def getattr(self, path: str, fh: Any = None) -> dict[str, Any]:
        if path not in self.files:
            raise OSError(errno.ENOENT, path)
        data = self.files[path]
        kind = stat.S_IFDIR | 0o755 if data is None else stat.S_IFREG | 0o644
        return {"st_mode": kind, "st_size": len(data or b""), "st_mtime": 1.5}

    def readdir(self, path: str, fh: Any) -> Iterator[str]:
        yield from (".", "..")
        yield from (os.path.basename(name) for name in self.files if name != "/" and os.path.dirname(name) == path)

    def open(self, path: str, flags: int) -> int:
        return 42

    def create(self, path: str, mode: int) -> int:
        self.files[path] = b""
        return 43

    def read(self, path: str, size: int, offset: int, fh: int) -> bytes:
        return (self.files[path] or b"")[offset : offset + size]

    def write(self, path: str, data: bytes, offset: int, fh: int) -> int:
        self.files[path] = (self.files[path] or b"")[:offset] + data
        return len(data)

    def truncate(self, path: str, length: int, fh: Any = None) -> None:
        self.files[path] = (self.files[path] or b"")[:length]

    def rename(self, old: str, new: str) -> None:
        self.files = {
            new + name[len(old) :] if name.startswith(old) else name: data for name, data in self.files.items()
        }

    def unlink(self, path: str) -> None:
        del self.files[path]

    def release(self, path: str, fh: int) -> None:
        self.released.append((path, fh))


def test_paths() -> None:
    operations = Operations()
    with Guest(PathFileSystem(operations)) as guest:
        assert guest.read_file("dir/file") == b"by path"
        assert guest.listdir("dir") == ["file"]
        assert guest.stat("dir/file").mtime_ns == 1_500_000_000
        guest.write_file("dir/new", b"made")
        assert operations.files["/dir/new"] == b"made"
        guest.rename("dir", "other")
        assert guest.read_file("other/new") == b"made"
        guest.truncate("other/new", 2)
        guest.unlink("other/file")
        assert operations.files == {"/": None, "/other": None, "/other/new": b"ma"}
        with fails(errno.EOPNOTSUPP):
            guest.mkdir("nothing")
        assert not guest.exists("other/file")
    assert ("/dir/new", 43) in operations.released
