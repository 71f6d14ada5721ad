"""What work costs: processor time of the servers on the host, and requests, counted by the guest's kernel."""

from __future__ import annotations

import re
import threading
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from tests.vm.guest import Guest

PAUSE = 3.0
"""Seconds without a sign of life of this process from which on what was measured meanwhile is measured again."""

# Opcodes of include/uapi/linux/fuse.h, and messages of include/net/9p/9p.h.
_FUSE = """
1 LOOKUP 2 FORGET 3 GETATTR 4 SETATTR 5 READLINK 6 SYMLINK 8 MKNOD 9 MKDIR 10 UNLINK 11 RMDIR 12 RENAME 13 LINK 14 OPEN 15 READ
16 WRITE 17 STATFS 18 RELEASE 20 FSYNC 21 SETXATTR 22 GETXATTR 23 LISTXATTR 24 REMOVEXATTR 25 FLUSH 26 INIT 27 OPENDIR
28 READDIR 29 RELEASEDIR 30 FSYNCDIR 31 GETLK 32 SETLK 33 SETLKW 34 ACCESS 35 CREATE 36 INTERRUPT 38 DESTROY 39 IOCTL 40 POLL
42 BATCH_FORGET 43 FALLOCATE 44 READDIRPLUS 45 RENAME2 46 LSEEK 47 COPY_FILE_RANGE 48 SETUPMAPPING 49 REMOVEMAPPING 50 SYNCFS
51 TMPFILE 52 STATX
"""
_NINEP = """
8 statfs 12 lopen 14 lcreate 16 symlink 18 mknod 20 rename 22 readlink 24 getattr 26 setattr 30 xattrwalk 32 xattrcreate
40 readdir 50 fsync 52 lock 54 getlock 70 link 72 mkdir 74 renameat 76 unlinkat 100 version 104 attach 108 flush 110 walk
116 read 118 write 120 clunk 122 remove
"""


def _names(table: str) -> dict[str, str]:
    words = iter(table.split())
    return dict(zip(words, words, strict=True))


FUSE, NINEP = _names(_FUSE), _names(_NINEP)
# Tracepoints that exist once per request, with what tells its kind. FORGET passes none.
POINTS = {"fuse/fuse_request_send": "connection,opcode", "9p/9p_client_req": "type"}


@dataclass(frozen=True)
class Cost:
    """Seconds of processor: of a daemon, and of QEMU's threads that run no guest code."""

    daemon: float
    qemu: float

    def __sub__(self, other: Cost) -> Cost:
        return Cost(self.daemon - other.daemon, self.qemu - other.qemu)


def cost(qemu: int, daemon: int | None) -> Cost:
    """What the processes have used so far. ``daemon`` is None for 9p, which QEMU serves itself."""
    return Cost(_spent(daemon) if daemon is not None else 0.0, _spent(qemu) - _in_guest(qemu))


def _spent(pid: int) -> float:
    # clock_getcpuclockid(3) of a process: all of its threads, those that ended too.
    return time.clock_gettime((~pid << 3) | 2)


def _in_guest(qemu: int) -> float:
    spent = 0
    for thread in Path(f"/proc/{qemu}/task").iterdir():
        if (thread / "comm").read_text().startswith("CPU "):
            spent += int((thread / "schedstat").read_text().split()[0])
    return spent / 1e9


class Requests:
    """Counts the requests of a guest by kind, with histograms at its kernel's tracepoints."""

    def __init__(self, guest: Guest) -> None:
        self._guest = guest
        guest.check("mountpoint -q /sys/kernel/tracing || mount -t tracefs nodev /sys/kernel/tracing")

    def start(self) -> str:
        """The guest's commands that forget what was counted."""
        lines = []
        for point, keys in POINTS.items():
            trigger = f"/sys/kernel/tracing/events/{point}/trigger"
            lines += [
                f"echo '!hist:keys={keys}' > {trigger} 2>/dev/null || true",
                f"echo 'hist:keys={keys}' > {trigger}",
            ]
        return "\n".join(lines)

    def read(self, mount: str) -> dict[str, int]:
        """Requests by kind, most frequent first, that went to ``mount`` since the start; nothing else may use 9p."""
        files = " ".join(f"/sys/kernel/tracing/events/{point}/hist" for point in POINTS)
        device, *lines = self._guest.check(f"mountpoint -d {mount}\ncat {files}").splitlines()
        counts: Counter[str] = Counter()
        for line in lines:
            found = re.match(r"\{ (.*) \} hitcount: +(\d+)", line)
            if found is None:
                continue
            keys: dict[str, str] = dict(re.findall(r"(\w+): +(\d+)", found[1]))
            if "opcode" in keys and keys["connection"] == device.partition(":")[2]:
                counts[FUSE.get(keys["opcode"], keys["opcode"])] += int(found[2])
            elif "type" in keys:
                counts[NINEP.get(keys["type"], keys["type"])] += int(found[2])
        return dict(counts.most_common())


class Pauses:
    """Watches whether this process was stopped meanwhile, and all that it runs: by SIGSTOP, with the machine, by the freezer.

    A guest's clock goes on then. ``longest`` is the longest time without a sign of life in seconds.
    """

    def __init__(self) -> None:
        self.longest = 0.0
        self._end = threading.Event()
        self._watch = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> Self:
        self._watch.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._end.set()
        self._watch.join()

    def _run(self) -> None:
        last = time.monotonic()
        ended = False
        while not ended:
            ended = self._end.wait(0.2)
            now = time.monotonic()
            self.longest = max(self.longest, now - last)
            last = now
