"""path_resolution(7), access(2): what others may do."""

import errno
import os
from collections.abc import Callable

from tests.posix.check import check, each, fails, same
from tests.posix.file import folder, read, touch, write
from tests.posix.user import ALICE, BOB, TEAM, acting_as, need_root

CLASSES = {"owner": (ALICE, ()), "group": (BOB, (TEAM,)), "other": (BOB, ())}
SHIFTS = {"owner": 6, "group": 3, "other": 0}


@each({f"{who}_{bits}": (who, bits) for who in CLASSES for bits in range(8)})
def file(who: str, bits: int) -> None:
    """path_resolution(7): the bits of one class alone decide what its members may do: {case}."""
    need_root()
    write("a", b"#!/bin/sh\n")
    os.chown("a", ALICE, TEAM)
    # Every other class may do all.
    permissions = 0o777 & ~(7 << SHIFTS[who]) | bits << SHIFTS[who]
    os.chmod("a", permissions)
    uid, groups = CLASSES[who]
    with acting_as(uid, groups=groups):
        for flags, needed in ((os.O_RDONLY, 4), (os.O_WRONLY, 2), (os.O_RDWR, 6)):
            if bits & needed == needed:
                os.close(os.open("a", flags))
            else:
                fails(errno.EACCES, os.open, "a", flags)
        for wanted in (os.R_OK, os.W_OK, os.X_OK):
            same(os.access("a", wanted, effective_ids=True), bool(bits & wanted), f"access {wanted}")


@each({f"{who}_{bits}": (who, bits) for who in CLASSES for bits in range(8)})
def directory(who: str, bits: int) -> None:
    """path_resolution(7): of a directory, r lists, x searches, w with x changes: {case}."""
    need_root()
    folder("d")
    touch("d/a", 0o666)
    os.chown("d", ALICE, TEAM)
    os.chmod("d", bits << SHIFTS[who])
    uid, groups = CLASSES[who]
    lists, searches, changes = bits & 4, bits & 1, bits & 3 == 3
    with acting_as(uid, groups=groups):
        _try(bool(lists), os.listdir, "d")
        _try(bool(searches), os.stat, "d/a")
        _try(bool(searches), os.chdir, "d")
        if searches:
            os.chdir("..")
        _try(changes, write, "d/new")
        _try(changes, os.mkdir, "d/e")
        _try(changes, os.rename, "d/a", "d/b")
        _try(changes, os.unlink, "d/b" if changes else "d/a")
    os.chmod("d", 0o700)


def _try(may: bool, call: Callable[..., object], *arguments: object) -> None:
    if may:
        call(*arguments)
    else:
        fails(errno.EACCES, call, *arguments)


@check
def search_on_the_way() -> None:
    """path_resolution(7): EACCES when any directory on the way cannot be searched; what was opened before stays open."""
    need_root()
    os.makedirs("d/e")
    touch("d/e/a", 0o666)
    with acting_as(ALICE):
        kept = os.open("d/e/a", os.O_RDWR)
        inside = os.open("d/e", os.O_RDONLY)
    os.chmod("d", 0o700)
    with acting_as(ALICE):
        for call in (read, os.stat, os.listdir, lambda path: os.chmod(path, 0o777)):
            fails(errno.EACCES, call, "d/e/a")
        os.write(kept, b"still")
        same(os.stat("a", dir_fd=inside).st_size, 5)


@check
def root_passes() -> None:
    """capabilities(7): CAP_DAC_OVERRIDE passes all permissions of directories and files but execution of what nobody may."""
    need_root()
    folder("d", 0)
    write("d/a", b"x")
    os.chmod("d/a", 0)
    os.chown("d/a", ALICE, ALICE)
    same((os.listdir("d"), read("d/a")), (["a"], b"x"))
    same(os.access("d/a", os.R_OK | os.W_OK), True)
    same(os.access("d/a", os.X_OK), False)


@check
def lost_group() -> None:
    """path_resolution(7): who leaves a group loses what it gave, at the next open."""
    need_root()
    write("a", b"x")
    os.chown("a", -1, TEAM)
    os.chmod("a", 0o640)
    for groups, may in (((TEAM,), True), ((), False), ((BOB, TEAM), True)):
        with acting_as(ALICE, groups=groups):
            if may:
                same(read("a"), b"x")
            else:
                fails(errno.EACCES, read, "a")


@check
def changed_by_root_is_obeyed_by_all() -> None:
    """chmod(2), chown(2): who saw the old permissions is judged by the new ones."""
    need_root()
    folder("d", 0o755)
    write("d/a", b"x")
    with acting_as(ALICE):
        same(read("d/a"), b"x")
        fails(errno.EACCES, write, "d/b")
    os.chown("d", ALICE, -1)
    with acting_as(ALICE):
        write("d/b", b"y")
    os.chmod("d", 0o700)
    with acting_as(BOB):
        fails(errno.EACCES, os.stat, "d/b")
    os.chmod("d", 0o711)
    with acting_as(BOB):
        same(read("d/b"), b"y")


@check
def access_of_a_missing_file() -> None:
    """access(2): F_OK tells whether a file exists and can be reached."""
    write("a")
    os.symlink("none", "l")
    same([os.access(path, os.F_OK) for path in ("a", "none", "l", "a/b")], [True, False, False, False])
