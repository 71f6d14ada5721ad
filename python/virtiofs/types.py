"""What operations and servers answer: frozen values."""

from dataclasses import dataclass

from ._core import Attr, DirEntry, Entry, Open, Statfs

__all__ = ["Attr", "DeviceStats", "DirEntry", "Entry", "Open", "Statfs", "Stats"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Stats:
    """Counters of a server since it started.

    Args:
        connections: Virtual machine monitors that have connected.
        connected: Whether one is connected now.
        nodes: Inodes that the guest holds, the root included.
        handles: Files and directories that it has open.
        requests: Requests answered, by the name of the operation.
        errors: Error replies among them.
        malformed: Chains, headers or arguments that no honest guest sends.
        panics: Faults of ours that ended a single request, with EIO.
    """

    connections: int
    connected: bool
    nodes: int
    handles: int
    requests: dict[str, int]
    errors: dict[str, int]
    malformed: int
    panics: int


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceStats:
    """Counters of a device since it was made.

    Args:
        state: What it does: ready, running, paused or closed.
        nodes: Inodes that the guest holds, the root included.
        handles: Files and directories that it has open.
        requests: Requests answered, by the name of the operation.
        errors: Error replies among them.
        malformed: Chains, headers or arguments that no honest guest sends.
        panics: Faults of ours that ended a single request, with EIO.
    """

    state: str
    nodes: int
    handles: int
    requests: dict[str, int]
    errors: dict[str, int]
    malformed: int
    panics: int
