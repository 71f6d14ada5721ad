"""From single measurements to medians, ratios and the table of them."""

import statistics
from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import Final, NamedTuple, TypedDict, cast

from .daemons import NATIVE, OURS
from .measure import Measurement
from .wakeup import WAKEUP

FIGURES: Final = (
    *("ops_per_s", "mib_per_s", "p50_us", "p99_us", "daemon_cpu_us", "driver_cpu_us", "kicks_per_op", "calls_per_op"),
    "rss_kib",
)
MEMORY: Final = ("memory-idle", "memory-inodes")


class Key(NamedTuple):
    """A line of the table."""

    row: str
    depth: int
    queues: int
    driver: str

    @property
    def label(self) -> str:
        """The row, and what is not as usual about it."""
        more = [f"{self.queues} queues"] if self.queues > 1 else []
        more += [self.driver] if self.driver != "blocking" else []
        return f"{self.row} ({', '.join(more)})" if more else self.row


class Figures(TypedDict):
    """Medians over the rounds; `slowest` and `fastest` are of ops/s."""

    ops_per_s: float
    mib_per_s: float
    p50_us: float
    p99_us: float
    daemon_cpu_us: float
    driver_cpu_us: float
    kicks_per_op: float
    calls_per_op: float
    rss_kib: float
    slowest: float
    fastest: float


class Ratio(TypedDict):
    """Ours over the best peer in each figure: of rates more is better, of CPU and latency less."""

    row: str
    depth: int
    queues: int
    driver: str
    ops_ratio: float
    fastest_peer: str
    cpu_ratio: float
    cheapest_peer: str
    p50_ratio: float
    quickest_peer: str


Found = dict[Key, dict[str, Figures]]


def medians(measurements: Iterable[Measurement]) -> Found:
    """Line -> daemon -> figures. System calls, which have no depth, are in each line of their row."""
    grouped: dict[Key, dict[str, list[Measurement]]] = defaultdict(lambda: defaultdict(list))
    native: dict[str, list[Measurement]] = defaultdict(list)
    for one in measurements:
        if one["row"] in (*MEMORY, WAKEUP):
            continue
        if one["daemon"] == NATIVE:
            native[one["row"]].append(one)
        else:
            grouped[Key(one["row"], one["depth"], one["queues"], one["driver"])][one["daemon"]].append(one)
    for row, rounds in native.items():
        for key in [key for key in grouped if key.row == row] or [Key(row, 1, 1, "blocking")]:
            grouped[key][NATIVE] = rounds
    return {key: {daemon: _median(rounds) for daemon, rounds in daemons.items()} for key, daemons in grouped.items()}


def _median(rounds: Sequence[Measurement]) -> Figures:
    middle: dict[str, float] = {figure: statistics.median(one[figure] for one in rounds) for figure in FIGURES}
    rates = [one["ops_per_s"] for one in rounds]
    return cast(Figures, middle | {"slowest": min(rates), "fastest": max(rates)})


def ratios(found: Found) -> list[Ratio]:
    """For each line that ours and a peer were measured on. System calls are no peer."""
    lines = []
    for key, daemons in found.items():
        peers = {name: figures for name, figures in daemons.items() if name not in (OURS, NATIVE)}
        if OURS not in daemons or not peers:
            continue
        mine = daemons[OURS]
        fastest = max(peers, key=lambda name: peers[name]["ops_per_s"])
        cheapest = min(peers, key=lambda name: peers[name]["daemon_cpu_us"])
        quickest = min(peers, key=lambda name: peers[name]["p50_us"])
        lines.append(
            Ratio(
                row=key.row,
                depth=key.depth,
                queues=key.queues,
                driver=key.driver,
                ops_ratio=mine["ops_per_s"] / (peers[fastest]["ops_per_s"] or 1),
                fastest_peer=fastest,
                cpu_ratio=mine["daemon_cpu_us"] / (peers[cheapest]["daemon_cpu_us"] or 1),
                cheapest_peer=cheapest,
                p50_ratio=mine["p50_us"] / (peers[quickest]["p50_us"] or 1),
                quickest_peer=quickest,
            )
        )
    return lines


def number(value: float) -> str:
    """Three digits that matter, thousands as k."""
    if value >= 10_000:
        return f"{value / 1000:.0f}k" if value >= 100_000 else f"{value / 1000:.1f}k"
    if value >= 100:
        return f"{value:.0f}"
    return f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def cell(row: str, figures: Figures | None) -> str:
    """One daemon's place in the table: rate · CPU · p50/p99 · half the spread of the rates."""
    if figures is None:
        return "-"
    data = row.startswith(("rand", "seq"))
    rate = f"{number(figures['mib_per_s'])} MiB/s" if data else f"{number(figures['ops_per_s'])}/s"
    latency = f"{number(figures['p50_us'])}/{number(figures['p99_us'])}"
    spread = (figures["fastest"] - figures["slowest"]) / (figures["ops_per_s"] or 1) * 50
    return f"{rate} · {number(figures['daemon_cpu_us'])} · {latency} · ±{spread:.0f} %"


def held(one: Measurement | None, nodes: int) -> str:
    """Resident memory in MiB, and how many nodes it was if the daemon could not hold all."""
    if one is None:
        return "-"
    size = f"{one['rss_kib'] / 1024:.1f}"
    return size if one["nodes"] == nodes else f"{size} (of {one['nodes']:,})"


def rows(measurements: Sequence[Measurement], names: Sequence[str]) -> tuple[list[str], list[list[str]]]:
    """Heads and cells of the table of rates."""
    found = medians(measurements)
    ratio = {Key(line["row"], line["depth"], line["queues"], line["driver"]): line for line in ratios(found)}
    heads = ["workload", "QD", *names, "ops", "CPU", "p50"]
    body = []
    for key, of_key in found.items():
        line = ratio.get(key)
        shown = ["-", "-", "-"]
        if line:
            shown = [f"{line['ops_ratio']:.2f}x", f"{line['cpu_ratio']:.2f}x", f"{line['p50_ratio']:.2f}x"]
        body.append([key.label, str(key.depth), *(cell(key.row, of_key.get(name)) for name in names), *shown])
    return heads, body


def memory_rows(measurements: Sequence[Measurement], names: Sequence[str]) -> tuple[list[str], list[list[str]]]:
    """Heads and cells of the table of memory; no cells if it was not measured."""
    memory = [one for one in measurements if one["row"] in MEMORY]
    body = []
    for row in MEMORY if memory else ():
        of_row = {one["daemon"]: one for one in memory if one["row"] == row}
        nodes = max((int(one["nodes"]) for one in of_row.values()), default=0)
        title = "idle" if row == "memory-idle" else f"{nodes:,} inodes looked up"
        body.append([title, *(held(of_row.get(name), nodes) for name in names)])
    return ["resident memory, MiB", *names], body


LEGEND: Final = (
    "Each cell: ops/s (MiB/s of data) · daemon CPU µs per op · latency p50/p99 µs · half the spread of the rounds.",
    "Ratios are ours / the best peer; CPU and latency: below 1 is better.",
    "`native` are the bare system calls in one thread, whatever the depth, and no peer.",
)
