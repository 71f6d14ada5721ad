"""A device inside this process: memory, one request queue, and a guest's first request, put into the ring by hand.

A VMM does the same with the memory of its guest and the addresses that the guest's driver has chosen; with `MmioTransport` even
those come by themselves. Run as: python examples/embed.py [DIRECTORY]
"""

import os
import struct
import sys
import threading

from virtiofs import Device, GuestMemory, Passthrough, Queue

RAM, SIZE, ENTRIES = 0x4000_0000, 1 << 20, 8
VERSION_1 = 1 << 32
NEXT, WRITE = 1, 2
INIT = 26


def queue(at: int, interrupted: threading.Event) -> Queue:
    """Lays a queue out in one page: descriptors, then the available ring, then the used ring."""
    return Queue(size=ENTRIES, desc=at, avail=at + 0x400, used=at + 0x800, call=interrupted.set)


def ask(memory: GuestMemory, device: Device, index: int, ring: Queue, request: bytes, room: int) -> None:
    """Puts a request and room for its reply into the ring, as a driver does, and notifies the device."""
    at = RAM + 0x8000
    memory.write(at, request)
    memory.write(ring.desc, struct.pack("<QIHH", at, len(request), NEXT, 1))
    memory.write(ring.desc + 16, struct.pack("<QIHH", at + 0x1000, room, WRITE, 0))
    position = memory.load(ring.avail + 2, 2)
    memory.store(ring.avail + 4 + 2 * (position % ENTRIES), 0, 2)
    memory.store(ring.avail + 2, position + 1, 2)
    device.notify(index)


def main(directory: str) -> None:
    """Starts the device and begins a FUSE session."""
    ram = os.memfd_create("ram")
    os.truncate(ram, SIZE)
    memory = GuestMemory()
    memory.add_fd(RAM, ram, SIZE)

    interrupted = threading.Event()
    hiprio, requests = queue(RAM, interrupted), queue(RAM + 0x1000, interrupted)
    with Device(Passthrough(directory), "share", memory) as device:
        tag = device.read_config(0, 36).rstrip(b"\0").decode()
        print(f"device {device.device_id} with tag {tag} offers features {device.features:#x}")

        device.start(VERSION_1, [hiprio, requests])
        init = struct.pack("<IIII44x", 7, 46, 128 << 10, 0)
        header = struct.pack("<IIQQIIIHH", 40 + len(init), INIT, 2, 0, 0, 0, 0, 0, 0)
        ask(memory, device, 1, requests, header + init, 16 + 64)
        if not interrupted.wait(10):
            sys.exit("the device does not answer")

        length, error, unique, major, minor = struct.unpack("<IiQII", memory.read(RAM + 0x9000, 24))
        print(f"request {unique} was answered with error {error} and {length} bytes: FUSE {major}.{minor}")

        device.pause()
        print(f"the device is {device.state} and goes on at {[queue.next for queue in device.queues]}")
        device.resume()
    print(f"the device is {device.state}")


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else ".")
