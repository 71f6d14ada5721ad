"""chown(2): who may give what to whom, and which privileges are lost with it."""

import errno
import os
import stat
from collections.abc import Callable

from tests.posix.check import check, each, fails, mode, same
from tests.posix.file import folder, later, opened, write
from tests.posix.user import ALICE, BOB, TEAM, acting_as, need_root


def _owner(path: str) -> tuple[int, int]:
    found = os.lstat(path)
    return found.st_uid, found.st_gid


@each(
    {
        "file": (lambda: write("a"),),
        "directory": (lambda: os.mkdir("a"),),
        "fifo": (lambda: os.mkfifo("a"),),
        "socket_node": (lambda: os.mknod("a", stat.S_IFSOCK | 0o600),),
        "device": (lambda: os.mknod("a", stat.S_IFCHR | 0o600, os.makedev(1, 3)),),
    }
)
def sets_owner_and_group(make: Callable[[], object]) -> None:
    """chown(2): root sets owner and group of a {case}."""
    need_root()
    make()
    os.chown("a", ALICE, TEAM)
    same(_owner("a"), (ALICE, TEAM))


@each({"owner": (ALICE, -1, (ALICE, BOB)), "group": (-1, TEAM, (BOB, TEAM)), "neither": (-1, -1, (BOB, BOB))})
def minus_one_leaves(uid: int, gid: int, wanted: tuple[int, int]) -> None:
    """chown(2): an id of -1 is left as it is; this call changes {case}."""
    need_root()
    write("a")
    os.chown("a", BOB, BOB)
    os.chown("a", uid, gid)
    same(_owner("a"), wanted)


@check
def large_ids() -> None:
    """chown(2), types: ids have 32 bits, of which -1 alone is no id."""
    need_root()
    write("a")
    os.chown("a", 0xFFFFFFFE, 0x80000001)
    same(_owner("a"), (0xFFFFFFFE, 0x80000001))


@check
def follows_links() -> None:
    """chown(2), lchown(2): chown changes the file a link leads to, lchown the link."""
    need_root()
    write("a")
    os.symlink("a", "l")
    os.chown("l", ALICE, -1)
    same((_owner("a")[0], _owner("l")[0]), (ALICE, 0))
    os.lchown("l", BOB, TEAM)
    same((_owner("a")[0], _owner("l")), (ALICE, (BOB, TEAM)))


@check
def of_a_dangling_link() -> None:
    """lchown(2): works on a link that leads nowhere; chown fails with ENOENT."""
    need_root()
    os.symlink("none", "l")
    os.lchown("l", ALICE, ALICE)
    same(_owner("l"), (ALICE, ALICE))
    fails(errno.ENOENT, os.chown, "l", BOB, BOB)


@check
def by_descriptor() -> None:
    """fchown(2): changes an open file, one without a name too."""
    need_root()
    file = opened("a")
    os.unlink("a")
    os.fchown(file, ALICE, TEAM)
    found = os.fstat(file)
    same((found.st_uid, found.st_gid), (ALICE, TEAM))


@check
def owner_is_roots_to_give() -> None:
    """chown(2): EPERM when a user without CAP_CHOWN gives a file away, or takes one."""
    folder("d", 0o777)
    write("d/roots")
    with acting_as(ALICE):
        write("d/mine")
        fails(errno.EPERM, os.chown, "d/mine", BOB, -1)
        fails(errno.EPERM, os.chown, "d/roots", ALICE, -1)
        os.chown("d/mine", ALICE, -1)
    same(_owner("d/mine")[0], ALICE)


@each({"own": (ALICE, True), "supplementary": (TEAM, True), "foreign": (BOB, False)})
def group_by_the_owner(gid: int, may: bool) -> None:
    """chown(2): the owner may give a file to a group of theirs and no other: {case}."""
    folder("d", 0o777)
    with acting_as(ALICE, groups=(TEAM,)):
        write("d/a")
        if may:
            os.chown("d/a", -1, gid)
        else:
            fails(errno.EPERM, os.chown, "d/a", -1, gid)
    same(_owner("d/a")[1], gid if may else ALICE)


@check
def group_by_a_stranger() -> None:
    """chown(2): EPERM when the file is another's, though the group is one's own."""
    write("a")
    with acting_as(ALICE, groups=(TEAM,)):
        fails(errno.EPERM, os.chown, "a", -1, TEAM)


@each(
    {
        "suid": (0o4755, 0o755),
        "sgid": (0o2755, 0o755),
        "suid_and_sgid": (0o6755, 0o755),
        "sgid_of_a_group_that_may_not_execute": (0o2745, 0o2745),
        "suid_of_a_file_nobody_may_execute": (0o4644, 0o644),
        "sticky": (0o1755, 0o1755),
    }
)
def by_root_clears(before: int, after: int) -> None:
    """chown(2): clears S_ISUID, and S_ISGID where the group may execute, on Linux for root too: {case}."""
    need_root()
    write("a")
    os.chmod("a", before)
    os.chown("a", ALICE, ALICE)
    same(mode("a"), after)


@each({"suid": (0o4755, 0o755), "sgid": (0o2755, 0o755), "suid_and_sgid": (0o6777, 0o777)})
def by_the_owner_clears(before: int, after: int) -> None:
    """chown(2): a change of the group by the owner clears S_ISUID and S_ISGID of an executable: {case}."""
    folder("d", 0o777)
    with acting_as(ALICE, groups=(TEAM,)):
        write("d/a")
        os.chmod("d/a", before)
        os.chown("d/a", -1, TEAM)
    same(mode("d/a"), after)


@check
def by_descriptor_clears() -> None:
    """fchown(2): clears suid and sgid as chown does."""
    need_root()
    file = opened("a")
    os.fchmod(file, 0o6755)
    os.fchown(file, ALICE, -1)
    same(mode("a"), 0o755)


@check
def to_the_same_owner_clears() -> None:
    """chown(2): clears suid and sgid also where the owner stays the same."""
    need_root()
    write("a")
    os.chmod("a", 0o6755)
    os.chown("a", 0, 0)
    same(mode("a"), 0o755)


@check
def spares_directories() -> None:
    """chown(2): the bits of a directory mean something else and stay."""
    need_root()
    os.mkdir("d")
    os.chmod("d", 0o7755)
    os.chown("d", ALICE, TEAM)
    same(mode("d"), 0o7755)


@check
def changes_ctime_alone() -> None:
    """chown(2): marks ctime for update; atime and mtime stay."""
    need_root()
    write("a", b"x")
    os.utime("a", ns=(10**18, 2 * 10**18))
    before = os.stat("a")
    later()
    os.chown("a", ALICE, ALICE)
    after = os.stat("a")
    assert after.st_ctime_ns > before.st_ctime_ns
    same((after.st_atime_ns, after.st_mtime_ns), (10**18, 2 * 10**18))


@check
def decides_about_access_at_once() -> None:
    """path_resolution(7): the owner's bits are the new owner's, the old one falls under the others'."""
    need_root()
    write("a", b"x")
    os.chmod("a", 0o600)
    for mine, other in ((ALICE, BOB), (BOB, ALICE)):
        os.chown("a", mine, mine)
        with acting_as(mine):
            os.close(os.open("a", os.O_RDWR))
        with acting_as(other):
            fails(errno.EACCES, os.open, "a", os.O_RDONLY)


@each({"missing": ("none", errno.ENOENT), "below_a_file": ("a/b", errno.ENOTDIR), "empty": ("", errno.ENOENT)})
def a_wrong_path_fails(path: str, expected: int) -> None:
    """chown(2): the error of a path that cannot be: {case}."""
    write("a")
    fails(expected, os.chown, path, os.getuid(), -1)
