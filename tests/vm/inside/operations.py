"""Has the guest's kernel send each operation that it can send: ``operations.py done|refused DIRECTORY``.

``done`` has them succeed, ``refused`` has them fail: what changes something because the share is read-only, which its mount
does X
"""
# ruff: noqa: PT017, PT018 - there is no pytest in the guest

import ctypes
import errno
import fcntl
import os
import stat
import struct
import sys

FS_IOC_GETFLAGS, UNKNOWN_IOCTL = 0x80086601, 0x80047A7A
AT_FDCWD, AT_SYMLINK_NOFOLLOW, STATX_BTIME = -100, 0x100, 0x800
RENAME_NOREPLACE = 1
HUGE = 1 << 60
libc = ctypes.CDLL(None, use_errno=True)


def called(result):
    if result < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return result


def renameat2(old, new, flags):
    called(libc.renameat2(AT_FDCWD, os.fsencode(old), AT_FDCWD, os.fsencode(new), flags))


def birth(path):
    buffer = ctypes.create_string_buffer(256)
    called(libc.statx(AT_FDCWD, os.fsencode(path), AT_SYMLINK_NOFOLLOW, STATX_BTIME, buffer))
    return int.from_bytes(buffer.raw[:4], "little") & STATX_BTIME


def fails(expected, call, *arguments, **named):
    try:
        call(*arguments, **named)
    except OSError as error:
        assert error.errno == expected, f"{call}: {errno.errorcode[error.errno]}, not {errno.errorcode[expected]}"
    else:
        raise AssertionError(f"{call} succeeded, {errno.errorcode[expected]} expected")


def lock(kind, start, size):
    return struct.pack("hhqqixxxx", kind, os.SEEK_SET, start, size, 0)


def done():
    os.mkdir("d")
    os.mknod("fifo", stat.S_IFIFO | 0o600)
    os.symlink("file", "link")
    assert os.readlink("link") == "file"
    fd = os.open("new", os.O_CREAT | os.O_RDWR)
    os.write(fd, bytes(8192))
    os.posix_fallocate(fd, 0, 65536)
    called(libc.fallocate(fd, 3, ctypes.c_long(0), ctypes.c_long(4096)))
    assert os.lseek(fd, 0, os.SEEK_DATA) >= 0
    os.fsync(fd)
    fcntl.ioctl(fd, FS_IOC_GETFLAGS, bytes(8))
    to = os.open("copy", os.O_CREAT | os.O_RDWR)
    assert os.copy_file_range(fd, to, 8192, offset_src=0) == 8192
    # Beyond what any file of the host may be.
    fails(errno.EFBIG, os.posix_fallocate, fd, 0, HUGE)
    fails(errno.EFBIG, os.pwrite, fd, b"x", HUGE)
    fails(errno.EFBIG, os.ftruncate, fd, HUGE)
    fails(errno.EFBIG, os.copy_file_range, fd, to, 4096, offset_src=0, offset_dst=HUGE)
    fcntl.fcntl(fd, fcntl.F_SETLK, lock(fcntl.F_WRLCK, 0, 1))
    fcntl.fcntl(fd, fcntl.F_GETLK, lock(fcntl.F_WRLCK, 0, 1))
    fcntl.fcntl(fd, fcntl.F_SETLKW, lock(fcntl.F_WRLCK, 1, 1))
    os.close(fd)
    os.close(to)
    os.close(os.open(".", os.O_TMPFILE | os.O_RDWR))
    os.chmod("new", 0o640)
    os.link("new", "hard")
    os.rename("new", "renamed")
    renameat2("renamed", "once", RENAME_NOREPLACE)
    os.unlink("hard")
    os.rmdir("d")
    os.setxattr("once", "user.a", b"1")
    assert os.getxattr("once", "user.a") == b"1" and "user.a" in os.listxattr("once")
    os.removexattr("once", "user.a")
    assert birth("once")
    directory = os.open(".", os.O_RDONLY)
    os.fsync(directory)
    # More than fits in one answer: only the first brings attributes when nobody asks for them.
    assert len(os.listdir("sub")) == 2000
    called(libc.syncfs(directory))
    os.close(directory)
    with open("file", "rb") as file:
        file.read()
    os.statvfs(".")


def refused():
    fails(errno.ENOENT, os.stat, "nothing")
    fails(errno.EROFS, os.mkdir, "other")
    fails(errno.EROFS, os.mknod, "other", stat.S_IFIFO | 0o600)
    fails(errno.EROFS, os.symlink, "file", "other")
    fails(errno.EINVAL, os.readlink, "file")
    fails(errno.EROFS, os.open, "other", os.O_CREAT | os.O_RDWR)
    fails(errno.EROFS, os.open, "file", os.O_RDWR)
    fails(errno.EROFS, os.open, ".", os.O_TMPFILE | os.O_RDWR)
    fails(errno.EROFS, os.chmod, "file", 0o640)
    fails(errno.EROFS, os.link, "file", "other")
    fails(errno.EROFS, os.rename, "file", "other")
    fails(errno.EROFS, renameat2, "file", "other", RENAME_NOREPLACE)
    fails(errno.EROFS, os.unlink, "file")
    fails(errno.EROFS, os.rmdir, "sub")
    fails(errno.EROFS, os.setxattr, "file", "user.a", b"1")
    fails(errno.ENODATA, os.getxattr, "file", "user.none")
    fails(errno.EROFS, os.removexattr, "file", "user.mark")
    fd = os.open("file", os.O_RDONLY)
    fails(errno.ENXIO, os.lseek, fd, 1 << 20, os.SEEK_DATA)
    fails(errno.ENOTTY, fcntl.ioctl, fd, UNKNOWN_IOCTL, bytes(4))
    fails(errno.ERANGE, called_listxattr, "file")
    fails(errno.EAGAIN, fcntl.fcntl, fd, fcntl.F_SETLK, lock(fcntl.F_RDLCK, 0, 1))
    os.close(fd)


def called_listxattr(path):
    called(libc.listxattr(os.fsencode(path), ctypes.create_string_buffer(1), ctypes.c_size_t(1)))


if __name__ == "__main__":
    os.chdir(sys.argv[2])
    {"done": done, "refused": refused}[sys.argv[1]]()
