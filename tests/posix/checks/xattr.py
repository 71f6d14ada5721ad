"""xattr(7): all calls, flags, sizes, name spaces, kinds of files."""

import errno
import os
import stat
from collections.abc import Callable

from tests.posix.check import check, each, fails, not_run, same
from tests.posix.file import folder, later, opened, touch, write
from tests.posix.user import ALICE, acting_as, need_root


def _file(name: str = "a") -> None:
    """A file on a file system that has user attributes."""
    write(name)
    try:
        os.setxattr(name, "user.probe", b"x")
    except OSError as error:
        not_run(f"no user attributes here: {error.strerror}")
    os.removexattr(name, "user.probe")


@check
def set_get_list_remove() -> None:
    """xattr(7): an attribute that is set is listed and read, until it is removed."""
    _file()
    same(os.listxattr("a"), [])
    os.setxattr("a", "user.one", b"1")
    os.setxattr("a", "user.two", b"22")
    same((sorted(os.listxattr("a")), os.getxattr("a", "user.two")), (["user.one", "user.two"], b"22"))
    os.removexattr("a", "user.one")
    same(os.listxattr("a"), ["user.two"])
    fails(errno.ENODATA, os.getxattr, "a", "user.one")


@each({str(size): (size,) for size in (0, 1, 255, 256, 1000, 3000, 4096, 65535, 65536)})
def value_of_size(size: int) -> None:
    """xattr(7): a value has 0 to 65536 bytes of any value: {case}."""
    _file()
    value = bytes(index * 7 % 256 for index in range(size))
    try:
        os.setxattr("a", "user.x", value)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.E2BIG):
            raise
        not_run(f"the file system has no room for {size} bytes")
    same(os.getxattr("a", "user.x"), value)


@check
def value_too_large() -> None:
    """setxattr(2): E2BIG for a value above 65536 bytes."""
    _file()
    fails(errno.E2BIG, os.setxattr, "a", "user.x", bytes(65537))


@check
def value_is_replaced_whole() -> None:
    """setxattr(2): a new value replaces the old one, longer or shorter."""
    _file()
    for value in (b"long" * 50, b"s", b"", b"medium", b"x" * 500):
        os.setxattr("a", "user.x", value)
        same(os.getxattr("a", "user.x"), value)


@check
def create_flag() -> None:
    """setxattr(2): XATTR_CREATE fails with EEXIST when the attribute exists."""
    _file()
    os.setxattr("a", "user.x", b"1", os.XATTR_CREATE)
    fails(errno.EEXIST, os.setxattr, "a", "user.x", b"2", os.XATTR_CREATE)
    same(os.getxattr("a", "user.x"), b"1")


@check
def replace_flag() -> None:
    """setxattr(2): XATTR_REPLACE fails with ENODATA when the attribute does not exist."""
    _file()
    fails(errno.ENODATA, os.setxattr, "a", "user.x", b"1", os.XATTR_REPLACE)
    same(os.listxattr("a"), [])
    os.setxattr("a", "user.x", b"1")
    os.setxattr("a", "user.x", b"2", os.XATTR_REPLACE)
    same(os.getxattr("a", "user.x"), b"2")


@check
def unknown_flag() -> None:
    """setxattr(2): EINVAL for an unknown flag."""
    _file()
    fails(errno.EINVAL, os.setxattr, "a", "user.x", b"1", 0x10)


@check
def missing_attribute() -> None:
    """getxattr(2), removexattr(2): ENODATA for an attribute that is not there."""
    _file()
    fails(errno.ENODATA, os.getxattr, "a", "user.none")
    fails(errno.ENODATA, os.removexattr, "a", "user.none")


@each({"get": (lambda: os.getxattr("none", "user.x"),), "list": (lambda: os.listxattr("none"),)})
def missing_file(call: Callable[[], object]) -> None:
    """getxattr(2), listxattr(2): ENOENT for a file that is not there: {case}."""
    fails(errno.ENOENT, call)


@each(
    {
        "no_name_space": ("x", (errno.EOPNOTSUPP,)),
        "unknown_name_space": ("nonsense.x", (errno.EOPNOTSUPP,)),
        "name_space_alone": ("user.", (errno.EINVAL,)),
        "empty": ("", (errno.ERANGE,)),
        "too_long": ("user." + "n" * 251, (errno.ERANGE,)),
    }
)
def name_is_refused(name: str, expected: tuple[int, ...]) -> None:
    """setxattr(2), xattr(7): the error of a name that cannot be: {case}."""
    _file()
    fails(expected, os.setxattr, "a", name, b"x")


@check
def name_of_255_bytes() -> None:
    """xattr(7): a name has up to 255 bytes, its name space included."""
    _file()
    name = "user." + "n" * 250
    os.setxattr("a", name, b"x")
    same((os.listxattr("a"), os.getxattr("a", name)), ([name], b"x"))


@check
def name_of_any_bytes() -> None:
    """xattr(7): a name is bytes; case and encoding are kept."""
    _file()
    names = {b"user.Case", b"user.case", b"user.\xff\xfe", "user.ä".encode(), b"user.with blank", b"user.a.b.c"}
    for name in names:
        os.setxattr("a", name, name)
    same({os.fsencode(name) for name in os.listxattr("a")}, names)
    for name in names:
        same(os.getxattr("a", name), name)


@check
def many() -> None:
    """listxattr(2): all of a hundred attributes are listed."""
    _file()
    wanted = []
    for number in range(100):
        try:
            os.setxattr("a", f"user.{number:03}", b"%d" % number)
        except OSError as error:
            if error.errno != errno.ENOSPC:
                raise
            break
        wanted.append(f"user.{number:03}")
    same(sorted(os.listxattr("a")), wanted)
    for name in wanted:
        os.removexattr("a", name)
    same(os.listxattr("a"), [])


@check
def belongs_to_the_inode() -> None:
    """xattr(7): attributes are the inode's: seen by every link and descriptor, kept by rename and chmod."""
    _file()
    file = opened("a")
    os.setxattr(file, "user.x", b"1")
    os.link("a", "b")
    os.rename("a", "c")
    os.chmod("c", 0o600)
    for path in ("b", "c", file):
        same(os.getxattr(path, "user.x"), b"1")
    os.setxattr("b", "user.x", b"2")
    same(os.getxattr(file, "user.x"), b"2")


@check
def by_descriptor() -> None:
    """fsetxattr(2): works on an open file that has no name any more."""
    _file()
    file = opened("a")
    os.unlink("a")
    os.setxattr(file, "user.x", b"1")
    same((os.listxattr(file), os.getxattr(file, "user.x")), (["user.x"], b"1"))
    os.removexattr(file, "user.x")
    same(os.listxattr(file), [])


@check
def of_a_directory() -> None:
    """xattr(7): directories have user attributes."""
    _file()
    os.mkdir("d")
    os.setxattr("d", "user.x", b"1")
    same((os.listxattr("d"), os.getxattr("d", "user.x")), (["user.x"], b"1"))


@check
def links_are_followed() -> None:
    """setxattr(2): follows symbolic links, lsetxattr does not."""
    _file()
    os.symlink("a", "l")
    os.setxattr("l", "user.x", b"1")
    same(os.getxattr("a", "user.x"), b"1")
    same(os.listxattr("l", follow_symlinks=False), [])


@each(
    {
        "symlink": (lambda: os.symlink("none", "s"),),
        "fifo": (lambda: os.mkfifo("s"),),
        "socket_node": (lambda: os.mknod("s", stat.S_IFSOCK | 0o600),),
    }
)
def user_of_special_files(make: Callable[[], object]) -> None:
    """xattr(7): user attributes are for files and directories: EPERM to set, ENODATA to get, for a {case}."""
    _file()
    make()
    fails(errno.EPERM, os.setxattr, "s", "user.x", b"1", follow_symlinks=False)
    fails((errno.ENODATA, errno.EPERM), os.getxattr, "s", "user.x", follow_symlinks=False)
    same(os.listxattr("s", follow_symlinks=False), [])


@each(
    {
        "file": (write,),
        "directory": (os.mkdir,),
        "symlink": (lambda name: os.symlink("none", name),),
        "fifo": (os.mkfifo,),
    }
)
def trusted(make: Callable[[str], object]) -> None:
    """xattr(7): CAP_SYS_ADMIN sets trusted attributes of any kind of file, here a {case}."""
    need_root()
    make("a")
    try:
        os.setxattr("a", "trusted.x", b"1", follow_symlinks=False)
    except OSError as error:
        if error.errno != errno.EOPNOTSUPP:
            raise
        not_run("no trusted attributes here")
    same(os.getxattr("a", "trusted.x", follow_symlinks=False), b"1")
    same(os.listxattr("a", follow_symlinks=False), ["trusted.x"])
    os.removexattr("a", "trusted.x", follow_symlinks=False)


@check
def trusted_by_a_user() -> None:
    """xattr(7): trusted attributes are neither set nor seen without CAP_SYS_ADMIN."""
    need_root()
    folder("d", 0o777)
    with acting_as(ALICE):
        write("d/a")
        fails(errno.EPERM, os.setxattr, "d/a", "trusted.x", b"1")
        fails((errno.ENODATA, errno.EPERM), os.getxattr, "d/a", "trusted.x")


@check
def permissions() -> None:
    """xattr(7): user attributes are read and written by who may read and write the file."""
    _file()
    os.setxattr("a", "user.x", b"1")
    os.chmod("a", 0o644)
    with acting_as(ALICE):
        same(os.getxattr("a", "user.x"), b"1")
        fails(errno.EACCES, os.setxattr, "a", "user.x", b"2")
        fails(errno.EACCES, os.removexattr, "a", "user.x")
    os.chmod("a", 0o602)
    with acting_as(ALICE):
        fails(errno.EACCES, os.getxattr, "a", "user.x")
        os.setxattr("a", "user.x", b"3")
    same(os.getxattr("a", "user.x"), b"3")


@check
def in_a_sticky_directory() -> None:
    """xattr(7): user attributes of a sticky directory are its owner's to set."""
    _file()
    folder("d", 0o1777)
    with acting_as(ALICE):
        fails(errno.EPERM, os.setxattr, "d", "user.x", b"1")


@check
def through_a_read_only_descriptor() -> None:
    """fsetxattr(2): the descriptor's access mode does not matter, the user's permission does."""
    _file()
    os.setxattr(os.open("a", os.O_RDONLY), "user.x", b"1")
    same(os.getxattr("a", "user.x"), b"1")


@check
def marks_ctime() -> None:
    """xattr(7), inode(7): setting and removing an attribute marks ctime for update, not mtime."""
    _file()
    before = os.stat("a")
    later()
    os.setxattr("a", "user.x", b"1")
    between = os.stat("a")
    later()
    os.removexattr("a", "user.x")
    after = os.stat("a")
    assert before.st_ctime_ns < between.st_ctime_ns < after.st_ctime_ns
    same((between.st_mtime_ns, after.st_mtime_ns), (before.st_mtime_ns,) * 2)


@check
def a_new_file_has_none() -> None:
    """xattr(7): a file that takes the name of a removed one has none of its attributes."""
    _file()
    os.setxattr("a", "user.x", b"1")
    os.unlink("a")
    write("a")
    same(os.listxattr("a"), [])
    fails(errno.ENODATA, os.getxattr, "a", "user.x")


@check
def truncation_keeps_them() -> None:
    """xattr(7): content and attributes are apart: O_TRUNC and writes keep user attributes."""
    _file()
    os.setxattr("a", "user.x", b"1")
    write("a", b"new content")
    os.truncate("a", 0)
    same(os.getxattr("a", "user.x"), b"1")


@check
def security() -> None:
    """xattr(7): CAP_SYS_ADMIN sets security attributes where no module claims the name."""
    need_root()
    touch("a")
    try:
        os.setxattr("a", "security.posix-check", b"label")
    except OSError as error:
        if error.errno not in (errno.EOPNOTSUPP, errno.EPERM):
            raise
        not_run("no security attributes here")
    same(os.getxattr("a", "security.posix-check"), b"label")
    os.removexattr("a", "security.posix-check")
