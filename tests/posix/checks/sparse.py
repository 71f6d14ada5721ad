"""Holes: lseek(2) with SEEK_HOLE and SEEK_DATA, offsets beyond 4 GiB, blocks in use."""

import errno
import os

from tests.posix.check import check, each, fails, not_run, same
from tests.posix.file import opened, read, write

MIB = 1 << 20


def _holed() -> int:
    """A file with data in [4 MiB, 5 MiB) and a size of 8 MiB; not run where the file system finds no holes."""
    file = opened("a")
    os.pwrite(file, b"d" * MIB, 4 * MIB)
    os.ftruncate(file, 8 * MIB)
    os.fsync(file)
    if os.lseek(file, 0, os.SEEK_HOLE) != 0:
        not_run("the file system does not tell holes")
    return file


@each(
    {
        "data_from_start": (os.SEEK_DATA, 0, 4 * MIB),
        "data_in_data": (os.SEEK_DATA, 4 * MIB + 5, 4 * MIB + 5),
        "hole_in_hole": (os.SEEK_HOLE, 5, 5),
        "hole_from_data": (os.SEEK_HOLE, 4 * MIB, 5 * MIB),
        "hole_in_the_last_hole": (os.SEEK_HOLE, 7 * MIB, 7 * MIB),
    }
)
def finds(whence: int, start: int, wanted: int) -> None:
    """lseek(2): the next data or hole at or after an offset: {case}."""
    file = _holed()
    same(os.lseek(file, start, whence), wanted)
    same(os.lseek(file, 0, os.SEEK_CUR), wanted)


@check
def no_more_data() -> None:
    """lseek(2): ENXIO for SEEK_DATA when only a hole follows."""
    fails(errno.ENXIO, os.lseek, _holed(), 6 * MIB, os.SEEK_DATA)


@each(
    {"data_at_the_end": (os.SEEK_DATA, 100), "hole_at_the_end": (os.SEEK_HOLE, 100), "data_behind": (os.SEEK_DATA, 200)}
)
def beyond_the_end(whence: int, offset: int) -> None:
    """lseek(2): ENXIO for SEEK_DATA and SEEK_HOLE at or beyond the end: {case}."""
    file = opened("a")
    os.write(file, b"x" * 100)
    fails(errno.ENXIO, os.lseek, file, offset, whence)
    same(os.lseek(file, 0, os.SEEK_CUR), 100)


@check
def the_end_is_a_hole() -> None:
    """lseek(2): every file has an implicit hole at its end."""
    file = opened("a")
    os.write(file, b"x" * 5000)
    same(os.lseek(file, 0, os.SEEK_HOLE), 5000)
    same(os.lseek(file, 0, os.SEEK_DATA), 0)


@check
def unsynced_data_is_data() -> None:
    """lseek(2): data that was just written is found, synchronised or not."""
    file = opened("a")
    os.ftruncate(file, 16 * MIB)
    os.pwrite(file, b"x", 8 * MIB)
    found = os.lseek(file, 0, os.SEEK_DATA)
    assert found <= 8 * MIB
    assert os.lseek(file, 8 * MIB, os.SEEK_HOLE) > 8 * MIB


@check
def a_hole_takes_no_blocks() -> None:
    """lseek(2): a gap that was never written takes no space, and reads as zeros."""
    file = opened("a")
    os.pwrite(file, b"end", 256 * MIB)
    os.fsync(file)
    assert os.fstat(file).st_blocks < 2048
    same(os.pread(file, 8192, 100 * MIB), bytes(8192))


@each(
    {
        "below_2_gib": ((2 << 30) - 2,),
        "below_4_gib": ((4 << 30) - 2,),
        "at_5_gib": (5 << 30,),
        "at_1_tib": (1 << 40,),
        "odd_at_3_tib": ((3 << 40) + 12345,),
    }
)
def writes_far_out(offset: int) -> None:
    """pwrite(2): an offset has 64 bits: data around {case} comes back."""
    file = opened("a")
    os.pwrite(file, b"abcdef", offset)
    same(os.fstat(file).st_size, offset + 6)
    same((os.pread(file, 10, offset), os.pread(file, 4, offset - 3)), (b"abcdef", bytes(3) + b"a"))
    again = os.open("a", os.O_RDONLY)
    same(os.lseek(again, -6, os.SEEK_END), offset)
    same(os.read(again, 10), b"abcdef")


@check
def seeking_does_not_grow() -> None:
    """lseek(2): an offset beyond the end changes nothing until something is written there."""
    file = opened("a")
    same(os.lseek(file, 1 << 40, os.SEEK_SET), 1 << 40)
    same(os.fstat(file).st_size, 0)
    same(os.read(file, 10), b"")
    os.lseek(file, 10, os.SEEK_SET)
    os.write(file, b"x")
    same(read("a"), bytes(10) + b"x")


@each({"before_the_start": (-1, os.SEEK_SET), "from_here": (-1, os.SEEK_CUR), "from_the_end": (-1, os.SEEK_END)})
def a_negative_offset(offset: int, whence: int) -> None:
    """lseek(2): EINVAL for an offset that would be negative, and the offset stays: {case}."""
    file = opened("a")
    fails(errno.EINVAL, os.lseek, file, offset, whence)
    same(os.lseek(file, 0, os.SEEK_CUR), 0)


@check
def from_the_end() -> None:
    """lseek(2): SEEK_END counts from the size as it is now, after another descriptor changed it."""
    file, other = opened("a"), opened("a")
    os.write(file, b"12345")
    same(os.lseek(other, 0, os.SEEK_END), 5)
    os.write(file, b"678")
    same(os.lseek(other, -1, os.SEEK_END), 7)
    os.truncate("a", 2)
    same(os.lseek(other, 0, os.SEEK_END), 2)


@check
def an_unknown_whence() -> None:
    """lseek(2): EINVAL for a whence that is none."""
    write("a")
    fails(errno.EINVAL, os.lseek, os.open("a", os.O_RDONLY), 0, 99)
