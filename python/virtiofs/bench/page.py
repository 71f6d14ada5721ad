"""The result as a page of its own, with plots. Needs matplotlib (`pip install 'virtiofs[bench]'`)."""

import html
import io
import json
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Final

import matplotlib as mpl

mpl.use("Agg")

from matplotlib.figure import Figure

from . import limits, table, verdicts, wakeup
from .daemons import OURS
from .measure import Measurement

if TYPE_CHECKING:
    from .result import Result

# Letters stay letters: drawn as paths, they are most of a plot.
mpl.rcParams["svg.fonttype"] = "none"

PLOTS: Final = {
    "ops_per_s": ("Operations per second", "more is better"),
    "daemon_cpu_us": ("CPU of the daemon per operation, µs", "less is better"),
    "p50_us": ("Latency p50, µs", "less is better"),
    "p99_us": ("Latency p99, µs", "less is better"),
}
COLUMNS: Final = 4
SPAN: Final = 30
"""Between the least and the most of a plot: from here on its axis is logarithmic."""
STYLE: Final = """
body { font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 78rem; padding: 0 1rem; color: #222 }
table { border-collapse: collapse; font-size: 13px; margin: 1rem 0; display: block; overflow-x: auto }
th, td { border-bottom: 1px solid #ddd; padding: .25rem .6rem; text-align: left; white-space: nowrap }
td.good { color: #06682a; font-weight: 600 } td.bad { color: #a11; font-weight: 600 }
svg { width: 100%; height: auto } code, pre { background: #f4f4f4; padding: .1rem .3rem } pre { overflow-x: auto }
"""


def plot(measurements: Sequence[Measurement], names: Sequence[str], figure: str) -> Figure:
    """One panel for each row: a bar for each daemon at each depth; rates with lines from the slowest round to the fastest."""
    found = table.medians(measurements)
    labels = list(dict.fromkeys(key.label for key in found))
    lines = max(-(-len(labels) // COLUMNS), 1)
    canvas = Figure(figsize=(4 * COLUMNS, 2.6 * lines), layout="constrained")
    axes = canvas.subplots(lines, COLUMNS, squeeze=False)
    for panel in axes.flat:
        panel.set_axis_off()
    for label, panel in zip(labels, axes.flat, strict=False):
        keys = [key for key in found if key.label == label]
        panel.set_axis_on()
        panel.set_title(label, fontsize=10)
        width = 0.8 / len(names)
        for at, name in enumerate(names):
            there = [(place, found[key][name]) for place, key in enumerate(keys) if name in found[key]]
            places = [place + (at - (len(names) - 1) / 2) * width for place, _ in there]
            heights = [figures[figure] for _, figures in there]  # type: ignore[literal-required]
            errors: Any = None
            if figure == "ops_per_s":
                errors = [
                    [figures["ops_per_s"] - figures["slowest"] for _, figures in there],
                    [figures["fastest"] - figures["ops_per_s"] for _, figures in there],
                ]
            panel.bar(places, heights, width, yerr=errors, color=f"C{at}", label=name, error_kw={"linewidth": 0.8})
        panel.set_xticks(range(len(keys)), [f"QD {key.depth}" for key in keys], fontsize=8)
        shown: list[float] = [one[figure] for key in keys for one in found[key].values()]  # type: ignore[literal-required]
        if max(shown) > SPAN * min((value for value in shown if value > 0), default=1):
            # System calls beside daemons: on a linear axis nothing of these would be seen.
            panel.set_yscale("log")
            panel.set_title(f"{label} (logarithmic)", fontsize=10)
        panel.tick_params(axis="y", labelsize=8)
        panel.spines[["top", "right"]].set_visible(False)
    head, better = PLOTS[figure]
    canvas.suptitle(f"{head} ({better})", fontsize=12)
    handles, legends = axes.flat[0].get_legend_handles_labels()
    canvas.legend(handles, legends, loc="outside lower center", ncols=len(names), frameon=False)
    return canvas


def svg(plotted: Figure) -> str:
    """A plot as a file of its own."""
    text = io.StringIO()
    plotted.savefig(text, format="svg", metadata={"Date": None})
    return text.getvalue()


def inline(text: str) -> str:
    """The same as an element of a page."""
    return text[text.index("<svg") :]


def _table(
    heads: Sequence[str],
    body: Sequence[Sequence[str]],
    good: Callable[[str, str], bool | None] = lambda _head, _cell: None,
) -> str:
    """`good` tells of the head and the text of a cell whether it is good or bad news, or none."""
    marks = {True: ' class="good"', False: ' class="bad"', None: ""}
    lines = ["<table><tr>", *(f"<th>{html.escape(head)}</th>" for head in heads), "</tr>"]
    for row in body:
        cells = zip(heads, row, strict=True)
        lines += ["<tr>", *(f"<td{marks[good(head, cell)]}>{html.escape(cell)}</td>" for head, cell in cells), "</tr>"]
    return "".join([*lines, "</table>"])


def _better(head: str, cell: str) -> bool | None:
    """Of the table of rates: whether a ratio is in favour of ours."""
    if head not in ("ops", "CPU", "p50") or not cell.endswith("x"):
        return None
    return (float(cell[:-1]) >= 1) == (head == "ops")


def _met(head: str, cell: str) -> bool | None:
    """Of the table of bars."""
    return None if head in ("workload", "QD") or cell == "-" else not verdicts.missed(cell)


def _paragraphs(*lines: str) -> str:
    return "".join(f"<p>{html.escape(line)}</p>" for line in lines if line)


def _bounds(measurements: Sequence[Measurement]) -> str:
    """What is to be had, and the bars; nothing of what was not measured."""
    text = ""
    heads, body = limits.rows(measurements)
    if body:
        said = wakeup.told(wakeup.wakeups(measurements))
        text += f"<h2>What is to be had</h2>{_paragraphs(said, *limits.LEGEND)}{_table(heads, body)}"
    heads, body = verdicts.rows(measurements)
    if body:
        said = verdicts.told(measurements)
        text += f"<h2>Bars</h2>{_paragraphs(said, *verdicts.LEGEND)}{_table(heads, body, _met)}"
    return text


def page(result: "Result", drawn: dict[str, str]) -> str:
    """A page that needs nothing beside itself: tables, plots (each from `svg`), daemons, and all measurements as JSON."""
    measurements, daemons = result.measurements, result.daemons
    memory = table.memory_rows(measurements, list(daemons))
    told = "".join(
        f"<li><b>{html.escape(name)}</b>: {html.escape(one['version'])}<br><code>{html.escape(one['command'])}</code></li>"
        for name, one in daemons.items()
    )
    # A closing tag within the data would end the element.
    data = json.dumps(measurements).replace("</", "<\\/")
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>virtiofs: benchmarks</title><style>{STYLE}</style></head><body>
<h1>virtiofs beside other daemons</h1>
<p>{html.escape(result.title)} {html.escape(result.machine["time"])}.</p>
<p>{"<br>".join(html.escape(line) for line in table.LEGEND)}</p>
{"".join(inline(plotted) for plotted in drawn.values())}
<h2>Figures</h2>{_table(*table.rows(measurements, result.names), _better)}
{_table(*memory) if memory[1] else ""}
{_bounds(measurements)}
<h2>Daemons</h2><ul>{told}</ul>
<p>“{OURS}” is this package. All measurements are in this page as JSON, in the element <code>measurements</code>.</p>
<script type="application/json" id="measurements">{data}</script>
</body></html>
"""
