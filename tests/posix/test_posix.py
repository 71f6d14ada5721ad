"""The suite on the local disk, where every check holds, and its own machinery."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from .check import NotRunError, fails, same
from .comparison import Difference, compare
from .runner import FAILED, NOT_RUN, OK, Result

TOP = Path(__file__).parents[2]


def suite(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    # A process of its own: it forks for each check, and pytest has threads.
    return subprocess.run([sys.executable, "-m", "tests.posix", *arguments], cwd=TOP, capture_output=True, text=True)


@pytest.mark.timeout(300)
def test_every_check_holds_on_the_local_disk(tmp_path: Path) -> None:
    done = suite(tmp_path, "--quiet", "--json", tmp_path / "results.json")
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads((tmp_path / "results.json").read_text())
    assert found["suite"] == "posix"
    results = {row["name"]: row["result"] for row in found["results"]}
    assert FAILED not in results.values()
    assert len(results) > 300
    # Root lacks little on any file system; other users cannot become others.
    wanted = 0.97 if os.geteuid() == 0 else 0.5
    assert list(results.values()).count(OK) > wanted * len(results), done.stdout
    assert os.listdir(tmp_path) == ["results.json"]


def test_names_and_promises_are_listed() -> None:
    listed = suite("--list").stdout.splitlines()
    assert len(listed) > 300
    assert all(len(line.split(maxsplit=1)) == 2 for line in listed)
    (line,) = suite("--list", "--only", "open.excl_refuses.a_dangling_link").stdout.splitlines()
    assert "EEXIST where the name is a dangling link" in line


@pytest.mark.parametrize(
    ("body", "result", "why"),
    [
        ("pass", OK, ""),
        ("assert 1 + 1 == 3", FAILED, "untrue"),
        ("open('none')", FAILED, "ENOENT (No such file or directory)"),
        ("check.same(1, 2, 'number')", FAILED, "number: 1, not 2"),
        ("check.not_run('no reason')", NOT_RUN, "no reason"),
        ("os._exit(3)", FAILED, "its process ended with status 3"),
        ("os.kill(os.getpid(), 11)", FAILED, "its process ended with status -11"),
        ("runner.time.sleep(1000)", FAILED, "hangs: no end after 1 s"),
        ("assert os.listdir() == [] and os.umask(0) == 0o022", OK, ""),
    ],
)
def test_what_a_check_does_is_told(body: str, result: str, why: str, tmp_path: Path) -> None:
    script = f"""
import os, pathlib
from tests.posix import check, runner
runner.PATIENCE = 1.0
def body():
    {body}
(result,) = runner.run(pathlib.Path({str(tmp_path)!r}), [check.Check("a.b", "is a test", body)])
print(result.name, result.result, result.why, sep="|")
"""
    done = subprocess.run([sys.executable, "-c", script], cwd=TOP, capture_output=True, text=True)
    assert done.stdout.startswith(f"a.b|{result}|{why}"), done.stdout + done.stderr
    assert os.listdir(tmp_path) == []


def test_a_wrong_command_line_is_refused(tmp_path: Path) -> None:
    assert "no check matches 'none.*'" in suite(tmp_path, "--only", "none.*").stderr
    assert "say on which directory" in suite().stderr
    assert suite(tmp_path / "none").returncode == 2


def test_words_of_checks() -> None:
    fails(errno.ENOENT, os.stat, "/none")
    with pytest.raises(AssertionError, match="ENOENT, not EEXIST or EPERM"):
        fails((errno.EEXIST, errno.EPERM), os.stat, "/none")
    with pytest.raises(AssertionError, match="succeeded, where EIO is due"):
        fails(errno.EIO, os.stat, "/")
    same(1, 1)
    assert not issubclass(NotRunError, AssertionError)


def test_a_share_is_judged_by_its_control(tmp_path: Path) -> None:
    control = {"a": OK, "b": OK, "c": FAILED, "d": FAILED, "e": NOT_RUN, "f": OK, "g": OK, "h": OK}
    share = {"a": OK, "b": FAILED, "c": FAILED, "d": OK, "e": OK, "f": NOT_RUN, "g": FAILED, "h": OK, "i": OK}
    differences = [
        Difference("g", "known"),
        Difference("h", "known, and mended"),
        Difference("a", "elsewhere", where="none*"),
        Difference("b", "of another kind", where="none*"),
        Difference("none", "there is no such check"),
    ]
    rows = [[Result(name, result) for name, result in side.items()] for side in (control, share)]
    verdict = compare(rows[0], rows[1], differences, "auto")
    assert [line.split(":")[0] for line in verdict.worse] == ["b", "f"]
    assert [line.split(":")[0] for line in verdict.expected] == ["g"]
    assert [line.split(":")[0] for line in verdict.stale] == ["h"]
    assert [line.split(":")[0] for line in verdict.better] == ["d"]
    assert [line.split(":")[0] for line in verdict.missing] == ["i"]
    assert len(verdict.faults()) == 4
    assert compare(rows[0], rows[0], [], "auto").faults() == []


def test_the_exit_status_says_whether_the_share_does_as_its_control(tmp_path: Path) -> None:
    good, bad = tmp_path / "good.json", tmp_path / "bad.json"
    assert suite(tmp_path, "--only", "open.trunc_empties.*", "--json", good).returncode == 0
    bad.write_text(good.read_text().replace('"ok"', '"failed"', 1))
    assert suite("--results", good, "--control", good).returncode == 0
    assert suite("--results", good, "--control", bad).returncode == 0
    done = suite("--results", bad, "--control", good)
    assert done.returncode == 1
    assert "worse: open.trunc_empties." in done.stdout
