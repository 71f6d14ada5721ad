"""System calls that Python lacks, by way of libc, raising OSError as ``os`` does."""

from __future__ import annotations

import ctypes
import errno
import os
import struct
from collections.abc import Iterator
from dataclasses import dataclass

AT_FDCWD = -100
AT_SYMLINK_NOFOLLOW = 0x100
AT_SYMLINK_FOLLOW = 0x400
AT_EMPTY_PATH = 0x1000
RENAME_NOREPLACE = 1
RENAME_EXCHANGE = 2
RENAME_WHITEOUT = 4
FALLOC_KEEP_SIZE = 0x01
FALLOC_PUNCH_HOLE = 0x02
FALLOC_COLLAPSE_RANGE = 0x08
FALLOC_ZERO_RANGE = 0x10
FALLOC_INSERT_RANGE = 0x20
UTIME_NOW = (1 << 30) - 1
UTIME_OMIT = (1 << 30) - 2
STATX_MODE = 0x2
STATX_BASIC_STATS = 0x7FF
STATX_BTIME = 0x800
RESOLVE_NO_XDEV = 0x01
RESOLVE_NO_MAGICLINKS = 0x02
RESOLVE_NO_SYMLINKS = 0x04
RESOLVE_BENEATH = 0x08
RESOLVE_IN_ROOT = 0x10
MS_RDONLY, MS_REMOUNT, MS_BIND, MS_REC, MS_PRIVATE = 1, 32, 4096, 16384, 1 << 18
CLONE_NEWNS = 0x20000
SYNC_FILE_RANGE_ALL = 7
# The same numbers on every architecture: both are newer than the common table of system calls.
SYS_OPENAT2 = 437
SYS_FCHMODAT2 = 452

libc = ctypes.CDLL(None, use_errno=True)


def _raise(path: str | bytes | None = None) -> None:
    number = ctypes.get_errno()
    raise OSError(number, os.strerror(number), path)


def _checked(value: int, path: str | bytes | None = None) -> int:
    if value == -1:
        _raise(path)
    return value


def renameat2(old: str, new: str, flags: int) -> None:
    """renameat2(2) in the working directory."""
    _checked(libc.renameat2(AT_FDCWD, os.fsencode(old), AT_FDCWD, os.fsencode(new), ctypes.c_uint(flags)), old)


def linkat(old_at: int, old: str, new: str, flags: int) -> None:
    """linkat(2) to a name in the working directory."""
    _checked(libc.linkat(old_at, os.fsencode(old), AT_FDCWD, os.fsencode(new), flags), new)


def fallocate(file: int, how: int, offset: int, length: int) -> None:
    """fallocate(2)."""
    _checked(libc.fallocate(file, how, ctypes.c_int64(offset), ctypes.c_int64(length)))


def utimensat(path: str, atime: tuple[int, int], mtime: tuple[int, int], flags: int = 0) -> None:
    """utimensat(2) with raw (seconds, nanoseconds), so that UTIME_NOW and UTIME_OMIT can be said."""
    times = (ctypes.c_long * 4)(*atime, *mtime)
    _checked(libc.utimensat(AT_FDCWD, os.fsencode(path), times, flags), path)


def sync_file_range(file: int, offset: int, length: int, flags: int) -> None:
    """sync_file_range(2)."""
    _checked(libc.sync_file_range(file, ctypes.c_int64(offset), ctypes.c_int64(length), ctypes.c_uint(flags)))


def syncfs(file: int) -> None:
    """syncfs(2)."""
    _checked(libc.syncfs(file))


def openat2(at: int, path: str, flags: int, resolve: int, permissions: int = 0) -> int:
    """openat2(2)."""
    how = struct.pack("<QQQ", flags | os.O_CLOEXEC, permissions, resolve)
    return _checked(libc.syscall(SYS_OPENAT2, at, os.fsencode(path), how, ctypes.c_size_t(len(how))), path)


def fchmodat2(path: str, permissions: int, flags: int) -> None:
    """fchmodat2(2), or libc's fchmodat where the kernel lacks it."""
    found = libc.syscall(SYS_FCHMODAT2, AT_FDCWD, os.fsencode(path), permissions, flags)
    if found == -1 and ctypes.get_errno() == errno.ENOSYS:
        found = libc.fchmodat(AT_FDCWD, os.fsencode(path), permissions, flags)
    _checked(found, path)


def unshare_mounts() -> None:
    """Give this process mounts of its own, that no other sees."""
    _checked(libc.unshare(CLONE_NEWNS))
    mount(b"none", b"/", MS_REC | MS_PRIVATE)


def mount(source: bytes, target: bytes, flags: int) -> None:
    """mount(2) without a type."""
    _checked(libc.mount(source, target, None, ctypes.c_ulong(flags), None), target)


def umount(target: bytes) -> None:
    """umount(2)."""
    _checked(libc.umount2(target, 0), target)


@dataclass(frozen=True)
class Statx:
    """What statx(2) tells of a file; times in nanoseconds."""

    mask: int
    attributes: int
    nlink: int
    mode: int
    ino: int
    size: int
    blocks: int
    atime: int
    btime: int
    ctime: int
    mtime: int


def statx(path: str, flags: int = AT_SYMLINK_NOFOLLOW, mask: int = STATX_BASIC_STATS | STATX_BTIME) -> Statx:
    """statx(2) of a name in the working directory."""
    buffer = ctypes.create_string_buffer(256)
    _checked(libc.statx(AT_FDCWD, os.fsencode(path), flags, ctypes.c_uint(mask), buffer), path)
    found, _, attributes, nlink, _, _, mode, ino, size, blocks, _ = struct.unpack_from("<IIQIIIHxxQQQQ", buffer)
    times = [
        seconds * 10**9 + nanoseconds for seconds, nanoseconds in struct.iter_unpack("<qIxxxx", buffer.raw[64:128])
    ]
    return Statx(found, attributes, nlink, mode, ino, size, blocks, *times)


class _Dirent(ctypes.Structure):
    _fields_ = (
        ("ino", ctypes.c_uint64),
        ("off", ctypes.c_int64),
        ("length", ctypes.c_uint16),
        ("type", ctypes.c_uint8),
        ("name", ctypes.c_char * 256),
    )


libc.opendir.restype = libc.readdir.restype = ctypes.c_void_p
libc.telldir.restype = ctypes.c_long
for _function in (libc.readdir, libc.telldir, libc.rewinddir, libc.closedir):
    _function.argtypes = [ctypes.c_void_p]
libc.seekdir.argtypes = [ctypes.c_void_p, ctypes.c_long]


@dataclass(frozen=True)
class Entry:
    """One directory entry."""

    name: bytes
    ino: int
    type: int


class Directory:
    """A directory stream: opendir(3), readdir(3), telldir(3), seekdir(3), rewinddir(3)."""

    def __init__(self, path: str = ".") -> None:
        self._stream = libc.opendir(os.fsencode(path))
        if not self._stream:
            _raise(path)

    def next(self) -> Entry | None:
        """The next entry; None at the end."""
        ctypes.set_errno(0)
        at = libc.readdir(self._stream)
        if not at:
            if ctypes.get_errno():
                _raise()
            return None
        found = ctypes.cast(at, ctypes.POINTER(_Dirent)).contents
        return Entry(found.name, found.ino, found.type)

    def __iter__(self) -> Iterator[Entry]:
        while (entry := self.next()) is not None:
            yield entry

    def names(self) -> list[bytes]:
        """The names from here to the end, without ``.`` and ``..``."""
        return [entry.name for entry in self if entry.name not in (b".", b"..")]

    def tell(self) -> int:
        """telldir(3)."""
        return int(libc.telldir(self._stream))

    def seek(self, position: int) -> None:
        """seekdir(3)."""
        libc.seekdir(self._stream, position)

    def rewind(self) -> None:
        """rewinddir(3)."""
        libc.rewinddir(self._stream)

    def close(self) -> None:
        """closedir(3)."""
        libc.closedir(self._stream)
