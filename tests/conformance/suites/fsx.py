"""fsx of xfstests: random reads, writes, truncations and mappings of one file, each read checked against memory."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

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

    def run(self, boot: Boot) -> Iterator[Result]:
        with boot() as ground:
            for variant, flags in VARIANTS.items():
                for seed in self.seeds[:1] if variant == "direct" else self.seeds:
                    program = f"/suites/xfstests/ltp/fsx -q -N {self.operations} -S {seed} -P /tmp {flags}"
                    done = ground.guest.run(f"cd /mnt/test\n{program} {variant}-{seed}", timeout=1800)
                    why = "" if done.status == 0 else " ".join(done.output.split())[-400:]
                    name = f"{variant}, seed {seed}, {self.operations} operations"
                    yield Result(name, FAILED if done.status else OK, why)
            yield from ground.health()
