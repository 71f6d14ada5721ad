"""The same trivial file system by others, at /dev/fuse: peers.py pyfuse3|mfusepy MOUNTPOINT. Nobody may trust attributes."""

import stat
import sys
from typing import Any

MODE_DIRECTORY, MODE_FILE = stat.S_IFDIR | 0o755, stat.S_IFREG | 0o644


def mfusepy(there: str) -> None:
    import mfusepy as fuse

    class Trivial(fuse.Operations):  # type: ignore[misc]
        use_ns = True

        def getattr(self, path: str, fh: Any = None) -> dict[str, int]:
            return directory if path == "/" else file

    directory, file = {"st_mode": MODE_DIRECTORY, "st_nlink": 2}, {"st_mode": MODE_FILE, "st_nlink": 1}
    fuse.FUSE(Trivial(), there, foreground=True, nothreads=True, attr_timeout=0, entry_timeout=3600)


def pyfuse3(there: str) -> None:
    import pyfuse3 as fuse
    import trio

    class Trivial(fuse.Operations):  # type: ignore[misc]
        def made(self, inode: int) -> Any:
            found = fuse.EntryAttributes()
            found.st_ino, found.st_nlink = inode, 1
            found.st_mode = MODE_DIRECTORY if inode == fuse.ROOT_INODE else MODE_FILE
            found.attr_timeout, found.entry_timeout = 0, 3600
            return found

        async def getattr(self, inode: int, ctx: Any = None) -> Any:
            return self.made(inode)

        async def lookup(self, parent: int, name: bytes, ctx: Any = None) -> Any:
            return self.made(2)

        async def open(self, inode: int, flags: int, ctx: Any) -> Any:
            return fuse.FileInfo(fh=inode)

    fuse.init(Trivial(), there, set(fuse.default_options))
    try:
        trio.run(fuse.main)
    finally:
        fuse.close(unmount=False)


if __name__ == "__main__":
    {"mfusepy": mfusepy, "pyfuse3": pyfuse3}[sys.argv[1]](sys.argv[2])
