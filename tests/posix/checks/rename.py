"""rename(2): what may take whose place."""

import errno
import os
from collections.abc import Callable

from tests.posix.check import check, each, fails, same
from tests.posix.file import folder, later, opened, read, write
from tests.posix.user import ALICE, BOB, acting_as, need_root

MAKERS: dict[str, Callable[[str], object]] = {
    "file": lambda name: write(name, name.encode()),
    "directory": os.mkdir,
    "full_directory": lambda name: os.makedirs(f"{name}/inner"),
    "symlink": lambda name: os.symlink("somewhere", name),
    "fifo": os.mkfifo,
}
DIRECTORIES = ("directory", "full_directory")


def _over(old: str, new: str) -> int:
    """The errno of rename(2) for an old name of one kind over a new one of another; 0 when it succeeds."""
    if old in DIRECTORIES:
        if new not in DIRECTORIES:
            return errno.ENOTDIR
        return errno.ENOTEMPTY if new == "full_directory" else 0
    return errno.EISDIR if new in DIRECTORIES else 0


@each({f"{old}_over_{new}": (MAKERS[old], MAKERS[new], _over(old, new)) for old in MAKERS for new in MAKERS})
def replaces(make_old: Callable[[str], object], make_new: Callable[[str], object], expected: int) -> None:
    """rename(2): files replace files, directories replace empty directories, and nothing else: {case}."""
    make_old("old")
    make_new("new")
    moved, kept = os.lstat("old"), os.lstat("new")
    if expected:
        fails(expected, os.rename, "old", "new")
        same((os.lstat("old").st_ino, os.lstat("new").st_ino), (moved.st_ino, kept.st_ino))
    else:
        os.rename("old", "new")
        same((os.listdir(), os.lstat("new").st_ino, os.lstat("new").st_mode), (["new"], moved.st_ino, moved.st_mode))


@each({kind: (make,) for kind, make in MAKERS.items()})
def moves(make: Callable[[str], object]) -> None:
    """rename(2): a {case} moves to a new name in another directory, the same inode with the same content."""
    make("old")
    os.mkdir("d")
    before = os.lstat("old")
    os.rename("old", "d/new")
    after = os.lstat("d/new")
    same(
        (after.st_ino, after.st_mode, after.st_size, after.st_nlink),
        (before.st_ino, before.st_mode, before.st_size, before.st_nlink),
    )
    same((os.listdir(), os.listdir("d")), (["d"], ["new"]))


@check
def the_content_goes_along() -> None:
    """rename(2): open descriptors of the old name are not affected."""
    file = opened("old")
    os.write(file, b"before,")
    os.rename("old", "new")
    os.write(file, b"after")
    same(read("new"), b"before,after")
    same(os.fstat(file).st_ino, os.stat("new").st_ino)


@check
def an_open_target_lives_on() -> None:
    """rename(2): a replaced file that is open keeps its content until it is closed, with one link less."""
    write("old", b"old")
    file = opened("new")
    os.write(file, b"replaced")
    os.rename("old", "new")
    same((os.pread(file, 10, 0), os.fstat(file).st_nlink), (b"replaced", 0))
    os.pwrite(file, b"still", 0)
    same(read("new"), b"old")


@check
def a_replaced_hard_link() -> None:
    """rename(2): replacing one of several links lowers the link count of its file."""
    write("old")
    write("new", b"content")
    os.link("new", "other")
    os.rename("old", "new")
    same((os.stat("other").st_nlink, read("other")), (1, b"content"))


@check
def two_links_of_one_file() -> None:
    """rename(2): when both names are links of one file, nothing is done and both stay."""
    write("old")
    os.link("old", "new")
    os.rename("old", "new")
    same((sorted(os.listdir()), os.stat("old").st_nlink), (["new", "old"], 2))


@check
def onto_itself() -> None:
    """rename(2): a name onto itself succeeds and changes nothing."""
    write("a", b"x")
    os.mkdir("d")
    os.rename("a", "a")
    os.rename("d", "d")
    same((sorted(os.listdir()), read("a")), (["a", "d"], b"x"))


@check
def a_directory_into_itself() -> None:
    """rename(2): EINVAL when the new name lies below the directory that is moved."""
    os.makedirs("d/e")
    fails(errno.EINVAL, os.rename, "d", "d/inner")
    fails(errno.EINVAL, os.rename, "d", "d/e/inner")
    fails(errno.ENOTEMPTY, os.rename, "d/e", "d")


@each({"dot": ("d/.", "new"), "dot_dot": ("d/e/..", "new"), "over_dot": ("f", "d/."), "over_dot_dot": ("f", "d/e/..")})
def dots(old: str, new: str) -> None:
    """rename(2): EINVAL or EBUSY where a name ends in . or ..: {case}."""
    os.makedirs("d/e")
    os.mkdir("f")
    fails((errno.EINVAL, errno.EBUSY, errno.EEXIST, errno.ENOTEMPTY), os.rename, old, new)
    same(sorted(os.listdir()), ["d", "f"])


@check
def a_missing_name() -> None:
    """rename(2): ENOENT when the old name, or a directory of the new one, does not exist."""
    write("a")
    fails(errno.ENOENT, os.rename, "none", "new")
    fails(errno.ENOENT, os.rename, "a", "none/new")
    fails(errno.ENOENT, os.rename, "", "new")
    fails(errno.ENOENT, os.rename, "a", "")
    fails(errno.ENOTDIR, os.rename, "a", "a/new")


@check
def a_trailing_slash() -> None:
    """rename(2): ENOTDIR when a file's name, or the new name for a file, ends in a slash; directories take it."""
    write("a")
    os.mkdir("d")
    fails(errno.ENOTDIR, os.rename, "a/", "new")
    fails(errno.ENOTDIR, os.rename, "a", "new/")
    os.rename("d/", "e/")
    same(sorted(os.listdir()), ["a", "e"])


@check
def parents_count_their_directories() -> None:
    """rename(2): a directory that moves takes its .. along, and with it a link of each parent."""
    os.makedirs("one/d")
    os.mkdir("two")
    same((os.stat("one").st_nlink, os.stat("two").st_nlink), (3, 2))
    os.rename("one/d", "two/d")
    same((os.stat("one").st_nlink, os.stat("two").st_nlink), (2, 3))
    same(os.stat("two/d/..").st_ino, os.stat("two").st_ino)


@check
def a_replaced_directory_is_uncounted() -> None:
    """rename(2): replacing an empty directory leaves the parent with one directory less."""
    os.makedirs("p/one")
    os.makedirs("p/two")
    os.rename("p/one", "p/two")
    same((os.stat("p").st_nlink, os.listdir("p")), (3, ["two"]))


@check
def a_working_directory() -> None:
    """rename(2): a process in a directory stays there when it is moved."""
    os.makedirs("one/d")
    os.mkdir("two")
    top = os.getcwd()
    os.chdir("one/d")
    os.rename("../../one/d", "../../two/moved")
    write("here")
    same(os.getcwd(), f"{top}/two/moved")
    same(os.listdir(f"{top}/two/moved"), ["here"])


@check
def marks_the_directories() -> None:
    """rename(2): marks mtime and ctime of both parents for update."""
    os.mkdir("one")
    os.mkdir("two")
    write("one/a")
    for name in ("one", "two"):
        os.utime(name, ns=(10**18, 10**18))
    before = os.stat("two").st_ctime_ns
    later()
    os.rename("one/a", "two/a")
    for name in ("one", "two"):
        found = os.stat(name)
        assert found.st_mtime_ns > before
        assert found.st_ctime_ns > before


@check
def leaves_the_data_times() -> None:
    """rename(2): atime and mtime of the file stay as they are."""
    write("a", b"x")
    os.utime("a", ns=(10**18, 2 * 10**18))
    os.rename("a", "b")
    found = os.stat("b")
    same((found.st_atime_ns, found.st_mtime_ns), (10**18, 2 * 10**18))


@check
def a_link_is_renamed_itself() -> None:
    """rename(2): a symbolic link as the old name is renamed, as the new name it is replaced."""
    write("a", b"a")
    write("target", b"target")
    os.symlink("target", "l")
    os.rename("l", "m")
    same(os.readlink("m"), "target")
    os.rename("a", "m")
    same((read("m"), read("target")), (b"a", b"target"))
    assert not os.path.islink("m")


@each({"from": ("closed/a", "open/b"), "to": ("open/a", "closed/b")})
def needs_writable_directories(old: str, new: str) -> None:
    """rename(2): EACCES when one of the directories may not be written: {case}."""
    folder("open", 0o777)
    folder("closed", 0o755)
    write(old)
    with acting_as(ALICE):
        fails(errno.EACCES, os.rename, old, new)
    assert os.path.exists(old)


@check
def a_directory_to_a_new_parent_must_be_writable() -> None:
    """rename(2): EACCES when a directory moves to another parent and its own .. may not be written."""
    need_root()
    folder("one", 0o777)
    folder("two", 0o777)
    folder("one/d", 0o755)
    with acting_as(ALICE):
        fails(errno.EACCES, os.rename, "one/d", "two/d")
        os.rename("one/d", "one/e")
    same(os.listdir("one"), ["e"])


@each(
    {
        "owner_of_the_file": (ALICE, BOB, True),
        "owner_of_the_directory": (BOB, ALICE, True),
        "neither": (BOB, BOB, False),
    }
)
def sticky(file: int, directory: int, may: bool) -> None:
    """rename(2): EPERM in a sticky directory unless the user owns the file or the directory: {case}."""
    need_root()
    folder("d")
    os.chown("d", directory, -1)
    os.chmod("d", 0o1777)
    write("d/a")
    os.chown("d/a", file, -1)
    with acting_as(ALICE):
        if may:
            os.rename("d/a", "d/b")
        else:
            fails((errno.EPERM, errno.EACCES), os.rename, "d/a", "d/b")
    same(os.listdir("d"), ["b" if may else "a"])


@check
def sticky_protects_the_target() -> None:
    """rename(2): in a sticky directory another's file is not replaced either."""
    need_root()
    folder("d", 0o1777)
    write("d/roots", b"kept")
    with acting_as(ALICE):
        write("d/mine")
        fails((errno.EPERM, errno.EACCES), os.rename, "d/mine", "d/roots")
    same(read("d/roots"), b"kept")


@check
def a_name_becomes_another_kind() -> None:
    """rename(2): after any number of renames a name shows what is there now."""
    for turn in range(10):
        write("file", b"%d" % turn)
        os.mkdir("directory")
        os.rename("file", "name")
        same(read("name"), b"%d" % turn)
        os.unlink("name")
        os.rename("directory", "name")
        same(os.listdir("name"), [])
        os.rmdir("name")


@check
def a_deep_tree() -> None:
    """rename(2): what lies below a moved directory is found under its new path."""
    os.makedirs("a/b/c/d")
    write("a/b/c/d/file", b"deep")
    file = os.open("a/b/c", os.O_RDONLY)
    os.rename("a/b", "moved")
    same(read("moved/c/d/file"), b"deep")
    same(os.listdir(file), ["d"])
    fails(errno.ENOENT, os.stat, "a/b/c")
