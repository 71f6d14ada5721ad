"""`virtiofs bench`: that it measures what it says, not how fast anything is."""

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest

from tests.daemon import virtiofs
from virtiofs import _core
from virtiofs.bench import Daemon, Plan, known, measure
from virtiofs.bench.measure import steps
from virtiofs.bench.report import markdown

SHORT = Plan(seconds=0.02, warm=0.0, rounds=2, inodes=200, native=False)
OURS = known(rust="/nonexistent", c="/nonexistent")[:1]


@pytest.mark.timeout(240)
def test_every_row_does_its_work_over_vhost_user_and_natively(tmp_path: Path) -> None:
    plan = Plan(depths=(1, 4), seconds=0.25, warm=0.0, rounds=1, inodes=0)
    told: list[str] = []
    found = measure(plan, OURS, tmp_path, progress=told.append, failed=pytest.fail)
    assert len(told) == steps(plan, OURS)
    rows = [one for one in found if one["row"] != "wakeup"]
    assert {one["row"] for one in rows} == set(_core.load_rows())
    # System calls have no depth.
    assert len(rows) == len(plan.rows) * (len(plan.depths) + 1)
    for one in rows:
        assert one["ops"] > 0, one
        assert 0 < one["p50_us"] <= one["p99_us"], one
        assert one["daemon_cpu_us"] > 0, one
        assert (one["daemon"] == "native") == (one["kicks_per_op"] == 0), one
        assert (one["mib_per_s"] > 0) == (one["row"] == "churn4k" or one["row"].startswith(("rand", "seq"))), one
    # Nothing of the work is left behind.
    assert sorted(path.name for path in tmp_path.iterdir()) == ["big", "list", "many", "work"]
    assert list((tmp_path / "work").iterdir()) == []


def test_queues_drivers_and_memory(tmp_path: Path) -> None:
    plan = replace(SHORT, rows=("getattr",), depths=(2,), queues=(1, 2), drivers=("blocking", "polling"))
    found = measure(plan, OURS, tmp_path, failed=pytest.fail)
    ways = {(one["queues"], one["driver"]) for one in found if one["row"] == "getattr"}
    assert ways == {(queues, driver) for queues in (1, 2) for driver in ("blocking", "polling")}
    idle, held = (one for one in found if one["row"].startswith("memory"))
    assert (idle["nodes"], held["nodes"]) == (0, 200)
    assert 0 < idle["rss_kib"] <= held["rss_kib"]
    assert "getattr (2 queues, polling)" in markdown(found, ["ours"])


def test_a_daemon_that_does_not_start_is_told_and_the_others_go_on(tmp_path: Path) -> None:
    plan = replace(SHORT, rows=("getattr",), depths=(1,))
    failed: list[str] = []
    broken = Daemon("broken", "false {dir} {sock}")
    found = measure(plan, [*OURS, broken], tmp_path, failed=failed.append)
    assert {one["daemon"] for one in found} == {"ours"}
    assert len(failed) == plan.rounds + 1
    assert all("broken" in line for line in failed)


def test_the_command_writes_a_page_that_needs_nothing_else(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    stem = tmp_path / "out" / "result"
    short = ["--rows", "getattr,mixed", "--depth", "1,2", "--rounds", "1", "--seconds", "0.02", "--inodes", "100"]
    done = virtiofs("bench", *short, "--only", "ours", "--dir", str(tmp_path / "data"), "--out", str(stem))
    assert done.returncode == 0, done.stderr
    assert "| getattr | 1 |" in done.stdout
    assert stem.with_suffix(".md").read_text().strip() == done.stdout.strip()
    result = json.loads(stem.with_suffix(".json").read_text())
    assert result["machine"]["cpus"] > 0
    assert {"one", "free"} <= set(result["wakeup"])
    assert [(one["row"], one["depth"]) for one in result["limits"]] == [
        (row, depth) for row in ("getattr", "mixed") for depth in (1, 2)
    ]
    # No peer: no ratios, but bare system calls.
    assert {one["figure"] for one in result["bars"]} == {"over"}
    for title in ("What is to be had", "Bars"):
        assert f"### {title}" in done.stdout
    assert result["daemons"]["ours"]["version"].startswith("virtiofs ")
    # Not where Python lies on this machine.
    assert re.match(r"python[\d.]* -m virtiofs serve {dir} ", result["daemons"]["ours"]["command"])
    assert "- ours: virtiofs " in done.stdout
    page = stem.with_suffix(".html").read_text()
    assert page.count("<svg") == 4
    assert "<h2>What is to be had</h2>" in page
    assert "<h2>Bars</h2>" in page
    # Names of XML are no addresses; nothing is loaded from anywhere.
    assert not re.search(r"""<link|<script src|<img|@import|url\((?!#)|src=["']http""", page)
    data = re.search(r'id="measurements">(.*?)</script>', page, re.DOTALL)
    assert data is not None
    assert json.loads(data[1]) == result["measurements"]
    for figure in ("ops-per-s", "daemon-cpu-us", "p50-us", "p99-us"):
        assert stem.with_name(f"result-{figure}.svg").read_text().lstrip().startswith("<?xml")
        assert stem.with_name(f"result-{figure}.png").read_bytes().startswith(b"\x89PNG")


def test_lines_that_are_not_measured_again_can_be_kept(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    stem = tmp_path / "result"
    common = [
        "--seconds",
        "0.02",
        "--inodes",
        "0",
        "--only",
        "ours",
        "--dir",
        str(tmp_path / "data"),
        "--out",
        str(stem),
    ]

    def run(*options: str) -> list[dict[str, object]]:
        done = virtiofs("bench", *common, *options)
        assert done.returncode == 0, done.stderr
        assert stem.with_suffix(".md").read_text().strip() == done.stdout.strip()
        found: list[dict[str, object]] = json.loads(stem.with_suffix(".json").read_text())["measurements"]
        return found

    def ours(found: list[dict[str, object]]) -> list[dict[str, object]]:
        return [one for one in found if one["daemon"] == "ours"]

    first = run("--rows", "rename", "--depth", "1,8", "--rounds", "1")
    second = run("--rows", "getattr,rename", "--depth", "8", "--rounds", "2", "--keep")
    # Rows in their usual order, the line that was measured again anew, with the system calls of its row, the other as it was.
    assert [(one["row"], one["depth"]) for one in ours(second)] == [("getattr", 8)] * 2 + [("rename", 1)] + [
        ("rename", 8)
    ] * 2
    assert [one for one in ours(second) if one["depth"] == 1] == [one for one in ours(first) if one["depth"] == 1]
    assert all(one not in second for one in first if one not in ours(first))
    assert "medians of 1 to 2 rounds" in stem.with_suffix(".md").read_text()

    kept = stem.with_suffix(".json")
    whole = kept.read_text()
    for old, new, said in (
        ('"filesystem": "', '"filesystem": "not ', "--keep: the filesystem was not "),
        ('"version": "virtiofs ', '"version": "virtiofs of old ', "--keep: ours was virtiofs of old "),
        # A result of before `kicks_per_op`: refused now, not when its table is made after the measuring.
        ('"kicks_per_op"', '"kicks"', "is no result of this version of virtiofs bench (KeyError('kicks_per_op'))"),
    ):
        kept.write_text(whole.replace(old, new))
        done = virtiofs("bench", *common, "--rows", "getattr", "--keep")
        assert (done.returncode, done.stderr.count("\n")) == (2, 1)
        assert said in done.stderr


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--rows", "getattr,nothing"], "'nothing'"),
        (["--depth", "0"], "'0'"),
        (["--depth", "x"], "'x'"),
        (["--driver", "sleeping"], "'sleeping'"),
        (["--rounds", "0"], "--rounds: 0"),
        (["--seconds", "-1"], "--seconds: -1"),
        (["--only", "nobody"], "no nobody here; there are ours"),
        (["--keep"], "--keep keeps what is in the files of --out"),
        (["--keep", "--out", "/nonexistent/result"], "--keep: [Errno 2]"),
    ],
)
def test_bad_input_is_one_line(arguments: list[str], said: str) -> None:
    done = virtiofs("bench", *arguments)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert said in done.stderr
