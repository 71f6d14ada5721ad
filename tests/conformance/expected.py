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
    "xfstests": (
        *_xfstests(
            "504",
            "the guest lists no lock in /proc/locks that the server has (fuse_setlk of Linux), only its own (--no-flock)",
        ),
        *_xfstests(
            "443",
            "it writes from memory that was never written; without a cache that is User-Mode Linux's page of zeros, as in 362",
            where="none",
        ),
    ),
}

ON_BOTH: Mapping[str, str] = {
    "generic/062": "setfattr of Debian sid warns that --restore follows symbolic links, which the suite does not expect",
    "generic/509": "needs dm-flakey below the file system; tests/test_power_failure.py tries it with the host's disk",
}
"""Why tests are not passed on the local disk as well, where what they print does not say it in a line."""

LEFT_OUT: Mapping[str, str] = {
    "xfstests generic/362, generic/364": (
        "they write by O_DIRECT from buffers that were never written, and User-Mode Linux keeps its page of zeros outside of "
        "the memory that it shares with devices: we answer EFAULT, Rust virtiofsd 1.14 leaves the guest waiting for "
        "ever; the program of 362 passes in a QEMU guest"
    ),
    "xfstests on the control": "those alone that did not pass on a share: what is well on the share needs no control",
}
"""Tests that no place here can run as they are meant."""
