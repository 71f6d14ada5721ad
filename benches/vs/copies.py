"""What the copy of a READ or WRITE of 1 MiB costs by itself: system calls on a file, in one thread.

python benches/vs/copies.py DIR [--seconds S]

`native` of `virtiofs bench` has one buffer, which stays in the processor's cache. A guest has one for each request in flight,
in pages from all over its memory, and they do not: this measures both, with 1, 8 and 32 buffers. Lines of scattered pages have
the interpreter's way through a list of 256 in them; compare them with one another.
"""

import argparse
import mmap
import os
import random
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

MIB = 1 << 20
PAGE = 4096
FILE = 256 * MIB
BUFFERS = (1, 8, 32)


def buffers(count: int, *, scattered: bool) -> list[list[memoryview]]:
    """So many of 1 MiB each, whole or of pages in any order."""
    memory = mmap.mmap(-1, count * MIB)
    memory.write(b"\x5a" * len(memory))
    size = PAGE if scattered else MIB
    pieces = [memoryview(memory)[at : at + size] for at in range(0, len(memory), size)]
    if scattered:
        random.Random(1).shuffle(pieces)
    each = MIB // size
    return [pieces[at : at + each] for at in range(0, len(pieces), each)]


def cost(
    call: Callable[[int, Sequence[memoryview], int], int], file: int, into: list[list[memoryview]], seconds: float
) -> float:
    """CPU time of one call in µs: the median of three rounds."""
    rounds = []
    for _ in range(3):
        done, before, end = 0, time.thread_time(), time.monotonic() + seconds
        while time.monotonic() < end:
            call(file, into[done % len(into)], done * MIB % FILE)
            done += 1
        rounds.append((time.thread_time() - before) / done * 1e6)
    return statistics.median(rounds)


def main() -> None:
    """Prints a table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("directory", type=Path)
    parser.add_argument("--seconds", type=float, default=0.4)
    parsed = parser.parse_args()
    with tempfile.TemporaryFile(dir=parsed.directory) as opened:
        file = opened.fileno()
        for at in range(0, FILE, MIB):
            os.pwrite(file, random.randbytes(MIB), at)
        print(
            f"| µs of CPU for 1 MiB | {' | '.join(f'{count} buffers' for count in BUFFERS)} |\n|---|{'--:|' * len(BUFFERS)}"
        )
        for name, call in (("preadv", os.preadv), ("pwritev", os.pwritev)):
            for scattered in (False, True):
                costs = [cost(call, file, buffers(count, scattered=scattered), parsed.seconds) for count in BUFFERS]
                where = "scattered pages" if scattered else "whole"
                print(f"| {name}, {where} | {' | '.join(f'{one:.0f}' for one in costs)} |", flush=True)


main()
