"""`virtiofs doctor` tells what there is, wherever it runs."""

import json
import os
from pathlib import Path

from tests.daemon import virtiofs
from virtiofs import doctor

ROWS = {
    "kernel",
    "openat2",
    "statx mount id",
    "file handles",
    "memfd",
    "/dev/fuse",
    "/dev/kvm",
    "QEMU",
    "user namespaces",
    "open files",
    "privileges",
    "/dev/shm",
}


def test_table() -> None:
    done = virtiofs("doctor")
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    for row in ROWS:
        assert f"  {row}  " in done.stdout
    assert os.uname().release in done.stdout


def test_json() -> None:
    said = json.loads(virtiofs("doctor", "--json").stdout)
    assert {row["name"] for row in said["checks"]} == ROWS
    assert {row["state"] for row in said["checks"]} <= {"yes", "no", "note"}


def test_finds_qemu(tmp_path: Path) -> None:
    qemu = tmp_path / f"qemu-system-{os.uname().machine}"
    qemu.write_text(
        "#!/bin/sh\n"
        'case "$*" in\n'
        '--version) echo "QEMU emulator version 11.1.3 (Debian 1:11.1.3+ds-1)"; echo Copyright ;;\n'
        "*) echo '  num-request-queues=<uint16>  - (default: 1)' ;;\n"
        "esac\n"
    )
    qemu.chmod(0o755)
    said = virtiofs("doctor", env=os.environ | {"PATH": f"{tmp_path}:{os.environ['PATH']}"}).stdout
    assert f"11.1.3 ({qemu})" in said
    assert "has vhost-user-fs-pci" in said


def test_qemu_that_does_not_run(tmp_path: Path) -> None:
    qemu = tmp_path / f"qemu-system-{os.uname().machine}"
    qemu.write_bytes(b"\x7fELF")
    qemu.chmod(0o755)
    done = virtiofs("doctor", env=os.environ | {"PATH": f"{tmp_path}:{os.environ['PATH']}"})
    assert done.returncode == 0
    assert "did not say its version" in done.stdout


def test_finds_what_this_process_lacks() -> None:
    rows = {row.name: row for row in doctor.checks()}
    assert (rows["privileges"].state == "yes") == (os.geteuid() == 0)
    assert (rows["/dev/fuse"].state == "yes") == os.access("/dev/fuse", os.R_OK | os.W_OK)
