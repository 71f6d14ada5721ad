"""Across and on mounts: EXDEV, EROFS, EBUSY, bind mounts."""

import errno
import os
from collections.abc import Callable

from tests.posix.check import changes_process, check, each, fails, not_run, same
from tests.posix.file import opened, read, write
from tests.posix.system import MS_BIND, MS_RDONLY, MS_REMOUNT, mount, umount, unshare_mounts
from tests.posix.user import need_root


def _own_mounts() -> None:
    need_root()
    changes_process()
    try:
        unshare_mounts()
    except OSError as error:
        not_run(f"mounts cannot be changed here: {error.strerror}")


def _read_only() -> None:
    """A tree in ``d``, mounted read-only over itself."""
    _own_mounts()
    os.makedirs("d/e")
    write("d/a", b"kept")
    mount(b"d", b"d", MS_BIND)
    mount(b"none", b"d", MS_BIND | MS_REMOUNT | MS_RDONLY)


@each(
    {
        "open_for_writing": (lambda: os.open("d/a", os.O_WRONLY),),
        "open_with_trunc": (lambda: os.open("d/a", os.O_RDONLY | os.O_TRUNC),),
        "create": (lambda: write("d/new"),),
        "mkdir": (lambda: os.mkdir("d/new"),),
        "mkfifo": (lambda: os.mkfifo("d/new"),),
        "symlink": (lambda: os.symlink("x", "d/new"),),
        "link": (lambda: os.link("d/a", "d/new"),),
        "unlink": (lambda: os.unlink("d/a"),),
        "rmdir": (lambda: os.rmdir("d/e"),),
        "rename": (lambda: os.rename("d/a", "d/new"),),
        "chmod": (lambda: os.chmod("d/a", 0o777),),
        "chown": (lambda: os.chown("d/a", 1, 1),),
        "utime": (lambda: os.utime("d/a"),),
        "truncate": (lambda: os.truncate("d/a", 0),),
        "setxattr": (lambda: os.setxattr("d/a", "user.x", b"x"),),
        "access": (lambda: _access("d/a"),),
    }
)
def read_only(call: Callable[[], object]) -> None:
    """mount(2): EROFS for {case} on a read-only mount."""
    _read_only()
    fails(errno.EROFS, call)
    same((read("d/a"), sorted(os.listdir("d"))), (b"kept", ["a", "e"]))


def _access(path: str) -> None:
    if not os.access(path, os.W_OK):
        raise OSError(errno.EROFS, "told by access(2)")


@check
def read_only_is_told() -> None:
    """statvfs(3): ST_RDONLY tells of a read-only mount."""
    _read_only()
    assert os.statvfs("d").f_flag & os.ST_RDONLY
    assert not os.statvfs(".").f_flag & os.ST_RDONLY


@each({"rename": (os.rename,), "link": (os.link,)})
def across_bind_mounts(call: Callable[[str, str], object]) -> None:
    """rename(2), link(2): EXDEV between two mounts, of one file system too: {case}."""
    _own_mounts()
    os.mkdir("d")
    os.mkdir("e")
    write("d/a", b"x")
    mount(b"d", b"e", MS_BIND)
    fails(errno.EXDEV, call, "d/a", "e/b")
    same((os.listdir("d"), read("e/a")), (["a"], b"x"))


@each({"rename": (os.rename,), "link": (os.link,)})
def across_file_systems(call: Callable[[str, str], object]) -> None:
    """rename(2), link(2): EXDEV between file systems: {case}."""
    write("a")
    if not os.access("/dev/shm", os.W_OK) or os.stat("/dev/shm").st_dev == os.stat(".").st_dev:
        not_run("no other file system to write to")
    fails(errno.EXDEV, call, "a", f"/dev/shm/posix-check-{os.getpid()}")


@check
def a_mount_point_is_busy() -> None:
    """rename(2), rmdir(2): EBUSY for a directory that something is mounted on."""
    _own_mounts()
    os.mkdir("d")
    os.mkdir("e")
    mount(b"d", b"e", MS_BIND)
    fails(errno.EBUSY, os.rmdir, "e")
    fails(errno.EBUSY, os.rename, "e", "f")
    umount(b"e")
    os.rmdir("e")


@check
def a_bind_mount_is_the_same_file_system() -> None:
    """mount(2): a bind mount shows the same files: what is done in one place is seen in the other."""
    _own_mounts()
    os.makedirs("d/inner")
    os.mkdir("e")
    mount(b"d", b"e", MS_BIND)
    for turn in range(10):
        write("d/a", b"%d" % turn)
        same((read("e/a"), os.stat("e/a").st_ino), (b"%d" % turn, os.stat("d/a").st_ino))
        os.rename("e/a", "e/inner/a")
        same(os.listdir("d"), ["inner"])
        os.rename("d/inner/a", "d/a")


@check
def a_file_over_a_file() -> None:
    """mount(2): a file can be mounted over another one, and is it until it is unmounted."""
    _own_mounts()
    write("a", b"below")
    write("b", b"above")
    mount(b"b", b"a", MS_BIND)
    same(read("a"), b"above")
    fails(errno.EBUSY, os.unlink, "a")
    umount(b"a")
    same(read("a"), b"below")


@check
def a_moved_directory_leaves_a_bind_mount() -> None:
    """mount(2): a bind mount goes on showing its directory when that is renamed."""
    _own_mounts()
    os.makedirs("top/d")
    os.mkdir("m")
    mount(b"top/d", b"m", MS_BIND)
    os.rename("top/d", "moved")
    write("moved/a", b"x")
    same(read("m/a"), b"x")
    file = opened("m/b")
    fails(errno.EBUSY, umount, b"m")
    os.close(file)
    umount(b"m")
