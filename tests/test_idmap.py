"""Idmapped mounts of a share: other numbers for its users, as containers with user namespaces have."""

import ctypes
import errno
import os
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from tests import takes
from tests.errnos import fails
from virtiofs import Passthrough, mount

LINUX = tuple(int(number) for number in os.uname().release.split("-")[0].split(".")[:2])
FIRST = 100_000
"""The user of an idmapped mount that is user 0 of the file system."""

pytestmark = [
    pytest.mark.root,
    takes.mounts,
    pytest.mark.skipif(LINUX < (6, 12), reason="takes Linux 6.12, whose FUSE has idmapped mounts"),
]

# Waits in a user namespace of its own.
NAMESPACE = """
    import ctypes, sys
    CLONE_NEWUSER = 0x10000000
    print(ctypes.CDLL(None, use_errno=True).unshare(CLONE_NEWUSER), flush=True)
    sys.stdin.read()
"""
AT_FDCWD = -100
OPEN_TREE, MOVE_MOUNT, MOUNT_SETATTR = 428, 429, 442
OPEN_TREE_CLONE, MOVE_MOUNT_F_EMPTY_PATH, AT_EMPTY_PATH = 1, 4, 0x1000
MOUNT_ATTR_IDMAP = 1 << 20


def call(number: int, *arguments: object) -> int:
    """A system call that the C library has no name for (one number on all architectures)."""
    result = int(ctypes.CDLL(None, use_errno=True).syscall(number, *arguments))
    if result < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return result


@contextmanager
def namespace() -> Iterator[int]:
    """A user namespace in which user and group n are what FIRST + n is outside, as a descriptor."""
    command = [sys.executable, "-c", textwrap.dedent(NAMESPACE)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as program:
        assert program.stdin is not None
        assert program.stdout is not None
        if program.stdout.readline().strip() != "0":
            pytest.skip("no user namespaces here")
        for kind in ("uid", "gid"):
            Path(f"/proc/{program.pid}/{kind}_map").write_text(f"0 {FIRST} 65536")
        fd = os.open(f"/proc/{program.pid}/ns/user", os.O_RDONLY | os.O_CLOEXEC)
        program.stdin.close()
        try:
            yield fd
        finally:
            os.close(fd)


@contextmanager
def idmapped(mounted: Path, target: Path) -> Iterator[None]:
    """The same mount once more at `target`, where user n of the file system is FIRST + n."""
    with ExitStack() as stack:
        users = stack.enter_context(namespace())
        tree = call(OPEN_TREE, AT_FDCWD, bytes(mounted), OPEN_TREE_CLONE)
        stack.callback(os.close, tree)
        attributes = (ctypes.c_uint64 * 4)(MOUNT_ATTR_IDMAP, 0, 0, users)
        call(MOUNT_SETATTR, tree, b"", AT_EMPTY_PATH, attributes, ctypes.sizeof(attributes))
        call(MOVE_MOUNT, tree, b"", AT_FDCWD, bytes(target), MOVE_MOUNT_F_EMPTY_PATH)
        stack.callback(subprocess.run, ["umount", "--lazy", str(target)], check=True)
        yield


def acting(user: int, folder: Path, program: str) -> str:
    """Runs a program in `folder` as user `FIRST + user` and the group after that; returns what it printed.

    In a process of its own: ids are those of all threads, the server's too.
    """
    begin = f"""
        import os
        from pathlib import Path
        os.chdir({str(folder)!r})  # by a path that others may not walk
        os.setgroups([])
        os.setgid({FIRST + user + 1})
        os.setuid({FIRST + user})
    """
    command = [sys.executable, "-c", textwrap.dedent(begin) + textwrap.dedent(program)]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path, Path]:
    """A directory to share, and two to mount at."""
    source, there, other = (tmp_path / name for name in ("source", "there", "other"))
    for folder in (source, there, other):
        folder.mkdir()
    source.chmod(0o777)
    return source, there, other


def owner(path: Path) -> tuple[int, int]:
    found = os.lstat(path)
    return found.st_uid, found.st_gid


def test_users_are_others(folders: tuple[Path, Path, Path]) -> None:
    source, there, other = folders
    (source / "theirs").write_text("x")
    os.chown(source / "theirs", 7, 8)
    (source / "theirs").chmod(0o600)
    with mount(Passthrough(source, idmap=True), there), idmapped(there, other):
        assert owner(other / "theirs") == (FIRST + 7, FIRST + 8)
        done = acting(
            5,
            other,
            """
            Path("file").write_text("content")
            os.mkdir("directory")
            os.symlink("file", "symlink")
            os.mkfifo("fifo")
            os.close(os.open(".", os.O_TMPFILE | os.O_RDWR))
            os.rename("file", "renamed")
            print(Path("renamed").read_text())
            try:
                Path("theirs").read_text()
            except PermissionError:
                print("refused")
            """,
        )
        assert done.split() == ["content", "refused"]
        theirs = """
            print(Path("theirs").read_text())
            Path("theirs").write_text("y")
        """
        assert acting(7, other, theirs).strip() == "x"
        nobody = """
            try:
                Path("nobody").write_text("")
            except OSError as error:
                print(error.errno)
        """
        assert acting(5 - FIRST, other, nobody).strip() == str(errno.EOVERFLOW)
        os.chown(other / "renamed", FIRST + 9, FIRST + 10)
        for name in ("directory", "symlink", "fifo"):
            assert owner(source / name) == (5, 6)
            assert owner(there / name) == (5, 6)
            assert owner(other / name) == (FIRST + 5, FIRST + 6)
        assert owner(source / "renamed") == (9, 10)
        assert (source / "theirs").read_text() == "y"
        assert sorted(os.listdir(source)) == ["directory", "fifo", "renamed", "symlink", "theirs"]


def test_it_takes_the_option(folders: tuple[Path, Path, Path]) -> None:
    source, there, other = folders
    with mount(Passthrough(source), there), fails(errno.EINVAL), idmapped(there, other):
        pass


def test_bits_are_cleared_whoever_may_have_asked(folders: tuple[Path, Path, Path]) -> None:
    """FALLOCATE does not say who asks: it could be anybody who may write. WRITE says what to do."""
    source, there, _ = folders
    for name in ("written", "allocated"):
        (source / name).write_bytes(bytes(100))
        (source / name).chmod(0o4777)
    with mount(Passthrough(source, idmap=True), there):
        with (there / "written").open("r+b") as file:
            file.write(b"by root")
        with (there / "allocated").open("r+b") as file:
            os.posix_fallocate(file.fileno(), 0, 200)
    assert (source / "written").stat().st_mode & 0o7777 == 0o4777
    assert (source / "allocated").stat().st_mode & 0o7777 == 0o777
