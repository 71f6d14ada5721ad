"""Where a share is known to differ from a local disk, suite by suite: each is a fault when it no longer differs.

``where`` is a pattern of the names in ``ground.SETUPS`` and ``MOUNTS``.
"""

from __future__ import annotations

from collections.abc import Mapping

from tests.posix.comparison import Difference
from tests.posix.expected import DIFFERENCES as POSIX


def _xfstests(numbers: str, reason: str, where: str = "*") -> tuple[Difference, ...]:
    return tuple(Difference(f"generic/{number}", reason, where) for number in numbers.split())


DIFFERENCES: Mapping[str, tuple[Difference, ...]] = {
    "posix": POSIX,
    "pjdfstest": (),
    "fsx": (),
    "fsstress": (),
    "xfstests": (),
}
