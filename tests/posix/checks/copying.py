"""copy_file_range(2), sendfile(2), splice(2): data that never see the caller."""

import errno
import os
import socket

from tests.posix.check import check, each, fails, same
from tests.posix.file import opened, read, write
from tests.posix.peer import Peer

DATA = bytes(range(251)) * 2000


def _pair() -> tuple[int, int]:
    write("source", DATA)
    return os.open("source", os.O_RDONLY), opened("target")


@each(
    {"start": (0, 0, 1000), "middle": (100, 5000, 300_000), "past_the_end": (400_000, 0, 200_000), "a_byte": (7, 9, 1)}
)
def copy_file_range(from_: int, to: int, length: int) -> None:
    """copy_file_range(2): copies a range, up to the end of the source: {case}."""
    source, target = _pair()
    done = 0
    while count := os.copy_file_range(source, target, length - done, from_ + done, to + done):
        done += count
    wanted = DATA[from_ : from_ + length]
    same((done, read("target")), (len(wanted), bytes(to) + wanted))


@check
def copy_file_range_moves_offsets() -> None:
    """copy_file_range(2): without offsets the descriptors' own are used and moved."""
    source, target = _pair()
    os.lseek(source, 10, os.SEEK_SET)
    done = 0
    while done < 100:
        done += os.copy_file_range(source, target, 100 - done)
    same((os.lseek(source, 0, os.SEEK_CUR), os.lseek(target, 0, os.SEEK_CUR)), (110, 100))
    same(read("target"), DATA[10:110])


@check
def copy_file_range_at_the_end() -> None:
    """copy_file_range(2): returns 0 at or behind the end of the source."""
    source, target = _pair()
    same(os.copy_file_range(source, target, 100, len(DATA), 0), 0)
    same(os.copy_file_range(source, target, 100, len(DATA) + 5000, 0), 0)
    same(read("target"), b"")


@check
def copy_file_range_within_a_file() -> None:
    """copy_file_range(2): both ranges may be of one file, EINVAL when they overlap."""
    write("a", DATA)
    file = os.open("a", os.O_RDWR)
    same(os.copy_file_range(file, file, 1000, 0, 100_000), 1000)
    same(read("a")[99_999:101_001], DATA[99_999:100_000] + DATA[:1000] + DATA[101_000:101_001])
    fails(errno.EINVAL, os.copy_file_range, file, file, 1000, 0, 500)


@check
def copy_file_range_sees_fresh_data() -> None:
    """copy_file_range(2): copies what was just written, and what it copies is read at once."""
    source, target = opened("source"), opened("target")
    for turn in range(20):
        os.pwrite(source, b"turn %02d" % turn, 0)
        same(os.copy_file_range(source, target, 7, 0, 0), 7)
        same(os.pread(target, 10, 0), b"turn %02d" % turn)


@check
def copy_file_range_extends() -> None:
    """copy_file_range(2): the size of the target is the new one at once."""
    source, target = _pair()
    os.copy_file_range(source, target, 4096, 0, 100_000)
    same((os.fstat(target).st_size, os.stat("target").st_size), (104_096, 104_096))


@check
def copy_file_range_refuses() -> None:
    """copy_file_range(2): EBADF for descriptors without the access, or with O_APPEND; EISDIR for a directory."""
    source, target = _pair()
    os.mkdir("d")
    fails(errno.EBADF, os.copy_file_range, source, os.open("target", os.O_RDONLY), 10)
    fails(errno.EBADF, os.copy_file_range, os.open("source", os.O_WRONLY), target, 10)
    fails(errno.EBADF, os.copy_file_range, source, os.open("target", os.O_WRONLY | os.O_APPEND), 10)
    fails(errno.EISDIR, os.copy_file_range, os.open("d", os.O_RDONLY), target, 10)
    os.mkfifo("f")
    fails(errno.EINVAL, os.copy_file_range, source, os.open("f", os.O_RDWR), 10)


@check
def sendfile_to_a_socket() -> None:
    """sendfile(2): sends a file's range to a socket."""
    source, _ = _pair()
    near, far = socket.socketpair()

    def receiver() -> bytes:
        near.close()
        data = b""
        while piece := far.recv(1 << 16):
            data += piece
        return data

    peer = Peer(lambda line: receiver())
    far.close()
    done = 0
    while done < 300_000:
        done += os.sendfile(near.fileno(), source, 1000 + done, 300_000 - done)
    near.close()
    same(peer.result(), DATA[1000:301_000])


@check
def sendfile_to_a_file() -> None:
    """sendfile(2): copies from one file to another, at their offsets."""
    source, target = _pair()
    done = 0
    while count := os.sendfile(target, source, None, 1 << 20):
        done += count
    same((done, read("target")), (len(DATA), DATA))


@check
def sendfile_at_the_end() -> None:
    """sendfile(2): returns 0 at the end of the source."""
    source, target = _pair()
    same(os.sendfile(target, source, len(DATA), 100), 0)


@each({"offset": (1000,), "own_offset": (None,)})
def splice_from_a_file(offset: int | None) -> None:
    """splice(2): moves a file's data into a pipe, from the {case}."""
    source, _ = _pair()
    reader, writer = os.pipe()
    same(os.splice(source, writer, 4000, offset_src=offset), 4000)
    start = offset or 0
    same(os.read(reader, 5000), DATA[start : start + 4000])
    same(os.lseek(source, 0, os.SEEK_CUR), 0 if offset else 4000)


@each({"offset": (5000,), "own_offset": (None,)})
def splice_to_a_file(offset: int | None) -> None:
    """splice(2): moves a pipe's data into a file, to the {case}."""
    _, target = _pair()
    reader, writer = os.pipe()
    os.write(writer, DATA[:3000])
    same(os.splice(reader, target, 3000, offset_dst=offset), 3000)
    same(read("target"), bytes(offset or 0) + DATA[:3000])


@check
def splice_through_a_pipe() -> None:
    """splice(2): a file goes through a pipe into another one."""
    source, target = _pair()
    reader, writer = os.pipe()
    while count := os.splice(source, writer, 1 << 16):
        while count:
            count -= os.splice(reader, target, count)
    same(read("target"), DATA)
