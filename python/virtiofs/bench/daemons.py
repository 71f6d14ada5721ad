"""The daemons that are compared: how each is found and started."""

import os
import resource
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

OURS: Final = "ours"
NATIVE: Final = "native"
"""System calls on the directory itself: no daemon."""

RUST_PLACES: Final = (Path("/usr/libexec/virtiofsd"),)
C_PLACES: Final = (Path("/usr/lib/qemu/virtiofsd"),)


@dataclass(frozen=True)
class Daemon:
    """One daemon with its flags.

    Attributes:
        name: how tables call it.
        command: split like a shell line; `{dir}` and `{sock}` are replaced.
        peer: not held to the reply rules of Linux 7.3, which Rust virtiofsd breaks at DESTROY.
    """

    name: str
    command: str
    peer: bool = True

    def argv(self, directory: Path, sock: Path) -> list[str]:
        """The command with the directory to share and the socket to listen at."""
        return [part.format(dir=directory, sock=sock) for part in shlex.split(self.command)]

    def version(self) -> str:
        """The first line that it says of its version, or why it says none."""
        argv = self.argv(Path(), Path())
        # Of a program that takes words, the words up to the first that is not its own.
        program = argv[: argv.index("serve")] if "serve" in argv else argv[:1]
        try:
            done = subprocess.run([*program, "--version"], capture_output=True, text=True, timeout=20, check=False)
        except OSError as error:
            return str(error)
        return next((line for line in (done.stdout + done.stderr).splitlines() if line), "?")


def _find(name: str, places: tuple[Path, ...]) -> str | None:
    for place in places:
        if os.access(place, os.X_OK):
            return str(place)
    return shutil.which(name)


def known(ours: str | None = None, rust: str | None = None, c: str | None = None) -> list[Daemon]:
    """The daemons that can be run here: ours first, then those peers that are found.

    Args:
        ours: our command, with `{dir}` and `{sock}`; this package's by default.
        rust: path of Rust virtiofsd; /usr/libexec and PATH are searched by default.
        c: path of the C virtiofsd that was part of QEMU up to 7.2; /usr/lib/qemu and `virtiofsd-c` on PATH by default.
    """
    serve = f"{shlex.quote(sys.executable)} -m virtiofs serve {{dir}} --socket {{sock}}"
    daemons = [Daemon(OURS, ours or serve, peer=False)]
    rust = rust or _find("virtiofsd", RUST_PLACES)
    if rust:
        run = f"{shlex.quote(rust)} --shared-dir {{dir}} --socket-path {{sock}} --tag bench --log-level error"
        daemons.append(Daemon("rust", run))
        daemons.append(Daemon("rust-bare", f"{run} --sandbox none --inode-file-handles=never"))
    c = c or _find("virtiofsd-c", C_PLACES)
    if c:
        run = f"{shlex.quote(c)} -f --socket-path={{sock}} -o source={{dir}} -o cache=auto -o log_level=err"
        daemons.append(Daemon("c", run))
    return daemons


def _allow_many_files() -> None:
    """Raises the limit of open files as far as it goes: some peers hold one for each inode."""
    limit = 1_000_000
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (limit, limit))
    except (ValueError, OSError):
        hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


@contextmanager
def running(daemon: Daemon, directory: Path) -> Iterator[tuple[Path, int]]:
    """Starts a daemon on `directory`: its socket and process id. Ends it, by its id, in any case.

    Raises:
        RuntimeError: it ended, or made no socket within 20 s; with what it wrote to stderr.
    """
    with tempfile.TemporaryDirectory(prefix="virtiofs-bench-") as scratch:
        sock = Path(scratch) / "s"
        errors = Path(scratch) / "stderr"
        with errors.open("wb") as stderr:
            try:
                process = subprocess.Popen(
                    daemon.argv(directory, sock),
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL,
                    stderr=stderr,
                    start_new_session=True,
                    preexec_fn=_allow_many_files,
                )
            except OSError as error:
                raise RuntimeError(f"{daemon.name} did not start: {error}") from error
        try:
            deadline = time.monotonic() + 20
            while not sock.exists():
                if process.poll() is not None or time.monotonic() > deadline:
                    raise RuntimeError(f"{daemon.name} did not start: {errors.read_text(errors='replace').strip()}")
                time.sleep(0.01)
            yield sock, process.pid
        finally:
            _end(process)


def _end(process: subprocess.Popen[bytes]) -> None:
    """Ends a daemon, and children that it serves from; by force after 5 s."""
    for way in (signal.SIGTERM, signal.SIGKILL):
        # Its own session, so its id is its group's; nobody left in it is fine.
        with suppress(ProcessLookupError):
            os.killpg(process.pid, way)
        with suppress(subprocess.TimeoutExpired):
            process.wait(5)
