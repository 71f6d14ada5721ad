"""truncate(2), ftruncate(2): sizes, what is left behind them, and errors."""

import errno
import os
import resource
import signal
from collections.abc import Callable

from tests.posix.check import changes_process, check, each, fails, same
from tests.posix.file import folder, later, opened, read, touch, write
from tests.posix.user import ALICE, acting_as

SIZES = (0, 1, 511, 4095, 4096, 4097, 65536, 131073, 1 << 20)
DATA = bytes(range(1, 252)) * 600


def _by_path(size: int) -> None:
    os.truncate("a", size)


def _by_descriptor(size: int) -> None:
    file = os.open("a", os.O_RDWR)
    os.ftruncate(file, size)
    os.close(file)


@each(
    {
        f"{how}_to_{size}": (call, size)
        for how, call in (("truncate", _by_path), ("ftruncate", _by_descriptor))
        for size in SIZES
    }
)
def sets_the_size(call: Callable[[int], None], size: int) -> None:
    """truncate(2): {case}: the size is as asked, what was below it stays, what is new reads as zeros."""
    write("a", DATA)
    call(size)
    same(os.stat("a").st_size, size)
    same(read("a"), DATA[:size] + bytes(max(0, size - len(DATA))))


@each({"in_a_page": (100, 3000), "over_pages": (4095, 20_000), "from_nothing": (0, 5000), "by_one": (8191, 8192)})
def what_was_cut_stays_cut(low: int, high: int) -> None:
    """truncate(2): after shrinking and growing again the cut part reads as zeros, {case}."""
    file = opened("a")
    os.pwrite(file, b"x" * 30_000, 0)
    os.ftruncate(file, low)
    os.ftruncate(file, high)
    wanted = b"x" * low + bytes(high - low)
    same((os.pread(file, 40_000, 0), read("a")), (wanted, wanted))


@check
def growing_after_a_write_in_the_last_page() -> None:
    """truncate(2): the tail of the last page reads as zeros when the file grows by a write behind it."""
    file = opened("a")
    os.pwrite(file, b"y" * 4096, 0)
    os.ftruncate(file, 10)
    os.pwrite(file, b"z", 8000)
    same(os.pread(file, 9000, 0), b"y" * 10 + bytes(7990) + b"z")


@check
def the_offset_stays() -> None:
    """ftruncate(2): the file offset is not changed; a write behind the end leaves a hole of zeros."""
    file = opened("a")
    os.write(file, b"0123456789")
    os.ftruncate(file, 3)
    same(os.lseek(file, 0, os.SEEK_CUR), 10)
    same(os.read(file, 5), b"")
    os.write(file, b"x")
    same(read("a"), b"012" + bytes(7) + b"x")


@check
def is_seen_by_other_descriptors() -> None:
    """truncate(2): every descriptor sees the new size at once."""
    write("a", b"0123456789")
    file = os.open("a", os.O_RDONLY)
    same(os.read(file, 2), b"01")
    os.truncate("a", 5)
    same((os.read(file, 10), os.fstat(file).st_size), (b"234", 5))
    os.truncate("a", 8)
    same(os.read(file, 10), bytes(3))


@check
def a_file_without_a_name() -> None:
    """ftruncate(2): works on a file that was unlinked."""
    file = opened("a")
    os.write(file, b"content")
    os.unlink("a")
    os.ftruncate(file, 3)
    same((os.fstat(file).st_size, os.pread(file, 10, 0)), (3, b"con"))


@check
def frees_the_blocks() -> None:
    """truncate(2): the space of what is cut is free again."""
    file = opened("a")
    os.write(file, b"x" * (1 << 20))
    os.fsync(file)
    assert os.fstat(file).st_blocks >= 2048
    os.ftruncate(file, 0)
    os.fsync(file)
    # A file system may count blocks of its own bookkeeping to the file.
    assert os.fstat(file).st_blocks <= 16


@check
def a_terabyte() -> None:
    """truncate(2): a file may be longer than its blocks: 1 TiB, and nearly nothing of it stored."""
    write("a", b"start")
    os.truncate("a", 1 << 40)
    found = os.stat("a")
    same(found.st_size, 1 << 40)
    assert found.st_blocks < 1024
    file = os.open("a", os.O_RDONLY)
    same((os.pread(file, 6, 0), os.pread(file, 10, (1 << 40) - 5)), (b"start\0", bytes(5)))


@check
def a_negative_size() -> None:
    """truncate(2): EINVAL for a negative size."""
    file = opened("a")
    fails(errno.EINVAL, os.truncate, "a", -1)
    fails(errno.EINVAL, os.ftruncate, file, -1)


@check
def beyond_what_any_file_can_be() -> None:
    """truncate(2): EFBIG or EINVAL for a size above the largest one."""
    write("a", b"kept")
    size = (1 << 63) - 1
    try:
        os.truncate("a", size)
    except OSError as error:
        if error.errno not in (errno.EFBIG, errno.EINVAL):
            raise
        same(read("a"), b"kept")
    else:
        same(os.stat("a").st_size, size)


@check
def a_directory() -> None:
    """truncate(2): EISDIR for a directory; ftruncate: EINVAL for its descriptor."""
    os.mkdir("d")
    fails(errno.EISDIR, os.truncate, "d", 0)
    fails((errno.EINVAL, errno.EBADF), os.ftruncate, os.open("d", os.O_RDONLY), 0)


@check
def a_read_only_descriptor() -> None:
    """ftruncate(2): EINVAL or EBADF for a descriptor that is not open for writing."""
    write("a", b"kept")
    fails((errno.EINVAL, errno.EBADF), os.ftruncate, os.open("a", os.O_RDONLY), 0)
    same(read("a"), b"kept")


@check
def special_files() -> None:
    """truncate(2): EINVAL for what is no regular file."""
    os.mkfifo("f")
    fails(errno.EINVAL, os.truncate, "f", 0)


@each({"missing": ("none", errno.ENOENT), "below_a_file": ("a/b", errno.ENOTDIR), "empty": ("", errno.ENOENT)})
def a_wrong_path_fails(path: str, expected: int) -> None:
    """truncate(2): the error of a path that cannot be: {case}."""
    write("a")
    fails(expected, os.truncate, path, 0)


@check
def needs_write_permission() -> None:
    """truncate(2): EACCES when the user may not write the file."""
    touch("a", 0o644)
    with acting_as(ALICE):
        fails(errno.EACCES, os.truncate, "a", 0)


@check
def by_descriptor_needs_no_permission() -> None:
    """ftruncate(2): a descriptor open for writing suffices, whatever the mode says by now."""
    folder("d", 0o777)
    with acting_as(ALICE):
        file = opened("d/a")
        os.write(file, b"content")
        os.chmod("d/a", 0)
        os.ftruncate(file, 2)
        same(os.pread(file, 10, 0), b"co")


@each({"shorter": (3,), "longer": (100,)})
def marks_the_times(size: int) -> None:
    """truncate(2), ftruncate(2): a size that becomes {case} marks mtime and ctime for update."""
    for call in (_by_path, _by_descriptor):
        write("a", b"content")
        os.utime("a", ns=(10**18, 10**18))
        before = os.stat("a").st_ctime_ns
        later()
        call(size)
        after = os.stat("a")
        assert after.st_mtime_ns > before
        assert after.st_ctime_ns > before
        same(after.st_atime_ns, 10**18)


@each({"truncate": (_by_path,), "ftruncate": (_by_descriptor,)})
def over_the_limit(call: Callable[[int], None]) -> None:
    """truncate(2), setrlimit(2): above RLIMIT_FSIZE, {case} sends SIGXFSZ and fails with EFBIG."""
    write("a", b"kept")
    changes_process()
    came: list[int] = []
    signal.signal(signal.SIGXFSZ, lambda number, frame: came.append(number))
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, resource.RLIM_INFINITY))
    fails(errno.EFBIG, call, 10_001)
    same((came, os.stat("a").st_size), ([signal.SIGXFSZ], 4))
    call(10_000)
    same(os.stat("a").st_size, 10_000)
