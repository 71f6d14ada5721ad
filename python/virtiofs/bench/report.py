"""All of a result as Markdown, for people."""

from collections.abc import Callable, Sequence

from . import limits, table, verdicts, wakeup
from .daemons import NATIVE
from .measure import Measurement


def markdown(measurements: Sequence[Measurement], names: Sequence[str]) -> str:
    """Rates and ratios, memory, what is to be had, and the bars. `names` are the columns of the first."""
    first = 2 + len(names)
    lines = [*table.LEGEND, ""]
    lines += _table(
        *table.rows(measurements, names), left=first, bold=lambda at, cell: at == first and cell.endswith("x")
    )
    heads, body = table.memory_rows(measurements, [name for name in names if name != NATIVE])
    if body:
        lines += ["", *_table(heads, body, left=1)]
    heads, body = limits.rows(measurements)
    if body:
        lines += ["", "### What is to be had", "", wakeup.told(wakeup.wakeups(measurements)), "", *limits.LEGEND, ""]
        lines += _table(heads, body, left=2)
    heads, body = verdicts.rows(measurements)
    if body:
        lines += ["", "### Bars", "", verdicts.told(measurements), "", *verdicts.LEGEND, ""]
        lines += _table(heads, body, left=len(heads), bold=lambda _at, cell: verdicts.missed(cell))
    return "\n".join(lines) + "\n"


def _table(
    heads: Sequence[str],
    body: Sequence[Sequence[str]],
    *,
    left: int,
    bold: Callable[[int, str], bool] = lambda _at, _cell: False,
) -> list[str]:
    """Markdown; the columns from `left` on, and the second, are numbers."""
    rule = "|".join("--:" if at >= left or (at == 1 and left > 1) else "---" for at in range(len(heads)))
    shown = [[f"**{cell}**" if bold(at, cell) else cell for at, cell in enumerate(row)] for row in body]
    return [f"| {' | '.join(heads)} |", f"|{rule}|", *(f"| {' | '.join(row)} |" for row in shown)]
