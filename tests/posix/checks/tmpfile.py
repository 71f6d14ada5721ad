"""O_TMPFILE and linkat(2): files without a name, and how they get one."""

import errno
import os

from tests.posix.check import check, each, fails, mode, not_run, same
from tests.posix.file import folder, read, write
from tests.posix.system import AT_EMPTY_PATH, AT_FDCWD, AT_SYMLINK_FOLLOW, linkat
from tests.posix.user import ALICE, TEAM, acting_as, need_root


def _made(flags: int = os.O_RDWR, permissions: int = 0o644, directory: str = ".") -> int:
    try:
        return os.open(directory, flags | os.O_TMPFILE, permissions)
    except OSError as error:
        if error.errno not in (errno.EOPNOTSUPP, errno.EISDIR):
            raise
        not_run("no O_TMPFILE here")


def _named(file: int, name: str) -> None:
    linkat(AT_FDCWD, f"/proc/self/fd/{file}", name, AT_SYMLINK_FOLLOW)


@check
def has_no_name() -> None:
    """open(2): O_TMPFILE makes a file in no directory, which goes with its last descriptor."""
    file = _made()
    os.write(file, b"content")
    same((os.listdir(), os.pread(file, 10, 0)), ([], b"content"))
    same(os.fstat(file).st_nlink, 0)


@check
def gets_a_name() -> None:
    """open(2), linkat(2): /proc/self/fd/N with AT_SYMLINK_FOLLOW gives it a name, whole."""
    file = _made()
    os.write(file, b"content")
    _named(file, "a")
    same((os.listdir(), read("a"), os.stat("a").st_nlink), (["a"], b"content", 1))
    same(os.stat("a").st_ino, os.fstat(file).st_ino)


@check
def gets_a_name_by_descriptor() -> None:
    """linkat(2): AT_EMPTY_PATH gives it a name too, with CAP_DAC_READ_SEARCH."""
    need_root()
    file = _made()
    linkat(file, "", "a", AT_EMPTY_PATH)
    same(os.fstat(file).st_nlink, 1)


@check
def gets_several_names() -> None:
    """linkat(2): with one name it takes others, and lives by them."""
    os.mkdir("d")
    file = _made()
    _named(file, "a")
    _named(file, "d/b")
    same(os.fstat(file).st_nlink, 2)
    os.unlink("a")
    os.close(file)
    same(os.stat("d/b").st_nlink, 1)


@check
def a_taken_name() -> None:
    """linkat(2): EEXIST where the name exists, which stays."""
    write("a", b"old")
    fails(errno.EEXIST, _named, _made(), "a")
    same(read("a"), b"old")


@check
def excl_forbids_names() -> None:
    """open(2): O_EXCL with O_TMPFILE: the file can get no name, ENOENT."""
    file = _made(os.O_RDWR | os.O_EXCL)
    fails(errno.ENOENT, _named, file, "a")


@check
def read_only_makes_no_sense() -> None:
    """open(2): EINVAL for O_TMPFILE without write access."""
    _made()
    fails(errno.EINVAL, os.open, ".", os.O_RDONLY | os.O_TMPFILE)


@check
def needs_a_directory() -> None:
    """open(2): ENOTDIR for O_TMPFILE with a file, ENOENT for nothing."""
    _made()
    write("a")
    fails(errno.ENOTDIR, os.open, "a", os.O_RDWR | os.O_TMPFILE)
    fails(errno.ENOENT, os.open, "none", os.O_RDWR | os.O_TMPFILE)


@each({"nothing": (0, 0o666), "022": (0o022, 0o644), "077": (0o077, 0o600)})
def umask(mask: int, wanted: int) -> None:
    """umask(2): applies to a file made by O_TMPFILE: {case}."""
    os.umask(mask)
    same(mode(_made(permissions=0o666)), wanted)


@check
def belongs_to_its_maker() -> None:
    """open(2): owner and group are those of the caller, the group a set-group-ID directory's."""
    need_root()
    folder("d", 0o777)
    folder("s")
    os.chown("s", -1, TEAM)
    os.chmod("s", 0o2777)
    with acting_as(ALICE):
        plain, grouped = os.fstat(_made(directory="d")), os.fstat(_made(directory="s"))
    same((plain.st_uid, plain.st_gid), (ALICE, ALICE))
    same((grouped.st_uid, grouped.st_gid), (ALICE, TEAM))


@check
def needs_a_writable_directory() -> None:
    """open(2): EACCES where the user may not write the directory."""
    _made()
    folder("d", 0o755)
    with acting_as(ALICE):
        fails(errno.EACCES, os.open, "d", os.O_RDWR | os.O_TMPFILE, 0o600)


@check
def is_a_file_like_any() -> None:
    """open(2): it can be cut, read, given attributes, and reopened by /proc/self/fd."""
    file = _made()
    os.write(file, b"0123456789")
    os.ftruncate(file, 5)
    os.fchmod(file, 0o604)
    os.utime(file, ns=(5, 6))
    again = os.open(f"/proc/self/fd/{file}", os.O_RDONLY)
    found = os.fstat(again)
    same((os.read(again, 20), found.st_mtime_ns, mode(again)), (b"01234", 6, 0o604))


@check
def many() -> None:
    """open(2): any number may be open at once, all of them different files."""
    files = [_made() for _ in range(50)]
    for number, file in enumerate(files):
        os.write(file, b"%d" % number)
    same(len({os.fstat(file).st_ino for file in files}), 50)
    same([os.pread(file, 10, 0) for file in files], [b"%d" % number for number in range(50)])
