"""What is promised of two guests on one directory (docs/coherence.md), and how far one is behind the other."""

from __future__ import annotations

import contextlib
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from .daemon import Daemon
from .guest import Share
from .uml import Uml


@dataclass(frozen=True)
class Promise:
    """What one guest does, and how another sees it.

    Args:
        before: Makes what is there at first.
        change: What the writer does, in the directory of the promise.
        look: What the reader does, first to know what was there, then to see what is there now.
        old: What the look prints at first; None if the reader does not look before the change.
        new: What it prints once the change is seen.
    """

    before: str
    change: str
    look: str
    old: str | None
    new: str


MAPPED = (
    "python3 -c \"import mmap; f = open('f', 'rb'); print(mmap.mmap(f.fileno(), 0, prot=mmap.PROT_READ)[:3].decode())\""
)

STORED = "python3 -c \"import mmap; f = open('f', 'r+b'); m = mmap.mmap(f.fileno(), 0); m[:3] = b'new'; m.flush(); m.close()\""
"""Through a shared mapping; flush is msync(2)."""


def held(script: str) -> str:
    """What a guest is to do for a Python script to run and keep open what it opened, until `LET_GO`."""
    return f"""rm -f /run/held; python3 -c "
import os, time
{script}
open('/run/held', 'w').close()
time.sleep(600)" & echo $! > /run/holder; while ! [ -e /run/held ]; do sleep 0.01; done"""


LET_GO = "if [ -e /run/holder ]; then kill $(cat /run/holder); rm /run/holder; fi"
"""A guest that holds a file open takes long to shut down."""

SYNCED = held("fd = os.open('f', os.O_WRONLY); os.pwrite(fd, b'new', 0); os.fsync(fd)")

PROMISES = {
    "content after close": Promise("echo old > f", "echo new > f", "cat f", "old", "new"),
    "content after fsync": Promise("echo old > f", SYNCED, "cat f", "old", "new"),
    "content that grew": Promise("echo old > f", "echo more >> f", "cat f", "old", "old\nmore"),
    "size and time": Promise(
        "echo old > f; touch -d @1 f",
        "echo more >> f; touch -d @1000000000 f",
        "stat -c '%s %Y' f",
        "4 1",
        "9 1000000000",
    ),
    "a name never looked up": Promise("true", "echo new > f", "cat f", None, "new"),
    "a name looked up in vain": Promise("true", "echo new > f", "cat f 2>/dev/null || echo none", "none", "new"),
    "a renamed name": Promise(
        "echo old > f; echo new > g", "mv g f", "cat f; test -e g && echo there || echo gone", "old\nthere", "new\ngone"
    ),
    "a removed name": Promise("echo old > f", "rm f", "cat f 2>/dev/null || echo gone", "old", "gone"),
    "a listing": Promise("touch f", "touch g; rm f", "ls", "f", "g"),
    "a new mapping": Promise("echo old > f", "echo new > f", MAPPED, "old", "new"),
    "content of a mapping after msync": Promise("echo old > f", STORED, "cat f", "old", "new"),
}
MODES = ["none", "auto", "adaptive", "metadata", "always"]
QUIET = 5.0
"""Seconds for which nothing changes in `adaptive` before the reader looks: what has changed just now is trusted for none."""


def promised(mode: str, name: str) -> str:
    """What the table says."""
    for line in (Path(__file__).parents[2] / "docs" / "coherence.md").read_text().splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if cells[0] == name:
            return cells[1 + MODES.index(mode)]
    raise KeyError(name)


@dataclass(frozen=True)
class Pair:
    """Two guests on one directory."""

    mode: str
    directory: Path
    writer: Uml
    reader: Uml


@contextlib.contextmanager
def pair(mode: str, directory: Path, *, writer: Sequence[str] = (), reader: Sequence[str] = ()) -> Iterator[Pair]:
    """Two guests, each with a daemon of its own, which has these options beside the mode."""
    with (
        Daemon(directory, "one", cache=mode, options=writer) as one,
        Daemon(directory, "two", cache=mode, options=reader) as two,
        Uml([Share(one.socket, "one")]) as writing,
        Uml([Share(two.socket, "two")]) as reading,
    ):
        yield Pair(mode, directory, writing, reading)


@dataclass(frozen=True)
class Behind:
    """After how many looks the reader saw the change, and after how many seconds (0 at the first look)."""

    looks: int
    seconds: float


def behind(pair: Pair, name: str, directory: str, stale: Callable[[str, int, float], bool]) -> Behind | None:
    """Makes a change in a new `directory`, and looks until it is seen.

    Args:
        stale: Called for each look that does not see the change, with what it saw, its number and the seconds since. False
            gives up.

    Returns:
        None if `stale` gave up.
    """
    promise = PROMISES[name]
    inside = f"cd /mnt/share/{directory}"
    host = pair.directory / directory
    host.mkdir()
    pair.writer.check(f"{inside}; {promise.before}")
    look = f"{inside}; {promise.look}"
    if promise.old is not None:
        if pair.mode == "adaptive":
            time.sleep(QUIET)
        # Twice: the kernel asks once more for the attributes of what it has read for the first time.
        assert [pair.reader.check(look).strip() for _ in range(2)] == [promise.old] * 2
    pair.writer.check(f"{inside}; {promise.change}")
    began = time.monotonic()

    # The host has it as soon as the writer's call has returned.
    seen = subprocess.run(["bash", "-c", promise.look], cwd=host, capture_output=True, text=True, check=True).stdout
    assert seen.strip() == promise.new

    looks = 1
    try:
        while (seen := pair.reader.check(look).strip()) != promise.new:
            # Parts of a change may be seen one after the other.
            assert set(seen.split()) <= set(f"{promise.old} {promise.new} none gone there".split()), seen
            if not stale(seen, looks, time.monotonic() - began):
                return None
            looks += 1
        return Behind(looks, time.monotonic() - began if looks > 1 else 0.0)
    finally:
        pair.writer.check(LET_GO)
