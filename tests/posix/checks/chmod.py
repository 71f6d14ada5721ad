"""chmod(2): who may set which bits of what."""

import errno
import os
import stat
from collections.abc import Callable

from tests.posix.check import check, each, fails, mode, same
from tests.posix.file import folder, later, opened, read, touch, write
from tests.posix.system import AT_SYMLINK_NOFOLLOW, fchmodat2
from tests.posix.user import ALICE, BOB, TEAM, acting_as, need_root

BITS = (0, 0o1, 0o4, 0o111, 0o222, 0o444, 0o644, 0o755, 0o777, 0o1777, 0o2755, 0o4755, 0o6711, 0o7777)


@each({f"{kind}_{bits:04o}": (kind, bits) for kind in ("file", "directory") for bits in BITS})
def sets(kind: str, bits: int) -> None:
    """chmod(2): the owner sets all twelve bits: {case}."""
    if kind == "file":
        write("a")
    else:
        os.mkdir("a")
    kept = stat.S_IFMT(os.stat("a").st_mode)
    os.chmod("a", bits)
    same(mode("a"), bits)
    same(stat.S_IFMT(os.stat("a").st_mode), kept, "the type")
    os.chmod("a", 0o700)


@each({"fifo": (os.mkfifo,), "socket_node": (lambda name: os.mknod(name, stat.S_IFSOCK | 0o600),)})
def sets_on_special(make: Callable[[str], object]) -> None:
    """chmod(2): the mode of a {case} is set like a file's."""
    make("a")
    os.chmod("a", 0o751)
    same(mode("a"), 0o751)


@check
def by_descriptor() -> None:
    """fchmod(2): sets the mode of an open file, one without a name too."""
    file = opened("a")
    os.fchmod(file, 0o600)
    same(mode("a"), 0o600)
    os.unlink("a")
    os.fchmod(file, 0o640)
    same(mode(file), 0o640)


@check
def of_an_open_directory() -> None:
    """fchmod(2): works on the descriptor of a directory."""
    os.mkdir("d")
    os.fchmod(os.open("d", os.O_RDONLY), 0o711)
    same(mode("d"), 0o711)


@check
def relative_to_a_descriptor() -> None:
    """fchmodat(2): a relative path starts at the directory of the descriptor."""
    os.mkdir("d")
    write("d/a")
    os.chmod("a", 0o604, dir_fd=os.open("d", os.O_RDONLY))
    same(mode("d/a"), 0o604)


@check
def follows_links() -> None:
    """chmod(2): follows symbolic links to the file."""
    write("a")
    os.symlink("a", "l")
    os.chmod("l", 0o600)
    same((mode("a"), mode("l")), (0o600, 0o777))


@check
def of_a_link_itself() -> None:
    """fchmodat2(2): EOPNOTSUPP for the mode of a symbolic link itself, and nothing changes."""
    write("a")
    os.symlink("a", "l")
    before = mode("a")
    fails(errno.EOPNOTSUPP, fchmodat2, "l", 0o600, AT_SYMLINK_NOFOLLOW)
    same((mode("a"), mode("l")), (before, 0o777))


@check
def is_seen_through_every_link() -> None:
    """chmod(2): the mode is the inode's, so all hard links and descriptors show it."""
    file = opened("a")
    os.link("a", "b")
    os.chmod("b", 0o604)
    same((mode("a"), mode(file)), (0o604, 0o604))


@check
def leaves_open_descriptors_alone() -> None:
    """chmod(2): access rights of open descriptors stay as they were."""
    folder("d", 0o777)
    with acting_as(ALICE):
        file = opened("d/a")
        os.chmod("d/a", 0)
        os.write(file, b"still")
        same(os.pread(file, 10, 0), b"still")


@check
def takes_effect_at_once() -> None:
    """chmod(2): the next open by another user is judged by the new mode."""
    touch("a", 0o600)
    with acting_as(ALICE):
        fails(errno.EACCES, os.open, "a", os.O_RDONLY)
    os.chmod("a", 0o644)
    with acting_as(ALICE):
        os.close(os.open("a", os.O_RDONLY))
    os.chmod("a", 0o640)
    with acting_as(ALICE):
        fails(errno.EACCES, os.open, "a", os.O_RDONLY)


@check
def belongs_to_the_owner() -> None:
    """chmod(2): EPERM unless the user owns the file or has CAP_FOWNER."""
    touch("a", 0o666)
    with acting_as(ALICE):
        fails(errno.EPERM, os.chmod, "a", 0o777)
    same(mode("a"), 0o666)
    os.chown("a", ALICE, ALICE)
    with acting_as(ALICE):
        os.chmod("a", 0o601)
    same(mode("a"), 0o601)
    os.chmod("a", 0o602)
    same(mode("a"), 0o602)


@each({"member": (TEAM, (), 0o2755), "supplementary_member": (ALICE, (TEAM,), 0o2755), "stranger": (ALICE, (), 0o755)})
def sgid_needs_the_group(gid: int, groups: tuple[int, ...], wanted: int) -> None:
    """chmod(2): an owner outside of the file's group cannot set S_ISGID, silently; this one is a {case}."""
    need_root()
    write("a")
    os.chown("a", ALICE, TEAM)
    with acting_as(ALICE, gid, groups):
        os.chmod("a", 0o2755)
    same(mode("a"), wanted)


@check
def sgid_by_root() -> None:
    """chmod(2): CAP_FSETID sets S_ISGID for any group."""
    need_root()
    write("a")
    os.chown("a", ALICE, TEAM)
    os.chmod("a", 0o6755)
    same(mode("a"), 0o6755)


@check
def sgid_of_a_foreign_directory() -> None:
    """chmod(2): the rule of S_ISGID holds for directories as well."""
    need_root()
    os.mkdir("d")
    os.chown("d", ALICE, TEAM)
    with acting_as(ALICE):
        os.chmod("d", 0o2755)
    same(mode("d"), 0o755)


@check
def changes_ctime_alone() -> None:
    """chmod(2): marks ctime for update; atime and mtime stay."""
    write("a", b"x")
    os.utime("a", ns=(10**18, 2 * 10**18))
    before = os.stat("a")
    later()
    os.chmod("a", 0o600)
    after = os.stat("a")
    assert after.st_ctime_ns > before.st_ctime_ns
    same((after.st_atime_ns, after.st_mtime_ns), (10**18, 2 * 10**18))


@each({"missing": ("none", errno.ENOENT), "below_a_file": ("a/b", errno.ENOTDIR), "empty": ("", errno.ENOENT)})
def a_wrong_path_fails(path: str, expected: int) -> None:
    """chmod(2): the error of a path that cannot be: {case}."""
    write("a")
    fails(expected, os.chmod, path, 0o600)


@check
def needs_search_permission() -> None:
    """chmod(2): EACCES when a directory on the way cannot be searched."""
    folder("d", 0o700)
    touch("d/a")
    os.chown("d/a", BOB if os.geteuid() == 0 else -1, -1)
    with acting_as(BOB):
        fails(errno.EACCES, os.chmod, "d/a", 0o600)


@check
def does_not_hinder_root() -> None:
    """capabilities(7): CAP_DAC_OVERRIDE reads and writes a file of mode 0."""
    need_root()
    touch("a", 0)
    write("a", b"by root")
    same(read("a"), b"by root")
