"""stat(2), statx(2), statvfs(3): what is told of files and file systems."""

import errno
import os
import stat
from collections.abc import Callable

from tests.posix.check import check, each, fails, same
from tests.posix.file import opened, write
from tests.posix.system import AT_EMPTY_PATH, STATX_BASIC_STATS, statx

KINDS: dict[str, tuple[Callable[[str], object], Callable[[int], bool]]] = {
    "file": (write, stat.S_ISREG),
    "directory": (os.mkdir, stat.S_ISDIR),
    "symlink": (lambda name: os.symlink("x", name), stat.S_ISLNK),
    "fifo": (os.mkfifo, stat.S_ISFIFO),
    "socket_node": (lambda name: os.mknod(name, stat.S_IFSOCK | 0o600), stat.S_ISSOCK),
}


@each(KINDS)
def kind(make: Callable[[str], object], judge: Callable[[int], bool]) -> None:
    """inode(7): st_mode tells the type of a {case}, and d_type agrees."""
    make("a")
    assert judge(os.lstat("a").st_mode)
    (entry,) = os.scandir(".")
    same(
        (entry.is_file(follow_symlinks=False), entry.is_dir(follow_symlinks=False), entry.is_symlink()),
        (judge is stat.S_ISREG, judge is stat.S_ISDIR, judge is stat.S_ISLNK),
    )


@each(KINDS)
def inode_number(make: Callable[[str], object], judge: Callable[[int], bool]) -> None:
    """inode(7): st_ino of a {case} is its own, and stays through rename, chmod and new contents."""
    make("a")
    make("b")
    number = os.lstat("a").st_ino
    assert number != os.lstat("b").st_ino
    os.rename("a", "c")
    if judge is not stat.S_ISLNK:
        os.chmod("c", 0o755)
    same((os.lstat("c").st_ino, os.lstat("c").st_dev), (number, os.lstat(".").st_dev))


@check
def stat_and_statx_agree() -> None:
    """statx(2): tells what stat does."""
    write("a", b"x" * 5000)
    os.link("a", "b")
    found, more = os.stat("a"), statx("a")
    same(
        (more.ino, more.size, more.nlink, more.mode, more.mtime, more.ctime, more.blocks),
        (found.st_ino, found.st_size, 2, found.st_mode, found.st_mtime_ns, found.st_ctime_ns, found.st_blocks),
    )
    same(more.mask & STATX_BASIC_STATS, STATX_BASIC_STATS)


@check
def fstat_agrees() -> None:
    """fstat(2): tells of a descriptor what stat tells of its name, after each kind of change."""
    file = opened("a")
    for change in (
        lambda: os.write(file, b"x" * 10_000),
        lambda: os.chmod("a", 0o604),
        lambda: os.truncate("a", 77),
        lambda: os.link("a", "b"),
        lambda: os.utime("b", ns=(5, 6)),
        lambda: os.unlink("b"),
    ):
        change()
        same(os.fstat(file), os.stat("a"))


@check
def statx_of_nothing() -> None:
    """statx(2): ENOENT for a missing name and for an empty one without AT_EMPTY_PATH."""
    fails(errno.ENOENT, statx, "none")
    fails(errno.ENOENT, statx, "")
    same(statx("", AT_EMPTY_PATH).ino, os.stat(".").st_ino)


@check
def blocks() -> None:
    """inode(7): st_blocks counts the 512-byte blocks in use: none for an empty file, more for more data."""
    file = opened("a")
    same(os.fstat(file).st_blocks, 0)
    os.write(file, os.urandom(1 << 20))
    os.fsync(file)
    os.close(file)
    write("b")
    assert os.stat("b").st_blocks == 0
    assert os.stat("a").st_blksize >= 512


@check
def statvfs() -> None:
    """statvfs(3): the numbers make sense, and are the same for every file of the file system."""
    write("a")
    found, other = os.statvfs("."), os.statvfs("a")
    assert 0 < found.f_frsize <= 1 << 22
    assert 0 <= found.f_bavail <= found.f_bfree <= found.f_blocks
    assert 0 <= found.f_ffree <= max(found.f_files, found.f_ffree)
    same((found.f_blocks, found.f_namemax, found.f_fsid), (other.f_blocks, 255, other.f_fsid))
    same(os.fstatvfs(os.open("a", os.O_RDONLY)).f_blocks, found.f_blocks)


@check
def statvfs_of_nothing() -> None:
    """statvfs(3): ENOENT for a missing name, ENOTDIR below a file."""
    write("a")
    fails(errno.ENOENT, os.statvfs, "none")
    fails(errno.ENOTDIR, os.statvfs, "a/b")


@check
def directory_size_and_links() -> None:
    """stat(2): a directory has a size, and as many links as stat and statx agree on."""
    os.makedirs("d/e")
    same(statx("d").nlink, os.stat("d").st_nlink)
    assert os.stat("d").st_size >= 0
