"""What was measured, in a file that grows with each measurement: a long run can be broken off, split, and gone on with."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from . import table
from .filesystems import KNOWN, FileSystem
from .work import Row, Sizes


class RecordError(Exception):
    """The file cannot be gone on with; the message says why."""


class Record:
    """All measurements of one machine at the same sizes; those of ``file`` too, with ``resume``.

    Raises RecordError when those in ``file`` are of other sizes, of another accelerator, or cannot be read.
    """

    def __init__(self, file: Path | None, machine: dict[str, Any], sizes: Sizes, *, resume: bool = False) -> None:
        self.file = file
        self.sizes = sizes
        self.machine = machine
        self.guest: dict[str, Any] = {}
        self.measurements: list[table.Measurement] = []
        if resume and file is not None and file.exists():
            self._read(file)

    def _read(self, file: Path) -> None:
        try:
            there = json.loads(file.read_text())
            sizes, machine = Sizes(**there["sizes"]), there["machine"]
            self.measurements, self.guest = there["measurements"], machine.pop("guest")
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise RecordError(f"{file}: {error!r}: it holds no measurements to go on with") from error
        if (sizes, machine["accelerator"]) != (self.sizes, self.machine["accelerator"]):
            raise RecordError(
                f"{file}: it was measured by {machine['accelerator']} with {sizes}; this would be "
                f"{self.machine['accelerator']} with {self.sizes}"
            )

    def has(self, row: str, file_system: str, turn: int) -> bool:
        """Whether this was measured."""
        key = (row, file_system, turn)
        return any((one["row"], one["file_system"], one["round"]) == key for one in self.measurements)

    def lacking(self, rows: Iterable[Row], chosen: list[FileSystem], rounds: int) -> list[Row]:
        """The rows of which anything is to be measured."""
        turns = range(rounds)
        return [row for row in rows if not all(self.has(row.name, one.name, turn) for one in chosen for turn in turns)]

    def add(self, measurement: table.Measurement) -> None:
        """Keeps it, in the file as well."""
        self.measurements.append(measurement)
        self.save()

    def save(self) -> None:
        """Writes the file, if there is one."""
        if self.file is None:
            return
        lines = table.ratios(table.medians(self.measurements), KNOWN)
        about = {"machine": self.machine | {"guest": self.guest}, "sizes": vars(self.sizes)}
        result = about | {"ratios": lines, "means": table.means(lines), "measurements": self.measurements}
        self.file.parent.mkdir(parents=True, exist_ok=True)
        new = self.file.with_suffix(".new")
        new.write_text(json.dumps(result, indent=1) + "\n")
        new.rename(self.file)

    @property
    def loads(self) -> tuple[float, float, float]:
        """The least, the middle and the most of the machine's load average while measuring."""
        found = sorted(one["load"] for one in self.measurements) or [0.0]
        return found[0], found[len(found) // 2], found[-1]

    @property
    def rounds(self) -> tuple[int, int]:
        """Of the cells, the fewest and the most rounds."""
        cells: dict[tuple[str, str], int] = {}
        for one in self.measurements:
            key = (one["row"], one["file_system"])
            cells[key] = cells.get(key, 0) + 1
        return min(cells.values(), default=0), max(cells.values(), default=0)
