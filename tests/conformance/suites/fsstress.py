"""fsstress of xfstests: several processes do at random whatever can be done to a tree; nothing may be left of it."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence

from tests.conformance.ground import RETURNED
from tests.posix.runner import FAILED, OK, Result

from . import Boot


class Fsstress:
    """A run of ``operations`` in each of four processes, for every seed; the guest has the suite as ``/suites/xfstests``."""

    name = "fsstress"
    folder = "xfstests"

    def __init__(self, operations: int, seeds: Sequence[int]) -> None:
        self.operations = operations
        self.seeds = tuple(seeds)

    def run(self, boot: Boot, done: Collection[str]) -> Iterator[Result]:
        with boot() as ground:
            before = ground.settles(at=ground.held())
            for seed in self.seeds:
                name = f"seed {seed}, 4 processes of {self.operations} operations"
                if name in done:
                    continue
                left = ground.guest.run(
                    f"""mkdir /mnt/test/{seed}
                    /suites/xfstests/ltp/fsstress -d /mnt/test/{seed} -p 4 -n {self.operations} -s {seed}
                    find /mnt/test/{seed} -type f -exec cat {{}} + > /dev/null
                    rm -rf /mnt/test/{seed}""",
                    timeout=1800,
                )
                why = "" if left.status == 0 else " ".join(left.output.split())[-400:]
                yield Result(name, FAILED if left.status else OK, why)
            if ground.servers:
                after = ground.settles(at=before)
                more = [
                    f"{what}: {before[what]} before, {after[what]} after"
                    for what in before
                    if after[what] > before[what]
                ]
                yield Result(RETURNED, FAILED if more else OK, "; ".join(more))
            yield from ground.health()
