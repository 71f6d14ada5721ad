"""Which bars are met, and how far a daemon of one thread could come that does nothing but system calls and wake-ups."""

from collections import defaultdict
from collections.abc import Sequence
from typing import Final, TypedDict

from .bars import BARS, Bar, Figure
from .daemons import NATIVE
from .limits import Limit, Range, limits
from .measure import Measurement
from .table import Key, medians, ratios


class Verdict(TypedDict):
    """One figure of one line against its bar.

    Attributes:
        figure: of `bars.Figure`.
        bar: the bound.
        value: ours.
        met: whether that is enough.
        limit: the same of a daemon with one thread whose CPU time and latency are the floor; none if that was not measured.
    """

    row: str
    depth: int
    figure: Figure
    bar: float
    value: float
    met: bool
    limit: Range | None


def verdicts(measurements: Sequence[Measurement]) -> list[Verdict]:
    """Each bar of each line that was measured with what it is measured against."""
    values = _values(measurements)
    judged = []
    for key, of_key in values.items():
        for bar in BARS:
            if bar.figure in of_key and bar.holds_for(key.row, key.depth):
                value, limit = of_key[bar.figure]
                judged.append(
                    Verdict(
                        row=key.row,
                        depth=key.depth,
                        figure=bar.figure,
                        bar=bar.bound,
                        value=value,
                        met=bar.met(value),
                        limit=limit,
                    )
                )
    return judged


def _values(measurements: Sequence[Measurement]) -> dict[Key, dict[Figure, tuple[float, Range | None]]]:
    """Line -> figure -> ours, and the limit. Lines with several queues or a driver that looks are not meant."""
    found = medians(measurements)
    floors: dict[Key, Limit] = {
        Key(one["row"], one["depth"], one["queues"], one["driver"]): one for one in limits(measurements)
    }
    values: dict[Key, dict[Figure, tuple[float, Range | None]]] = {key: {} for key in found}

    for one in ratios(found):
        key = Key(one["row"], one["depth"], one["queues"], one["driver"])
        peers, floor = found[key], floors.get(key)
        rate = peers[one["fastest_peer"]]["ops_per_s"]
        cpu = peers[one["cheapest_peer"]]["daemon_cpu_us"]
        p50 = peers[one["quickest_peer"]]["p50_us"]
        values[key] |= {
            "ops": (one["ops_ratio"], floor and _rates(floor["pace_us"], rate)),
            "cpu": (one["cpu_ratio"], floor and _parts(floor["floor_us"], cpu)),
            "p50": (one["p50_ratio"], floor and _parts(floor["floor_p50_us"], p50)),
        }
    for key, floor in floors.items():
        rate = found[key][NATIVE]["ops_per_s"]
        values[key] |= {
            "native": (floor["ops_ratio"], _rates(floor["pace_us"], rate)),
            "over": (floor["over_us"], floor["wakeups_us"]),
        }
    return {key: of_key for key, of_key in values.items() if key.queues == 1 and key.driver == "blocking"}


def _rates(pace: Range, rate: float) -> Range:
    """What could be done at such a pace, over a rate."""
    return Range(*(1e6 / (end or 1) / (rate or 1) for end in pace))


def _parts(floor: Range, whole: float) -> Range:
    return Range(*(end / (whole or 1) for end in floor))


TITLES: Final[dict[Figure, str]] = {
    "ops": "ops",
    "cpu": "CPU",
    "p50": "p50",
    "native": "ops, ours / native",
    "over": "CPU, ours - bare calls",
}


def rows(measurements: Sequence[Measurement]) -> tuple[list[str], list[list[str]]]:
    """Heads and cells of the table: a line for each row and depth, a column for each figure."""
    cells: dict[Key, dict[Figure, str]] = defaultdict(dict)
    for one in verdicts(measurements):
        cells[Key(one["row"], one["depth"], 1, "blocking")][one["figure"]] = cell(one)
    body = [[key.row, str(key.depth), *(of_key.get(figure, "-") for figure in TITLES)] for key, of_key in cells.items()]
    return ["workload", "QD", *TITLES.values()], body


def cell(one: Verdict) -> str:
    """Ours and the bar, and what is to be had where ours is on the wrong side."""
    unit = " µs" if one["figure"] == "over" else "x"
    least = Bar(one["figure"], one["bar"]).least
    sign = {(True, True): "≥", (True, False): "<", (False, True): "≤", (False, False): ">"}[least, one["met"]]
    text = f"{one['value']:.2f}{unit} {sign} {one['bar']:g}{unit}"
    return text if one["met"] or one["limit"] is None else f"{text} (limit {one['limit'].text(unit)})"


def missed(text: str) -> bool:
    """Whether a cell is on the wrong side of its bar."""
    return " < " in text or " > " in text


def told(measurements: Sequence[Measurement]) -> str:
    """How many are met, and how many of the others no daemon of one thread could meet. Empty if there are no bars."""
    judged = verdicts(measurements)
    if not judged:
        return ""
    short = [one for one in judged if not one["met"]]
    text = f"{len(judged) - len(short)} of {len(judged)} bars are met."
    beyond = [one for one in short if _beyond(one)]
    if any(one["limit"] for one in short):
        text += f" Of the other {len(short)}, {len(beyond)} are beyond a daemon of one thread even where wake-ups are cheapest."
    return text


def _beyond(one: Verdict) -> bool:
    """Whether the bar is beyond the limit. Ours may be too, where several threads serve: `LEGEND`."""
    return one["limit"] is not None and not Bar(one["figure"], one["bar"]).met(one["limit"].near)


LEGEND: Final = (
    "ops, CPU and p50 are ours / the best peer. What is asked for is in `virtiofs.bench.bars`.",
    "The limit, where a bar is missed, is the same figure of a daemon of one thread at the floor, beside the same driver.",
    "Ours may do more than that one in seqread1m from depth 2 on: it shares long READs between processors while others wait.",
)
