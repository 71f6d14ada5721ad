"""fcntl(2): record locks of processes."""

import errno
import fcntl
import os
from collections.abc import Callable

from tests.posix.check import check, each, fails, same
from tests.posix.file import opened, write
from tests.posix.lock import Lock, lock
from tests.posix.peer import Line, Peer

READ, WRITE, UNLOCK = fcntl.F_RDLCK, fcntl.F_WRLCK, fcntl.F_UNLCK
REFUSED = (errno.EAGAIN, errno.EACCES)


def _take(file: int, kind: int, start: int = 0, length: int = 0, wait: bool = False) -> None:
    lock(file, fcntl.F_SETLKW if wait else fcntl.F_SETLK, Lock(kind, start, length))


def _elsewhere(kind: int, start: int = 0, length: int = 0) -> bool:
    """Whether another process gets such a lock."""

    def body(line: Line) -> bool:
        file = os.open("a", os.O_RDWR)
        try:
            _take(file, kind, start, length)
        except OSError as error:
            if error.errno in REFUSED:
                return False
            raise
        return True

    return bool(Peer(body).result())


@each(
    {
        "read_read": (READ, READ, True),
        "read_write": (READ, WRITE, False),
        "write_read": (WRITE, READ, False),
        "write_write": (WRITE, WRITE, False),
    }
)
def compatible(mine: int, theirs: int, may: bool) -> None:
    """fcntl(2): read locks go together, a write lock with no other of another process: {case}."""
    file = opened("a")
    _take(file, mine)
    same(_elsewhere(theirs), may)
    _take(file, UNLOCK)
    same(_elsewhere(theirs), True)


@each(
    {
        "before": (0, 10, True),
        "up_to": (5, 5, True),
        "first_byte": (0, 11, False),
        "inside": (12, 2, False),
        "last_byte": (19, 5, False),
        "behind": (20, 5, True),
        "all": (0, 0, False),
    }
)
def ranges(start: int, length: int, may: bool) -> None:
    """fcntl(2): bytes 10 to 19 are locked, no others: {case}."""
    file = opened("a")
    _take(file, WRITE, 10, 10)
    same(_elsewhere(WRITE, start, length), may)


@check
def beyond_the_end() -> None:
    """fcntl(2): locks reach beyond the end of the file, with length 0 to whatever it becomes."""
    file = opened("a")
    _take(file, WRITE, 1 << 40, 0)
    same((_elsewhere(WRITE, 0, 1 << 40), _elsewhere(WRITE, 1 << 50, 1)), (True, False))


@check
def own_locks_do_not_conflict() -> None:
    """fcntl(2): a process replaces its own locks, through any descriptor."""
    one, two = opened("a"), opened("a")
    _take(one, WRITE, 0, 10)
    _take(two, READ, 0, 10)
    same((_elsewhere(READ, 0, 10), _elsewhere(WRITE, 0, 10)), (True, False))


@check
def unlocking_a_part() -> None:
    """fcntl(2): unlocking the middle of a range leaves its two ends locked."""
    file = opened("a")
    _take(file, WRITE, 0, 30)
    _take(file, UNLOCK, 10, 10)
    same([_elsewhere(WRITE, start, 10) for start in (0, 10, 20)], [False, True, False])


@check
def joining_ranges() -> None:
    """fcntl(2): neighbouring locks of one kind are one, which GETLK tells."""
    file = opened("a")
    _take(file, WRITE, 0, 10)
    _take(file, WRITE, 10, 10)

    def other(line: Line) -> tuple[int, int, int]:
        found = lock(os.open("a", os.O_RDWR), fcntl.F_GETLK, Lock(WRITE))
        return found.type, found.start, found.length

    same(Peer(other).result(), (WRITE, 0, 20))


@check
def getlk_tells_the_holder() -> None:
    """fcntl(2): F_GETLK tells kind, range and process of a lock that stands in the way."""
    file = opened("a")
    _take(file, WRITE, 5, 7)

    def other(line: Line) -> Lock:
        return lock(os.open("a", os.O_RDWR), fcntl.F_GETLK, Lock(READ))

    same(Peer(other).result(), Lock(WRITE, 5, 7, os.getpid()))


@check
def getlk_of_a_free_range() -> None:
    """fcntl(2): F_GETLK answers F_UNLCK where nothing stands in the way, one's own lock included."""
    file = opened("a")
    _take(file, WRITE, 5, 7)
    same(lock(file, fcntl.F_GETLK, Lock(WRITE)).type, UNLOCK)

    def other(line: Line) -> int:
        return lock(os.open("a", os.O_RDWR), fcntl.F_GETLK, Lock(WRITE, 100, 1)).type

    same(Peer(other).result(), UNLOCK)


@each({"held": (False,), "another": (True,)})
def closing_releases(another: bool) -> None:
    """fcntl(2): closing any descriptor of the file releases all locks of the process: {case} one."""
    file = opened("a")
    _take(file, WRITE)
    os.close(opened("a") if another else file)
    same(_elsewhere(WRITE), True)


@check
def exit_releases() -> None:
    """fcntl(2): the end of a process releases its locks."""
    write("a")

    def holder(line: Line) -> None:
        _take(os.open("a", os.O_RDWR), WRITE)
        line.say("held")
        line.hear()
        os._exit(0)

    peer = Peer(holder)
    same(peer.line.hear(), "held")
    same(_elsewhere(WRITE), False)
    peer.line.say()
    os.waitpid(peer.pid, 0)
    same(_elsewhere(WRITE), True)


@check
def a_child_has_none() -> None:
    """fcntl(2): locks are not inherited by a child of fork, and its close does not release the parent's."""
    file = opened("a")
    _take(file, WRITE)

    def child(line: Line) -> None:
        fails(REFUSED, _take, file, WRITE)
        os.close(file)

    Peer(child).result()
    same(_elsewhere(WRITE), False)


@check
def follows_the_inode() -> None:
    """fcntl(2): locks are the file's: they hold under every name, through rename and after unlink."""
    file = opened("a")
    os.link("a", "b")
    _take(file, WRITE)
    os.rename("b", "c")
    os.unlink("a")
    os.rename("c", "a")
    same(_elsewhere(WRITE), False)


def _waits(kind: int, release: Callable[[int], object]) -> None:
    """A second process waits for a lock of the first and gets it by its release."""
    file = opened("a")
    _take(file, WRITE)

    def waiter(line: Line) -> None:
        other = os.open("a", os.O_RDWR)
        line.say("waiting")
        _take(other, kind, wait=True)
        line.say("got it")

    peer = Peer(waiter)
    same(peer.line.hear(), "waiting")
    assert peer.line.silent()
    release(file)
    same(peer.line.hear(), "got it")
    peer.result()


@each(
    {
        "unlock": (READ, lambda file: _take(file, UNLOCK)),
        "downgrade": (READ, lambda file: _take(file, READ)),
        "close": (WRITE, os.close),
    }
)
def setlkw_waits_for(kind: int, release: Callable[[int], object]) -> None:
    """fcntl(2): F_SETLKW waits until the lock that is in the way is gone, by {case}."""
    _waits(kind, release)


@check
def setlkw_waits_for_an_exit() -> None:
    """fcntl(2): F_SETLKW gets the lock when its holder ends."""
    write("a")

    def holder(line: Line) -> None:
        _take(os.open("a", os.O_RDWR), WRITE)
        line.say("held")
        line.hear()
        os._exit(0)

    peer = Peer(holder)
    same(peer.line.hear(), "held")
    peer.line.say()
    _take(os.open("a", os.O_RDWR), WRITE, wait=True)
    os.waitpid(peer.pid, 0)


@check
def deadlock_is_found() -> None:
    """fcntl(2): EDEADLK for F_SETLKW where two processes would wait for each other."""
    write("a")
    mine = os.open("a", os.O_RDWR)
    _take(mine, WRITE, 0, 1)

    def other(line: Line) -> str:
        file = os.open("a", os.O_RDWR)
        _take(file, WRITE, 1, 1)
        line.say("held")
        return _or_deadlock(file, 0)

    peer = Peer(other)
    same(peer.line.hear(), "held")
    outcome = _or_deadlock(mine, 1)
    if outcome == "EDEADLK":
        _take(mine, UNLOCK)
    same(sorted([outcome, str(peer.result())]), ["EDEADLK", "got it"])


def _or_deadlock(file: int, start: int) -> str:
    try:
        _take(file, WRITE, start, 1, wait=True)
    except OSError as error:
        if error.errno != errno.EDEADLK:
            raise
        _take(file, UNLOCK)
        return "EDEADLK"
    _take(file, UNLOCK)
    return "got it"


@check
def one_at_a_time() -> None:
    """fcntl(2): a counter that processes raise under F_SETLKW counts every turn."""
    write("a", b"0")

    def worker(line: Line) -> None:
        file = os.open("a", os.O_RDWR)
        for _ in range(20):
            _take(file, WRITE, wait=True)
            value = int(os.pread(file, 10, 0))
            os.pwrite(file, b"%d" % (value + 1), 0)
            _take(file, UNLOCK)

    peers = [Peer(worker) for _ in range(4)]
    for peer in peers:
        peer.result()
    same(os.pread(os.open("a", os.O_RDONLY), 10, 0), b"80")


@check
def needs_the_access() -> None:
    """fcntl(2): EBADF for a read lock by a write-only descriptor, a write lock by a read-only one."""
    write("a")
    fails(errno.EBADF, _take, os.open("a", os.O_RDONLY), WRITE)
    fails(errno.EBADF, _take, os.open("a", os.O_WRONLY), READ)


@check
def refuses_nonsense() -> None:
    """fcntl(2): EINVAL for an unknown kind and for a start before the file."""
    file = opened("a")
    fails(errno.EINVAL, _take, file, 77)
    fails(errno.EINVAL, _take, file, WRITE, -5, 1)


@check
def a_negative_length() -> None:
    """fcntl(2): a negative length locks the bytes before the start."""
    file = opened("a")
    _take(file, WRITE, 20, -10)
    same([_elsewhere(WRITE, start, 1) for start in (9, 10, 19, 20)], [True, False, False, True])
