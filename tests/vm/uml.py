"""User-Mode Linux as a guest: the kernel's own virtiofs driver at native speed, booted in a second or two.

No root, no KVM and no disk image: the kernel is a process, its root is the provisioned tree over hostfs. One CPU, one
request queue, no DAX; the config space is read byte by byte and the call descriptor is a pipe, unlike QEMU's.
"""

from __future__ import annotations

import contextlib
import itertools
import os
from collections.abc import Sequence
from pathlib import Path

from . import provision
from .guest import Guest, Share, initramfs

# Test runs that go on at the same time begin with different CPUs.
_turn = itertools.count(os.getpid())


class Uml(Guest):
    """A UML guest with its ``shares`` mounted. ``memory`` as the kernel's ``mem=`` takes it.

    ``disks`` are images, which the guest sees as ``/dev/ubda`` and so on. ``over`` is a folder that lies over the tree in the
    guest's root, which is writable then (what is written is lost with the guest).
    """

    def __init__(
        self,
        shares: Sequence[Share],
        *,
        memory: str = "512M",
        disks: Sequence[Path] = (),
        over: Path | None = None,
        boot_timeout: float = 60,
    ) -> None:
        super().__init__(shares, boot_timeout)
        self.memory = memory
        self.disks = tuple(disks)
        self.over = over

    def _command(self, channel: int, resources: contextlib.ExitStack) -> list[str]:
        cache = provision.cache()
        initrd = self.scratch / "initrd"
        initrd.write_bytes(
            initramfs(cache.busybox, cache.uml_modules, ["virtiofs", "overlay"] if self.over else ["virtiofs"])
        )
        # One CPU for the kernel and its processes, which run by turns: a system call takes a third of the time. Each
        # guest takes the next CPU.
        cpus = sorted(os.sched_getaffinity(0))
        return [
            *("taskset", "-c", str(cpus[next(_turn) % len(cpus)])),
            str(cache.uml),
            f"mem={self.memory}",
            "seccomp=auto",
            f"initrd={initrd}",
            "rdinit=/init",
            f"guest.root=hostfs:{cache.tree}" + (f",{self.over}" if self.over else ""),
            "guest.channel=/dev/tty1",
            "con=null",
            "con0=null,fd:2",
            f"con1=fd:{channel}",
            "ssl=null",
            "quiet",
            "random.trust_cpu=1",
            "panic=-1",
            f"uml_dir={self.scratch}",
            "umid=guest",
            *(f"ubd{index}={image}" for index, image in enumerate(self.disks)),
            *(f"virtio_uml.device={share.socket}:26:{index}" for index, share in enumerate(self.shares)),
        ]
