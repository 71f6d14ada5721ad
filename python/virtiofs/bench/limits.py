"""What is to be had: for each row, what its bare system calls and its wake-ups cost without a daemon around them."""

from collections.abc import Sequence
from typing import Final, NamedTuple, TypedDict

from .daemons import NATIVE, OURS
from .measure import Measurement
from .table import Figures, Key, medians, number
from .wakeup import WakeUp, WakeUps, wakeups


class Range(NamedTuple):
    """With wake-ups on one processor, the cheapest there are, and with those of another one that idles."""

    near: float
    far: float

    def text(self, unit: str = "") -> str:
        """From the less to the more; once if both look the same."""
        shown = [f"{number(end)}{unit}" for end in sorted(self)]
        return shown[0] if shown[0] == shown[1] else f"{shown[0]} to {shown[1]}"


class Limit(TypedDict):
    """One line. What it says of the daemon is of ours; a floor is per operation, in µs.

    Attributes:
        native_cpu_us: CPU time of the bare system calls.
        calls_per_op: how often the driver slept until the daemon called; not while FORGETs waited for room in their queue.
        kicks_per_op: how often the driver kicked the daemon.
        wakeups_us: CPU time of the daemon for so many of both.
        floor_us: of CPU: system calls and wake-ups, and nothing of the daemon's own.
        floor_p50_us: of latency, likewise.
        pace_us: what an operation takes at least: the floor, or what the driver takes if that is more; both, on one processor.
        ours_us: CPU time of the daemon.
        over_us: beyond the bare system calls'.
        driver_us: CPU time of the driver.
        ops_ratio: ops/s of ours / those of bare system calls in one thread.
    """

    row: str
    depth: int
    queues: int
    driver: str
    native_cpu_us: float
    calls_per_op: float
    kicks_per_op: float
    wakeups_us: Range
    floor_us: Range
    floor_p50_us: Range
    pace_us: Range
    ours_us: float
    over_us: float
    driver_us: float
    ops_ratio: float


def limits(measurements: Sequence[Measurement]) -> list[Limit]:
    """For each line that ours and system calls were measured on. Nothing without wake-ups."""
    costs = wakeups(measurements)
    if "one" not in costs:
        return []
    found = medians(measurements)
    return [
        _limit(key, of_key[OURS], of_key[NATIVE], costs)
        for key, of_key in found.items()
        if OURS in of_key and NATIVE in of_key
    ]


def _limit(key: Key, ours: Figures, native: Figures, costs: WakeUps) -> Limit:
    calls, kicks = ours["calls_per_op"], ours["kicks_per_op"]

    def cpu(cost: WakeUp) -> float:
        # The daemon wakes the driver by a call, and is woken by a kick.
        return calls * cost["waker_cpu_us"] + kicks * cost["woken_cpu_us"]

    one, two = costs["one"], costs.get("two", costs["one"])
    spent = Range(cpu(one), cpu(two))
    floor = Range(*(native["daemon_cpu_us"] + end for end in spent))
    driver = ours["driver_cpu_us"]
    waited = Range((calls + kicks) * one["delay_us"], (calls + kicks) * two["delay_us"])
    return Limit(
        row=key.row,
        depth=key.depth,
        queues=key.queues,
        driver=key.driver,
        native_cpu_us=native["daemon_cpu_us"],
        calls_per_op=calls,
        kicks_per_op=kicks,
        wakeups_us=spent,
        floor_us=floor,
        floor_p50_us=Range(*(native["p50_us"] + end for end in waited)),
        pace_us=Range(*(max(end, driver) if "two" in costs else end + driver for end in floor)),
        ours_us=ours["daemon_cpu_us"],
        over_us=ours["daemon_cpu_us"] - native["daemon_cpu_us"],
        driver_us=driver,
        ops_ratio=ours["ops_per_s"] / (native["ops_per_s"] or 1),
    )


HEADS: Final = (
    *("workload", "QD", "bare calls", "calls", "kicks", "wake-ups", "floor", "ours", "ours - bare"),
    *("driver", "ops, ours / native"),
)

LEGEND: Final = (
    "CPU µs per op: bare system calls; as many bare wake-ups as ours gives (calls) and takes (kicks); both, the floor; ours.",
    "Wake-ups, and what follows from them, are from those on one processor to those of another that idles.",
    "Ours is below the floor where it needs no system call, or where nobody slept who was woken.",
)


def rows(measurements: Sequence[Measurement]) -> tuple[list[str], list[list[str]]]:
    """Heads and cells of the table; no cells if it was not measured."""
    body = []
    for line in limits(measurements):
        key = Key(line["row"], line["depth"], line["queues"], line["driver"])
        body.append(
            [
                key.label,
                str(key.depth),
                number(line["native_cpu_us"]),
                f"{line['calls_per_op']:.2f}",
                f"{line['kicks_per_op']:.2f}",
                line["wakeups_us"].text(),
                line["floor_us"].text(),
                number(line["ours_us"]),
                f"{line['over_us']:+.2f}",
                number(line["driver_us"]),
                f"{line['ops_ratio']:.2f}x",
            ]
        )
    return list(HEADS), body
