"""The daemons that are compared: how each is found and started."""

from __future__ import annotations

import os
import resource
import shlex
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
CACHE = Path(os.environ.get("VIRTIOFS_VM_CACHE", ROOT / ".cache" / "vm"))
OURS = "ours"


@dataclass(frozen=True)
class Daemon:
    """One daemon with its flags.

    ``command`` is split like a shell line; ``{dir}`` and ``{sock}`` are replaced. ``peer`` daemons are not held to the
    reply rules of Linux 7.3, which Rust virtiofsd breaks at DESTROY.
    """

    name: str
    command: str
    peer: bool = True

    def argv(self, directory: Path, sock: Path) -> list[str]:
        return [part.format(dir=directory, sock=sock) for part in shlex.split(self.command)]


def find(name: str, *places: Path) -> str | None:
    """Path of a program: the first of ``places`` that exists, else the one on PATH."""
    for place in places:
        if os.access(place, os.X_OK):
            return str(place)
    return shutil.which(name)


def known(ours: str, rust: str | None, c: str | None) -> list[Daemon]:
    """The daemons that can be run here: ours first, then those peers that are found."""
    daemons = [Daemon(OURS, ours, peer=False)]
    rust = rust or find("virtiofsd", CACHE / "bin" / "virtiofsd", Path("/usr/libexec/virtiofsd"))
    if rust:
        run = f"{rust} --shared-dir {{dir}} --socket-path {{sock}} --tag bench --log-level error"
        daemons.append(Daemon("rust", run))
        daemons.append(Daemon("rust-bare", f"{run} --sandbox none --inode-file-handles=never"))
    c = c or find("virtiofsd-c", CACHE / "bin" / "virtiofsd-c", Path("/usr/lib/qemu/virtiofsd"))
    if c:
        daemons.append(Daemon("c", f"{c} -f --socket-path={{sock}} -o source={{dir}} -o cache=auto -o log_level=err"))
    return daemons


def allow_many_files() -> None:
    """Raises the limit of open files as far as it goes: some peers hold one for each inode."""
    limit = 1_000_000
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (limit, limit))
    except (ValueError, OSError):
        hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


@contextmanager
def running(daemon: Daemon, directory: Path) -> Iterator[tuple[Path, int]]:
    """Starts a daemon on ``directory``: its socket and process id. Ends it, by its id, in any case.

    Raises:
        RuntimeError: it ended, or made no socket within 20 s; with what it wrote to stderr.
    """
    with tempfile.TemporaryDirectory(prefix="virtiofs-bench-") as scratch:
        sock = Path(scratch) / "s"
        errors = Path(scratch) / "stderr"
        with errors.open("wb") as stderr:
            process = subprocess.Popen(
                daemon.argv(directory, sock),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=stderr,
                start_new_session=True,
                preexec_fn=allow_many_files,
            )
        try:
            deadline = time.monotonic() + 20
            while not sock.exists():
                if process.poll() is not None or time.monotonic() > deadline:
                    raise RuntimeError(f"{daemon.name} did not start: {errors.read_text(errors='replace').strip()}")
                time.sleep(0.01)
            yield sock, process.pid
        finally:
            end(process)


def end(process: subprocess.Popen[bytes]) -> None:
    """Ends a daemon, and children that it serves from; by force after 5 s."""
    for way in (signal.SIGTERM, signal.SIGKILL):
        # Its own session, so its id is its group's; nobody left in it is fine.
        with suppress(ProcessLookupError):
            os.killpg(process.pid, way)
        with suppress(subprocess.TimeoutExpired):
            process.wait(5)
