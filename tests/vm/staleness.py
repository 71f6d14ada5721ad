"""How far one guest is behind another, ours beside Rust virtiofsd in the same run: ``python -m tests.vm.staleness``."""

from __future__ import annotations

import argparse
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median

from . import provision
from .promises import PROMISES, Pair, behind, pair

DAEMONS = {"ours": None, "virtiofsd": "virtiofsd"}
MODES = ["none", "auto", "metadata", "always"]
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


def staleness(guests: Pair, name: str, directory: str) -> float:
    """Seconds; infinite if the change is not seen within the limit."""
    late = behind(guests, name, directory, lambda _seen, _looks, seconds: seconds < LIMIT)
    return float("inf") if late is None else late.seconds


def cell(values: list[float]) -> str:
    middle = median(values)
    if middle == 0:
        return "at once"
    return f"> {LIMIT:.0f} s" if middle == float("inf") else f"{middle:.2f} s"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3, help="of which the median is taken (3)")
    parser.add_argument("--modes", default=",".join(MODES), help="which modes, with commas between them")
    options = parser.parse_args()
    if not (provision.cache().root / "bin" / "virtiofsd").exists():
        raise SystemExit("there is no Rust virtiofsd among the guests' programs: make guests")
    modes = options.modes.split(",")
    found: dict[tuple[str, str, str], list[float]] = {}
    for mode in modes:
        for kind, daemon in DAEMONS.items():
            with against(daemon), tempfile.TemporaryDirectory() as directory, pair(mode, Path(directory)) as guests:
                for number in range(options.rounds):
                    for name in PROMISES:
                        values = found.setdefault((name, mode, kind), [])
                        values.append(staleness(guests, name, f"{name.replace(' ', '-')}-{number}"))
    print("| | " + " | ".join(f"`{mode}` {kind}" for mode in modes for kind in DAEMONS) + " |")
    print("|---|" + "---|" * len(modes) * len(DAEMONS))
    for name in PROMISES:
        row = [cell(found[name, mode, kind]) for mode in modes for kind in DAEMONS]
        print(f"| {name} | " + " | ".join(row) + " |")


if __name__ == "__main__":
    main()
