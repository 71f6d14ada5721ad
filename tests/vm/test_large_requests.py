"""What Linux puts into one request: as many pages as its sysctl, the ring and the server allow."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from virtiofs import NONE, Passthrough, Server

from . import daemon
from .guest import Share
from .qemu import Qemu
from .uml import Uml


@pytest.fixture(autouse=True)
def needs_counters() -> None:
    if not daemon.is_ours():
        pytest.skip(f"{daemon.name()} does not count requests")


def test_requests_of_two_mebibytes(tmp_path: Path) -> None:
    share = tmp_path / "share"
    share.mkdir()
    with (
        Server(Passthrough(share, NONE), socket=tmp_path / "s", tag="share") as server,
        Qemu([Share(tmp_path / "s", mount="")], root=False) as guest,
    ):
        guest.check("mkdir -p /mnt/share")
        # 2 MiB at a time: in halves, and a page more if the buffer of dd lies across a page's border; then whole.
        for pages, requests in ((256, range(8, 13)), (1020, range(4, 5))):
            guest.check(
                f"""echo {pages} > /proc/sys/fs/fuse/max_pages_limit
                mount -t virtiofs share /mnt/share"""
            )
            before = server.stats().requests
            guest.check("dd if=/dev/urandom of=/mnt/share/file bs=2M count=4 2>/dev/null")
            seen = server.stats().requests
            assert seen["WRITE"] - before.get("WRITE", 0) in requests, pages
            read = guest.check("dd if=/mnt/share/file bs=2M count=4 2>/dev/null | sha256sum; umount /mnt/share")
            seen = server.stats().requests
            assert seen["READ"] - before.get("READ", 0) in requests, pages
            assert guest.complaints() == []
            content = (share / "file").read_bytes()
            assert len(content) == 8 << 20
            assert read.split()[0] == hashlib.sha256(content).hexdigest()


def test_a_ring_of_256_carries_almost_a_mebibyte(tmp_path: Path) -> None:
    share = tmp_path / "share"
    share.mkdir()
    with (
        Server(Passthrough(share, NONE), socket=tmp_path / "s", tag="share") as server,
        Uml([Share(tmp_path / "s")]) as guest,
    ):
        guest.check("dd if=/dev/zero of=/mnt/share/file bs=1M count=8 2>/dev/null")
        # 252 pages and the rest of each.
        assert 8 < server.stats().requests["WRITE"] <= 16
        assert guest.complaints() == []
    assert (share / "file").stat().st_size == 8 << 20
