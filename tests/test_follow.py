"""A mount that is told what changed: everything is cached, and nothing is stale."""

import mmap
import os
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests import takes
from virtiofs import ALWAYS, Mount, Passthrough, VersionTable, mount

LONG = 20.0

pytestmark = [pytest.mark.root, takes.mounts]


@dataclass(frozen=True)
class Followed:
    mounts: list[Mount]
    inside: list[Path]
    outside: Path


@pytest.fixture(params=["file system", "inodes"])
def followed(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Followed]:
    """Two mounts of one directory with one table: all is kept for ever, but for what they are told."""
    source, shared = tmp_path / "source", tmp_path / "coherence"
    places = [tmp_path / "one", tmp_path / "two"]
    for path in (source, *places):
        path.mkdir()
    shared.mkdir(mode=0o700)
    with ExitStack() as stack:
        mounts = []
        for place in places:
            table = VersionTable(directory=shared)
            try:
                table.watch(source) if request.param == "file system" else table.watch_inodes(1000)
            except OSError as error:
                pytest.skip(f"no watcher: {error}")
            mounts.append(stack.enter_context(mount(Passthrough(source, ALWAYS, version_table=table), place)))
        yield Followed(mounts, places, source)
        assert [served._native.flush_notifications() for served in mounts if served._native] == [0, 0]


def becomes(expected: object, look: Callable[[], object]) -> float:
    """Waits until `look` gives what is expected, and returns after how many seconds it did."""
    began = time.monotonic()
    while (seen := look()) != expected:
        assert time.monotonic() < began + LONG, f"{seen!r} did not become {expected!r}"
    return time.monotonic() - began


def outside(script: str, directory: Path) -> None:
    """Changes by another process, past every mount."""
    subprocess.run(["sh", "-ec", script], cwd=directory, check=True, timeout=LONG)


def names_and_sizes(directory: Path) -> dict[str, int]:
    return {entry.name: entry.stat().st_size for entry in os.scandir(directory)}


def test_programs_on_the_host_change_what_a_mount_has_cached(followed: Followed) -> None:
    inside = followed.inside[0]
    outside("echo old > file; mkdir sub; echo x > sub/x; ln -s file link", followed.outside)
    assert (inside / "file").read_text() == "old\n"
    assert names_and_sizes(inside / "sub") == {"x": 2}
    assert os.readlink(inside / "link") == "file"
    assert not (inside / "new").exists()
    behind = {}
    for what, script, expected, look in [
        ("content", "echo new > file", "new\n", lambda: (inside / "file").read_text()),
        ("content that grew", "echo more >> file", "new\nmore\n", lambda: (inside / "file").read_text()),
        ("mode", "chmod 600 file", 0o100600, lambda: (inside / "file").stat().st_mode),
        ("a name looked up in vain", "echo 1 > new", True, lambda: (inside / "new").exists()),
        ("a renamed name", "mv new file", "1\n", lambda: (inside / "file").read_text()),
        ("a removed name", "rm file", False, lambda: (inside / "file").exists()),
        ("a listing", "echo yy > sub/y; rm sub/x", {"y": 3}, lambda: names_and_sizes(inside / "sub")),
        ("a symlink", "ln -sfn sub link", "sub", lambda: os.readlink(inside / "link")),
        ("a removed directory", "rm -r sub", False, lambda: (inside / "sub").exists()),
    ]:
        outside(script, followed.outside)
        behind[what] = f"{becomes(expected, look) * 1000:.1f} ms"
    print(behind)


def test_one_mount_sees_what_another_changes(followed: Followed) -> None:
    one, two = followed.inside
    (one / "file").write_text("old")
    assert (two / "file").read_text() == "old"
    (one / "file").write_text("newer")
    becomes("newer", (two / "file").read_text)
    (one / "file").rename(one / "other")
    becomes(["other"], lambda: os.listdir(two))
    becomes(False, (two / "file").exists)


def test_a_mapping_that_was_made_before_shows_the_change(followed: Followed) -> None:
    inside = followed.inside[0]
    outside("printf old > file", followed.outside)
    with open(inside / "file", "rb") as file, mmap.mmap(file.fileno(), 3, prot=mmap.PROT_READ) as mapping:
        assert mapping[:] == b"old"
        outside("printf new > file", followed.outside)
        becomes(b"new", lambda: mapping[:])


def test_nothing_is_asked_while_nothing_changes(followed: Followed) -> None:
    inside, served = followed.inside[0], followed.mounts[0]
    outside("for at in 0 1 2 3 4 5 6 7 8 9; do echo $at > f$at; done", followed.outside)

    def look() -> list[int]:
        return [(inside / f"f{at}").stat().st_size for at in range(10)]

    def asked() -> int:
        before = sum(served.stats().requests.values())
        for _ in range(100):
            assert look() == [2] * 10
        return sum(served.stats().requests.values()) - before

    # The news of the files' creation may come a moment later.
    becomes(0, asked)
    outside("echo longer > f7", followed.outside)
    becomes([2] * 7 + [7] + [2] * 2, look)
