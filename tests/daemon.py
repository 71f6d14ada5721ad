"""A `virtiofs serve` or `virtiofs mount` of the tests' own, in a process that does not outlive them."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol, Self

COMMAND = (sys.executable, "-m", "virtiofs")


class Start(Protocol):
    """The fixture `start`."""

    def __call__(
        self,
        *arguments: str | Path,
        command: str = "serve",
        wrap: Sequence[str] = (),
        pass_fds: Sequence[int] = (),
        env: dict[str, str] | None = None,
        ready: bool = True,
    ) -> "Daemon": ...


class Daemon:
    """The process and its log.

    Args:
        scratch: Directory for the log.
        arguments: Of the command.
        command: `serve` or `mount`.
        wrap: Command that runs the daemon.
        pass_fds: Descriptors that it inherits.
        env: More environment.
        ready: Return only when it serves.
    """

    def __init__(
        self,
        scratch: Path,
        *arguments: str | Path,
        command: str = "serve",
        wrap: Sequence[str] = (),
        pass_fds: Sequence[int] = (),
        env: dict[str, str] | None = None,
        ready: bool = True,
    ) -> None:
        self._log = scratch / f"daemon-{time.monotonic_ns()}.log"
        with open(self._log, "wb") as log:
            self.process = subprocess.Popen(
                [*wrap, *COMMAND, command, *map(str, arguments)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=scratch,
                pass_fds=pass_fds,
                env=os.environ | (env or {}),
            )
        if ready:
            self.wait_for(" virtiofs: mounted " if command == "mount" else " virtiofs: serving ")

    @property
    def pid(self) -> int:
        return self.process.pid

    @property
    def serving(self) -> int:
        """The process that serves: in a sandbox, the only child of the one that was started."""
        children = Path(f"/proc/{self.pid}/task/{self.pid}/children").read_text().split()
        return int(children[0]) if children else self.pid

    def log(self) -> str:
        """What it wrote so far."""
        return self._log.read_text(errors="replace")

    def wait_for(self, text: str, seconds: float = 20) -> str:
        """Waits until `text` is in the log, and returns the log."""
        deadline = time.monotonic() + seconds
        while text not in (log := self.log()):
            if self.process.poll() is not None:
                raise AssertionError(f"ended with {self.process.returncode} before {text!r}:\n{self.log()}")
            if time.monotonic() > deadline:
                raise AssertionError(f"no {text!r} in {seconds} s:\n{log}")
            time.sleep(0.01)
        return log

    def ends(self, seconds: float = 20) -> int:
        """Waits until it ends by itself, and returns its exit status."""
        try:
            return self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"still runs after {seconds} s:\n{self.log()}") from None

    def end(self, number: int = signal.SIGTERM) -> int:
        """Sends a signal and returns the exit status."""
        self.process.send_signal(number)
        return self.ends()

    def kill(self) -> None:
        """Ends it without ceremony if it still runs."""
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()

    def threads(self) -> int:
        """How many threads it has."""
        return len(os.listdir(f"/proc/{self.serving}/task"))

    def descriptors(self) -> int:
        """How many descriptors it has open."""
        return len(os.listdir(f"/proc/{self.serving}/fd"))

    def resident(self) -> int:
        """Its resident memory in bytes."""
        with open(f"/proc/{self.serving}/statm", encoding="ascii") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()


def virtiofs(*arguments: str | Path, **options: object) -> "subprocess.CompletedProcess[str]":
    """Runs the command to its end and returns what it said."""
    return subprocess.run(  # type: ignore[call-overload, no-any-return]
        [*COMMAND, *map(str, arguments)],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=50,
        check=False,
        **options,
    )
