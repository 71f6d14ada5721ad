"""O_DIRECT: past the page cache, and still one file with who goes through it."""

import errno
import mmap
import os

from tests.posix.check import check, each, not_run, same
from tests.posix.file import opened, read, write

UNIT = 4096


def _opened(flags: int) -> int:
    try:
        return os.open("a", flags | os.O_DIRECT, 0o644)
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
        not_run("no O_DIRECT here")


def _buffer(data: bytes) -> mmap.mmap:
    """Data at the start of a page, as O_DIRECT wants it."""
    buffer = mmap.mmap(-1, max(len(data), UNIT))
    buffer.write(data)
    return buffer


@each({f"{count}_units": (count,) for count in (1, 3, 64, 300)})
def round_trip(count: int) -> None:
    """open(2): aligned data written with O_DIRECT are read with it and without: {case}."""
    data = os.urandom(count * UNIT)
    file = _opened(os.O_RDWR | os.O_CREAT)
    same(os.write(file, _buffer(data)), len(data))
    room = _buffer(bytes(len(data)))
    same((os.preadv(file, [room], 0), room[:]), (len(data), data))
    same(read("a"), data)


@check
def sees_what_the_cache_holds() -> None:
    """open(2): a direct read sees what was just written through the page cache."""
    file = opened("a")
    os.pwrite(file, b"c" * UNIT * 4, 0)
    direct = _opened(os.O_RDONLY)
    room = _buffer(bytes(UNIT))
    same((os.preadv(direct, [room], UNIT), room[:]), (UNIT, b"c" * UNIT))


@check
def is_seen_through_the_cache() -> None:
    """open(2): a read through the page cache sees what was just written directly, read before or not."""
    write("a", b"o" * UNIT * 4)
    file = os.open("a", os.O_RDONLY)
    same(os.pread(file, UNIT, UNIT), b"o" * UNIT)
    direct = _opened(os.O_WRONLY)
    os.pwrite(direct, _buffer(b"n" * UNIT), UNIT)
    same((os.pread(file, UNIT, UNIT), os.pread(file, 1, 0)), (b"n" * UNIT, b"o"))


@check
def extends_the_file() -> None:
    """open(2): a direct write behind the end makes the file longer, with zeros in between."""
    file = _opened(os.O_RDWR | os.O_CREAT)
    os.pwrite(file, _buffer(b"x" * UNIT), 3 * UNIT)
    same((os.fstat(file).st_size, read("a")), (4 * UNIT, bytes(3 * UNIT) + b"x" * UNIT))


@check
def ends_at_the_end() -> None:
    """read(2): a direct read across the end is short."""
    write("a", b"x" * (UNIT + 100))
    file = _opened(os.O_RDONLY)
    room = _buffer(bytes(2 * UNIT))
    same((os.preadv(file, [room], 0), os.preadv(file, [room], 2 * UNIT)), (UNIT + 100, 0))


@check
def appends() -> None:
    """open(2): O_APPEND with O_DIRECT writes at the end."""
    write("a", b"x" * UNIT)
    file = _opened(os.O_WRONLY | os.O_APPEND)
    os.write(file, _buffer(b"y" * UNIT))
    os.write(file, _buffer(b"z" * UNIT))
    same(read("a"), b"x" * UNIT + b"y" * UNIT + b"z" * UNIT)


@check
def beside_a_mapping() -> None:
    """open(2): a direct write is seen in a shared mapping of the file."""
    write("a", b"o" * UNIT * 2)
    file = os.open("a", os.O_RDWR)
    with mmap.mmap(file, 2 * UNIT) as mapped:
        same(mapped[:4], b"oooo")
        os.pwrite(_opened(os.O_WRONLY), _buffer(b"n" * UNIT), 0)
        same((mapped[:4], mapped[UNIT : UNIT + 4]), (b"nnnn", b"oooo"))
