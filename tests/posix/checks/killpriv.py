"""Privileges that a file loses when its content changes: suid, sgid, security.capability."""

import errno
import mmap
import os
import struct
from collections.abc import Callable

from tests.posix.check import Mode, check, each, mode, not_run, same
from tests.posix.file import folder, opened, write
from tests.posix.system import FALLOC_KEEP_SIZE, FALLOC_PUNCH_HOLE, STATX_MODE, fallocate, statx
from tests.posix.user import ALICE, TEAM, acting_as, need_root

# cap_net_raw+ep, as setcap writes it: VFS_CAP_REVISION_2 with the effective bit, then permitted and inheritable twice.
CAPABILITY = struct.pack("<IIIII", 0x02000001, 1 << 13, 0, 0, 0)


def _copied(file: int) -> None:
    source = opened("d/source")
    os.pwrite(source, b"copied", 0)
    os.copy_file_range(source, file, 6, 0, 0)


def _spliced(file: int) -> None:
    reader, writer = os.pipe()
    os.write(writer, b"spliced")
    same(os.splice(reader, file, 7), 7)


def _sent(file: int) -> None:
    source = opened("d/source")
    os.pwrite(source, b"sent", 0)
    same(os.sendfile(file, source, 0, 4), 4)


def _direct(_file: int) -> None:
    try:
        file = os.open("d/a", os.O_WRONLY | os.O_DIRECT)
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
        not_run("no O_DIRECT here")
    same(os.write(file, mmap.mmap(-1, 4096)), 4096)


CHANGES: dict[str, Callable[[int], object]] = {
    "write": lambda file: os.write(file, b"new"),
    "pwrite": lambda file: os.pwrite(file, b"new", 1),
    "pwritev": lambda file: os.pwritev(file, [b"n", b"ew"], 0),
    "ftruncate": lambda file: os.ftruncate(file, 1),
    "ftruncate_longer": lambda file: os.ftruncate(file, 10_000),
    "truncate": lambda file: os.truncate("d/a", 1),
    "open_with_trunc": lambda file: os.close(os.open("d/a", os.O_WRONLY | os.O_TRUNC)),
    "direct_write": _direct,
    "append": lambda file: os.write(os.open("d/a", os.O_WRONLY | os.O_APPEND), b"new"),
    "copy_file_range": _copied,
    "sendfile": _sent,
    "splice": _spliced,
    "fallocate": lambda file: fallocate(file, 0, 0, 100_000),
    "punch_hole": lambda file: fallocate(file, FALLOC_PUNCH_HOLE | FALLOC_KEEP_SIZE, 0, 4096),
}


@each({name: (change,) for name, change in CHANGES.items()})
def by_another_user(change: Callable[[int], object]) -> None:
    """write(2), truncate(2), inode(7): {case} by a user without CAP_FSETID clears suid, and sgid of an executable."""
    folder("d", 0o777)
    write("d/a", bytes(8192))
    os.chmod("d/a", 0o6777)
    with acting_as(ALICE):
        change(os.open("d/a", os.O_RDWR))
        same(mode("d/a"), 0o777)


@each({name: (change,) for name, change in CHANGES.items()})
def by_the_owner(change: Callable[[int], object]) -> None:
    """write(2), truncate(2), inode(7): {case} by the owner, without CAP_FSETID, clears suid and sgid as well."""
    folder("d", 0o777)
    with acting_as(ALICE):
        write("d/a", bytes(8192))
        os.chmod("d/a", 0o6755)
        same(_mode_alone("d/a"), 0o6755)
        change(os.open("d/a", os.O_RDWR))
        same(_mode_alone("d/a"), 0o755)
        same(mode("d/a"), 0o755)


def _mode_alone(path: str) -> Mode:
    """The mode as stat(1) asks for it when it prints nothing else: what is known of the rest is not looked at."""
    return Mode(statx(path, mask=STATX_MODE).mode & 0o7777)


@each({name: (change,) for name, change in CHANGES.items()})
def by_root_stay(change: Callable[[int], object]) -> None:
    """capabilities(7): CAP_FSETID keeps suid and sgid when a file is modified, here by {case}."""
    need_root()
    os.mkdir("d")
    write("d/a", bytes(8192))
    os.chmod("d/a", 0o6755)
    change(os.open("d/a", os.O_RDWR))
    same(mode("d/a"), 0o6755)


@each({name: (change,) for name, change in CHANGES.items()})
def capability(change: Callable[[int], object]) -> None:
    """capabilities(7), file_remove_privs of Linux: {case} removes security.capability, by root too."""
    need_root()
    os.mkdir("d")
    write("d/a", bytes(8192))
    _set_capability("d/a")
    change(os.open("d/a", os.O_RDWR))
    same(os.listxattr("d/a"), [])


@check
def capability_by_chown() -> None:
    """chown(2): removes the capability sets of an executable."""
    need_root()
    write("a")
    _set_capability("a")
    os.chown("a", ALICE, -1)
    same(os.listxattr("a"), [])


def _set_capability(path: str) -> None:
    try:
        os.setxattr(path, "security.capability", CAPABILITY)
    except OSError as error:
        not_run(f"security.capability cannot be set: {error.strerror}")
    same(os.getxattr(path, "security.capability"), CAPABILITY)


@each({"suid": (0o4777, 0o777), "sgid": (0o2777, 0o777), "suid_not_executable": (0o4666, 0o666)})
def bit_by_write(before: int, after: int) -> None:
    """write(2): the owner is not needed: a write by a user without privileges clears {case}."""
    write("a", b"x")
    os.chmod("a", before)
    with acting_as(ALICE):
        os.write(os.open("a", os.O_WRONLY), b"y")
        same(mode("a"), after)


@each({"member": ((TEAM,), 0o2766), "stranger": ((), 0o766)})
def sgid_without_group_execution(groups: tuple[int, ...], wanted: int) -> None:
    """setattr_should_drop_sgid of Linux: without group execution, write clears S_ISGID for strangers to the group: {case}."""
    need_root()
    write("a", b"x")
    os.chown("a", 0, TEAM)
    os.chmod("a", 0o2766)
    with acting_as(ALICE, groups=groups):
        os.write(os.open("a", os.O_WRONLY), b"y")
    same(mode("a"), Mode(wanted))


@check
def by_reading_stay() -> None:
    """write(2): only modification clears; a read and an open for writing do not."""
    write("a", b"x")
    os.chmod("a", 0o6777)
    with acting_as(ALICE):
        file = os.open("a", os.O_RDWR)
        same(os.read(file, 10), b"x")
        os.close(file)
        same(mode("a"), 0o6777)


@check
def a_second_write_finds_them_set_again() -> None:
    """write(2): bits that root sets anew are cleared anew, through the same descriptor."""
    write("a", b"x")
    os.chmod("a", 0o666)
    with acting_as(ALICE):
        file = os.open("a", os.O_WRONLY)
    for _ in range(3):
        os.chmod("a", 0o6777)
        with acting_as(ALICE):
            os.write(file, b"y")
            same(mode("a"), 0o777)
