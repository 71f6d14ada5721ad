"""mmap(2) of files: shared and private, with writes and truncations beside it."""

import errno
import mmap
import os
import signal

from tests.posix.check import check, each, fails, same
from tests.posix.file import opened, read, write
from tests.posix.peer import Line, Peer

PAGE = mmap.PAGESIZE
READ_ONLY = mmap.ACCESS_READ


def _mapped(size: int = 4 * PAGE, data: bytes | None = None) -> tuple[int, mmap.mmap]:
    file = opened("a")
    os.pwrite(file, b"." * size if data is None else data, 0)
    return file, mmap.mmap(file, size)


@check
def reads_the_file() -> None:
    """mmap(2): a mapping shows the file's content."""
    data = os.urandom(2 * PAGE + 100)
    write("a", data)
    file = os.open("a", os.O_RDONLY)
    with mmap.mmap(file, len(data), access=READ_ONLY) as mapped:
        same(mapped[:], data)


@check
def shared_writes_reach_the_file() -> None:
    """mmap(2): stores to a shared mapping are seen by read at once and are in the file afterwards."""
    file, mapped = _mapped()
    mapped[PAGE - 2 : PAGE + 2] = b"abcd"
    same(os.pread(file, 4, PAGE - 2), b"abcd")
    mapped.flush()
    mapped.close()
    os.close(file)
    same(read("a")[PAGE - 3 : PAGE + 3], b".abcd.")


@check
def writes_reach_the_mapping() -> None:
    """mmap(2): what write puts into the file is seen in a shared mapping at once."""
    file, mapped = _mapped()
    same(mapped[10:14], b"....")
    os.pwrite(file, b"abcd", 10)
    same(mapped[8:16], b"..abcd..")
    os.pwrite(file, b"x" * PAGE, 2 * PAGE)
    same(mapped[2 * PAGE : 3 * PAGE], b"x" * PAGE)


@check
def private_writes_stay_private() -> None:
    """mmap(2): stores to a private mapping do not reach the file."""
    write("a", b"." * PAGE)
    file = os.open("a", os.O_RDONLY)
    mapped = mmap.mmap(file, PAGE, access=mmap.ACCESS_COPY)
    mapped[:4] = b"mine"
    same((mapped[:6], read("a")), (b"mine..", b"." * PAGE))


@check
def two_mappings_are_one() -> None:
    """mmap(2): two shared mappings of a file show each other's stores."""
    _, one = _mapped()
    two = mmap.mmap(os.open("a", os.O_RDWR), 4 * PAGE)
    one[5:8] = b"one"
    two[PAGE : PAGE + 3] = b"two"
    same((two[5:8], one[PAGE : PAGE + 3]), (b"one", b"two"))


@check
def two_processes_share_it() -> None:
    """mmap(2): a shared mapping is shared between processes."""
    _, mapped = _mapped()

    def other(line: Line) -> bytes:
        mine = mmap.mmap(os.open("a", os.O_RDWR), 4 * PAGE)
        line.hear()
        found = mine[:5]
        mine[100:105] = b"reply"
        return found

    peer = Peer(other)
    mapped[:5] = b"hello"
    peer.line.say()
    same((peer.result(), mapped[100:105]), (b"hello", b"reply"))


@check
def outlives_its_descriptor() -> None:
    """mmap(2): closing the descriptor does not unmap."""
    file, mapped = _mapped()
    os.close(file)
    mapped[:3] = b"abc"
    mapped.flush()
    same(read("a")[:4], b"abc.")


@check
def outlives_its_name() -> None:
    """mmap(2), unlink(2): a mapping keeps a file alive that has no name and no descriptor."""
    file, mapped = _mapped()
    os.close(file)
    os.unlink("a")
    same(mapped[3 * PAGE : 3 * PAGE + 2], b"..")
    mapped[:3] = b"abc"
    mapped.flush()
    same(mapped[:4], b"abc.")


@check
def at_an_offset() -> None:
    """mmap(2): a mapping may start at any page of the file."""
    data = os.urandom(8 * PAGE)
    write("a", data)
    mapped = mmap.mmap(os.open("a", os.O_RDWR), 2 * PAGE, offset=5 * PAGE)
    same(mapped[:], data[5 * PAGE : 7 * PAGE])
    mapped[:4] = b"here"
    mapped.flush()
    same(os.pread(os.open("a", os.O_RDONLY), 4, 5 * PAGE), b"here")


@check
def growing_by_truncate() -> None:
    """mmap(2), ftruncate(2): stores to a part that ftruncate added are in the file."""
    file = opened("a")
    os.ftruncate(file, 3 * PAGE)
    mapped = mmap.mmap(file, 3 * PAGE)
    same(mapped[:], bytes(3 * PAGE))
    mapped[2 * PAGE :] = b"z" * PAGE
    mapped.flush()
    same(read("a"), bytes(2 * PAGE) + b"z" * PAGE)


@check
def behind_the_end() -> None:
    """mmap(2): SIGBUS for an access to a page behind the file's end."""
    _, mapped = _mapped()

    def other(line: Line) -> None:
        os.truncate("a", PAGE)
        signal.signal(signal.SIGBUS, signal.SIG_DFL)
        _ = mapped[0]
        line.say("in reach")
        _ = mapped[2 * PAGE]
        line.say("beyond")

    peer = Peer(other)
    same((peer.line.hear(), peer.line.hear()), ("in reach", ""))
    _, status = os.waitpid(peer.pid, 0)
    same(os.waitstatus_to_exitcode(status), -signal.SIGBUS)


@check
def cut_and_grown() -> None:
    """ftruncate(2): what was cut off reads as zeros in a mapping after the file grew again."""
    file, mapped = _mapped()
    os.ftruncate(file, 100)
    os.ftruncate(file, 4 * PAGE)
    same((mapped[:100], mapped[100 : 2 * PAGE]), (b"." * 100, bytes(2 * PAGE - 100)))


@check
def the_rest_of_the_last_page() -> None:
    """mmap(2): what is stored behind the end, in the last page, does not get into the file."""
    file, mapped = _mapped(PAGE)
    os.ftruncate(file, 100)
    mapped[100:110] = b"not stored"[:10]
    mapped.flush()
    mapped.close()
    os.ftruncate(file, 200)
    same(read("a"), b"." * 100 + bytes(100))


@check
def read_into_itself() -> None:
    """read(2), write(2): a mapping of a file may be the buffer for another file's data."""
    _, mapped = _mapped()
    write("b", b"from b" * 1000)
    other = os.open("b", os.O_RDWR)
    same(os.preadv(other, [memoryview(mapped)[:3000]], 0), 3000)
    same(mapped[:6], b"from b")
    mapped[:4] = b"back"
    os.pwrite(other, memoryview(mapped)[:4], 0)
    same(read("b")[:6], b"back b")


@each({"msync": (True,), "close": (False,)})
def is_stored_by(flushes: bool) -> None:
    """msync(2), munmap(2): stores are in the file after {case}, and mtime is marked."""
    file, mapped = _mapped()
    os.utime("a", ns=(10**18, 10**18))
    mapped[PAGE : PAGE + 4] = b"data"
    if flushes:
        mapped.flush()
    mapped.close()
    os.close(file)
    same(read("a")[PAGE : PAGE + 5], b"data.")
    os.sync()
    assert os.stat("a").st_mtime_ns > 10**18


@check
def needs_a_readable_descriptor() -> None:
    """mmap(2): EACCES when the descriptor is not open for reading, or a shared writable one not for writing."""
    write("a", b"." * PAGE)
    fails(errno.EACCES, mmap.mmap, os.open("a", os.O_WRONLY), PAGE)
    fails(errno.EACCES, mmap.mmap, os.open("a", os.O_RDONLY), PAGE, access=mmap.ACCESS_WRITE)


@check
def of_a_directory() -> None:
    """mmap(2): ENODEV or EACCES for a directory."""
    os.mkdir("d")
    file = os.open("d", os.O_RDONLY)
    fails((errno.ENODEV, errno.EACCES), mmap.mmap, file, PAGE, access=READ_ONLY)


@check
def many_pages_at_random() -> None:
    """mmap(2): stores all over a file of some megabytes come out as they were made."""
    size = 1024 * PAGE
    file = opened("a")
    os.ftruncate(file, size)
    mapped = mmap.mmap(file, size)
    wanted = bytearray(size)
    for turn in range(500):
        at = turn * 7_919 * 13 % (size - 8)
        mapped[at : at + 8] = wanted[at : at + 8] = b"%08d" % turn
    mapped.flush()
    mapped.close()
    os.close(file)
    same(read("a") == bytes(wanted), True, "the file is what was stored")
