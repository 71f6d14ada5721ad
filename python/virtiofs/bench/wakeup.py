"""What it costs to wake a thread here, measured beside the rows and without a daemon."""

import os
import statistics
from collections.abc import Iterable, Iterator
from typing import Any, Final, Literal, TypeAlias, TypedDict, cast

from virtiofs import _core

from .daemons import NATIVE

WAKEUP: Final = "wakeup"
"""The row of such measurements."""

Place: TypeAlias = Literal["one", "two", "free"]
"""Both threads on one processor; on two; where the scheduler puts them, as it does those of daemons and drivers."""


class WakeUp(TypedDict):
    """Medians over the rounds, in µs; `least` and `most` are of `delay_us`."""

    waker_cpu_us: float
    delay_us: float
    woken_cpu_us: float
    round_trip_us: float
    round_trip_cpu_us: float
    least: float
    most: float


WakeUps: TypeAlias = dict[Place, WakeUp]


def measure_wakeups(seconds: float) -> Iterator[dict[str, Any]]:
    """One measurement for each place."""
    allowed = sorted(os.sched_getaffinity(0))
    places: dict[Place, tuple[int, int] | None] = {"one": (allowed[0], allowed[0]), "free": None}
    if len(allowed) > 1:
        places["two"] = (allowed[0], allowed[1])
    for place, processors in places.items():
        figures = _core.load_wakeup(seconds=seconds, processors=processors)
        yield {"row": WAKEUP, "place": place, "daemon": NATIVE, **figures}


def wakeups(measurements: Iterable[dict[str, Any]]) -> WakeUps:
    """Place -> medians; nothing of what was not measured."""
    rounds: dict[Place, list[dict[str, Any]]] = {}
    for one in measurements:
        if one["row"] == WAKEUP:
            rounds.setdefault(one["place"], []).append(one)
    return {place: _median(of_place) for place, of_place in rounds.items()}


def _median(rounds: list[dict[str, Any]]) -> WakeUp:
    figures = [name for name in WakeUp.__annotations__ if name not in ("least", "most")]
    middle = {name: statistics.median(one[name] for one in rounds) for name in figures}
    delays = [one["delay_us"] for one in rounds]
    return cast(WakeUp, middle | {"least": min(delays), "most": max(delays)})


def told(found: WakeUps) -> str:
    """A paragraph about them; empty if there are none."""
    names: dict[Place, str] = {
        "one": "of a thread on the same processor",
        "two": "of one on another processor that idles",
    }
    lines = [
        f"A wake-up {where} costs the waker {cost['waker_cpu_us']:.1f} µs of CPU; {cost['delay_us']:.1f} µs until the other "
        f"runs, whom it costs {cost['woken_cpu_us']:.1f} µs of CPU to fall asleep and to come back."
        for place, where in names.items()
        if (cost := found.get(place))
    ]
    if free := found.get("free"):
        lines.append(
            f"Left to the scheduler: {free['waker_cpu_us']:.1f} µs of CPU; {free['delay_us']:.1f} µs until the other runs "
            f"({free['least']:.1f} to {free['most']:.1f} in single rounds)."
        )
    return " ".join(lines)
