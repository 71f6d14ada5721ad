"""What is asked of this package's daemon, as data.

The bars are this project's own, set before they were measured: against the best of Rust virtiofsd 1.14 with its defaults, the
same without sandbox and file handles (`rust-bare`), and C virtiofsd 7.2, in each figure, as far as they are in the same run;
and against bare system calls in one thread. What is measured against them are medians. They are for a driver that sleeps, with
one request queue, as guests of Linux have it.
"""

from dataclasses import dataclass
from typing import Final, Literal, TypeAlias

Figure: TypeAlias = Literal["ops", "cpu", "p50", "native", "over"]
"""ops/s, daemon CPU and p50, each ours / the best peer; ops/s of ours / bare system calls; µs of daemon CPU beyond theirs."""

LOOKUPS: Final = ("lookup-hit", "lookup-warm", "lookup-miss")
LISTINGS: Final = ("readdirplus", "readdirplus-warm")
LARGE: Final = ("seqread1m", "seqwrite1m")
CROWDED: Final = (8, 32)


@dataclass(frozen=True)
class Bar:
    """A bound for one figure of some rows at some depths.

    Attributes:
        figure: what is bounded.
        bound: a ratio, or µs.
        rows: of these; none: of all.
        depths: at these; none: at all.
    """

    figure: Figure
    bound: float
    rows: tuple[str, ...] = ()
    depths: tuple[int, ...] = ()

    @property
    def least(self) -> bool:
        """More is better."""
        return self.figure in ("ops", "native")

    def met(self, value: float) -> bool:
        """Whether a figure is on the right side."""
        return value >= self.bound if self.least else value <= self.bound

    def holds_for(self, row: str, depth: int) -> bool:
        """Whether a line is meant."""
        return (not self.rows or row in self.rows) and (not self.depths or depth in self.depths)


BARS: Final = (
    Bar("ops", 2.0, (*LOOKUPS, "open-release", "churn4k", "walk10k", "rename"), CROWDED),
    Bar("ops", 1.4, ("getattr",), CROWDED),
    Bar("ops", 3.0, LISTINGS, CROWDED),
    Bar("ops", 1.5, ("randread4k", "randwrite4k"), CROWDED),
    Bar("ops", 1.3, LARGE, CROWDED),
    Bar("cpu", 0.6),
    Bar("p50", 0.7, depths=(1,)),
    Bar("native", 0.6, (*LISTINGS, *LARGE), (8,)),
    Bar("over", 1.0, ("getattr", *LOOKUPS, "open-release", "churn4k", "walk10k", "rename", "setattr", "mkdir-rmdir")),
)
