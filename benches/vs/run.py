"""Runs the same load on several vhost-user-fs daemons, in turns, over the same files, and compares them.

python benches/vs/run.py [--rows getattr,churn4k] [--depth 1,8,32] [--rounds 3] [--ours CMD] [--out FILE]

The load comes from the embedded guest (virtiofs-bench, built by cargo if not given). Medians over the rounds; the table
goes to stdout and, with --out FILE, to FILE.md, all measurements to FILE.json.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))

import daemons as found
import table

QUICK_ROWS = "getattr,lookup-hit,churn4k,seqread1m"
INODE_DIRECTORIES = 100


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", help="kinds of work, with commas between (default: all)")
    parser.add_argument("--depth", default="1,8,32", help="operations in flight (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=3, help="times that everything is run (default: %(default)s)")
    parser.add_argument(
        "--seconds", type=float, default=1.0, help="per row, depth, daemon and round (default: %(default)s)"
    )
    parser.add_argument("--queues", type=int, default=1, help="request queues; peers have one (default: %(default)s)")
    parser.add_argument("--polling", action="store_true", help="a driver that polls instead of waiting for calls")
    parser.add_argument(
        "--ours", default="virtiofs serve {dir} --socket {sock}", help="our command (default: %(default)s)"
    )
    parser.add_argument("--rust", help="path of Rust virtiofsd")
    parser.add_argument("--c", help="path of the old C virtiofsd")
    parser.add_argument("--only", help="daemons to run, with commas between: ours, rust, rust-bare, c")
    parser.add_argument("--data", type=Path, help="where to put the files (default: a new temporary folder)")
    parser.add_argument(
        "--inodes", type=int, default=100_000, help="inodes of the memory row, 0 for none (default: %(default)s)"
    )
    parser.add_argument("--bench", help="path of virtiofs-bench (default: built by cargo)")
    parser.add_argument("--out", type=Path, help="write FILE.json and FILE.md")
    parser.add_argument("--quick", action="store_true", help="a smoke test: few rows, one short round, little memory")
    options = parser.parse_args()
    if options.quick:
        options.rows = options.rows or QUICK_ROWS
        options.depth, options.rounds, options.seconds, options.inodes = "8", 1, 0.2, min(options.inodes, 2_000)
    return options


def built(path: str | None) -> str:
    """Path of virtiofs-bench, built first if it was not given."""
    if path:
        return path
    build = ["cargo", "build", "--release", "-p", "virtiofs-guest", "--bin", "virtiofs-bench"]
    subprocess.run(build, cwd=found.ROOT, check=True, stdout=sys.stderr)
    target = os.environ.get("CARGO_TARGET_DIR", str(found.ROOT / "target"))
    return str(Path(target) / "release" / "virtiofs-bench")


def bench(program: str, daemon: found.Daemon, directory: Path, extra: list[str]) -> list[dict[str, Any]]:
    """One run of virtiofs-bench against a fresh daemon: its lines, marked with the daemon's name."""
    with found.running(daemon, directory) as (sock, pid):
        argv = [program, "--socket", str(sock), "--pid", str(pid), *extra]
        if daemon.peer:
            argv.append("--lenient")
        done = subprocess.run(argv, capture_output=True, text=True, timeout=600, check=False)
    lines = [json.loads(line) | {"daemon": daemon.name} for line in done.stdout.splitlines()]
    if done.returncode != 0:
        print(f"\n{daemon.name}: {done.stderr.strip()}", file=sys.stderr)
    return lines


def make_inodes(directory: Path, count: int) -> int:
    """Empty files, the same number in each of some directories: how many in each."""
    each = max(count // INODE_DIRECTORIES, 1)
    for outer in range(INODE_DIRECTORIES):
        inside = directory / "inodes" / f"d{outer:03}"
        inside.mkdir(parents=True, exist_ok=True)
        for inner in range(each):
            (inside / f"f{inner:05}").touch()
    return each


def version(daemon: found.Daemon) -> str:
    """The first line that a daemon says of its version."""
    try:
        program = daemon.argv(Path(), Path())[0]
        done = subprocess.run([program, "--version"], capture_output=True, text=True, timeout=20, check=False)
    except OSError as error:
        return str(error)
    return next((line for line in (done.stdout + done.stderr).splitlines() if line), "?")


def machine(directory: Path) -> dict[str, Any]:
    """What the figures depend on."""
    cpu = [
        line.split(":", 1)[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line
    ]
    filesystem = subprocess.run(["stat", "-f", "-c", "%T", directory], capture_output=True, text=True, check=False)
    return {
        "kernel": platform.release(),
        "cpu": cpu[0] if cpu else platform.processor(),
        "cpus": os.cpu_count(),
        "filesystem": filesystem.stdout.strip(),
        "load_average": os.getloadavg()[0],
        "time": time.strftime("%Y-%m-%d %H:%M:%S%z"),
    }


def say(what: str) -> None:
    """What is going on, for who watches."""
    if sys.stderr.isatty():
        print(f"\r{what:60}", end="" if what else "\n", file=sys.stderr, flush=True)


def measure(
    options: argparse.Namespace, program: str, chosen: list[found.Daemon], directory: Path
) -> list[dict[str, Any]]:
    """All measurements: rows outermost, daemons innermost and turned by one each round: a slow minute hits all."""
    bench(program, chosen[0], directory, ["--prepare"])
    listed = subprocess.run([program, "--list"], capture_output=True, text=True, check=True).stdout.split()
    rows = options.rows.split(",") if options.rows else listed
    measurements = []
    for row in rows:
        for turn in range(options.rounds):
            for place in range(len(chosen)):
                daemon = chosen[(place + turn) % len(chosen)]
                say(f"{row} round {turn + 1}/{options.rounds} {daemon.name}")
                extra = ["--rows", row, "--depth", options.depth, "--seconds", str(options.seconds)]
                extra += ["--queues", str(options.queues)]
                extra += ["--polling"] if options.polling else []
                measurements += [one | {"round": turn} for one in bench(program, daemon, directory, extra)]
    if options.inodes:
        each = make_inodes(directory, options.inodes)
        for daemon in chosen:
            say(f"memory {daemon.name}")
            measurements += bench(program, daemon, directory, ["--inodes", f"inodes:{each}"])
    say("")
    return measurements


def main() -> int:
    options = arguments()
    chosen = found.known(options.ours, options.rust, options.c)
    if options.only:
        chosen = [daemon for daemon in chosen if daemon.name in options.only.split(",")]
    if not chosen:
        print("no daemon to run", file=sys.stderr)
        return 2
    program = built(options.bench)
    directory = options.data or Path(tempfile.mkdtemp(prefix="virtiofs-bench-data-"))
    directory.mkdir(parents=True, exist_ok=True)
    try:
        about = machine(directory)
        measurements = measure(options, program, chosen, directory)
    finally:
        if options.data is None:
            shutil.rmtree(directory, ignore_errors=True)
    names = [daemon.name for daemon in chosen]
    about["daemons"] = {daemon.name: {"command": daemon.command, "version": version(daemon)} for daemon in chosen}
    title = f"{about['cpu']}, {about['cpus']} CPUs, Linux {about['kernel']}, {about['filesystem']}, "
    title += f"load {about['load_average']:.1f}; {options.rounds} rounds.\n\n"
    page = title + table.markdown(measurements, names, found.OURS)
    print(page)
    if options.out:
        ratios = table.ratios(table.medians(measurements), found.OURS)
        result = {"machine": about, "ratios": ratios, "measurements": measurements}
        options.out.with_suffix(".json").write_text(json.dumps(result, indent=1) + "\n")
        options.out.with_suffix(".md").write_text(page)
    complete = {one["daemon"] for one in measurements} == set(names)
    return 0 if complete else 1


if __name__ == "__main__":
    raise SystemExit(main())
