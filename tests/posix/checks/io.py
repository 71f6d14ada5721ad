"""read(2), write(2) and their kin: sizes, offsets, vectors, errors."""

import errno
import os
import resource
import signal
from collections.abc import Callable

from tests.posix.check import changes_process, check, each, fails, same
from tests.posix.file import opened, read, write, write_all

DATA = bytes(range(251)) * 20_000


@each({str(size): (size,) for size in (1, 511, 4096, 4097, 65536, 131_072, 1 << 20, (4 << 20) + 3)})
def round_trip(size: int) -> None:
    """write(2), read(2): what is written is read, through this descriptor and a new one: {case} bytes."""
    file = opened("a")
    write_all(file, DATA[:size])
    same((os.pread(file, size + 10, 0), os.fstat(file).st_size), (DATA[:size], size))
    same(read("a"), DATA[:size])


@each(
    {
        f"{length}_at_{offset}": (offset, length)
        for offset in (0, 1, 4095, 4096, 65_535, 1_000_003)
        for length in (1, 4096, 100_001)
    }
)
def pwrite_and_pread(offset: int, length: int) -> None:
    """pwrite(2), pread(2): change and read just the range, and leave the offset: {case}."""
    write("a", DATA[:1_200_000])
    file = os.open("a", os.O_RDWR)
    os.lseek(file, 7, os.SEEK_SET)
    same(os.pwrite(file, b"\xff" * length, offset), length)
    same(os.lseek(file, 0, os.SEEK_CUR), 7)
    wanted = DATA[:offset] + b"\xff" * length + DATA[offset + length : 1_200_000]
    same(os.pread(file, length + 20, max(0, offset - 10)), wanted[max(0, offset - 10) :][: length + 20])
    same(read("a"), wanted)


@check
def vectors() -> None:
    """readv(2), writev(2): buffers are written and filled one after the other."""
    file = opened("a")
    same(os.writev(file, [b"one,", b"", b"two,", b"three"]), 13)
    os.lseek(file, 0, os.SEEK_SET)
    first, second, third = bytearray(2), bytearray(5), bytearray(20)
    same(os.readv(file, [first, second, third]), 13)
    same((bytes(first), bytes(second), bytes(third[:6])), (b"on", b"e,two", b",three"))


@check
def vectors_at_an_offset() -> None:
    """preadv(2), pwritev(2): combine vectors with an offset."""
    file = opened("a")
    same(os.pwritev(file, [b"ab", b"cd"], 3), 4)
    buffers = [bytearray(1), bytearray(2)]
    same(os.preadv(file, buffers, 4), 3)
    same((bytes(buffers[0]), bytes(buffers[1]), os.lseek(file, 0, os.SEEK_CUR)), (b"b", b"cd", 0))


@check
def a_thousand_vectors() -> None:
    """writev(2): up to IOV_MAX (1024) buffers are one write."""
    file = opened("a")
    pieces = [bytes([index % 256]) * 100 for index in range(1024)]
    same(os.writev(file, pieces), 102_400)
    same(read("a"), b"".join(pieces))
    fails(errno.EINVAL, os.writev, file, [b"x"] * 1025)


@check
def short_at_the_end() -> None:
    """read(2): a read across the end is short, one at or behind it returns 0."""
    write("a", b"x" * 5000)
    file = os.open("a", os.O_RDONLY)
    same(
        [len(os.pread(file, 4096, offset)) for offset in (0, 4000, 4999, 5000, 6000, 1 << 40)], [4096, 1000, 1, 0, 0, 0]
    )


@check
def zero_bytes() -> None:
    """read(2), write(2): a count of zero transfers nothing and is no error."""
    file = opened("a")
    same((os.write(file, b""), os.pwrite(file, b"", 100), os.read(file, 0)), (0, 0, b""))
    same(os.fstat(file).st_size, 0)


@check
def a_negative_offset() -> None:
    """pread(2), pwrite(2): EINVAL for a negative offset."""
    file = opened("a")
    fails(errno.EINVAL, os.pread, file, 1, -1)
    fails(errno.EINVAL, os.pwrite, file, b"x", -1)


@check
def beyond_any_file() -> None:
    """pwrite(2): EFBIG at the largest offset; nothing is written."""
    file = opened("a")
    fails((errno.EFBIG, errno.EINVAL), os.pwrite, file, b"x", (1 << 63) - 1)
    same(os.fstat(file).st_size, 0)


@check
def a_closed_descriptor() -> None:
    """read(2), write(2), fsync(2): EBADF for a descriptor that is closed."""
    file = opened("a")
    os.close(file)
    for call in (
        lambda: os.read(file, 1),
        lambda: os.write(file, b"x"),
        lambda: os.fsync(file),
        lambda: os.fstat(file),
    ):
        fails(errno.EBADF, call)


@check
def is_seen_at_once_by_all() -> None:
    """write(2): a read that follows a write returns the new data, through any descriptor."""
    files = [opened("a") for _ in range(4)]
    for turn in range(40):
        os.pwrite(files[turn % 4], b"%04d" % turn, 0)
        same([os.pread(file, 4, 0) for file in files], [b"%04d" % turn] * 4)


@check
def size_is_seen_at_once() -> None:
    """write(2): the size is the new one for stat, fstat and SEEK_END after each write."""
    file, other = opened("a"), opened("a")
    for size in (1, 100, 4096, 5000, 100_000):
        os.pwrite(file, b"x", size - 1)
        same((os.stat("a").st_size, os.fstat(other).st_size, os.lseek(other, 0, os.SEEK_END)), (size,) * 3)


@check
def overwriting_keeps_the_rest() -> None:
    """write(2): bytes around a write stay, at every alignment."""
    wanted = bytearray(b"." * 20_000)
    write("a", bytes(wanted))
    file = os.open("a", os.O_RDWR)
    for offset in (0, 1, 4094, 4096, 8191, 12_287, 19_990):
        os.pwrite(file, b"#####", offset)
        wanted[offset : offset + 5] = b"#####"
    same(os.pread(file, 30_000, 0), bytes(wanted))
    os.fsync(file)
    os.close(file)
    same(read("a"), bytes(wanted))


@check
def through_write_only_descriptors() -> None:
    """write(2): a part of a page is written though the descriptor cannot read the rest."""
    write("a", b"0123456789" * 1000)
    file = os.open("a", os.O_WRONLY)
    os.pwrite(file, b"xy", 5003)
    os.close(file)
    same(read("a"), b"0123456789" * 500 + b"012xy56789" + b"0123456789" * 499)


@check
def backwards() -> None:
    """pwrite(2): a file written from its end to its start is whole."""
    file = opened("a")
    for offset in range(99_000, -1, -1000):
        os.pwrite(file, DATA[offset : offset + 1000], offset)
    same(read("a"), DATA[:100_000])


@check
def small_pieces() -> None:
    """write(2): ten thousand bytes written one by one are ten thousand bytes."""
    file = opened("a")
    for offset in range(2000):
        os.write(file, DATA[offset : offset + 1])
    same(os.pread(file, 3000, 0), DATA[:2000])


@each(
    {"write": (lambda file: os.write(file, b"x" * 100),), "pwrite": (lambda file: os.pwrite(file, b"x" * 100, 1000),)}
)
def over_the_limit(call: Callable[[int], int]) -> None:
    """setrlimit(2), write(2): a write across RLIMIT_FSIZE is cut, one behind it fails with EFBIG and SIGXFSZ: {case}."""
    changes_process()
    came: list[int] = []
    signal.signal(signal.SIGXFSZ, lambda number, frame: came.append(number))
    file = opened("a")
    os.lseek(file, 1000, os.SEEK_SET)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1050, resource.RLIM_INFINITY))
    same(call(file), 50)
    os.lseek(file, 1050, os.SEEK_SET)
    fails(errno.EFBIG, os.write, file, b"x")
    same((came, os.fstat(file).st_size), ([signal.SIGXFSZ], 1050))
