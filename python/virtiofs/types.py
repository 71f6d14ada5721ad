"""What operations take and answer, and what servers tell: frozen values."""

from dataclasses import dataclass
from typing import Literal, TypeAlias

from ._core import Attr, Changes, DirEntry, Entry, Lock, Node, Open, Request, Statfs

__all__ = [
    "Attr",
    "Buffer",
    "Changes",
    "DeviceStats",
    "DirEntry",
    "Entry",
    "InFlight",
    "Lock",
    "Lost",
    "Node",
    "Open",
    "Request",
    "Statfs",
    "Stats",
]

Buffer: TypeAlias = bytes | bytearray | memoryview
"""Bytes. Anything else with a contiguous buffer (`mmap.mmap`, arrays) is taken as well."""


@dataclass(frozen=True, slots=True)
class InFlight:
    """A request that a Python method is at, or that waits for one.

    Args:
        operation: What was asked for.
        node: Number of the node that it is asked of.
        seconds: How long ago it came.
    """

    operation: str
    node: int
    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Lost:
    """Something that the guest of a saved device has, and that is not to be had any more.

    Args:
        kind: A node (what was open of it is not named again), an open file or directory, a lock, or a mapping of the window.
        node: Number of the node that it belongs to.
        path: Where that was in the share when the device was saved; empty if that is not known.
        error: Why it is lost.
    """

    kind: Literal["node", "file", "directory", "lock", "mapping"]
    node: int
    path: str
    error: OSError

    def __str__(self) -> str:
        """Says what is lost and why."""
        return f"{self.kind} of {self.path or f'node {self.node}'!r} ({self.error.strerror})"


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
        mappings: Ranges of files that are mapped into the DAX window now.
        zeroed: How often zeros took the place of what a mapped file did not give, because it was truncated.
    """

    state: str
    nodes: int
    handles: int
    requests: dict[str, int]
    errors: dict[str, int]
    malformed: int
    panics: int
    mappings: int
    zeroed: int
