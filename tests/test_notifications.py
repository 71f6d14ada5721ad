"""What devices have for drivers that remember: the notification queue, the table as shared memory, a file system's own word."""

import ctypes
import mmap
import os
import stat
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from tests import takes
from virtiofs import (
    ALWAYS,
    Attr,
    Changes,
    Device,
    DirEntry,
    Entry,
    FileSystem,
    GuestMemory,
    MmioTransport,
    Passthrough,
    ProtocolError,
    Request,
    Server,
    VersionTable,
    mount,
)
from virtiofs.testing import Guest

LONG = 20.0
NOTIFICATION = 1 << 0
WAYS = ["socket", "device", "registers"]


def becomes(expected: object, look: Callable[[], object]) -> None:
    deadline = time.monotonic() + LONG
    while (seen := look()) != expected:
        assert time.monotonic() < deadline, f"{seen!r} did not become {expected!r}"


def asked(guest: Guest) -> int:
    served = guest.server or guest.device
    assert served is not None
    return sum(served.stats().requests.values())


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("request_queues", [1, 3])
def test_a_guest_is_told_what_another_changes(share: Path, way: Any, request_queues: int) -> None:
    fs = Passthrough(share, ALWAYS, version_table=VersionTable())
    with Guest(fs, way=way, notifications=True, request_queues=request_queues) as one, Guest(fs) as two:
        assert one.notified is not None
        assert two.notified is None

        def size() -> int | None:
            try:
                return one.stat("hello").size
            except FileNotFoundError:
                return None

        def look() -> tuple[int | None, bool]:
            return size(), one.exists("sub/none")

        becomes((20, False), look)
        two.truncate("hello", 5)
        becomes((5, False), look)
        two.write_file("sub/none", b"x")
        becomes((5, True), look)
        two.unlink("hello")
        becomes((None, True), look)
        two.rename("sub/none", "hello")
        becomes((1, False), look)
        # What it changes itself it knows at once.
        one.write_file("hello", b"own")
        assert look() == (3, False)
        one.unlink("hello")
        assert look() == (None, False)
        assert one.notified >= 5


@pytest.mark.parametrize("way", WAYS)
def test_nothing_is_asked_while_nothing_changes(share: Path, way: Any) -> None:
    fs = Passthrough(share, ALWAYS, version_table=VersionTable())
    with Guest(fs, way=way, notifications=True) as guest:

        def requests() -> int:
            before = asked(guest)
            for _ in range(100):
                assert guest.stat("sub/deep").size == 4
                assert guest.stat("").mode & 0o170000 == 0o040000
                assert guest.exists("hello")
            return asked(guest) - before

        becomes(0, requests)


def test_more_changes_than_buffers_and_more_than_the_guest_listens_to(share: Path) -> None:
    """The device has 32 buffers: what finds none waits, and what is told once is enough."""
    for number in range(200):
        (share / f"{number}").write_text("")
    table = VersionTable()
    fs = Passthrough(share, ALWAYS, version_table=table)
    with Guest(fs, notifications=True, queue_size=64) as guest:
        for _ in range(2):
            assert all(guest.stat(f"{number}").size == 0 for number in range(200))
        for length in (1, 2, 3):
            for number in range(200):
                path = share / f"{number}"
                os.truncate(path, length)
                status = path.stat()
                table.changed(status.st_dev, status.st_ino)
        becomes(3 * 200, lambda: sum(guest.stat(f"{number}").size for number in range(200)))
        table.all_changed()
        (share / "7").unlink()
        table.all_changed()
        becomes(False, lambda: guest.exists("7"))


def test_the_queue_survives_a_new_start_of_the_guest(share: Path) -> None:
    fs = Passthrough(share, ALWAYS, version_table=VersionTable())
    with Server(fs, socket=share.parent / "socket", tag="t") as server:
        for size in (3, 4):
            with Guest(server, notifications=True) as guest:
                guest.stat("hello")
                with Guest(fs) as other:
                    other.truncate("hello", size)
                becomes(size, lambda: guest.stat("hello").size)


def test_without_a_table_or_a_driver_for_it_nothing_is_different(share: Path) -> None:
    plain = Device(Passthrough(share), "t", GuestMemory(), request_queues=2)
    assert (plain.features & NOTIFICATION, plain.queue_count) == (0, 3)
    assert plain.read_config(36, 8) == b"\2\0\0\0\0\0\0\0"
    with Guest(plain, notifications=True) as guest:
        assert guest.notified is None
        assert guest.stat("hello").size == 20
    plain.close()

    telling = Device(Passthrough(share, version_table=VersionTable()), "t", GuestMemory(), request_queues=2)
    assert (telling.features & NOTIFICATION, telling.queue_count) == (1, 3)
    assert telling.read_config(36, 8) == b"\2\0\0\0" + (16 + 24 + 256).to_bytes(4, "little")
    with Guest(telling, request_queues=2) as guest:
        assert (guest.notified, telling.queue_count) == (None, 3)
        assert guest.stat("hello").size == 20
    with Guest(telling, request_queues=2, notifications=True) as guest:
        assert (guest.notified is None, telling.queue_count) == (False, 4)
        assert guest.stat("hello").size == 20
    telling.close()


def test_a_paused_device_tells_what_was_missed(share: Path) -> None:
    table = VersionTable()
    device = Device(Passthrough(share, ALWAYS, version_table=table), "t", GuestMemory())
    with Guest(device, notifications=True) as guest:
        becomes(20, lambda: guest.stat("hello").size)
        device.pause()
        os.truncate(share / "hello", 2)
        status = (share / "hello").stat()
        table.changed(status.st_dev, status.st_ino)
        device.resume()
        becomes(2, lambda: guest.stat("hello").size)
    device.close()


@pytest.mark.parametrize("way", ["device", "registers"])
def test_a_guest_finds_the_table_that_its_device_shows(share: Path, way: Any) -> None:
    table = VersionTable()
    fs = Passthrough(share, version_table=table)
    with Guest(fs, way=way, versions=True) as one, Guest(fs) as two:
        for _ in range(2):
            assert (one.stat("hello").size, one.exists("none")) == (20, False)
        before = asked(one)
        for _ in range(100):
            assert (one.stat("hello").size, one.exists("none")) == (20, False)
        assert asked(one) == before
        two.truncate("hello", 5)
        two.write_file("none", b"")
        assert (one.stat("hello").size, one.exists("none")) == (5, True)


def test_the_table_is_shared_memory_that_can_be_read(share: Path) -> None:
    with pytest.raises(ProtocolError, match="shows no version table"):
        Guest(Passthrough(share), way="device", versions=True)
    device = Device(Passthrough(share, version_table=VersionTable(64)), "t", GuestMemory())
    (region,) = device.shared_memory
    assert (region.id, region.size, region.guest_address) == (1, 8192, None)
    assert region.fd is not None
    with mmap.mmap(region.fd, 4096 + 8 * 64, prot=mmap.PROT_READ) as mapping:
        assert mapping[:8] == b"vfsversn"
    with pytest.raises(PermissionError):
        mmap.mmap(region.fd, 4096 + 8 * 64)
    assert ctypes.string_at(region.host_address, 8) == b"vfsversn"

    with pytest.raises(ValueError, match="no multiple of a page"):
        device.place_version_table(0x12345)
    registers = MmioTransport(device)
    with pytest.raises(ProtocolError, match="shows no version table"):
        Guest(registers, versions=True)
    device.place_version_table(1 << 39)
    assert [region.guest_address for region in device.shared_memory] == [1 << 39]
    registers.write(0xAC, (1).to_bytes(4, "little"))
    words = [int.from_bytes(registers.read(offset, 4), "little") for offset in (0xB0, 0xB4, 0xB8, 0xBC)]
    assert words == [8192, 0, 0, 1 << 7]
    with Guest(registers, versions=True) as guest:
        assert guest.stat("hello").size == 20
    device.place_version_table(None)
    assert [region.guest_address for region in device.shared_memory] == [None]
    device.close()


class Board(FileSystem):
    """Notes by name, which others put up without asking; `Note` objects are nodes."""

    cache = ALWAYS

    def __init__(self, table: VersionTable | None) -> None:
        self.version_table = table
        self.notes: dict[str, Note] = {}

    def put(self, name: str, text: bytes) -> None:
        """Somebody else's change, past all guests."""
        new = name not in self.notes
        note = self.notes.setdefault(name, Note())
        note.text = text
        self.changed(note)
        if new:
            self.changed(self)

    def lookup(self, request: Request, parent: object, name: str) -> Entry | None:
        note = self.notes.get(name)
        return None if note is None else Entry(note, self.getattr(request, note, None))

    def getattr(self, request: Request, node: object, handle: object) -> Attr:
        if isinstance(node, Note):
            return Attr(stat.S_IFREG | 0o644, size=len(node.text))
        return Attr(stat.S_IFDIR | 0o755, nlink=2)

    def setattr(self, request: Request, node: object, handle: object, changes: Changes) -> Attr:
        assert isinstance(node, Note)
        if changes.size is not None:
            node.text = node.text[: changes.size].ljust(changes.size, b"\0")
        return self.getattr(request, node, handle)

    def unlink(self, request: Request, parent: object, name: str) -> None:
        del self.notes[name]

    def readdir(self, request: Request, node: object, handle: object) -> list[DirEntry]:
        return [DirEntry(name, stat.S_IFREG) for name in self.notes]

    def read(self, request: Request, node: object, handle: object, offset: int, size: int) -> bytes:
        assert isinstance(node, Note)
        return node.text[offset : offset + size]


class Note:
    text = b""


@pytest.mark.parametrize("by", ["table", "notifications"])
def test_a_python_file_system_says_what_changed(by: str) -> None:
    table = VersionTable(64)
    board = Board(table)
    board.put("first", b"1")
    options: dict[str, Any] = {"versions": table} if by == "table" else {"notifications": True}
    with Guest(board, **options) as one, Guest(board, **options) as two:

        def look(guest: Guest) -> tuple[int, bool]:
            return guest.stat("first").size, guest.exists("second")

        for guest in (one, two):
            becomes((1, False), partial(look, guest))

        def asked_for_nothing() -> int:
            before = asked(one)
            for _ in range(50):
                assert one.stat("first").size == 1
                assert not one.exists("second")
            return asked(one) - before

        becomes(0, asked_for_nothing)
        board.put("first", b"longer")
        board.put("second", b"22")
        for guest in (one, two):
            becomes((6, True), partial(look, guest))
        # What a guest changes by the methods is said by itself.
        one.truncate("first", 3)
        becomes(3, lambda: two.stat("first").size)
        two.unlink("second")
        becomes(False, lambda: one.exists("second"))


def test_a_subclass_of_passthrough_says_what_changed(share: Path) -> None:
    class Upper(Passthrough):
        last: Any = None

        def getattr(self, request: Request, node: Any, handle: Any) -> Attr:
            self.last = node
            return super().getattr(request, node, handle)

    table = VersionTable()
    fs = Upper(share, ALWAYS, version_table=table)
    with Guest(fs, versions=table) as guest:
        assert [guest.stat("hello").size for _ in range(3)] == [20] * 3
        os.truncate(share / "hello", 5)
        assert guest.stat("hello").size == 20, "nobody has said anything yet"
        fs.changed(fs.last)
        assert guest.stat("hello").size == 5


def test_without_a_table_nothing_is_said() -> None:
    board = Board(None)
    board.put("first", b"1")
    with Guest(board) as guest:
        assert guest.stat("first").size == 1
        board.put("first", b"longer")
        assert guest.read_file("first") == b"longer"


@takes.mounts
def test_a_mount_sees_what_a_python_file_system_says(tmp_path: Path) -> None:
    board = Board(VersionTable())
    board.put("first", b"1")
    with mount(board, tmp_path):
        path = tmp_path / "first"
        assert (path.read_bytes(), os.listdir(tmp_path)) == (b"1", ["first"])
        assert not (tmp_path / "second").exists()
        board.put("first", b"longer")
        becomes(b"longer", path.read_bytes)
        board.put("second", b"2")
        becomes(True, (tmp_path / "second").exists)
        becomes(["first", "second"], lambda: sorted(os.listdir(tmp_path)))
