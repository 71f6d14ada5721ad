"""The result as a page of its own, with plots. Needs matplotlib (`pip install 'virtiofs[bench]'`)."""

from __future__ import annotations

import html
import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from matplotlib.patches import Patch

from virtiofs.bench.page import STYLE, inline, svg

from . import table
from .filesystems import FileSystem
from .record import Record

COLUMNS = 4
TICKS = [digit * 10.0**power for power in range(-3, 4) for digit in (1, 2, 5)]
RATIO = re.compile(r"[\d.]+x")
COLORS = {"9p": ("#bdbdbd", "#8c8c8c", "#5c5c5c"), "rust": ("#f2b880", "#e08e45", "#b3611a")}
OURS = ("#c6dbef", "#9ecae8", "#6baed6", "#3182bd", "#08519c", "#06682a")


def colors(names: list[str]) -> dict[str, str]:
    """A family has a hue, its modes are shades; DAX is green."""
    found: dict[str, str] = {}
    for name in names:
        family = name.split()[0]
        shades = COLORS.get(family, OURS)
        found[name] = shades[sum(other.split()[0] == family for other in found) % len(shades)]
        if name == "ours dax":
            found[name] = OURS[-1]
    return found


def bars(lines: list[dict[str, Any]]) -> Figure:
    """For each row, ours beside the best of virtio-9p that promises as much: speed, processor time, requests, as factors."""
    lines = [line for line in lines if line["family"] == "9p"][::-1]
    canvas = Figure(figsize=(16, 1.5 + 0.28 * len(lines)), layout="constrained")
    axes = canvas.subplots(1, 3, sharey=True)
    titles = (
        ("ratio", "Speed (more is better)", 1),
        ("cpu_ratio", "Server CPU per operation (less is better)", -1),
        ("requests_ratio", "Requests per operation (less is better)", -1),
    )
    labels = [f"{line['row']}\n{line['ours']} / {line['peer']}" for line in lines]
    for panel, (key, title, way) in zip(axes, titles, strict=True):
        values = [max(line[key], 1e-3) for line in lines]
        good = ["#2b8a4b" if way * (value - 1) >= 0 else "#c0392b" for value in values]
        panel.barh(range(len(lines)), [value - 1 for value in values], left=1, color=good, height=0.7)
        panel.axvline(1, color="#222", linewidth=1)
        panel.set_xscale("log")
        panel.set_xlabel("ours / 9p, logarithmic")
        panel.set_title(title, fontsize=11)
        panel.set_yticks(range(len(lines)), labels, fontsize=7)
        panel.spines[["top", "right"]].set_visible(False)
        low, high = min([*values, 0.8]), max([*values, 1.25])
        panel.set_xlim(low / 1.6, high * 1.6)
        panel.set_xticks([tick for tick in TICKS if low / 1.6 < tick < high * 1.6])
        panel.xaxis.set_major_formatter("{x:g}")
        panel.xaxis.set_minor_formatter("")
        for at, value in enumerate(values):
            side = "left" if value >= 1 else "right"
            text = f" {value:.2f} " if value < 100 else f" {value:.0f} "
            panel.text(value, at, text, ha=side, va="center", fontsize=7)
    canvas.suptitle("Ours beside the best mode of virtio-9p that promises as much", fontsize=12)
    return canvas


def panels(found: table.Medians, names: list[str], what: str) -> Figure:
    """One panel for each row with a bar for each file system: ``figure``, ``cpu`` or ``requests``."""
    lines = max(-(-len(found) // COLUMNS), 1)
    canvas = Figure(figsize=(4 * COLUMNS, 2.1 * lines + 0.8), layout="constrained")
    axes = canvas.subplots(lines, COLUMNS, squeeze=False)
    hue = colors(names)
    for panel in axes.flat:
        panel.set_axis_off()
    for (row, cells), panel in zip(found.items(), axes.flat, strict=False):
        there = [name for name in names if name in cells]
        panel.set_axis_on()
        places = [names.index(name) for name in there]
        shades = [hue[name] for name in there]
        unit = next((cell["unit"] for cell in cells.values()), "")
        if what == "cpu":
            qemu = [cells[name]["qemu_cpu_us"] for name in there]
            panel.bar(places, qemu, color=shades, alpha=0.45)
            panel.bar(places, [cells[name]["daemon_cpu_us"] for name in there], bottom=qemu, color=shades)
            unit = "µs"
        else:
            key = "figure" if what == "figure" else "requests_per_op"
            values = [cells[name][key] for name in there]
            errors = [value * cells[name]["spread"] / 2 for name, value in zip(there, values, strict=True)]
            panel.bar(
                places, values, yerr=errors if what == "figure" else None, color=shades, error_kw={"linewidth": 0.8}
            )
            unit = unit if what == "figure" else "requests"
        panel.set_title(f"{row} [{unit}]", fontsize=9)
        panel.set_xlim(-0.7, len(names) - 0.3)
        panel.set_xticks([])
        panel.tick_params(axis="y", labelsize=7)
        panel.spines[["top", "right"]].set_visible(False)
    titles = {
        "figure": "By the guest's clock: MiB/s (more is better), µs per entry and % kept (less is better)",
        "cpu": "Server CPU per operation, µs (less is better): dark the daemon, light QEMU outside of the guest",
        "requests": "Requests per operation (less is better)",
    }
    canvas.suptitle(titles[what], fontsize=12)
    canvas.legend(
        [Patch(color=hue[name]) for name in names],
        names,
        loc="outside lower center",
        ncols=min(len(names), 6),
        frameon=False,
    )
    return canvas


def plots(record: Record, known: list[FileSystem]) -> dict[str, Figure]:
    """What the plots are called -> the plots."""
    found = table.medians(record.measurements)
    names = table.columns(record.measurements, known)
    made = {what: panels(found, names, what) for what in ("figure", "cpu", "requests")}
    lines = table.ratios(found, known)
    return {"ratios": bars(lines), **made} if lines else made


def write(stem: Path, record: Record, known: Iterable[FileSystem]) -> None:
    """Writes STEM.html, which needs nothing beside itself, and STEM-*.svg."""
    known = list(known)
    drawn = {name: svg(plotted) for name, plotted in plots(record, known).items()}
    for name, text in drawn.items():
        stem.with_name(f"{stem.name}-{name}.svg").write_text(text)
    stem.with_suffix(".html").write_text(page(record, known, drawn))


def page(record: Record, known: list[FileSystem], drawn: dict[str, str]) -> str:
    """The whole page."""
    found = table.medians(record.measurements)
    names = table.columns(record.measurements, known)
    per_op = table.figures(found, names, lambda cell: table.number(cell["requests_per_op"]))
    about = "".join(
        f"<li>{html.escape(key)}: {html.escape(str(value))}</li>"
        for key, value in record.machine.items()
        if key not in ("cpu", "cpus", "load_average")
    )
    means = [[name, f"{value:.2f}x"] for name, value in table.means(table.ratios(found, known)).items()]
    title = html.escape(table.title(record)).replace("**", "<b>", 1).replace("**", "</b>", 1)
    sections = [
        (
            "Ours beside virtio-9p and Rust virtiofsd",
            table.AGAINST,
            "ratios",
            _table(table.RATIO_HEADS, table.against(found, known)),
        ),
        ("Means", "Geometric means over the rows.", "", _table(["of", "ratio"], means)),
        ("Figures", table.LEGEND, "figure", _table(["workload", *names], table.figures(found, names, table.shown))),
        ("Processor time", table.CPU, "cpu", _table(["server CPU", *names], table.figures(found, names, table.cpu))),
        ("Requests", table.REQUESTS, "requests", _table(["requests", *names], per_op)),
    ]
    shown = "".join(
        f"<h2>{head}</h2><p>{html.escape(text)}</p>{inline(drawn[plot]) if plot in drawn else ''}{body}"
        for head, text, plot, body in sections
    )
    # A closing tag within the data would end the element.
    data = json.dumps(record.measurements).replace("</", "<\\/")
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>virtiofs: in a guest</title><style>{STYLE}</style></head><body>
<h1>Three ways to give a guest a directory</h1>
<p>{title}</p>
{shown}
<h2>Machine</h2><ul>{about}</ul>
<p>All measurements are in this page as JSON, in the element <code>measurements</code>.</p>
<script type="application/json" id="measurements">{data}</script>
</body></html>
"""


def _table(heads: list[str], body: list[list[str]]) -> str:
    lines = ["<table><tr>", *(f"<th>{html.escape(head)}</th>" for head in heads), "</tr>"]
    for row in body:
        lines.append("<tr>")
        for head, cell in zip(heads, row, strict=True):
            mark = ""
            if RATIO.fullmatch(cell):
                more = head.startswith("speed") or (head == "ratio" and not row[0].startswith("server CPU"))
                good = float(cell[:-1]) >= 1 if more else float(cell[:-1]) <= 1
                mark = f' class="{"good" if good else "bad"}"'
            lines.append(f"<td{mark}>{html.escape(cell)}</td>")
        lines.append("</tr>")
    return "".join([*lines, "</table>"])
