"""How far one guest is behind another, ours beside Rust virtiofsd in the same run: ``python -m tests.vm.staleness``."""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median

from . import provision
from .guest import GuestError
from .promises import LET_GO, MODES, PROMISES, Pair, behind, pair, promised

DAEMONS = {"ours": None, "virtiofsd": "virtiofsd"}
ONLY_OURS = ["adaptive"]
LIMIT = 3.0
"""Seconds after which a look gives up: nothing but a dropped cache would help."""


@contextmanager
def against(daemon: str | None) -> Iterator[None]:
    """The daemon that is started meanwhile."""
    before = os.environ.pop("VIRTIOFS_DAEMON", None)
    try:
        if daemon is not None:
            os.environ["VIRTIOFS_DAEMON"] = daemon
        yield
    finally:
        os.environ.pop("VIRTIOFS_DAEMON", None)
        if before is not None:
            os.environ["VIRTIOFS_DAEMON"] = before


def staleness(guests: Pair, name: str, directory: str) -> float | None:
    """Seconds; infinite if the change is not seen within the limit, None if the daemon does not let a guest look so."""
    try:
        late = behind(guests, name, directory, lambda _seen, _looks, seconds: seconds < LIMIT)
    except GuestError as error:
        # Rust virtiofsd, unless it is told otherwise, has no file mapped where it has no data cached.
        if "[Errno 19]" not in str(error):
            raise
        guests.writer.check(LET_GO)
        return None
    return float("inf") if late is None else late.seconds


def cell(values: list[float | None]) -> str:
    seconds = [value for value in values if value is not None]
    if not seconds:
        return "ENODEV"
    middle = median(seconds)
    if middle == 0:
        return "at once"
    return f"> {LIMIT:.0f} s" if middle == float("inf") else f"{middle:.2f} s"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3, help="of which the median is taken (3)")
    parser.add_argument("--modes", default=",".join(MODES), help="which modes, with commas between them")
    parser.add_argument("--promises", default=",".join(PROMISES), help="which rows of the table (all)")
    options = parser.parse_args()
    if not (provision.cache().root / "bin" / "virtiofsd").exists():
        raise SystemExit("there is no Rust virtiofsd among the guests' programs: make guests")
    modes, promises = options.modes.split(","), options.promises.split(",")
    columns = [(mode, kind) for mode in modes for kind in DAEMONS if kind == "ours" or mode not in ONLY_OURS]
    found: dict[tuple[str, str, str], list[float | None]] = {}
    for mode, kind in columns:
        with against(DAEMONS[kind]), tempfile.TemporaryDirectory() as directory, pair(mode, Path(directory)) as guests:
            for number in range(options.rounds):
                for name in promises:
                    seconds = staleness(guests, name, f"{name.replace(' ', '-')}-{number}")
                    found.setdefault((name, mode, kind), []).append(seconds)
                    print(f"{mode}, {kind}, {name}: {seconds} s, promised: {promised(mode, name)}", file=sys.stderr)
    print("| | " + " | ".join(f"`{mode}` {kind}" for mode, kind in columns) + " |")
    print("|---|" + "---|" * len(columns))
    for name in promises:
        print(f"| {name} | " + " | ".join(cell(found[name, mode, kind]) for mode, kind in columns) + " |")


if __name__ == "__main__":
    main()
