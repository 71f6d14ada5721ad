"""Where `make conformance` runs suites: each kind of place does as a guest does, and leaves nothing behind."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.conformance.ground import CONTROL, ground
from tests.posix.runner import OK

from .guest import GuestError

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="images are mounted on loop devices, which takes root")


@pytest.mark.parametrize("setup", [CONTROL, "auto", "mount-auto"])
def test_a_place_runs_scripts_over_its_file_system(tmp_path: Path, setup: str) -> None:
    (tmp_path / "hello").write_text("from outside")
    with ground(setup, {"folder": tmp_path}) as place:
        before = place.settles(at=place.held())
        assert place.guest.check("cp /suites/folder/hello /mnt/test/a\ncat /mnt/test/a", timeout=60) == "from outside"
        assert place.guest.run("echo said; exit 3").status == 3
        kind = place.guest.check("stat -f -c %T /mnt/test").strip()
        assert kind == ("ext2/ext3" if setup == CONTROL else "fuse")
        place.guest.check("rm /mnt/test/a")
        after = place.settles(at=before)
        assert {what: after[what] for what in before} == before
        assert [result for result in place.health() if result.result != OK] == []


def test_what_takes_too_long_on_this_host_is_ended(tmp_path: Path) -> None:
    with ground("mount-auto", {}) as place, pytest.raises(GuestError, match="no answer in time"):
        place.guest.run("echo before; sleep 1000", timeout=1)
