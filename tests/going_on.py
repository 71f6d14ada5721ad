"""The other process that goes on with a saved device.

`python -m tests.going_on MEMORY_FD DIRECTORY NODE HANDLE [python] < SAVED`.
"""

import struct
import sys
from pathlib import Path

from tests.driver import GETATTR, READ, SIZE, START, Ring, ask, reading, request
from tests.keeping import Keeping
from virtiofs import Device, FileSystem, GuestMemory, Passthrough


def main() -> None:
    """Resumes the device, and prints the reply that was due, and those to two requests more."""
    fd, directory, node, handle = int(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4])
    fs: FileSystem = Keeping(directory) if sys.argv[5:] == ["python"] else Passthrough(directory)
    memory = GuestMemory()
    memory.add_fd(START, fd, SIZE)
    ring = Ring(memory, START + 0x4000)
    before = ring.used()
    with Device.restore(sys.stdin.buffer.read(), fs, memory, calls=[None, ring.interrupted.set]) as device:
        device.resume()
        ring.wait(before)
        sys.stdout.buffer.write(ring.reply()[16:] + b"\n")
        sys.stdout.buffer.write(ask(device, ring, request(READ, node, reading(handle, 6, 100)))[16:] + b"\n")
        (size,) = struct.unpack_from("<Q", ask(device, ring, request(GETATTR, node, bytes(16))), 40)
        sys.stdout.buffer.write(f"{size}\n".encode())


if __name__ == "__main__":
    main()
