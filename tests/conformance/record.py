"""Results of a suite on one setup, with what is needed to judge them later: when, on what, of which commit."""

from __future__ import annotations

import json
import subprocess
import time
from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

from tests.posix.runner import Result


@dataclass(frozen=True)
class Record:
    """One suite on one setup. ``version`` is the suite's commit, ``commit`` ours; a ``+`` marks what was not committed."""

    suite: str
    setup: str
    date: str
    commit: str
    kernel: str
    version: str
    results: tuple[Result, ...]

    def count(self, word: str) -> int:
        return Counter(result.result for result in self.results)[word]


class Store:
    """A folder with a file for each record: a suite that runs again on a setup replaces what it said before."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)

    def save(self, record: Record) -> None:
        path = self.folder / f"{record.suite}@{record.setup}.json"
        path.write_text(json.dumps(asdict(record), indent=1) + "\n")

    def load(self) -> dict[tuple[str, str], Record]:
        """All records by suite and setup."""
        found = {}
        for path in sorted(self.folder.glob("*.json")):
            fields = json.loads(path.read_text())
            results = tuple(Result(**result) for result in fields.pop("results"))
            found[fields["suite"], fields["setup"]] = Record(**fields, results=results)
        return found


def record(suite: str, setup: str, kernel: str, source: Path, results: Iterable[Result]) -> Record:
    """A record of today and of this checkout; ``source`` is where the suite was built."""
    here = Path(__file__).resolve().parents[2]
    date = time.strftime("%Y-%m-%d", time.gmtime())
    return Record(suite, setup, date, _commit(here), kernel, _commit(source), tuple(results))


def _commit(folder: Path) -> str:
    command = ["git", "-C", str(folder), "describe", "--always", "--exclude=*", "--dirty=+"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.stdout.strip() or "unknown"
