"""From single measurements to medians, ratios and tables."""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

from .filesystems import FileSystem
from .work import KEPT

if TYPE_CHECKING:
    from .record import Record

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


def server_cpu_us(cell: dict[str, Any]) -> float:
    """Of the daemon and of QEMU outside of the guest, per operation."""
    return float(cell["daemon_cpu_us"] + cell["qemu_cpu_us"])


def _speed(cell: dict[str, Any]) -> float:
    """More is better, whatever the unit."""
    figure = float(cell["figure"])
    return figure if cell["unit"] == "MiB/s" else 1 / max(figure, 1e-9)


def ratios(found: Medians, known: Iterable[FileSystem]) -> list[dict[str, Any]]:
    """For each row and each other family: its fastest mode, and the fastest of ours that promises as much beside it.

    ``ratio`` is of speed, ``cpu_ratio`` of the servers' processor time per operation, ``requests_ratio`` of requests per
    operation: of these less is better.
    """
    systems = {one.name: one for one in known}
    lines = []
    for row, cells in found.items():
        for family in ("9p", "rust"):
            others = [name for name in cells if systems[name].family == family]
            # Memory is not speed.
            if not others or cells[others[0]]["unit"] == KEPT:
                continue
            best = max(others, key=lambda name: _speed(cells[name]))
            data = cells[best]["unit"] == "MiB/s"
            fit = [name for name in cells if systems[name].family == "ours"]
            fit = [name for name in fit if systems[name].promise.covers(systems[best].promise, data=data)]
            if not fit:
                continue
            ours = max(fit, key=lambda name: _speed(cells[name]))
            pair = {
                "ratio": _speed(cells[ours]) / _speed(cells[best]),
                "cpu_ratio": server_cpu_us(cells[ours]) / max(server_cpu_us(cells[best]), 1e-9),
                "requests_ratio": cells[ours]["requests_per_op"] / max(cells[best]["requests_per_op"], 1e-9),
            }
            lines.append({"row": row, "family": family, "peer": best, "ours": ours, "data": data, **pair})
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
        groups[f"server CPU per operation / {family}"] = [line["cpu_ratio"] for line in of_family]
    random = [line for line in lines if line["family"] == "9p" and line["row"].startswith("rand")]
    groups["random rows, dax / 9p"] = [line["dax_ratio"] for line in random if "dax_ratio" in line]
    return {name: statistics.geometric_mean(values) for name, values in groups.items() if values}


def number(value: float) -> str:
    """Three digits that matter."""
    if value >= 100:
        return f"{value:,.0f}"
    return f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def shown(cell: dict[str, Any]) -> str:
    """A figure, and half of the spread of its rounds if there are several."""
    if cell["unit"] == KEPT:
        return f"{cell['figure']:.1f}"
    return number(cell["figure"]) + (f" ±{cell['spread'] * 50:.0f} %" if cell["spread"] else "")


LEGEND = (
    "MiB/s of fio's jobs (more is better), µs per entry of the others (less is better), of page-cache percent of what was read "
    "that the guest keeps a copy of (less is better); ± half of the rounds' spread. -: refused."
)
AGAINST = (
    "The best of ours that promises as much as the other's best, relative to it: speed (above 1: ours is faster), the server's "
    "CPU and requests per operation (below 1: ours takes fewer)."
)
EMULATED = "Wall time is the emulator's"
CPU = "Processor time of the server per operation of fio or entry, µs: the daemon's + QEMU's outside of the guest."
REQUESTS = "Requests per operation of fio or entry, FORGET not counted."


def title(record: Record) -> str:
    """What the figures depend on."""
    about, sizes = record.machine, record.sizes
    rounds = " to ".join(str(count) for count in sorted(set(record.rounds)))
    low, middle, high = record.loads
    kvm = about["accelerator"] == "kvm"
    words = [
        f"{about['cpu']}, {about['cpus']} CPUs, Linux {about['kernel']}.",
        f"Other programs ran: load average {low:.1f} to {high:.1f}, mostly {middle:.1f}." if middle > 3 else "",
        f"{about['qemu']}, {'KVM' if kvm else 'software emulation'} ({about['accelerator_because']});",
        f"guest Linux {record.guest.get('kernel', '?')}.",
        "" if kvm else f"**{EMULATED}**: what counts are requests and the server's processor time per operation.",
        f"Medians of {rounds} rounds; {sizes.mib} MiB and {sizes.seconds:g} s for a job of fio, {sizes.files:,} files.",
        f"{about['time']}.",
        "" if record.guest.get("complete", True) else "Stopped before the end.",
    ]
    return " ".join(word for word in words if word)


def figures(found: Medians, names: list[str], show: Callable[[dict[str, Any]], str]) -> list[list[str]]:
    """A line for each row: its name, and what ``show`` makes of each cell."""
    return [[row, *(show(cells[name]) if name in cells else "-" for name in names)] for row, cells in found.items()]


def cpu(cell: dict[str, Any]) -> str:
    """The daemon's and QEMU's."""
    return " + ".join(number(cell[key]) for key in ("daemon_cpu_us", "qemu_cpu_us") if cell[key])


RATIO_HEADS = [
    "workload",
    *(
        f"{word}{family}"
        for family in ("9p", "rust")
        for word in ("best ", "ours / ", "speed / ", "CPU / ", "requests / ")
    ),
]


def against(found: Medians, known: Iterable[FileSystem]) -> list[list[str]]:
    """The lines below RATIO_HEADS."""
    lines = ratios(found, known)
    body = []
    for row in found:
        parts = [row]
        for family in ("9p", "rust"):
            line = next((one for one in lines if one["row"] == row and one["family"] == family), None)
            if line is None:
                parts += ["-"] * 5
                continue
            parts += [line["peer"].partition(" ")[2], line["ours"].partition(" ")[2]]
            parts += [f"{line[key]:.2f}x" for key in ("ratio", "cpu_ratio", "requests_ratio")]
        if any(part != "-" for part in parts[1:]):
            body.append(parts)
    return body


def _table(
    heads: list[str], body: list[list[str]], *, left: tuple[int, ...] = (0,), bold: tuple[int, ...] = ()
) -> list[str]:
    """Markdown: numbers, but for the columns in ``left``."""
    rule = "|".join("---" if at in left else "--:" for at in range(len(heads)))
    marked = [[f"**{cell}**" if at in bold and cell != "-" else cell for at, cell in enumerate(line)] for line in body]
    return [f"| {' | '.join(heads)} |", f"|{rule}|", *(f"| {' | '.join(line)} |" for line in marked)]


def markdown(measurements: list[Measurement], known: Iterable[FileSystem]) -> str:
    """All of it for people: figures, ratios, processor time, requests."""
    found = medians(measurements)
    known = list(known)
    names = columns(measurements, known)
    lines = [LEGEND, "", *_table(["workload", *names], figures(found, names, shown))]
    lines += ["", AGAINST, "", *_table(RATIO_HEADS, against(found, known), left=(0, 1, 2, 6, 7), bold=(3, 8))]
    lines += ["", "| geometric mean | ratio |", "|---|--:|"]
    lines += [f"| {name} | **{value:.2f}x** |" for name, value in means(ratios(found, known)).items()]
    lines += ["", CPU, "", *_table(["server CPU", *names], figures(found, names, cpu))]
    per_op = figures(found, names, lambda cell: number(cell["requests_per_op"]))
    lines += ["", REQUESTS, "", *_table(["requests", *names], per_op)]
    return "\n".join(lines) + "\n"


def columns(measurements: list[Measurement], known: Iterable[FileSystem]) -> list[str]:
    """The file systems that were measured, in the order in which they are known."""
    there = {one["file_system"] for one in measurements}
    return [one.name for one in known if one.name in there]
