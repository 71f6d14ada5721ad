"""Results of a suite on one setup, with what is needed to judge them later: when, on what, of which commit.

Each is written down as soon as it is known, so that a run which was broken off can go on where it was.
"""

from __future__ import annotations

import json
import subprocess
import time
from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
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

    @property
    def of(self) -> tuple[str, ...]:
        """What results have to agree in to belong together."""
        return (self.suite, self.setup, self.commit, self.version)

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

    def whole(self, head: Record) -> bool:
        """Whether there is a record of the same suite, setup and commits."""
        known = self.load().get((head.suite, head.setup))
        return known is not None and known.of == head.of

    def begin(self, head: Record, *, resume: bool = False) -> Run:
        """A run whose record begins as ``head``; with ``resume``, with what a run of the same commits had got to."""
        return Run(self, head, resume=resume)

    def load(self) -> dict[tuple[str, str], Record]:
        """All records by suite and setup."""
        found = {}
        for path in sorted(self.folder.glob("*.json")):
            fields = json.loads(path.read_text())
            results = tuple(Result(**result) for result in fields.pop("results"))
            found[fields["suite"], fields["setup"]] = Record(**fields, results=results)
        return found


class Run:
    """A record in the making: its results so far, of which each is in a file before the next is known."""

    def __init__(self, store: Store, head: Record, *, resume: bool) -> None:
        self._store, self._head = store, head
        self._path = store.folder / f"{head.suite}@{head.setup}.notes"
        # What follows the last line end was cut off.
        lines = self._path.read_text().split("\n")[:-1] if self._path.exists() else []
        noted = [json.loads(line) for line in lines]
        goes_on = resume and bool(noted) and tuple(noted[0]) == head.of
        self.results = [Result(**fields) for fields in noted[1:]] if goes_on else []
        self._path.write_text("".join(f"{line}\n" for line in lines) if goes_on else json.dumps(head.of) + "\n")

    def add(self, result: Result) -> None:
        self.results.append(result)
        with self._path.open("a") as file:
            file.write(json.dumps(asdict(result)) + "\n")

    def end(self, kernel: str) -> None:
        """Keep the whole record, of a guest with that kernel, instead of the notes."""
        self._store.save(replace(self._head, kernel=kernel, results=tuple(self.results)))
        self._path.unlink()


def record(suite: str, setup: str, kernel: str, source: Path, results: Iterable[Result] = ()) -> Record:
    """A record of today and of this checkout; ``source`` is where the suite was built."""
    here = Path(__file__).resolve().parents[2]
    date = time.strftime("%Y-%m-%d", time.gmtime())
    return Record(suite, setup, date, _commit(here), kernel, _commit(source), tuple(results))


def _commit(folder: Path) -> str:
    command = ["git", "-C", str(folder), "describe", "--always", "--exclude=*", "--dirty=+"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.stdout.strip() or "unknown"
