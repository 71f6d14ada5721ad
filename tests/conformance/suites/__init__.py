"""One module for each suite: how it is started in a guest, and how its answers become results."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from contextlib import AbstractContextManager
from typing import Protocol

from tests.conformance.ground import Ground
from tests.posix.runner import Result

Boot = Callable[[], AbstractContextManager[Ground]]


class Suite(Protocol):
    """A suite that is ready to run. ``boot`` boots a guest on fresh file systems each time it is called."""

    @property
    def name(self) -> str:
        """What it is called in tables and in the list of differences."""

    @property
    def folder(self) -> str:
        """The name below ``/suites`` that the guest has its programs by."""

    def run(self, boot: Boot, done: Collection[str]) -> Iterator[Result]:
        """Yield a result for each test as it is known, but for those ``done``: the names of results that are known."""
