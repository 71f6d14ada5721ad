"""ioctl(2) of files: inode flags, and what every file knows."""

import array
import errno
import fcntl
import os
import struct

from tests.posix.check import check, each, fails, not_run, same
from tests.posix.file import opened, read, write
from tests.posix.user import need_root

FS_IOC_GETFLAGS, FS_IOC_SETFLAGS = 0x80086601, 0x40086602
FS_IOC_FSGETXATTR = 0x801C581F
IMMUTABLE, APPEND_ONLY, NODUMP, NOATIME = 0x10, 0x20, 0x40, 0x80


def _flags(file: int) -> int:
    value = array.array("l", [0])
    try:
        fcntl.ioctl(file, FS_IOC_GETFLAGS, value)
    except OSError as error:
        if error.errno not in (errno.ENOTTY, errno.EOPNOTSUPP):
            raise
        not_run("the file system has no inode flags")
    return value[0] & 0xFFFFFFFF


def _set_flags(file: int, flags: int) -> None:
    fcntl.ioctl(file, FS_IOC_SETFLAGS, array.array("l", [flags]))


@each({"nodump": (NODUMP,), "noatime": (NOATIME,)})
def inode_flag(flag: int) -> None:
    """ioctl_iflags(2): FS_IOC_SETFLAGS sets a flag that FS_IOC_GETFLAGS tells, until it is cleared: {case}."""
    file = opened("a")
    before = _flags(file)
    _set_flags(file, before | flag)
    same(_flags(os.open("a", os.O_RDONLY)) & flag, flag)
    _set_flags(file, before)
    same(_flags(file), before)


@check
def immutable() -> None:
    """ioctl_iflags(2): an immutable file is not written, linked, renamed or removed, by root neither."""
    need_root()
    write("a", b"kept")
    file = os.open("a", os.O_RDONLY)
    before = _flags(file)
    try:
        _set_flags(file, before | IMMUTABLE)
    except OSError as error:
        not_run(f"no immutable files here: {error.strerror}")
    try:
        fails((errno.EPERM, errno.EACCES), os.open, "a", os.O_WRONLY)
        for call in (
            lambda: os.truncate("a", 0),
            lambda: os.link("a", "b"),
            lambda: os.rename("a", "b"),
            lambda: os.unlink("a"),
        ):
            fails((errno.EPERM, errno.EACCES), call)
        fails((errno.EPERM, errno.EACCES), os.chmod, "a", 0o777)
        same(read("a"), b"kept")
    finally:
        _set_flags(file, before)
    os.unlink("a")


@check
def append_only() -> None:
    """ioctl_iflags(2): an append-only file is opened for appending alone and not cut."""
    need_root()
    write("a", b"old,")
    file = os.open("a", os.O_RDONLY)
    before = _flags(file)
    try:
        _set_flags(file, before | APPEND_ONLY)
    except OSError as error:
        not_run(f"no append-only files here: {error.strerror}")
    try:
        fails(errno.EPERM, os.open, "a", os.O_WRONLY)
        fails(errno.EPERM, os.open, "a", os.O_WRONLY | os.O_APPEND | os.O_TRUNC)
        fails(errno.EPERM, os.truncate, "a", 0)
        os.write(os.open("a", os.O_WRONLY | os.O_APPEND), b"new")
        same(read("a"), b"old,new")
    finally:
        _set_flags(file, before)


@check
def extended_inode_flags() -> None:
    """ioctl_xfs_fsgetxattr(2): FS_IOC_FSGETXATTR tells flags and project of a file."""
    file = opened("a")
    buffer = bytearray(28)
    try:
        fcntl.ioctl(file, FS_IOC_FSGETXATTR, buffer)
    except OSError as error:
        if error.errno not in (errno.ENOTTY, errno.EOPNOTSUPP):
            raise
        not_run("the file system has no extended inode flags")
    same(struct.unpack_from("<I", buffer, 12)[0], 0, "the project")


@check
def unknown_ioctl() -> None:
    """ioctl(2): ENOTTY for a request that the file does not know."""
    fails(errno.ENOTTY, fcntl.ioctl, opened("a"), 0x5401, bytearray(64))


@check
def bytes_to_read() -> None:
    """ioctl(2), FIONREAD: tells how many bytes lie between the offset and the end of a file."""
    write("a", b"0123456789")
    file = os.open("a", os.O_RDONLY)
    os.read(file, 3)
    value = array.array("i", [0])
    fcntl.ioctl(file, 0x541B, value)
    same(value[0], 7)
