"""What new files are like: umask, owner, group and the times of their directory."""

import errno
import os
import socket
import stat
from collections.abc import Callable

from tests.posix.check import check, each, fails, mode, same
from tests.posix.file import folder, later, write
from tests.posix.user import ALICE, BOB, TEAM, acting_as, need_root

MAKERS: dict[str, Callable[[str, int], object]] = {
    "file": lambda name, bits: os.close(os.open(name, os.O_WRONLY | os.O_CREAT, bits)),
    "exclusive_file": lambda name, bits: os.close(os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL, bits)),
    "mknod_file": lambda name, bits: os.mknod(name, stat.S_IFREG | bits),
    "directory": os.mkdir,
    "fifo": os.mkfifo,
}
MASKS = {"nothing": 0, "022": 0o022, "027": 0o027, "077": 0o077, "everything": 0o777}


def _bind(name: str, bits: int = 0) -> None:
    socket.socket(socket.AF_UNIX).bind(name)


ALL_MAKERS = MAKERS | {"symlink": lambda name, bits: os.symlink("target", name), "socket": _bind}


@each({f"{kind}_{word}": (make, mask) for kind, make in MAKERS.items() for word, mask in MASKS.items()})
def umask(make: Callable[[str, int], object], mask: int) -> None:
    """umask(2): the bits of the umask are taken from the mode of what is created: {case}."""
    os.umask(mask)
    make("a", 0o777)
    same(mode("a"), 0o777 & ~mask)


@check
def umask_of_a_socket() -> None:
    """unix(7): bind makes a socket with mode 0777 less the umask."""
    os.umask(0o027)
    _bind("s")
    same(mode("s"), 0o750)


@check
def umask_spares_chmod() -> None:
    """umask(2): chmod sets the mode as it is said."""
    os.umask(0o077)
    write("a")
    os.chmod("a", 0o666)
    same(mode("a"), 0o666)


@check
def a_symlink_has_all_permissions() -> None:
    """symlink(7): the permissions of a symbolic link are 0777 on Linux, whatever the umask."""
    os.umask(0o077)
    os.symlink("x", "l")
    same(mode("l"), 0o777)


@each(
    {
        kind: (make, wanted)
        for (kind, make), wanted in zip(MAKERS.items(), (0o6755,) * 3 + (0o1755, 0o6755), strict=True)
    }
)
def special_bits(make: Callable[[str, int], object], wanted: int) -> None:
    """open(2), mkdir(2), mknod(2): suid, sgid and sticky are honoured as Linux does: {case}."""
    make("a", wanted | 0o022)
    same(mode("a"), wanted)


@each({kind: (make,) for kind, make in ALL_MAKERS.items()})
def owner(make: Callable[[str, int], object]) -> None:
    """open(2), mkdir(2), mknod(2), symlink(2): a new {case} is owned by the effective user and group of its maker."""
    folder("d", 0o777)
    with acting_as(ALICE, TEAM):
        make("d/a", 0o644)
    found = os.lstat("d/a")
    same((found.st_uid, found.st_gid), (ALICE, TEAM))


@each({kind: (make,) for kind, make in ALL_MAKERS.items()})
def group_of_a_setgid_directory(make: Callable[[str, int], object]) -> None:
    """open(2), mkdir(2), mknod(2): a new {case} in a set-group-ID directory has the directory's group."""
    need_root()
    folder("d")
    os.chown("d", BOB, TEAM)
    os.chmod("d", 0o2777)
    with acting_as(ALICE):
        make("d/a", 0o644)
    found = os.lstat("d/a")
    same((found.st_uid, found.st_gid), (ALICE, TEAM))
    same(
        bool(found.st_mode & stat.S_ISGID), stat.S_ISDIR(found.st_mode), "a directory takes the bit, nothing else does"
    )


@check
def setgid_goes_down_the_tree() -> None:
    """mkdir(2): a directory made in a set-group-ID directory is one as well, with the same group."""
    need_root()
    os.mkdir("d")
    os.chown("d", -1, TEAM)
    os.chmod("d", 0o2755)
    os.makedirs("d/e/f")
    write("d/e/f/a")
    for path, bits in {"d/e": 0o2755, "d/e/f": 0o2755, "d/e/f/a": 0o644}.items():
        same((mode(path), os.stat(path).st_gid), (bits, TEAM), path)


@each({"member": ((TEAM,), 0o2755), "stranger": ((), 0o755)})
def setgid_file_in_a_setgid_directory(groups: tuple[int, ...], wanted: int) -> None:
    """inode_init_owner of Linux: a {case} of the directory's group may, or may not, make executables of set-group-ID."""
    need_root()
    folder("d")
    os.chown("d", 0, TEAM)
    os.chmod("d", 0o2777)
    with acting_as(ALICE, groups=groups):
        os.close(os.open("d/a", os.O_WRONLY | os.O_CREAT, 0o2755))
        found = os.stat("d/a")
    same((stat.S_IMODE(found.st_mode), found.st_gid), (wanted, TEAM))


@check
def setgid_directory_by_a_supplementary_member() -> None:
    """mkdir(2): a supplementary member of the directory's group makes directories that keep set-group-ID."""
    need_root()
    folder("d")
    os.chown("d", 0, TEAM)
    os.chmod("d", 0o2775)
    with acting_as(ALICE, groups=(TEAM,)):
        os.mkdir("d/e")
        write("d/e/a")
    same((mode("d/e"), os.stat("d/e").st_gid, os.stat("d/e/a").st_gid), (0o2755, TEAM, TEAM))


@check
def group_write_by_a_supplementary_member() -> None:
    """path_resolution(7): supplementary groups grant the group's permissions."""
    need_root()
    folder("d")
    os.chown("d", 0, TEAM)
    os.chmod("d", 0o770)
    with acting_as(ALICE, groups=(BOB, TEAM)):
        write("d/a", b"x")
    same((os.stat("d/a").st_uid, os.stat("d/a").st_gid), (ALICE, ALICE))
    with acting_as(ALICE, groups=(BOB,)):
        fails(errno.EACCES, os.stat, "d/a")


@each({kind: (make,) for kind, make in ALL_MAKERS.items()})
def directory_times(make: Callable[[str, int], object]) -> None:
    """open(2), mkdir(2), mknod(2), symlink(2): a new {case} marks its directory's mtime and ctime for update."""
    os.mkdir("d")
    os.utime("d", ns=(10**9, 10**9))
    before = os.stat("d").st_ctime_ns
    later()
    make("d/a", 0o644)
    after = os.stat("d")
    assert after.st_mtime_ns > before
    assert after.st_ctime_ns > before


@each({kind: (make,) for kind, make in ALL_MAKERS.items()})
def own_times(make: Callable[[str, int], object]) -> None:
    """open(2), mkdir(2), mknod(2), symlink(2): atime, mtime and ctime of a new {case} are those of its making."""
    write("before")
    later()
    make("a", 0o644)
    later()
    write("after")
    found = os.lstat("a")
    for stamp in (found.st_atime_ns, found.st_mtime_ns, found.st_ctime_ns):
        assert os.stat("before").st_mtime_ns < stamp < os.stat("after").st_mtime_ns


@each({kind: (make,) for kind, make in ALL_MAKERS.items() if kind != "file"})
def a_name_is_taken_once(make: Callable[[str, int], object]) -> None:
    """mkdir(2), mknod(2), symlink(2), bind(2): EEXIST (EADDRINUSE) for a {case} where the name exists, even dangling."""
    write("file")
    os.mkdir("directory")
    os.symlink("none", "link")
    for name in ("file", "directory", "link"):
        fails((errno.EEXIST, errno.EADDRINUSE) if make is _bind else errno.EEXIST, make, name, 0o644)


@each({kind: (make,) for kind, make in ALL_MAKERS.items()})
def a_write_protected_directory(make: Callable[[str, int], object]) -> None:
    """open(2), mkdir(2), mknod(2), symlink(2): EACCES for a new {case} where the user may not write the directory."""
    folder("d", 0o755)
    with acting_as(ALICE):
        fails(errno.EACCES, make, "d/a", 0o644)
    same(os.listdir("d"), [])


@each({kind: (make,) for kind, make in ALL_MAKERS.items()})
def parent_is_missing(make: Callable[[str, int], object]) -> None:
    """open(2), mkdir(2), mknod(2), symlink(2): ENOENT, ENOTDIR for a new {case} whose parent is missing, or a file."""
    write("file")
    fails(errno.ENOENT, make, "none/a", 0o644)
    fails(errno.ENOTDIR, make, "file/a", 0o644)
