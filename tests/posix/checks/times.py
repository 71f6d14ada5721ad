"""Time stamps: utimensat(2) and who changes which."""

import errno
import os
import time
from collections.abc import Callable

from tests.posix.check import check, each, fails, not_run, same
from tests.posix.file import folder, later, opened, read, touch, write
from tests.posix.system import AT_SYMLINK_NOFOLLOW, STATX_BTIME, UTIME_NOW, UTIME_OMIT, statx, utimensat
from tests.posix.user import ALICE, acting_as

SECOND = 10**9
OLD = 10**18


def _stamps(path: str) -> tuple[int, int]:
    found = os.lstat(path)
    return found.st_atime_ns, found.st_mtime_ns


@each(
    {
        "nanoseconds": (1_000_000_001, 2_123_456_789),
        "the_epoch": (0, 0),
        "before_the_epoch": (-1 * SECOND, -(10**9) * SECOND // 2),
        "before_the_epoch_with_fraction": (-1 * SECOND + 5, -2 * SECOND + 999_999_999),
        "after_2038": (2**31 * SECOND, (2**31 + 5) * SECOND + 7),
        "in_2286": (10**19 // SECOND * SECOND + 1, 10**19 // SECOND * SECOND + 2),
        "the_last_nanosecond": (SECOND - 1, SECOND - 1),
    }
)
def keeps(atime: int, mtime: int) -> None:
    """utimensat(2): atime and mtime are kept to the nanosecond: {case}."""
    write("a")
    os.utime("a", ns=(atime, mtime))
    same(_stamps("a"), (atime, mtime))


@each({"directory": (os.mkdir,), "fifo": (os.mkfifo,), "symlink": (lambda name: os.symlink("none", name),)})
def of_a(make: Callable[[str], object]) -> None:
    """utimensat(2): sets the times of a {case}, with AT_SYMLINK_NOFOLLOW of a link itself."""
    make("x")
    os.utime("x", ns=(5, 7), follow_symlinks=False)
    same(_stamps("x"), (5, 7))


@check
def by_descriptor() -> None:
    """futimens(3): sets the times of an open file, a read-only one too."""
    write("a")
    os.utime(os.open("a", os.O_RDONLY), ns=(3, 4))
    same(_stamps("a"), (3, 4))


@each(
    {"atime": ((0, UTIME_OMIT), (9, 9)), "mtime": ((9, 9), (0, UTIME_OMIT)), "both": ((0, UTIME_OMIT), (0, UTIME_OMIT))}
)
def omit(atime: tuple[int, int], mtime: tuple[int, int]) -> None:
    """utimensat(2): UTIME_OMIT leaves a time unchanged: {case}."""
    write("a")
    os.utime("a", ns=(OLD, OLD))
    utimensat("a", atime, mtime)
    wanted = [OLD if stamp[1] == UTIME_OMIT else 9 * SECOND + 9 for stamp in (atime, mtime)]
    same(_stamps("a"), tuple(wanted))


@each({"atime": (0,), "mtime": (1,), "both": (2,)})
def now(which: int) -> None:
    """utimensat(2): UTIME_NOW sets a time to the current time: {case}."""
    write("a")
    os.utime("a", ns=(OLD, OLD))
    write("before")
    later()
    stamps = [(0, UTIME_NOW) if which in (index, 2) else (0, UTIME_OMIT) for index in (0, 1)]
    utimensat("a", stamps[0], stamps[1])
    later()
    write("after")
    low, high = os.stat("before").st_mtime_ns, os.stat("after").st_mtime_ns
    for index, stamp in enumerate(_stamps("a")):
        if which in (index, 2):
            assert low < stamp < high
        else:
            same(stamp, OLD)


@each({"nanoseconds_of_a_second": (SECOND,), "negative": (-1,)})
def refuses(nanoseconds: int) -> None:
    """utimensat(2): EINVAL for nanoseconds outside of 0 to 999999999: {case}."""
    write("a")
    fails(errno.EINVAL, utimensat, "a", (0, nanoseconds), (0, 0))


@check
def a_missing_file() -> None:
    """utimensat(2): ENOENT for a name that does not exist, a dangling link too."""
    os.symlink("none", "l")
    fails(errno.ENOENT, os.utime, "none")
    fails(errno.ENOENT, os.utime, "l")
    utimensat("l", (1, 1), (1, 1), AT_SYMLINK_NOFOLLOW)


@check
def arbitrary_ones_are_the_owners() -> None:
    """utimensat(2): EPERM for given times, or for one of two, by a user who does not own the file."""
    touch("a", 0o666)
    with acting_as(ALICE):
        fails(errno.EPERM, os.utime, "a", ns=(1, 1))
        fails(errno.EPERM, utimensat, "a", (0, UTIME_NOW), (0, UTIME_OMIT))


@check
def now_is_for_all_who_may_write() -> None:
    """utimensat(2): write permission suffices to set both times to now; EACCES without it."""
    touch("a", 0o666)
    os.utime("a", ns=(OLD, OLD))
    with acting_as(ALICE):
        os.utime("a")
    assert all(stamp > OLD for stamp in _stamps("a"))
    os.chmod("a", 0o644)
    with acting_as(ALICE):
        fails(errno.EACCES, os.utime, "a")


@check
def omitting_both_needs_nothing() -> None:
    """utimensat(2): with UTIME_OMIT for both no permission is needed."""
    touch("a", 0o600)
    with acting_as(ALICE):
        utimensat("a", (0, UTIME_OMIT), (0, UTIME_OMIT))


@check
def by_the_owner_of_an_unreadable_file() -> None:
    """utimensat(2): the owner sets times whatever the mode."""
    folder("d", 0o777)
    with acting_as(ALICE):
        write("d/a", permissions=0)
        os.utime("d/a", ns=(1, 2))
        same(_stamps("d/a"), (1, 2))


@check
def set_marks_ctime() -> None:
    """utimensat(2): marks ctime for update, to now and not to what was said."""
    write("a")
    before = os.stat("a").st_ctime_ns
    later()
    os.utime("a", ns=(OLD, OLD))
    assert os.stat("a").st_ctime_ns > before


WRITES: dict[str, Callable[[int], object]] = {
    "write": lambda file: os.write(file, b"x"),
    "pwrite": lambda file: os.pwrite(file, b"x", 100),
    "writev": lambda file: os.writev(file, [b"x", b"y"]),
    "append": lambda file: os.write(os.open("a", os.O_WRONLY | os.O_APPEND), b"x"),
}


@each({name: (change,) for name, change in WRITES.items()})
def written(change: Callable[[int], object]) -> None:
    """write(2): {case} marks mtime and ctime for update, and leaves atime."""
    file = opened("a")
    os.utime("a", ns=(OLD, OLD))
    before = os.stat("a").st_ctime_ns
    later()
    change(file)
    after = os.stat("a")
    assert after.st_mtime_ns > before
    assert after.st_ctime_ns > before
    same(after.st_atime_ns, OLD)


@check
def written_and_then_set() -> None:
    """utimensat(2): times set after a write stay, through fsync and close and for who looks later."""
    file = opened("a")
    os.write(file, b"data" * 5000)
    os.utime("a", ns=(OLD, OLD + 1))
    same(_stamps("a"), (OLD, OLD + 1))
    os.fsync(file)
    same(_stamps("a"), (OLD, OLD + 1))
    os.close(file)
    same(_stamps("a"), (OLD, OLD + 1))
    os.close(os.open("a", os.O_RDONLY))
    same(_stamps("a"), (OLD, OLD + 1))


@check
def set_and_then_written() -> None:
    """write(2): a write after times were set marks mtime again; it stays what it is through close."""
    file = opened("a")
    os.utime("a", ns=(OLD, OLD))
    os.write(file, b"data")
    mtime = os.stat("a").st_mtime_ns
    assert mtime > OLD
    later()
    os.fsync(file)
    os.close(file)
    same(os.stat("a").st_mtime_ns, mtime)


@check
def nothing_written() -> None:
    """write(2): a write of no bytes changes no time."""
    file = opened("a")
    os.utime("a", ns=(OLD, OLD))
    before = os.stat("a")
    later()
    same(os.write(file, b""), 0)
    after = os.stat("a")
    same((after.st_mtime_ns, after.st_ctime_ns), (before.st_mtime_ns, before.st_ctime_ns))


@check
def opened_and_closed() -> None:
    """open(2), close(2): opening an existing file for writing, without O_TRUNC, changes no time."""
    write("a", b"x")
    before = os.stat("a")
    later()
    os.close(os.open("a", os.O_RDWR | os.O_CREAT))
    after = os.stat("a")
    same((after.st_mtime_ns, after.st_ctime_ns), (before.st_mtime_ns, before.st_ctime_ns))


@check
def read_leaves_mtime() -> None:
    """read(2): reading changes neither mtime nor ctime."""
    write("a", b"x")
    before = os.stat("a")
    later()
    read("a")
    after = os.stat("a")
    same((after.st_mtime_ns, after.st_ctime_ns), (before.st_mtime_ns, before.st_ctime_ns))


def _atime_moves() -> bool:
    """Whether reads mark atime on this mount: relatime does when atime is not younger than mtime."""
    return not os.statvfs(".").f_flag & os.ST_NOATIME


@check
def read_marks_atime() -> None:
    """read(2), mount(8): reading marks atime when it is older than mtime, under relatime and strictatime."""
    if not _atime_moves():
        not_run("mounted with noatime")
    write("a", b"x")
    os.utime("a", ns=(OLD, OLD + 1))
    read("a")
    assert os.stat("a").st_atime_ns > OLD


@check
def noatime_leaves_atime() -> None:
    """open(2): reading through a descriptor with O_NOATIME leaves atime."""
    write("a", b"x" * 10_000)
    os.utime("a", ns=(OLD, OLD + 1))
    file = os.open("a", os.O_RDONLY | os.O_NOATIME)
    same(len(os.read(file, 20_000)), 10_000)
    same(os.stat("a").st_atime_ns, OLD)


@check
def birth() -> None:
    """statx(2): the birth time is the file's creation and no call changes it."""
    write("before")
    later()
    write("a")
    later()
    born = statx("a")
    if not born.mask & STATX_BTIME:
        not_run("the file system does not tell birth times")
    assert os.stat("before").st_mtime_ns < born.btime <= os.stat("a").st_ctime_ns
    write("a", b"more")
    os.utime("a", ns=(OLD, OLD))
    os.chmod("a", 0o600)
    os.rename("a", "b")
    same(statx("b").btime, born.btime)


@check
def move_on() -> None:
    """inode(7): stamps of one file never go back as it changes."""
    last = 0
    file = opened("a")
    for turn in range(50):
        os.pwrite(file, b"%d" % turn, 0)
        found = os.stat("a")
        assert found.st_ctime_ns >= last
        last = found.st_ctime_ns
    assert abs(last // SECOND - time.time()) < 24 * 3600
