"""Devices that are saved, and others that go on with what their guests have."""

import ctypes
import os
import struct
import subprocess
import sys
from collections.abc import Callable, Iterator
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
    ask,
    init,
    reading,
    request,
)
from virtiofs import (
    Attr,
    ConfigError,
    Device,
    GuestMemory,
    MmioTransport,
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

    def __init__(self, share: Path, **options: str) -> None:
        self.file = share / "file"
        self.file.write_bytes(b"before after")
        self.fd = os.memfd_create("memory")
        os.truncate(self.fd, SIZE)
        self.memory = GuestMemory()
        self.memory.add_fd(START, self.fd, SIZE)
        self.hiprio, self.ring = Ring(self.memory, START), Ring(self.memory, START + 0x4000)
        self.fs = Passthrough(share)
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

    def restore(self, saved: bytes, **options: object) -> None:
        calls = [None, self.ring.interrupted.set]
        self.device = Device.restore(saved, self.fs, self.memory, calls=calls, **options)  # type: ignore[arg-type]


@pytest.fixture
def work(share: Path) -> Iterator[Work]:
    work = Work(share, dax_window="8M")
    yield work
    work.device.close()
    os.close(work.fd)


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
    saved = work.save()
    arguments = [str(value) for value in (work.fd, share, work.node, work.handle)]
    command = [sys.executable, "-m", "tests.going_on", *arguments]
    root = Path(__file__).parent.parent
    done = subprocess.run(
        command, input=saved, pass_fds=[work.fd], capture_output=True, timeout=60, cwd=root, check=False
    )
    assert (done.returncode, done.stderr) == (0, b"")
    assert done.stdout == b" after\n".join([b"before\n", b"12\n"])


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
    """Answers GETATTR by itself."""

    def getattr(self, request: Request, node: object, handle: object) -> Attr:
        return super().getattr(request, node, handle)


def test_nodes_that_are_objects_of_python_are_not_saved(share: Path) -> None:
    memory = GuestMemory()
    fd = os.memfd_create("memory")
    os.truncate(fd, SIZE)
    memory.add_fd(START, fd, SIZE)
    os.close(fd)
    with Device(Sized(share), "python", memory) as device:
        device.start(VERSION_1, [Ring(memory, START).queue(), Ring(memory, START + 0x4000).queue()])
        device.pause()
        with pytest.raises(ConfigError, match="Python methods"):
            device.save()


def accesses(registers: MmioTransport) -> tuple[Callable[[int], int], Callable[..., None]]:
    def get(offset: int) -> int:
        return int.from_bytes(registers.read(offset, 4), "little")

    def put(offset: int, *values: int) -> None:
        for value in values:
            registers.write(offset, value.to_bytes(4, "little"))

    return get, put


def test_registers_go_on_with_their_device(work: Work) -> None:
    work.device.reset()
    work.memory.write(START, bytes(0x8000))
    get, put = accesses(registers := MmioTransport(work.device))
    put(0x070, 0, 1, 3)
    put(0x024, 1)
    put(0x020, 1)
    put(0x070, 11)
    for index, ring in enumerate((work.hiprio, work.ring)):
        put(0x030, index)
        put(0x038, 8)
        for offset, address in ((0x080, ring.at), (0x090, ring.at + 0x400), (0x0A0, ring.at + 0x800)):
            put(offset, address)
            put(offset + 4, 0)
        put(0x044, 1)
    put(0x070, 15)
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
