"""`virtiofs demo` tells the truth."""

import re
from pathlib import Path

from tests.daemon import virtiofs


def test_demo() -> None:
    done = virtiofs("demo")
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert "b'hello, guest\\n'" in done.stdout
    assert re.search(r"compare them on the host +\d+ files, all the same", done.stdout)
    assert "it hangs" not in done.stdout
    assert re.search(r"close .* [\d,]+ requests served", done.stdout)
    assert all(len(line) < 120 for line in done.stdout.splitlines())


def test_demo_changes_nothing_in_a_directory_of_yours(share: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in [share, *share.rglob("*")]}
    done = virtiofs("demo", share)
    assert done.returncode == 0, done.stderr
    assert "walk the tree" in done.stdout
    assert {path: path.stat().st_mtime_ns for path in [share, *share.rglob("*")]} == before


def test_demo_of_a_missing_directory(tmp_path: Path) -> None:
    done = virtiofs("demo", tmp_path / "missing")
    assert done.returncode == 2
    assert "no such file or directory" in done.stderr
    assert done.stderr.count("\n") == 1
