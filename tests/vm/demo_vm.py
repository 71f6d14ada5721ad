"""A stock Debian kernel mounts a directory of this host: what ``make demo-vm`` shows.

The daemon serves a real directory; QEMU, in software emulation so that it runs anywhere, boots Debian's own kernel with
a vhost-user-fs-pci device. Each line tells the side, what was done there and how long it took; what it printed follows.
"""

from __future__ import annotations

import os
import shlex
import sys
import tempfile
import textwrap
import time
from pathlib import Path

from . import daemon, provision
from .apt import AptError
from .daemon import Daemon, DaemonError
from .guest import GuestError, Share
from .qemu import Qemu

IN_THE_GUEST = (
    "mkdir -p /mnt/demo && mount -t virtiofs demo /mnt/demo",
    "cat /mnt/demo/letter.txt",
    "echo 'Dear host, this is written by the guest.' > /mnt/demo/answer.txt",
    "mkdir /mnt/demo/tree && for i in $(seq 200); do echo $i > /mnt/demo/tree/$i; done && ls /mnt/demo/tree | wc -l",
    "dd if=/dev/zero of=/mnt/demo/data bs=1M count=64 conv=fsync 2>&1 | tail -n 1",
    "md5sum /mnt/demo/random",
    "mv /mnt/demo/tree /mnt/demo/moved && ln -s letter.txt /mnt/demo/link && rm -r /mnt/demo/moved && ls -l /mnt/demo",
    "umount /mnt/demo",
)


def _tell(side: str, what: str, began: float, output: str = "") -> None:
    took = (time.monotonic() - began) * 1000
    first, *more = textwrap.wrap(what, 86)
    print(f"{side:>5} | {first:<88}{took:8,.0f} ms")
    for line in more:
        print(f"      |   {line}")
    for line in output.splitlines():
        print(f"      |       {line}")
    sys.stdout.flush()


def show() -> None:
    """Run the demonstration. Raises AptError, DaemonError, GuestError, or AssertionError when the two sides differ."""
    if provision.problem() is not None:
        print("fetching QEMU and kernels from Debian, once:", flush=True)
        provision.provision(lambda line: print(line, flush=True))
    missing = daemon.problem()
    if missing is not None:
        raise DaemonError(missing)
    start = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="demo-vm-") as scratch:
        share = Path(scratch)
        (share / "letter.txt").write_text("Dear guest, this file lies in a directory of the host.\n")
        (share / "random").write_bytes(os.urandom(16 << 20))
        began = time.monotonic()
        with Daemon(share, tag="demo") as served:
            _tell("host", shlex.join(["virtiofs", *served.command[1:]]), began)
            began = time.monotonic()
            with Qemu([Share(served.socket, tag="demo", mount="")], root=False) as guest:
                _tell("host", "boot a stock Debian kernel under QEMU, emulated", began, f"Linux {guest.release}")
                for script in IN_THE_GUEST:
                    began = time.monotonic()
                    _tell("guest", script, began, guest.check(script))
                complaints = guest.complaints()
            began = time.monotonic()
            _tell("host", "cat answer.txt", began, (share / "answer.txt").read_text())
            if complaints:
                raise AssertionError(f"the guest's kernel complained: {complaints}")
            began = time.monotonic()
            status = served.stop()
            _tell("host", f"the daemon outlived the guest; ended by SIGTERM, status {status}", began)
            if status != 0:
                raise DaemonError(f"status {status}\n{served.log()}")
        names = sorted(path.name for path in share.iterdir())
        if names != ["answer.txt", "data", "letter.txt", "link", "random"]:
            raise AssertionError(f"the host finds {names}")
    print(f"done in {time.monotonic() - start:.1f} s")


def main() -> int:
    try:
        show()
    except (AptError, DaemonError, GuestError) as error:
        print(f"demo-vm: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
