"""How the server grows: with request queues, with devices in one process, with the inodes that a guest knows.

python benches/scaling/run.py [--only queues,devices,inodes] [--rounds N] [--seconds S] [--dir DIR] [--out FILE.json]

Each part compares the server with itself, so what the machine does besides goes into all of its lines alike. The directory is
on /dev/shm unless told otherwise: a million files are made there in seconds.
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from virtiofs import Passthrough, Server, _core

SHM = Path("/dev/shm")
DEVICES = (1, 2, 4, 8, 16, 32, 64)
IN_FLIGHT = 64
"""Requests in flight on all devices together."""
KNOWN = (1_000, 10_000, 100_000, 1_000_000)
EACH = 1_000
"""Files in each directory of those that are known."""
Figures = dict[str, Any]


def serve(directory: Path, sockets: Path, devices: int, queues: int) -> None:
    """So many devices in this process, until stdin ends."""
    servers = [
        Server(Passthrough(directory), socket=sockets / str(number), request_queues=queues).start()
        for number in range(devices)
    ]
    print("ready", flush=True)
    sys.stdin.read()
    for server in servers:
        server.close()


@contextmanager
def serving(directory: Path, *, devices: int = 1, queues: int = 1) -> Iterator[tuple[Path, int]]:
    """A process with so many devices: where their sockets are, and its id."""
    with tempfile.TemporaryDirectory(prefix="virtiofs-scaling-") as sockets:
        argv = [sys.executable, __file__, "--serve", str(directory), sockets, str(devices), str(queues)]
        with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdin is not None
            assert process.stdout is not None
            try:
                if process.stdout.readline() != "ready\n":
                    raise SystemExit("the server did not start")
                yield Path(sockets), process.pid
            finally:
                process.stdin.close()
                process.wait(20)


@contextmanager
def driving(sockets: Path, pid: int, devices: int = 1, *, queues: int = 1) -> Iterator[list[_core.Load]]:
    """A guest for each device."""
    loads = [_core.Load(sockets / str(n), pid=pid, depth=IN_FLIGHT, queues=queues) for n in range(devices)]
    try:
        yield loads
    finally:
        for load in loads:
            load.close()


def together(loads: Sequence[_core.Load], row: str, depth: int, seconds: float) -> Figures:
    """The same work on all devices at once: completed by all, and the CPU time for one operation."""
    with ThreadPoolExecutor(len(loads)) as pool:
        runs = [pool.submit(load.run, row, depth=depth, seconds=seconds, warm=0.3) for load in loads]
        found = [run.result() for run in runs]
    ops = sum(one["ops_per_s"] for one in found)
    # Each has measured the whole process.
    spent = [
        statistics.fmean(one[cpu] * one["ops_per_s"] for one in found) for cpu in ("daemon_cpu_us", "driver_cpu_us")
    ]
    return {
        "row": row,
        "depth": depth,
        "ops_per_s": ops,
        "daemon_cpu_us": spent[0] / ops,
        "driver_cpu_us": spent[1] / ops,
    }


def queues(directory: Path, rounds: int, seconds: float) -> Iterator[Figures]:
    """One and two request queues, each with a thread of the guest's that keeps eight in flight."""
    for row in ("getattr", "readdirplus-warm", "randread4k", "seqread1m"):
        for _ in range(rounds):
            for count in (1, 2):
                with serving(directory, queues=count) as (sockets, pid), driving(sockets, pid, queues=count) as (load,):
                    figures: Figures = {**load.run(row, depth=8, queues=count, seconds=seconds, warm=0.1)}
                    yield {"part": "queues", "of": row, "size": count, **figures}


def devices(directory: Path, rounds: int, seconds: float) -> Iterator[Figures]:
    """The same number of requests in flight, on one of the devices while the others rest, and spread over all."""
    for row in ("lookup-warm", "randread4k"):
        for _ in range(rounds):
            for count in DEVICES:
                with serving(directory, devices=count) as (sockets, pid), driving(sockets, pid, count) as loads:
                    one = together(loads[:1], row, IN_FLIGHT, seconds)
                    yield {"part": "devices", "of": f"{row}, one busy", "size": count, **one}
                    all_of_them = together(loads, row, IN_FLIGHT // count, seconds)
                    yield {"part": "devices", "of": f"{row}, all busy", "size": count, **all_of_them}


def inodes(directory: Path, rounds: int, seconds: float) -> Iterator[Figures]:
    """The cost of a lookup of 1,000 names, by the inodes that the guest knows besides."""
    known = 0
    with serving(directory) as (sockets, pid), driving(sockets, pid) as (load,):
        for size in KNOWN:
            hold(directory / f"known{size}", (size - known) // EACH)
            known += load.hold(f"known{size}", EACH)
            for row in ("lookup-warm", "lookup-hit"):
                for _ in range(rounds):
                    yield {
                        "part": "inodes",
                        "of": row,
                        "size": known,
                        **load.run(row, depth=32, seconds=seconds, warm=0.1),
                    }


def hold(directory: Path, directories: int) -> None:
    """Empty files, EACH of them in each of so many directories."""
    for outer in range(directories):
        inside = directory / f"d{outer:04}"
        inside.mkdir(parents=True)
        for inner in range(EACH):
            os.close(os.open(inside / f"f{inner:05}", os.O_CREAT | os.O_WRONLY))


PARTS = {"queues": queues, "devices": devices, "inodes": inodes}


def table(found: Sequence[Figures]) -> str:
    """Medians, and each beside the first of its kind."""
    lines = ["| | | ops/s | against the first | daemon CPU µs per op | against the first | driver CPU µs per op |"]
    lines.append("|---|--:|--:|--:|--:|--:|--:|")
    keys = list(dict.fromkeys((one["part"], one["of"], one["size"]) for one in found))
    first: dict[tuple[str, str], tuple[float, float]] = {}
    for part, of, size in keys:
        group = [one for one in found if (one["part"], one["of"], one["size"]) == (part, of, size)]
        ops, daemon, driver = (
            statistics.median(one[name] for one in group) for name in ("ops_per_s", "daemon_cpu_us", "driver_cpu_us")
        )
        base = first.setdefault((part, of), (ops, daemon))
        ratios = f"{ops:,.0f} | {ops / base[0]:.2f} | {daemon:.2f} | {daemon / base[1]:.2f} | {driver:.2f}"
        lines.append(f"| {of} | {size:,} {part} | {ratios} |")
    return "\n".join(lines)


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default=",".join(PARTS), metavar="A,…", help=f"of {', '.join(PARTS)}")
    parser.add_argument("--rounds", type=int, default=3, metavar="N", help="times that everything is measured")
    parser.add_argument("--seconds", type=float, default=0.5, metavar="S", help="of each measurement")
    parser.add_argument("--dir", type=Path, metavar="DIR", help="where the files are made and removed")
    parser.add_argument("--out", type=Path, metavar="FILE", help="single measurements as JSON")
    asked = parser.parse_args()
    if unknown := set(asked.only.split(",")) - set(PARTS):
        parser.error(f"no {', '.join(sorted(unknown))}: there are {', '.join(PARTS)}")
    parent = asked.dir or (SHM if SHM.is_dir() else None)
    directory = Path(tempfile.mkdtemp(prefix="virtiofs-scaling-", dir=parent))
    found: list[Figures] = []
    try:
        with serving(directory) as (sockets, pid), driving(sockets, pid) as (load,):
            load.prepare()
        for part in asked.only.split(","):
            for figures in PARTS[part](directory, asked.rounds, asked.seconds):
                found.append(figures)
                if sys.stderr.isatty():
                    print(f"\r{part} {figures['of']} {figures['size']:,}\033[K", end="", file=sys.stderr, flush=True)
    finally:
        shutil.rmtree(directory)
    print(("\r\033[K" if sys.stderr.isatty() else "") + table(found))
    if asked.out:
        asked.out.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    if sys.argv[1:2] == ["--serve"]:
        serve(Path(sys.argv[2]), Path(sys.argv[3]), int(sys.argv[4]), int(sys.argv[5]))
    else:
        main()
