"""QEMU saves its guest to a file, or moves it to another QEMU, and another daemon goes on with what the guest had open."""

from __future__ import annotations

import contextlib
import json
import socket
import time
from pathlib import Path
from typing import Any, Self

import pytest

from . import daemon
from .daemon import Daemon
from .guest import GuestError, Share
from .qemu import Qemu


class Monitor:
    """QEMU's QMP socket."""

    def __init__(self, path: Path) -> None:
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.settimeout(120)
        deadline = time.monotonic() + 60
        while True:
            try:
                self._socket.connect(str(path))
                break
            except (FileNotFoundError, ConnectionRefusedError):
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.05)
        self._lines = self._socket.makefile()
        self._lines.readline()
        self("qmp_capabilities")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Hangs up; QEMU takes the next one."""
        self._lines.close()
        self._socket.close()

    def __call__(self, command: str, **arguments: Any) -> Any:
        self._socket.sendall(json.dumps({"execute": command, "arguments": arguments}).encode())
        while True:
            answer = json.loads(self._lines.readline())
            if "error" in answer:
                raise GuestError(f"{command}: {answer['error']['desc']}")
            if "return" in answer:
                return answer["return"]

    def migrated(self) -> None:
        """Waits until the guest has left."""
        deadline = time.monotonic() + 300
        while (status := self("query-migrate"))["status"] != "completed":
            if status["status"] in ("failed", "cancelled") or time.monotonic() > deadline:
                raise GuestError(f"the guest stays: {status}")
            time.sleep(0.1)

    def runs(self) -> None:
        """Waits until the guest is here and runs."""
        deadline = time.monotonic() + 300
        while self("query-status")["status"] != "running":
            if time.monotonic() > deadline:
                raise GuestError(f"the guest does not arrive: {self('query-status')}")
            time.sleep(0.1)


class Arriving(Qemu):
    """A QEMU whose guest comes from elsewhere."""

    def _booted(self, what: str) -> None:
        pass


@pytest.mark.parametrize("live", [False, True], ids=["saved", "live"])
def test_a_guest_goes_on_at_another_daemon(tmp_path: Path, live: bool) -> None:
    if not daemon.is_ours():
        pytest.skip(f"what {daemon.name()} can move is not known here")
    share = tmp_path / "share"
    share.mkdir()
    (share / "file").write_text("first line\nsecond line\n")
    (share / "deep").mkdir()

    def qemu(kind: type[Qemu], served: Daemon, name: str, mount: str, *more: str) -> Qemu:
        monitor = ("-qmp", f"unix:{tmp_path / name},server=on,wait=off")
        return kind([Share(served.socket, mount=mount)], memory=512, root=False, more=(*monitor, *more))

    with Daemon(share) as first, Daemon(share) as second, qemu(Qemu, first, "from", "/mnt/share") as guest:
        guest.check(
            "cd /mnt/share/deep\n"
            "(exec 3<../file 4>>log; read line <&3; echo $line > /tmp/read\n"
            "while [ ! -e /tmp/go ]; do n=$((n + 1)); echo $n >&4; done\n"
            "cat <&3 >> /tmp/read; echo $n > /tmp/last; echo end >&4) > /dev/null 2>&1 &\n"
            "while [ ! -s log ]; do :; done"
        )
        way = f"unix:{tmp_path / 'way'}" if live else f"file:{tmp_path / 'saved'}"
        arriving = qemu(Arriving, second, "to", "", "-incoming", way)
        with contextlib.ExitStack() as there:
            if live:
                there.enter_context(arriving)
                # It listens once it has a monitor.
                Monitor(tmp_path / "to").close()
            with Monitor(tmp_path / "from") as monitor:
                monitor("migrate", uri=way)
                monitor.migrated()
            guest.kill()
            if not live:
                there.enter_context(arriving)
            with Monitor(tmp_path / "to") as monitor:
                _goes_on(arriving, monitor, share)


def _goes_on(guest: Qemu, monitor: Monitor, share: Path) -> None:
    """The guest's program reads and writes on in the files that it had open, and new ones can be made."""
    monitor.runs()
    guest.check("touch /tmp/go\nwhile [ ! -s /tmp/last ]; do sleep 0.1; done", timeout=120)
    assert guest.check("cat /tmp/read") == "first line\nsecond line\n"
    last = int(guest.check("cat /tmp/last"))
    guest.check("cd /mnt/share/deep\nwhile [ $(tail -n 1 log) != end ]; do sleep 0.1; done\necho new > new\nsync")
    assert (share / "deep" / "log").read_text().splitlines() == [*map(str, range(1, last + 1)), "end"]
    assert (share / "deep" / "new").read_text() == "new\n"
    assert guest.complaints() == []
