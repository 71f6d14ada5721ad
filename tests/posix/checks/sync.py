"""fsync(2), sync(2), posix_fadvise(2): what is stored when."""

import errno
import os
from collections.abc import Callable

from tests.posix.check import check, each, fails, same
from tests.posix.file import opened, read, write
from tests.posix.system import SYNC_FILE_RANGE_ALL, sync_file_range, syncfs


@each(
    {
        "fsync": (os.fsync,),
        "fdatasync": (os.fdatasync,),
        "syncfs": (syncfs,),
        "sync_file_range": (lambda file: sync_file_range(file, 0, 0, SYNC_FILE_RANGE_ALL),),
        "sync": (lambda file: os.sync(),),
    }
)
def synchronised(call: Callable[[int], object]) -> None:
    """fsync(2), sync(2): {case} succeeds on a file with new data, which stay, and on one without a name."""
    file = opened("a")
    os.write(file, b"data" * 3000)
    call(file)
    same(read("a"), b"data" * 3000)
    os.unlink("a")
    os.pwrite(file, b"more", 0)
    call(file)
    same(os.pread(file, 8, 0), b"moredata")


@check
def fsync_of_a_directory() -> None:
    """fsync(2): works on a directory, and on a descriptor that only reads."""
    os.mkdir("d")
    write("d/a", b"x")
    for name in ("d", "d/a"):
        os.fsync(os.open(name, os.O_RDONLY))
        os.fdatasync(os.open(name, os.O_RDONLY))


@check
def fsync_of_a_pipe() -> None:
    """fsync(2): EINVAL for what has nothing to synchronise; sync_file_range: ESPIPE."""
    reader, _ = os.pipe()
    fails(errno.EINVAL, os.fsync, reader)
    fails(errno.ESPIPE, sync_file_range, reader, 0, 0, SYNC_FILE_RANGE_ALL)


@each(
    {
        "will_need": (os.POSIX_FADV_WILLNEED,),
        "dont_need": (os.POSIX_FADV_DONTNEED,),
        "sequential": (os.POSIX_FADV_SEQUENTIAL,),
    }
)
def advice(advised: int) -> None:
    """posix_fadvise(2): advice changes nothing of what is read: {case}."""
    file = opened("a")
    os.write(file, b"0123456789" * 5000)
    os.posix_fadvise(file, 0, 0, advised)
    same(os.pread(file, 10, 40_000), b"0123456789")
