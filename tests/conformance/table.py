"""docs/conformance.md, from the records."""

from __future__ import annotations

import fnmatch
from collections import defaultdict
from collections.abc import Mapping

from tests.posix.comparison import Verdict, compare
from tests.posix.runner import FAILED, NOT_RUN, OK, Result

from .expected import DIFFERENCES, LEFT_OUT, ON_BOTH
from .ground import CONTROL, MOUNTS, OF_SERVERS, SETUPS
from .record import Record

Records = Mapping[tuple[str, str], Record]

HEAD = """\
# Conformance

Suites that others wrote, run in a guest on our shares and, as the control, on a local disk of the same guest: ext4 both times,
the share over a directory of it. *mount-…* is the same share without a guest, mounted by /dev/fuse of the host; its control is
the guest's. Written by

    make conformance PJDFSTEST=/path/to/pjdfstest XFSTESTS=/path/to/xfstests

or line by line with `CONFORMANCE="--suite SUITE --setup SHARE"`; CONTRIBUTING.md says more.

*Passed*, *failed* and *not run* are of the share; in brackets, of the control, whose own line says when that was. Each line
is the last run of that suite on that share, at the commit and date it names. *Differ* counts the tests that pass on the control
and not on the share: each is listed below with its reason, and is a fault when it has none.

"""
WORDS = (OK, FAILED, NOT_RUN)


def verdict(records: Records, suite: str, setup: str) -> Verdict:
    """The share's results judged by the control's."""
    share, control = records[suite, setup], records.get((suite, CONTROL))
    if control is None:
        return Verdict(missing=[f"{suite}: no results of the control"])
    promised = {result.name for result in control.results}
    had = {result.name for result in share.results}
    # A local disk has no server, so it has nothing to say of one. And what is well on the share needs no control.
    alone = [result for result in share.results if result.name not in promised]
    taken = tuple(Result(each.name, OK) for each in alone if each.name in OF_SERVERS or each.result == OK)
    found = compare(control.results + taken, share.results, DIFFERENCES[suite], setup)
    if not share.unnamed:
        found.missing += [f"{name}: the share has no result" for name in sorted(promised - had)]
    return found


def table(records: Records, suites: Mapping[str, str]) -> str:
    """The page; ``suites`` are all there are, each with a word of what it is."""
    lines = ["| suite | share | passed | failed | not run | differ | kernel | commit, date | suite's commit |"]
    lines += ["|---|---|--:|--:|--:|--:|---|---|---|"]
    for suite in suites:
        ran = [setup for setup in (CONTROL, *SETUPS, *MOUNTS) if (suite, setup) in records]
        if not ran:
            lines.append(f"| {suite} | | | | not run | | | | |")
        control = records.get((suite, CONTROL))
        for setup in ran:
            of = records[suite, setup]
            if of is control:
                cells, differ = [str(of.count(word)) for word in WORDS], ""
            else:
                found = verdict(records, suite, setup)
                cells = [f"{of.count(word)} ({control.count(word) if control else '-'})" for word in WORDS]
                differ = str(len(found.expected) + len(found.worse))
            what = [of.kernel, f"{of.commit}, {of.date}", of.version]
            lines.append(f"| {' | '.join([suite, setup, *cells, differ, *what])} |")
    return (
        HEAD
        + "\n".join(lines)
        + "\n"
        + _again(records)
        + _suites(suites)
        + _differences(records)
        + _shared(records)
        + _left_out()
    )


def _again(records: Records) -> str:
    """What was run by itself after the rest of its line."""
    lines = []
    for (suite, setup), record in records.items():
        when: dict[str, list[str]] = defaultdict(list)
        for name, at in record.again.items():
            when[at].append(name)
        lines += [f"- {suite} on {setup}, at {at}: {', '.join(names)}\n" for at, names in sorted(when.items())]
    return "\nRun again by themselves, later than the rest of their line:\n\n" + "".join(lines) if lines else ""


def _suites(suites: Mapping[str, str]) -> str:
    return "\n" + "".join(f"- **{name}**: {what}\n" for name, what in suites.items())


def _differences(records: Records) -> str:
    """Tests that pass on the control and not on the share, with the shares they differ on."""
    rows: dict[tuple[str, str, str, str], list[str]] = defaultdict(list)
    for (suite, setup), share in records.items():
        control = records.get((suite, CONTROL))
        if setup == CONTROL or control is None:
            continue
        passed = {result.name for result in control.results if result.result == OK}
        listed = [row for row in DIFFERENCES[suite] if fnmatch.fnmatchcase(setup, row.where)]
        for result in share.results:
            if result.result != OK and result.name in passed:
                known = (row.reason for row in listed if fnmatch.fnmatchcase(result.name, row.name))
                reason = next(known, f"**unexplained**: {result.why}")
                rows[suite, result.name, result.result, reason].append(setup)
    if not rows:
        return "\n## Differences from the control\n\nNone.\n"
    lines = ["\n## Differences from the control\n", "| suite | test | | on | why |", "|---|---|---|---|---|"]
    for (suite, name, result_word, reason), setups in sorted(rows.items()):
        lines.append(f"| {suite} | {name} | {result_word} | {', '.join(setups)} | {reason} |")
    return "\n".join(lines) + "\n"


def _shared(records: Records) -> str:
    """What the control does not pass either, by reason."""
    rows: dict[tuple[str, str, str], set[str]] = defaultdict(set)
    for (suite, setup), share in records.items():
        control = records.get((suite, CONTROL))
        if setup == CONTROL or control is None:
            continue
        passed = {result.name for result in control.results if result.result == OK}
        for result in share.results:
            if result.result != OK and result.name not in passed:
                reason = ON_BOTH.get(result.name, result.why)
                rows[suite, result.result, reason].add(result.name)
    if not rows:
        return ""
    lines = ["\n## Not passed by the control either\n", "| suite | tests | | why |", "|---|---|---|---|"]
    for (suite, word, why), names in sorted(rows.items()):
        lines.append(f"| {suite} | {' '.join(sorted(names))} | {word} | {why} |")
    return "\n".join(lines) + "\n"


def _left_out() -> str:
    return "\n## Left out\n\n" + "".join(f"- **{names}**: {why}\n" for names, why in LEFT_OUT.items())
