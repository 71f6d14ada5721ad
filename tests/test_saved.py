"""Devices that are saved, and others that go on with what their guests have."""

import ctypes
import errno
import os
import struct
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from pathlib import Path

import pytest

from tests.driver import (
    GETATTR,
    LOOKUP,
    OPEN,
    READ,
    SETUPMAPPING,
    SIZE,
    START,
    VERSION_1,
    Ring,
    accesses,
    ask,
    init,
    reading,
    request,
    start_by_registers,
)
from tests.keeping import Inode, Keeping
from virtiofs import (
    Attr,
    ConfigError,
    Device,
    FileSystem,
    GuestMemory,
    MmioTransport,
    Node,
    Open,
    Passthrough,
    Request,
    RestoreError,
    StateError,
    Workers,
)
from virtiofs._core import INIT

STALE, BAD_HANDLE = -116, -9


class Work:
    """A guest that has a file open, and a READ of it that was not begun when its device was saved."""

    def __init__(self, share: Path, fs: FileSystem | None = None, **options: str) -> None:
        self.file = share / "file"
        self.file.write_bytes(b"before after")
        self.fd = os.memfd_create("memory")
        os.truncate(self.fd, SIZE)
        self.memory = GuestMemory()
        self.memory.add_fd(START, self.fd, SIZE)
        self.hiprio, self.ring = Ring(self.memory, START), Ring(self.memory, START + 0x4000)
        self.fs = Passthrough(share) if fs is None else fs
        self.device = Device(self.fs, "saved", self.memory, **options)  # type: ignore[arg-type]
        self.device.start(VERSION_1, [self.hiprio.queue(), self.ring.queue(call=self.ring.interrupted.set)])
        flags = INIT["MAP_ALIGNMENT"] | INIT["HAS_INODE_DAX"] | INIT["INIT_EXT"]
        assert len(self.ask(init(flags))) == 80
        (self.node,) = struct.unpack_from("<Q", self.ask(request(LOOKUP, 1, b"file\0")), 16)
        (self.handle,) = struct.unpack_from(
            "<Q", self.ask(request(OPEN, self.node, struct.pack("<II", os.O_RDWR, 0))), 16
        )

    def ask(self, message: bytes) -> bytes:
        return ask(self.device, self.ring, message)

    def save(self) -> bytes:
        """Pauses, puts a READ, saves and closes."""
        self.device.pause()
        self.ring.put(request(READ, self.node, reading(self.handle, 0, 6)))
        saved = self.device.save()
        assert self.device.state == "paused"
        self.device.close()
        return saved

    def close(self) -> None:
        self.device.close()
        os.close(self.fd)

    def restore(self, saved: bytes, **options: object) -> None:
        calls = [None, self.ring.interrupted.set]
        self.device = Device.restore(saved, self.fs, self.memory, calls=calls, **options)  # type: ignore[arg-type]


@pytest.fixture
def work(share: Path) -> Iterator[Work]:
    with closing(Work(share, dax_window="8M")) as work:
        yield work


@pytest.fixture
def working(share: Path) -> Iterator[Callable[[FileSystem], Work]]:
    """As `work`, with a file system of one's own."""
    with ExitStack() as stack:
        yield lambda fs: stack.enter_context(closing(Work(share, fs)))


def test_a_device_goes_on_in_the_midst_of_work(work: Work) -> None:
    workers = Workers()
    for _ in range(3):
        saved, before = work.save(), work.ring.used()
        work.ring.interrupted.clear()
        work.restore(saved, workers=workers)
        assert (work.device.state, work.device.tag, work.device.lost) == ("paused", "saved", [])
        assert work.ring.interrupted.wait(20), "an interrupt may have been lost on the way"
        assert (work.device.accepted_features, len(work.device.queues)) == (VERSION_1, 2)
        assert work.ring.used() == before
        work.device.resume()
        work.ring.wait(before)
        assert work.ring.reply()[16:] == b"before"
        assert work.ask(request(READ, work.node, reading(work.handle, 7, 100)))[16:] == b"after"
        assert (work.device.stats().nodes, work.device.stats().handles) == (2, 1)


def test_a_device_goes_on_in_another_process(work: Work, share: Path) -> None:
    done = going_on(work, share, work.save())
    assert (done.returncode, done.stderr) == (0, b"")
    assert done.stdout == b" after\n".join([b"before\n", b"12\n"])


def going_on(work: Work, share: Path, saved: bytes, *more: str) -> "subprocess.CompletedProcess[bytes]":
    """Another process that goes on."""
    arguments = [str(value) for value in (work.fd, share, work.node, work.handle)]
    command = [sys.executable, "-m", "tests.going_on", *arguments, *more]
    root = Path(__file__).parent.parent
    return subprocess.run(
        command, input=saved, pass_fds=[work.fd], capture_output=True, timeout=60, cwd=root, check=False
    )


def test_what_was_mapped_is_mapped_again_where_it_was(work: Work) -> None:
    (window,) = work.device.shared_memory
    work.device.place_window(1 << 40)
    # fh, offset in the file, length, for reading and writing, offset in the window.
    arguments = struct.pack("<QQQQQ", 2**64 - 1, 0, 2 << 20, 3, 4 << 20)
    work.ask(request(SETUPMAPPING, work.node, arguments))
    assert work.ring.error() == 0
    assert ctypes.string_at(window.host_address + (4 << 20), 6) == b"before"
    work.restore(work.save())
    (window,) = work.device.shared_memory
    assert (work.device.stats().mappings, window.guest_address, window.size) == (1, 1 << 40, 8 << 20)
    assert ctypes.string_at(window.host_address + (4 << 20), 6) == b"before"
    ctypes.memmove(window.host_address + (4 << 20), b"stored", 6)
    assert work.file.read_bytes() == b"stored after"


def test_what_is_gone_fails_or_is_stale(work: Work) -> None:
    saved = work.save()
    work.file.rename(work.file.with_name("kept"))
    work.file.write_bytes(b"another file of this name")
    work.file.with_name("kept").unlink()
    with pytest.raises(RestoreError, match=r"node of 'file' \(Stale file handle\)") as caught:
        work.restore(saved)
    (lost,) = caught.value.lost
    assert (lost.kind, lost.node, lost.path) == ("node", work.node, "file")
    before = work.ring.used()
    work.restore(saved, missing="stale")
    assert [thing.node for thing in work.device.lost] == [work.node]
    work.device.resume()
    work.ring.wait(before)
    assert work.ring.error() == BAD_HANDLE
    work.ask(request(GETATTR, work.node, bytes(16)))
    assert work.ring.error() == STALE
    (node,) = struct.unpack_from("<Q", work.ask(request(LOOKUP, 1, b"file\0")), 16)
    assert node > work.node, "numbers are not given twice"


def test_only_a_paused_device_is_saved(work: Work) -> None:
    with pytest.raises(StateError, match="save, it must be paused"):
        work.device.save()
    saved = work.save()
    with pytest.raises(StateError, match="closed"):
        work.device.save()
    for broken in (b"", saved[:-1], saved + b"x", saved[:40], bytes(200)):
        with pytest.raises(ConfigError):
            work.restore(broken)
    with pytest.raises(ConfigError, match="'fail' or 'stale'"):
        work.restore(saved, missing="ignore")
    with pytest.raises(ValueError, match="queue 0"):
        Device.restore(saved, work.fs, GuestMemory())


class Sized(Passthrough):
    """Answers GETATTR and READ by itself, and opens some files with others' data in their place."""

    def getattr(self, request: Request, node: object, handle: object) -> Attr:
        return super().getattr(request, node, handle)

    def open(self, request: Request, node: Node, flags: int) -> Open:
        if node.path.name != "replaced":
            return super().open(request, node, flags)
        return Open("other", backing=self.other())

    def other(self) -> int:
        fd = os.memfd_create("other")
        os.write(fd, b"others")
        return fd

    def save_handle(self, node: Node, handle: object) -> str:
        assert node.path.name == "replaced"
        return str(handle)

    def restore_handle(self, node: Node, saved: object) -> Open:
        return Open(saved, backing=self.other())


def opened(work: Work, node: int) -> int:
    number: int
    (number,) = struct.unpack_from("<Q", work.ask(request(OPEN, node, struct.pack("<II", os.O_RDWR, 0))), 16)
    return number


def looked_up(work: Work, name: bytes) -> int:
    number: int
    (number,) = struct.unpack_from("<Q", work.ask(request(LOOKUP, 1, name + b"\0")), 16)
    return number


def read(work: Work, node: int, handle: int) -> bytes:
    return work.ask(request(READ, node, reading(handle, 0, 6)))[16:]


def test_a_directory_with_methods_in_python_goes_on(share: Path, working: Callable[[FileSystem], Work]) -> None:
    (share / "replaced").write_bytes(b"its own")
    work = working(Sized(share))
    node = looked_up(work, b"replaced")
    handle = opened(work, node)
    assert read(work, node, handle) == b"others"
    before = work.ring.used()
    work.restore(work.save())
    work.device.resume()
    work.ring.wait(before)
    assert work.ring.reply()[16:] == b"before", "of a native file"
    assert read(work, node, handle) == b"others"
    assert len(work.ask(request(GETATTR, work.node, bytes(16)))) == 120
    again = opened(work, node)
    assert again not in (handle, work.handle), "numbers are not given twice"


def test_objects_of_a_class_are_found_again(share: Path, working: Callable[[FileSystem], Work]) -> None:
    (share / "backed").write_bytes(b"backed")
    fs = Keeping(share)
    work = working(fs)
    node = looked_up(work, b"backed")
    handle = opened(work, node)
    before = work.ring.used()
    saved = work.save()
    work.fs = other = Keeping(share)
    work.restore(saved)
    assert work.device.lost == []
    work.device.resume()
    work.ring.wait(before)
    assert work.ring.reply()[16:] == b"before"
    assert (read(work, node, handle), read(work, work.node, work.handle)) == (b"backed", b"before")
    assert looked_up(work, b"file") == work.node, "it is the same node"
    assert opened(work, node) != handle, "numbers are not given twice"
    assert (fs.begun, other.begun) == (1, 1)
    assert set(other.inodes) == {share / "file", share / "backed"}


def test_objects_of_a_class_are_found_again_in_another_process(
    share: Path, working: Callable[[FileSystem], Work]
) -> None:
    work = working(Keeping(share))
    saved = work.save()
    done = going_on(work, share, saved, "python")
    assert (done.returncode, done.stderr) == (0, b"")
    assert done.stdout == b" after\n".join([b"before\n", b"12\n"])


def test_objects_that_are_not_found_are_lost(
    share: Path, working: Callable[[FileSystem], Work], caplog: pytest.LogCaptureFixture
) -> None:
    (share / "odd").write_bytes(b"odd")
    (share / "gone").mkdir()
    work = working(Keeping(share))
    odd, gone = looked_up(work, b"odd"), looked_up(work, b"gone")
    opened(work, odd)
    saved = work.save()
    (share / "gone").rmdir()
    with pytest.raises(RestoreError) as caught:
        work.restore(saved)
    assert [(lost.kind, lost.node, lost.path, lost.error.errno) for lost in caught.value.lost] == [
        ("node", odd, "", errno.EOPNOTSUPP),
        ("node", gone, "gone", errno.ENOENT),
    ]
    before = work.ring.used()
    work.restore(saved, missing="stale")
    work.device.resume()
    work.ring.wait(before)
    assert work.ring.reply()[16:] == b"before"
    work.ask(request(GETATTR, odd, bytes(16)))
    assert work.ring.error() == STALE

    class Broken(Keeping):
        def restore_node(self, saved: object) -> Inode:
            raise RuntimeError("on purpose")

    work.fs = Broken(share)
    with pytest.raises(RestoreError) as caught:
        work.restore(saved)
    assert {lost.error.errno for lost in caught.value.lost} == {errno.EIO, errno.EOPNOTSUPP}
    assert "on purpose" in caplog.text
    work.fs = Passthrough(share)
    with pytest.raises(ConfigError, match="methods in Python"):
        work.restore(saved)


def test_a_class_that_says_nothing_loses_its_nodes(share: Path, working: Callable[[FileSystem], Work]) -> None:
    class Plain(Keeping):
        def save_node(self, node: Inode) -> None:
            assert FileSystem.save_node(self, node) is None

    work = working(Plain(share))
    saved = work.save()
    with pytest.raises(RestoreError) as caught:
        work.restore(saved)
    assert [(lost.kind, lost.node) for lost in caught.value.lost] == [("node", work.node)]


def test_registers_go_on_with_their_device(work: Work) -> None:
    work.device.reset()
    work.memory.write(START, bytes(0x8000))
    registers = MmioTransport(work.device)
    start_by_registers(registers, work.hiprio, work.ring)
    work.ask(init())
    work.device.pause()
    work.ring.put(request(GETATTR, 1, bytes(16)))
    saved, before = registers.save(), work.ring.used()
    work.device.close()
    registers = MmioTransport.restore(saved, work.fs, work.memory)
    work.device = registers.device
    get, put = accesses(registers)
    assert (get(0x070), get(0x044), registers.interrupt_status, work.device.state) == (15, 1, 1, "paused")
    work.device.resume()
    work.ring.wait(before)
    assert (work.ring.error(), len(work.ring.reply())) == (0, 120)
    work.ring.put(request(GETATTR, 1, bytes(16)))
    put(0x050, 1)
    work.ring.wait(before + 1)
    put(0x070, 0)
    assert (work.device.state, get(0x044)) == ("ready", 0)
    for broken in (b"", saved[:-1], saved + b"x"):
        with pytest.raises(ConfigError):
            MmioTransport.restore(broken, work.fs, work.memory)
