"""The guests themselves: what the other tests here rest on."""

from __future__ import annotations

import os
import signal
import threading
from pathlib import Path

import pytest

from . import daemon
from .daemon import Daemon
from .guest import GuestError, GuestTimeoutError, Share, complaints
from .uml import Uml

HEALTHY = """\
[    0.000000] Command line: console=ttyS0 virtio_uml.device=/tmp/virtiofs/s:26:0 guest.root=share
[    1.520000] fuse: init (API version 7.45)
[    1.550000] virtiofs virtio2: discovered new tag: share
[    1.551000] virtiofs virtio2: virtio_fs_setup_dax: No cache capability
Registering device virtio-uml.0 id=26 at /tmp/virtiofs-1/s
"""


def processes(word: str) -> list[int]:
    """The pids whose command line has ``word`` in it."""
    found = []
    for entry in Path("/proc").iterdir():
        try:
            if entry.name.isdecimal() and word.encode() in (entry / "cmdline").read_bytes():
                found.append(int(entry.name))
        except OSError:
            continue
    return found


@pytest.mark.parametrize(
    "line",
    [
        "[   13.950212] virtio-fs: response too short (0)",
        "<4>virtiofs: probe of virtio0 failed with error -22",
        "[    9.1] fuse: trying to steal weird page",
        "[    9.1] ------------[ cut here ]------------\n[    9.1] WARNING: CPU: 0 PID: 7 at fs/fuse/dev.c:1 f+0x1/0x2",
        "[    9.1] BUG: kernel NULL pointer dereference",
        "[   70.2] INFO: task cp:123 blocked for more than 60 seconds.",
    ],
)
def test_a_complaint_is_told_from_a_healthy_log(line: str) -> None:
    assert complaints(HEALTHY) == []
    assert complaints(HEALTHY + line) == [line.split("\n")[-1]]


@pytest.fixture
def uml_can_mount() -> None:
    if daemon.name() == "virtiofsd-c":
        pytest.skip("virtiofsd-c has no config space, from which alone UML learns the tag")


@pytest.mark.usefixtures("uml_can_mount")
def test_scripts_are_answered_with_status_and_output(tmp_path: Path) -> None:
    with Daemon(tmp_path) as served, Uml([Share(served.socket)]) as guest:
        assert guest.run("echo out; echo err >&2; exit 7").output == "out\nerr\n"
        assert guest.run("exit 7").status == 7
        assert guest.run("false; echo not reached").output == ""
        assert guest.check("printf '\\377no end of line'") == "\udcffno end of line"
        assert guest.check("seq 30000") == "".join(f"{number}\n" for number in range(1, 30001))
        assert guest.check(f"echo {'x' * 20_000} | wc -c") == "20001\n"
        assert list(guest.stream("echo one; echo two")) == ["one", "two"]
        blob = os.urandom(10_000)
        guest.put("/mnt/share/blob", blob)
        guest.check("sync")
        assert (tmp_path / "blob").read_bytes() == blob
        with pytest.raises(GuestError, match=r"status 3 of\n.*told before the end"):
            guest.check("echo told before the end; exit 3")
        guest.check("echo '<3>virtiofs: a complaint made up' > /dev/kmsg")
        assert [line.split("] ")[-1] for line in guest.complaints()] == ["virtiofs: a complaint made up"]


@pytest.mark.usefixtures("uml_can_mount")
def test_a_guest_that_does_not_answer_is_ended(tmp_path: Path) -> None:
    with Daemon(tmp_path) as served, Uml([Share(served.socket)]) as guest:
        with pytest.raises(GuestTimeoutError, match="said before"):
            guest.run("echo said before; sleep 1000", timeout=1)
        assert not guest.alive()
        with pytest.raises(GuestError):
            guest.run("true")


@pytest.mark.usefixtures("uml_can_mount")
def test_time_in_which_a_guest_is_stopped_does_not_count(tmp_path: Path) -> None:
    with Daemon(tmp_path) as served, Uml([Share(served.socket)]) as guest:
        goes_on = threading.Timer(6, os.killpg, (guest.pid, signal.SIGCONT))
        os.killpg(guest.pid, signal.SIGSTOP)
        goes_on.start()
        try:
            assert guest.check("echo still here", timeout=3) == "still here\n"
        finally:
            goes_on.cancel()
            os.killpg(guest.pid, signal.SIGCONT)


def test_two_guests_at_once_leave_nothing_behind(tmp_path: Path) -> None:
    """Two guests with a daemon each on one directory, then two shares in one guest; one guest ends, one is killed."""
    with (
        Daemon(tmp_path, "left") as one,
        Daemon(tmp_path, "right") as two,
        Uml([Share(one.socket, "left")]) as left,
        Uml([Share(two.socket, "right")]) as right,
    ):
        left.check("echo from the left > /mnt/share/file; sync /mnt/share/file")
        assert right.check("cat /mnt/share/file") == "from the left\n"
        scratch = [str(path) for path in (left.scratch, right.scratch, one.socket, two.socket)]
        assert all(processes(path) for path in scratch)
        right.kill()
        assert not processes(scratch[1])
    assert not any(processes(path) for path in scratch)
    assert not any(os.path.exists(path) for path in scratch)

    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    with (
        Daemon(tmp_path / "a", "a") as one,
        Daemon(tmp_path / "b", "b") as two,
        Uml([Share(one.socket, "a", "/mnt/a"), Share(two.socket, "b", "/mnt/b", "ro")]) as guest,
    ):
        guest.check("echo a > /mnt/a/file; sync; test ! -e /mnt/b/file")
        assert guest.run("touch /mnt/b/file").status != 0
    assert (tmp_path / "a/file").read_text() == "a\n"
