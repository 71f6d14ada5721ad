"""Locks between the programs of two guests, and between those of a guest and of the host."""

from __future__ import annotations

import itertools
import shlex
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import ClassVar, Protocol

import pytest

from virtiofs import NONE, Passthrough, Server

from . import daemon
from .daemon import Daemon
from .guest import INSIDE, Guest, GuestError, Share
from .uml import Uml

PATIENCE = 30  # seconds for what must come
_number = itertools.count()


@pytest.fixture(autouse=True)
def needs_locks() -> None:
    if not daemon.is_ours():
        pytest.skip(f"{daemon.name()} leaves locks to each guest")


class Side(Protocol):
    """Where programs run: in a guest or on the host."""

    def start(self, log: str, steps: tuple[str, ...]) -> int: ...
    def said(self, log: str) -> list[str]: ...
    def shell(self, script: str) -> None: ...


class Inside:
    """Programs in a guest."""

    def __init__(self, guest: Guest) -> None:
        self.guest = guest

    def start(self, log: str, steps: tuple[str, ...]) -> int:
        command = shlex.join(["python3", "-I", "/run/checks.py", "locks", "/mnt/share/file", log, *steps])
        # Both are there before the program is, which may be slow to begin.
        return int(self.guest.check(f": > {log}; : > {log}.out; {command} > {log}.out 2>&1 & echo $!"))

    def said(self, log: str) -> list[str]:
        return self.guest.check(f"cat {log} {log}.out").split()

    def shell(self, script: str) -> None:
        self.guest.check(script)


class Outside:
    """Programs on the host."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.processes: list[subprocess.Popen[bytes]] = []

    def start(self, log: str, steps: tuple[str, ...]) -> int:
        Path(log).touch()
        script, file = str(INSIDE / "checks.py"), str(self.directory / "file")
        self.processes.append(subprocess.Popen([sys.executable, "-I", script, "locks", file, log, *steps]))
        return self.processes[-1].pid

    def said(self, log: str) -> list[str]:
        return Path(log).read_text().split()

    def shell(self, script: str) -> None:
        subprocess.run(["sh", "-euc", script], check=True)

    def close(self) -> None:
        for process in self.processes:
            process.kill()
            process.wait()


class Program:
    """A program that takes locks as its ``steps`` say (see ``locks`` in inside/checks.py) and keeps them until it is ended."""

    running: ClassVar[list[Program]] = []

    def __init__(self, side: Side, *steps: str, scratch: Path = Path("/tmp")) -> None:
        self.side = side
        self.running.append(self)
        self.log = str(scratch / f"lock-{next(_number)}")
        self.pid = side.start(self.log, steps)

    def said(self, *outcomes: str) -> Program:
        """Waits until it has come so far."""
        deadline = time.monotonic() + PATIENCE
        while (said := self.side.said(self.log)) != list(outcomes):
            assert said == list(outcomes[: len(said)]), f"{said}, not {outcomes}"
            assert time.monotonic() < deadline, f"only {said} of {outcomes} in {PATIENCE} s"
            time.sleep(0.02)
        return self

    def waits(self, *outcomes: str) -> Program:
        """Makes sure that it has come so far and no further, though it had the time."""
        self.said(*outcomes)
        time.sleep(0.3)
        return self.said(*outcomes)

    def end(self, signal: str = "TERM") -> None:
        self.running.remove(self)
        self.side.shell(f"kill -{signal} {self.pid}")


EXCLUSIVE = {"fcntl": "fcntl:exclusive:{}:0:0", "flock": "flock:exclusive:{}:0:0"}
SHARED = {"fcntl": "fcntl:shared:{}:0:0", "flock": "flock:shared:{}:0:0"}
HOW = pytest.mark.parametrize("how", ["fcntl", "flock"])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("locks")
    (folder / "share").mkdir()
    (folder / "share" / "file").write_text("to be locked")
    return folder


@pytest.fixture(scope="module")
def guests(folder: Path) -> Iterator[tuple[Inside, Inside]]:
    """Two guests of one process: what one of them waits for is known when the other asks."""
    with ExitStack() as stack:
        sockets = [folder / "one", folder / "two"]
        for socket in sockets:
            stack.enter_context(Server(Passthrough(folder / "share", NONE), socket=socket, tag="share"))
        one, two = [stack.enter_context(Uml([Share(socket)], memory="256M")) for socket in sockets]
        yield Inside(one), Inside(two)
        assert one.complaints() == two.complaints() == []


@pytest.fixture(autouse=True)
def no_program_is_left() -> Iterator[None]:
    """A test that fails leaves no locks to the next."""
    yield
    for program in Program.running[:]:
        with suppress(GuestError, subprocess.CalledProcessError):
            program.end("KILL")
    Program.running.clear()


@pytest.fixture
def host(folder: Path) -> Iterator[Outside]:
    outside = Outside(folder / "share")
    yield outside
    outside.close()


@HOW
def test_an_exclusive_lock_excludes(guests: tuple[Inside, Inside], how: str) -> None:
    one, two = guests
    holder = Program(one, EXCLUSIVE[how].format("try")).said("granted")
    for mode in (EXCLUSIVE, SHARED):
        # In the same guest and in the other.
        Program(one, mode[how].format("try")).said("EAGAIN").end()
        Program(two, mode[how].format("try")).said("EAGAIN").end()
    holder.end()
    Program(two, "fcntl:shared:wait:0:0", EXCLUSIVE[how].format("wait")).said("granted", "granted").end()


@HOW
def test_shared_locks_share(guests: tuple[Inside, Inside], how: str) -> None:
    readers = [Program(side, SHARED[how].format("try")).said("granted") for side in guests * 2]
    writer = Program(guests[0], EXCLUSIVE[how].format("wait")).waits()
    for reader in readers:
        reader.end()
    writer.said("granted").end()


def test_ranges_are_locked_apart(guests: tuple[Inside, Inside]) -> None:
    one, two = guests
    holder = Program(one, "fcntl:exclusive:try:10:10").said("granted")
    steps = ("fcntl:exclusive:try:0:10", "fcntl:exclusive:try:20:0", "fcntl:shared:try:19:1", "fcntl:exclusive:try:0:0")
    other = Program(two, *steps).said("granted", "granted", "EAGAIN", "EAGAIN")
    # flock and fcntl do not see each other.
    Program(two, EXCLUSIVE["flock"].format("try")).said("granted").end()
    holder.end()
    other.end()


@HOW
def test_a_waiter_is_woken_by_the_end_of_the_holder(guests: tuple[Inside, Inside], how: str) -> None:
    one, two = guests
    for signal in ("TERM", "KILL"):
        holder = Program(one, EXCLUSIVE[how].format("try")).said("granted")
        waiter = Program(two, EXCLUSIVE[how].format("wait")).waits()
        # The waiter holds nobody up: its guest has one queue.
        two.shell("ls -l /mnt/share; echo x > /mnt/share/other; cat /mnt/share/other; rm /mnt/share/other")
        holder.end(signal)
        waiter.said("granted")
        Program(one, EXCLUSIVE[how].format("try")).said("EAGAIN").end()
        waiter.end(signal)
        Program(one, EXCLUSIVE[how].format("wait")).said("granted").end()


@HOW
def test_a_waiter_is_woken_by_an_unlock(guests: tuple[Inside, Inside], how: str) -> None:
    one, two = guests
    holder = Program(
        one, EXCLUSIVE[how].format("try"), "when:/tmp/go-" + how, f"{how}:none:wait:0:0", SHARED[how].format("wait")
    ).said("granted")
    waiter = Program(two, SHARED[how].format("wait")).waits()
    one.shell(f"touch /tmp/go-{how}")
    waiter.said("granted")
    holder.said("granted", "granted", "granted").end()
    waiter.end()


def test_a_cycle_of_waiters_is_a_deadlock(guests: tuple[Inside, Inside]) -> None:
    for turn, (one, two) in enumerate((guests, (guests[0], guests[0]))):
        go = f"/tmp/go-{turn}"
        first = Program(one, "fcntl:exclusive:try:0:1", f"when:{go}", "fcntl:exclusive:wait:1:1").said("granted")
        second = Program(two, "fcntl:exclusive:try:1:1", f"when:{go}-2", "fcntl:exclusive:wait:0:1").said("granted")
        one.shell(f"touch {go}")
        first.waits("granted")
        two.shell(f"touch {go}-2")
        second.said("granted", "EDEADLK")
        first.waits("granted").side.shell("true")
        second.end()
        first.said("granted", "granted").end()


@HOW
def test_a_killed_guest_lets_go(guests: tuple[Inside, Inside], folder: Path, how: str) -> None:
    one, _ = guests
    with Server(Passthrough(folder / "share", NONE), socket=folder / "third", tag="share") as server:
        with Uml([Share(folder / "third")], memory="256M") as guest:
            holder = Program(Inside(guest), EXCLUSIVE[how].format("try")).said("granted")
            Program(holder.side, EXCLUSIVE[how].format("wait")).waits()
            waiter = Program(one, EXCLUSIVE[how].format("wait")).waits()
            guest.kill()
        waiter.said("granted").end()
        deadline = time.monotonic() + PATIENCE
        while server.stats().handles:
            assert time.monotonic() < deadline
            time.sleep(0.02)


@HOW
def test_with_a_program_of_the_host(guests: tuple[Inside, Inside], host: Outside, folder: Path, how: str) -> None:
    one, _ = guests
    holder = Program(host, EXCLUSIVE[how].format("try"), scratch=folder).said("granted")
    Program(one, SHARED[how].format("try")).said("EAGAIN").end()
    waiter = Program(one, EXCLUSIVE[how].format("wait")).waits()
    holder.end("KILL")
    waiter.said("granted")
    Program(host, SHARED[how].format("try"), scratch=folder).said("EAGAIN").end()
    waiting = Program(host, SHARED[how].format("wait"), scratch=folder).waits()
    waiter.end("KILL")
    waiting.said("granted").end()


@HOW
def test_between_two_daemons(folder: Path, how: str) -> None:
    """Two processes know nothing of each other: the host's kernel is between them."""
    with (
        Daemon(folder / "share", cache="none") as left,
        Daemon(folder / "share", cache="none") as right,
        Uml([Share(left.socket)], memory="256M") as one,
        Uml([Share(right.socket)], memory="256M") as two,
    ):
        holder = Program(Inside(one), EXCLUSIVE[how].format("try")).said("granted")
        Program(Inside(two), SHARED[how].format("try")).said("EAGAIN").end()
        waiter = Program(Inside(two), EXCLUSIVE[how].format("wait")).waits()
        holder.end("KILL")
        waiter.said("granted")
        holder = Program(Inside(one), EXCLUSIVE[how].format("wait")).waits()
        right.stop()
        holder.said("granted").end()
        # The guest of the daemon that is gone has nobody to say goodbye to.
        two.kill()
        assert one.complaints() == []
