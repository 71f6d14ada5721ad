"""What is compared: each way to give a guest a directory, with what it promises."""

from __future__ import annotations

import os
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

from tests.vm.daemon import OURS, Daemon
from tests.vm.guest import Share
from tests.vm.provision import cache

MSIZE = 512_000
"""What Linux's virtio transport of 9p cuts a larger msize to."""
WINDOW = "256M"

RUST = "{bin}/virtiofsd --sandbox none --shared-dir {dir} --socket-path {socket} --tag {tag} --log-level error --cache "


@dataclass(frozen=True)
class Promise:
    """How fresh a guest's view is: 0 always, 1 asked anew at open (data) or after a second (names, attributes), 2 whenever."""

    data: int
    names: int

    def covers(self, other: Promise, *, data: bool) -> bool:
        """Whether this one holds wherever ``other`` does, for work on data or on names."""
        return self.data <= other.data and (data or self.names <= other.names)


@dataclass(frozen=True)
class FileSystem:
    """One way: virtio-9p of QEMU if there is no ``command`` of a daemon. ``options`` are the mount's."""

    name: str
    promise: Promise
    options: str = ""
    command: str = ""
    window: bool = False

    @property
    def family(self) -> str:
        """``9p``, ``rust`` or ``ours``."""
        return self.name.split()[0]

    @property
    def tag(self) -> str:
        return self.name.translate({ord(" "): "-", ord("+"): "-"})

    @property
    def mount(self) -> str:
        """Where it is mounted in the guest."""
        return f"/mnt/{self.tag}"

    @property
    def mounting(self) -> str:
        """The guest's command that mounts it."""
        options = f"-o {self.options} " if self.options else ""
        kind = "virtiofs" if self.command else "9p"
        return f"mount -t {kind} {options}{self.tag} {self.mount}"


def _ninep(mode: str, promise: Promise) -> FileSystem:
    return FileSystem(f"9p {mode}", promise, f"trans=virtio,version=9p2000.L,msize={MSIZE},cache={mode}")


def _ours(name: str, promise: Promise, mode: str, more: str = "", *, window: bool = False) -> FileSystem:
    command = OURS.replace("{cache}", mode) + more
    return FileSystem(f"ours {name}", promise, "dax=always" if window else "", command, window)


KNOWN = (
    _ninep("none", Promise(0, 0)),
    # Reads and writes go through the page cache, checked when a file is opened; names and attributes are asked for.
    _ninep("mmap", Promise(1, 0)),
    _ninep("loose", Promise(2, 2)),
    FileSystem("rust never", Promise(0, 0), command=f"{RUST}never"),
    FileSystem("rust auto", Promise(1, 1), command=f"{RUST}auto"),
    FileSystem("rust always", Promise(2, 2), command=f"{RUST}always"),
    _ours("none", Promise(0, 0), "none"),
    _ours("auto", Promise(1, 1), "auto"),
    # As 9p's mmap does, the guest collects writes, and asks at open whether data changed.
    _ours("auto+writeback", Promise(1, 1), "auto", " --writeback"),
    _ours("always", Promise(2, 2), "always"),
    _ours("always+writeback", Promise(2, 2), "always", " --writeback"),
    # The guest reads and writes the host's page cache: data cannot be stale.
    _ours("dax", Promise(0, 1), "auto", f" --dax-window {WINDOW}", window=True),
)


def problem(one: FileSystem) -> str | None:
    """Why it cannot be had on this machine; None when it can."""
    if one.family == "rust" and not cache().virtiofsd.exists():
        return "virtiofsd is not provisioned"
    if one.window and os.geteuid() != 0:
        return "QEMU maps whole pages of files alone, unless the daemon is root"
    return None


@dataclass
class Served:
    """The file systems with their daemons, and what QEMU needs to know."""

    shares: list[Share] = field(default_factory=list)
    daemons: dict[str, Daemon] = field(default_factory=dict)
    words: list[str] = field(default_factory=list)


def serve(chosen: list[FileSystem], data: Path, resources: ExitStack) -> Served:
    """Starts the daemons, each on its folder of ``data``; they end with ``resources``. Raises DaemonError."""
    served = Served()
    for one in chosen:
        folder = data / one.tag
        if one.command:
            daemon = resources.enter_context(Daemon(folder, one.tag, command=one.command))
            served.shares.append(Share(daemon.socket, one.tag, mount="", window=one.window))
            served.daemons[one.name] = daemon
        else:
            served.words += ["-fsdev", f"local,id=dir-{one.tag},path={folder},security_model=none,multidevs=remap"]
            served.words += ["-device", f"virtio-9p-pci,fsdev=dir-{one.tag},mount_tag={one.tag}"]
    return served
