"""Each operation that Linux 7.x can be brought to send, answered and refused, before its own check of replies.

A reply of another length than it expects is an EIO for the caller and a line of the kernel's log (`virtio_fs_verify_response`,
`fs/fuse/virtio_fs.c`). The same for all operations and errnos, without a kernel: rust/device/tests/replies.
"""

from __future__ import annotations

import fcntl
import os
import struct
from pathlib import Path

import pytest

from virtiofs import AUTO, Passthrough, Server
from virtiofs.operations import OPERATIONS

from . import daemon
from .guest import INSIDE, Share
from .uml import Uml

# ACCESS is what the mount option default_permissions stands for, and COPY_FILE_RANGE has a successor.
SENT = set(OPERATIONS) - {"access", "copy_file_range"} | {"copy_file_range_64", "init", "destroy"}
"""All that this client sends where there is no DAX window."""
REFUSED = {
    "copy_file_range_64",
    "create",
    "fallocate",
    "getxattr",
    "ioctl",
    "link",
    "listxattr",
    "lseek",
    "mkdir",
    "mknod",
    "open",
    "removexattr",
    "rename",
    "rename2",
    "rmdir",
    "setattr",
    "setlk",
    "setxattr",
    "symlink",
    "tmpfile",
    "unlink",
    "write",
}
"""Of these, what it can be brought to be refused."""


def test_all_that_linux_sends_is_answered_as_it_expects(tmp_path: Path) -> None:
    if not daemon.is_ours():
        pytest.skip(f"{daemon.name()} does not count requests")
    if os.geteuid() != 0:
        pytest.skip("what is made belongs to the guest's root")
    share = tmp_path / "share"
    (share / "sub").mkdir(parents=True)
    for number in range(2000):
        (share / "sub" / f"{number}").touch()
    (share / "file").write_text("content")
    os.setxattr(share / "file", "user.mark", b"there")
    fs = {"done": Passthrough(share, AUTO, xattr=True), "refused": Passthrough(share, AUTO, xattr=True, read_only=True)}
    requests: set[str] = set()
    errors: set[str] = set()
    for what, served in fs.items():
        with (
            open(share / "file", "rb+") as file,
            Server(served, socket=tmp_path / what, tag="share") as server,
            Uml([Share(tmp_path / what)]) as guest,
        ):
            if what == "refused":
                fcntl.fcntl(file, fcntl.F_OFD_SETLK, struct.pack("hhqqixxxx", fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0))
            guest.put("/run/operations.py", (INSIDE / "operations.py").read_bytes())
            guest.check(f"python3 -I /run/operations.py {what} /mnt/share")
            guest.check("cd /; umount /mnt/share")
            stats = server.stats()
            assert (stats.malformed, stats.panics, stats.nodes) == (0, 0, 1)
            assert guest.complaints() == []
            requests.update(stats.requests)
            errors.update(stats.errors)
    assert {name.lower() for name in requests} >= SENT
    assert {name.lower() for name in errors} >= REFUSED
