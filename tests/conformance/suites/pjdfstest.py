"""pjdfstest: what POSIX promises of system calls on files, as root and as other users, with a test for each errno."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator, Sequence

from tests.conformance.ground import Ground
from tests.posix.runner import FAILED, NOT_RUN, OK, Result
from tests.vm.guest import GuestError

from . import Boot

_PLAN = re.compile(r"1\.\.(\d+)(?:\s*#\s*skip\S*\s*(.*))?", re.IGNORECASE)
_TEST = re.compile(r"(not )?ok (\d+)\s*-?\s*(.*)")

# Some sleep most of the time, so that times differ: as many run at once, each in a directory of its own.
TOGETHER = 8
# By busybox, whose shell has the small programs in itself: starting one is what takes long in User-Mode Linux. The suite
# asks df for the type of the file system, to know what it may expect: as much as of the control.
TOGETHER_SCRIPT = """
for file in {files}; do
    place=${{file//\\//-}}
    mkdir "/mnt/test/$place"
    (
        cd "/mnt/test/$place"
        busybox sh -c 'openssl() {{ md5sum | cut -c1-32; }}; df() {{ echo - ext4; }}; . "$0"' \
            "/suites/pjdfstest/tests/$file" >"/tmp/$place" 2>&1 || :
    ) &
done
wait
for file in {files}; do echo "@@ $file"; cat "/tmp/${{file//\\//-}}"; done
"""
# The longest have two thousand tests.
PATIENCE = 2400


class Pjdfstest:
    """The built suite, which the guest has as ``/suites/pjdfstest``; ``only`` is a shell pattern of its test files."""

    name = "pjdfstest"
    folder = "pjdfstest"

    def __init__(self, only: str = "*/*.t") -> None:
        self.only = only

    def run(self, boot: Boot, done: Collection[str]) -> Iterator[Result]:
        known = {name.split(":")[0] for name in done}
        while True:
            with boot() as ground:
                files = ground.guest.check(f"cd /suites/pjdfstest/tests\nprintf '%s\\n' {self.only}").split()
                left = [file for file in files if file not in known]
                for batch in (left[at : at + TOGETHER] for at in range(0, len(left), TOGETHER)):
                    known.update(batch)
                    try:
                        yield from _together(ground, batch)
                    except GuestError as error:
                        # The guest is gone, and with it what these had printed; the others get a new one.
                        why = f"the guest did not survive it: {str(error).splitlines()[0]}"
                        yield from (Result(file, FAILED, why) for file in batch)
                        break
                else:
                    yield from ground.health()
                    return


def _together(ground: Ground, files: Sequence[str]) -> Iterator[Result]:
    printed = ground.guest.run(TOGETHER_SCRIPT.format(files=" ".join(files)), timeout=PATIENCE).output
    for part in printed.split("@@ ")[1:]:
        file, *lines = part.splitlines()
        yield from judge(file, lines)


def judge(file: str, lines: Iterable[str]) -> Iterator[Result]:
    """The results in what a file printed, in the Test Anything Protocol: one for each test that its plan promises."""
    planned: int | None = None
    seen = 0
    last = ""
    for line in lines:
        last = line or last
        if plan := _PLAN.fullmatch(line.strip()):
            planned = int(plan[1])
            if planned == 0:
                yield Result(file, NOT_RUN, plan[2] or "skipped")
        elif test := _TEST.fullmatch(line.strip()):
            seen += 1
            # A test that its authors expect to fail says so, as "# TODO": it is no result.
            failed = bool(test[1]) and "# TODO" not in test[3]
            yield Result(f"{file}:{test[2]}", FAILED if failed else OK, test[3] if failed else "")
    if planned is None or seen != planned:
        yield Result(file, FAILED, f"{seen} of {planned or 'unknown'} tests ran; the last line: {last.strip()}")
