"""Suites from Debian and crates.io on a share, in each cache mode: a selection of minutes.

`make conformance` runs longer ones, with a local disk as their control.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator

import pytest

from . import daemon, provision
from .daemon import Daemon
from .guest import Share
from .uml import Uml
from .work import Place, Work

MODES = {
    "none": ("none", []),
    "auto": ("auto", []),
    "always": ("always", []),
    "auto-writeback": ("auto", ["--writeback"]),
}

# Every operation that fsx knows.
FSX = """
[weights]
close_open = 1
read = 10
write = 10
mapread = 10
mapwrite = 10
invalidate = 1
truncate = 3
fsync = 0.2
fdatasync = 0.2
posix_fallocate = 2
punch_hole = 2
sendfile = 2
posix_fadvise = 1
copy_file_range = 2
"""

# Several ways to write at random places, each block with a sum that is checked when all is written.
FIO = """
[global]
size=4m
rw=randwrite
verify=crc32c
verify_fatal=1
randseed=1
[plain]
ioengine=psync
bsrange=512-64k
fsync=100
[appending]
rw=write
ioengine=psync
bsrange=600-9000
bs_unaligned=1
file_append=1
[mapped]
ioengine=mmap
bsrange=1k-32k
[direct]
ioengine=libaio
direct=1
iodepth=8
bs=4k
"""

# Stressors of stress-ng that check what they did, with the rounds of each. Those of a line run at once. None waits for
# locks: on virtio, FUSE cannot interrupt a request, so no signal ends the wait, and stress-ng waits for those
# it killed while it has the lock. Nor is there "seek": with writeback, Linux looks for holes before it wrote back.
STRESSORS = (
    "access=20 chmod=50 chown=50 dentry=100 dir=50 dirdeep=50 fcntl=50 filename=20",
    "fsize=10 getdent=20 hdd=20 inode-flags=5 open=50 rename=100 touch=50 utime=50",
)


def fsx(place: Place) -> None:
    """Random operations on one file, each read compared with memory."""
    place.guest.put("/tmp/fsx.toml", FSX.encode())
    for seed in (1, 2):
        place.guest.check(f"cd {place.inside}\nfsx -f /tmp/fsx.toml -N 5000 -S {seed} -P /tmp file")


def fio(place: Place) -> None:
    """Random writes of several kinds at once, then all of it read and its sums compared."""
    place.guest.put("/tmp/fio", FIO.encode())
    place.guest.check(f"cd {place.inside}\nfio /tmp/fio")


def stress(place: Place) -> None:
    """Programs that call what the file system has, many at once, and check what came of it."""
    for line in STRESSORS:
        pairs = [word.split("=") for word in line.split()]
        stressors = " ".join(f"--{name} 1 --{name}-ops {rounds}" for name, rounds in pairs)
        # All end by their rounds or, where the machine is slow, by the time.
        small = f"--temp-path {place.inside} --hdd-bytes 16M"
        place.guest.check(f"stress-ng {stressors} --verify --timeout 30 {small} --no-rand-seed -q", timeout=240)
        assert os.listdir(place.outside) == []


def clients(place: Place) -> None:
    """What four clients of a file server do, as recorded."""
    place.guest.check(f"dbench -c /usr/share/dbench/client.txt -t 3 -D {place.inside} 4")


@pytest.fixture(scope="module")
def place(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    """A share in the mode of the parameter, in a guest that has the suites."""
    if not daemon.is_ours():
        pytest.skip(f"{daemon.name()} does not know the options")
    cache, options = MODES[request.param]
    folder = tmp_path_factory.mktemp("share")
    with (
        Daemon(folder, cache=cache, options=["--xattr", "--allow-direct-io", *options]) as served,
        Uml([Share(served.socket)], memory="1G", over=provision.cache().suites) as guest,
    ):
        yield Place(guest, served, "/mnt/share", folder)


@pytest.mark.parametrize("place", MODES, indirect=True)
@pytest.mark.parametrize("work", [fsx, fio, stress, clients], ids=lambda work: work.__name__)
def test_suite(place: Place, work: Work, do: Callable[[Place, Work], None]) -> None:
    if work is stress and os.geteuid() != 0:
        pytest.skip("the daemon gives files to other users only as root")
    do(place, work)
