"""acl(5): POSIX ACLs by their extended attributes: what they grant, inherit, and do to modes."""

import errno
import os
import stat
import struct
from collections.abc import Callable

from tests.posix.check import check, each, fails, mode, not_run, same
from tests.posix.file import folder, later, read, write
from tests.posix.user import ALICE, BOB, TEAM, acting_as, need_root

ACCESS = "system.posix_acl_access"
DEFAULT = "system.posix_acl_default"
# Tags of linux/posix_acl_xattr.h.
USER_OBJ, USER, GROUP_OBJ, GROUP, MASK, OTHER = 0x01, 0x02, 0x04, 0x08, 0x10, 0x20
Rows = list[tuple[int, int, int]]
NOBODY = 0xFFFFFFFF


def _encoded(rows: Rows) -> bytes:
    return struct.pack("<I", 2) + b"".join(struct.pack("<HHI", *row) for row in rows)


def _acl(user: int, group: int, other: int, *named: tuple[int, int, int], mask: int | None = None) -> bytes:
    """An ACL with its three base entries, named ones, and a mask, which named ones need."""
    rows = [(USER_OBJ, user, NOBODY), (GROUP_OBJ, group, NOBODY), (OTHER, other, NOBODY), *named]
    if mask is not None:
        rows.append((MASK, mask, NOBODY))
    return _encoded(sorted(rows, key=lambda row: (row[0], row[2])))


def _rows(value: bytes) -> Rows:
    same(value[:4], struct.pack("<I", 2), "the version")
    return list(struct.iter_unpack("<HHI", value[4:]))


def _set(path: str, name: str, value: bytes) -> None:
    """Set an ACL; not run where the file system has none."""
    try:
        os.setxattr(path, name, value)
    except OSError as error:
        if error.errno != errno.EOPNOTSUPP:
            raise
        not_run("no POSIX ACLs here")


@check
def access_is_kept() -> None:
    """acl(5): an access ACL is read back as it was set."""
    write("a")
    value = _acl(6, 4, 0, (USER, 7, ALICE), (GROUP, 5, TEAM), mask=7)
    _set("a", ACCESS, value)
    same(_rows(os.getxattr("a", ACCESS)), _rows(value))
    assert ACCESS in os.listxattr("a")


@check
def default_is_kept() -> None:
    """acl(5): a directory has a default ACL beside its access ACL."""
    os.mkdir("d")
    access, default = _acl(7, 5, 0, (USER, 7, ALICE), mask=7), _acl(7, 0, 0, (GROUP, 6, TEAM), mask=6)
    _set("d", ACCESS, access)
    _set("d", DEFAULT, default)
    same((_rows(os.getxattr("d", ACCESS)), _rows(os.getxattr("d", DEFAULT))), (_rows(access), _rows(default)))
    os.removexattr("d", DEFAULT)
    fails(errno.ENODATA, os.getxattr, "d", DEFAULT)


@check
def default_is_for_directories() -> None:
    """acl(5): EACCES for a default ACL of a file."""
    write("a")
    os.mkdir("d")
    _set("d", DEFAULT, _acl(7, 5, 5))
    fails(errno.EACCES, os.setxattr, "a", DEFAULT, _acl(7, 5, 5))


@check
def a_minimal_one_is_the_mode() -> None:
    """acl(5): an ACL of the three base entries sets the permission bits and is not stored beside them."""
    write("a")
    _set("a", ACCESS, _acl(7, 5, 1))
    same(mode("a"), 0o751)
    fails(errno.ENODATA, os.getxattr, "a", ACCESS)


@check
def the_group_bits_are_the_mask() -> None:
    """acl(5): with a mask, the group bits of the mode show it."""
    write("a")
    _set("a", ACCESS, _acl(6, 0, 4, (USER, 7, ALICE), mask=5))
    same(mode("a"), 0o654)


@check
def chmod_sets_the_mask() -> None:
    """acl(5): chmod changes the mask, the owner's and the others' entries of an ACL."""
    write("a")
    _set("a", ACCESS, _acl(6, 4, 4, (USER, 7, ALICE), mask=7))
    os.chmod("a", 0o710)
    rows = {(tag, ident): bits for tag, bits, ident in _rows(os.getxattr("a", ACCESS))}
    same((rows[USER_OBJ, NOBODY], rows[MASK, NOBODY], rows[OTHER, NOBODY]), (7, 1, 0))
    same((rows[GROUP_OBJ, NOBODY], rows[USER, ALICE]), (4, 7), "what the mask covers stays")


@check
def removed_leaves_the_mode() -> None:
    """acl(5): without the ACL the permission bits decide again."""
    write("a")
    _set("a", ACCESS, _acl(6, 4, 0, (USER, 6, ALICE), mask=6))
    os.removexattr("a", ACCESS)
    fails(errno.ENODATA, os.getxattr, "a", ACCESS)
    same(mode("a"), 0o660)


@each(
    {
        "named_user": (_acl(6, 0, 0, (USER, 4, ALICE), mask=7), ALICE, (), True),
        "named_user_without": (_acl(6, 4, 4, (USER, 0, ALICE), mask=7), ALICE, (), False),
        "named_user_masked": (_acl(6, 0, 0, (USER, 4, ALICE), mask=3), ALICE, (), False),
        "named_group": (_acl(6, 0, 0, (GROUP, 4, TEAM), mask=7), ALICE, (TEAM,), True),
        "named_group_without": (_acl(6, 0, 4, (GROUP, 0, TEAM), mask=7), ALICE, (TEAM,), False),
        "named_group_masked": (_acl(6, 0, 0, (GROUP, 4, TEAM), mask=2), ALICE, (TEAM,), False),
        "one_of_two_groups": (_acl(6, 0, 0, (GROUP, 0, BOB), (GROUP, 4, TEAM), mask=7), ALICE, (BOB, TEAM), True),
        "others": (_acl(6, 0, 4, (USER, 0, BOB), mask=7), ALICE, (), True),
        "others_are_not_masked": (_acl(6, 0, 4, (USER, 7, BOB), mask=0), ALICE, (), True),
        "no_entry": (_acl(6, 4, 0, (USER, 7, BOB), mask=7), ALICE, (), False),
    }
)
def grants(value: bytes, uid: int, groups: tuple[int, ...], may: bool) -> None:
    """acl(5), access check algorithm: the entry that fits decides whether the file may be read: {case}."""
    need_root()
    write("a", b"x")
    _set("a", ACCESS, value)
    with acting_as(uid, groups=groups):
        if may:
            same(read("a"), b"x")
        else:
            fails(errno.EACCES, read, "a")


@check
def a_change_counts_at_once() -> None:
    """acl(5): the next access is judged by the new ACL."""
    need_root()
    write("a", b"x")
    os.chmod("a", 0o600)
    for bits in (4, 0, 4):
        _set("a", ACCESS, _acl(6, 0, 0, (USER, bits, ALICE), mask=7))
        with acting_as(ALICE):
            if bits:
                same(read("a"), b"x")
            else:
                fails(errno.EACCES, read, "a")


@check
def of_a_directory() -> None:
    """acl(5): a named user's entry lets them make files in a directory."""
    need_root()
    folder("d", 0o700)
    _set("d", ACCESS, _acl(7, 0, 0, (USER, 7, ALICE), mask=7))
    with acting_as(ALICE):
        write("d/a")
    with acting_as(BOB):
        fails(errno.EACCES, os.stat, "d/a")
    same(os.stat("d/a").st_uid, ALICE)


MAKERS: dict[str, Callable[[str, int], object]] = {
    "file": lambda name, bits: os.close(os.open(name, os.O_WRONLY | os.O_CREAT, bits)),
    "fifo": os.mkfifo,
    "mknod_file": lambda name, bits: os.mknod(name, stat.S_IFREG | bits),
    "directory": os.mkdir,
}


@each({kind: (make,) for kind, make in MAKERS.items()})
def default_is_inherited(make: Callable[[str, int], object]) -> None:
    """acl(5), object creation: a new {case} gets the default ACL as its own, cut down to the mode that was asked for."""
    os.mkdir("d")
    _set("d", DEFAULT, _acl(7, 5, 1, (USER, 7, ALICE), mask=7))
    make("d/a", 0o666)
    rows = {(tag, ident): bits for tag, bits, ident in _rows(os.getxattr("d/a", ACCESS))}
    same((rows[USER_OBJ, NOBODY], rows[MASK, NOBODY], rows[OTHER, NOBODY], rows[USER, ALICE]), (6, 6, 0, 7))
    same(mode("d/a"), 0o660)


@each({f"umask_{mask:03o}": (mask,) for mask in (0, 0o022, 0o077, 0o777)})
def default_replaces_the_umask(mask: int) -> None:
    """umask(2): with a default ACL the umask plays no part: {case}."""
    os.mkdir("d")
    _set("d", DEFAULT, _acl(7, 7, 5))
    os.umask(mask)
    write("d/a", permissions=0o666)
    os.mkdir("d/e", 0o777)
    same((mode("d/a"), mode("d/e")), (0o664, 0o775))


@check
def umask_without_a_default() -> None:
    """umask(2): an access ACL of the directory does not keep the umask away."""
    os.mkdir("d")
    _set("d", ACCESS, _acl(7, 7, 7, (USER, 7, ALICE), mask=7))
    os.umask(0o027)
    write("d/a", permissions=0o666)
    same(mode("d/a"), 0o640)


@check
def default_goes_down_the_tree() -> None:
    """acl(5): a new directory takes the default ACL over as its own default."""
    os.mkdir("d")
    value = _acl(7, 5, 0, (USER, 7, ALICE), mask=7)
    _set("d", DEFAULT, value)
    os.makedirs("d/e/f")
    same(_rows(os.getxattr("d/e/f", DEFAULT)), _rows(value))
    write("d/e/f/a")
    fails(errno.ENODATA, os.getxattr, "d/e/f/a", DEFAULT)
    assert ACCESS in os.listxattr("d/e/f/a")


@check
def a_symlink_has_none() -> None:
    """acl(5): symbolic links do not inherit ACLs."""
    os.mkdir("d")
    _set("d", DEFAULT, _acl(7, 5, 0, (USER, 7, ALICE), mask=7))
    os.symlink("x", "d/l")
    same((mode("d/l"), os.listxattr("d/l", follow_symlinks=False)), (0o777, []))


@check
def belongs_to_the_owner() -> None:
    """acl(5), setxattr(2): EPERM when another user sets the ACL."""
    need_root()
    write("a")
    os.chmod("a", 0o666)
    _set("a", ACCESS, _acl(6, 6, 6))
    with acting_as(ALICE):
        fails(errno.EPERM, os.setxattr, "a", ACCESS, _acl(7, 7, 7))


@each({"member": ((TEAM,), 0o2755), "stranger": ((), 0o755)})
def sgid_needs_the_group(groups: tuple[int, ...], wanted: int) -> None:
    """posix_acl_update_mode of Linux: an ACL set by an owner outside of the file's group clears S_ISGID: {case}."""
    need_root()
    write("a")
    os.chown("a", ALICE, TEAM)
    os.chmod("a", 0o2700)
    with acting_as(ALICE, groups=groups):
        _set("a", ACCESS, _acl(7, 5, 5))
    same(mode("a"), wanted)


@each(
    {
        "no_owner": (_encoded([(GROUP_OBJ, 5, NOBODY), (OTHER, 5, NOBODY)]), errno.EINVAL),
        "no_mask": (_acl(7, 5, 5, (USER, 7, ALICE)), errno.EINVAL),
        "cut_off": (_acl(7, 5, 5)[:-1], errno.EINVAL),
        "wrong_version": (struct.pack("<I", 9) + _acl(7, 5, 5)[4:], errno.EOPNOTSUPP),
        "too_many_bits": (_acl(0o17, 5, 5), errno.EINVAL),
    }
)
def refuses(value: bytes, expected: int) -> None:
    """acl_valid(3): an ACL that makes no sense is refused, and nothing changes: {case}."""
    write("a")
    _set("a", ACCESS, _acl(6, 4, 4))
    fails(expected, os.setxattr, "a", ACCESS, value)
    same(mode("a"), 0o644)


@check
def marks_ctime() -> None:
    """inode(7): an ACL that changes marks ctime for update."""
    write("a")
    _set("a", ACCESS, _acl(6, 4, 4))
    before = os.stat("a")
    later()
    _set("a", ACCESS, _acl(6, 4, 0, (USER, 4, ALICE), mask=4))
    after = os.stat("a")
    assert after.st_ctime_ns > before.st_ctime_ns
    same(after.st_mtime_ns, before.st_mtime_ns)


@check
def chown_keeps_it() -> None:
    """acl(5): the entries of owner and group follow a change of owner, the named ones stay."""
    need_root()
    write("a")
    value = _acl(6, 4, 0, (USER, 4, ALICE), mask=4)
    _set("a", ACCESS, value)
    os.chown("a", BOB, TEAM)
    same(_rows(os.getxattr("a", ACCESS)), _rows(value))
    with acting_as(BOB):
        os.close(os.open("a", os.O_RDWR))
