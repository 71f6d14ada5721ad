"""A vhost-user-fs daemon under test: ours, or another one that the same tests are run against.

VIRTIOFS_DAEMON chooses. Unset: the installed ``virtiofs`` command. ``virtiofsd`` or ``virtiofsd-c``: the peers that
provision.py fetched. Anything else is a command line with the places ``{dir} {socket} {tag} {cache}``.
"""

from __future__ import annotations

import os
import shlex
import shutil
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from . import provision

PEERS = {
    "virtiofsd": "{bin}/virtiofsd --sandbox none --xattr --shared-dir {dir} --socket-path {socket} --tag {tag} "
    "--cache {cache}",
    "virtiofsd-c": "{bin}/virtiofsd-c -f --socket-path={socket} -o source={dir} -o cache={cache} -o xattr "
    "-o sandbox=chroot",
}
OURS = "{virtiofs} serve {dir} --socket {socket} --tag {tag} --cache {cache}"


class DaemonError(Exception):
    """The daemon did not start or did not end as it should; the message holds its log."""


def is_ours() -> bool:
    """Whether the tests run against our own daemon: peers lack some options and end with their first guest."""
    return "VIRTIOFS_DAEMON" not in os.environ


def name() -> str:
    """What the tests run against, for a skip's reason: ``virtiofs`` or the words of VIRTIOFS_DAEMON."""
    return os.environ.get("VIRTIOFS_DAEMON", "virtiofs")


def problem() -> str | None:
    """Why no daemon can be started, in one line; None when one can."""
    if is_ours() and _virtiofs() is None:
        return "the command virtiofs is not installed: pip install ."
    return None


def _virtiofs() -> str | None:
    beside = str(Path(sys.executable).parent)
    return shutil.which("virtiofs", path=os.pathsep.join((beside, os.environ.get("PATH", ""))))


class Daemon:
    """A running daemon that shares ``directory`` under ``tag``; a context manager.

    It listens when the constructor of the context returns. ``options`` are appended to our own command line only, so
    a test that rests on one asks ``is_ours()``. ``command`` is one with places, to be run whatever VIRTIOFS_DAEMON says.
    ``user`` runs it, with no other group than its own, where this process may choose; it must be able to get at ``directory``.
    The socket lies in a fresh folder of its own, short enough for ``sun_path``. Raises DaemonError when there is no
    listener within 20 s.
    """

    def __init__(
        self,
        directory: Path,
        tag: str = "share",
        *,
        cache: str = "auto",
        options: Sequence[str] = (),
        command: str | None = None,
        user: int | None = None,
    ) -> None:
        self._scratch = Path(tempfile.mkdtemp(prefix="vmtest-"))
        self.tag = tag
        self.directory = directory
        self.socket = self._scratch / "s"
        self._log = self._scratch / "stderr"
        template = command or PEERS.get(name(), OURS if is_ours() else name())
        if name() == "virtiofsd" and cache == "none":
            cache = "never"
        values = {"dir": directory, "socket": self.socket, "tag": tag, "cache": cache}
        values |= {"bin": provision.cache().root / "bin", "virtiofs": _virtiofs() or "virtiofs"}
        self.command = [word.format(**values) for word in shlex.split(template)]
        if is_ours() and command is None:
            self.command += options
        if user is not None and os.geteuid() == 0:
            os.chown(self._scratch, user, user)
            become = ("setpriv", f"--reuid={user}", f"--regid={user}", "--clear-groups", "--pdeathsig", "KILL")
            self.command = [*become, *self.command]
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        try:
            self.start()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    @property
    def pid(self) -> int:
        if self._process is None:
            raise DaemonError("the daemon is not running")
        return self._process.pid

    @property
    def serving(self) -> int:
        """The process that serves: in our own sandbox, the only child of the one that was started."""
        children = Path(f"/proc/{self.pid}/task/{self.pid}/children").read_text().split()
        return int(children[0]) if children else self.pid

    def alive(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def log(self) -> str:
        """All that the daemon wrote to stderr and stdout so far."""
        return self._log.read_text(errors="replace") if self._log.exists() else ""

    def start(self) -> None:
        """Start it, also again after ``stop`` or after a peer left with its guest; the socket's path stays."""
        self.socket.unlink(missing_ok=True)
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                ["setpriv", "--pdeathsig", "KILL", *self.command], stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )
        deadline = time.monotonic() + 20
        while not _listening(self.socket):
            if not self.alive() or time.monotonic() > deadline:
                raise DaemonError(f"{shlex.join(self.command)}: no socket\n{self.log()}")
            time.sleep(0.02)

    def stop(self) -> int:
        """End it by SIGTERM, by SIGKILL when that is not obeyed within 10 s; answers its exit status."""
        if self._process is None:
            raise DaemonError("the daemon is not running")
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGTERM)
        try:
            return self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            return self._process.wait()

    def close(self) -> None:
        if self._process is not None:
            self.stop()
        shutil.rmtree(self._scratch, ignore_errors=True)

    def answers(self, timeout: float) -> bool:
        """Whether the daemon answers a front end's first message, GET_FEATURES, within ``timeout`` seconds.

        Opens a session and leaves it: a daemon that ends with its front end does not survive the question.
        """
        deadline = time.monotonic() + timeout
        while (left := deadline - time.monotonic()) > 0:
            with socket.socket(socket.AF_UNIX) as front:
                front.settimeout(left)
                try:
                    front.connect(str(self.socket))
                    front.sendall(struct.pack("<III", 1, 1, 0))
                    reply = front.recv(20, socket.MSG_WAITALL)
                except OSError:
                    reply = b""
            # Request 1 again, version 1 with the reply flag, eight bytes of features.
            if len(reply) == 20 and struct.unpack("<III", reply[:12]) == (1, 5, 8):
                return True
            time.sleep(0.01)
        return False


def _listening(path: Path) -> bool:
    # A connection would be taken for the guest's; /proc/net/unix tells without one (its 4th column is __SO_ACCEPTCON).
    with open("/proc/net/unix", errors="surrogateescape") as sockets:
        return any(line.endswith(f" {path}\n") and line.split()[3] == "00010000" for line in sockets)
