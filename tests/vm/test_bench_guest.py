"""The benchmark of benches/guest works and measures what it says. Not how fast anything is."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from benches.guest import filesystems, table, work
from benches.guest.record import Record, RecordError

from . import daemon, provision

ROOT = Path(__file__).resolve().parents[2]
ROWS = ["seqread-psync", "randread-mmap", "randwrite-psync", "stat-cold", "unpack", "rm-rf"]
MEMORY = "page-cache"


@pytest.fixture(scope="module")
def result(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What a quick run wrote, with its page as ``page``."""
    if not daemon.is_ours():
        pytest.skip(f"the benchmark compares {daemon.name()} with ours itself")
    if (reason := provision.problem("kernels/9p")) is not None:
        pytest.skip(reason)
    out = tmp_path_factory.mktemp("bench") / "result"
    command = [sys.executable, "benches/guest/run.py", "--quick", "--accel", "tcg", "--out", str(out)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=540, check=False)
    assert done.returncode == 0, done.stderr
    page = out.with_suffix(".md").read_text()
    assert page in done.stdout
    measured: dict[str, Any] = json.loads(out.with_suffix(".json").read_text())
    # Nothing is left to be measured: no guest boots, and nothing changes but what is made of it.
    done = subprocess.run([*command, "--resume"], cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    again = json.loads(out.with_suffix(".json").read_text())
    assert again["measurements"] == measured["measurements"]
    return measured | {
        "page": page,
        "html": out.with_suffix(".html").read_text(),
        "files": sorted(os.listdir(out.parent)),
    }


def names() -> list[str]:
    return ["9p loose", "rust auto", "ours auto", *(["ours dax"] if os.geteuid() == 0 else [])]


def of(result: dict[str, Any], row: str, name: str) -> dict[str, Any]:
    (one,) = (one for one in result["measurements"] if (one["row"], one["file_system"]) == (row, name))
    return dict(one)


def test_everything_is_measured_once(result: dict[str, Any]) -> None:
    found = [(one["row"], one["file_system"]) for one in result["measurements"]]
    assert sorted(found) == sorted((row, name) for row in [*ROWS, MEMORY] for name in names())
    assert result["machine"]["accelerator"] == "tcg"
    for one in result["measurements"]:
        assert "error" not in one, one
        if one["row"] == MEMORY:
            assert one["unit"] == "% kept"
        else:
            assert one["figure"] > 0
            assert one["unit"] == ("MiB/s" if one["row"] in ROWS[:3] else "µs/entry")
        # QEMU does the work of 9p; a daemon does that of the others.
        assert (one["daemon_cpu_us"] > 0) == (one["file_system"] != "9p loose")
        assert one["qemu_cpu_us"] > 0


def test_requests_are_those_of_the_work(result: dict[str, Any]) -> None:
    unpacked = of(result, "unpack", "ours auto")["ops"]
    for name in names():
        ninep = name.startswith("9p")
        counts = {row: of(result, row, name)["requests"] for row in ROWS}
        # 50 files and their folder.
        assert unpacked == 51
        assert counts["unpack"]["lcreate" if ninep else "CREATE"] == 50
        assert counts["rm-rf"]["unlinkat" if ninep else "UNLINK"] >= 50
        assert sum(counts["stat-cold"].values()) > 5
        if name == "ours dax":
            assert counts["randread-mmap"]["SETUPMAPPING"] > 0
            assert "READ" not in counts["randread-mmap"]
            assert "WRITE" not in counts["randwrite-psync"]
        else:
            # Every block once, so each that was read was asked for.
            assert counts["randread-mmap"]["read" if ninep else "READ"] >= of(result, "randread-mmap", name)["ops"]


def test_with_dax_the_guest_keeps_no_copy(result: dict[str, Any]) -> None:
    for name in names():
        kept = of(result, MEMORY, name)["figure"]
        # Percent of 8 MiB; pages of directories and of the system are within it.
        assert (abs(kept) < 15) if name == "ours dax" else (kept > 85), (name, kept)


def test_the_page_needs_nothing_else(result: dict[str, Any]) -> None:
    plots = [f"result-{name}.svg" for name in ("cpu", "figure", "ratios", "requests")]
    assert result["files"] == [*plots, "result.html", "result.json", "result.md"]
    page = result["html"]
    assert page.count("<svg") == len(plots)
    assert "Wall time is the emulator" in page
    # Names of XML are no addresses; nothing is loaded from anywhere.
    assert not re.search(r"""<link|<script src|<img|@import|url\((?!#)|src=["']http""", page)
    data = re.search(r'id="measurements">(.*?)</script>', page, re.DOTALL)
    assert data is not None
    assert json.loads(data[1]) == result["measurements"]


def test_a_run_goes_on_where_it_fits(tmp_path: Path) -> None:
    file, sizes = tmp_path / "out" / "result.json", work.Sizes(8, 0.2, 250, 50)
    rows = [row for row in work.rows(sizes) if row.name in ("unpack", "rm-rf")]
    chosen = [one for one in filesystems.KNOWN if one.name in ("9p loose", "ours auto")]
    costs = {
        "figure": 1.0,
        "daemon_cpu_us": 1.0,
        "qemu_cpu_us": 1.0,
        "requests_per_op": 1.0,
        "unit": "µs/entry",
        "load": 1.0,
    }
    begun = Record(file, {"accelerator": "tcg"}, sizes)
    assert begun.lacking(rows, chosen, 1) == rows
    for one in chosen:
        begun.add({"row": "unpack", "file_system": one.name, "round": 0, **costs})
    going = Record(file, {"accelerator": "tcg"}, sizes, resume=True)
    assert [row.name for row in going.lacking(rows, chosen, 1)] == ["rm-rf"]
    assert going.lacking(rows, chosen, 2) == rows
    assert Record(file, {"accelerator": "tcg"}, sizes).measurements == []
    with pytest.raises(RecordError, match="kvm"):
        Record(file, {"accelerator": "kvm"}, sizes, resume=True)
    file.write_text("{}")
    with pytest.raises(RecordError, match="no measurements"):
        Record(file, {"accelerator": "tcg"}, sizes, resume=True)


def test_the_page_has_every_row(result: dict[str, Any]) -> None:
    lines = result["page"].splitlines()
    assert "software emulation" in lines[0]
    # No ratios of what is no speed.
    assert len([line for line in lines if line.startswith(f"| {MEMORY} |")]) == 3
    for row in ROWS:
        # Figures, ratios, processor time, requests.
        assert len([line for line in lines if line.startswith(f"| {row} |")]) == 4
    assert {(line["row"], line["family"]) for line in result["ratios"]} == {
        (row, family) for row in ROWS for family in ("9p", "rust")
    }
    assert result["means"]["all rows / 9p"] > 0


def test_the_guest_is_content(result: dict[str, Any]) -> None:
    # Rust virtiofsd answers DESTROY without a header, which this kernel remarks at each unmount.
    known = "virtio-fs: response too short (0)"
    assert [line for line in result["machine"]["guest"]["complaints"] if known not in line] == []


def test_ours_is_compared_at_the_same_promise() -> None:
    def one(row: str, name: str, figure: float, unit: str) -> dict[str, Any]:
        costs = {"daemon_cpu_us": 1.0, "qemu_cpu_us": 1.0, "requests_per_op": 1.0}
        return {"row": row, "file_system": name, "figure": figure, "unit": unit, **costs}

    measurements = [
        *(one("names", name, figure, "µs/entry") for name, figure in [("9p none", 8), ("9p loose", 9)]),
        *(one("names", name, figure, "µs/entry") for name, figure in [("ours none", 4), ("ours always", 1)]),
        *(one("data", name, figure, "MiB/s") for name, figure in [("9p mmap", 10), ("9p loose", 5)]),
        *(one("data", name, figure, "MiB/s") for name, figure in [("ours auto", 30), ("ours always", 40)]),
        {"row": "data", "file_system": "9p none", "error": "no"},
    ]
    lines = table.ratios(table.medians(measurements), filesystems.KNOWN)
    # Nothing is cached by 9p's none: not to be beaten by remembering. mmap's data is checked at open, as that of auto.
    assert [(line["row"], line["peer"], line["ours"], line["ratio"]) for line in lines] == [
        ("names", "9p none", "ours none", 2.0),
        ("data", "9p mmap", "ours auto", 3.0),
    ]
    assert table.means(lines)["all rows / 9p"] == pytest.approx(6**0.5)
