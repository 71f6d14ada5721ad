"""What a guest was told is on the disk is there after the host lost its power, and the disk can be mounted again.

xfstests' generic/509 and its like want a block device below the guest's file system that can be switched off, which a share
has not got; the host's has. So the power fails there: what the disk holds at that moment is copied, and the copy is mounted.
"""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.daemon import Start
from tests.errnos import fails
from virtiofs.testing import Guest

pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to mount"),
    pytest.mark.skipif(shutil.which("mkfs.ext4") is None, reason="needs mkfs.ext4"),
]
DATA = bytes(range(256)) * 256


@contextmanager
def mounted(image: Path, where: Path) -> Iterator[None]:
    where.mkdir()
    # Nothing is written down by itself meanwhile: only what the guest asks for.
    subprocess.run(["mount", "-o", "loop,commit=3600", image, where], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", where], check=True)


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A directory on a disk of its own, whose image is beside it."""
    with (tmp_path / "disk.img").open("wb") as image:
        image.truncate(64 << 20)
    subprocess.run(["mkfs.ext4", "-q", "-F", tmp_path / "disk.img"], check=True)
    with mounted(tmp_path / "disk.img", tmp_path / "disk"):
        yield tmp_path / "disk"


@contextmanager
def after_power_failure(disk: Path) -> Iterator[Path]:
    """What the disk of ``disk`` has after the power failed now and the journal was replayed."""
    copy = disk.with_name("copy.img")
    shutil.copyfile(disk.with_name("disk.img"), copy)
    with mounted(copy, disk.with_name("after")):
        yield disk.with_name("after")
    checked = subprocess.run(["e2fsck", "-f", "-n", copy], capture_output=True, text=True, check=False)
    assert checked.returncode == 0, checked.stdout


def file(guest: Guest) -> None:
    with guest.open("name", os.O_CREAT | os.O_RDWR) as opened:
        opened.write_at(0, DATA)
        opened.sync()


def file_data_alone(guest: Guest) -> None:
    with guest.open("name", os.O_CREAT | os.O_RDWR) as opened:
        opened.write_at(0, DATA)
        opened.sync(data_only=True)


def file_opened_for_it(guest: Guest) -> None:
    with guest.open("name", os.O_CREAT | os.O_RDWR | os.O_SYNC) as opened:
        opened.write_at(0, DATA)


def file_system(guest: Guest) -> None:
    guest.write_file("name", DATA)
    guest.sync()


def file_that_got_its_name_later(guest: Guest) -> None:
    guest.write_file("earlier", DATA)
    guest.rename("earlier", "name")
    with guest.open("name", os.O_RDWR) as opened:
        opened.sync()


@pytest.mark.parametrize(
    "save",
    [file, file_data_alone, file_opened_for_it, file_system, file_that_got_its_name_later],
    ids=lambda f: f.__name__,
)
def test_what_was_synchronised_outlives_a_power_failure(
    start: Start, disk: Path, tmp_path: Path, save: Callable[[Guest], None]
) -> None:
    start(disk, "--socket", tmp_path / "s")
    with Guest(tmp_path / "s") as guest:
        save(guest)
        with after_power_failure(disk) as after:
            assert (after / "name").read_bytes() == DATA


def test_what_was_synchronised_before_the_disk_was_full_outlives_a_power_failure(
    start: Start, disk: Path, tmp_path: Path
) -> None:
    start(disk, "--socket", tmp_path / "s")
    acknowledged: list[str] = []
    with Guest(tmp_path / "s") as guest:
        guest.write_file("first", DATA)
        with fails(errno.ENOSPC):
            for number in range(10_000):
                with guest.open(f"{number}", os.O_CREAT | os.O_RDWR) as opened:
                    opened.write_at(0, DATA * 8 + f"{number}".encode())
                    opened.sync()
                acknowledged.append(f"{number}")
        assert len(acknowledged) > 40
        # What is written over what is there needs no room.
        with guest.open("first", os.O_RDWR) as opened:
            opened.write_at(0, DATA[::-1])
            opened.sync()
        with after_power_failure(disk) as after:
            for name in acknowledged:
                assert (after / name).read_bytes() == DATA * 8 + name.encode()
            assert (after / "first").read_bytes() == DATA[::-1]
        guest.unlink(acknowledged[0])
        guest.write_file("again", DATA)
        assert guest.read_file("again") == DATA


def test_a_file_without_a_name_that_was_synchronised_leaves_a_disk_that_can_be_mounted(
    start: Start, disk: Path, tmp_path: Path
) -> None:
    """As generic/509: an inode without a link is in the journal when the power fails."""
    start(disk, "--socket", tmp_path / "s")
    with Guest(tmp_path / "s") as guest, guest.open(".", os.O_TMPFILE | os.O_RDWR) as opened:
        opened.write_at(0, b"\xab" * 65536)
        opened.sync()
        with after_power_failure(disk) as after:
            assert sorted(entry.name for entry in after.iterdir()) == ["lost+found"]
            (after / "new").write_bytes(DATA)
