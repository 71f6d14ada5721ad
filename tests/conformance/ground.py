"""Where a suite runs: a guest with two empty file systems, on our shares or on disks of its own; or a mount of this host.

The control is what a share is to be mistaken for: the same guest kernel with ext4 on local disks. The shares' directories are
ext4 as well, each a small image of its own, since suites fill whatever is free.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import virtiofs
from tests.posix.runner import FAILED, OK, Result
from tests.vm import provision
from tests.vm.guest import Guest, Share
from tests.vm.uml import Uml

from .host import Host, bound, rooted

CONTROL = "control"
SETUPS: Mapping[str, Mapping[str, Any]] = {
    "none": {"cache": virtiofs.NONE},
    "auto": {"cache": virtiofs.AUTO},
    "always": {"cache": virtiofs.ALWAYS},
    "auto-writeback": {"cache": virtiofs.AUTO, "writeback": True},
    "always-writeback": {"cache": virtiofs.ALWAYS, "writeback": True},
}
"""The shares by name, as arguments of `Passthrough`; all serve extended attributes, ACLs and O_DIRECT too."""
MOUNTS: Mapping[str, Mapping[str, Any]] = {f"mount-{name}": share for name, share in SETUPS.items()}
"""The same, mounted on this host by /dev/fuse: one file system, no guest."""

IMAGE_SIZE = 3 << 30
COUNTERS, RETURNED = "the server's counters", "nodes, handles and descriptors return"
OF_SERVERS = (COUNTERS, RETURNED)
"""Results that the shares have beside those of the suites, and the control has not."""
AREAS = ("test", "scratch")
# Tags that nothing else is called: xfstests replaces them wherever they stand.
TAGS = {area: f"conformance-{area}" for area in AREAS}


@dataclass(frozen=True)
class Ground:
    """A booted guest with ``/mnt/test`` and ``/mnt/scratch`` mounted and the given folders below ``/suites``.

    ``fstyp`` is the type of both file systems, ``devices`` what they are mounted from. ``servers`` is empty on the control.
    This host in place of a guest has ``/mnt/test`` only.
    """

    setup: str
    guest: Guest | Host
    fstyp: str
    devices: tuple[str, ...]
    servers: tuple[virtiofs.Server | virtiofs.Mount, ...]

    def held(self) -> dict[str, int]:
        """What the servers hold for the guest: nodes and handles, and the descriptors of this process."""
        # The root is never forgotten; what stands open for it, where none is opened by a message, counts from the first look on
        self.guest.check("ls /mnt/* > /dev/null")
        stats = [server.stats() for server in self.servers]
        held = {"nodes": sum(each.nodes for each in stats), "handles": sum(each.handles for each in stats)}
        return held | {"descriptors": len(os.listdir("/proc/self/fd"))}

    def settles(self, at: Mapping[str, int], seconds: float = 30) -> dict[str, int]:
        """Drop the guest's caches until the servers hold no more than ``at``; answers what they hold then."""
        deadline = time.monotonic() + seconds
        while True:
            self.guest.check("sync\necho 3 > /proc/sys/vm/drop_caches", timeout=120)
            held = self.held()
            if all(held[what] <= at[what] for what in at) or time.monotonic() > deadline:
                return held
            time.sleep(0.5)

    def health(self) -> Iterator[Result]:
        """What must hold after any suite: a kernel log and counters without a complaint."""
        complaints = self.guest.complaints()
        yield Result("the guest's kernel log", FAILED if complaints else OK, "; ".join(complaints[:5]))
        if self.servers:
            stats = [server.stats() for server in self.servers]
            bad = [f"{s.malformed} malformed requests, {s.panics} panics" for s in stats if s.malformed or s.panics]
            yield Result(COUNTERS, FAILED if bad else OK, "; ".join(bad))


@contextlib.contextmanager
def ground(setup: str, folders: Mapping[str, Path], memory: str = "1G") -> Iterator[Ground]:
    """Boot a guest for ``setup``, a name in SETUPS or CONTROL, or mount one in MOUNTS; ``folders`` appear as ``/suites/NAME``.

    Needs root, for images are mounted on loop devices and files belong to many users.
    """
    if setup in MOUNTS:
        with _mounted(setup, folders) as here:
            yield here
        return
    with contextlib.ExitStack() as stack:
        scratch = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="conformance-")))
        images = [_image(scratch / f"{area}.img") for area in AREAS]
        over = provision.cache().suites
        if setup == CONTROL:
            guest: Guest = Uml([], memory=memory, disks=images, over=over)
            servers: tuple[virtiofs.Server, ...] = ()
            devices, fstyp = ("/dev/ubda", "/dev/ubdb"), "ext4"
        else:
            servers = tuple(
                stack.enter_context(_server(scratch, area, image, setup))
                for area, image in zip(AREAS, images, strict=True)
            )
            shares = [
                Share(Path(str(server.path)), server.tag, f"/mnt/{area}")
                for area, server in zip(AREAS, servers, strict=True)
            ]
            guest = Uml(shares, memory=memory, over=over)
            devices, fstyp = (TAGS["test"], TAGS["scratch"]), "virtiofs"
        stack.enter_context(guest)
        here = Ground(setup, guest, fstyp, devices, servers)
        for device, area in zip(devices, AREAS, strict=True):
            if not servers:
                guest.check(f"mkdir -p /mnt/{area}\nmount -t {fstyp} -o acl,user_xattr {device} /mnt/{area}")
        for name, folder in folders.items():
            guest.check(
                f"mkdir -p /suites/{name}\nmount -t hostfs -o 'ro,hostfs={folder.resolve()}' none /suites/{name}"
            )
        yield here


@contextlib.contextmanager
def _mounted(setup: str, folders: Mapping[str, Path]) -> Iterator[Ground]:
    with contextlib.ExitStack() as stack:
        scratch = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="conformance-")))
        share = stack.enter_context(_share(scratch, "test", _image(scratch / "test.img"), MOUNTS[setup]))
        root = scratch / "root"
        stack.enter_context(rooted(root, scratch / "memory"))
        for name, folder in folders.items():
            stack.enter_context(bound(folder.resolve(), root / "suites" / name))
        (root / "mnt/test").mkdir()
        served = stack.enter_context(virtiofs.mount(share, root / "mnt/test"))
        yield Ground(setup, Host(root), "fuse", (), (served,))


@contextlib.contextmanager
def _server(scratch: Path, area: str, image: Path, setup: str) -> Iterator[virtiofs.Server]:
    with (
        _share(scratch, area, image, SETUPS[setup]) as share,
        virtiofs.serve(share, scratch / f"{area}.sock", tag=TAGS[area]) as server,
    ):
        yield server


@contextlib.contextmanager
def _share(scratch: Path, area: str, image: Path, arguments: Mapping[str, Any]) -> Iterator[virtiofs.Passthrough]:
    directory = scratch / area
    directory.mkdir()
    _run("mount", "-o", "loop,acl,user_xattr", str(image), str(directory))
    try:
        (directory / "lost+found").rmdir()
        yield virtiofs.Passthrough(directory, xattr=True, posix_acl=True, allow_direct_io=True, **arguments)
    finally:
        # Lazily: the descriptor of the directory goes with the object, when nobody knows it any more.
        _run("umount", "--lazy", str(directory))


def _image(path: Path) -> Path:
    with path.open("wb") as file:
        file.truncate(IMAGE_SIZE)
    _run("mkfs.ext4", "-q", "-F", "-m", "0", "-E", "lazy_itable_init=1,nodiscard", str(path))
    return path


def _run(*command: str) -> None:
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise SystemExit(f"{' '.join(command)}: {done.stderr.strip()}")
