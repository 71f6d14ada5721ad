"""What every test guest has in common: shares, the initramfs, the command channel and the kernel's log.

``Uml`` and ``Qemu`` differ in how the guest starts; here is how it is spoken to. The guest's first process is
``inside/init``; it reads scripts from a byte channel and writes back what they print, so one boot serves many commands.
"""

from __future__ import annotations

import base64
import contextlib
import lzma
import os
import re
import secrets
import select
import shlex
import shutil
import signal
import socket
import stat
import subprocess
import tempfile
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

# A line on the channel stays below a terminal's buffer of 4096: UML's terminals forget to go on when it was full.
PIECE = 3000
# Seconds that one wait for the guest may count against its time. More of them pass only while it or this process is stopped.
SLICE = 2.0
INSIDE = Path(__file__).resolve().parent / "inside"


class GuestError(AssertionError):
    """The guest did not boot, a script in it failed, or it left; the message says what it printed."""


class GuestTimeoutError(GuestError):
    """The guest did not answer in time. It has been killed; the message says what it had printed."""


@dataclass(frozen=True)
class Share:
    """One vhost-user-fs device of a guest.

    ``mount`` is the directory in the guest, empty to attach the device only; ``options`` are the mount's.
    ``queue_size`` and ``request_queues`` are the device's properties under QEMU; UML has 256 and 1. ``window`` takes the device
    of QEMU that has a DAX window, which is for a daemon that offers one.
    """

    socket: Path
    tag: str = "share"
    mount: str = "/mnt/share"
    options: str = ""
    queue_size: int = 1024
    request_queues: int = 1
    window: bool = False


@dataclass(frozen=True)
class Done:
    """What a script in the guest left: its exit status and all it printed (undecodable bytes as surrogates)."""

    status: int
    output: str


class Guest(ABC):
    """A running Linux guest; a context manager. Boots and mounts its shares on entry, ends on exit, whatever happened.

    Raises GuestError when it cannot boot or mount. Scripts run as root under ``bash -euo pipefail``, in ``/``.
    """

    def __init__(self, shares: Sequence[Share], boot_timeout: float) -> None:
        self.shares = tuple(shares)
        self.boot_timeout = boot_timeout
        self.release = ""
        self.scratch = Path(tempfile.mkdtemp(prefix="vmtest-"))
        self.console = self.scratch / "console"
        self._process: subprocess.Popen[bytes] | None = None
        self._channel, self._far_end = socket.socketpair()
        self._pending = b""
        self._resources = contextlib.ExitStack()

    @abstractmethod
    def _command(self, channel: int, resources: contextlib.ExitStack) -> list[str]:
        """The VMM's command line; ``channel`` is the inherited descriptor of the command channel's far end.

        What the guest needs beside the VMM is started here, and ended with ``resources``.
        """

    # Beginning and end.

    def __enter__(self) -> Self:
        try:
            self._start()
            for share in self.shares:
                if share.mount:
                    self.mount(share)
        except BaseException:
            self.kill()
            self._clean()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def _start(self) -> None:
        command = self._command(self._far_end.fileno(), self._resources)
        with self.console.open("ab") as console:
            self._process = subprocess.Popen(
                ["setpriv", "--pdeathsig", "KILL", *command],
                stdin=subprocess.DEVNULL,
                stdout=console,
                stderr=console,
                pass_fds=[self._far_end.fileno()],
                start_new_session=True,
            )
        self._far_end.close()
        self._booted(f"no boot: {shlex.join(command)}")

    def _booted(self, what: str) -> None:
        """Wait for the first words of the guest's first process."""
        for line in self._lines(self.boot_timeout, what):
            if line.startswith("@@boot "):
                _, self.release, rooted = line.split()
                if rooted != "y" and self.wants_root:
                    raise GuestError(f"the guest could not mount its root\n{self.run('dmesg', where='init').output}")
                return

    @property
    def wants_root(self) -> bool:
        """Whether the guest has a Debian root; without one, scripts see busybox alone."""
        return True

    @property
    def pid(self) -> int:
        """The VMM's process id."""
        if self._process is None:
            raise GuestError("the guest was not started")
        return self._process.pid

    def alive(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def kill(self) -> None:
        """SIGKILL the VMM, as a crash or the host's out-of-memory killer would, and wait until it is gone."""
        if self._process is None:
            return
        # The VMM leads a session of its own. Its helper processes (UML has one for each address space) go too.
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()

    def close(self) -> None:
        """Unmount and power off; kill the guest when it does not obey within 20 s. Safe to call twice."""
        try:
            if self.alive():
                with contextlib.suppress(OSError):
                    self._send("init", "off", "cd /; umount -a -r -t virtiofs 2>/dev/null; sync; poweroff -f")
                with contextlib.suppress(subprocess.TimeoutExpired):
                    assert self._process is not None
                    self._process.wait(20)
        finally:
            self.kill()
            self._clean()

    def _clean(self) -> None:
        self._channel.close()
        self._far_end.close()
        self._resources.close()
        shutil.rmtree(self.scratch, ignore_errors=True)

    def reboot(self) -> None:
        """Restart the kernel at once, as a reset button does: nothing is written back, and shares must be mounted again."""
        self._send("init", "reboot", "reboot -f")
        self._booted("no boot after a restart")

    # Work in the guest.

    def run(self, script: str, timeout: float = 120, where: str = "root") -> Done:
        """Run a script and answer its status and output. Raises GuestTimeoutError after ``timeout`` seconds.

        Time in which the guest or this process is stopped (SIGSTOP, a suspended machine) does not count.
        ``where="init"`` runs it by busybox in the initramfs, which answers even when every share hangs.
        """
        token = secrets.token_hex(8)
        self._send(where, token, script)
        *lines, status = self._until(token, timeout, script)
        return Done(int(status), "".join(map(str, lines)).removesuffix("\n"))

    def check(self, script: str, timeout: float = 120) -> str:
        """Run a script that must end with status 0; answers its output. Raises GuestError otherwise."""
        done = self.run(script, timeout)
        if done.status != 0:
            log = "\n".join(self.kernel_log().splitlines()[-15:])
            raise GuestError(f"status {done.status} of\n{_short(script)}\n--- output\n{done.output}\n--- kernel\n{log}")
        return done.output

    def stream(self, script: str, timeout: float = 120) -> Iterator[str]:
        """Run a script and yield its lines as they come, without line ends; for scripts that the caller cuts short."""
        token = secrets.token_hex(8)
        self._send("root", token, script)
        # The line end before the status is not the script's: an empty line waits for what comes after it.
        held = False
        for line in self._until(token, timeout, script):
            if isinstance(line, int):
                return
            if held:
                yield ""
            held = line == "\n"
            if not held:
                yield line.removesuffix("\n")

    def put(self, path: str, content: bytes) -> None:
        """Write a file in the guest, by way of the channel (not of a share)."""
        self.check(f"base64 -d > {shlex.quote(path)} <<'EOF'\n{base64.encodebytes(content).decode()}EOF\n")

    def python(self, check: str, *arguments: str, timeout: float = 120) -> str:
        """Run the check of ``inside/checks.py`` that has this name, with arguments; answers its output."""
        return self.check(shlex.join(["python3", "-I", "/run/checks.py", check, *arguments]), timeout)

    def mount(self, share: Share) -> None:
        """Mount one of the guest's shares where it says."""
        options = f"-o {shlex.quote(share.options)} " if share.options else ""
        where = shlex.quote(share.mount)
        self.check(f"mkdir -p {where}\nmount -t virtiofs {options}{shlex.quote(share.tag)} {where}")

    # The kernel's log.

    def kernel_log(self) -> str:
        """The guest's kernel log; the console's, which has warnings and a panic only, when the guest is gone."""
        if self.alive():
            with contextlib.suppress(GuestError, OSError):
                return self.run("dmesg", timeout=30, where="init").output
        return self.console.read_text(errors="replace") if self.console.exists() else ""

    def complaints(self) -> list[str]:
        """The lines of the kernel's log that no healthy share causes; see ``complaints``."""
        return complaints(self.kernel_log())

    # The channel.

    def _send(self, where: str, token: str, script: str) -> None:
        encoded = base64.b64encode(script.encode("utf-8", "surrogateescape")).decode()
        pieces = [encoded[at : at + PIECE] for at in range(0, len(encoded), PIECE)] or [""]
        try:
            for piece in pieces[:-1]:
                self._channel.sendall(f"more {token} {piece}\n".encode())
                list(self._until(token, 60, "a piece of a script"))
            self._channel.sendall(f"{where} {token} {pieces[-1]}\n".encode())
        except OSError as error:
            raise GuestError(f"the guest is gone: {error}\n{self._tail()}") from error

    def _until(self, token: str, timeout: float, script: str) -> Iterator[str | int]:
        """Yield the output's lines with their ends, then the status."""
        for line in self._lines(timeout, _short(script)):
            if line.startswith(f"@@{token} "):
                yield int(line.split()[1])
                return
            yield line

    def _lines(self, timeout: float, what: str) -> Iterator[str]:
        seen: list[str] = []
        left = timeout
        while True:
            while b"\n" in self._pending:
                line, self._pending = self._pending.split(b"\n", 1)
                seen.append(line.decode("utf-8", "surrogateescape") + "\n")
                yield seen[-1]
            began = time.monotonic()
            ready = bool(select.select([self._channel], [], [], max(0.0, min(left, SLICE)))[0])
            if not self._stopped():
                left -= min(time.monotonic() - began, SLICE)
            if left <= 0:
                self.kill()
                raise GuestTimeoutError(f"no answer in time: {what}\n--- output\n{''.join(seen[-40:])}\n{self._tail()}")
            if not ready:
                continue
            data = self._channel.recv(1 << 16)
            if not data:
                raise GuestError(f"the guest left: {what}\n--- output\n{''.join(seen[-40:])}\n{self._tail()}")
            self._pending += data

    def _stopped(self) -> bool:
        """Whether somebody has stopped the VMM, who is to let it go on."""
        try:
            return Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()[0] == "T"
        except FileNotFoundError:
            return False

    def _tail(self) -> str:
        text = self.console.read_text(errors="replace") if self.console.exists() else ""
        return "--- console\n" + "\n".join(text.splitlines()[-25:])


def _short(script: str) -> str:
    return script if len(script) < 600 else script[:300] + "\n[…]\n" + script[-200:]


# Lines that mean trouble wherever they come from, and lines of the file system's own drivers, where every word counts
# but those they say in good health.
_TROUBLE = re.compile(r"WARNING:|BUG:|Oops|Call Trace|Kernel panic|general protection|blocked for more than")
_DRIVER = re.compile(r"(<\d>)?(\[[^]]*\] )?(virtiofs|virtio[-_]fs|fuse)\b", re.IGNORECASE)
_HEALTHY = re.compile(r"fuse: init \(API version|discovered new tag|No cache capability|Cache len:")


def complaints(log: str) -> list[str]:
    """The lines of a kernel log that complain: warnings and crashes of any kind, any remark of virtiofs or fuse."""
    return [
        line
        for line in log.splitlines()
        if _TROUBLE.search(line) or (_DRIVER.match(line) and not _HEALTHY.search(line))
    ]


# The initramfs: busybox, inside/init and the modules, as an uncompressed newc archive (unpacking is slow in emulation).


def initramfs(busybox: Path, modules: Path, wanted: Sequence[str]) -> bytes:
    """An initramfs with ``inside/init`` that loads the ``wanted`` modules, where they are not built in."""
    loaded = _modules(modules, wanted)
    entries: list[tuple[str, int, bytes]] = [
        ("bin", stat.S_IFDIR | 0o755, b""),
        ("modules", stat.S_IFDIR | 0o755, b""),
        ("bin/busybox", stat.S_IFREG | 0o755, busybox.read_bytes()),
        ("init", stat.S_IFREG | 0o755, (INSIDE / "init").read_bytes()),
        ("checks.py", stat.S_IFREG | 0o644, (INSIDE / "checks.py").read_bytes()),
        ("modules/order", stat.S_IFREG | 0o644, "".join(f"{name}\n" for name, _ in loaded).encode()),
        *((f"modules/{name}", stat.S_IFREG | 0o644, data) for name, data in loaded),
        ("TRAILER!!!", 0, b""),
    ]
    archive = bytearray()
    for inode, (name, mode, data) in enumerate(entries, 1):
        path = name.encode() + b"\0"
        fields = (inode, mode, 0, 0, 1, 0, len(data), 0, 0, 0, 0, len(path), 0)
        archive += b"070701" + b"".join(b"%08X" % field for field in fields) + path
        archive += bytes(-len(archive) % 4) + data
        archive += bytes(-len(archive) % 4)
    return bytes(archive)


def _modules(modules: Path, wanted: Sequence[str]) -> list[tuple[str, bytes]]:
    """The modules and what they depend on, dependencies first. A module that is not a file is built in."""
    files = {file.name.split(".")[0].replace("-", "_"): file for file in modules.glob("kernel/**/*.ko*")}
    found: dict[str, bytes] = {}

    def load(name: str) -> None:
        if name in found or name not in files:
            return
        data = files[name].read_bytes()
        if files[name].suffix == ".xz":
            data = lzma.decompress(data)
        depends = re.search(rb"\0depends=([^\0]*)\0", data)
        for other in depends[1].decode().split(",") if depends else []:
            load(other.replace("-", "_"))
        found[name] = data

    for name in wanted:
        load(name)
    return list(found.items())
