"""renameat2(2): RENAME_NOREPLACE, RENAME_EXCHANGE, RENAME_WHITEOUT."""

import errno
import os
import stat
from collections.abc import Callable

from tests.posix.check import check, each, fails, not_run, same
from tests.posix.file import read, write
from tests.posix.system import RENAME_EXCHANGE, RENAME_NOREPLACE, RENAME_WHITEOUT, renameat2
from tests.posix.user import need_root

from .rename import MAKERS


def _try(old: str, new: str, flags: int) -> None:
    try:
        renameat2(old, new, flags)
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
        not_run(f"no renameat2 flag {flags:#x} here")


@each({kind: (make,) for kind, make in MAKERS.items()})
def noreplace(make: Callable[[str], object]) -> None:
    """renameat2(2): RENAME_NOREPLACE fails with EEXIST where the new name exists, else it renames: {case}."""
    make("old")
    make("new")
    fails(errno.EEXIST, renameat2, "old", "new", RENAME_NOREPLACE)
    _try("old", "fresh", RENAME_NOREPLACE)
    same(sorted(os.listdir()), ["fresh", "new"])


@check
def noreplace_counts_a_dangling_link() -> None:
    """renameat2(2): RENAME_NOREPLACE takes a dangling link as an existing name."""
    write("old")
    os.symlink("none", "new")
    fails(errno.EEXIST, renameat2, "old", "new", RENAME_NOREPLACE)


@each({f"{old}_and_{new}": (MAKERS[old], MAKERS[new]) for old in MAKERS for new in MAKERS if old <= new})
def exchange(make_old: Callable[[str], object], make_new: Callable[[str], object]) -> None:
    """renameat2(2): RENAME_EXCHANGE swaps two names of any kinds atomically: {case}."""
    os.mkdir("d")
    make_old("old")
    make_new("d/new")
    one, two = os.lstat("old"), os.lstat("d/new")
    _try("old", "d/new", RENAME_EXCHANGE)
    same((os.lstat("d/new").st_ino, os.lstat("d/new").st_mode), (one.st_ino, one.st_mode))
    same((os.lstat("old").st_ino, os.lstat("old").st_mode), (two.st_ino, two.st_mode))


@check
def exchange_moves_links_of_parents() -> None:
    """renameat2(2): exchanging a directory and a file moves the link that .. is."""
    os.makedirs("one/x")
    os.mkdir("two")
    write("two/x", b"file")
    _try("one/x", "two/x", RENAME_EXCHANGE)
    same((os.stat("one").st_nlink, os.stat("two").st_nlink), (2, 3))
    same((read("one/x"), os.listdir("two/x")), (b"file", []))


@check
def exchange_needs_both() -> None:
    """renameat2(2): ENOENT for RENAME_EXCHANGE when the new name does not exist."""
    write("a")
    fails(errno.ENOENT, renameat2, "a", "none", RENAME_EXCHANGE)
    fails(errno.ENOENT, renameat2, "none", "a", RENAME_EXCHANGE)


@check
def exchange_of_a_directory_and_its_child() -> None:
    """renameat2(2): EINVAL when one name is an ancestor of the other."""
    os.makedirs("d/e")
    fails(errno.EINVAL, renameat2, "d", "d/e", RENAME_EXCHANGE)
    fails(errno.EINVAL, renameat2, "d/e", "d", RENAME_EXCHANGE)


@check
def whiteout() -> None:
    """renameat2(2): RENAME_WHITEOUT leaves a character device 0/0 under the old name."""
    need_root()
    write("old", b"content")
    _try("old", "new", RENAME_WHITEOUT)
    found = os.lstat("old")
    assert stat.S_ISCHR(found.st_mode)
    same((found.st_rdev, read("new")), (0, b"content"))


@check
def whiteout_replaces() -> None:
    """renameat2(2): RENAME_WHITEOUT replaces the new name as rename does."""
    need_root()
    write("old", b"old")
    write("new", b"new")
    _try("old", "new", RENAME_WHITEOUT)
    same((read("new"), stat.S_IFMT(os.lstat("old").st_mode)), (b"old", stat.S_IFCHR))


@check
def whiteout_without_replacing() -> None:
    """renameat2(2): RENAME_WHITEOUT and RENAME_NOREPLACE can be said together."""
    need_root()
    write("old")
    write("new")
    fails(errno.EEXIST, renameat2, "old", "new", RENAME_WHITEOUT | RENAME_NOREPLACE)
    _try("old", "fresh", RENAME_WHITEOUT | RENAME_NOREPLACE)
    assert stat.S_ISCHR(os.lstat("old").st_mode)


@each(
    {
        "noreplace_and_exchange": (RENAME_NOREPLACE | RENAME_EXCHANGE,),
        "whiteout_and_exchange": (RENAME_WHITEOUT | RENAME_EXCHANGE,),
        "an_unknown_one": (0x100,),
    }
)
def refuses_flags(flags: int) -> None:
    """renameat2(2): EINVAL for flags that contradict each other or are none: {case}."""
    write("old")
    write("new")
    fails(errno.EINVAL, renameat2, "old", "new", flags)
