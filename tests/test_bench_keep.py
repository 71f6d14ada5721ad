"""What `virtiofs bench --keep` puts together, from made-up measurements."""

import json
import os
import re
from pathlib import Path
from typing import Any

import pytest

from tests.test_bench_table import WAKEUPS, measured
from virtiofs.bench.machine import Machine, describe, title
from virtiofs.bench.result import Result, Told
from virtiofs.errors import ConfigError

HERE = Machine(kernel="6", cpu="quick", cpus=2, filesystem="tmpfs", load_average=0.0, time="now")


def of(
    *measurements: dict[str, Any], machine: Machine = HERE, rust: str = "virtiofsd 1.14", ours: str = "virtiofs 1"
) -> Result:
    daemons = {"ours": Told(command="virtiofs", version=ours), "rust": Told(command="virtiofsd", version=rust)}
    return Result(machine, daemons, list(measurements))


def written(result: Result, stem: Path) -> Path:
    kept = {"machine": result.machine, "daemons": result.daemons, "measurements": result.measurements}
    stem.with_suffix(".json").write_text(json.dumps(kept))
    return stem


def beside(row: str) -> list[dict[str, Any]]:
    """System calls and wake-ups, measured with a row."""
    return [measured("native", row, depth=1), *(one | {"beside": row} for one in WAKEUPS)]


def test_what_can_be_told_can_be_kept(tmp_path: Path) -> None:
    result = of(
        measured("ours"), *beside("getattr"), {"row": "memory-idle", "daemon": "ours", "nodes": 0, "rss_kib": 9}
    )
    assert Result.read(written(result, tmp_path / "result")) == result


@pytest.mark.parametrize(
    ("machine", "line"),
    [
        (HERE, {one: figure for one, figure in measured("ours").items() if one != "kicks_per_op"}),
        (HERE, {"row": "memory-idle", "daemon": "ours"}),
        (HERE, {"row": "wakeup", "daemon": "native", "place": "one"}),
        ({"cpu": "quick"}, measured("ours")),
    ],
)
def test_what_cannot_be_told_is_refused_when_it_is_read(tmp_path: Path, machine: Any, line: dict[str, Any]) -> None:
    stem = written(of(line, machine=machine), tmp_path / "result")
    with pytest.raises(ConfigError, match=r"result\.json is no result of this version of virtiofs bench"):
        Result.read(stem)


def test_lines_of_another_version_of_a_daemon_do_not_go_together() -> None:
    earlier = of(measured("ours"), measured("rust"))
    earlier.goes_with(of())
    for now, said in (
        (of(rust="virtiofsd 1.15"), "rust was virtiofsd 1.14, and is virtiofsd 1.15 now: leave --keep out"),
        (of(ours="virtiofs 2"), "ours was virtiofs 1, and is virtiofs 2 now"),
    ):
        with pytest.raises(ConfigError, match=re.escape(said)):
            earlier.goes_with(now)
    # Who is not measured now has its lines, or leaves them to others: their version stays true.
    del earlier.daemons["rust"]
    earlier.goes_with(of(rust="virtiofsd 1.15"))


def test_processors_are_those_that_may_be_used(tmp_path: Path) -> None:
    allowed = os.sched_getaffinity(0)
    all_of = describe(tmp_path)
    assert all_of["cpus"] == len(allowed)
    if len(allowed) == 1:
        pytest.skip("there is but one")
    os.sched_setaffinity(0, [min(allowed)])
    try:
        one = describe(tmp_path)
    finally:
        os.sched_setaffinity(0, allowed)
    assert one["cpus"] == 1
    assert "1 CPUs to use" in title(one, [3])
    with pytest.raises(ConfigError, match=f"the cpus was {len(allowed)}, and is 1 now"):
        of(machine=all_of).goes_with(of(machine=one))


def test_system_calls_and_wake_ups_go_with_their_row() -> None:
    old = measured("ours", "rename", 8)
    earlier = of(measured("ours", "getattr", 8), *beside("getattr"), old, *beside("rename"))
    anew = measured("ours", "getattr", 8, ops_per_s=2.0)
    assert of(anew).keeping(earlier).measurements == [anew, *beside("rename"), old]
    assert of(anew, *beside("getattr")).keeping(earlier).measurements == [
        *beside("getattr"),
        anew,
        *beside("rename"),
        old,
    ]
