"""The tables of `virtiofs bench`, from made-up measurements."""

from typing import Any

import pytest

from virtiofs.bench.bars import BARS
from virtiofs.bench.limits import Range, limits
from virtiofs.bench.report import markdown
from virtiofs.bench.table import medians, ratios
from virtiofs.bench.verdicts import told, verdicts
from virtiofs.bench.wakeup import wakeups

FIGURES = (
    "ops_per_s",
    "mib_per_s",
    "p50_us",
    "p99_us",
    "daemon_cpu_us",
    "driver_cpu_us",
    "kicks_per_op",
    "calls_per_op",
)


def measured(daemon: str, row: str = "getattr", depth: int = 8, **figures: float | str) -> dict[str, Any]:
    line = {"row": row, "depth": depth, "queues": 1, "driver": "blocking", "daemon": daemon, "rss_kib": 1}
    return {**line, **dict.fromkeys(FIGURES, 1.0), **figures}


def woken(place: str, waker: float, delay: float, other: float) -> dict[str, Any]:
    more = {"waker_cpu_us": waker, "delay_us": delay, "woken_cpu_us": other}
    return {"row": "wakeup", "place": place, "daemon": "native", "round_trip_us": 1.0, "round_trip_cpu_us": 1.0, **more}


WAKEUPS = [woken("one", 0.5, 1.0, 1.5), woken("two", 4.0, 20.0, 8.0), woken("free", 2.0, 6.0, 4.0)]


def test_ratios_are_ours_over_the_better_peer() -> None:
    rounds = [measured("ours", ops_per_s=rate, daemon_cpu_us=cpu) for rate, cpu in ((100, 2), (300, 4), (200, 3))]
    peers = [
        measured("slow", ops_per_s=50, daemon_cpu_us=1.5, p50_us=9),
        measured("quick", ops_per_s=160, daemon_cpu_us=6, p50_us=5),
        measured("native", ops_per_s=10_000, daemon_cpu_us=0.1, p50_us=0.1),
    ]
    found = medians(rounds + peers)
    (ratio,) = ratios(found)
    assert (ratio["ops_ratio"], ratio["fastest_peer"]) == (200 / 160, "quick")
    assert (ratio["cpu_ratio"], ratio["cheapest_peer"]) == (2, "slow")
    assert (ratio["p50_ratio"], ratio["quickest_peer"]) == (1 / 5, "quick")
    (figures,) = found.values()
    assert (figures["ours"]["slowest"], figures["ours"]["fastest"]) == (100, 300)


def test_system_calls_are_in_the_lines_of_every_depth_of_their_row() -> None:
    ours = [measured("ours", row, depth) for row in ("getattr", "rename") for depth in (1, 8)]
    ours += [measured("ours", depth=8, queues=2)]
    native = [measured("native", depth=1, ops_per_s=rate) for rate in (10, 30, 20)]
    found = medians([*ours, *native, *WAKEUPS])
    rates = {
        (key.row, key.depth, key.queues): of["native"]["ops_per_s"] if "native" in of else None
        for key, of in found.items()
    }
    assert rates == {
        **{("getattr", depth, 1): 20 for depth in (1, 8)},
        **{("rename", depth, 1): None for depth in (1, 8)},
        ("getattr", 8, 2): 20,
    }
    # Daemons that were not measured leave the system calls a line.
    assert [key.depth for key in medians(native)] == [1]


def test_the_floor_is_system_calls_and_wake_ups() -> None:
    ours = measured("ours", daemon_cpu_us=3.0, ops_per_s=400_000, calls_per_op=0.5, kicks_per_op=0.25)
    native = measured("native", daemon_cpu_us=0.5, p50_us=0.6, ops_per_s=1_600_000)
    (line,) = limits([ours, native, *WAKEUPS])
    assert line["wakeups_us"] == pytest.approx((0.5 * 0.5 + 0.25 * 1.5, 0.5 * 4 + 0.25 * 8))
    assert line["floor_us"] == pytest.approx((0.5 + 0.625, 0.5 + 4))
    assert line["floor_p50_us"] == pytest.approx((0.6 + 0.75 * 1, 0.6 + 0.75 * 20))
    assert (line["native_cpu_us"], line["ours_us"], line["over_us"], line["ops_ratio"]) == (0.5, 3.0, 2.5, 0.25)
    text = markdown([ours, native, *WAKEUPS], ["ours", "native"])
    assert "| getattr | 8 | 0.50 | 0.50 | 0.25 | 0.62 to 4.00 | 1.12 to 4.50 | 3.00 | +2.50 | 1.00 | 0.25x |" in text
    assert (
        "A wake-up of a thread on the same processor costs the waker 0.5 µs of CPU; 1.0 µs until the other runs, "
        "whom it costs 1.5 µs" in text
    )


def test_one_processor_has_one_floor() -> None:
    found = [measured("ours"), measured("native"), WAKEUPS[0], WAKEUPS[2]]
    (line,) = limits(found)
    assert line["floor_us"].near == line["floor_us"].far == 3.0
    assert line["floor_us"].text() == "3.00"
    # The driver's microsecond is taken from the same processor.
    assert line["pace_us"] == (4.0, 4.0)


def test_nobody_is_faster_than_the_driver() -> None:
    found = [measured("ours", driver_cpu_us=5.0), measured("native", daemon_cpu_us=2.0), *WAKEUPS]
    (line,) = limits(found)
    assert line["floor_us"] == pytest.approx((4.0, 14.0))
    assert line["pace_us"] == pytest.approx((5.0, 14.0))


def test_nothing_is_said_of_limits_that_were_not_measured() -> None:
    assert limits([measured("ours"), *WAKEUPS]) == []
    assert limits([measured("ours"), measured("native")]) == []
    found = [measured("ours", ops_per_s=1), measured("peer", ops_per_s=1)]
    assert all(one["limit"] is None for one in verdicts(found))
    text = markdown(found, ["ours", "peer"])
    assert "What is to be had" not in text
    assert "**1.00x < 1.4x**" in text
    assert "### Bars" not in markdown([measured("ours")], ["ours"])


def test_wake_ups_are_medians_of_the_rounds() -> None:
    found = wakeups([woken("free", 1, delay, 1) for delay in (30.0, 1.0, 2.0)])
    assert set(found) == {"free"}
    assert (found["free"]["delay_us"], found["free"]["least"], found["free"]["most"]) == (2.0, 1.0, 30.0)


def test_a_bar_that_is_missed_is_told_with_the_limit() -> None:
    found = [
        measured("ours", daemon_cpu_us=2.0, ops_per_s=500_000, calls_per_op=0.5, kicks_per_op=0.0),
        measured("peer", daemon_cpu_us=4.0, ops_per_s=400_000),
        measured("native", daemon_cpu_us=0.75, ops_per_s=1_200_000),
        *WAKEUPS,
    ]
    judged = {one["figure"]: one for one in verdicts(found)}
    assert set(judged) == {"ops", "cpu", "over"}
    # At the floor, 0.75 µs and half a wake-up, one thread does a million, or 363,636, where the peer does 400,000.
    assert (judged["ops"]["value"], judged["ops"]["bar"], judged["ops"]["met"]) == (1.25, 1.4, False)
    assert judged["ops"]["limit"] == pytest.approx((2.5, 1e6 / 2.75 / 400_000))
    assert (judged["cpu"]["value"], judged["cpu"]["met"]) == (0.5, True)
    assert judged["cpu"]["limit"] == pytest.approx((0.25, 2.75 / 4))
    assert (judged["over"]["value"], judged["over"]["met"]) == (1.25, False)
    assert judged["over"]["limit"] == pytest.approx((0.25, 2.0))
    text = markdown(found, ["ours", "peer", "native"])
    assert (
        "| getattr | 8 | **1.25x < 1.4x (limit 0.91x to 2.50x)** | 0.50x ≤ 0.6x | - | - "
        "| **1.25 µs > 1 µs (limit 0.25 µs to 2.00 µs)** |"
    ) in text
    assert (
        "1 of 3 bars are met. Of the other 2, 0 are beyond a daemon of one thread even where wake-ups are cheapest."
        in text
    )


def test_what_no_daemon_of_one_thread_could_meet_is_counted() -> None:
    # Copying a mebibyte takes 100 µs; the peer needs 110.
    found = [
        measured("ours", "seqwrite1m", daemon_cpu_us=105.0, ops_per_s=9_500, calls_per_op=0.0, kicks_per_op=0.0),
        measured("peer", "seqwrite1m", daemon_cpu_us=110.0, ops_per_s=9_000),
        measured("native", "seqwrite1m", daemon_cpu_us=100.0, ops_per_s=10_000),
        *WAKEUPS,
    ]
    judged = {one["figure"]: one["met"] for one in verdicts(found)}
    assert judged == {"ops": False, "cpu": False, "native": True}
    assert told(found) == (
        "1 of 3 bars are met. Of the other 2, 2 are beyond a daemon of one thread even where wake-ups are cheapest."
    )


def test_latency_has_a_bar_at_depth_1_alone_and_its_limit_is_what_sleepers_wait() -> None:
    def of(depth: int) -> dict[str, Any]:
        found = [
            measured("ours", depth=depth, p50_us=16.0, calls_per_op=1.0, kicks_per_op=0.0),
            measured("peer", depth=depth, p50_us=20.0),
            measured("native", p50_us=0.5),
            *WAKEUPS,
        ]
        return {one["figure"]: one for one in verdicts(found)}

    assert of(1)["p50"]["limit"] == pytest.approx((1.5 / 20, 20.5 / 20))
    assert set(of(1)) == {"p50", "cpu", "over"}
    assert set(of(8)) == {"ops", "cpu", "over"}
    assert set(of(4)) == {"cpu", "over"}


def test_bars_are_for_one_queue_and_a_driver_that_sleeps() -> None:
    for usual in ({"queues": 2}, {"driver": "polling"}):
        found = [measured("ours", **usual), measured("peer", **usual), measured("native"), *WAKEUPS]
        assert limits(found)
        assert verdicts(found) == []


def test_no_figure_of_a_line_has_two_bars() -> None:
    for row in ("getattr", "lookup-hit", "churn4k", "readdirplus", "randread4k", "seqread1m", "rename", "mixed"):
        for depth in (1, 8, 32):
            figures = [bar.figure for bar in BARS if bar.holds_for(row, depth)]
            assert len(figures) == len(set(figures))


def test_a_range_is_told_from_the_less_to_the_more() -> None:
    assert Range(2.5, 0.9).text("x") == "0.90x to 2.50x"
    assert Range(1.001, 1.0).text() == "1.00"
