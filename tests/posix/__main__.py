"""``python -m tests.posix DIR``: run the checks on a mount and print a line for each.

The exit status is 0 when none failed or, with ``--control``, when the share does all that the directory behind it does.
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from pathlib import Path

from . import checks as _checks  # noqa: F401 - registers them
from .comparison import compare
from .expected import DIFFERENCES
from .runner import FAILED, load, run, save, selected


def main(arguments: list[str] | None = None) -> int:
    """Do what the command line says; answers the exit status."""
    parser = argparse.ArgumentParser(prog="tests.posix", description="POSIX checks over a mount point.")
    parser.add_argument("directory", nargs="?", type=Path, help="a directory on the file system to try")
    parser.add_argument("--only", default="*", metavar="GLOB", help="run the checks whose names match")
    parser.add_argument("--list", action="store_true", help="print names and promises, run nothing")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the results there")
    parser.add_argument(
        "--control", type=Path, metavar="FILE", help="compare with these results, of the backing directory"
    )
    parser.add_argument("--results", type=Path, metavar="FILE", help="take the results from there, run nothing")
    parser.add_argument(
        "--kind", default="", help="what the share is, for the list of expected differences: auto, none…"
    )
    parser.add_argument("--quiet", action="store_true", help="print only what is not ok")
    asked = parser.parse_args(arguments)
    chosen = selected(asked.only)
    if not chosen:
        parser.error(f"no check matches {asked.only!r}: --list names them all")
    if asked.list:
        for check in chosen:
            print(f"{check.name:60} {check.promise}")
        return 0
    if asked.results:
        results = load(asked.results)
    elif asked.directory and asked.directory.is_dir():
        results = []
        for result in run(asked.directory.resolve(), chosen):
            results.append(result)
            if result.why or not asked.quiet:
                print(f"{result.result:8} {result.name}{': ' if result.why else ''}{result.why}", flush=True)
    else:
        parser.error("say on which directory: python -m tests.posix DIR")
    if asked.json:
        save(asked.json, results)
    counts = Counter(result.result for result in results)
    print(", ".join(f"{counts[word]} {word}" for word in ("ok", "failed", "not run")))
    if not asked.control:
        return int(counts[FAILED] > 0)
    verdict = compare(load(asked.control), results, DIFFERENCES, asked.kind)
    for title in ("worse", "stale", "missing", "better", "expected"):
        for line in getattr(verdict, title):
            print(f"{title}: {line}")
    return int(bool(verdict.faults()))


if __name__ == "__main__":
    sys.exit(main())
