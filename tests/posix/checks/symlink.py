"""symlink(2), readlink(2) and how paths are resolved through links."""

import errno
import os
import stat

from tests.posix.check import check, each, fails, same
from tests.posix.file import folder, later, read, write
from tests.posix.user import ALICE, acting_as

TARGETS = {
    "relative": "d/a",
    "absolute": "/etc/passwd",
    "dangling": "no/such/thing",
    "dots": "../../x/./y/..",
    "of_one_byte": "x",
    "of_59_bytes": "x" * 59,
    "of_60_bytes": "x" * 60,
    "of_255_bytes": "x" * 255,
    "of_1024_bytes": "x/" * 512,
    "of_4095_bytes": "x/" * 2047 + "y",
    "not_utf8": os.fsdecode(b"\xff\xfe\x80"),
    "with_newline": "a\nb",
    "with_slashes": "//a///b//",
}


@each({name: (target,) for name, target in TARGETS.items()})
def target(target: str) -> None:
    """symlink(2), readlink(2): the target is kept as it is, and st_size is its length: {case}."""
    os.symlink(target, "l")
    found = os.lstat("l")
    same((os.readlink("l"), found.st_size), (target, len(os.fsencode(target))))
    assert stat.S_ISLNK(found.st_mode)


@check
def an_empty_target() -> None:
    """symlink(2): ENOENT for an empty target."""
    fails(errno.ENOENT, os.symlink, "", "l")


@check
def a_target_too_long() -> None:
    """symlink(2): ENAMETOOLONG for a target of 4096 bytes."""
    fails(errno.ENAMETOOLONG, os.symlink, "x/" * 2048, "l")


@check
def readlink_of_what_is_no_link() -> None:
    """readlink(2): EINVAL for a file or a directory, ENOENT for nothing."""
    write("a")
    os.mkdir("d")
    fails(errno.EINVAL, os.readlink, "a")
    fails(errno.EINVAL, os.readlink, "d")
    fails(errno.ENOENT, os.readlink, "none")


@check
def is_followed_for_data() -> None:
    """symlink(7): opens follow a link, relative to its own directory."""
    os.makedirs("d/e")
    write("d/a", b"content")
    os.symlink("../a", "d/e/l")
    same(read("d/e/l"), b"content")
    write("d/e/l", b"through")
    same(read("d/a"), b"through")


@check
def a_chain() -> None:
    """path_resolution(7): a chain of links is followed to its end."""
    write("l0", b"end")
    for number in range(1, 31):
        os.symlink(f"l{number - 1}", f"l{number}")
    same(read("l30"), b"end")


@check
def a_chain_too_long() -> None:
    """path_resolution(7): ELOOP above 40 links."""
    write("l0")
    for number in range(1, 50):
        os.symlink(f"l{number - 1}", f"l{number}")
    os.stat("l40")
    fails(errno.ELOOP, os.stat, "l41")


@check
def a_loop() -> None:
    """path_resolution(7): ELOOP for links that lead to each other, as the last component or a middle one."""
    os.symlink("two", "one")
    os.symlink("one", "two")
    os.symlink("self/x", "self")
    for path in ("one", "two/x", "self"):
        fails(errno.ELOOP, os.stat, path)
        fails(errno.ELOOP, os.open, path, os.O_RDONLY)
    fails(errno.ELOOP, os.open, "one", os.O_WRONLY | os.O_CREAT)
    fails(errno.ELOOP, os.chmod, "one", 0o600)
    os.lstat("one")


@check
def to_a_directory() -> None:
    """path_resolution(7): a link to a directory is followed in the middle of a path and before a slash."""
    os.mkdir("d")
    write("d/a", b"x")
    os.symlink("d", "l")
    same((read("l/a"), os.listdir("l")), (b"x", ["a"]))
    assert stat.S_ISDIR(os.lstat("l/").st_mode)
    write("l/new", b"y")
    same(read("d/new"), b"y")


@check
def dot_dot_behind_a_link() -> None:
    """path_resolution(7): .. behind a link is the parent of where it leads."""
    os.makedirs("d/e")
    write("d/a", b"in d")
    write("a", b"at top")
    os.symlink("d/e", "l")
    same(read("l/../a"), b"in d")


@check
def rmdir_and_unlink_of_one_to_a_directory() -> None:
    """rmdir(2), unlink(2): ENOTDIR for rmdir of a link to a directory; unlink removes the link."""
    os.mkdir("d")
    os.symlink("d", "l")
    fails(errno.ENOTDIR, os.rmdir, "l")
    os.unlink("l")
    same(os.listdir(), ["d"])


@check
def comes_to_life() -> None:
    """path_resolution(7): a link is resolved at each access: a dangling one leads to what is made later."""
    os.symlink("a", "l")
    fails(errno.ENOENT, os.stat, "l")
    write("a", b"now")
    same(read("l"), b"now")
    os.unlink("a")
    fails(errno.ENOENT, os.stat, "l")
    os.mkdir("a")
    assert os.path.isdir("l")


@check
def replaced_by_another() -> None:
    """symlink(2): a link made anew under a name leads where it says."""
    for turn in range(20):
        os.symlink(f"target{turn}" * (turn + 1), "l")
        same(os.readlink("l"), f"target{turn}" * (turn + 1))
        os.unlink("l")


@check
def times_are_its_own() -> None:
    """utimensat(2): AT_SYMLINK_NOFOLLOW sets the times of the link and not of its target."""
    write("a")
    os.symlink("a", "l")
    os.utime("a", ns=(10**18, 10**18))
    os.utime("l", ns=(2 * 10**18, 3 * 10**18), follow_symlinks=False)
    found = os.lstat("l")
    same((found.st_mtime_ns, os.stat("l").st_mtime_ns), (3 * 10**18, 10**18))


@check
def permissions_do_not_matter() -> None:
    """symlink(7): anyone reads a link whose directory may be searched, whoever owns it."""
    folder("d", 0o711)
    write("d/a", b"x")
    os.symlink("a", "d/l")
    with acting_as(ALICE):
        same((os.readlink("d/l"), read("d/l")), ("a", b"x"))


@check
def stays_as_it_was_made() -> None:
    """symlink(2): following a link changes neither its mtime nor its ctime."""
    write("a")
    os.symlink("a", "l")
    before = os.lstat("l")
    later()
    os.stat("l")
    read("l")
    os.readlink("l")
    after = os.lstat("l")
    same((after.st_mtime_ns, after.st_ctime_ns), (before.st_mtime_ns, before.st_ctime_ns))
