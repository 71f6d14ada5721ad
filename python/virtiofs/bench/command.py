"""`virtiofs bench`."""

import argparse
import importlib.util
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

from virtiofs import _core
from virtiofs.errors import ConfigError

from . import machine
from .daemons import known
from .measure import Plan, measure, steps
from .progress import progress_bar
from .result import Result

QUICK = Plan(rows=("getattr", "lookup-hit", "churn4k", "seqread1m"), depths=(8,), rounds=1, seconds=0.2, inodes=2_000)
T = TypeVar("T")


def options(parser: argparse.ArgumentParser) -> None:
    """The options of the command."""
    parser.set_defaults(command=run)
    usual = Plan()
    parser.description = (
        "Drives this package's daemon, and others that are found here, with the embedded guest: the same work on the same "
        "files, in turns. Beside them what is to be had: the bare system calls in one thread, and bare wake-ups. Prints tables "
        "of medians. The load of the machine goes into every figure: let it be idle."
    )
    parser.add_argument(
        "--dir", type=Path, metavar="DIR", help="where the files are made (default: a new temporary one)"
    )
    parser.add_argument("--rows", metavar="A,B,…", help=f"kinds of work (default: all): {', '.join(usual.rows)}")
    parser.add_argument("--depth", metavar="N,…", help="operations in flight (default: 1,8,32)")
    parser.add_argument("--queues", metavar="N,…", help="request queues; peers have one (default: 1)")
    parser.add_argument(
        "--driver", metavar="KIND,…", help="blocking: waits for calls; polling: looks (default: blocking)"
    )
    parser.add_argument("--rounds", type=int, metavar="N", help="times that everything is run (default: 3)")
    parser.add_argument("--seconds", type=float, metavar="S", help="per row, depth, daemon and round (default: 1)")
    parser.add_argument("--inodes", type=int, metavar="N", help="of the memory row; 0 for none (default: 100,000)")
    parser.add_argument(
        "--no-native", action="store_true", help="neither bare system calls nor wake-ups beside the daemons"
    )
    parser.add_argument("--quick", action="store_true", help="a smoke test: few rows, one short round, little memory")
    parser.add_argument("--only", metavar="A,…", help="of ours, rust, rust-bare, c: who is measured")
    parser.add_argument("--ours", metavar="CMD", help="our command, with {dir} and {sock} in it")
    parser.add_argument("--rust", metavar="PATH", help="Rust virtiofsd")
    parser.add_argument("--c", metavar="PATH", help="the C virtiofsd of QEMU up to 7.2")
    parser.add_argument(
        "--out", type=Path, metavar="STEM", help="write STEM.md, STEM.json, STEM.html, STEM-*.svg and .png"
    )
    parser.add_argument(
        "--keep", action="store_true", help="with --out: what STEM.json has of lines that are not measured now stays"
    )


def run(parsed: argparse.Namespace) -> int:
    """Measures, prints the table, writes the files. 1 if something could not be measured."""
    plan = _plan(parsed)
    daemons = known(parsed.ours, parsed.rust, parsed.c)
    if parsed.only:
        wanted = parsed.only.split(",")
        unknown = set(wanted) - {daemon.name for daemon in daemons}
        if unknown:
            here = ", ".join(daemon.name for daemon in daemons)
            raise ConfigError(f"--only: no {', '.join(sorted(unknown))} here; there are {here}")
        daemons = [daemon for daemon in daemons if daemon.name in wanted]
    if parsed.out and not importlib.util.find_spec("matplotlib"):
        raise ConfigError("--out draws plots with matplotlib: pip install 'virtiofs[bench]'")
    if parsed.keep and not parsed.out:
        raise ConfigError("--keep keeps what is in the files of --out")
    earlier = Result.read(parsed.out) if parsed.keep else None
    failures: list[str] = []
    with _directory(parsed.dir) as directory:
        about = Result.of(machine.describe(directory), daemons, [])
        if earlier:
            earlier.goes_with(about)
        with progress_bar(steps(plan, daemons)) as progress:
            found = measure(plan, daemons, directory, progress=progress, failed=failures.append)
    result = replace(about, measurements=found)
    if earlier:
        result = result.keeping(earlier)
    print(result.text)
    for failure in failures:
        print(f"virtiofs bench: {failure}", file=sys.stderr)
    if parsed.out:
        result.write(parsed.out)
    return 1 if failures else 0


def _plan(parsed: argparse.Namespace) -> Plan:
    base = QUICK if parsed.quick else Plan()
    rows = _list("--rows", parsed.rows, str, _core.load_rows().__contains__) or base.rows
    drivers: Any = _list("--driver", parsed.driver, str, ("blocking", "polling").__contains__) or base.drivers

    def positive(value: float) -> bool:
        return value > 0

    for name in ("rounds", "seconds"):
        if getattr(parsed, name) is not None and not positive(getattr(parsed, name)):
            raise ConfigError(f"--{name}: {getattr(parsed, name)} is not more than 0")
    return Plan(
        rows=rows,
        depths=_list("--depth", parsed.depth, int, range(1, 1025).__contains__) or base.depths,
        queues=_list("--queues", parsed.queues, int, range(1, 65).__contains__) or base.queues,
        drivers=drivers,
        rounds=base.rounds if parsed.rounds is None else parsed.rounds,
        seconds=base.seconds if parsed.seconds is None else parsed.seconds,
        native=not parsed.no_native,
        inodes=base.inodes if parsed.inodes is None else parsed.inodes,
    )


def _list(name: str, text: str | None, convert: Callable[[str], T], allowed: Callable[[T], bool]) -> tuple[T, ...]:
    """The parts of an option with commas in it; none if it was not given."""
    found = []
    for part in text.split(",") if text else ():
        try:
            one = convert(part.strip())
            fits = allowed(one)
        except ValueError:
            fits = False
        if not fits:
            raise ConfigError(f"{name}: {part.strip()!r} is not allowed; see virtiofs bench --help")
        found.append(one)
    return tuple(found)


@contextmanager
def _directory(given: Path | None) -> Iterator[Path]:
    """The directory to work in; a temporary one is removed."""
    if given is not None:
        given.mkdir(parents=True, exist_ok=True)
        yield given
        return
    made = Path(tempfile.mkdtemp(prefix="virtiofs-bench-data-"))
    try:
        yield made
    finally:
        shutil.rmtree(made, ignore_errors=True)
