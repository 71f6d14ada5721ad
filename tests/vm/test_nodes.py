"""What a guest's kernel remembers of a share, and that the server remembers the same: no less, and no more."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from virtiofs import ALWAYS, AUTO, NONE, Cache, Passthrough, Server

from . import daemon
from .guest import Guest
from .served import serving

PATIENCE = 30  # seconds for what must come


@pytest.fixture(autouse=True)
def needs_counters() -> None:
    if not daemon.is_ours():
        pytest.skip(f"{daemon.name()} does not say how many nodes it has")


@pytest.fixture
def share(tmp_path: Path) -> Path:
    (tmp_path / "share").mkdir()
    return tmp_path / "share"


def forgotten(guest: Guest, server: Server, nodes: int = 1) -> None:
    """Has the guest forget what it does not use, and makes sure that the server does too."""
    deadline = time.monotonic() + PATIENCE
    while True:
        guest.check("sync; echo 2 > /proc/sys/vm/drop_caches")
        stats = server.stats()
        if stats.nodes == nodes:
            return
        assert time.monotonic() < deadline, f"{stats.nodes} nodes, not {nodes}"
        time.sleep(0.05)


@pytest.mark.parametrize("cache", [NONE, AUTO, ALWAYS], ids=lambda mode: mode.name)
def test_a_tree_that_was_walked_is_forgotten(share: Path, tmp_path: Path, cache: Cache) -> None:
    for directory in range(20):
        (share / f"d{directory}").mkdir()
        for number in range(50):
            (share / f"d{directory}" / f"f{number}").write_text(str(number))
        (share / f"d{directory}" / "link").symlink_to("f0")
        os.link(share / f"d{directory}" / "f1", share / f"d{directory}" / "hard")
    with serving(Passthrough(share, cache), tmp_path) as (server, guest):
        assert server.stats().nodes == 1
        for walk in (
            "find /mnt/share -ls",
            "ls -lR /mnt/share",
            "cat /mnt/share/*/f*",
            "grep -r 7 /mnt/share",
            "stat /mnt/share/d*/*",
        ):
            guest.check(f"{walk} > /dev/null")
            forgotten(guest, server)
            # The root is never forgotten, nor what stands open for those who list it without a message.
            assert server.stats().handles == int(cache is ALWAYS)
        # What is used stays: the directory, and no more.
        guest.check("cd /mnt/share/d7; sleep 1000 > /dev/null 2>&1 & echo $! > /tmp/pid")
        guest.check("find /mnt/share > /dev/null")
        forgotten(guest, server, 2)
        guest.check("kill $(cat /tmp/pid)")
        forgotten(guest, server)


def test_listings_are_counted_entry_by_entry(share: Path, tmp_path: Path) -> None:
    for number in range(3000):
        (share / f"{number:04}-{'x' * (number % 150)}").touch()
    with serving(Passthrough(share), tmp_path) as (server, guest):
        guest.python("partly", "/mnt/share")
        assert 1 < server.stats().nodes < 3000
        forgotten(guest, server)
        assert server.stats().handles == 0
        assert len(guest.check("ls -l /mnt/share").splitlines()) == 3001
        assert server.stats().nodes == 3001
        # Names that go while they are listed, and others that come.
        guest.check("cd /mnt/share; for name in 0*; do rm $name; touch new-$name; done; ls -l > /dev/null", timeout=300)
        forgotten(guest, server)
        assert "READDIRPLUS" in server.stats().requests


def test_hard_links_are_one_node(share: Path, tmp_path: Path) -> None:
    (share / "one").write_text("1")
    (share / "d").mkdir()
    os.link(share / "one", share / "two")
    os.link(share / "one", share / "d" / "three")
    with serving(Passthrough(share), tmp_path) as (server, guest):
        inodes = guest.check("cd /mnt/share; stat -c %i one two d/three; ln two four; stat -c '%i %h' four").split()
        assert set(inodes[:4]) == {str((share / "one").stat().st_ino)}
        assert inodes[4:] == ["4"]
        # The root, the directory, and the file.
        assert server.stats().nodes == 3
        guest.check("cd /mnt/share; echo more >> four; test $(wc -c < d/three) = 6; rm one two; cat four > /dev/null")
        forgotten(guest, server)
    assert (share / "d" / "three").read_text() == "1more\n"


@pytest.mark.parametrize("cache", [NONE, AUTO, ALWAYS], ids=lambda mode: mode.name)
def test_files_without_names(share: Path, tmp_path: Path, cache: Cache) -> None:
    (share / "file").write_text("content of some length")
    (share / "hosts").write_text("the host's")
    with serving(Passthrough(share, cache), tmp_path) as (server, guest):
        guest.python("unnamed", "/mnt/share/file")
        # One that the host takes away while a program has it open.
        guest.check("exec 5</mnt/share/hosts; sleep 1000 <&5 > /dev/null 2>&1 & echo $! > /tmp/pid")
        assert server.stats().handles == 1
        (share / "hosts").unlink()
        assert guest.check("cat /proc/$(cat /tmp/pid)/fd/5") == "the host's"
        guest.check("kill $(cat /tmp/pid)")
        forgotten(guest, server)
        assert server.stats().handles == 0
    assert (share / "file").read_text() == "another file of that name"


def test_a_node_that_vanished_is_looked_up_anew(share: Path, tmp_path: Path) -> None:
    """With more files than descriptors, the server holds some by handle. Those can go: ESTALE, and the kernel asks again."""
    if os.geteuid() != 0:
        pytest.skip("needs CAP_DAC_READ_SEARCH to open by handle")
    for number in range(200):
        (share / f"f{number}").write_text("old")
    with serving(Passthrough(share, ALWAYS.replace(keep_cache=False), node_descriptors=16), tmp_path) as (
        server,
        guest,
    ):
        assert guest.check("cat /mnt/share/f*") == "old" * 200
        for number in range(0, 200, 2):
            (share / f"f{number}").unlink()
            (share / f"f{number}").write_text("new")
        (share / "f1").unlink()
        # Names are cached for ever here: only the answer of the vanished node brings the kernel to ask for the name.
        read = guest.check("cd /mnt/share; for n in $(seq 2 199); do cat f$n; done")
        assert read == "newold" * 99
        assert server.stats().errors["OPEN"] >= 50
        assert guest.run("cat /mnt/share/f1 2>&1").output == "cat: /mnt/share/f1: No such file or directory\n"
        forgotten(guest, server)


@contextmanager
def mounted(*places: Path) -> Iterator[None]:
    done: list[Path] = []
    try:
        for place in places:
            place.mkdir()
            if subprocess.run(["mount", "-t", "tmpfs", "none", place], stderr=subprocess.DEVNULL).returncode != 0:
                pytest.skip("mounts need root")
            done.append(place)
        yield
    finally:
        for place in done:
            subprocess.run(["umount", "-l", place], check=True)


@pytest.mark.root
@pytest.mark.parametrize("announce", [True, False], ids=["announced", "unannounced"])
def test_inode_numbers_of_two_file_systems_do_not_clash(share: Path, tmp_path: Path, announce: bool) -> None:
    with mounted(share / "a", share / "b"):
        for place in ("a", "b"):
            (share / place / "file").write_text(place)
        # They are made alike, so their numbers are.
        assert (share / "a" / "file").stat().st_ino == (share / "b" / "file").stat().st_ino
        with serving(Passthrough(share, announce_submounts=announce), tmp_path) as (server, guest):
            # With the dots the kernel crosses over; stat(1) of the bare name looks at the place alone, as with any automount.
            said = guest.check("cd /mnt/share; stat -c '%d %i' . a/. b/. a/file b/file; cat a/file b/file")
            *found, content = said.split()
            assert content == "ab"
            files = list(zip(found[::2], found[1::2], strict=True))
            assert len(set(files)) == 5, files
            devices = [device for device, _ in files]
            assert len(set(devices)) == (3 if announce else 1)
            assert devices[3:] == devices[1:3]
            guest.check("cp -a /mnt/share/a/file /mnt/share/b/copy; cp -a /mnt/share/a /mnt/share/whole")
            if announce:
                listed = guest.check("find /mnt/share -xdev | sort").split()
                assert "/mnt/share/a" in listed
                assert "/mnt/share/a/file" not in listed
                before = server.stats().requests.get("SYNCFS", 0)
                guest.check("sync")
                assert server.stats().requests["SYNCFS"] - before >= 3, "one for each file system"
        assert (share / "b" / "copy").read_text() == "a"


def test_the_second_open_and_read_of_a_file_is_no_message(share: Path, tmp_path: Path) -> None:
    """What is left out of a mount (docs/coherence.md), counted; and files work as ever, those without a name too."""
    (share / "d").mkdir()
    for name in ("d/a", "d/b"):
        (share / name).write_text(name)
    with serving(Passthrough(share, ALWAYS.replace(opens=False)), tmp_path) as (server, guest):
        look = "ls /mnt/share/d; cat /mnt/share/d/a /mnt/share/d/b; stat -c %s /mnt/share/d/a"
        first = [guest.check(look) for _ in range(2)][1]  # a READ makes the guest ask for the access time once more
        before = server.stats().requests
        assert guest.check(look) == first
        assert server.stats().requests == before, "a message"
        guest.check(
            "cd /mnt/share && echo new > n && test $(cat n) = new && echo -n x > d/a && echo y >> d/a"
            " && exec 3<>n && rm n && echo kept >&3 && exec 4</proc/self/fd/3 && test $(cat <&4) = kept"
            " && exec 3>&- 4>&- && sync"
        )
        assert (share / "d" / "a").read_text() == "xy\n"
        assert not (share / "n").exists()
        forgotten(guest, server)


def test_directories_are_opened_without_a_message(share: Path, tmp_path: Path) -> None:
    for number in range(100):
        (share / f"f{number}").touch()
    with serving(Passthrough(share, ALWAYS), tmp_path) as (server, guest):
        first = [guest.check("ls /mnt/share") for _ in range(2)][1]
        before = server.stats().requests
        assert guest.check("ls /mnt/share") == first
        assert server.stats().requests == before, "a message"
        guest.check("touch /mnt/share/new")
        assert "new" in guest.check("ls /mnt/share").split()
