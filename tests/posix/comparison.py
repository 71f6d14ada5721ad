"""Judges a share's results by those of its control, the directory behind it.

What fails on the control is no promise of that file system, so nothing is asked of the share. The rest must hold on the
share, but for the differences that ``expected.py`` lists; and those must be there.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from .runner import FAILED, OK, Result


@dataclass(frozen=True)
class Difference:
    """A check that is ok on a local file system and not on a share, and why that is so.

    ``name`` is a check's, or a pattern of several; ``where`` is a pattern of the shares' kinds it is true of, as ``--kind``
    names them.
    """

    name: str
    reason: str
    where: str = "*"


@dataclass
class Verdict:
    """What a comparison found, as lines for people. ``worse``, ``stale`` and ``missing`` are faults, ``better`` is news."""

    worse: list[str] = field(default_factory=list)
    stale: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    better: list[str] = field(default_factory=list)
    expected: list[str] = field(default_factory=list)

    def faults(self) -> list[str]:
        """All that makes the comparison fail."""
        return self.worse + self.stale + self.missing


def compare(
    control: Iterable[Result], share: Iterable[Result], differences: Sequence[Difference], kind: str = ""
) -> Verdict:
    """Compare results of the same checks; ``kind`` says which of the ``differences`` are expected."""
    listed = [row for row in differences if fnmatch.fnmatchcase(kind, row.where)]
    promised: Mapping[str, Result] = {result.name: result for result in control}
    verdict = Verdict()
    for result in share:
        before = promised.get(result.name)
        known = next((row.reason for row in listed if fnmatch.fnmatchcase(result.name, row.name)), None)
        if before is None:
            verdict.missing.append(f"{result.name}: the control has no result")
        elif before.result == OK and result.result != OK:
            line = f"{result.name}: {result.result}: {result.why}"
            if known is not None:
                verdict.expected.append(f"{line} ({known})")
            else:
                verdict.worse.append(line)
        elif before.result == OK and known is not None:
            verdict.stale.append(f"{result.name}: ok, though listed as a difference ({known})")
        elif before.result == FAILED and result.result == OK:
            verdict.better.append(f"{result.name}: ok, on the control {before.result}: {before.why}")
    return verdict
