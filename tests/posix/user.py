"""Acting as another user."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from .check import not_run

ALICE = 54321
"""A user and a group that own nothing."""
BOB = 54322
"""Another one."""
TEAM = 54400
"""A group of neither."""


def need_root() -> None:
    """End the check as not run without root's privileges."""
    if os.geteuid() != 0:
        not_run("needs root")


@contextmanager
def acting_as(uid: int, gid: int | None = None, groups: Sequence[int] = ()) -> Iterator[None]:
    """Run the block with this user and group (the one of the same number by default), without any capability."""
    need_root()
    before = os.getgroups()
    os.setgroups(list(groups))
    group = uid if gid is None else gid
    # The saved ids stay root's, which is the way back; permission checks do not look at them.
    os.setresgid(group, group, 0)
    os.setresuid(uid, uid, 0)
    try:
        yield
    finally:
        os.setresuid(0, 0, 0)
        os.setresgid(0, 0, 0)
        os.setgroups(before)
