"""Three guests at one daemon for a long time, one of which is killed every 20 seconds: what the daemon holds stays flat.

`make soak MINUTES=30`, or `python -m tests.soak --minutes 30`. The daemon is `virtiofs serve` with its default sandbox; each
guest is a process of its own, with real rings, that reads what it writes. tests/test_soak.py runs it for three minutes.
"""

import argparse
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median

from tests.daemon import Daemon
from virtiofs.testing import Guest

GUESTS = 3
EVERY = 20.0
"""Seconds from one guest that is killed to the next."""
WARM = 25.0
"""Seconds until all threads and caches are there."""
FILES = 40


def load(socket: str, home: str, progress: str, seed: int) -> None:
    """Works as a guest until it is killed: a round is one file's life, and the answer to it is looked at."""
    rng = random.Random(seed)
    with Guest(socket, connect_timeout=60, timeout=120) as guest, open(progress, "a", encoding="ascii") as done:
        if guest.exists(home):
            guest.remove_tree(home)
        guest.makedirs(f"{home}/deep/er")
        contents: dict[str, bytes] = {}
        while True:
            for _ in range(50):
                _round(guest, home, contents, rng)
            done.write("50\n")
            done.flush()


def _round(guest: Guest, home: str, contents: dict[str, bytes], rng: random.Random) -> None:
    path = f"{home}/{'deep/er/' if rng.random() < 0.3 else ''}{rng.randrange(FILES)}"
    what = rng.randrange(9)
    known = contents.get(path)
    if what <= 2 or known is None:
        size = rng.choice((0, 10, 4096, 70_000, 1 << 20)) if rng.random() < 0.2 else rng.randrange(20_000)
        contents[path] = rng.randbytes(size)
        guest.write_file(path, contents[path])
    elif what <= 4:
        if guest.read_file(path) != known:
            raise SystemExit(f"{path}: other bytes than were written")
    elif what == 5:
        other = f"{home}/{rng.randrange(FILES)}"
        guest.rename(path, other)
        if other != path:
            contents[other] = contents.pop(path)
    elif what == 6:
        guest.unlink(path)
        del contents[path]
    elif what == 7:
        names = {entry.name for entry in guest.scandir(home)}
        missing = {name.rpartition("/")[2] for name in contents if "/deep/" not in name} - names
        if missing:
            raise SystemExit(f"{home}: {missing} are not listed")
        guest.drop_caches()
    else:
        if guest.stat(path).size != len(known):
            raise SystemExit(f"{path}: another size than was written")
        with guest.open(path, os.O_RDWR) as file:
            file.sync()


@dataclass
class Sample:
    """What the daemon holds."""

    memory: int
    descriptors: int
    threads: int

    def __str__(self) -> str:
        return f"{self.memory / 2**20:.1f} MiB, {self.descriptors} descriptors, {self.threads} threads"


@dataclass
class Figures:
    """What came of a run."""

    minutes: float
    rounds: int = 0
    killed: int = 0
    idle: list[Sample] = field(default_factory=list)
    """Without guests: before the first, and after the last."""
    busy: list[Sample] = field(default_factory=list)
    """With guests, once a second."""

    def part(self, last: bool) -> Sample:
        """The median of the first or the last quarter of the time with guests."""
        count = max(1, len(self.busy) // 4)
        part = self.busy[-count:] if last else self.busy[:count]
        return Sample(
            *(int(median(getattr(one, name) for one in part)) for name in ("memory", "descriptors", "threads"))
        )

    def __str__(self) -> str:
        most = Sample(*(max(getattr(one, name) for one in self.busy) for name in ("memory", "descriptors", "threads")))
        return "\n".join(
            (
                f"{self.minutes:g} min, {self.rounds} rounds of three guests, {self.killed} guests killed",
                f"  with guests, first quarter: {self.part(last=False)}",
                f"  with guests, last quarter:  {self.part(last=True)}",
                f"  at most:                    {most}",
                f"  without, before:            {self.idle[0]}",
                f"  without, after:             {self.idle[1]}",
            )
        )

    def check(self) -> None:
        """Raises AssertionError if something grew."""
        first, last = self.part(last=False), self.part(last=True)
        before, after = self.idle
        assert self.rounds > 100 * self.minutes, f"hardly any work was done\n{self}"
        assert last.memory <= 1.1 * first.memory + 2**22, f"memory grows\n{self}"
        assert last.descriptors <= 1.3 * first.descriptors + 20, f"descriptors grow\n{self}"
        assert last.threads <= first.threads + 8, f"threads grow\n{self}"
        assert after.descriptors <= before.descriptors, f"descriptors are left\n{self}"
        assert after.threads <= before.threads, f"threads are left\n{self}"
        assert after.memory <= before.memory + 2**25, f"memory is left\n{self}"


def sample(daemon: Daemon) -> Sample:
    """Returns what the daemon holds now."""
    return Sample(daemon.resident(), daemon.descriptors(), daemon.threads())


def settled(daemon: Daemon, threads: int, seconds: float = 30) -> Sample:
    """Waits until no more threads are left than that, and returns what is held then."""
    deadline = time.monotonic() + seconds
    while (now := sample(daemon)).threads > threads and time.monotonic() < deadline:
        time.sleep(0.2)
    return now


def soak(scratch: Path, minutes: float) -> Figures:
    """Runs for so long, below `scratch`."""
    (shared := scratch / "shared").mkdir()
    sockets = [scratch / f"{number}.sock" for number in range(GUESTS)]
    shares = "".join(
        f'[[share]]\ndirectory = "{shared}"\nsocket = "{s}"\ntag = "soak{n}"\n' for n, s in enumerate(sockets)
    )
    (scratch / "soak.toml").write_text(f'log_level = "warn"\n{shares}')
    figures = Figures(minutes)
    progress = scratch / "progress"
    progress.touch()
    guests: list[subprocess.Popen[bytes]] = []
    with Daemon(scratch, "--config", scratch / "soak.toml", ready=False) as daemon:
        while not all(socket.exists() for socket in sockets):
            assert daemon.process.poll() is None, daemon.log()
            time.sleep(0.05)
        with Guest(sockets[0], connect_timeout=20) as guest:
            guest.listdir()
        figures.idle.append(settled(daemon, GUESTS + 1))

        def begin(number: int) -> "subprocess.Popen[bytes]":
            arguments = [str(sockets[number]), f"home{number}", str(progress), str(time.monotonic_ns())]
            return subprocess.Popen([sys.executable, "-m", "tests.soak", "--guest", *arguments])

        try:
            guests += [begin(number) for number in range(GUESTS)]
            start = time.monotonic()
            end, kill = start + minutes * 60, start + EVERY
            while (now := time.monotonic()) < end:
                time.sleep(1)
                if now > start + WARM:
                    figures.busy.append(sample(daemon))
                for number, guest_process in enumerate(guests):
                    assert guest_process.poll() is None, f"guest {number} ended\n{daemon.log()}"
                if now > kill:
                    kill += EVERY
                    number = figures.killed % GUESTS
                    guests[number].send_signal(signal.SIGKILL)
                    guests[number].wait()
                    guests[number] = begin(number)
                    figures.killed += 1
        finally:
            for process in guests:
                process.kill()
                process.wait()
        figures.idle.append(settled(daemon, figures.idle[0].threads))
        figures.rounds = sum(int(line) for line in progress.read_text().split())
        with Guest(sockets[0]) as guest:
            assert guest.listdir(), "nothing is served any more"
        assert daemon.end() == 0, daemon.log()
    return figures


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=30)
    parser.add_argument("--guest", nargs=4, metavar="X", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.guest:
        socket, home, progress, seed = arguments.guest
        load(socket, home, progress, int(seed))
        return
    with tempfile.TemporaryDirectory(prefix="virtiofs-soak-") as scratch:
        figures = soak(Path(scratch), arguments.minutes)
    print(figures)
    figures.check()


if __name__ == "__main__":
    main()
