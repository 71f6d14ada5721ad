"""The DAX window: what it may be, which files are mapped, and the embedded guest that maps them."""

import ctypes
import errno
import mmap
import os
import stat
import struct
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any, Literal, TypeAlias

import pytest

from tests.daemon import Start
from tests.daemon import virtiofs as run
from tests.driver import NEXT, VERSION_1, WRITE, Ring, request
from tests.errnos import fails
from virtiofs import (
    Attr,
    Changes,
    ConfigError,
    Device,
    Entry,
    FileSystem,
    GuestMemory,
    Open,
    Passthrough,
    Policy,
    Request,
    Rule,
    Server,
    dax,
    explain,
)
from virtiofs.testing import Guest

Way: TypeAlias = Literal["socket", "device", "registers"]
GRANULE = 2 << 20
PAGE = 4096
ATTR_DAX = 2


@pytest.mark.parametrize(
    ("text", "size"), [("0", 0), ("2M", 2 << 20), ("512MiB", 512 << 20), ("1g", 1 << 30), (4 << 20, 4 << 20)]
)
def test_sizes_of_windows(text: str | int, size: int) -> None:
    assert dax.window(text) == size


@pytest.mark.parametrize(
    ("text", "hint"),
    [
        ("1M", "take 2M"),
        ("3M", "take 4M"),
        ("96M", "take 128M"),
        ("3G", "take 4G"),
        ("1000000", "take 2M"),
        ("64T", "take 1G"),
        ("large", "say 512M or 1G"),
        ("-1G", "say 512M or 1G"),
        ("1.5G", "say 512M or 1G"),
        ("G", "say 512M or 1G"),
        ("", "say 512M or 1G"),
    ],
)
def test_what_is_no_window_is_refused_with_advice(text: str, hint: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as raised:
        dax.window(text)
    assert hint in " ".join([str(raised.value), *raised.value.__notes__])
    done = run("serve", tmp_path, "--socket", tmp_path / "s", f"--dax-window={text}")
    assert done.returncode == 2
    assert hint in done.stderr
    assert done.stderr.count("\n") == 1


def test_which_files() -> None:
    assert (dax.files("never"), dax.files("always"), dax.files("64K"), dax.files(5)) == (None, 0, 65536, 5)
    assert dax.files("inode") == dax.SMALL
    for wrong in ("some", "", -1, "1X"):
        with pytest.raises(ConfigError, match="never, always, inode, or from a size on"):
            dax.files(wrong)


def test_the_line_for_qemu_names_the_device_that_has_a_window(share: Path, tmp_path: Path) -> None:
    server = Server(Passthrough(share), socket=tmp_path / "s", request_queues=2, dax_window="1G")
    assert server.qemu_arguments()[-1] == (
        "vhost-user-test-device-pci,chardev=fs0,virtio-id=26,num_vqs=3,vq_size=1024,config_size=40"
    )
    assert "vhost-user-fs-pci" in Server(Passthrough(share), socket=tmp_path / "s").qemu_line()


def test_a_daemon_says_which_qemu_can(share: Path, tmp_path: Path, start: Start) -> None:
    old = tmp_path / "bin"
    old.mkdir()
    qemu = old / f"qemu-system-{os.uname().machine}"
    qemu.write_text("""#!/bin/sh\necho 'name "vhost-user-fs-pci", bus PCI'\n""")
    qemu.chmod(0o755)
    daemon = start(share, "--socket", tmp_path / "s", "--dax-window=64M", env={"PATH": f"{old}:{os.environ['PATH']}"})
    assert "QEMU 11.1 has one" in daemon.wait_for("in the guest:")
    qemu.write_text("""#!/bin/sh\necho 'name "vhost-user-test-device-pci", bus PCI'\n""")
    daemon = start(share, "--socket", tmp_path / "t", "--dax-window=64M", env={"PATH": f"{old}:{os.environ['PATH']}"})
    assert "has no device" not in daemon.wait_for("in the guest:")


def every_way(test: Any) -> Any:
    """The test gets a `mount` for each way to a device with a window, and for a front end that maps as QEMU does."""
    as_qemu = pytest.mark.skipif(os.geteuid() != 0, reason="only root can help such a front end")
    ways = [
        pytest.param({"way": "socket"}, id="socket"),
        pytest.param({"way": "socket", "whole_pages": True}, id="as-qemu", marks=as_qemu),
        pytest.param({"way": "device"}, id="device"),
        pytest.param({"way": "registers"}, id="registers"),
    ]
    return pytest.mark.parametrize("how", ways)(test)


@every_way
def test_a_mapped_file_is_the_hosts_memory(share: Path, how: dict[str, Any]) -> None:
    (share / "large").write_bytes(b"x" * 100_001)
    with Guest(Passthrough(share), dax=True, **how) as guest:
        assert guest.window_size == 64 << 20
        assert guest.client.lookup(1, "large").attr.flags & ATTR_DAX
        assert not guest.client.lookup(1, "hello").attr.flags & ATTR_DAX
        guest.client.setupmapping(guest.node("large"), 0, GRANULE, GRANULE, write=True)
        assert guest.window_read(GRANULE + 100_000, 2) == b"x\0"
        guest.window_write(GRANULE + 5, b"guest")
        assert (share / "large").read_bytes()[:11] == b"xxxxxguestx"
        with open(share / "large", "r+b") as file:
            file.seek(200_000)
            file.write(b"host")
        assert guest.window_read(GRANULE + 200_000, 4) == b"host"
        assert guest.mappings == 1
        guest.client.removemapping([(GRANULE, GRANULE)])
        assert guest.mappings == 0
        with pytest.raises(ValueError, match="nothing is mapped"):
            guest.window_read(GRANULE, 1)


@pytest.mark.parametrize("way", ["socket", "device", "registers"])
def test_truncated_files_read_as_zeros(share: Path, way: Way) -> None:
    with Guest(Passthrough(share), dax=True, way=way) as guest:
        (share / "file").write_bytes(b"y" * 20_000)
        guest.client.setupmapping(guest.node("file"), 0, GRANULE, 0)
        assert guest.window_read(16_384, 1) == b"y"
        os.truncate(share / "file", 1)
        assert guest.window_read(0, 2) == b"y\0"
        assert guest.window_read(16_384, 10) == bytes(10)


@pytest.mark.parametrize("way", ["device", "registers"])
def test_a_file_that_grows_again_is_there_before_the_guest_hears_of_it(share: Path, way: Way) -> None:
    (share / "file").write_bytes(b"y" * 20_000)
    with Guest(Passthrough(share), dax=True, way=way) as guest:
        assert guest.device is not None
        guest.client.setupmapping(guest.node("file"), 0, GRANULE, 0, write=True)
        os.truncate(share / "file", 1)
        guest.window_write(16_384, b"lost")
        assert guest.device.stats().zeroed == 1
        (share / "file").write_bytes(b"z" * 20_000)
        assert guest.window_read(16_384, 4) == b"lost"
        assert guest.client.getattr(guest.node("file")).size == 20_000
        assert guest.window_read(16_384, 4) == b"zzzz"
        with guest.open("file", os.O_RDWR) as file:
            os.truncate(share / "file", 1)
            assert guest.window_read(16_384, 4) == bytes(4)
            file.write_at(16_384, b"written")
            assert guest.window_read(16_384, 7) == b"written"
        assert guest.device.stats().zeroed == 2


@pytest.mark.parametrize(("which", "mapped"), [("never", []), ("always", ["deep", "hello"]), (5, ["hello"])])
@pytest.mark.parametrize("way", ["socket", "device"])
def test_policy(share: Path, which: int | str, mapped: list[str], way: Way) -> None:
    os.link(share / "sub/deep", share / "deep")
    with Guest(Passthrough(share, dax=which), dax=True, way=way) as guest:
        names = [name for name in guest.listdir() if guest.client.lookup(1, name).attr.flags & ATTR_DAX]
        assert sorted(names) == mapped


@pytest.mark.parametrize("way", ["socket", "device"])
def test_rules_say_which_files(share: Path, way: Way) -> None:
    """By rules first, by size where none has a word."""
    for name in ("never.db", "always.idx", "large", "larger"):
        (share / name).write_bytes(bytes({"always.idx": 10, "large": 65536}.get(name, 2 << 20)))
    policy = Policy(
        Rule(name="never.*", dax="never"), Rule(name="*.idx", dax="always"), Rule(max_size="64K", kind="file", dax="1G")
    )
    with Guest(Passthrough(share, policy=policy), dax=True, way=way) as guest:
        names = [name for name in guest.listdir() if guest.client.lookup(1, name).attr.flags & ATTR_DAX]
        assert sorted(names) == ["always.idx", "larger"]
        guest.client.setupmapping(guest.node("always.idx"), 0, GRANULE, 0, write=True)
        guest.window_write(0, b"stored")
    assert (share / "always.idx").read_bytes() == b"stored" + bytes(4)


class Memfds(FileSystem):
    """Two files in memory; the native side has their data."""

    def __init__(self) -> None:
        self.files = {name: os.memfd_create(name) for name in ("mapped", "plain")}
        self.readers = {name: os.open(f"/proc/self/fd/{fd}", os.O_RDONLY) for name, fd in self.files.items()}

    def close(self) -> None:
        for fd in (*self.files.values(), *self.readers.values()):
            os.close(fd)

    def lookup(self, request: Request, parent: object, name: str) -> Entry | None:
        return Entry(name, self.getattr(request, name, None)) if name in self.files else None

    def getattr(self, request: Request, node: object, handle: object) -> Attr:
        if not isinstance(node, str):
            return Attr(stat.S_IFDIR | 0o755)
        size = os.fstat(self.files[node]).st_size
        return Attr(stat.S_IFREG | 0o666, size=size, dax=node == "mapped")

    def setattr(self, request: Request, node: str, handle: object, changes: Changes) -> Attr:
        if changes.size is not None:
            os.truncate(self.files[node], changes.size)
        return self.getattr(request, node, handle)

    def readdir(self, request: Request, node: object, handle: object) -> list[str]:
        return list(self.files)

    def open(self, request: Request, node: str, flags: int) -> Open:
        return Open(backing=(self.readers if flags & os.O_ACCMODE == os.O_RDONLY else self.files)[node])


@pytest.mark.parametrize("way", ["socket", "device"])
def test_files_of_python_are_mapped_if_it_says_so(way: Way) -> None:
    with closing(Memfds()) as fs, Guest(fs, dax=True, way=way) as guest:
        assert [name for name in guest.listdir() if guest.client.lookup(1, name).attr.flags & ATTR_DAX] == ["mapped"]
        guest.write_file("mapped", b"0123456789")
        node = guest.node("mapped")
        # A guest maps what it has open; this one has not.
        assert refused(guest, node, 0, GRANULE, 0) == "EACCES"
        with guest.open("mapped") as _:
            guest.client.setupmapping(node, 0, GRANULE, 0)
            assert guest.window_read(2, 3) == b"234"
            with fails(errno.EACCES):
                guest.client.setupmapping(node, 0, GRANULE, GRANULE, write=True)
        with guest.open("mapped", os.O_RDWR) as file:
            guest.client.setupmapping(node, 0, GRANULE, GRANULE, write=True)
            guest.window_write(GRANULE + 2, b"stored")
            assert file.read_at(0, 10) == b"01stored89"
        # What is mapped stays so while no program has it open.
        guest.window_write(GRANULE, b"XX")
        assert os.pread(fs.files["mapped"], 10, 0) == b"XXstored89"
        assert guest.mappings == 2


def test_python_maps_files_where_it_has_no_part_in_their_data(share: Path) -> None:
    class Reads(Memfds):
        def read(self, request: Request, node: str, handle: object, offset: int, size: int) -> bytes:
            return b""

    assert explain(Memfds).maps_files
    assert not explain(Reads).maps_files
    with closing(Reads()) as fs, pytest.raises(ConfigError, match="Reads has no files that guests could map"):
        Server(fs, socket=share / "socket", dax_window="2M")


@pytest.mark.parametrize("way", ["socket", "device", "registers"])
def test_a_read_only_share_is_mapped_for_reading(share: Path, way: Way) -> None:
    with Guest(Passthrough(share, read_only=True, dax="always"), dax=True, way=way) as guest:
        node = guest.node("hello")
        guest.client.setupmapping(node, 0, GRANULE, 0)
        assert guest.window_read(0, 5) == b"hello"
        with pytest.raises(ValueError, match="not for writing"):
            guest.window_write(0, b"x")
        with pytest.raises(OSError) as refused:
            guest.client.setupmapping(node, 0, GRANULE, 0, write=True)
        assert refused.value.errno == errno.EROFS


@pytest.mark.parametrize("way", ["socket", "device", "registers"])
def test_a_guest_without_a_window(share: Path, way: Way) -> None:
    with Guest(Passthrough(share, dax="always"), way=way) as guest:
        assert (guest.window_size, guest.mappings) == (0, 0)
        assert not guest.client.lookup(1, "hello").attr.flags & ATTR_DAX
        with pytest.raises(OSError) as refused:
            guest.client.setupmapping(guest.node("hello"), 0, GRANULE, 0)
        assert refused.value.errno == errno.EOPNOTSUPP


def refused(guest: Guest, node: int, offset: int, length: int, at: int) -> str:
    with pytest.raises(OSError) as raised:
        guest.client.setupmapping(node, offset, length, at)
    return errno.errorcode[raised.value.errno or 0]


@every_way
def test_a_guest_that_asks_for_what_cannot_be(share: Path, how: dict[str, Any]) -> None:
    """Ranges beyond all bounds, nodes that are none, floods: each is refused, and what was mapped stays as it was."""
    large, window = 1 << 63, 64 << 20
    with Guest(Passthrough(share, dax="always"), dax=True, **how) as guest:
        node = guest.node("hello")
        guest.client.setupmapping(node, 0, GRANULE, 0)
        for offset, length, at in [
            (0, 0, 0),
            (0, 1, 0),
            (1, PAGE, 0),
            (0, PAGE, 1),
            (0, PAGE, window),
            (0, 2 * window, 0),
            (0, window, PAGE),
            (large, PAGE, 0),
            (0, large, 0),
            (0, PAGE, large),
            ((1 << 64) - PAGE, PAGE, 0),
            (0, (1 << 64) - PAGE, PAGE),
        ]:
            assert refused(guest, node, offset, length, at) == "EINVAL", (offset, length, at)
        assert refused(guest, 1, 0, GRANULE, 0) == "EISDIR"
        assert refused(guest, 0xDEAD, 0, GRANULE, 0) == "ESTALE"
        for gone in [(0, 0), (0, 1), (window, PAGE), (PAGE, (1 << 64) - PAGE)]:
            with pytest.raises(OSError) as raised:
                guest.client.removemapping([gone])
            assert raised.value.errno == errno.EINVAL
        assert guest.mappings == 1
        assert guest.window_read(0, 5) == b"hello"
        # Page by page until there is no room, which is told at once and every time.
        for page in range(1, 32):
            guest.client.setupmapping(node, 0, PAGE, GRANULE + 2 * PAGE * page)
        for page in range(40, 300):
            assert refused(guest, node, 0, PAGE, GRANULE + 2 * PAGE * page) == "ENOSPC"
        # A hole takes a mapping too.
        with pytest.raises(OSError) as raised:
            guest.client.removemapping([(PAGE, PAGE)])
        assert raised.value.errno == errno.ENOSPC
        guest.client.setupmapping(guest.node("sub/deep"), 0, window, 0)
        assert (guest.mappings, guest.window_read(0, 5)) == (1, b"deep\0")
        guest.client.removemapping([(PAGE, PAGE), (5 * PAGE, PAGE)])
        assert guest.mappings == 3
        with pytest.raises(ValueError, match="nothing is mapped"):
            guest.window_read(PAGE, 1)
        guest.client.removemapping([(0, window)] * 256)
        assert guest.mappings == 0


def mapped_files(share: Path) -> list[str]:
    """The files of the share that this process has mapped."""
    lines = Path("/proc/self/maps").read_text().splitlines()
    return [line.split()[-1] for line in lines if line.split()[-1].startswith(str(share))]


@contextmanager
def with_window(share: Path, **options: Any) -> Iterator[Device]:
    with Device(Passthrough(share, dax="always"), "test", GuestMemory(), dax_window="8M", **options) as device:
        yield device


def test_a_device_offers_its_window_as_shared_memory(share: Path) -> None:
    assert Device(Passthrough(share), "test", GuestMemory()).shared_memory == []
    with with_window(share) as device:
        (window,) = device.shared_memory
        assert (window.id, window.size, window.host_address % GRANULE, window.guest_address) == (0, 8 << 20, 0, None)
        device.memory.add_buffer(0x40_0000, mmap.mmap(-1, 0x10000))
        device.place_window(1 << 32)
        assert device.shared_memory[0].guest_address == 1 << 32
        for taken in (0, 0x20_0000, 0x40_0000, (1 << 64) - GRANULE):
            with pytest.raises(ValueError, match="overlaps"):
                device.place_window(taken)
        with pytest.raises(ValueError, match="multiple of 2 MiB"):
            device.place_window(1 << 20)
        assert device.shared_memory[0].guest_address == 1 << 32
        device.place_window(None)
        assert [window.guest_address for window in device.shared_memory] == [None]
    wrong: int | str
    for wrong, hint in (("3M", "take 4M"), ("64G", "take 32G"), (1, "take 2M")):
        with pytest.raises(ConfigError) as raised:
            Device(Passthrough(share), "test", GuestMemory(), dax_window=wrong)
        assert hint in raised.value.__notes__[0]


@pytest.mark.parametrize("end", ["destroy", "reset", "close"])
@pytest.mark.parametrize("way", ["device", "registers"])
def test_whatever_ends_a_session_takes_its_mappings_away(share: Path, end: str, way: Way) -> None:
    # What is left of the guest waits for answers that no longer come.
    guest = Guest(Passthrough(share, dax="always"), dax=True, way=way, timeout=0.5)
    device = guest.device
    assert device is not None
    (window,) = device.shared_memory
    guest.client.setupmapping(guest.node("hello"), 0, GRANULE, 0, write=True)
    assert device.stats().mappings == 1
    assert mapped_files(share) == [str(share / "hello")]
    # The VMM sees what its guest sees.
    assert ctypes.string_at(window.host_address, 5) == b"hello"
    match end:
        case "destroy":
            guest.unmount()
        case "reset":
            device.reset()
        case "close":
            device.close()
    assert device.stats().mappings == 0
    assert mapped_files(share) == []
    assert not any(
        os.path.realpath(f"/proc/self/fd/{fd}") == str(share / "hello") for fd in os.listdir("/proc/self/fd")
    )
    # The addresses stay reserved: nothing else is ever mapped there.
    start, size = window.host_address, window.size
    maps = Path("/proc/self/maps").read_text().splitlines()
    spans = [[int(end, 16) for end in line.split()[0].split("-")] for line in maps]
    assert sum(max(0, min(to, start + size) - max(at, start)) for at, to in spans) == size
    device.close()


def test_a_window_outlives_a_pause(share: Path) -> None:
    with Guest(Passthrough(share, dax="always"), dax=True, way="device") as guest:
        assert guest.device is not None
        guest.client.setupmapping(guest.node("hello"), 0, GRANULE, 0, write=True)
        guest.device.pause()
        guest.window_write(0, b"HELLO")
        guest.device.resume()
        assert guest.read_file("hello")[:5] == b"HELLO"
        assert guest.mappings == 1


def test_an_access_that_failed_is_tried_again_where_that_helps(share: Path) -> None:
    (share / "file").write_bytes(b"y" * 20_000)
    with Guest(Passthrough(share, dax="always"), dax=True, way="device") as guest:
        device = guest.device
        assert device is not None
        (window,) = device.shared_memory
        place = window.guest_address
        assert place is not None
        guest.client.setupmapping(guest.node("file"), 0, GRANULE, 0)
        os.truncate(share / "file", 100)
        assert device.handle_efault(place + 16_384 + 5)
        assert device.stats().zeroed == 1
        assert ctypes.string_at(window.host_address + 16_384, 4) == bytes(4)
        # A page that is there, but not for writing; one that nobody mapped; ones outside of the window.
        for elsewhere in (place, place + GRANULE, place - 1, place + window.size, 0, (1 << 64) - 1):
            assert not device.handle_efault(elsewhere)
        assert device.handle_sigbus(window.host_address + 5 * PAGE)
        for outside in (window.host_address - 1, window.host_address + window.size, 0):
            assert not device.handle_sigbus(outside)
        assert device.stats().zeroed == 2
    with Device(Passthrough(share), "test", GuestMemory()) as device:
        device.place_window(1 << 40)
        assert not device.handle_efault(1 << 40)
        assert not device.handle_sigbus(1 << 40)


def test_buffers_in_the_window_are_the_files_that_are_mapped_there(share: Path) -> None:
    """A program that writes to one file from a mapping of another: the buffer of the request lies in the window."""
    content = bytes(range(256)) * 64
    (share / "from").write_bytes(content)
    (share / "to").write_bytes(bytes(len(content)))
    with with_window(share) as device:
        driver = Driver(device)
        device.place_window(1 << 32)
        source, target = driver.lookup("from"), driver.lookup("to")
        to = driver.open(target)
        # Without anything mapped there is no memory there.
        assert driver.write(target, to, (1 << 32) + PAGE, PAGE) == -errno.EFAULT
        driver.map(source, 0)
        driver.map(target, GRANULE)
        assert driver.write(target, to, (1 << 32) + PAGE, PAGE) == 0
        assert (share / "to").read_bytes()[:PAGE] == content[PAGE : 2 * PAGE]
        # And the other way: what is read goes to a mapping.
        read = driver.open(source)
        assert driver.read(source, read, 2 * PAGE, (1 << 32) + GRANULE + PAGE, PAGE) == 0
        assert (share / "to").read_bytes()[PAGE : 2 * PAGE] == content[2 * PAGE : 3 * PAGE]
        # The file has ended before the buffer; the window has ended before it; the guest no longer sees it.
        for at in (4 * PAGE, (8 << 20) - 1):
            assert driver.write(target, to, (1 << 32) + at, PAGE) != 0
        os.truncate(share / "from", 0)
        assert driver.write(target, to, (1 << 32) + PAGE, PAGE) == -errno.EFAULT
        device.place_window(None)
        assert driver.write(target, to, (1 << 32) + PAGE, PAGE) != 0
        assert device.stats().panics == 0
        assert device.stats().zeroed == 0, "the window itself is never touched"


class Driver:
    """A session by hand, whose data may lie anywhere."""

    def __init__(self, device: Device) -> None:
        self.device = device
        device.memory.add_buffer(0x10000, mmap.mmap(-1, 0x10000))
        hiprio, self.ring = Ring(device.memory, 0x10000), Ring(device.memory, 0x14000)
        device.start(VERSION_1, [hiprio.queue(), self.ring.queue(call=self.ring.interrupted.set)])
        flags = (1 << 26, 1 << (33 - 32))  # MAP_ALIGNMENT, HAS_INODE_DAX
        body = struct.pack("<IIIII40x", 7, 46, 128 << 10, flags[0] | 1 << 30, flags[1])
        assert self.ask(request(26, body=body)) == 0

    def ask(self, message: bytes, data: tuple[int, int, int] | None = None) -> int:
        """Puts a request, with a buffer elsewhere (address, size, flags) behind it or its reply, and returns the errno."""
        ring, memory = self.ring, self.device.memory
        before = ring.used()
        ring.interrupted.clear()
        memory.write(ring.at + 0x1000, message)
        descriptors = [
            (ring.at + 0x1000, len(message), 0),
            (ring.at + 0x2000, 16 if data and data[2] else 0x1000, WRITE),
        ]
        if data is not None:
            descriptors.insert(2 if data[2] else 1, data)
        for index, (address, size, flags) in enumerate(descriptors):
            more = NEXT if index < len(descriptors) - 1 else 0
            memory.write(ring.at + 16 * index, struct.pack("<QIHH", address, size, flags | more, index + 1))
        position = memory.load(ring.at + 0x402, 2)
        memory.store(ring.at + 0x404 + 2 * (position % 8), 0, 2)
        memory.store(ring.at + 0x402, position + 1, 2)
        self.device.notify(1)
        deadline = time.monotonic() + 20
        while ring.used() == before:
            assert time.monotonic() < deadline, "no reply"
            ring.interrupted.wait(0.01)
        return int(struct.unpack("<i", memory.read(ring.at + 0x2004, 4))[0])

    def lookup(self, name: str) -> int:
        assert self.ask(request(1, node=1, body=name.encode() + b"\0")) == 0
        return self.device.memory.load(self.ring.at + 0x2010, 8)

    def open(self, node: int) -> int:
        assert self.ask(request(14, node=node, body=struct.pack("<II", os.O_RDWR, 0))) == 0
        return self.device.memory.load(self.ring.at + 0x2010, 8)

    def map(self, node: int, at: int) -> None:
        body = struct.pack("<QQQQQ", (1 << 64) - 1, 0, GRANULE, 3, at)
        assert self.ask(request(48, node=node, body=body)) == 0

    def write(self, node: int, handle: int, address: int, size: int) -> int:
        body = struct.pack("<QQIIQII", handle, 0, size, 0, 0, os.O_RDWR, 0)
        message = bytearray(request(16, node=node, body=body))
        struct.pack_into("<I", message, 0, len(message) + size)
        return self.ask(bytes(message), (address, size, 0))

    def read(self, node: int, handle: int, offset: int, address: int, size: int) -> int:
        body = struct.pack("<QQIIQII", handle, offset, size, 0, 0, os.O_RDWR, 0)
        return self.ask(request(15, node=node, body=body), (address, size, WRITE))
