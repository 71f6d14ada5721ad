"""``python -m tests.conformance``: run suites on shares and on the control, judge them and write docs/conformance.md.

Suites that no registry carries are built elsewhere and named by their folders; without these they are not run. Results are
kept in tests/conformance/results, so one suite may run again on one share, and the page is of all that were run last, each with
its own date and commit. The exit status is 0 when every share of this run differs from its control as expected.py says, and
nowhere else.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from tests.posix.runner import OK
from tests.vm import provision

from .ground import CONTROL, MOUNTS, SETUPS, Ground, ground
from .record import KEPT, Store, record
from .suites import Suite
from .suites.fsstress import Fsstress
from .suites.fsx import Fsx
from .suites.pjdfstest import Pjdfstest
from .suites.posix import Posix
from .suites.xfstests import GENERIC, Xfstests
from .table import table, verdict

ROOT = Path(__file__).resolve().parents[2]
WHAT = {
    "posix": "tests/posix of this repository",
    "pjdfstest": "system calls on files, by errno and by user (Pawel Jakub Dawidek and others)",
    "fsx": "random operations on one file (as in xfstests)",
    "fsstress": "random operations of four processes on a tree (as in xfstests)",
    "xfstests": "the generic tests of fstests that need neither block device, quota, swap nor reflink",
}
PLAIN = ("none", "auto", "always")
SHARES = {
    "posix": (*SETUPS,),
    "pjdfstest": (*PLAIN, "always-writeback", *MOUNTS),
    "fsx": (*SETUPS, *MOUNTS),
    "fsstress": (*SETUPS, *MOUNTS),
    "xfstests": PLAIN,
}
"""The shares that each suite runs on, unless the command line names some."""


def main(arguments: list[str] | None = None) -> int:
    """Do what the command line says; answers the exit status."""
    asked = _parser().parse_args(arguments)
    for reason in (provision.problem(), None if os.geteuid() == 0 else "conformance runs need root, for loop devices"):
        if reason:
            print(reason, file=sys.stderr)
            return 2
    store = Store(asked.results, asked.notes)
    if asked.table:
        asked.page.write_text(table(store.load(), WHAT))
        return 0
    judged = []
    for suite, source in _suites(asked):
        for setup in asked.setup or [CONTROL, *SHARES[suite.name]]:
            _run(suite, setup, source, store, resume=asked.resume, again=asked.again)
            if setup != CONTROL:
                judged.append((suite.name, setup))
    records = store.load()
    asked.page.parent.mkdir(exist_ok=True)
    asked.page.write_text(table(records, WHAT))
    faults = [
        f"{name} on {setup}: {fault}" for name, setup in judged for fault in verdict(records, name, setup).faults()
    ]
    print("\n".join(faults) or "no unexpected difference")
    return int(bool(faults))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="tests.conformance", description=__doc__.splitlines()[0].split(": ", 1)[1])
    parser.add_argument("--pjdfstest", type=Path, metavar="DIR", help="pjdfstest, built")
    parser.add_argument(
        "--xfstests", type=Path, metavar="DIR", help="xfstests, built: fsx, fsstress and the generic tests"
    )
    parser.add_argument("--suite", action="append", choices=list(WHAT), help="only this one; may be repeated")
    parser.add_argument(
        "--setup", action="append", choices=[CONTROL, *SETUPS, *MOUNTS], help="only on this; may be repeated"
    )
    parser.add_argument("--resume", action="store_true", help="leave out what has results of these commits already")
    parser.add_argument(
        "--table", action="store_true", help="run nothing, write the page from the results that are there"
    )
    parser.add_argument(
        "--again",
        action="store_true",
        help="put what is run into the record that is there, in the place of these tests",
    )
    parser.add_argument("--generic", nargs="+", metavar="NNN", default=GENERIC, help="only these tests of xfstests")
    parser.add_argument("--operations", type=int, default=100_000, metavar="N", help="of each fsx run (100000)")
    parser.add_argument(
        "--seeds", type=int, nargs="+", default=[1, 2, 3], metavar="N", help="of fsx and fsstress (1 2 3)"
    )
    parser.add_argument(
        "--results", type=Path, default=KEPT, metavar="DIR", help="where they are kept (tests/conformance/results)"
    )
    parser.add_argument(
        "--notes",
        type=Path,
        default=ROOT / ".cache/conformance",
        metavar="DIR",
        help="those of runs that have not ended",
    )
    parser.add_argument(
        "--page", type=Path, default=ROOT / "docs/conformance.md", metavar="FILE", help="the page to write"
    )
    return parser


def _suites(asked: argparse.Namespace) -> Iterator[tuple[Suite, Path]]:
    """The suites to run, each with the folder it was built in; says which are left out."""
    made: dict[str, tuple[Callable[[], Suite], Path | None]] = {
        "posix": (Posix, ROOT),
        "pjdfstest": (Pjdfstest, asked.pjdfstest),
        "fsx": (lambda: Fsx(asked.operations, asked.seeds), asked.xfstests),
        "fsstress": (lambda: Fsstress(asked.operations // 10, asked.seeds), asked.xfstests),
        "xfstests": (lambda: Xfstests(asked.generic), asked.xfstests),
    }
    for name, (make, source) in made.items():
        if asked.suite and name not in asked.suite:
            continue
        if source is None:
            print(f"{name}: not run, no folder given", flush=True)
        else:
            yield make(), source


def _run(suite: Suite, setup: str, source: Path, store: Store, *, resume: bool, again: bool) -> None:
    """Run a suite on a setup, tell what is not ok as it comes, and keep the record."""
    began = time.monotonic()
    print(f"{suite.name} on {setup}", flush=True)
    kernel = ""
    head = record(suite.name, setup, kernel, source)
    if resume and not again and store.whole(head):
        print("  known", flush=True)
        return
    before = store.load().get((suite.name, setup)) if again else None
    run = store.begin(head, resume=resume)

    @contextlib.contextmanager
    def boot() -> Iterator[Ground]:
        nonlocal kernel
        with ground(setup, {suite.folder: source}) as place:
            kernel = place.guest.release
            yield place

    for result in suite.run(boot, {result.name for result in run.results}):
        run.add(result)
        if result.result != OK:
            print(f"  {result.result}: {result.name}: {result.why}", flush=True)
    run.end(kernel, amends=before)
    print(f"  {time.monotonic() - began:.0f} s", flush=True)


if __name__ == "__main__":
    sys.exit(main())
