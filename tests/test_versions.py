"""The version table: guests that remember without a clock, in one daemon and over several."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.daemon import Start
from virtiofs import AUTO, Config, ConfigError, Passthrough, Share, VersionTable
from virtiofs.testing import Guest

LONG = 20.0

FEW_WATCHES = """
import os, sys, time
from pathlib import Path
from virtiofs import Passthrough, VersionTable
from virtiofs.testing import Guest

files = [Path(sys.argv[1], str(number)) for number in range(10)]
table = VersionTable()
table.watch_inodes(1000)
with Guest(Passthrough(sys.argv[1], version_table=table), versions=table) as guest:

    def sizes():
        return [guest.stat(file.name).size for file in files]

    for file in files:
        file.touch()
    for size in (1, 2):
        assert sizes() == sizes() == [size - 1] * 10
        for file in files:
            os.truncate(file, size)
        began = time.monotonic()
        while sizes() != [size] * 10:
            assert time.monotonic() < began + 20, sizes()
"""
"""A guest, and a program of the host that changes more files than can be watched."""


def test_a_guest_asks_again_exactly_when_something_changed(share: Path) -> None:
    table = VersionTable()
    fs = Passthrough(share, AUTO.replace(attr_timeout=0, entry_timeout=0), version_table=table)
    with Guest(fs, versions=table) as one, Guest(fs, versions=table) as two:
        assert one.server is not None
        for _ in range(2):
            assert one.stat("sub/deep").size == 4
            assert not one.exists("sub/none")
        before = one.server.stats().requests
        for _ in range(100):
            assert one.stat("sub/deep").size == 4
            assert not one.exists("sub/none")
        assert one.server.stats().requests == before

        two.write_file("sub/deep", b"changed by the other")
        assert one.stat("sub/deep").size == 20
        two.write_file("sub/none", b"now it is there")
        assert one.exists("sub/none")
        two.rename("sub/none", "sub/deep")
        assert one.stat("sub/deep").size == 15
        assert not one.exists("sub/none")
        two.unlink("sub/deep")
        assert not one.exists("sub/deep")


def test_only_what_changed_is_asked_again(share: Path) -> None:
    table = VersionTable(1 << 20)
    for number in range(500):
        (share / f"{number}").write_text("")
    fs = Passthrough(share, version_table=table)
    with Guest(fs, versions=table, queue_size=256) as reader, Guest(fs, versions=table) as writer:
        assert reader.server is not None
        for _ in range(2):
            assert all(reader.stat(f"{number}").size == 0 for number in range(500))
        before = reader.server.stats().requests
        writer.truncate("77", 9)
        assert sum(reader.stat(f"{number}").size for number in range(500)) == 9
        after = reader.server.stats().requests
        changed = {name: count - before.get(name, 0) for name, count in after.items() if count != before.get(name, 0)}
        assert changed == {"GETATTR": 1}


def test_what_python_changes_is_told_by_python(share: Path) -> None:
    table = VersionTable()
    with Guest(Passthrough(share, version_table=table), versions=table) as guest:
        path = share / "hello"
        size = guest.stat("hello").size
        path.write_text("")
        status = path.stat()
        table.changed(status.st_dev, status.st_ino)
        assert (size, guest.stat("hello").size) == (20, 0)
        path.unlink()
        table.all_changed()
        assert not guest.exists("hello")


@pytest.mark.parametrize("most", [None, 1000, 1])
def test_changes_on_the_host_are_noticed(share: Path, most: int | None) -> None:
    """By a watch on the file system, on each inode, and on one inode at a time."""
    table = VersionTable()
    if most is not None:
        table.watch_inodes(most)
    else:
        try:
            table.watch(share)
        except OSError as error:
            pytest.skip(f"no watcher: {error}")
    with Guest(Passthrough(share, version_table=table), versions=table) as guest:

        def seen(path: str) -> int | None:
            try:
                return guest.stat(path).size
            except FileNotFoundError:
                return None

        def becomes(path: str, size: int | None) -> None:
            deadline = time.monotonic() + LONG
            while seen(path) != size:
                assert time.monotonic() < deadline, f"{path} did not become {size}"

        assert guest.stat("hello").size == guest.stat("hello").size == 20
        assert not guest.exists("new")
        os.truncate(share / "hello", 7)
        becomes("hello", 7)
        (share / "new").write_text("abc")
        becomes("new", 3)
        (share / "hello").rename(share / "new")
        becomes("new", 7)
        becomes("hello", None)
        for name in ("deep", ""):
            path = share / "sub" / name
            path.rmdir() if name == "" else path.unlink()
        becomes("sub/deep", None)
        becomes("sub", None)


@pytest.mark.parametrize("watches", [0, 3])
def test_changes_are_noticed_where_other_programs_have_the_watches(share: Path, watches: int) -> None:
    """The kernel gives a user so many watches; what has none is never trusted."""
    own = ["unshare", "--user", "--map-root-user", "sh", "-c"]
    set_limit = f"echo {watches} > /proc/sys/user/max_inotify_watches"
    if (done := subprocess.run([*own, set_limit], capture_output=True, text=True)).returncode != 0:
        pytest.skip(f"no user namespaces with limits of their own: {done.stderr.strip()}")
    program = ["sh", sys.executable, "-c", FEW_WATCHES, str(share)]
    subprocess.run([*own, f'{set_limit} && exec "$@"', *program], check=True, timeout=3 * LONG)


def test_daemons_share_a_table_and_outlive_each_other(share: Path, tmp_path: Path, start: Start) -> None:
    """This process is one daemon on the directory; another is killed, in whatever it may have been doing."""
    shared = tmp_path / "coherence"
    shared.mkdir(mode=0o700)
    other = start(share, "--socket", tmp_path / "socket", "--coherence-dir", shared)
    table = VersionTable(directory=shared)
    with Guest(Passthrough(share, version_table=table), versions=table) as reader:
        with Guest(tmp_path / "socket") as writer:
            assert reader.stat("hello").size == reader.stat("hello").size == 20
            writer.truncate("hello", 5)
            assert reader.stat("hello").size == 5
        # As a daemon that dies between a change and the word of it: from here on it says nothing any more.
        os.kill(other.pid, signal.SIGSTOP)
        os.waitid(os.P_PID, other.pid, os.WSTOPPED)
        assert reader.stat("hello").size == 5
        os.truncate(share / "hello", 3)
        assert reader.stat("hello").size == 5, "nobody has said anything yet"
        os.kill(other.pid, signal.SIGKILL)
        deadline = time.monotonic() + LONG
        while reader.stat("hello").size != 3:
            assert time.monotonic() < deadline, "the others did not notice that a daemon died"
            time.sleep(0.001)
        assert table.slots == 65536


def test_shares_of_one_directory_have_one_table(share: Path, tmp_path: Path) -> None:
    """Two devices of one daemon, and a third on another directory."""
    (tmp_path / "link").symlink_to(share)
    directories = [share, tmp_path / "link", share / "sub"]
    shares = [
        Share(directory=str(path), socket=str(tmp_path / f"{number}"), version_slots=64)
        for number, path in enumerate(directories)
    ]
    one, two, other = Config(shares=tuple(shares)).servers()
    table = one.fs.version_table
    assert table is not None
    assert table is two.fs.version_table
    assert table is not other.fs.version_table
    with one, two, Guest(one, versions=table) as reader, Guest(two) as writer:
        assert reader.stat("hello").size == reader.stat("hello").size == 20
        for size in range(100):
            writer.truncate("hello", size)
            assert reader.stat("hello").size == size, "a watcher would have said it later"


def test_bad_tables(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="a power of two"):
        VersionTable(1000)
    with pytest.raises(ConfigError, match="version_slots"):
        Share(directory=str(tmp_path), version_slots=7).filesystem()
    VersionTable(128, directory=tmp_path)
    with pytest.raises(OSError, match="has 128 slots, not 64"):
        VersionTable(64, directory=tmp_path)
    (tmp_path / "version-table").write_bytes(b"?" * 5000)
    with pytest.raises(OSError, match="no version table that can be used"):
        VersionTable(directory=tmp_path)
    assert Share(directory=str(tmp_path)).version_table() is None


def test_a_python_file_system_takes_a_table_from_its_settings() -> None:
    fs = Share(fs="virtiofs.memory:MemoryFS", version_slots=64).filesystem()
    assert fs.version_table is not None
    assert fs.version_table.slots == 64


def test_a_table_tells_of_itself(tmp_path: Path) -> None:
    table = VersionTable(64)
    assert (table.slots, table.size, table.path, repr(table)) == (64, 4608, None, "VersionTable(64)")
    assert os.pread(table.fileno(), 8, 0) == b"vfsversn"
    with pytest.raises(OSError):
        os.pwrite(table.fileno(), b"x", 0)
    assert VersionTable(64, directory=tmp_path).path == tmp_path / "version-table"
