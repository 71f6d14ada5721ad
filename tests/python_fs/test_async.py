"""Methods that are awaited, and lanes."""

import asyncio
import errno
import stat
import threading
import time
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from tests.errnos import fails
from tests.python_fs.conftest import eventually
from tests.python_fs.tree import Inode, Tree
from virtiofs import Attr, DirEntry, Entry, FileSystem, Open, Request
from virtiofs.testing import Guest

ROOT = 1


class Slow(Tree):
    """Reads await something, and everything else does not."""

    def __init__(self) -> None:
        super().__init__()
        self.root.names["file"] = Inode(Attr(stat.S_IFREG | 0o644))
        self.root.names["file"].data[:] = b"content"
        self.inside = self.most = 0
        self.go: asyncio.Event | None = None
        self.cancelled = 0

    async def read(  # type: ignore[override]
        self, request: Request, node: Inode, handle: Any, offset: int, size: int
    ) -> bytes:
        self.inside += 1
        self.most = max(self.most, self.inside)
        try:
            if offset == 0:
                self.go = self.go or asyncio.Event()
                await self.go.wait()
            elif self.go is not None:
                self.go.set()
            return bytes(node.data[:size])
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        finally:
            self.inside -= 1


def test_many_are_in_flight() -> None:
    fs = Slow()
    with Guest(fs, timeout=20) as guest, ThreadPoolExecutor(9) as pool:
        node = guest.node("file")
        opened = guest.client.open(node, 0)
        reads = [pool.submit(guest.client.read, node, opened.handle, 0, 7) for _ in range(8)]
        eventually(lambda: fs.inside == 8)
        assert guest.server is not None
        assert [flight.operation for flight in guest.server.in_flight()] == ["READ"] * 8
        assert guest.stat("file").size == 7, "others are served meanwhile"
        assert guest.client.read(node, opened.handle, 1, 3) == b"con"
        assert [read.result() for read in reads] == [b"content"] * 8
        assert guest.server.in_flight() == []
    assert fs.most >= 8


def test_answers_of_coroutines() -> None:
    class Async(FileSystem):
        async def lookup(self, request: Request, parent: object, name: str) -> Entry | None:
            await asyncio.sleep(0)
            if name == "none":
                raise FileNotFoundError(name)
            return Entry(name, await self.getattr(request, name, None))

        async def getattr(self, request: Request, node: object, handle: Any) -> Attr:
            return Attr((stat.S_IFDIR if node is self else stat.S_IFREG) | 0o755)

        async def readdir(self, request: Request, node: object, handle: Any) -> AsyncIterator[DirEntry]:
            for name in ("a", "b"):
                await asyncio.sleep(0)
                yield DirEntry(name)

        def open(self, request: Request, node: object, flags: int) -> Open:
            asyncio.get_running_loop()
            return Open("plain methods run on the loop's thread too")

        async def destroy(self) -> None:
            ended.set()

    ended = threading.Event()
    with Guest(Async()) as guest:
        assert guest.listdir() == ["a", "b"]
        assert guest.stat("a").is_file
        with fails(errno.ENOENT):
            guest.stat("none")
        guest.open("a").close()
    assert ended.wait(10)


def test_a_closing_server_answers_what_is_in_flight() -> None:
    fs = Slow()
    guest = Guest(fs, timeout=20)
    node = guest.node("file")
    opened = guest.client.open(node, 0)
    with ThreadPoolExecutor(1) as pool:
        read = pool.submit(guest.client.read, node, opened.handle, 0, 7)
        eventually(lambda: fs.inside == 1)
        assert guest.server is not None
        guest.server.close()
        with fails(errno.EIO):
            read.result()
    eventually(lambda: fs.cancelled == 1)
    with pytest.raises(OSError):
        guest.close()


@pytest.mark.parametrize("lanes", [1, 3])
def test_lanes(lanes: int) -> None:
    class Waiting(Tree):
        inside = most = 0
        threads: set[int] = set()
        lock = threading.Lock()

        def getattr(self, request: Request, node: Inode, handle: Any) -> Attr:
            self.threads.add(threading.get_ident())
            with self.lock:
                Waiting.inside += 1
                Waiting.most = max(Waiting.most, Waiting.inside)
            time.sleep(0.02)
            with self.lock:
                Waiting.inside -= 1
            return super().getattr(request, node, handle)

    fs = Waiting()
    fs.lanes = lanes
    with Guest(fs, timeout=20) as guest, ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda _: guest.client.getattr(ROOT), range(40)))
    assert Waiting.most == lanes
    assert len(Waiting.threads) == lanes


def test_async_lanes() -> None:
    fs = Slow()
    fs.lanes = 2
    with Guest(fs, timeout=20) as guest, ThreadPoolExecutor(4) as pool:
        node = guest.node("file")
        opened = guest.client.open(node, 0)
        found = list(pool.map(lambda _: guest.client.read(node, opened.handle, 1, 7), range(100)))
    assert found == [b"content"] * 100


def test_a_forgotten_async_def_is_named(tree: Tree, caplog: pytest.LogCaptureFixture) -> None:
    async def late() -> bytes:
        return b""

    class Forgetful(Tree):
        def readlink(self, request: Request, node: Inode) -> Any:
            coroutine = late()
            coroutine.close()
            return coroutine

    fs = Forgetful()
    fs.root.names["link"] = Inode(Attr(stat.S_IFLNK | 0o777))
    with Guest(fs) as guest, fails(errno.EIO):
        guest.readlink("link")
    assert "Forgetful.readlink must return the target as str or bytes, not coroutine: declare the method" in caplog.text


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_lane_that_ends_answers_what_comes_with_eio(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(lane: object) -> None:
        raise ModuleNotFoundError("there are no modules here")

    monkeypatch.setattr("virtiofs.lane.run", broken)
    with Guest(Slow(), timeout=20) as guest:
        for _ in range(3):
            with fails(errno.EIO):
                guest.client.lookup(ROOT, "file")
