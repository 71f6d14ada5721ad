"""Extended attributes as a guest's kernel handles them."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from . import daemon
from .daemon import Daemon
from .guest import Share
from .uml import Uml


def test_names_of_a_guest_are_others_on_the_host(tmp_path: Path) -> None:
    if not daemon.is_ours():
        pytest.skip(f"{daemon.name()} spells the option in its own way")
    (tmp_path / "file").write_text("content")
    os.setxattr(tmp_path / "file", "user.virtiofs.trusted.host", b"from the host")
    os.setxattr(tmp_path / "file", "user.hidden", b"1")
    with (
        Daemon(tmp_path, options=["--xattrmap", ":map::user.virtiofs.:"]) as served,
        Uml([Share(served.socket)]) as guest,
    ):
        said = guest.check(
            """cd /mnt/share
            setfattr -n trusted.guest -v 'from the guest' file
            setfattr -n user.plain -v x file
            getfattr --only-values -n trusted.host file
            echo
            getfattr -m - file | grep -F . | sort
            mkdir directory
            setfattr -n trusted.overlay.opaque -v y directory
            setfattr -x user.plain file
            ! getfattr -n user.hidden file 2>/dev/null"""
        )
        assert said.split("\n")[:-1] == ["from the host", "trusted.guest", "trusted.host", "user.plain"]
        assert guest.complaints() == []
    assert sorted(os.listxattr(tmp_path / "file")) == [
        "user.hidden",
        "user.virtiofs.trusted.guest",
        "user.virtiofs.trusted.host",
    ]
    assert os.getxattr(tmp_path / "file", "user.virtiofs.trusted.guest") == b"from the guest"
    assert os.getxattr(tmp_path / "directory", "user.virtiofs.trusted.overlay.opaque") == b"y"
