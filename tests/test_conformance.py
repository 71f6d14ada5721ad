"""How `make conformance` reads what suites print, and what it makes of it."""

from __future__ import annotations

import subprocess
from dataclasses import replace
from pathlib import Path

from tests.conformance import record, table
from tests.conformance.ground import CONTROL, COUNTERS
from tests.conformance.record import Record, Store
from tests.conformance.suites import pjdfstest, xfstests
from tests.posix.runner import FAILED, NOT_RUN, OK, Result

CHECK = """\
FSTYP         -- virtiofs
PLATFORM      -- Linux/x86_64 guest 7.2.7
MKFS_OPTIONS  -- conformance-scratch
MOUNT_OPTIONS -- conformance-scratch /mnt/scratch

generic/013       {said}
Ran: generic/013
{end}
"""


def test_pjdfstest_has_a_result_for_each_test_that_was_planned() -> None:
    lines = ["1..3", "ok 1", "not ok 2 - tried 'open x', expected 0, got EIO", "not ok 3 # TODO known upstream"]
    assert list(pjdfstest.judge("open/00.t", lines)) == [
        Result("open/00.t:1", OK),
        Result("open/00.t:2", FAILED, "tried 'open x', expected 0, got EIO"),
        Result("open/00.t:3", OK),
    ]


def test_pjdfstest_that_ends_early_has_failed() -> None:
    *_, last = pjdfstest.judge("open/00.t", ["1..3", "ok 1", "Killed"])
    assert last == Result("open/00.t", FAILED, "1 of 3 tests ran; the last line: Killed")
    (only,) = pjdfstest.judge("open/00.t", ["bash: pjdfstest: not found"])
    assert only.result == FAILED


def test_pjdfstest_that_has_no_plan_here_is_not_run() -> None:
    assert list(pjdfstest.judge("chflags/00.t", ["1..0 # SKIP no flags"])) == [
        Result("chflags/00.t", NOT_RUN, "no flags")
    ]


def test_xfstests_are_judged_by_what_check_says_in_the_end() -> None:
    def judge(said: str, end: str) -> Result:
        return xfstests.judge("generic/013", CHECK.format(said=said, end=end))

    assert judge("4s ...  5s", "Passed all 1 tests") == Result("generic/013", OK)
    assert judge("[not run] no reflink", "Not run: generic/013\nPassed all 1 tests") == Result(
        "generic/013", NOT_RUN, "no reflink"
    )
    failed = judge("- output mismatch (see x)\n    --- y\n    +++ z", "Failures: generic/013\nFailed 1 of 1 tests")
    assert failed == Result("generic/013", FAILED, "- output mismatch (see x) --- y +++ z")
    assert judge("_check_dmesg: something found", "Failures: generic/013\nFailed 1 of 1 tests").result == FAILED
    assert xfstests.judge("generic/013", "common/rc: cannot mount\n").result == FAILED


TOGETHER = """\
generic/013       4s ...  5s
generic/014       [expunged]
generic/020 10s ... [not run] no attributes
generic/023 - output mismatch (see x)
    --- y
generic/024        1s
Ran: generic/013 generic/020 generic/023 generic/024
Not run: generic/020
Failures: generic/023
Failed 1 of 4 tests
"""


def test_xfstests_that_run_together_are_judged_one_by_one() -> None:
    numbers = ("013", "014", "020", "023", "024", "025")
    results = [xfstests.judge(f"generic/{number}", TOGETHER) for number in numbers]
    assert [result.result for result in results] == [OK, FAILED, NOT_RUN, FAILED, OK, FAILED]
    assert results[2].why == "no attributes"
    assert results[3].why == "- output mismatch (see x) --- y"
    # What was broken off says nothing of the last one.
    broken = TOGETHER[: TOGETHER.index("Ran:")]
    assert xfstests.judge("generic/024", broken).result == FAILED


def test_the_list_of_generic_tests_is_sorted_and_has_none_twice() -> None:
    assert list(xfstests.GENERIC) == sorted(set(xfstests.GENERIC))
    assert all(len(number) == 3 and number.isdecimal() for number in xfstests.GENERIC)


def _record(setup: str, *results: Result) -> Record:
    return Record("fsx", setup, "2026-01-02", "abc", "7.2", "def", results)


def test_the_page_counts_and_names_what_differs_from_the_control() -> None:
    records = {
        ("fsx", CONTROL): _record(CONTROL, Result("a", OK), Result("b", OK), Result("c", FAILED, "x")),
        ("fsx", "auto"): _record("auto", Result("a", OK), Result("b", FAILED, "lost"), Result("c", FAILED, "y")),
    }
    records["fsx", CONTROL] = replace(records["fsx", CONTROL], date="2026-01-01", commit="aba")
    page = table.table(records, {"fsx": "random", "other": "not there"})
    assert "| fsx | auto | 1 (2) | 2 (1) | 0 (0) | 1 | 7.2 | abc, 2026-01-02 | def |" in page
    assert "| fsx | control | 2 | 1 | 0 |  | 7.2 | aba, 2026-01-01 | def |" in page
    assert "| other | | | | not run | | | | |" in page
    assert "| fsx | b | failed | auto | **unexplained**: lost |" in page
    assert "| fsx | c | failed | y |" in page
    assert table.verdict(records, "fsx", "auto").faults() == ["b: failed: lost"]


def test_what_only_a_server_can_say_needs_no_control() -> None:
    control = _record(CONTROL, Result("a", OK))
    for result, faults in ((Result(COUNTERS, OK), []), (Result(COUNTERS, FAILED, "1"), [f"{COUNTERS}: failed: 1"])):
        records = {("fsx", CONTROL): control, ("fsx", "auto"): _record("auto", Result("a", OK), result)}
        assert table.verdict(records, "fsx", "auto").faults() == faults


def test_only_what_passes_needs_no_control() -> None:
    records = {
        ("fsx", CONTROL): _record(CONTROL),
        ("fsx", "auto"): _record("auto", Result("a", OK), Result("b", FAILED, "x")),
    }
    assert table.verdict(records, "fsx", "auto").faults() == ["b: the control has no result"]


def test_a_test_that_the_share_has_no_result_of_is_a_fault() -> None:
    records = {("fsx", CONTROL): _record(CONTROL, Result("a", OK)), ("fsx", "auto"): _record("auto")}
    assert table.verdict(records, "fsx", "auto").faults() == ["a: the share has no result"]


def test_passed_tests_may_be_kept_as_a_number_alone(tmp_path: Path) -> None:
    store = Store(tmp_path / "kept", tmp_path / "notes")
    store.save(_record(CONTROL, Result("a", OK), Result("b", OK)))
    store.save(replace(_record("auto", Result("b", FAILED, "lost")), unnamed=7))
    records = store.load()
    assert records["fsx", "auto"].count(OK) == 7
    assert table.verdict(records, "fsx", "auto").faults() == ["b: failed: lost"]
    again = records["fsx", "auto"].amended(_record("auto", Result("a", OK), Result("b", OK)))
    assert again.count(OK) == 8


def test_a_share_without_a_control_is_a_fault() -> None:
    assert table.verdict({("fsx", "auto"): _record("auto", Result("a", OK))}, "fsx", "auto").faults() != []


def test_records_are_kept_and_replaced(tmp_path: Path) -> None:
    store = Store(tmp_path / "kept", tmp_path / "notes")
    store.save(record.record("fsx", "auto", "7.2", tmp_path, [Result("a", OK)]))
    again = record.record("fsx", "auto", "7.3", tmp_path, [Result("a", FAILED, "why")])
    store.save(again)
    assert store.load() == {("fsx", "auto"): again}


def test_what_passed_is_kept_as_spans_of_numbers(tmp_path: Path) -> None:
    names = ["a.t:1", "a.t:2", "a.t:3", "a.t:5", "b.t:6", "generic/001", "generic/002", "seed 1, 2-3 operations"]
    kept = record.spans(names)
    assert kept == ["a.t:1-3", "a.t:5", "b.t:6", "generic/001", "generic/002", "seed 1, 2-3 operations"]
    assert list(record.spelled(kept)) == names


def test_a_commit_is_marked_when_other_files_than_results_are_changed(tmp_path: Path) -> None:
    def git(*arguments: str) -> None:
        who = ["-c", "user.name=n", "-c", "user.email=e"]
        subprocess.run(["git", "-C", tmp_path, *who, *arguments], check=True, capture_output=True)

    git("init")
    for name in ("program", "result"):
        (tmp_path / name).write_text("1")
    git("add", ".")
    git("commit", "-m", "both")
    (tmp_path / "result").write_text("2")
    assert "+" not in record.commit(tmp_path, but=["result"])
    assert record.commit(tmp_path).endswith("+")
    (tmp_path / "program").write_text("2")
    assert record.commit(tmp_path, but=["result"]).endswith("+")


def test_a_run_goes_on_where_it_was_broken_off(tmp_path: Path) -> None:
    store = Store(tmp_path / "kept", tmp_path / "notes")
    head = _record("auto")
    store.begin(head).add(Result("a", OK))
    with (tmp_path / "notes/fsx@auto.notes").open("a") as file:
        file.write('{"name": "b", "resu')
    again = store.begin(head, resume=True)
    assert again.results == [Result("a", OK)]
    again.add(Result("b", FAILED, "why"))
    assert not store.whole(head)
    again.end("7.3")
    assert store.whole(head)
    assert [result.name for result in store.load()["fsx", "auto"].results] == ["a", "b"]
    assert not store.whole(replace(head, commit="other"))


def test_some_tests_can_be_run_again_by_themselves(tmp_path: Path) -> None:
    store = Store(tmp_path / "kept", tmp_path / "notes")
    store.save(replace(_record("auto", Result("a", OK), Result("b", FAILED, "lost"), Result("c", OK)), kernel="7.1"))
    later = store.begin(replace(_record("auto"), commit="new", date="2026-01-03"))
    later.add(Result("b", OK))
    later.end("7.2", amends=store.load()["fsx", "auto"])
    found = store.load()["fsx", "auto"]
    assert {result.name: result.result for result in found.results} == {"a": OK, "b": OK, "c": OK}
    assert (found.commit, found.kernel, found.again) == ("abc", "7.1", {"b": "new, 2026-01-03"})
    assert "- fsx on auto, at new, 2026-01-03: b\n" in table.table(store.load(), {"fsx": "random"})


def test_a_run_begins_anew_for_another_commit_or_when_nothing_is_to_be_resumed(tmp_path: Path) -> None:
    store = Store(tmp_path / "kept", tmp_path / "notes")
    store.begin(_record("auto")).add(Result("a", OK))
    assert store.begin(replace(_record("auto"), commit="other"), resume=True).results == []
    store.begin(_record("auto")).add(Result("a", OK))
    assert store.begin(_record("auto")).results == []
