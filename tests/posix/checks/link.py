"""link(2), unlink(2): hard links, and files that outlive their names."""

import errno
import os
import stat
from collections.abc import Callable

from tests.posix.check import check, each, fails, same
from tests.posix.file import closed, folder, later, opened, read, write
from tests.posix.system import AT_EMPTY_PATH, AT_SYMLINK_FOLLOW, linkat
from tests.posix.user import ALICE, BOB, acting_as, need_root


@each(
    {
        "file": (lambda: write("a", b"x"),),
        "fifo": (lambda: os.mkfifo("a"),),
        "symlink": (lambda: os.symlink("none", "a"),),
        "socket_node": (lambda: os.mknod("a", stat.S_IFSOCK | 0o600),),
    }
)
def links(make: Callable[[], object]) -> None:
    """link(2): both names of a {case} are the same file, counted in st_nlink."""
    make()
    os.link("a", "b", follow_symlinks=False)
    one, two = os.lstat("a"), os.lstat("b")
    same((two.st_ino, two.st_mode, one.st_nlink, two.st_nlink), (one.st_ino, one.st_mode, 2, 2))


@check
def content_is_shared() -> None:
    """link(2): what is written through one name is read through every other, in whichever directory."""
    os.mkdir("d")
    write("a", b"one")
    os.link("a", "d/b")
    write("d/b", b"two, longer")
    same(read("a"), b"two, longer")
    os.truncate("a", 3)
    same((read("d/b"), os.stat("d/b").st_size), (b"two", 3))


@check
def attributes_are_shared() -> None:
    """link(2): mode, owner and times are the file's, not the name's."""
    write("a")
    os.link("a", "b")
    os.chmod("b", 0o604)
    os.utime("b", ns=(10**18, 2 * 10**18))
    one, two = os.stat("a"), os.stat("b")
    same(one, two)
    same(one.st_mtime_ns, 2 * 10**18)


@check
def a_hundred() -> None:
    """link(2): st_nlink counts up and down with the names."""
    write("a", b"x")
    for number in range(100):
        os.link("a", f"l{number}")
        same(os.stat("a").st_nlink, number + 2)
    for number in range(100):
        os.unlink(f"l{number}")
        same(os.stat("a").st_nlink, 100 - number)


@check
def an_open_file_counts_its_links() -> None:
    """link(2), unlink(2): fstat of a descriptor follows the link count down to 0."""
    file = opened("a")
    os.link("a", "b")
    same(os.fstat(file).st_nlink, 2)
    os.unlink("a")
    same(os.fstat(file).st_nlink, 1)
    os.unlink("b")
    same(os.fstat(file).st_nlink, 0)


@check
def the_new_name_must_be_free() -> None:
    """link(2): EEXIST where the new name exists, a dangling link too; nothing is overwritten."""
    write("a", b"a")
    write("b", b"b")
    os.mkdir("d")
    os.symlink("none", "l")
    for name in ("a", "b", "d", "l"):
        fails(errno.EEXIST, os.link, "a", name)
    same((read("b"), os.stat("a").st_nlink), (b"b", 1))


@check
def a_directory() -> None:
    """link(2): EPERM for a directory."""
    os.mkdir("d")
    fails(errno.EPERM, os.link, "d", "e")


@check
def missing() -> None:
    """link(2): ENOENT for a missing file or directory, ENOTDIR below a file."""
    write("a")
    fails(errno.ENOENT, os.link, "none", "b")
    fails(errno.ENOENT, os.link, "a", "none/b")
    fails(errno.ENOTDIR, os.link, "a/x", "b")
    fails(errno.ENOTDIR, os.link, "a", "a/b")


@check
def of_a_symbolic_link() -> None:
    """linkat(2): links a symbolic link itself, or its target with AT_SYMLINK_FOLLOW."""
    write("a", b"x")
    os.symlink("a", "l")
    linkat(-100, "l", "itself", 0)
    linkat(-100, "l", "target", AT_SYMLINK_FOLLOW)
    same((os.readlink("itself"), os.stat("target").st_ino), ("a", os.stat("a").st_ino))
    assert not os.path.islink("target")


@check
def of_a_descriptor() -> None:
    """linkat(2): an open file gets a name by AT_EMPTY_PATH or by /proc/self/fd with AT_SYMLINK_FOLLOW."""
    need_root()
    file = opened("a")
    linkat(file, "", "b", AT_EMPTY_PATH)
    linkat(-100, f"/proc/self/fd/{file}", "c", AT_SYMLINK_FOLLOW)
    same({os.stat(name).st_ino for name in "abc"}, {os.fstat(file).st_ino})


@check
def of_a_file_without_names() -> None:
    """linkat(2): ENOENT for a descriptor whose file has lost all of its names."""
    need_root()
    file = opened("a")
    os.unlink("a")
    fails(errno.ENOENT, linkat, file, "", "b", AT_EMPTY_PATH)


@check
def marks_the_times() -> None:
    """link(2): marks the file's ctime, and mtime and ctime of the new name's directory, for update."""
    os.mkdir("d")
    write("a")
    os.utime("a", ns=(10**18, 10**18))
    before, directory = os.stat("a"), os.stat("d")
    later()
    os.link("a", "d/b")
    after = os.stat("a")
    assert after.st_ctime_ns > before.st_ctime_ns
    same(after.st_mtime_ns, 10**18)
    assert os.stat("d").st_mtime_ns > directory.st_mtime_ns
    assert os.stat("d").st_ctime_ns > directory.st_ctime_ns


@check
def needs_a_writable_directory() -> None:
    """link(2): EACCES when the new name's directory may not be written."""
    folder("d", 0o755)
    folder("e", 0o777)
    with acting_as(ALICE):
        write("e/a")
        fails(errno.EACCES, os.link, "e/a", "d/b")


@check
def unlink_removes_one_name() -> None:
    """unlink(2): removes a name; the file stays while it has others."""
    write("a", b"x")
    os.link("a", "b")
    os.unlink("a")
    same((os.listdir(), read("b"), os.stat("b").st_nlink), (["b"], b"x", 1))
    fails(errno.ENOENT, os.stat, "a")
    fails(errno.ENOENT, os.unlink, "a")


@each(
    {
        "file": (lambda: write("a"),),
        "fifo": (lambda: os.mkfifo("a"),),
        "symlink": (lambda: os.symlink("d", "a"),),
        "socket_node": (lambda: os.mknod("a", stat.S_IFSOCK | 0o600),),
    }
)
def unlink_of(make: Callable[[], object]) -> None:
    """unlink(2): removes a {case}; of a symbolic link the link."""
    os.mkdir("d")
    make()
    os.unlink("a")
    same(os.listdir(), ["d"])


@check
def unlink_of_a_directory() -> None:
    """unlink(2): EISDIR (Linux) for a directory, EPERM by POSIX."""
    os.mkdir("d")
    fails((errno.EISDIR, errno.EPERM), os.unlink, "d")
    fails((errno.EISDIR, errno.EPERM, errno.ENOTDIR), os.unlink, "d/")


@check
def unlink_with_a_trailing_slash() -> None:
    """path_resolution(7): ENOTDIR for a file's name that ends in a slash."""
    write("a")
    fails(errno.ENOTDIR, os.unlink, "a/")


@check
def unlink_marks_the_times() -> None:
    """unlink(2): marks the directory's mtime and ctime, and the file's ctime while it has other links."""
    os.mkdir("d")
    write("d/a")
    os.link("d/a", "b")
    directory, file = os.stat("d"), os.stat("b")
    later()
    os.unlink("d/a")
    assert os.stat("d").st_mtime_ns > directory.st_mtime_ns
    assert os.stat("d").st_ctime_ns > directory.st_ctime_ns
    assert os.stat("b").st_ctime_ns > file.st_ctime_ns


@check
def an_unlinked_file_lives_while_open() -> None:
    """unlink(2): a file that is open keeps its content; it can be read, written, cut and mapped by its descriptors."""
    file = opened("a")
    os.write(file, b"content")
    os.unlink("a")
    same(os.listdir(), [])
    os.pwrite(file, b"CON", 0)
    os.lseek(file, 0, os.SEEK_END)
    os.write(file, b" and more")
    os.fsync(file)
    same(os.pread(file, 100, 0), b"CONtent and more")
    os.ftruncate(file, 3)
    same((os.fstat(file).st_size, os.pread(file, 10, 0)), (3, b"CON"))


@check
def an_unlinked_file_takes_attributes() -> None:
    """fchmod(2), futimens(3): attributes of a file without a name are set by descriptor."""
    file = opened("a")
    os.unlink("a")
    os.fchmod(file, 0o604)
    os.utime(file, ns=(10**18, 2 * 10**18))
    found = os.fstat(file)
    same((stat.S_IMODE(found.st_mode), found.st_atime_ns, found.st_mtime_ns), (0o604, 10**18, 2 * 10**18))


@check
def an_unlinked_file_is_reopened_by_descriptor() -> None:
    """proc_pid_fd(5): /proc/self/fd/N opens a file again that has no name any more."""
    file = opened("a")
    os.write(file, b"content")
    os.unlink("a")
    again = os.open(f"/proc/self/fd/{file}", os.O_RDONLY)
    same(os.read(again, 20), b"content")
    assert os.readlink(f"/proc/self/fd/{file}").endswith("/a (deleted)")


@check
def a_new_file_of_the_same_name() -> None:
    """unlink(2): a file made under the name of an unlinked, open one is another file."""
    old = opened("a")
    os.write(old, b"old")
    os.unlink("a")
    new = opened("a")
    os.write(new, b"new")
    same((os.pread(old, 10, 0), os.pread(new, 10, 0), read("a")), (b"old", b"new", b"new"))
    assert os.fstat(old).st_ino != os.fstat(new).st_ino


@check
def two_descriptors_of_an_unlinked_file() -> None:
    """unlink(2): the file lives until its last descriptor is closed."""
    one, two = opened("a"), opened("a")
    os.write(one, b"content")
    os.unlink("a")
    closed(one)
    same(os.pread(two, 20, 0), b"content")
    os.pwrite(two, b"x", 0)
    same(os.pread(two, 20, 0), b"xontent")


@check
def unlink_needs_a_writable_directory() -> None:
    """unlink(2): EACCES when the directory may not be written, whoever owns the file."""
    folder("d", 0o777)
    with acting_as(ALICE):
        write("d/a")
    os.chmod("d", 0o755)
    with acting_as(ALICE):
        fails(errno.EACCES, os.unlink, "d/a")


@check
def unlink_does_not_ask_the_file() -> None:
    """unlink(2): a file without permissions of another user is removed from a directory that one may write."""
    folder("d", 0o777)
    write("d/a", permissions=0)
    with acting_as(ALICE):
        os.unlink("d/a")
    same(os.listdir("d"), [])


@each(
    {
        "owner_of_the_file": (ALICE, BOB, True),
        "owner_of_the_directory": (BOB, ALICE, True),
        "neither": (BOB, BOB, False),
    }
)
def unlink_in_a_sticky_directory(file: int, directory: int, may: bool) -> None:
    """unlink(2): EPERM in a sticky directory unless the user owns the file or the directory: {case}."""
    need_root()
    folder("d")
    os.chown("d", directory, -1)
    os.chmod("d", 0o1777)
    write("d/a")
    os.chown("d/a", file, -1)
    with acting_as(ALICE):
        if may:
            os.unlink("d/a")
        else:
            fails((errno.EPERM, errno.EACCES), os.unlink, "d/a")
    same(os.listdir("d"), [] if may else ["a"])
