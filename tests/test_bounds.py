"""A guest that takes all it can get, at a daemon with few descriptors: it gets an errno, and others get their service."""

import errno
import os
from pathlib import Path

import pytest

from tests.daemon import Daemon, Start
from tests.errnos import fails
from virtiofs import Passthrough
from virtiofs.errors import ConfigError
from virtiofs.testing import Guest

LIMIT = 256
MANY = int(os.environ.get("VIRTIOFS_FILES", "20000"))


def daemon_of_two(start: Start, tmp_path: Path, share: Path, *options: str) -> Daemon:
    """Starts a daemon with two shares and few descriptors."""
    other = tmp_path / "other"
    other.mkdir()
    (other / "hello").write_text("hello from the other share\n")
    shares = (
        "\n".join(
            ("[[share]]", f'directory = "{directory}"', f'socket = "{tmp_path / tag}.sock"', f'tag = "{tag}"', *options)
        )
        for tag, directory in (("one", share), ("two", other))
    )
    (tmp_path / "two.toml").write_text("\n".join((f"rlimit_nofile = {LIMIT}", *shares)))
    daemon = start("--config", tmp_path / "two.toml", ready=False)
    daemon.wait_for("mount -t virtiofs two")
    return daemon


def greedy(guest: Guest) -> list[object]:
    """Opens files until there are no more."""
    files: list[object] = []
    with fails(errno.ENFILE):
        while len(files) < 10 * LIMIT:
            files.append(guest.open("hello" if len(files) % 2 else "sub/deep", os.O_RDWR))
    return files


def test_files_that_one_guest_opens_leave_room_for_others(start: Start, share: Path, tmp_path: Path) -> None:
    daemon = daemon_of_two(start, tmp_path, share)
    with Guest(tmp_path / "one.sock") as guest:
        files = greedy(guest)
        assert LIMIT // 4 < len(files) < LIMIT // 2
        assert daemon.descriptors() < LIMIT - 20
        # The other share is served, and so is a guest that comes now.
        for _ in range(3):
            with Guest(tmp_path / "two.sock") as other:
                assert other.read_file("hello") == b"hello from the other share\n"
                other.write_file("new", b"new")
        del files
        guest.drop_caches()
        assert guest.read_file("hello") == b"hello from the host\n"
        greedy(guest)
    assert daemon.log().count("as many files as it may") == 1


def test_both_guests_at_once_leave_room_for_the_daemon(start: Start, share: Path, tmp_path: Path) -> None:
    daemon = daemon_of_two(start, tmp_path, share)
    (tmp_path / "other" / "sub").mkdir()
    (tmp_path / "other" / "sub" / "deep").write_bytes(b"deep")
    with Guest(tmp_path / "one.sock") as one, Guest(tmp_path / "two.sock") as two:
        files = [greedy(one), greedy(two)]
        assert daemon.descriptors() < LIMIT
        assert one.stat("hello").size == 20
        assert two.stat("hello").size == 27
        del files
    with Guest(tmp_path / "one.sock") as guest:
        assert guest.read_file("hello") == b"hello from the host\n"


def test_files_that_a_guest_remembers(start: Start, share: Path, tmp_path: Path) -> None:
    for number in range(100):
        (share / f"file{number}").touch()
    daemon = daemon_of_two(start, tmp_path, share, "nodes = 50")
    with Guest(tmp_path / "one.sock") as guest:
        client, seen = guest.client, 0
        with fails(errno.ENFILE):
            for number in range(100):
                client.lookup(1, f"file{number}")
                seen += 1
        assert seen == 50
        assert len(guest.listdir()) == 102
        with fails(errno.ENFILE):
            guest.mkdir("new")
        assert not (share / "new").exists()
    with Guest(tmp_path / "one.sock") as guest:
        assert guest.stat("file99").size == 0
    assert daemon.log().count("remembers as many files as it may") == 1


@pytest.mark.timeout(60 + MANY // 1000)
def test_a_guest_that_looks_up_and_opens_without_end(start: Start, share: Path, tmp_path: Path) -> None:
    """VIRTIOFS_FILES=1000000 has a million of them."""
    for number in range(MANY):
        os.close(os.open(share / f"{number}", os.O_CREAT | os.O_WRONLY | os.O_CLOEXEC))
    daemon = start(share, "--socket", tmp_path / "s", f"--rlimit-nofile={LIMIT}", "--cache=none")
    before, most = daemon.resident(), 0
    with Guest(tmp_path / "s") as guest:
        client = guest.client
        nodes = []
        for number in range(MANY):
            nodes.append(client.lookup(1, f"{number}").node)
            if number % 1000 == 0:
                most = max(most, daemon.descriptors())
        remembered = daemon.resident() - before
        opened = refused = 0
        for number, node in enumerate(nodes):
            try:
                client.open(node, os.O_RDONLY)
                opened += 1
            except OSError as error:
                if error.errno != errno.ENFILE:
                    raise
                refused += 1
            if number % 1000 == 0:
                most = max(most, daemon.descriptors())
        # What needs no descriptor goes on.
        for node in nodes[-1000:]:
            assert [client.getattr(node).size for _ in range(2)] == [0, 0]
        print(f"{MANY} files: {remembered / MANY:.0f} bytes each, {opened} open, {refused} refused, {most} descriptors")
        assert LIMIT // 4 < opened < LIMIT
        assert most < LIMIT
        assert remembered < MANY * 1000 + (16 << 20)
    with Guest(tmp_path / "s") as guest:
        assert guest.read_file("hello") == b"hello from the host\n"
    assert daemon.log().count("as many files as it may") == 1
    assert daemon.end() == 0


def test_bounds_that_are_none(share: Path) -> None:
    for name in ("descriptors", "nodes", "node_descriptors"):
        with pytest.raises(ConfigError, match=name):
            Passthrough(share, **{name: -1})  # type: ignore[arg-type]
    with Guest(Passthrough(share, descriptors=0, nodes=0)) as guest:
        assert len([guest.open("hello") for _ in range(300)]) == 300
    with Guest(Passthrough(share, descriptors=70)) as guest, fails(errno.ENFILE):
        assert [guest.open("hello", os.O_RDWR) for _ in range(300)]


def test_a_guest_that_comes_and_goes_does_not_fill_the_log(start: Start, share: Path, tmp_path: Path) -> None:
    daemon = start(share, "--socket", tmp_path / "s")
    for _ in range(150):
        with Guest(tmp_path / "s") as guest:
            guest.stat("hello")
    log = daemon.wait_for("more suppressed", 30)
    assert 50 <= log.count("a VMM is connected number=") < 100
    assert "a VMM is connected (" in log
    assert daemon.end() == 0
