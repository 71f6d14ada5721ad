"""O_PATH, /proc/self/fd and openat2(2)."""

import errno
import os
from collections.abc import Callable

from tests.posix.check import check, each, fails, not_run, same
from tests.posix.file import opened, read, touch, write
from tests.posix.system import (
    AT_FDCWD,
    RESOLVE_BENEATH,
    RESOLVE_IN_ROOT,
    RESOLVE_NO_MAGICLINKS,
    RESOLVE_NO_SYMLINKS,
    RESOLVE_NO_XDEV,
    openat2,
)
from tests.posix.user import ALICE, acting_as


@each(
    {
        "read": (lambda file: os.read(file, 1),),
        "write": (lambda file: os.write(file, b"x"),),
        "ftruncate": (lambda file: os.ftruncate(file, 0),),
        "fchmod": (lambda file: os.fchmod(file, 0o600),),
        "fchown": (lambda file: os.fchown(file, -1, -1),),
        "fsync": (os.fsync,),
        "getxattr": (lambda file: os.getxattr(file, "user.x"),),
    }
)
def refuses(call: Callable[[int], object]) -> None:
    """open(2): EBADF for {case} on a descriptor of O_PATH."""
    write("a", b"x")
    fails(errno.EBADF, call, os.open("a", os.O_PATH))


@check
def tells_attributes() -> None:
    """open(2): fstat works on a descriptor of O_PATH and follows the file."""
    write("a", b"x")
    file = os.open("a", os.O_PATH)
    os.rename("a", "b")
    write("b", b"longer")
    same((os.fstat(file).st_size, os.fstat(file).st_ino), (6, os.stat("b").st_ino))
    os.unlink("b")
    same(os.fstat(file).st_nlink, 0)


@check
def needs_no_permission() -> None:
    """open(2): O_PATH asks for no permission on the file itself."""
    touch("a", 0)
    with acting_as(ALICE):
        file = os.open("a", os.O_PATH)
        same(os.fstat(file).st_size, 0)
        fails(errno.EACCES, os.open, "a", os.O_RDONLY)


@check
def of_a_link() -> None:
    """open(2): O_PATH with O_NOFOLLOW refers to a symbolic link itself."""
    os.symlink("target", "l")
    file = os.open("l", os.O_PATH | os.O_NOFOLLOW)
    same((os.readlink("", dir_fd=file), os.fstat(file).st_ino), ("target", os.lstat("l").st_ino))


@check
def as_a_directory() -> None:
    """open(2): a descriptor of O_PATH serves as the directory of relative calls and of fchdir."""
    os.mkdir("d")
    write("d/a", b"x")
    file = os.open("d", os.O_PATH | os.O_DIRECTORY)
    same(os.read(os.open("a", os.O_RDONLY, dir_fd=file), 10), b"x")
    os.mkdir("e", dir_fd=file)
    os.fchdir(file)
    same(sorted(os.listdir(".")), ["a", "e"])


@each({"read_only": (os.O_RDONLY,), "read_write": (os.O_RDWR,), "path": (os.O_PATH,)})
def is_reopened(flags: int) -> None:
    """proc_pid_fd(5): /proc/self/fd/N opens the same file again with other access: from {case}."""
    write("a", b"content")
    file = os.open("a", flags)
    os.rename("a", "b")
    again = os.open(f"/proc/self/fd/{file}", os.O_RDWR)
    os.write(again, b"CON")
    same((read("b"), os.fstat(again).st_ino), (b"CONtent", os.stat("b").st_ino))


@check
def reopening_truncates() -> None:
    """proc_pid_fd(5): O_TRUNC counts when a file is opened again by its descriptor."""
    file = opened("a")
    os.write(file, b"content")
    os.close(os.open(f"/proc/self/fd/{file}", os.O_WRONLY | os.O_TRUNC))
    same(os.fstat(file).st_size, 0)


@check
def path_of_a_descriptor() -> None:
    """proc_pid_fd(5): /proc/self/fd/N names the file by its current path."""
    os.mkdir("d")
    file = opened("d/a")
    os.rename("d", "e")
    same(os.readlink(f"/proc/self/fd/{file}"), f"{os.getcwd()}/e/a")


def _at(path: str, resolve: int, flags: int = os.O_RDONLY) -> int:
    try:
        return openat2(AT_FDCWD, path, flags, resolve)
    except OSError as error:
        if error.errno in (errno.ENOSYS, errno.EPERM):
            not_run("no openat2 here")
        raise


def _tree() -> None:
    os.makedirs("d/e")
    write("d/a", b"x")
    os.symlink("a", "d/inside")
    os.symlink("../d/a", "d/up-and-back")
    os.symlink("../../../../../../../etc", "d/outside")
    os.symlink("/etc/passwd", "d/absolute")


@each(
    {
        "file": ("d/a", 0),
        "link_inside": ("d/inside", 0),
        "dot_dot_inside": ("d/e/../a", 0),
        "dot_dot_outside": ("..", errno.EXDEV),
        "link_outside": ("d/outside", errno.EXDEV),
        "absolute_link": ("d/absolute", errno.EXDEV),
        "absolute_path": ("/etc", errno.EXDEV),
    }
)
def beneath(path: str, expected: int) -> None:
    """openat2(2): RESOLVE_BENEATH refuses to leave the directory with EXDEV: {case}."""
    _tree()
    if expected:
        fails(expected, _at, path, RESOLVE_BENEATH)
    else:
        _at(path, RESOLVE_BENEATH)


@check
def in_root() -> None:
    """openat2(2): RESOLVE_IN_ROOT takes the directory for the root of absolute paths and links."""
    _tree()
    os.mkdir("etc")
    write("etc/passwd", b"ours")
    for path in ("/etc/passwd", "d/absolute", "../../etc/passwd"):
        same(os.read(_at(path, RESOLVE_IN_ROOT), 10), b"ours")


@check
def no_symlinks() -> None:
    """openat2(2): ELOOP for any symbolic link with RESOLVE_NO_SYMLINKS."""
    _tree()
    os.symlink("d", "l")
    _at("d/a", RESOLVE_NO_SYMLINKS)
    for path in ("d/inside", "l/a"):
        fails(errno.ELOOP, _at, path, RESOLVE_NO_SYMLINKS)


@check
def no_magic_links() -> None:
    """openat2(2): ELOOP for /proc/self/fd/N with RESOLVE_NO_MAGICLINKS; plain links are followed."""
    _tree()
    file = opened("d/a")
    _at("d/inside", RESOLVE_NO_MAGICLINKS)
    fails(errno.ELOOP, _at, f"/proc/self/fd/{file}", RESOLVE_NO_MAGICLINKS)


@check
def no_other_mount() -> None:
    """openat2(2): EXDEV with RESOLVE_NO_XDEV where a path leads to another mount."""
    _tree()
    _at("d/e/../inside", RESOLVE_NO_XDEV)
    fails(errno.EXDEV, _at, "/proc/self", RESOLVE_NO_XDEV)


@check
def unknown_bits() -> None:
    """openat2(2): EINVAL for unknown bits, which open ignores."""
    _tree()
    _at("d/a", 0)
    fails(errno.EINVAL, _at, "d/a", 1 << 40)
