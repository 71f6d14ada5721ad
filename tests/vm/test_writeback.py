"""`--writeback`, and timeouts of options and rules, apart from the mode (docs/coherence.md): two guests and the host."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from . import daemon
from .guest import Share
from .promises import LET_GO, Pair, behind, held, pair
from .uml import Uml

READER = ["--attr-timeout", "0", "--entry-timeout", "3600", "--negative-timeout", "0", "--version-slots", "1024"]
"""Of one timeout the first look says nothing, of the other two everything. With a version table the device offers its queue of
notifications, of which Linux takes no notice."""

LIMITS = {
    "content after close": "at once",
    "content after fsync": "at once",
    "content that grew": "at once",
    "size and time": "at once",
    "a name looked up in vain": "at once",
    "a removed name": "when dropped",
    "a new mapping": "at once",
}

RULES = """
[[share]]
directory = "{directory}"
socket = "said by an option"

[[share.policy]]
path = ["quick-*", "quick-*/*"]
attr_timeout = 0
entry_timeout = 0
negative_timeout = 0
"""

RULED = ["size and time", "a name looked up in vain", "a removed name"]
"""One for each timeout."""

WRITTEN = held("os.pwrite(os.open('f', os.O_WRONLY | os.O_CREAT), b'written', 0)")
"""A write to a file that stays open."""


@pytest.fixture(scope="module")
def guests(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    if not daemon.is_ours():
        pytest.skip("options of ours")
    with pair("auto", tmp_path_factory.mktemp("share"), writer=["--writeback"], reader=READER) as guests:
        yield guests


@pytest.mark.parametrize("name", LIMITS)
def test_who_closes_or_syncs_is_seen_as_the_timeouts_say(guests: Pair, name: str) -> None:
    """The host has all at once (`behind` looks); the other guest when its own timeouts say so."""

    def stale(seen: str, looks: int, _seconds: float) -> bool:
        assert LIMITS[name] == "when dropped", f"seen too late: {seen}"
        guests.reader.check("echo 3 > /proc/sys/vm/drop_caches")
        assert looks < 20, "not even a guest that has forgotten everything sees the change"
        return True

    late = behind(guests, name, name.replace(" ", "-"), stale)
    assert late is not None
    assert (late.looks > 1) == (LIMITS[name] == "when dropped")
    assert guests.writer.complaints() == guests.reader.complaints() == []


def on_host(directory: Path, script: str) -> str:
    return subprocess.run(["bash", "-c", script], cwd=directory, capture_output=True, text=True, check=True).stdout


def test_without_writeback_a_write_is_at_the_host_when_it_returns(guests: Pair) -> None:
    directory = guests.directory / "through"
    directory.mkdir()
    guests.reader.check(f"cd /mnt/share/through; {WRITTEN}")
    assert on_host(directory, "cat f") == "written"
    guests.reader.check(LET_GO)


def test_with_writeback_only_data_stay_behind(guests: Pair) -> None:
    """Names, modes and sizes that truncate(2) sets are at the host at once; data of an open file may be on their way."""
    directory = guests.directory / "behind"
    directory.mkdir()
    guests.writer.check(
        f"cd /mnt/share/behind; {WRITTEN}; : > name; truncate -s 5 sized; chmod 600 name; mv name renamed"
    )
    assert on_host(directory, "ls; stat -c '%a' renamed; stat -c '%s' sized") == "f\nrenamed\nsized\n600\n5\n"
    guests.writer.check("cd /mnt/share/behind; sync f")
    assert on_host(directory, "cat f") == "written"
    guests.writer.check(LET_GO)


@pytest.fixture(scope="module")
def ruled(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    """The reader keeps all for ever, but what a rule of its share names."""
    if not daemon.is_ours():
        pytest.skip("rules of ours")
    directory, settings = tmp_path_factory.mktemp("share"), tmp_path_factory.mktemp("settings") / "rules.toml"
    settings.write_text(RULES.format(directory=directory))
    command = f"{{virtiofs}} serve --config {settings} --socket {{socket}} --tag {{tag}} --cache {{cache}}"
    with (
        daemon.Daemon(directory, "one") as one,
        daemon.Daemon(directory, "two", cache="always", command=command) as two,
        Uml([Share(one.socket, "one")]) as writer,
        Uml([Share(two.socket, "two")]) as reader,
    ):
        yield Pair("always", directory, writer, reader)


@pytest.mark.parametrize("kind", ["quick", "other"])
@pytest.mark.parametrize("name", RULED)
def test_rules_set_the_timeouts_of_single_files(ruled: Pair, name: str, kind: str) -> None:
    def stale(seen: str, looks: int, _seconds: float) -> bool:
        assert kind == "other", f"seen too late: {seen}"
        ruled.reader.check("echo 3 > /proc/sys/vm/drop_caches")
        assert looks < 20, "not even a guest that has forgotten everything sees the change"
        return True

    late = behind(ruled, name, f"{kind}-{name.replace(' ', '-')}", stale)
    assert late is not None
    assert (late.looks > 1) == (kind == "other")
    assert ruled.writer.complaints() == ruled.reader.complaints() == []
