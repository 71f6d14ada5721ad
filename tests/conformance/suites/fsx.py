"""fsx of xfstests: random reads, writes, truncations and mappings of one file, each read checked against memory."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence

from tests.posix.runner import FAILED, OK, Result

from . import Boot

# What is done beside plain reads and writes, and the options that leave out the rest.
VARIANTS = {"mapped": "", "unmapped": "-R -W", "direct": "-Z -R -W -r 4096 -w 4096 -t 4096"}


class Fsx:
    """Runs of ``operations`` each, for every seed and variant; the guest has the built suite as ``/suites/xfstests``."""

    name = "fsx"
    folder = "xfstests"

    def __init__(self, operations: int, seeds: Sequence[int]) -> None:
        self.operations = operations
        self.seeds = tuple(seeds)

    def run(self, boot: Boot, done: Collection[str]) -> Iterator[Result]:
        with boot() as ground:
            for variant, flags in VARIANTS.items():
                for seed in self.seeds[:1] if variant == "direct" else self.seeds:
                    name = f"{variant}, seed {seed}, {self.operations} operations"
                    if name in done:
                        continue
                    program = f"/suites/xfstests/ltp/fsx -q -N {self.operations} -S {seed} -P /tmp {flags}"
                    left = ground.guest.run(f"cd /mnt/test\n{program} {variant}-{seed}", timeout=1800)
                    why = "" if left.status == 0 else " ".join(left.output.split())[-400:]
                    yield Result(name, FAILED if left.status else OK, why)
            yield from ground.health()
