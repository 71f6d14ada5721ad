"""fsstress of xfstests: several processes do at random whatever can be done to a tree; nothing may be left of it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from tests.posix.runner import FAILED, OK, Result

from . import Boot


class Fsstress:
    """A run of ``operations`` in each of four processes, for every seed; the guest has the suite as ``/suites/xfstests``."""

    name = "fsstress"
    folder = "xfstests"

    def __init__(self, operations: int, seeds: Sequence[int]) -> None:
        self.operations = operations
        self.seeds = tuple(seeds)

    def run(self, boot: Boot) -> Iterator[Result]:
        with boot() as ground:
            before = ground.settles(at=ground.held())
            for seed in self.seeds:
                done = ground.guest.run(
                    f"""mkdir /mnt/test/{seed}
                    /suites/xfstests/ltp/fsstress -d /mnt/test/{seed} -p 4 -n {self.operations} -s {seed}
                    find /mnt/test/{seed} -type f -exec cat {{}} + > /dev/null
                    rm -rf /mnt/test/{seed}""",
                    timeout=1800,
                )
                why = "" if done.status == 0 else " ".join(done.output.split())[-400:]
                name = f"seed {seed}, 4 processes of {self.operations} operations"
                yield Result(name, FAILED if done.status else OK, why)
            if ground.servers:
                after = ground.settles(at=before)
                more = [
                    f"{what}: {before[what]} before, {after[what]} after"
                    for what in before
                    if after[what] > before[what]
                ]
                yield Result("nodes, handles and descriptors return", FAILED if more else OK, "; ".join(more))
            yield from ground.health()
