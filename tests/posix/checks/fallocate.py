"""fallocate(2): allocating, punching, zeroing, collapsing and inserting ranges."""

import errno
import os
import resource
import signal

from tests.posix.check import changes_process, check, each, fails, not_run, same
from tests.posix.file import later, opened, read, write
from tests.posix.system import (
    FALLOC_COLLAPSE_RANGE,
    FALLOC_INSERT_RANGE,
    FALLOC_KEEP_SIZE,
    FALLOC_PUNCH_HOLE,
    FALLOC_ZERO_RANGE,
    fallocate,
)

BLOCK = 1 << 16
DATA = b"".join(bytes([65 + index]) * BLOCK for index in range(4))
PUNCH = FALLOC_PUNCH_HOLE | FALLOC_KEEP_SIZE


def _try(file: int, how: int, offset: int, length: int) -> None:
    """fallocate, or the end of the check where the file system has not got this mode."""
    try:
        fallocate(file, how, offset, length)
    except OSError as error:
        if error.errno != errno.EOPNOTSUPP:
            raise
        not_run(f"no fallocate mode {how:#x} here")


def _file() -> int:
    file = opened("a")
    os.pwrite(file, DATA, 0)
    return file


@each({"new": (0, 100_000), "at_an_offset": (50_000, 50_000), "over_the_end": (BLOCK * 3, BLOCK * 5)})
def extends(offset: int, length: int) -> None:
    """fallocate(2): mode 0 makes the file at least offset + length long, the new part reads as zeros: {case}."""
    file = opened("a")
    os.pwrite(file, b"kept", 0)
    _try(file, 0, offset, length)
    same(os.fstat(file).st_size, offset + length)
    same(os.pread(file, 1 << 20, 0), b"kept" + bytes(offset + length - 4))


@check
def keeps_data_and_a_greater_size() -> None:
    """fallocate(2): mode 0 inside of a file changes neither its data nor its size."""
    file = _file()
    _try(file, 0, 1000, 5000)
    same(read("a"), DATA)


@check
def allocates() -> None:
    """fallocate(2): the blocks of the range are there afterwards."""
    file = opened("a")
    _try(file, 0, 0, 1 << 20)
    os.fsync(file)
    assert os.fstat(file).st_blocks * 512 >= 1 << 20


@check
def keep_size_allocates_behind_the_end() -> None:
    """fallocate(2): with KEEP_SIZE the size stays, while blocks are allocated behind the end."""
    file = opened("a")
    os.write(file, b"x")
    _try(file, FALLOC_KEEP_SIZE, 0, 1 << 20)
    os.fsync(file)
    found = os.fstat(file)
    same((found.st_size, read("a")), (1, b"x"))
    assert found.st_blocks * 512 >= 1 << 20


@each({"blocks": (BLOCK, 2 * BLOCK), "unaligned": (BLOCK + 5, 2 * BLOCK - 1000), "to_the_end": (3 * BLOCK, 5 * BLOCK)})
def punch_hole(offset: int, length: int) -> None:
    """fallocate(2): PUNCH_HOLE makes a range read as zeros and keeps size and neighbours: {case}."""
    file = _file()
    _try(file, PUNCH, offset, length)
    end = min(offset + length, len(DATA))
    same(read("a"), DATA[:offset] + bytes(end - offset) + DATA[end:])
    same(os.pread(file, 10, offset), bytes(10))


@check
def punch_hole_frees() -> None:
    """fallocate(2): PUNCH_HOLE deallocates whole blocks, and lseek finds the hole."""
    file = _file()
    os.fsync(file)
    before = os.fstat(file).st_blocks
    _try(file, PUNCH, BLOCK, 2 * BLOCK)
    os.fsync(file)
    assert os.fstat(file).st_blocks < before
    same(os.lseek(file, 0, os.SEEK_HOLE), BLOCK)


@check
def punch_hole_behind_the_end() -> None:
    """fallocate(2): PUNCH_HOLE behind the end changes nothing."""
    file = _file()
    _try(file, PUNCH, 10 * BLOCK, BLOCK)
    same(read("a"), DATA)


@check
def punch_hole_needs_keep_size() -> None:
    """fallocate(2): EOPNOTSUPP (EINVAL by some) for PUNCH_HOLE without KEEP_SIZE."""
    fails((errno.EOPNOTSUPP, errno.EINVAL), fallocate, _file(), FALLOC_PUNCH_HOLE, 0, BLOCK)
    same(read("a"), DATA)


@each({"blocks": (BLOCK, BLOCK), "unaligned": (100, BLOCK + 7), "over_the_end": (3 * BLOCK, 2 * BLOCK)})
def zero_range(offset: int, length: int) -> None:
    """fallocate(2): ZERO_RANGE zeroes a range and extends the file when it ends behind it: {case}."""
    file = _file()
    _try(file, FALLOC_ZERO_RANGE, offset, length)
    same(read("a"), DATA[:offset] + bytes(length) + DATA[offset + length :])


@check
def zero_range_with_keep_size() -> None:
    """fallocate(2): ZERO_RANGE with KEEP_SIZE zeroes and leaves the size."""
    file = _file()
    _try(file, FALLOC_ZERO_RANGE | FALLOC_KEEP_SIZE, 3 * BLOCK, 4 * BLOCK)
    same(read("a"), DATA[: 3 * BLOCK] + bytes(BLOCK))


@check
def collapse_range() -> None:
    """fallocate(2): COLLAPSE_RANGE removes a range; what follows moves up."""
    file = _file()
    _try(file, FALLOC_COLLAPSE_RANGE, BLOCK, BLOCK)
    same(read("a"), DATA[:BLOCK] + DATA[2 * BLOCK :])


@check
def insert_range() -> None:
    """fallocate(2): INSERT_RANGE opens a gap of zeros; what follows moves down."""
    file = _file()
    _try(file, FALLOC_INSERT_RANGE, BLOCK, BLOCK)
    same(read("a"), DATA[:BLOCK] + bytes(BLOCK) + DATA[BLOCK:])


@each(
    {
        "no_length": (0, 0, 0, errno.EINVAL),
        "negative_length": (0, 0, -1, errno.EINVAL),
        "negative_offset": (0, -1, 10, errno.EINVAL),
        "unknown_mode": (0x4000, 0, 10, errno.EOPNOTSUPP),
        "beyond_any_size": (0, (1 << 63) - 10, 100, errno.EFBIG),
    }
)
def refuses(how: int, offset: int, length: int, expected: int) -> None:
    """fallocate(2): the error of arguments that make no sense: {case}."""
    fails(expected, fallocate, _file(), how, offset, length)
    same(read("a"), DATA)


@check
def a_read_only_descriptor() -> None:
    """fallocate(2): EBADF for a descriptor that is not open for writing."""
    write("a", b"x")
    fails(errno.EBADF, fallocate, os.open("a", os.O_RDONLY), 0, 0, 100)


@check
def a_directory() -> None:
    """fallocate(2): EISDIR or EBADF for a directory."""
    os.mkdir("d")
    fails((errno.EISDIR, errno.EBADF, errno.ENODEV), fallocate, os.open("d", os.O_RDONLY), 0, 0, 100)


@check
def a_fifo() -> None:
    """fallocate(2): ESPIPE for a FIFO."""
    os.mkfifo("f")
    fails(errno.ESPIPE, fallocate, os.open("f", os.O_RDWR), 0, 0, 100)


@check
def posix_fallocate() -> None:
    """posix_fallocate(3): extends a file and keeps what it has; EINVAL for a length of 0."""
    file = opened("a")
    os.write(file, b"kept")
    os.posix_fallocate(file, 10, 5000)
    same(read("a"), b"kept" + bytes(5006))
    fails(errno.EINVAL, os.posix_fallocate, file, 0, 0)


@each({"extending": (0, 0, 10 * BLOCK), "punching": (PUNCH, 0, BLOCK)})
def marks_the_times(how: int, offset: int, length: int) -> None:
    """fallocate(2), inode(7): {case} marks mtime and ctime for update."""
    file = _file()
    os.utime("a", ns=(10**18, 10**18))
    before = os.stat("a").st_ctime_ns
    later()
    _try(file, how, offset, length)
    after = os.stat("a")
    assert after.st_ctime_ns > before
    assert after.st_mtime_ns > before


@check
def over_the_limit() -> None:
    """setrlimit(2): EFBIG and SIGXFSZ when the file would grow above RLIMIT_FSIZE."""
    changes_process()
    came: list[int] = []
    signal.signal(signal.SIGXFSZ, lambda number, frame: came.append(number))
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, resource.RLIM_INFINITY))
    file = opened("a")
    fails(errno.EFBIG, fallocate, file, 0, 0, 10_001)
    same((came, os.fstat(file).st_size), ([signal.SIGXFSZ], 0))
