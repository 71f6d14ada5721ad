"""The measuring itself: which daemon runs what, when."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Literal, TypeAlias

from virtiofs import _core
from virtiofs.errors import ProtocolError

from .daemons import NATIVE, Daemon, running
from .wakeup import measure_wakeups

Measurement: TypeAlias = dict[str, Any]
"""One row at one depth by one daemon in one round: the keys of the JSON, see `virtiofs bench --help`."""

INODE_DIRECTORIES: Final = 100
WAKEUP_SECONDS: Final = 0.1


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What to measure.

    Attributes:
        rows: kinds of work; all by default.
        depths: operations in flight per request queue.
        queues: numbers of request queues to use, one driver thread each. Peers have one, and are measured with that alone.
        drivers: how the driver waits: for calls, or looking at the ring.
        rounds: times that everything is run.
        seconds: measured per row, depth, daemon and round.
        warm: seconds of the same before that.
        native: measure bare system calls on the directory, in one thread, and bare wake-ups too.
        inodes: inodes of the memory row; 0 for none.
    """

    rows: Sequence[str] = field(default_factory=_core.load_rows)
    depths: Sequence[int] = (1, 8, 32)
    queues: Sequence[int] = (1,)
    drivers: Sequence[Literal["blocking", "polling"]] = ("blocking",)
    rounds: int = 3
    seconds: float = 1.0
    warm: float = 0.2
    native: bool = True
    inodes: int = 100_000


@contextmanager
def _loading(
    daemon: Daemon, directory: Path, *, depth: int, queues: int, driver: Literal["blocking", "polling"]
) -> Iterator[_core.Load]:
    """A fresh daemon with a driver on it."""
    with running(daemon, directory) as (sock, pid):
        load = _core.Load(
            sock, pid=pid, depth=depth, queues=queues, polling=driver == "polling", strict=not daemon.peer
        )
        try:
            yield load
        finally:
            load.close()


def steps(plan: Plan, daemons: Sequence[Daemon]) -> int:
    """How many times `measure` reports progress."""
    ways = len(plan.queues) * len(plan.drivers)
    return len(plan.rows) * plan.rounds * (len(daemons) * ways + plan.native) + (len(daemons) if plan.inodes else 0)


def measure(
    plan: Plan,
    daemons: Sequence[Daemon],
    directory: Path,
    *,
    progress: Callable[[str], object] = lambda _what: None,
    failed: Callable[[str], object] = lambda _what: None,
) -> list[Measurement]:
    """Runs `plan` on files in `directory`, which are made if they are missing (256 MiB and 11,000 empty ones).

    Rows are outermost and daemons innermost, turned by one each round: a slow minute hits all. What a daemon cannot do is
    told to `failed` and lacks in the answer.

    Args:
        plan: what to measure.
        daemons: whom.
        directory: where the files are, on the file system to be measured.
        progress: called before each step with a line of text.
        failed: called for each step that failed, with a line that says why.
    """
    with _loading(daemons[0], directory, depth=1, queues=1, driver="blocking") as load:
        load.prepare()
    found: list[Measurement] = []
    for row in plan.rows:
        for turn in range(plan.rounds):
            for place in range(len(daemons)):
                daemon = daemons[(place + turn) % len(daemons)]
                where = f"round {turn + 1}/{plan.rounds}"
                ways = _ways(plan, daemon, directory, row, failed, progress, where)
                found += [one | {"round": turn} for one in ways]
            if plan.native:
                progress(f"{row} round {turn + 1}/{plan.rounds} {NATIVE}")
                # One thread has one operation at a time: there are no depths.
                figures = _core.load_native(directory, row, seconds=plan.seconds, warm=plan.warm)
                found.append({**figures, "daemon": NATIVE, "driver": "blocking", "round": turn})
                found += [
                    one | {"round": turn, "beside": row} for one in measure_wakeups(min(plan.seconds, WAKEUP_SECONDS))
                ]
    if plan.inodes:
        each = _make_inodes(directory, plan.inodes)
        for daemon in daemons:
            progress(f"memory {daemon.name}")
            found += _memory(daemon, directory, each, failed)
    return found


def _ways(
    plan: Plan,
    daemon: Daemon,
    directory: Path,
    row: str,
    failed: Callable[[str], object],
    progress: Callable[[str], object],
    where: str,
) -> Iterator[Measurement]:
    """One row by one daemon in all ways that were asked for."""
    for queues in plan.queues:
        for driver in plan.drivers:
            progress(f"{row} {where} {daemon.name}")
            if daemon.peer and queues > 1:
                continue
            try:
                with _loading(daemon, directory, depth=max(plan.depths), queues=queues, driver=driver) as load:
                    for depth in plan.depths:
                        figures = load.run(row, depth=depth, queues=queues, seconds=plan.seconds, warm=plan.warm)
                        yield {**figures, "daemon": daemon.name, "driver": driver}
            except (OSError, ProtocolError, RuntimeError) as error:
                failed(f"{row} by {daemon.name}: {error}")


def _make_inodes(directory: Path, count: int) -> int:
    """Empty files, the same number in each of some directories: how many in each."""
    each = max(count // INODE_DIRECTORIES, 1)
    for outer in range(INODE_DIRECTORIES):
        inside = directory / "inodes" / f"d{outer:03}"
        inside.mkdir(parents=True, exist_ok=True)
        for inner in range(each):
            (inside / f"f{inner:05}").touch()
    return each


def _memory(daemon: Daemon, directory: Path, each: int, failed: Callable[[str], object]) -> list[Measurement]:
    """Resident memory of an idle daemon, and with many nodes held."""
    try:
        with _loading(daemon, directory, depth=1, queues=1, driver="blocking") as load:
            idle = load.memory()
            nodes = load.hold("inodes", each)
            held = load.memory()
    except (OSError, ProtocolError, RuntimeError) as error:
        failed(f"memory of {daemon.name}: {error}")
        return []
    return [
        {"row": "memory-idle", "nodes": 0, "rss_kib": idle, "daemon": daemon.name},
        {"row": "memory-inodes", "nodes": nodes, "rss_kib": held, "daemon": daemon.name},
    ]
