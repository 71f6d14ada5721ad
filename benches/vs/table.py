"""From single measurements to medians, ratios and a table."""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Iterable
from typing import Any

Measurement = dict[str, Any]
Key = tuple[str, int]

FIGURES = ("ops_per_s", "mib_per_s", "p50_us", "p99_us", "daemon_cpu_us", "driver_cpu_us", "rss_kib")
MEMORY = ("memory-idle", "memory-inodes")


def medians(measurements: Iterable[Measurement]) -> dict[Key, dict[str, dict[str, float]]]:
    """(row, depth) -> daemon -> figure -> median over the rounds; ``spread`` is (max - min) / median of ops/s."""
    grouped: dict[Key, dict[str, list[Measurement]]] = defaultdict(lambda: defaultdict(list))
    for one in measurements:
        if one["row"] not in MEMORY:
            grouped[one["row"], one["depth"]][one["daemon"]].append(one)
    result: dict[Key, dict[str, dict[str, float]]] = {}
    for key, daemons in grouped.items():
        result[key] = {}
        for daemon, rounds in daemons.items():
            figures = {figure: statistics.median(one[figure] for one in rounds) for figure in FIGURES}
            rates = [one["ops_per_s"] for one in rounds]
            figures["spread"] = (max(rates) - min(rates)) / (figures["ops_per_s"] or 1)
            result[key][daemon] = figures
    return result


def ratios(found: dict[Key, dict[str, dict[str, float]]], ours: str) -> list[dict[str, Any]]:
    """One line per (row, depth) that ours and a peer were measured on: ours over the better peer in each figure."""
    lines = []
    for (row, depth), daemons in found.items():
        peers = {name: figures for name, figures in daemons.items() if name != ours}
        if ours not in daemons or not peers:
            continue
        mine = daemons[ours]
        fastest = max(peers, key=lambda name: peers[name]["ops_per_s"])
        cheapest = min(peers, key=lambda name: peers[name]["daemon_cpu_us"])
        quickest = min(peers, key=lambda name: peers[name]["p50_us"])
        lines.append(
            {
                "row": row,
                "depth": depth,
                "ops_ratio": mine["ops_per_s"] / (peers[fastest]["ops_per_s"] or 1),
                "fastest_peer": fastest,
                "cpu_ratio": mine["daemon_cpu_us"] / (peers[cheapest]["daemon_cpu_us"] or 1),
                "cheapest_peer": cheapest,
                "p50_ratio": mine["p50_us"] / (peers[quickest]["p50_us"] or 1),
            }
        )
    return lines


def number(value: float) -> str:
    """Three digits that matter, thousands as k."""
    if value >= 10_000:
        return f"{value / 1000:.0f}k" if value >= 100_000 else f"{value / 1000:.1f}k"
    if value >= 100:
        return f"{value:.0f}"
    return f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def cell(row: str, figures: dict[str, float] | None) -> str:
    """One daemon's place in the table: rate · CPU · p50 / p99 · spread."""
    if figures is None:
        return "-"
    data = row.startswith(("rand", "seq"))
    rate = f"{number(figures['mib_per_s'])} MiB/s" if data else f"{number(figures['ops_per_s'])}/s"
    latency = f"{number(figures['p50_us'])}/{number(figures['p99_us'])}"
    return f"{rate} · {number(figures['daemon_cpu_us'])} · {latency} · ±{figures['spread'] * 50:.0f} %"


def held(one: Measurement | None, nodes: int) -> str:
    """Resident memory in MiB, and how many nodes it was if the daemon could not hold all."""
    if one is None:
        return "-"
    size = f"{one['rss_kib'] / 1024:.1f}"
    return size if one["nodes"] == nodes else f"{size} (of {one['nodes']:,})"


def markdown(measurements: list[Measurement], daemons: list[str], ours: str) -> str:
    """All of it for people: rates and ratios, then memory."""
    found = medians(measurements)
    ratio = {(line["row"], line["depth"]): line for line in ratios(found, ours)}
    lines = [
        "Each cell: ops/s (MiB/s of data) · daemon CPU µs per op · latency p50/p99 µs · half the spread of the rounds.",
        "Ratios are ours / the better peer; CPU and latency: below 1 is better.",
        "",
        "| workload | QD | " + " | ".join(daemons) + " | ops | CPU | p50 |",
        "|---|--:|" + "---|" * len(daemons) + "--:|--:|--:|",
    ]
    for (row, depth), of_row in found.items():
        line = ratio.get((row, depth))
        shown = "- | - | -"
        if line:
            shown = f"**{line['ops_ratio']:.2f}x** | {line['cpu_ratio']:.2f}x | {line['p50_ratio']:.2f}x"
        cells = " | ".join(cell(row, of_row.get(name)) for name in daemons)
        lines.append(f"| {row} | {depth} | {cells} | {shown} |")
    memory = [one for one in measurements if one["row"] in MEMORY]
    if memory:
        lines += ["", "| resident memory, MiB | " + " | ".join(daemons) + " |", "|---|" + "--:|" * len(daemons)]
        for row in MEMORY:
            of_row = {one["daemon"]: one for one in memory if one["row"] == row}
            nodes = max((int(one["nodes"]) for one in of_row.values()), default=0)
            title = "idle" if row == "memory-idle" else f"{nodes:,} inodes looked up"
            lines.append(f"| {title} | " + " | ".join(held(of_row.get(name), nodes) for name in daemons) + " |")
    return "\n".join(lines) + "\n"
