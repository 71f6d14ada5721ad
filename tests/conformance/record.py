"""Results of a suite on one setup, with what is needed to judge them later: when, on what, of which commit.

A run's results are noted one by one as they are known, so that one which was broken off can go on where it was. When it has
ended they become a record, which is kept in the repository: so the page can be written anew wherever one line of it was run.
"""

from __future__ import annotations

import json
import re
import subprocess
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from tests.posix.runner import FAILED, NOT_RUN, OK, Result

HERE = Path(__file__).resolve().parent
KEPT = HERE / "results"
NUMBERED = re.compile(r"(.*:)(\d+)")
SPAN = re.compile(r"(.*:)(\d+)-(\d+)")


@dataclass(frozen=True)
class Record:
    """One suite on one setup. ``version`` is the suite's commit, ``commit`` ours; a ``+`` marks what was not committed.

    ``again`` has the tests that were run by themselves later, each with the commit and date of that. ``unnamed`` tests passed
    as well, of which only the number was kept.
    """

    suite: str
    setup: str
    date: str
    commit: str
    kernel: str
    version: str
    results: tuple[Result, ...]
    again: Mapping[str, str] = field(default_factory=dict)
    unnamed: int = 0

    @property
    def of(self) -> tuple[str, ...]:
        """What results have to agree in to belong together."""
        return (self.suite, self.setup, self.commit, self.version)

    def count(self, word: str) -> int:
        return Counter(result.result for result in self.results)[word] + (self.unnamed if word == OK else 0)

    def amended(self, later: Record) -> Record:
        """This record with the results of a later run of some of its tests."""
        known = {result.name for result in later.results}
        # A name that stood for nothing may be one of those that were only counted.
        unnamed = self.unnamed - sum(result.name not in {old.name for old in self.results} for result in later.results)
        results = (*(result for result in self.results if result.name not in known), *later.results)
        again = dict.fromkeys(sorted(known), f"{later.commit}, {later.date}")
        return replace(self, results=results, again={**self.again, **again}, unnamed=max(0, unnamed))


def spans(names: Iterable[str]) -> list[str]:
    """The names as they are kept: ``t:1``, ``t:2``, ``t:3`` are ``t:1-3``, for a suite may have thousands."""
    found: list[tuple[str, int, int]] = []
    for name in names:
        match = NUMBERED.fullmatch(name)
        before, number = (match[1], int(match[2])) if match else (name, -1)
        if match and found and found[-1][0] == before and found[-1][2] == number - 1:
            found[-1] = (before, found[-1][1], number)
        else:
            found.append((before, number, number))
    return [
        before if first < 0 else f"{before}{first}" if first == last else f"{before}{first}-{last}"
        for before, first, last in found
    ]


def spelled(kept: Iterable[str]) -> Iterator[str]:
    """The names that ``spans`` was given."""
    for name in kept:
        if match := SPAN.fullmatch(name):
            yield from (f"{match[1]}{number}" for number in range(int(match[2]), int(match[3]) + 1))
        else:
            yield name


class Store:
    """A folder with a file for each record: a suite that runs again on a setup replaces what it said before.

    ``notes`` is a folder for those of runs that have not ended.
    """

    def __init__(self, folder: Path, notes: Path) -> None:
        self.folder, self.notes = folder, notes
        for each in (folder, notes):
            each.mkdir(parents=True, exist_ok=True)

    def save(self, record: Record) -> None:
        fields: dict[str, Any] = {"date": record.date, "commit": record.commit}
        fields |= {"kernel": record.kernel, "version": record.version}
        fields[OK] = spans(result.name for result in record.results if result.result == OK)
        for word in (FAILED, NOT_RUN):
            fields[word] = {result.name: result.why for result in record.results if result.result == word}
        if record.again:
            fields["again"] = dict(record.again)
        if record.unnamed:
            fields["unnamed"] = record.unnamed
        path = self.folder / f"{record.suite}@{record.setup}.json"
        path.write_text(json.dumps(fields, indent=1, ensure_ascii=False) + "\n")

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
        for path in sorted(self.folder.glob("*@*.json")):
            suite, _, setup = path.stem.partition("@")
            fields = json.loads(path.read_text())
            results = [Result(name, OK) for name in spelled(fields.pop(OK))]
            for word in (FAILED, NOT_RUN):
                results += [Result(name, word, why) for name, why in fields.pop(word).items()]
            found[suite, setup] = Record(suite, setup, **fields, results=tuple(results))
        return found


class Run:
    """A record in the making: its results so far, of which each is in a file before the next is known."""

    def __init__(self, store: Store, head: Record, *, resume: bool) -> None:
        self._store, self._head = store, head
        self._path = store.notes / f"{head.suite}@{head.setup}.notes"
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

    def end(self, kernel: str, amends: Record | None = None) -> None:
        """Keep the whole record, of a guest with that kernel, instead of the notes, or put it into the one it ``amends``."""
        whole = replace(self._head, kernel=kernel, results=tuple(self.results))
        self._store.save(amends.amended(whole) if amends else whole)
        self._path.unlink()


def record(suite: str, setup: str, kernel: str, source: Path, results: Iterable[Result] = ()) -> Record:
    """A record of today and of this checkout; ``source`` is where the suite was built."""
    root = HERE.parents[1]
    date = time.strftime("%Y-%m-%d", time.gmtime())
    # What runs write themselves changes nothing of what is tried.
    ours = commit(root, but=("tests/conformance/results", "docs/conformance.md"))
    return Record(suite, setup, date, ours, kernel, commit(source), tuple(results))


def commit(folder: Path, but: Iterable[str] = ()) -> str:
    """The commit that is checked out in ``folder``, with a ``+`` when files differ from it, but for those in ``but``."""
    git = ["git", "-C", str(folder)]
    head = subprocess.run([*git, "describe", "--always", "--exclude=*"], capture_output=True, text=True, check=False)
    if head.returncode != 0:
        return "unknown"
    outside = [f":(exclude){path}" for path in but]
    changed = subprocess.run([*git, "diff", "--quiet", "HEAD", "--", ".", *outside], capture_output=True, check=False)
    return head.stdout.strip() + ("+" if changed.returncode else "")
