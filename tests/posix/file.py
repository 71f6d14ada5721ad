"""Short words for what nearly every check does with files."""

from __future__ import annotations

import os
import time


def write(path: str | bytes, data: bytes = b"", permissions: int = 0o644) -> None:
    """Make a file, or replace the content of one."""
    file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, permissions)
    try:
        write_all(file, data)
    finally:
        os.close(file)


def write_all(file: int, data: bytes) -> None:
    """Write all of it to a descriptor."""
    view = memoryview(data)
    while view:
        view = view[os.write(file, view) :]


def read(path: str | bytes) -> bytes:
    """The whole content of a file."""
    with open(path, "rb") as file:
        return file.read()


def opened(path: str, flags: int = os.O_RDWR | os.O_CREAT, permissions: int = 0o644) -> int:
    """A descriptor, open until the check ends unless it is closed."""
    return os.open(path, flags, permissions)


def touch(path: str, permissions: int = 0o644) -> None:
    """Make an empty file with exactly these permissions, whatever the umask."""
    write(path)
    os.chmod(path, permissions)


def folder(path: str, permissions: int = 0o755) -> None:
    """Make a directory with exactly these permissions."""
    os.mkdir(path)
    os.chmod(path, permissions)


def closed(*files: int) -> None:
    """Close descriptors."""
    for file in files:
        os.close(file)


def later() -> None:
    """Return when time stamps made from now on differ from those made before.

    Stamps come from a coarse clock, on a share from the server's or the kernel's; a few ticks make any of them move.
    """
    clock = ".clock"
    write(clock)
    start = os.stat(clock).st_mtime_ns
    while True:
        time.sleep(0.005)
        os.utime(clock)
        if os.stat(clock).st_mtime_ns - start >= 20_000_000:
            break
    os.unlink(clock)
