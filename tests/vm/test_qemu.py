"""The real work under QEMU: stock Debian kernels, vhost-user-fs-pci, several CPUs and queues."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from . import daemon
from .conftest import sharing
from .daemon import Daemon
from .guest import Share
from .qemu import Qemu
from .work import HEAVY, LIGHT, Place, Work

# The newest kernel does everything in every run. The oldest one that people still boot leaves the minutes out.
KERNELS = ["7", "6.1"]


@pytest.fixture(scope="module")
def place(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    kernel: str = request.param
    folder = tmp_path_factory.mktemp("share")
    with sharing(lambda served: Qemu([Share(served.socket)], kernel=kernel), folder) as place:
        assert place.guest.release.startswith(f"{kernel}.")
        yield place


@pytest.mark.parametrize("place", KERNELS, indirect=True)
@pytest.mark.parametrize("work", LIGHT, ids=lambda work: work.__name__)
def test_work(place: Place, work: Work, do: Callable[[Place, Work], None]) -> None:
    do(place, work)


@pytest.mark.parametrize("place", [KERNELS[0], pytest.param(KERNELS[1], marks=pytest.mark.slow)], indirect=True)
@pytest.mark.parametrize("work", HEAVY, ids=lambda work: work.__name__)
def test_heavy_work(place: Place, work: Work, do: Callable[[Place, Work], None]) -> None:
    do(place, work)


@pytest.mark.parametrize("kernel", KERNELS)
def test_mounted_again_and_again(kernel: str, tmp_path: Path) -> None:
    """The file system's last request is answered as strictly as its first, and leaves the device fit for the next."""
    (tmp_path / "file").write_text("content\n")
    share = "mkdir -p /mnt/share\nmount -t virtiofs share /mnt/share\ncat /mnt/share/file\numount /mnt/share"
    with Daemon(tmp_path) as served, Qemu([Share(served.socket, mount="")], kernel=kernel, root=False) as guest:
        for _ in range(3):
            assert guest.check(share) == "content\n"
        assert guest.complaints() == []


def test_two_request_queues_are_used_by_two_cpus(tmp_path: Path) -> None:
    """Two queues and two CPUs that work at once: other daemons have one queue and end at the second."""
    if not daemon.is_ours():
        pytest.skip(f"{daemon.name()} has one request queue")
    with (
        Daemon(tmp_path, options=["--request-queues", "2"]) as served,
        Qemu([Share(served.socket, request_queues=2)], cpus=2) as guest,
    ):
        guest.check(
            """copy() {
                taskset -c "$1" cp -r "$library/$2" "/mnt/share/$1-$2"
                taskset -c "$1" diff -r "$library/$2" "/mnt/share/$1-$2"
            }
            library=$(echo /usr/lib/python3.[0-9]*)
            for folder in json asyncio email importlib; do
                copy 0 $folder & left=$!
                copy 1 $folder & right=$!
                wait $left
                wait $right
            done""",
            timeout=300,
        )
        # A column for each CPU, a line for each queue's interrupt.
        lines = re.findall(r"^.*virtio\d+-requests.*$", guest.check("cat /proc/interrupts"), re.MULTILINE)
        used = [line for line in lines if sum(map(int, line.split()[1:3])) > 100]
        assert len(used) >= 2, lines
        assert guest.complaints() == []
        assert served.alive()
    for cpu in (0, 1):
        assert len(list((tmp_path / f"{cpu}-email").rglob("*.py"))) > 20


def test_more_queues_than_the_guest_uses(tmp_path: Path) -> None:
    """A daemon with four queues serves a device that has one."""
    if not daemon.is_ours():
        pytest.skip(f"{daemon.name()} has one request queue")
    with (
        Daemon(tmp_path, options=["--request-queues", "4"]) as served,
        Qemu([Share(served.socket)], root=False) as guest,
    ):
        guest.check("cp /bin/busybox /mnt/share/copy\ncmp /bin/busybox /mnt/share/copy")
        assert guest.complaints() == []


def test_one_daemon_serves_guest_after_guest(tmp_path: Path) -> None:
    """Guests of different kernels come and go; the daemon stays, with what they left."""
    if not daemon.is_ours():
        pytest.skip(f"{daemon.name()} ends with its first guest")
    with Daemon(tmp_path) as served:
        for kernel in KERNELS:
            with Qemu([Share(served.socket)], kernel=kernel, root=False) as guest:
                guest.check(f"uname -r > /mnt/share/{kernel}\ncat /mnt/share/*")
                assert guest.complaints() == []
            assert served.alive()
    assert all((tmp_path / kernel).read_text().startswith(f"{kernel}.") for kernel in KERNELS)
