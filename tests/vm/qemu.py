"""QEMU as a guest: a stock Debian kernel and vhost-user-fs-pci, in software emulation so that it runs anywhere.

The guest's Debian root is the provisioned tree, itself served by the daemon under test as a second, read-only share: a
guest that boots has proved the daemon on some thousand requests before the first test begins. Emulation makes seconds
of what takes UML milliseconds; what counts here is the stock kernel, PCI, several CPUs and several queues.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence

from . import provision
from .daemon import Daemon
from .guest import Guest, Share, initramfs

# The drivers that a stock kernel may have as modules.
MODULES = ("virtio_pci", "virtio_console", "virtiofs")


class Qemu(Guest):
    """A QEMU guest with its ``shares`` mounted.

    ``kernel`` is a name of packages.toml, ``cpus`` the number of virtual CPUs, ``memory`` in MiB. With ``root=False``
    there is no Debian root and no daemon for it: scripts see busybox, and the boot is shorter. ``reboots`` makes a restart
    of the guest what it is on a machine, and not the end of QEMU. ``accelerator`` is QEMU's ``tcg`` or ``kvm``; ``modules`` are
    loaded beside the usual ones, ``more`` are further words of the command line.
    """

    def __init__(
        self,
        shares: Sequence[Share],
        *,
        kernel: str = "7",
        cpus: int = 1,
        memory: int = 1024,
        root: bool = True,
        reboots: bool = False,
        accelerator: str = "tcg",
        modules: Sequence[str] = (),
        more: Sequence[str] = (),
        boot_timeout: float = 180,
    ) -> None:
        super().__init__(shares, boot_timeout)
        self.kernel = kernel
        self.cpus = cpus
        self.memory = memory
        self.root = root
        self.reboots = reboots
        self.accelerator = accelerator
        self.modules = tuple(modules)
        self.more = tuple(more)

    @property
    def wants_root(self) -> bool:
        return self.root

    def _command(self, channel: int, resources: contextlib.ExitStack) -> list[str]:
        cache = provision.cache()
        image, modules = cache.kernel(self.kernel)
        initrd = self.scratch / "initrd"
        initrd.write_bytes(initramfs(cache.busybox, modules, [*MODULES, *self.modules]))
        shares = list(self.shares)
        if self.root:
            served = resources.enter_context(Daemon(cache.tree, "root", cache="always", options=["--readonly"]))
            shares.append(Share(served.socket, "root", mount=""))
        parameters = (
            "console=ttyS0 quiet panic=-1 mitigations=off nokaslr no_timer_check tsc=reliable nowatchdog audit=0 "
            f"random.trust_cpu=on rdinit=/init guest.channel=guest guest.root={'share' if self.root else 'none'}"
        )
        command = [
            str(cache.qemu),
            *("-nodefaults", "-no-user-config", "-display", "none"),
            *([] if self.reboots else ["-no-reboot"]),
            *("-machine", "q35,usb=off,smbus=off,sata=off,i8042=off,vmport=off,hpet=off,memory-backend=mem"),
            *("-accel", "tcg,thread=multi" if self.accelerator == "tcg" and self.cpus > 1 else self.accelerator),
            # Without these features the kernel copies by plain moves, which the emulator runs twice as fast.
            *("-cpu", "max,la57=off,erms=off,fsrm=off" if self.accelerator == "tcg" else "host"),
            *("-smp", str(self.cpus), "-m", f"{self.memory}M"),
            *("-object", f"memory-backend-memfd,id=mem,size={self.memory}M,share=on"),
            *("-kernel", str(image), "-initrd", str(initrd)),
            *("-append", parameters),
            *("-serial", "stdio"),
            *("-device", "virtio-serial-pci,max_ports=2"),
            *("-chardev", f"socket,id=channel,fd={channel}"),
            *("-device", "virtserialport,chardev=channel,name=guest"),
        ]
        for index, share in enumerate(shares):
            device = f"vhost-user-fs-pci,chardev=fs{index},tag={share.tag},queue-size={share.queue_size}"
            if share.window:
                device = f"vhost-user-test-device-pci,chardev=fs{index},virtio-id=26,num_vqs={1 + share.request_queues}"
                device += f",vq_size={share.queue_size},config_size=40"
            elif share.request_queues > 1:
                device += f",num-request-queues={share.request_queues}"
            command += ["-chardev", f"socket,id=fs{index},path={share.socket}", "-device", device]
        return [*command, *self.more]
