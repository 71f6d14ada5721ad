"""O_APPEND: every write goes to the end, whoever wrote before."""

import errno
import fcntl
import os

from tests.posix.check import check, each, not_run, same
from tests.posix.file import closed, opened, read, write, write_all
from tests.posix.peer import Line, Peer

APPEND = os.O_WRONLY | os.O_CREAT | os.O_APPEND


@check
def goes_to_the_end() -> None:
    """open(2): with O_APPEND the offset is set to the end before each write."""
    write("a", b"old,")
    file = os.open("a", APPEND)
    os.lseek(file, 0, os.SEEK_SET)
    os.write(file, b"one,")
    os.lseek(file, 1, os.SEEK_SET)
    os.write(file, b"two")
    same(read("a"), b"old,one,two")


@check
def leaves_the_offset_at_the_end() -> None:
    """open(2): after an appending write the offset is the new end of the file."""
    write("a", b"12345")
    file = os.open("a", APPEND)
    same(os.lseek(file, 0, os.SEEK_CUR), 0)
    os.write(file, b"678")
    same(os.lseek(file, 0, os.SEEK_CUR), 8)


@check
def reads_from_anywhere() -> None:
    """open(2): O_APPEND says nothing about reads: a descriptor for both reads where lseek put it."""
    write("a", b"0123456789")
    file = os.open("a", os.O_RDWR | os.O_APPEND)
    os.lseek(file, 2, os.SEEK_SET)
    same(os.read(file, 3), b"234")
    os.write(file, b"x")
    os.lseek(file, 9, os.SEEK_SET)
    same(os.read(file, 10), b"9x")


@check
def pwrite_appends() -> None:
    """pwrite(2), BUGS: on Linux pwrite with O_APPEND appends, whatever the offset."""
    write("a", b"0123456789")
    file = os.open("a", APPEND)
    os.pwrite(file, b"x", 2)
    same(read("a"), b"0123456789x")


@check
def two_descriptors() -> None:
    """open(2): each append goes behind what the other descriptor wrote."""
    one, two = os.open("a", APPEND), os.open("a", APPEND)
    for turn in range(20):
        os.write(one if turn % 3 else two, b"%02d" % turn)
    same(read("a"), b"".join(b"%02d" % turn for turn in range(20)))


@check
def beside_a_writer_without_it() -> None:
    """open(2): an append goes behind what another descriptor wrote beyond the end."""
    appender, other = os.open("a", APPEND), opened("a")
    os.write(appender, b"aa")
    os.pwrite(other, b"bb", 5)
    os.write(appender, b"cc")
    same(read("a"), b"aa" + bytes(3) + b"bbcc")


@check
def after_a_truncation() -> None:
    """open(2): the end is where it is at the time of the write."""
    file = os.open("a", APPEND)
    os.write(file, b"0123456789")
    os.truncate("a", 4)
    os.write(file, b"x")
    os.ftruncate(file, 0)
    os.write(file, b"y")
    same(read("a"), b"y")


@check
def switched_on_and_off() -> None:
    """fcntl(2): F_SETFL sets and clears O_APPEND of an open file."""
    write("a", b"0123456789")
    file = os.open("a", os.O_RDWR)
    flags = fcntl.fcntl(file, fcntl.F_GETFL)
    fcntl.fcntl(file, fcntl.F_SETFL, flags | os.O_APPEND)
    os.write(file, b"x")
    fcntl.fcntl(file, fcntl.F_SETFL, flags)
    os.lseek(file, 0, os.SEEK_SET)
    os.write(file, b"y")
    same(read("a"), b"y123456789x")


@each({"one_byte": (1,), "a_page": (4096,), "odd": (5000,), "a_megabyte": (1 << 20,)})
def of_size(size: int) -> None:
    """write(2): appends of {case} follow each other without gap or overlap."""
    pieces = [bytes([65 + turn]) * size for turn in range(4)]
    file = os.open("a", APPEND)
    for piece in pieces:
        write_all(file, piece)
    same(read("a"), b"".join(pieces))


@check
def several_processes() -> None:
    """open(2): the seek to the end and the write are one step: no process overwrites another's record."""

    def writer(name: bytes) -> None:
        file = os.open("log", APPEND)
        for turn in range(100):
            os.write(file, name + b"%03d\n" % turn)

    peers = [Peer(lambda line, name=name: writer(name)) for name in (b"a", b"b", b"c", b"d")]  # type: ignore[misc]
    for peer in peers:
        peer.result()
    lines = read("log").splitlines()
    same(sorted(lines), sorted(b"%c%03d" % (name, turn) for name in b"abcd" for turn in range(100)))
    for name in b"abcd":
        mine = [line for line in lines if line[0] == name]
        same(mine, sorted(mine), "the order of one process's records")


@check
def by_one_write() -> None:
    """pwritev2(2): RWF_APPEND appends with this write alone."""
    write("a", b"0123456789")
    file = os.open("a", os.O_RDWR)
    try:
        os.pwritev(file, [b"xy"], 0, os.RWF_APPEND)
    except OSError as error:
        if error.errno != errno.EOPNOTSUPP:
            raise
        not_run("the kernel lacks RWF_APPEND here")
    os.pwrite(file, b"z", 0)
    same(read("a"), b"z123456789xy")


@check
def is_kept_by_a_child() -> None:
    """fork(2): appends of parent and child through one open file description follow each other."""
    file = os.open("a", APPEND)

    def child(line: Line) -> None:
        os.write(file, b"child,")
        line.say()
        line.hear()
        os.write(file, b"child")

    peer = Peer(child)
    peer.line.hear()
    os.write(file, b"parent,")
    peer.line.say()
    peer.result()
    closed(file)
    same(read("a"), b"child,parent,child")
