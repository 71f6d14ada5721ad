"""The promises of docs/coherence.md: one guest changes, another and the host look.

The table in that file says what is asserted: `at once` means at the first look. How long the other guest is behind is measured
and printed.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from . import daemon
from .promises import MODES, PROMISES, Pair, behind, pair, promised

LONG = 60.0
"""Seconds in which a guest with a timeout of one second must have noticed, on however busy a machine."""


@pytest.fixture(scope="module", params=MODES)
def guests(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    if daemon.name() == "virtiofsd-c":
        pytest.skip("virtiofsd-c has no config space, from which alone UML learns the tag")
    if request.param == "adaptive" and not daemon.is_ours():
        pytest.skip("a mode of ours")
    with pair(request.param, tmp_path_factory.mktemp("share")) as guests:
        yield guests


@pytest.mark.parametrize("name", PROMISES)
def test_promise(guests: Pair, name: str) -> None:
    limit = promised(guests.mode, name)

    def stale(seen: str, looks: int, seconds: float) -> bool:
        assert limit != "at once", f"seen too late: {seen}"
        if limit == "when dropped":
            guests.reader.check("echo 3 > /proc/sys/vm/drop_caches")
            assert looks < 20, "not even a guest that has forgotten everything sees the change"
        else:
            assert limit.startswith("within")
            assert seconds < LONG
        return True

    late = behind(guests, name, name.replace(" ", "-"), stale)
    assert late is not None
    print(f"{guests.mode}: {name}: promised {limit}, seen at look {late.looks}, {late.seconds:.2f} s behind")
    assert guests.writer.complaints() == guests.reader.complaints() == []
