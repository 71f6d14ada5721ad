"""mkdir(2), rmdir(2), the working directory, link counts of directories."""

import errno
import os
import stat

from tests.posix.check import check, each, fails, not_run, same
from tests.posix.file import folder, later, write
from tests.posix.user import ALICE, BOB, acting_as, need_root


@check
def a_new_one_is_empty() -> None:
    """mkdir(2): makes a directory with nothing but . and .. in it."""
    os.mkdir("d")
    found = os.stat("d")
    assert stat.S_ISDIR(found.st_mode)
    same((os.listdir("d"), found.st_ino), ([], os.stat("d/.").st_ino))


@check
def link_counts() -> None:
    """inode(7): a directory's link count is two and one for each directory in it (or always 1)."""
    os.mkdir("d")
    if os.stat("d").st_nlink == 1:
        not_run("this file system does not count directories")
    for number in range(5):
        same(os.stat("d").st_nlink, number + 2)
        os.mkdir(f"d/{number}")
        write(f"d/file{number}")
    os.rmdir("d/2")
    same(os.stat("d").st_nlink, 6)


@each(
    {
        "exists": ("d", errno.EEXIST),
        "is_a_file": ("a", errno.EEXIST),
        "is_a_link": ("l", errno.EEXIST),
        "is_dot": ("d/.", errno.EEXIST),
        "is_dot_dot": ("d/..", errno.EEXIST),
        "has_no_parent": ("none/d", errno.ENOENT),
        "is_below_a_file": ("a/d", errno.ENOTDIR),
        "is_empty": ("", errno.ENOENT),
    }
)
def mkdir_fails(path: str, expected: int) -> None:
    """mkdir(2): the error where the name {case}."""
    os.mkdir("d")
    write("a")
    os.symlink("none", "l")
    fails(expected, os.mkdir, path)


@check
def mkdir_with_a_trailing_slash() -> None:
    """path_resolution(7): the name of a new directory may end in slashes."""
    os.mkdir("d//")
    same(os.listdir(), ["d"])


@each(
    {
        "not_empty": ("full", (errno.ENOTEMPTY, errno.EEXIST)),
        "missing": ("none", (errno.ENOENT,)),
        "a_file": ("a", (errno.ENOTDIR,)),
        "dot": ("d/.", (errno.EINVAL,)),
        "dot_dot": ("full/inner/..", (errno.ENOTEMPTY, errno.EINVAL, errno.EEXIST)),
        "empty_path": ("", (errno.ENOENT,)),
    }
)
def rmdir_fails(path: str, expected: tuple[int, ...]) -> None:
    """rmdir(2): the error where the directory is {case}."""
    os.mkdir("d")
    os.makedirs("full/inner")
    write("a")
    fails(expected, os.rmdir, path)


@check
def rmdir_of_one_with_a_file() -> None:
    """rmdir(2): ENOTEMPTY until the last entry is gone, a hidden or dangling one included."""
    os.mkdir("d")
    write("d/.hidden")
    os.symlink("none", "d/l")
    fails(errno.ENOTEMPTY, os.rmdir, "d")
    os.unlink("d/.hidden")
    fails(errno.ENOTEMPTY, os.rmdir, "d")
    os.unlink("d/l")
    os.rmdir("d")
    same(os.listdir(), [])


@check
def marks_the_parent() -> None:
    """rmdir(2): marks the parent's mtime and ctime for update."""
    os.makedirs("p/d")
    before = os.stat("p")
    later()
    os.rmdir("p/d")
    after = os.stat("p")
    assert after.st_mtime_ns > before.st_mtime_ns
    assert after.st_ctime_ns > before.st_ctime_ns


@check
def a_removed_one_that_is_open() -> None:
    """rmdir(2): a directory that is open lives on, empty, with link count 0; nothing can be made in it."""
    os.mkdir("d")
    file = os.open("d", os.O_RDONLY)
    os.rmdir("d")
    same((os.listdir(file), os.fstat(file).st_nlink), ([], 0))
    fails(errno.ENOENT, os.open, "a", os.O_WRONLY | os.O_CREAT, 0o644, dir_fd=file)
    fails(errno.ENOENT, os.mkdir, "e", dir_fd=file)
    fails(errno.ENOENT, os.stat, "a", dir_fd=file)


@check
def a_removed_working_directory() -> None:
    """getcwd(3), mkdir(2): in a directory that was removed getcwd and everything new fail with ENOENT."""
    os.mkdir("d")
    os.chdir("d")
    os.rmdir("../d")
    fails(errno.ENOENT, os.getcwd)
    fails(errno.ENOENT, os.mkdir, "e")
    fails(errno.ENOENT, write, "a")
    same(os.listdir("."), [])
    os.stat(".")


@check
def a_removed_one_does_not_come_back() -> None:
    """rmdir(2): a directory made under the same name is another one."""
    os.mkdir("d")
    file = os.open("d", os.O_RDONLY)
    os.rmdir("d")
    os.mkdir("d")
    write("d/new")
    same((os.listdir(file), os.listdir("d")), ([], ["new"]))


@check
def made_and_removed_again() -> None:
    """mkdir(2), rmdir(2): the same name any number of times."""
    for turn in range(50):
        os.mkdir("d")
        write(f"d/{turn}")
        fails(errno.ENOTEMPTY, os.rmdir, "d")
        os.unlink(f"d/{turn}")
        os.rmdir("d")
        fails(errno.ENOENT, os.stat, "d")


@check
def the_working_directory() -> None:
    """chdir(2), fchdir(2): relative paths start at the working directory."""
    os.makedirs("d/e")
    start, deep = os.open(".", os.O_RDONLY), os.open("d/e", os.O_RDONLY)
    os.chdir("d")
    write("in-d")
    os.fchdir(deep)
    write("in-e")
    os.fchdir(start)
    same((sorted(os.listdir("d")), os.listdir("d/e")), (["e", "in-d"], ["in-e"]))


@check
def chdir_fails() -> None:
    """chdir(2): ENOTDIR for a file, ENOENT for nothing, EACCES without search permission."""
    write("a")
    fails(errno.ENOTDIR, os.chdir, "a")
    fails(errno.ENOENT, os.chdir, "none")
    fails(errno.ENOTDIR, os.fchdir, os.open("a", os.O_RDONLY))
    folder("d", 0o644)
    with acting_as(ALICE):
        fails(errno.EACCES, os.chdir, "d")


@each({"owner_of_it": (ALICE, BOB, True), "owner_of_the_parent": (BOB, ALICE, True), "neither": (BOB, BOB, False)})
def rmdir_in_a_sticky_directory(own: int, parent: int, may: bool) -> None:
    """rmdir(2): EPERM in a sticky directory unless the user owns one of the two: {case}."""
    need_root()
    folder("p")
    os.chown("p", parent, -1)
    os.chmod("p", 0o1777)
    os.mkdir("p/d")
    os.chown("p/d", own, -1)
    with acting_as(ALICE):
        if may:
            os.rmdir("p/d")
        else:
            fails((errno.EPERM, errno.EACCES), os.rmdir, "p/d")
    same(os.listdir("p"), [] if may else ["d"])


@check
def rmdir_needs_a_writable_parent() -> None:
    """rmdir(2): EACCES when the parent may not be written."""
    need_root()
    folder("p", 0o755)
    os.mkdir("p/d")
    os.chown("p/d", ALICE, ALICE)
    with acting_as(ALICE):
        fails(errno.EACCES, os.rmdir, "p/d")


@check
def a_hundred_levels() -> None:
    """path_resolution(7): directories nest deeper than one path can say."""
    at = os.open(".", os.O_RDONLY)
    for level in range(100):
        name = f"{level:02}" + "d" * 60
        os.mkdir(name, dir_fd=at)
        below = os.open(name, os.O_RDONLY | os.O_DIRECTORY, dir_fd=at)
        os.close(at)
        at = below
    for _ in range(100):
        above = os.open("..", os.O_RDONLY | os.O_DIRECTORY, dir_fd=at)
        os.close(at)
        at = above
    same(os.fstat(at).st_ino, os.stat(".").st_ino)
