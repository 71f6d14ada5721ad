"""Opens without a message: where they are agreed on, and that a guest that leaves them out has its files all the same."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from virtiofs import ALWAYS, AUTO, METADATA, Cache, ConfigError, Passthrough, Policy, Rule, _core, explain
from virtiofs.cli import main
from virtiofs.host import has_capability
from virtiofs.testing import Guest

SILENT = ALWAYS.replace(opens=False)
ASKED = ALWAYS.replace(opens=True)


def left_out(fs: Passthrough) -> set[str]:
    return {name for name in ("NO_OPEN_SUPPORT", "NO_OPENDIR_SUPPORT") if fs.init_flags & _core.INIT[name]}


@pytest.mark.parametrize(
    ("cache", "settings", "expected"),
    [
        (AUTO, {}, set()),
        (METADATA, {}, {"NO_OPENDIR_SUPPORT"}),
        (ALWAYS, {}, {"NO_OPENDIR_SUPPORT"}),
        (ALWAYS, {"read_only": True}, {"NO_OPENDIR_SUPPORT"}),
        (SILENT, {}, {"NO_OPEN_SUPPORT", "NO_OPENDIR_SUPPORT"}),
        (ASKED, {"read_only": True, "posix_lock": False, "flock": False}, set()),
        (ALWAYS, {"policy": Policy(Rule(name="*.tmp", cache="none"))}, set()),
        (SILENT, {"policy": Policy(Rule(name="*.tmp", hidden=True))}, {"NO_OPEN_SUPPORT", "NO_OPENDIR_SUPPORT"}),
    ],
)
def test_where_they_are_left_out(tmp_path: Path, cache: Cache, settings: dict[str, Any], expected: set[str]) -> None:
    assert left_out(Passthrough(tmp_path, cache, **settings)) == expected


def test_files_of_a_share_that_is_only_read(tmp_path: Path) -> None:
    """By itself only where an open would tell nothing: nothing can be written, no lock ends, and all may be read."""
    fs = Passthrough(tmp_path, ALWAYS, read_only=True, posix_lock=False, flock=False)
    assert ("NO_OPEN_SUPPORT" in left_out(fs)) == has_capability("DAC_OVERRIDE")
    assert "NO_OPEN_SUPPORT" not in left_out(Passthrough(tmp_path, ALWAYS, posix_lock=False, flock=False))


@pytest.mark.parametrize(
    ("settings", "why"),
    [
        ({"policy": Policy(on_open=lambda request, node, flags: None)}, "the policy is asked at each open"),
        ({"policy": Policy(Rule(name="*.db", direct_io=True))}, "a rule says of single files how they are read"),
        ({"allow_direct_io": True}, "the host is to know of O_DIRECT"),
    ],
)
def test_where_they_cannot_be(tmp_path: Path, settings: dict[str, Any], why: str) -> None:
    with pytest.raises(ConfigError, match=why):
        Passthrough(tmp_path, SILENT, **settings)


def test_data_that_is_not_kept_takes_opens() -> None:
    with pytest.raises(ConfigError, match="keeps data over opens"):
        AUTO.replace(opens=False)


def test_a_class_that_is_told_of_files_is_told_of_their_opens(tmp_path: Path) -> None:
    class Counted(Passthrough):
        def fsync(self, *arguments: Any) -> None:
            super().fsync(*arguments)

    plan = explain(Counted(tmp_path, SILENT))
    assert "NO_OPEN_SUPPORT" in plan.refused
    assert any("opens each file by a message" in line for line in plan.off)
    assert "NO_OPEN" not in str(explain(Counted)) + str(explain(Counted(tmp_path)))
    told = str(explain(Passthrough(tmp_path, SILENT)))
    assert "not sent: guests do this by themselves" in told


def test_the_option(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["serve", str(tmp_path), "--socket", str(tmp_path / "s"), "--no-opens"]) != 0
    assert "take cache=always" in capsys.readouterr().err


@pytest.mark.parametrize("way", ["socket", "device"])
def test_a_guest_opens_by_itself(tmp_path: Path, way: Any) -> None:
    """After the first of each kind no message but reads, writes and what changes names."""
    share = tmp_path / "share"
    share.mkdir()
    (share / "f").write_bytes(b"on the host")
    with Guest(Passthrough(share, SILENT), way=way) as guest:
        assert guest.read_file("f") == b"on the host"
        guest.write_file("new", b"made here")
        assert (share / "new").read_bytes() == b"made here"
        guest.write_file("f", b"short")
        assert (share / "f").read_bytes() == b"short"
        assert sorted(guest.listdir("/")) == ["f", "new"]
        with guest.open("new", os.O_RDWR) as file:
            guest.unlink("new")
            file.write_at(0, b"kept")
            assert file.read_at(0, 100) == b"kept here"
        target = guest.server or guest.device
        assert target is not None
        asked = ("OPEN", "OPENDIR", "RELEASE", "RELEASEDIR", "FLUSH")
        before = {name: target.stats().requests.get(name, 0) for name in asked}
        assert guest.read_file("f") == b"short"
        assert guest.listdir("/") == ["f"]
        assert {name: target.stats().requests.get(name, 0) for name in asked} == before
