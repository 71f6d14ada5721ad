"""What is promised of file systems in Python, and what comes of it: python benches/python/promises.py [--quick]

Each line is one promise: two things measured in turns, in processes of their own, and the ratio of their medians. pyfuse3 and
mfusepy are compared where they are installed (`pip install mfusepy`, `apt install python3-pyfuse3`) and root may mount.
"""

import argparse
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from virtiofs import _core
from virtiofs.bench.daemons import Daemon, running
from virtiofs.testing import Guest

HERE = Path(__file__).resolve().parent
ROUNDS = 5
Figures = dict[str, float]


def serving(kind: str) -> Daemon:
    """Our daemon with one of the classes in served.py; "Passthrough" is the one of the package."""
    fs = "" if kind == "Passthrough" else f"--fs benches.python.served:{kind}"
    command = f"env PYTHONPATH={HERE.parent.parent} {sys.executable} -m virtiofs serve {{dir}} {fs} --sandbox none"
    return Daemon(kind, f"{command} --socket {{sock}}", peer=False)


def load(kind: str, directory: Path, row: str, depth: int, seconds: float) -> Figures:
    with running(serving(kind), directory) as (sock, pid):
        driver = _core.Load(sock, pid=pid, depth=depth)
        try:
            driver.prepare()
            return {**driver.run(row, depth=depth, seconds=seconds)}  # type: ignore[dict-item]
        finally:
            driver.close()


def compared(first: Callable[[], float], second: Callable[[], float], rounds: int) -> tuple[float, float]:
    """The medians of two things that are measured in turns."""
    pairs = [(first(), second()) if turn % 2 else (second(), first())[::-1] for turn in range(rounds)]
    return statistics.median(a for a, _ in pairs), statistics.median(b for _, b in pairs)


def beside(directory: Path, kind: str, seconds: float, *, disturbed: bool) -> float:
    """p99 of READs of 4 KiB, in µs, while somebody else looks names up without a pause."""
    with running(serving(kind), directory) as (sock, _), Guest(sock, request_queues=2) as guest:
        guest.write_file("file", bytes(4096))
        over = threading.Event()

        def look_up() -> None:
            while not over.is_set():
                with suppress(FileNotFoundError):
                    guest.client.lookup(1, "nothing")

        other = threading.Thread(target=look_up)
        times = []
        with guest.open("file") as file:
            file.read_at(0, 4096)
            if disturbed:
                other.start()
            end = time.perf_counter() + seconds
            while (begin := time.perf_counter()) < end:
                file.read_at(0, 4096)
                times.append(time.perf_counter() - begin)
        over.set()
        if disturbed:
            other.join()
    return statistics.quantiles(times, n=100)[98] * 1e6


def copy_of_a_mebibyte() -> float:
    """What one copy of 1 MiB costs, in µs."""
    source, target = bytes(1 << 20), bytearray(1 << 20)
    view = memoryview(target)
    begin = time.process_time()
    for _ in range(500):
        view[:] = source
    return (time.process_time() - begin) / 500 * 1e6


@contextmanager
def mounted_peer(name: str) -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="virtiofs-peer-") as there:
        python = sys.executable if name == "mfusepy" else "/usr/bin/python3"
        process = subprocess.Popen([python, str(HERE / "peers.py"), name, there])
        try:
            deadline = time.monotonic() + 20
            while not (Path(there) / "file").exists():
                if process.poll() is not None or time.monotonic() > deadline:
                    raise RuntimeError(f"{name} cannot be run here")
                time.sleep(0.02)
            yield Path(there)
        finally:
            subprocess.run(["umount", "-l", there], check=False, capture_output=True)
            process.terminate()
            process.wait(10)


def through_dev_fuse(name: str, threads: int, seconds: float) -> float:
    """GETATTRs in a second, asked by so many threads of another process."""
    script = f"""
import os, sys, threading, time
counts, end = [0] * {threads}, time.monotonic() + {seconds}
def ask(index):
    fd = os.open(sys.argv[1], os.O_RDONLY)
    while time.monotonic() < end:
        for _ in range(50):
            os.fstat(fd)
        counts[index] += 50
all = [threading.Thread(target=ask, args=[index]) for index in range({threads})]
[one.start() for one in all]; [one.join() for one in all]
print(sum(counts) / {seconds})
"""
    with mounted_peer(name) as there:
        done = subprocess.run([sys.executable, "-c", script, str(there / "file")], capture_output=True, check=True)
    return float(done.stdout)


def lines(directory: Path, memory: Path, rounds: int, seconds: float) -> Iterator[tuple[str, str, str]]:
    """Promise, what was measured, and the ratio."""

    def row(name: str, ours: tuple[str, Path], base: tuple[str, Path], key: str, depth: int) -> tuple[float, float]:
        def run(kind: str, where: Path) -> float:
            return load(kind, where, name, depth, seconds)[key]

        return compared(lambda: run(*ours), lambda: run(*base), rounds)

    a, b = row("getattr", ("Same", directory), ("Passthrough", directory), "ops_per_s", 8)
    yield "overrides nothing: at least 0.98x of Passthrough", f"GETATTR {a:.0f}/s, {b:.0f}/s", f"{a / b:.2f}x"
    a, b = compared(
        lambda: beside(directory, "Sleepy", seconds, disturbed=True),
        lambda: beside(directory, "Sleepy", seconds, disturbed=False),
        rounds,
    )
    yield "native READ beside lookups of 10 ms: p99 at most 1.2x", f"{a:.1f} µs, alone {b:.1f} µs", f"{a / b:.2f}x"
    a, b = row("seqread1m", ("Copies", memory), ("Passthrough", memory), "mib_per_s", 1)
    yield "a memfd as backing: at least 0.95x of native", f"READ of 1 MiB {a:.0f}, {b:.0f} MiB/s", f"{a / b:.2f}x"
    cpu, one = compared(
        lambda: load("Buffers", memory, "seqread1m", 1, seconds)["daemon_cpu_us"], copy_of_a_mebibyte, rounds
    )
    yield "READ of 1 MiB from a buffer: one copy", f"{cpu:.0f} µs of CPU, a copy {one:.0f} µs", f"{cpu / one:.2f}x"
    for depth in (1, 8):
        found = [load("Trivial", directory, "getattr", depth, seconds) for _ in range(rounds)]
        cpu = statistics.median(each["daemon_cpu_us"] for each in found)
        ours = statistics.median(each["ops_per_s"] for each in found)
        yield f"a trivial getattr, {depth} at a time: at most 8 µs of CPU", f"{ours:.0f}/s", f"{cpu:.1f} µs"
        for name in ("pyfuse3", "mfusepy"):
            try:
                theirs = statistics.median(through_dev_fuse(name, depth, seconds) for _ in range(rounds))
                yield f"the same by {name}: at least 5x", f"{ours:.0f}/s, {theirs:.0f}/s", f"{ours / theirs:.2f}x"
            except (OSError, RuntimeError, subprocess.SubprocessError) as error:
                yield f"the same by {name}: at least 5x", str(error), "-"


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--quick", action="store_true", help="one short round: whether it runs at all")
    parser.add_argument("--directory", type=Path, help="where the files are; a temporary directory by default")
    given: Any = parser.parse_args(arguments)
    rounds, seconds = (1, 0.2) if given.quick else (ROUNDS, 2.0)
    with (
        tempfile.TemporaryDirectory(dir=given.directory, prefix="virtiofs-") as disk,
        tempfile.TemporaryDirectory(dir="/dev/shm", prefix="virtiofs-") as memory,
    ):
        print("| promise | measured | ratio |\n|---|---|--:|")
        for promise, measured, ratio in lines(Path(disk), Path(memory), rounds, seconds):
            print(f"| {promise} | {measured} | {ratio} |", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
