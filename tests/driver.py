"""The smallest driver: one queue in guest memory, one request at a time."""

import struct
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from virtiofs import Device, GuestMemory, MmioTransport, Queue

VERSION_1 = 1 << 32
ENTRIES = 8
NEXT, WRITE = 1, 2
INIT, LOOKUP, GETATTR, OPEN, READ, SETUPMAPPING = 26, 1, 3, 14, 15, 48
START, SIZE = 0x10000, 0x10000
"""Where the memory of a machine with one request queue lies."""
PATIENCE = 20


def request(opcode: int, node: int = 0, body: bytes = b"", unique: int = 2) -> bytes:
    """A FUSE request."""
    return struct.pack("<IIQQIIIHH", 40 + len(body), opcode, unique, node, 0, 0, 0, 0, 0) + body


def init(flags: int = 0) -> bytes:
    """The request that begins a session."""
    return request(INIT, body=struct.pack("<IIIII40x", 7, 46, 128 << 10, flags & 0xFFFFFFFF, flags >> 32))


def reading(handle: int, offset: int, size: int) -> bytes:
    """The arguments of READ."""
    return struct.pack("<QQIIQII", handle, offset, size, 0, 0, 0, 0)


@dataclass
class Ring:
    """A queue in four pages of guest memory from `at` on: rings, request, reply."""

    memory: GuestMemory
    at: int
    interrupted: threading.Event = field(default_factory=threading.Event)

    def queue(self, **more: Any) -> Queue:
        return Queue(
            **{"size": ENTRIES, "desc": self.at, "avail": self.at + 0x400, "used": self.at + 0x800} | more,
        )

    def put(self, request: bytes, room: int = 0x1000) -> None:
        """Makes a request available."""
        self.memory.write(self.at + 0x1000, request)
        self.memory.write(self.at, struct.pack("<QIHH", self.at + 0x1000, len(request), NEXT, 1))
        self.memory.write(self.at + 16, struct.pack("<QIHH", self.at + 0x2000, room, WRITE, 0))
        position = self.memory.load(self.at + 0x402, 2)
        self.memory.store(self.at + 0x404 + 2 * (position % ENTRIES), 0, 2)
        self.memory.store(self.at + 0x402, (position + 1) % 65536, 2)

    def used(self) -> int:
        """How many requests were completed."""
        return self.memory.load(self.at + 0x802, 2)

    def reply(self) -> bytes:
        """The reply to the request that was completed last."""
        entry = self.at + 0x804 + 8 * ((self.used() - 1) % ENTRIES)
        return self.memory.read(self.at + 0x2000, self.memory.load(entry + 4, 4))

    def wait(self, before: int) -> None:
        """Waits until more than `before` requests were completed."""
        deadline = time.monotonic() + PATIENCE
        while self.used() == before:
            assert time.monotonic() < deadline, "no reply"
            time.sleep(0.0005)

    def error(self) -> int:
        """The errno of that reply, negative, or 0."""
        return int(struct.unpack_from("<i", self.reply(), 4)[0])


def ask(device: Device, ring: Ring, request: bytes) -> bytes:
    """Puts a request, notifies, and waits for its reply."""
    before = ring.used()
    ring.interrupted.clear()
    ring.put(request)
    device.notify(1)
    ring.wait(before)
    return ring.reply()


def accesses(registers: MmioTransport) -> tuple[Callable[[int], int], Callable[..., None]]:
    """How registers of 32 bits are read, and written one value after the other."""

    def get(offset: int) -> int:
        return int.from_bytes(registers.read(offset, 4), "little")

    def put(offset: int, *values: int) -> None:
        for value in values:
            registers.write(offset, value.to_bytes(4, "little"))

    return get, put


def start_by_registers(registers: MmioTransport, *rings: Ring) -> None:
    """Starts a device by its registers, with VIRTIO_F_VERSION_1 alone."""
    get, put = accesses(registers)
    put(0x070, 0, 1, 3)
    put(0x024, 1)
    put(0x020, 1)
    put(0x070, 11)
    assert get(0x070) == 11
    for index, ring in enumerate(rings):
        put(0x030, index)
        put(0x038, ENTRIES)
        for offset, address in ((0x080, ring.at), (0x090, ring.at + 0x400), (0x0A0, ring.at + 0x800)):
            put(offset, address)
            put(offset + 4, 0)
        put(0x044, 1)
    put(0x070, 15)
