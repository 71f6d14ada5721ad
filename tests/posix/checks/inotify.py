"""inotify(7): who watches a directory is told what processes of the same system do in it."""

import ctypes
import os
import struct
from collections.abc import Callable

from tests.posix.check import each, not_run
from tests.posix.file import write
from tests.posix.system import libc

EVENTS = {
    "create": (0x100, lambda: write("d/new")),
    "delete": (0x200, lambda: os.unlink("d/a")),
    "modify": (0x002, lambda: os.pwrite(os.open("d/a", os.O_WRONLY), b"x", 0)),
    "truncate": (0x002, lambda: os.truncate("d/a", 1)),
    "chmod": (0x004, lambda: os.chmod("d/a", 0o600)),
    "open": (0x020, lambda: os.open("d/a", os.O_RDONLY)),
    "close_after_write": (0x008, lambda: os.close(os.open("d/a", os.O_WRONLY))),
    "close_after_read": (0x010, lambda: os.close(os.open("d/a", os.O_RDONLY))),
    "moved_from": (0x040, lambda: os.rename("d/a", "a")),
    "moved_to": (0x080, lambda: os.rename("b", "d/b")),
    "mkdir": (0x40000100, lambda: os.mkdir("d/e")),
    "read": (0x001, lambda: os.read(os.open("d/a", os.O_RDONLY), 10)),
}


@each(EVENTS)
def watched(mask: int, change: Callable[[], object]) -> None:
    """inotify(7): a change by a process of this system is told to who watches the directory: {case}."""
    os.mkdir("d")
    write("d/a", b"content")
    write("b")
    file = libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
    if file < 0 or libc.inotify_add_watch(file, b"d", ctypes.c_uint(0xFFF)) < 0:
        not_run("no inotify here")
    change()
    data, seen = os.read(file, 1 << 16), []
    while data:
        _, event, _, length = struct.unpack_from("iIII", data)
        seen.append(event)
        data = data[16 + length :]
    assert any(event & mask == mask for event in seen), [hex(event) for event in seen]
