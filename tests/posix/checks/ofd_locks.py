"""fcntl(2): open file description locks."""

import errno
import fcntl
import os

from tests.posix.check import check, each, fails, same
from tests.posix.file import opened, write
from tests.posix.lock import F_OFD_GETLK, F_OFD_SETLK, F_OFD_SETLKW, Lock, after_close, lock
from tests.posix.peer import Line, Peer

READ, WRITE, UNLOCK = fcntl.F_RDLCK, fcntl.F_WRLCK, fcntl.F_UNLCK


def _take(file: int, kind: int, start: int = 0, length: int = 0) -> None:
    lock(file, F_OFD_SETLK, Lock(kind, start, length))


@each(
    {
        "read_read": (READ, READ, True),
        "read_write": (READ, WRITE, False),
        "write_read": (WRITE, READ, False),
        "write_write": (WRITE, WRITE, False),
    }
)
def compatible(one: int, two: int, may: bool) -> None:
    """fcntl(2), F_OFD_SETLK: locks of two opens conflict within a process too: {case}."""
    first, second = opened("a"), opened("a")
    _take(first, one)
    if may:
        _take(second, two)
    else:
        fails(errno.EAGAIN, _take, second, two)


@check
def ranges() -> None:
    """fcntl(2), F_OFD_SETLK: ranges that do not meet do not conflict."""
    first, second = opened("a"), opened("a")
    _take(first, WRITE, 10, 10)
    _take(second, WRITE, 0, 10)
    _take(second, WRITE, 20, 0)
    fails(errno.EAGAIN, _take, second, WRITE, 15, 1)


@check
def a_duplicate_is_the_same_owner() -> None:
    """fcntl(2), F_OFD_SETLK: duplicates and a child's descriptor share the lock, it stays until the last is closed."""
    first = opened("a")
    _take(first, WRITE)
    duplicate, other = os.dup(first), opened("a")
    _take(duplicate, WRITE)
    os.close(first)
    fails(errno.EAGAIN, _take, other, WRITE)
    os.close(duplicate)
    after_close(_take, other, WRITE)


@check
def closing_another_open_keeps_it() -> None:
    """fcntl(2), F_OFD_SETLK: unlike a process's locks it is not lost when another descriptor of the file is closed."""
    first, other = opened("a"), opened("a")
    _take(first, WRITE)
    os.close(opened("a"))
    fails(errno.EAGAIN, _take, other, WRITE)


@check
def against_a_process_lock() -> None:
    """fcntl(2): both kinds conflict with each other, in one process too."""
    first, other = opened("a"), opened("a")
    lock(first, fcntl.F_SETLK, Lock(WRITE))
    fails(errno.EAGAIN, _take, other, READ)
    lock(first, fcntl.F_SETLK, Lock(UNLOCK))
    _take(other, WRITE)
    fails((errno.EAGAIN, errno.EACCES), lock, first, fcntl.F_SETLK, Lock(READ))


@check
def getlk() -> None:
    """fcntl(2), F_OFD_GETLK: tells the lock in the way, with pid -1."""
    first, other = opened("a"), opened("a")
    _take(first, WRITE, 5, 7)
    same(lock(other, F_OFD_GETLK, Lock(READ)), Lock(WRITE, 5, 7, -1))
    same(lock(first, F_OFD_GETLK, Lock(READ)).type, UNLOCK)


@check
def a_pid_is_refused() -> None:
    """fcntl(2), F_OFD_SETLK: EINVAL unless l_pid is 0."""
    fails(errno.EINVAL, lock, opened("a"), F_OFD_SETLK, Lock(WRITE, pid=1))


@check
def waits() -> None:
    """fcntl(2), F_OFD_SETLKW: waits until the range is free."""
    write("a")
    first = os.open("a", os.O_RDWR)
    _take(first, WRITE)

    def waiter(line: Line) -> None:
        other = os.open("a", os.O_RDWR)
        line.say("waiting")
        lock(other, F_OFD_SETLKW, Lock(WRITE))
        line.say("got it")

    peer = Peer(waiter)
    same(peer.line.hear(), "waiting")
    assert peer.line.silent()
    _take(first, UNLOCK)
    same(peer.line.hear(), "got it")
    peer.result()


@check
def exit_releases() -> None:
    """fcntl(2), F_OFD_SETLK: the end of the last process that has the descriptor releases the lock."""
    write("a")

    def holder(line: Line) -> None:
        _take(os.open("a", os.O_RDWR), WRITE)

    Peer(holder).result()
    _take(opened("a"), WRITE)
