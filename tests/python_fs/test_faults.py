"""What goes wrong in a method: the guest gets an errno, the log says what it was, and the server goes on."""

import errno
import os
import signal
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from tests.errnos import fails
from tests.python_fs.conftest import eventually
from tests.python_fs.tree import Inode, Tree
from virtiofs import Attr, DirEntry, Entry, Request
from virtiofs.testing import Guest

ROOT = 1


def raising(error: BaseException) -> Callable[..., Any]:
    def method(*_: object) -> Any:
        raise error

    return method


@pytest.mark.parametrize(
    ("error", "number"),
    [
        (OSError(errno.EUCLEAN, "unclean"), errno.EUCLEAN),
        (FileNotFoundError("a name alone"), errno.ENOENT),
        (PermissionError(), errno.EACCES),
        (FileExistsError(), errno.EEXIST),
        (NotADirectoryError(), errno.ENOTDIR),
        (IsADirectoryError(), errno.EISDIR),
        (BlockingIOError(), errno.EAGAIN),
        (TimeoutError(), errno.ETIMEDOUT),
        (NotImplementedError("not for this one"), errno.EOPNOTSUPP),
        (OSError(errno.ENOSYS, "would switch it off"), errno.EOPNOTSUPP),
        (OSError(524, "ENOTSUPP of NFS"), errno.EOPNOTSUPP),
        (OSError(521, "EBADHANDLE of NFS"), errno.ESTALE),
        (OSError(100_000, "none"), errno.EIO),
        (OSError("no errno"), errno.EIO),
        (ValueError("a bug"), errno.EIO),
        (KeyError("a bug"), errno.EIO),
        (SystemExit(3), errno.EIO),
        (KeyboardInterrupt(), errno.EIO),
    ],
    ids=lambda value: (
        type(value).__name__ + str(getattr(value, "errno", "")) if isinstance(value, BaseException) else ""
    ),
)
def test_exceptions(error: BaseException, number: int, tree: Tree, caplog: pytest.LogCaptureFixture) -> None:
    tree.statfs = raising(error)  # type: ignore[method-assign]
    with Guest(tree) as guest:
        for _ in range(3):
            with fails(number):
                guest.statfs()
        assert guest.stat().is_dir, "the server goes on"
    told = [record for record in caplog.records if record.name == "virtiofs.python"]
    answer = isinstance(error, NotImplementedError) or (isinstance(error, OSError) and error.args != ("no errno",))
    assert len(told) == (0 if answer else 1), "once for each kind"
    if told:
        assert "Tree.statfs raised" in told[0].getMessage()
        assert told[0].exc_info


WRONG = [
    ("lookup", "text", "Tree.lookup must return an Entry, not str"),
    ("lookup", Entry(Inode(Attr(0o644)), Attr(0o644)), "mode with its type"),
    ("getattr", None, "Tree.getattr must return an Attr, not NoneType"),
    ("statfs", (1, 2), "Tree.statfs must return a Statfs, not tuple"),
    ("listxattr", [1], "Tree.listxattr must return an iterable of str, with no int in it"),
    ("listxattr", 1, "Tree.listxattr must return an iterable of str, not int"),
    ("getxattr", "text", "Tree.getxattr must return bytes or another buffer, not str"),
    ("readdir", 7, "Tree.readdir must return an iterable of DirEntry or str, not int"),
    ("readdir", ["a/b"], "without / and NUL"),
    ("readdir", [DirEntry("")], "empty name"),
    ("readdir", [3.5], "DirEntry or str, with no float in it"),
    ("opendir", "text", "Tree.opendir must return an Open or None, not str"),
    ("mkdir", None, "Tree.mkdir must return an Entry, not NoneType"),
    ("unlink", True, "Tree.unlink must return None, not bool"),
    ("create", None, "Tree.create must return a pair of an Entry and an Open, not NoneType"),
]


@pytest.mark.parametrize(("operation", "answer", "message"), WRONG, ids=[f"{w[0]}-{i}" for i, w in enumerate(WRONG)])
def test_wrong_answers_are_named(
    operation: str, answer: object, message: str, tree: Tree, caplog: pytest.LogCaptureFixture
) -> None:
    setattr(tree, operation, lambda *_: answer)
    ask: dict[str, Callable[[Guest], object]] = {
        "lookup": lambda guest: guest.client.lookup(ROOT, "name"),
        "getattr": lambda guest: guest.client.getattr(ROOT),
        "statfs": lambda guest: guest.statfs(),
        "listxattr": lambda guest: guest.listxattr("/"),
        "getxattr": lambda guest: guest.getxattr("/", "user.x"),
        "readdir": lambda guest: guest.client.readdir(ROOT, guest.client.opendir(ROOT).handle),
        "opendir": lambda guest: guest.client.opendir(ROOT),
        "mkdir": lambda guest: guest.client.mkdir(ROOT, "name"),
        "unlink": lambda guest: guest.client.unlink(ROOT, "name"),
        "create": lambda guest: guest.client.create(ROOT, "name", os.O_RDWR),
    }
    with Guest(tree) as guest:
        with fails(errno.EIO):
            ask[operation](guest)
        assert guest.server is not None
        assert guest.server.stats().panics == 0
    assert message in caplog.text


@pytest.mark.parametrize(
    ("operation", "answer", "message"),
    [
        ("read", b"x" * 11, "at most 10 bytes, not 11"),
        ("read", "text", "Tree.read must return bytes or another buffer, not str"),
        ("read", None, "not NoneType"),
        ("write", 11, "must return 0 to 10, not 11"),
        ("write", -1, "must return 0 to 10, not -1"),
        ("write", "all", "Tree.write must return an int, not str"),
    ],
)
def test_wrong_data(operation: str, answer: object, message: str, tree: Tree, caplog: pytest.LogCaptureFixture) -> None:
    setattr(tree, operation, lambda *_: answer)
    tree.root.names["file"] = Inode(Attr(stat.S_IFREG | 0o600))
    with Guest(tree) as guest:
        node = guest.node("file")
        opened = guest.client.open(node, os.O_RDWR)
        with fails(errno.EIO):
            if operation == "read":
                guest.client.read(node, opened.handle, 0, 10)
            else:
                guest.client.write(node, opened.handle, 0, b"0123456789")
    assert message in caplog.text


@pytest.mark.parametrize("data", [b"0123456789", bytearray(b"0123456789"), memoryview(b"0123456789")])
def test_buffers(data: Any, tree: Tree) -> None:
    tree.root.names["file"] = Inode(Attr(stat.S_IFREG | 0o600))
    tree.read = lambda request, node, handle, offset, size: data[offset : offset + size]  # type: ignore[method-assign]
    tree.write = lambda *_: None  # type: ignore[method-assign,assignment]
    with Guest(tree) as guest, guest.open("file", os.O_RDWR) as file:
        assert file.read_at(3, 4) == b"3456"
        file.write_at(0, b"all of it")


def test_the_root_is_no_entry(tree: Tree, caplog: pytest.LogCaptureFixture) -> None:
    tree.lookup = lambda request, parent, name: Entry(tree.root, tree.root.attr)  # type: ignore[method-assign]
    with Guest(tree) as guest, fails(errno.EIO):
        guest.client.lookup(ROOT, "loop")
    assert "must not return the root" in caplog.text


class Stuck(Tree):
    """A method that does not return until it is told to."""

    def __init__(self) -> None:
        super().__init__()
        self.inside, self.go = threading.Event(), threading.Event()

    def statfs(self, request: Request, node: Inode) -> Any:
        self.inside.set()
        self.go.wait(20)
        return super().statfs(request, node)


def test_deadlines() -> None:
    fs = Stuck()
    fs.deadlines = {"statfs": 0.1}
    with Guest(fs, timeout=15) as guest:
        with fails(errno.EIO):
            guest.statfs()
        assert fs.inside.is_set()
        fs.go.set()
        assert guest.stat().is_dir
        assert guest.statfs().blocks == 1000


def test_a_request_behind_a_stuck_one_has_its_deadline_too() -> None:
    fs = Stuck()
    fs.deadlines = {"getattr": 0.1}
    with Guest(fs, timeout=15) as guest, ThreadPoolExecutor(1) as pool:
        stuck = pool.submit(guest.statfs)
        assert fs.inside.wait(10)
        with fails(errno.EIO):
            guest.client.getattr(ROOT)
        fs.go.set()
        assert stuck.result().blocks == 1000


def test_a_stuck_method_does_not_keep_the_server_from_ending() -> None:
    fs = Stuck()
    guest = Guest(fs, timeout=15)
    with ThreadPoolExecutor(1) as pool:
        stuck = pool.submit(guest.statfs)
        assert fs.inside.wait(10)
        assert guest.server is not None
        assert guest.server.in_flight()[0].operation == "STATFS"
        guest.server.close()
        with fails(errno.EIO):
            stuck.result()
        fs.go.set()
    with pytest.raises(OSError):
        guest.close()


def test_a_stuck_method_of_a_device_is_seen() -> None:
    fs = Stuck()
    with Guest(fs, way="device", timeout=30) as guest, ThreadPoolExecutor(1) as pool:
        stuck = pool.submit(guest.statfs)
        assert fs.inside.wait(10)
        assert guest.device is not None
        (flight,) = guest.device.in_flight()
        assert (flight.operation, flight.node) == ("STATFS", ROOT)
        fs.go.set()
        assert stuck.result().blocks == 1000
        eventually(lambda: guest.device is not None and guest.device.in_flight() == [])


def test_a_stuck_method_does_not_keep_the_next_guest_out(tmp_path: Path) -> None:
    from virtiofs import serve

    fs = Stuck()
    with serve(fs, tmp_path / "socket") as server:
        first = Guest(server, timeout=15)
        with ThreadPoolExecutor(2) as pool:
            stuck = pool.submit(first.statfs)
            assert fs.inside.wait(10)
            first.close()
            with pytest.raises(OSError):
                stuck.result()
            with Guest(tmp_path / "socket", timeout=15, connect_timeout=10) as second:
                found = pool.submit(second.stat)
                fs.go.set()
                assert found.result().is_dir


PROGRAM = """
import stat, sys, time
from virtiofs import Attr, FileSystem, Server

class Sleepy(FileSystem):
    def getattr(self, request, node, handle):
        return Attr(stat.S_IFDIR | 0o755)
    def statfs(self, request, node):
        print("inside", flush=True)
        time.sleep(60)

server = Server(Sleepy(), socket=sys.argv[1])
print("served", server.run(), flush=True)
server.close()
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signals_end_a_process_whose_method_is_stuck(tmp_path: Path, number: int) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", PROGRAM, tmp_path / "socket"], stdout=subprocess.PIPE, text=True
    ) as process:
        try:
            assert process.stdout is not None
            with Guest(tmp_path / "socket", timeout=30, connect_timeout=20) as guest, ThreadPoolExecutor(1) as pool:
                stuck = pool.submit(guest.statfs)
                assert process.stdout.readline() == "inside\n"
                process.send_signal(number)
                with fails(errno.EIO):
                    stuck.result()
                assert process.wait(20) == 0
        except OSError:
            pass
        finally:
            process.kill()


def test_native_reads_go_on_while_python_is_stuck(share: Path) -> None:
    from virtiofs import Node, Passthrough

    class Blocking(Passthrough):
        inside, go = threading.Event(), threading.Event()

        def lookup(self, request: Request, parent: Node, name: str) -> Entry | None:
            if name == "stuck":
                self.inside.set()
                self.go.wait(20)
            return super().lookup(request, parent, name)

    with Guest(Blocking(share), timeout=15) as guest, guest.open("hello") as file, ThreadPoolExecutor(1) as pool:
        stuck = pool.submit(guest.exists, "stuck")
        assert Blocking.inside.wait(10)
        for _ in range(100):
            assert file.read_at(0, 5) == b"hello"
        Blocking.go.set()
        assert not stuck.result()


def test_native_reads_go_on_while_the_interpreter_is_busy(share: Path) -> None:
    """Neither side of this guest needs the interpreter but for the call itself; the daemon's threads never wait for it."""
    from virtiofs import Node, Passthrough

    class Busy(Passthrough):
        def lookup(self, request: Request, parent: Node, name: str) -> Entry | None:
            deadline = time.monotonic() + 0.3
            while name == "busy" and time.monotonic() < deadline:
                pass
            return super().lookup(request, parent, name)

    with Guest(Busy(share), timeout=15) as guest, ThreadPoolExecutor(1) as pool:
        file = guest.open("hello")
        busy = pool.submit(guest.exists, "busy")
        assert file.read_at(0, 5) == b"hello"
        assert not busy.result()
        eventually(lambda: guest.server is not None and guest.server.in_flight() == [])
        file.close()
