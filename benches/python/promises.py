"""What is promised of file systems in Python, and what comes of it: python benches/python/promises.py [--quick]

Each line is one promise: two things measured in turns, in processes of their own, and the ratio of their medians. Where both
are ours they run at once and take turns of a moment, and the ratio is the median of those of neighbours. pyfuse3 and
mfusepy are compared where they are installed (`pip install mfusepy`, `apt install python3-pyfuse3`) and root may mount.
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from virtiofs import _core
from virtiofs.bench.daemons import Daemon, running
from virtiofs.testing import Guest

HERE = Path(__file__).resolve().parent
ROUNDS = 5
DEPTHS = (1, 8, 32)
MOMENT = 0.1
"""Seconds for which one of two is asked before it is the other's turn."""
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


def side_by_side(
    ours: tuple[str, Path], base: tuple[str, Path], row: str, key: str, depth: int, turns: int
) -> list[float]:
    """The medians of two daemons that run at once and are asked by turns, and that of the ratios of neighbours."""
    with ExitStack() as stack:
        drivers = []
        for kind, directory in (ours, base):
            sock, pid = stack.enter_context(running(serving(kind), directory))
            drivers.append(_core.Load(sock, pid=pid, depth=depth))
            stack.callback(drivers[-1].close)
            drivers[-1].prepare()
        pairs = []
        for turn in range(turns):
            pair = [0.0, 0.0]
            for which in (0, 1) if turn % 2 else (1, 0):
                figures: dict[str, Any] = {**drivers[which].run(row, depth=depth, seconds=MOMENT)}
                pair[which] = figures[key]
            pairs.append(pair)
    first, second = (statistics.median(pair[which] for pair in pairs) for which in (0, 1))
    return [first, second, statistics.median(one / other for one, other in pairs)]


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


Line = tuple[str, str, str]
"""Promise, what was measured, and the ratio."""


@dataclass(frozen=True)
class Bench:
    """Where the files are, on a disk and in memory, and for how long to measure."""

    directory: Path
    memory: Path
    rounds: int
    seconds: float

    @property
    def turns(self) -> int:
        return 4 * self.rounds


def overrides_nothing(bench: Bench) -> Iterator[Line]:
    for depth in DEPTHS:
        ours, base = ("Same", bench.directory), ("Passthrough", bench.directory)
        a, b, ratio = side_by_side(ours, base, "getattr", "ops_per_s", depth, bench.turns)
        promise = f"overrides nothing, {depth} at a time: at least 0.98x of Passthrough"
        yield promise, f"GETATTR {a:.0f}/s, {b:.0f}/s", f"{ratio:.2f}x"


def sleeps(bench: Bench) -> Iterator[Line]:
    a, b = compared(
        lambda: beside(bench.directory, "Sleepy", bench.seconds, disturbed=True),
        lambda: beside(bench.directory, "Sleepy", bench.seconds, disturbed=False),
        bench.rounds,
    )
    yield "native READ beside lookups of 10 ms: p99 at most 1.2x", f"{a:.1f} µs, alone {b:.1f} µs", f"{a / b:.2f}x"


def backings(bench: Bench) -> Iterator[Line]:
    # Daemons of their own for each measurement: the load closes its files with its session, and each is a copy in memory here.
    def read(kind: str) -> float:
        return load(kind, bench.memory, "seqread1m", 1, bench.seconds)["mib_per_s"]

    a, b = compared(lambda: read("Copies"), lambda: read("Passthrough"), 2 * bench.rounds)
    yield "a memfd as backing: at least 0.95x of native", f"READ of 1 MiB {a:.0f}, {b:.0f} MiB/s", f"{a / b:.2f}x"


def one_copy(bench: Bench) -> Iterator[Line]:
    cpu, one = compared(
        lambda: load("Buffers", bench.memory, "seqread1m", 1, bench.seconds)["daemon_cpu_us"],
        copy_of_a_mebibyte,
        bench.rounds,
    )
    yield "READ of 1 MiB from a buffer: one copy", f"{cpu:.0f} µs of CPU, a copy {one:.0f} µs", f"{cpu / one:.2f}x"


def trivial(bench: Bench) -> Iterator[Line]:
    for depth in DEPTHS:
        ours: list[Figures] = []
        peers: dict[str, list[float] | str] = {"pyfuse3": [], "mfusepy": []}
        for _ in range(bench.rounds):
            ours.append(load("Trivial", bench.directory, "getattr", depth, bench.seconds))
            for name, found in peers.items():
                try:
                    if isinstance(found, list):
                        found.append(through_dev_fuse(name, depth, bench.seconds))
                except (OSError, RuntimeError, subprocess.SubprocessError) as error:
                    peers[name] = str(error)
        cpu = statistics.median(each["daemon_cpu_us"] for each in ours)
        rates = [each["ops_per_s"] for each in ours]
        yield f"a trivial getattr, {depth} at a time: at most 8 µs of CPU", told(rates), f"{cpu:.1f} µs"
        for name, found in peers.items():
            promise = f"the same by {name}: at least 5x"
            if isinstance(found, str):
                yield promise, found, "-"
            else:
                yield promise, told(found), f"{statistics.median(rates) / statistics.median(found):.2f}x"


PARTS: dict[str, Callable[[Bench], Iterator[Line]]] = {
    "overrides": overrides_nothing,
    "sleeps": sleeps,
    "backings": backings,
    "copy": one_copy,
    "trivial": trivial,
}


def told(rates: Sequence[float]) -> str:
    """A median, and between what."""
    return f"{statistics.median(rates):.0f}/s ({min(rates):.0f} to {max(rates):.0f})"


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--quick", action="store_true", help="one short round: whether it runs at all")
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--seconds", type=float, default=2.0, help="of one measurement")
    parser.add_argument("--directory", type=Path, help="where the files are; a temporary directory by default")
    parser.add_argument(
        "--processors", type=int, help="use so many: what is left on one is the cost without waking others"
    )
    parser.add_argument("--parts", default=",".join(PARTS), help="which promises: %(default)s")
    given: Any = parser.parse_args(arguments)
    if given.processors:
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[-given.processors :])
    rounds, seconds = (1, 0.2) if given.quick else (given.rounds, given.seconds)
    with (
        tempfile.TemporaryDirectory(dir=given.directory, prefix="virtiofs-") as disk,
        tempfile.TemporaryDirectory(dir="/dev/shm", prefix="virtiofs-") as memory,
    ):
        print("| promise | measured | ratio |\n|---|---|--:|")
        bench = Bench(Path(disk), Path(memory), rounds, seconds)
        for part in given.parts.split(","):
            for promise, measured, ratio in PARTS[part](bench):
                print(f"| {promise} | {measured} | {ratio} |", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
