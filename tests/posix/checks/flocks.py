"""flock(2): locks of open file descriptions."""

import errno
import fcntl
import os
import signal
from collections.abc import Callable

from tests.posix.check import changes_process, check, each, fails, same
from tests.posix.file import opened, write
from tests.posix.lock import Lock, after_close, lock
from tests.posix.peer import Line, Peer

SHARED, EXCLUSIVE, UNLOCK = fcntl.LOCK_SH, fcntl.LOCK_EX, fcntl.LOCK_UN
NOW = fcntl.LOCK_NB


@each(
    {
        "shared_shared": (SHARED, SHARED, True),
        "shared_exclusive": (SHARED, EXCLUSIVE, False),
        "exclusive_shared": (EXCLUSIVE, SHARED, False),
        "exclusive_exclusive": (EXCLUSIVE, EXCLUSIVE, False),
    }
)
def compatible(one: int, two: int, may: bool) -> None:
    """flock(2): shared locks go together, an exclusive one with no other: EWOULDBLOCK with LOCK_NB: {case}."""
    first, second = opened("a"), opened("a")
    fcntl.flock(first, one | NOW)
    if may:
        fcntl.flock(second, two | NOW)
    else:
        fails(errno.EWOULDBLOCK, fcntl.flock, second, two | NOW)
    fcntl.flock(first, UNLOCK)
    fcntl.flock(second, two | NOW)


@check
def any_access_mode() -> None:
    """flock(2): a lock of either kind can be had whatever mode the file was opened in."""
    write("a")
    for flags in (os.O_RDONLY, os.O_WRONLY, os.O_RDWR):
        for kind in (SHARED, EXCLUSIVE):
            file = os.open("a", flags)
            fcntl.flock(file, kind | NOW)
            os.close(file)


@check
def is_converted() -> None:
    """flock(2): a second call converts the lock of the same open file description."""
    first, second = opened("a"), opened("a")
    fcntl.flock(first, EXCLUSIVE | NOW)
    fcntl.flock(first, SHARED | NOW)
    fcntl.flock(second, SHARED | NOW)
    fails(errno.EWOULDBLOCK, fcntl.flock, first, EXCLUSIVE | NOW)
    fcntl.flock(second, UNLOCK)
    fcntl.flock(first, EXCLUSIVE | NOW)


@check
def a_duplicate_shares_it() -> None:
    """flock(2): duplicates refer to the same lock, which any of them may release."""
    first = opened("a")
    second, other = os.dup(first), opened("a")
    fcntl.flock(first, EXCLUSIVE | NOW)
    fcntl.flock(second, EXCLUSIVE | NOW)
    fails(errno.EWOULDBLOCK, fcntl.flock, other, SHARED | NOW)
    os.close(first)
    fails(errno.EWOULDBLOCK, fcntl.flock, other, SHARED | NOW)
    fcntl.flock(second, UNLOCK)
    fcntl.flock(other, EXCLUSIVE | NOW)


@check
def a_child_shares_it() -> None:
    """flock(2): a child of fork has the same lock; it lives until the last copy of the descriptor is closed."""
    file = opened("a")
    fcntl.flock(file, EXCLUSIVE | NOW)

    def child(line: Line) -> None:
        line.hear()
        other = os.open("a", os.O_RDWR)
        fails(errno.EWOULDBLOCK, fcntl.flock, other, SHARED | NOW)

    peer = Peer(child)
    os.close(file)
    peer.line.say()
    peer.result()
    after_close(fcntl.flock, opened("a"), EXCLUSIVE | NOW)


@each({"close": (os.close,), "unlock": (lambda file: fcntl.flock(file, UNLOCK),)})
def waits_for(release: Callable[[int], object]) -> None:
    """flock(2): without LOCK_NB it waits until the other lock is released, by {case}."""
    file = opened("a")
    fcntl.flock(file, EXCLUSIVE)

    def waiter(line: Line) -> None:
        os.close(file)
        other = os.open("a", os.O_RDWR)
        line.say("waiting")
        fcntl.flock(other, EXCLUSIVE)
        line.say("got it")

    peer = Peer(waiter)
    same(peer.line.hear(), "waiting")
    assert peer.line.silent()
    release(file)
    same(peer.line.hear(), "got it")
    peer.result()


@check
def exit_releases() -> None:
    """flock(2): the end of the process that holds it releases a lock."""
    write("a")

    def holder(line: Line) -> None:
        fcntl.flock(os.open("a", os.O_RDWR), EXCLUSIVE)
        line.say("held")
        line.hear()
        os._exit(0)

    peer = Peer(holder)
    same(peer.line.hear(), "held")
    file = opened("a")
    fails(errno.EWOULDBLOCK, fcntl.flock, file, SHARED | NOW)
    peer.line.say()
    os.waitpid(peer.pid, 0)
    fcntl.flock(file, EXCLUSIVE | NOW)


@check
def a_kill_releases() -> None:
    """flock(2): a process that is killed holds nothing."""
    changes_process()
    write("a")

    def holder(line: Line) -> None:
        fcntl.flock(os.open("a", os.O_RDWR), EXCLUSIVE)
        line.say("held")
        line.hear()

    peer = Peer(holder)
    same(peer.line.hear(), "held")
    os.kill(peer.pid, signal.SIGKILL)
    os.waitpid(peer.pid, 0)
    after_close(fcntl.flock, opened("a"), EXCLUSIVE | NOW)


@check
def of_a_directory() -> None:
    """flock(2): directories can be locked."""
    os.mkdir("d")
    first, second = os.open("d", os.O_RDONLY), os.open("d", os.O_RDONLY)
    fcntl.flock(first, EXCLUSIVE | NOW)
    fails(errno.EWOULDBLOCK, fcntl.flock, second, SHARED | NOW)
    os.close(first)
    after_close(fcntl.flock, second, SHARED | NOW)


@check
def beside_fcntl() -> None:
    """flock(2): on Linux flock and fcntl locks of a local file do not see each other."""
    first = opened("a")
    fcntl.flock(first, EXCLUSIVE | NOW)

    def other(line: Line) -> None:
        lock(os.open("a", os.O_RDWR), fcntl.F_SETLK, Lock(fcntl.F_WRLCK))

    Peer(other).result()


@check
def survives_rename_and_unlink() -> None:
    """flock(2): the lock is the open file's, whatever happens to its names."""
    file = opened("a")
    fcntl.flock(file, EXCLUSIVE | NOW)
    os.rename("a", "b")
    other = os.open("b", os.O_RDWR)
    os.unlink("b")
    fails(errno.EWOULDBLOCK, fcntl.flock, other, SHARED | NOW)


@check
def one_at_a_time() -> None:
    """flock(2): a counter that processes raise under a lock counts every turn."""
    write("a", b"0")

    def worker(line: Line) -> None:
        file = os.open("a", os.O_RDWR)
        for _ in range(20):
            fcntl.flock(file, EXCLUSIVE)
            value = int(os.pread(file, 10, 0))
            os.pwrite(file, b"%d" % (value + 1), 0)
            fcntl.flock(file, UNLOCK)

    peers = [Peer(worker) for _ in range(4)]
    for peer in peers:
        peer.result()
    same(os.pread(os.open("a", os.O_RDONLY), 10, 0), b"80")
