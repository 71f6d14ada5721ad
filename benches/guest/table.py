"""From single measurements to medians, ratios and tables."""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Callable, Iterable
from typing import Any

from .filesystems import FileSystem

Measurement = dict[str, Any]
Medians = dict[str, dict[str, dict[str, Any]]]

FIGURES = ("figure", "daemon_cpu_us", "qemu_cpu_us", "requests_per_op")


def medians(measurements: Iterable[Measurement]) -> Medians:
    """Row -> file system -> its FIGURES' medians over the rounds, ``spread`` ((max - min) / median of the figure), ``unit``."""
    grouped: dict[str, dict[str, list[Measurement]]] = defaultdict(lambda: defaultdict(list))
    for one in measurements:
        # A row that nobody can do stays, empty.
        cells = grouped[one["row"]]
        if "error" not in one:
            cells[one["file_system"]].append(one)
    result: Medians = {}
    for row, systems in grouped.items():
        result[row] = {}
        for name, rounds in systems.items():
            cell: dict[str, Any] = {key: statistics.median(one[key] for one in rounds) for key in FIGURES}
            values = [one["figure"] for one in rounds]
            cell["spread"] = (max(values) - min(values)) / (cell["figure"] or 1)
            cell["unit"] = rounds[0]["unit"]
            result[row][name] = cell
    return result


def _speed(cell: dict[str, Any]) -> float:
    """More is better, whatever the unit."""
    figure = float(cell["figure"])
    return figure if cell["unit"] == "MiB/s" else 1 / max(figure, 1e-9)


def ratios(found: Medians, known: Iterable[FileSystem]) -> list[dict[str, Any]]:
    """For each row and each other family: its fastest mode, and the fastest of ours that promises as much beside it."""
    systems = {one.name: one for one in known}
    lines = []
    for row, cells in found.items():
        for family in ("9p", "rust"):
            others = [name for name in cells if systems[name].family == family]
            if not others:
                continue
            best = max(others, key=lambda name: _speed(cells[name]))
            data = cells[best]["unit"] == "MiB/s"
            fit = [name for name in cells if systems[name].family == "ours"]
            fit = [name for name in fit if systems[name].promise.covers(systems[best].promise, data=data)]
            if not fit:
                continue
            ours = max(fit, key=lambda name: _speed(cells[name]))
            ratio = _speed(cells[ours]) / _speed(cells[best])
            lines.append({"row": row, "family": family, "peer": best, "ours": ours, "ratio": ratio, "data": data})
            if "ours dax" in fit:
                lines[-1]["dax_ratio"] = _speed(cells["ours dax"]) / _speed(cells[best])
    return lines


def means(lines: list[dict[str, Any]]) -> dict[str, float]:
    """Geometric means of the ratios, by what they are of."""
    groups = {}
    for family in ("9p", "rust"):
        of_family = [line for line in lines if line["family"] == family]
        groups[f"all rows / {family}"] = [line["ratio"] for line in of_family]
        groups[f"data / {family}"] = [line["ratio"] for line in of_family if line["data"]]
        groups[f"names / {family}"] = [line["ratio"] for line in of_family if not line["data"]]
    random = [line for line in lines if line["family"] == "9p" and line["row"].startswith("rand")]
    groups["random rows, dax / 9p"] = [line["dax_ratio"] for line in random if "dax_ratio" in line]
    return {name: statistics.geometric_mean(values) for name, values in groups.items() if values}


def number(value: float) -> str:
    """Three digits that matter."""
    if value >= 100:
        return f"{value:,.0f}"
    return f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def _table(found: Medians, names: list[str], title: str, show: Callable[[dict[str, Any]], str]) -> list[str]:
    lines = [f"| {title} | " + " | ".join(names) + " |", "|---|" + "--:|" * len(names)]
    for row, cells in found.items():
        shown = [show(cells[name]) if name in cells else "-" for name in names]
        lines.append(f"| {row} | " + " | ".join(shown) + " |")
    return lines


def markdown(measurements: list[Measurement], known: list[FileSystem]) -> str:
    """All of it for people: figures, ratios, processor time, requests."""
    found = medians(measurements)
    names = [one.name for one in known]
    lines = ["MiB/s of fio's jobs (more is better), µs per entry of the others (less is better). -: refused.", ""]
    lines += _table(found, names, "workload", lambda cell: number(cell["figure"]))
    against = ratios(found, known)
    lines += [
        "",
        "Speed of the best of ours that promises as much as the other's best, relative to it (above 1: ours is faster).",
        "",
    ]
    lines += ["| workload | best 9p | ours | ratio | best rust | ours | ratio |", "|---|---|---|--:|---|---|--:|"]
    for row in found:
        parts = []
        for family in ("9p", "rust"):
            line = next((one for one in against if one["row"] == row and one["family"] == family), None)
            short = line and [line["peer"].partition(" ")[2], line["ours"].partition(" ")[2]]
            parts.append(f"{short[0]} | {short[1]} | **{line['ratio']:.2f}x**" if line and short else "- | - | -")
        lines.append(f"| {row} | {' | '.join(parts)} |")
    lines += ["", "| geometric mean | ratio |", "|---|--:|"]
    lines += [f"| {name} | **{value:.2f}x** |" for name, value in means(against).items()]
    lines += [
        "",
        "Processor time of the server per operation of fio or entry, µs: the daemon's + QEMU's outside of the guest.",
        "",
    ]
    lines += _table(
        found,
        names,
        "server CPU",
        lambda cell: " + ".join(number(cell[key]) for key in ("daemon_cpu_us", "qemu_cpu_us") if cell[key]),
    )
    lines += ["", "Requests per operation of fio or entry, FORGET not counted.", ""]
    lines += _table(found, names, "requests", lambda cell: number(cell["requests_per_op"]))
    return "\n".join(lines) + "\n"
