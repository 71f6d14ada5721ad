"""xfstests: the generic tests that file systems of the kernel are judged by."""

from __future__ import annotations

import re
import shlex
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path

from tests.conformance.ground import Ground
from tests.posix.runner import FAILED, NOT_RUN, OK, Result
from tests.vm.guest import GuestError

from . import Boot

GENERIC = tuple(
    number
    for line in Path(__file__).with_name("generic.txt").read_text().splitlines()
    if not line.startswith("#")
    for number in line.split()
)
"""Numbers of the generic tests that can run on a share."""

# To start `check` takes longer in User-Mode Linux than most tests do, so it is given some at once.
TOGETHER = 6
# A test that takes longer than this hangs: the slowest takes two minutes where nothing else runs.
PATIENCE = 900
_USERS = ("fsgqa", "fsgqa2", "123456-fsgqa")


class Xfstests:
    """The built suite, which the guest has as ``/suites/xfstests``; ``tests`` are numbers of generic tests."""

    name = "xfstests"
    folder = "xfstests"

    def __init__(self, tests: Sequence[str] = GENERIC) -> None:
        self.tests = tuple(tests)

    def run(self, boot: Boot, done: Collection[str]) -> Iterator[Result]:
        left = [f"generic/{number}" for number in self.tests if f"generic/{number}" not in done]
        alone: set[str] = set()
        while left:
            with boot() as ground:
                prepare(ground)
                while left:
                    tests = _next(left, alone)
                    try:
                        results = list(_check(ground, tests))
                    except GuestError as error:
                        # The guest is gone, and a new one has to tell which of them it was.
                        if len(tests) == 1:
                            left.remove(tests[0])
                            yield Result(
                                tests[0], FAILED, f"the guest did not survive it: {str(error).splitlines()[0]}"
                            )
                        alone.update(tests)
                        break
                    left = [test for test in left if test not in tests]
                    yield from results
                else:
                    yield from ground.health()


def _next(left: Sequence[str], alone: Collection[str]) -> list[str]:
    """The tests to give to `check` next: several, but those that go ``alone`` one by one."""
    if left[0] in alone:
        return [left[0]]
    return [test for test in left[:TOGETHER] if test not in alone]


def _check(ground: Ground, tests: Sequence[str]) -> Iterator[Result]:
    script = f"{_environment(ground)}\n./check {' '.join(tests)} 2>&1"
    printed = ground.guest.run(script, timeout=PATIENCE * len(tests)).output
    yield from (judge(test, printed) for test in tests)


def prepare(ground: Ground) -> None:
    """Give the guest the users that the tests want, and memory for their notes."""
    for number, user in enumerate(_USERS):
        entry = f"{user}:x:{2000 + number}:{2000 + number}::/tmp:/bin/bash"
        ground.guest.check(f"echo {entry} >> /etc/passwd\necho {user}:x:{2000 + number}: >> /etc/group")
    # Debian writes PAM's files when it installs; root may become anybody.
    rules = "auth sufficient pam_rootok.so\naccount required pam_permit.so\nsession required pam_permit.so"
    ground.guest.check(
        f"mkdir -p /tmp/results /etc/pam.d\nfor name in su su-l runuser other; do echo '{rules}' > /etc/pam.d/$name; done"
    )


def _environment(ground: Ground) -> str:
    values = {
        "FSTYP": ground.fstyp,
        "TEST_DEV": ground.devices[0],
        "TEST_DIR": "/mnt/test",
        "SCRATCH_DEV": ground.devices[1],
        "SCRATCH_MNT": "/mnt/scratch",
        "RESULT_BASE": "/tmp/results",
        # Random programs do less of the same in this much.
        "SOAK_DURATION": "20",
    }
    exports = "\n".join(f"export {name}={shlex.quote(value)}" for name, value in values.items())
    return f"cd /suites/xfstests\n{exports}"


def judge(test: str, output: str) -> Result:
    """The result of one test in what ``check`` printed about it and others."""
    found = re.search(rf"^{test}\b(.*(?:\n(?!Ran:|Not run:|Failures:|generic/\d).*)*)", output, re.MULTILINE)
    ran = re.search(rf"^Ran: .*\b{test}\b", output, re.MULTILINE)
    if found is None:
        return Result(test, FAILED, f"check did not get there: {_short(output)}")
    said = found[1]
    if reason := re.search(r"\[not run\] (.*)", said):
        return Result(test, NOT_RUN, reason[1].strip())
    if not ran or re.search(rf"^Failures: .*\b{test}\b", output, re.MULTILINE):
        return Result(test, FAILED, _short(said))
    return Result(test, OK)


def _short(text: str) -> str:
    return " ".join(text.split())[:300]
