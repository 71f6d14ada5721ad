"""open(2): which opens succeed, what they make, and what their descriptors may do."""

import errno
import fcntl
import os
from collections.abc import Callable

from tests.posix.check import check, each, fails, mode, same
from tests.posix.file import folder, opened, read, touch, write
from tests.posix.peer import Line, Peer
from tests.posix.user import ALICE, acting_as

EXCLUSIVE = os.O_WRONLY | os.O_CREAT | os.O_EXCL


@each(
    {
        "read_only": (os.O_RDONLY, True, False),
        "write_only": (os.O_WRONLY, False, True),
        "read_write": (os.O_RDWR, True, True),
        "path": (os.O_PATH, False, False),
    }
)
def access_mode(flags: int, reads: bool, writes: bool) -> None:
    """open(2), read(2), write(2): a descriptor opened {case} transfers only in its directions, EBADF otherwise."""
    write("a", b"old")
    file = os.open("a", flags)
    if reads:
        same(os.read(file, 10), b"old")
    else:
        fails(errno.EBADF, os.read, file, 10)
    if writes:
        same(os.pwrite(file, b"new", 0), 3)
    else:
        fails(errno.EBADF, os.write, file, b"new")
    same(read("a"), b"new" if writes else b"old")


@each({"read_only": (os.O_RDONLY,), "write_only": (os.O_WRONLY,), "read_write": (os.O_RDWR,)})
def access_mode_is_told(flags: int) -> None:
    """fcntl(2): F_GETFL tells that the file was opened {case}."""
    write("a")
    same(fcntl.fcntl(os.open("a", flags), fcntl.F_GETFL) & os.O_ACCMODE, flags)


@each({"append": (os.O_APPEND,), "sync": (os.O_SYNC,), "dsync": (os.O_DSYNC,), "nonblock": (os.O_NONBLOCK,)})
def status_flag_is_told(flag: int) -> None:
    """fcntl(2): F_GETFL tells O_{case} of the open, and the file can be written."""
    file = opened("a", os.O_RDWR | os.O_CREAT | flag)
    same(fcntl.fcntl(file, fcntl.F_GETFL) & flag, flag)
    os.write(file, b"data")
    same(os.pread(file, 10, 0), b"data")


@check
def without_creat_a_name_must_exist() -> None:
    """open(2): ENOENT when O_CREAT is not set and the file does not exist."""
    for flags in (os.O_RDONLY, os.O_WRONLY, os.O_RDWR | os.O_TRUNC):
        fails(errno.ENOENT, os.open, "none", flags)
    same(os.listdir(), [])


@check
def creat_makes_an_empty_file() -> None:
    """open(2): O_CREAT makes a regular file of length 0 where there is none."""
    found = os.fstat(opened("a"))
    same((found.st_size, found.st_nlink, os.listdir()), (0, 1, ["a"]))


@check
def creat_leaves_an_existing_file() -> None:
    """open(2): O_CREAT has no effect on a file that exists, neither on content nor on mode."""
    write("a", b"content")
    os.chmod("a", 0o640)
    opened("a", os.O_RDWR | os.O_CREAT, 0o777)
    same((read("a"), mode("a")), (b"content", 0o640))


def _link_to_a_file() -> None:
    write("b")
    os.symlink("b", "a")


@each(
    {
        "a_file": (lambda: write("a"),),
        "a_directory": (lambda: os.mkdir("a"),),
        "a_fifo": (lambda: os.mkfifo("a"),),
        "a_link_to_a_file": (_link_to_a_file,),
        "a_dangling_link": (lambda: os.symlink("none", "a"),),
        "a_link_to_itself": (lambda: os.symlink("a", "a"),),
    }
)
def excl_refuses(make: Callable[[], object]) -> None:
    """open(2): O_CREAT with O_EXCL fails with EEXIST where the name is {case}, and follows no link."""
    make()
    before = sorted(os.listdir())
    fails(errno.EEXIST, os.open, "a", EXCLUSIVE)
    same(sorted(os.listdir()), before)


@check
def excl_is_won_once() -> None:
    """open(2): O_EXCL checks and creates atomically: of several processes one makes the file."""

    def contender(line: Line) -> list[int]:
        line.hear()
        won = []
        for turn in range(50):
            try:
                os.close(os.open(f"f{turn}", EXCLUSIVE))
            except FileExistsError:
                continue
            won.append(turn)
        return won

    peers = [Peer(contender) for _ in range(4)]
    for peer in peers:
        peer.line.say()
    same(sorted(turn for peer in peers for turn in peer.result()), list(range(50)))


@check
def creat_follows_a_dangling_link() -> None:
    """open(2): O_CREAT without O_EXCL on a dangling link makes the file that it names."""
    os.mkdir("d")
    os.symlink("d/target", "link")
    write("link", b"through")
    same(read("d/target"), b"through")
    assert os.path.islink("link")


@each({"write_only": (os.O_WRONLY,), "read_write": (os.O_RDWR,), "creat": (os.O_RDONLY | os.O_CREAT,)})
def a_directory_is_not_written(flags: int) -> None:
    """open(2): EISDIR for a directory opened {case}."""
    os.mkdir("d")
    fails(errno.EISDIR, os.open, "d", flags)


@check
def a_directory_is_not_read() -> None:
    """read(2): EISDIR for the descriptor of a directory."""
    os.mkdir("d")
    fails(errno.EISDIR, os.read, os.open("d", os.O_RDONLY), 100)


@each({"a_file": ("a", errno.ENOTDIR), "a_link_to_a_file": ("l", errno.ENOTDIR), "nothing": ("none", errno.ENOENT)})
def directory_flag_refuses(name: str, expected: int) -> None:
    """open(2): O_DIRECTORY fails with ENOTDIR unless the name is a directory, here {case}."""
    write("a")
    os.symlink("a", "l")
    fails(expected, os.open, name, os.O_RDONLY | os.O_DIRECTORY)


@check
def directory_flag_follows_a_link() -> None:
    """open(2): O_DIRECTORY takes a link to a directory."""
    os.mkdir("d")
    os.symlink("d", "l")
    same(os.fstat(os.open("l", os.O_RDONLY | os.O_DIRECTORY)).st_ino, os.stat("d").st_ino)


@each({"to_a_file": ("a",), "to_a_directory": ("d",), "dangling": ("none",)})
def nofollow_refuses_a_link(target: str) -> None:
    """open(2): ELOOP with O_NOFOLLOW where the last component is a link {case}."""
    write("a")
    os.mkdir("d")
    os.symlink(target, "l")
    fails(errno.ELOOP, os.open, "l", os.O_RDONLY | os.O_NOFOLLOW)


@check
def nofollow_follows_in_the_middle() -> None:
    """open(2): O_NOFOLLOW follows links in the components before the last."""
    os.mkdir("d")
    write("d/a", b"x")
    os.symlink("d", "l")
    same(os.read(os.open("l/a", os.O_RDONLY | os.O_NOFOLLOW), 10), b"x")


@each({"write_only": (os.O_WRONLY,), "read_write": (os.O_RDWR,), "with_creat": (os.O_WRONLY | os.O_CREAT,)})
def trunc_empties(flags: int) -> None:
    """open(2): O_TRUNC, {case}, truncates a regular file to length 0 and keeps inode, mode and owner."""
    write("a", b"content" * 1000)
    os.chmod("a", 0o640)
    before = os.stat("a")
    file = os.open("a", flags | os.O_TRUNC, 0o777)
    after = os.stat("a")
    same((after.st_size, os.fstat(file).st_size), (0, 0))
    same((after.st_ino, after.st_mode, after.st_uid), (before.st_ino, before.st_mode, before.st_uid))


@check
def trunc_is_seen_by_other_descriptors() -> None:
    """open(2): after O_TRUNC other descriptors of the file find it empty."""
    write("a", b"content")
    other = os.open("a", os.O_RDWR)
    same(os.read(other, 3), b"con")
    os.close(os.open("a", os.O_WRONLY | os.O_TRUNC))
    same(os.read(other, 10), b"")
    same(os.fstat(other).st_size, 0)


@each(
    {
        "of_a_file": ("a/", os.O_RDONLY, errno.ENOTDIR),
        "of_a_new_file": ("new/", os.O_RDWR | os.O_CREAT, errno.EISDIR),
        "below_a_file": ("a/b", os.O_RDONLY, errno.ENOTDIR),
        "new_below_a_file": ("a/b", os.O_RDWR | os.O_CREAT, errno.ENOTDIR),
        "below_nothing": ("none/b", os.O_RDWR | os.O_CREAT, errno.ENOENT),
        "empty": ("", os.O_RDONLY, errno.ENOENT),
    }
)
def a_wrong_path_fails(path: str, flags: int, expected: int) -> None:
    """path_resolution(7), open(2): the error of a path that cannot be: {case}."""
    write("a")
    fails(expected, os.open, path, flags)


@check
def creat_mode_binds_later_opens_only() -> None:
    """open(2): the mode applies to future accesses; the open that makes a file of mode 0 may write and read it."""
    folder("d", 0o777)
    with acting_as(ALICE):
        file = os.open("d/a", os.O_RDWR | os.O_CREAT, 0)
        os.write(file, b"mine")
        same(os.pread(file, 10, 0), b"mine")
        fails(errno.EACCES, os.open, "d/a", os.O_RDONLY)
        fails(errno.EACCES, os.open, "d/a", os.O_WRONLY)


@check
def descriptors_of_one_file_have_their_own_offsets() -> None:
    """open(2): each open makes an open file description with an offset of its own."""
    write("a", b"0123456789")
    one, two = os.open("a", os.O_RDONLY), os.open("a", os.O_RDONLY)
    same((os.read(one, 4), os.read(two, 2), os.read(one, 4)), (b"0123", b"01", b"4567"))


@check
def a_duplicate_shares_the_offset() -> None:
    """dup(2): the new descriptor shares offset and status flags."""
    write("a", b"0123456789")
    one = os.open("a", os.O_RDWR)
    two = os.dup(one)
    same((os.read(one, 4), os.read(two, 4)), (b"0123", b"4567"))
    fcntl.fcntl(one, fcntl.F_SETFL, os.O_APPEND)
    assert fcntl.fcntl(two, fcntl.F_GETFL) & os.O_APPEND


@check
def a_fork_shares_the_offset() -> None:
    """fork(2): a child's descriptors refer to the same open file descriptions."""
    write("a", b"0123456789")
    file = os.open("a", os.O_RDONLY)
    same(Peer(lambda line: os.read(file, 4)).result(), b"0123")
    same(os.read(file, 4), b"4567")


@check
def relative_to_a_descriptor() -> None:
    """openat(2): a relative path starts at the directory of the descriptor, an absolute one ignores it."""
    os.makedirs("d/e")
    at = os.open("d", os.O_RDONLY | os.O_DIRECTORY)
    os.close(os.open("e/a", os.O_WRONLY | os.O_CREAT, 0o644, dir_fd=at))
    assert os.path.exists("d/e/a")
    same(os.fstat(os.open("/", os.O_RDONLY, dir_fd=at)).st_ino, os.stat("/").st_ino)


@check
def relative_to_a_file() -> None:
    """openat(2): ENOTDIR when the path is relative and the descriptor is a file's."""
    write("a")
    fails(errno.ENOTDIR, os.open, "b", os.O_RDONLY, dir_fd=os.open("a", os.O_RDONLY))


@check
def dot_and_dot_dot() -> None:
    """path_resolution(7): every directory has the entries . and .. in the conventional meaning."""
    os.mkdir("d")
    same(os.stat("d/.").st_ino, os.stat("d").st_ino)
    same(os.stat("d/..").st_ino, os.stat(".").st_ino)
    same(os.stat("d/../d/./../d").st_ino, os.stat("d").st_ino)


@check
def read_only_open_of_a_write_protected_file() -> None:
    """open(2): EACCES when the mode does not grant what is asked to a user without privileges."""
    touch("a", 0o444)
    with acting_as(ALICE):
        os.close(os.open("a", os.O_RDONLY))
        for flags in (os.O_WRONLY, os.O_RDWR, os.O_RDONLY | os.O_TRUNC):
            fails(errno.EACCES, os.open, "a", flags)


@check
def creat_needs_a_writable_directory() -> None:
    """open(2): EACCES for a new file in a directory that the user may not write; an existing one can be opened."""
    folder("d", 0o755)
    touch("d/a", 0o666)
    with acting_as(ALICE):
        fails(errno.EACCES, os.open, "d/new", os.O_RDWR | os.O_CREAT)
        os.close(os.open("d/a", os.O_RDWR | os.O_CREAT))


@check
def noatime_is_the_owners() -> None:
    """open(2): EPERM for O_NOATIME when the user neither owns the file nor has CAP_FOWNER."""
    folder("d", 0o777)
    touch("d/a", 0o666)
    os.close(os.open("d/a", os.O_RDONLY | os.O_NOATIME))
    with acting_as(ALICE):
        fails(errno.EPERM, os.open, "d/a", os.O_RDONLY | os.O_NOATIME)
        write("d/mine", b"x")
        same(os.read(os.open("d/mine", os.O_RDONLY | os.O_NOATIME), 10), b"x")


@check
def many_at_once() -> None:
    """open(2): one file can be open many times, each with a position of its own, and closes leave the rest alone."""
    write("a", bytes(range(200)))
    files = [os.open("a", os.O_RDONLY) for _ in range(200)]
    for number, file in enumerate(files):
        os.lseek(file, number, os.SEEK_SET)
    for file in files[::2]:
        os.close(file)
    same([os.read(file, 1)[0] for file in files[1::2]], list(range(1, 200, 2)))
