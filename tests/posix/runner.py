"""Runs checks in processes beside this one, each in a fresh directory."""

from __future__ import annotations

import contextlib
import errno
import fnmatch
import json
import os
import select
import shutil
import signal
import socket
import time
import traceback
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from .check import CHECKS, Check, NotRunError, process_is_changed

OK, FAILED, NOT_RUN = "ok", "failed", "not run"
# Seconds after which a check counts as hanging: none waits for anything but other processes of its own.
PATIENCE = 60.0


@dataclass(frozen=True)
class Result:
    """How a check ended: ``result`` is one of OK, FAILED and NOT_RUN, ``why`` is empty when it is ok."""

    name: str
    result: str
    why: str = ""


def selected(pattern: str) -> list[Check]:
    """The checks whose names match, in their order."""
    return [check for name, check in CHECKS.items() if fnmatch.fnmatchcase(name, pattern)]


def run(directory: Path, checks: Sequence[Check]) -> Iterator[Result]:
    """Run the checks below ``directory``, which gets one folder of ours and loses it again."""
    top = directory / f"posix-{os.getpid()}"
    top.mkdir()
    top.chmod(0o755)
    worker: _Worker | None = None
    try:
        for check in checks:
            place = top / check.name
            place.mkdir()
            place.chmod(0o755)
            worker = worker or _Worker(checks, top)
            result = worker.run(check)
            if worker.spent:
                worker = None
            try:
                shutil.rmtree(place)
            except OSError as error:
                if result.result == OK:
                    result = Result(check.name, FAILED, f"its directory cannot be removed: {error}")
            yield result
    finally:
        if worker:
            worker.end()
        shutil.rmtree(top, ignore_errors=True)


class _Worker:
    """A forked process that runs checks, one after the other as long as each leaves it as it was.

    One of its own for each check would take most of the time where forks are slow, as in User-Mode Linux.
    """

    def __init__(self, checks: Sequence[Check], top: Path) -> None:
        self.spent = False
        self._line, far = socket.socketpair()
        self._pid = os.fork()
        if self._pid == 0:
            try:
                self._line.close()
                os.setpgid(0, 0)
                _work(far, {check.name: check for check in checks}, top)
            finally:
                os._exit(1)
        far.close()

    def run(self, check: Check) -> Result:
        """Run a check that it was made for. ``spent`` says afterwards whether the worker has ended with it."""
        self._line.sendall(f"{check.name}\n".encode())
        answer = self._answer(time.monotonic() + PATIENCE)
        if answer is not None and answer.endswith(b"\n"):
            found = json.loads(answer)
            if found.pop("spent"):
                self.end()
            return Result(check.name, **found)
        status = self.end()
        hangs = answer is None
        return Result(
            check.name,
            FAILED,
            f"hangs: no end after {PATIENCE:.0f} s" if hangs else f"its process ended with status {status}",
        )

    def _answer(self, deadline: float) -> bytes | None:
        """One line, or what came before the end; None when neither came in time."""
        data = b""
        while not data.endswith(b"\n"):
            if not select.select([self._line], [], [], max(0.0, deadline - time.monotonic()))[0]:
                return None
            piece = self._line.recv(1 << 16)
            if not piece:
                break
            data += piece
        return data

    def end(self) -> int:
        """End it, and with it what its checks forked and left behind; answers its exit status."""
        self.spent = True
        self._line.close()
        try:
            os.killpg(self._pid, signal.SIGKILL)
        except ProcessLookupError:
            os.kill(self._pid, signal.SIGKILL)
        return os.waitstatus_to_exitcode(os.waitpid(self._pid, 0)[1])


def _work(line: socket.socket, checks: Mapping[str, Check], top: Path) -> None:
    """Do what the line says, check by check. Only one that is ok, and does not say otherwise, leaves the process fit."""
    kept = line.fileno() + 1
    with line.makefile("r") as orders:
        for order in orders:
            check = checks[order.strip()]
            outcome = {"result": OK, "why": "", "spent": False}
            try:
                os.chdir(top / check.name)
                os.umask(0o022)
                check.body()
                _close_from(kept)
                os.chdir("/")
                outcome["spent"] = process_is_changed()
            except NotRunError as reason:
                outcome = {"result": NOT_RUN, "why": str(reason), "spent": True}
            except BaseException as error:
                outcome = {"result": FAILED, "why": _reason(error), "spent": True}
            line.sendall(json.dumps(outcome).encode() + b"\n")


def _close_from(first: int) -> None:
    for name in os.listdir("/proc/self/fd"):
        if int(name) >= first:
            with contextlib.suppress(OSError):  # the listing's own is gone by now
                os.close(int(name))


def _reason(error: BaseException) -> str:
    """One line that says what failed, and where."""
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if "/checks/" in frame.filename]
    at = f" at {Path(frames[-1].filename).name}:{frames[-1].lineno}" if frames else ""
    text = str(error)
    if isinstance(error, OSError) and error.errno:
        text = f"{errno.errorcode.get(error.errno, error.errno)} ({error.strerror})"
    elif not isinstance(error, AssertionError):
        text = f"{type(error).__name__}: {text}"
    line = (frames[-1].line or "") if frames else ""
    return " ".join(f"{text or 'untrue'}{at}: {line}".split())


def save(path: Path, results: Iterable[Result]) -> None:
    """Write results as ``{"suite": "posix", "results": [{"name", "result", "why"}]}``."""
    path.write_text(json.dumps({"suite": "posix", "results": [asdict(result) for result in results]}, indent=1) + "\n")


def load(path: Path) -> list[Result]:
    """Read what ``save`` wrote."""
    return [Result(**result) for result in json.loads(path.read_text())["results"]]
