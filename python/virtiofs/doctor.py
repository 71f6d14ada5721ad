"""What this host can do for a virtio-fs server, as a table."""

import ctypes
import errno
import fcntl
import json
import os
import platform
import resource
import shutil
import struct
import subprocess
import sys
import tempfile
from dataclasses import asdict, dataclass
from typing import Final, Literal

from . import _core
from .host import OWNER_CAPABILITIES, has_capability, reachable_open_files

_AT_FDCWD: Final = -100
_KVM_GET_API_VERSION: Final = 0xAE00
_SYS_OPENAT2: Final = 437
"""Newer than most C libraries; the number is the same on all architectures that Debian has."""


@dataclass(frozen=True, slots=True)
class Check:
    """One row: what was looked at, whether it is there, the finding, and what follows for a server."""

    name: str
    state: Literal["yes", "no", "note"]
    found: str
    meaning: str = ""


def checks() -> list[Check]:
    """Looks at this host; takes about as long as QEMU needs to say its version."""
    rows: list[Check] = []
    for check in (_kernel, _openat2, _mount_id, _file_handles, _memfd, _dev_fuse, _kvm, _qemu, _user_namespaces, _open_files,
                  _privileges, _shm):  # fmt: skip
        try:
            rows.append(check())
        except OSError as error:
            rows.append(Check(check.__name__.strip("_").replace("_", " "), "no", os.strerror(error.errno or 0)))
    return rows


def run(as_json: bool = False) -> int:
    """Prints the table and returns the exit status: 0, or 1 if a server cannot run here."""
    rows = checks()
    if as_json:
        print(json.dumps({"version": _core.__version__, "checks": [asdict(row) for row in rows]}, indent=2))
    else:
        mark = {"yes": "ok", "no": "no", "note": "--"}
        names, founds = (max(len(getattr(row, field)) for row in rows) for field in ("name", "found"))
        print(f"virtiofs {_core.__version__}, Python {platform.python_version()}\n")
        for row in rows:
            print(f"  {mark[row.state]}  {row.name:<{names}}  {row.found:<{founds}}  {row.meaning}".rstrip())
    return 1 if any(row.state == "no" and row.name in _NEEDED for row in rows) else 0


_NEEDED: Final = ("kernel", "openat2", "memfd")


def _kernel() -> Check:
    release = os.uname().release
    version = tuple(int("".join(filter(str.isdigit, part)) or 0) for part in release.split("-")[0].split(".")[:2])
    if sys.platform != "linux" or version < (5, 10):
        return Check("kernel", "no", f"{platform.system()} {release}", "Linux 5.10 or newer is needed")
    return Check("kernel", "yes", f"{platform.system()} {release}")


def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)


def _failed() -> OSError:
    number = ctypes.get_errno()
    return OSError(number, os.strerror(number))


def _openat2() -> Check:
    how = ctypes.create_string_buffer(struct.pack("=QQQ", os.O_PATH | os.O_CLOEXEC, 0, 0x08))  # RESOLVE_BENEATH
    fd = _libc().syscall(_SYS_OPENAT2, _AT_FDCWD, b".", how, 24)
    if fd < 0:
        return Check("openat2", "no", os.strerror(ctypes.get_errno()), "names cannot be resolved safely")
    os.close(fd)
    return Check("openat2", "yes", "works", "names are resolved below the share by the kernel")


def _mount_id() -> Check:
    # struct statx: stx_mask at 0, stx_mnt_id at 144 (statx(2)).
    buffer, wanted = ctypes.create_string_buffer(256), 0x1000
    if _libc().statx(_AT_FDCWD, b".", 0, wanted, buffer) != 0:
        raise _failed()
    if struct.unpack_from("=I", buffer.raw)[0] & wanted:
        return Check("statx mount id", "yes", "works", "submounts are told apart")
    return Check("statx mount id", "note", "missing", "submounts are told apart by device number (Linux 5.8 has it)")


def _file_handles() -> Check:
    # struct file_handle: handle_bytes, handle_type, 128 bytes of room (name_to_handle_at(2)).
    handle = ctypes.create_string_buffer(struct.pack("=Ii", 128, 0), 136)
    mount = ctypes.c_int()
    with tempfile.NamedTemporaryFile() as file:
        if _libc().name_to_handle_at(_AT_FDCWD, os.fsencode(file.name), handle, ctypes.byref(mount), 0) != 0:
            return Check("file handles", "note", os.strerror(ctypes.get_errno()), f"none in {tempfile.gettempdir()}")
        fd = _libc().open_by_handle_at(_AT_FDCWD, handle, os.O_PATH)
    if fd < 0 and ctypes.get_errno() == errno.EPERM:
        return Check("file handles", "note", "named, not opened", "opening by handle takes CAP_DAC_READ_SEARCH")
    if fd < 0:
        raise _failed()
    os.close(fd)
    return Check("file handles", "yes", "named and opened")


def _memfd() -> Check:
    os.close(os.memfd_create("virtiofs-doctor"))
    return Check("memfd", "yes", "works", "guest memory can be shared")


def _dev_fuse() -> Check:
    return _device("/dev/fuse", "mounting on this host", None)


def _kvm() -> Check:
    return _device("/dev/kvm", "guests at full speed", _KVM_GET_API_VERSION)


def _device(path: str, purpose: str, request: int | None) -> Check:
    try:
        fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    except OSError as error:
        return Check(path, "note", os.strerror(error.errno or 0), f"not for {purpose}")
    try:
        found = "opens" if request is None else f"API {fcntl.ioctl(fd, request)}"
    except OSError as error:
        return Check(path, "note", os.strerror(error.errno or 0), f"not for {purpose}")
    finally:
        os.close(fd)
    return Check(path, "yes", found, f"for {purpose}")


def _qemu() -> Check:
    names = (f"qemu-system-{platform.machine()}", "qemu-kvm", "kvm", "/usr/libexec/qemu-kvm")
    path = next(filter(None, map(shutil.which, names)), None)
    if path is None:
        return Check("QEMU", "note", "not found", "Debian has it in qemu-system-x86 or qemu-system-arm")
    try:
        said = [_said(path, "--version"), _said(path, "-device", "vhost-user-fs-pci,help")]
    except (OSError, subprocess.SubprocessError):
        return Check("QEMU", "note", path, "did not say its version")
    version = said[0].splitlines()[0].removeprefix("QEMU emulator version ").split(" ")[0] if said[0] else "?"
    if "num-request-queues" not in said[1]:
        return Check("QEMU", "note", f"{version} ({path})", "has no vhost-user-fs-pci")
    return Check("QEMU", "yes", f"{version} ({path})", "has vhost-user-fs-pci")


def _said(*command: str) -> str:
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, timeout=20, check=False, text=True)
    return done.stdout + done.stderr


def _user_namespaces() -> Check:
    try:
        with open("/proc/sys/user/max_user_namespaces", encoding="ascii") as file:
            most = int(file.read())
    except OSError:
        return Check("user namespaces", "note", "not in this kernel", "no ids of one's own without root")
    for knob, closed in (
        ("/proc/sys/kernel/unprivileged_userns_clone", "0"),
        ("/proc/sys/kernel/apparmor_restrict_unprivileged_userns", "1"),
    ):
        try:
            with open(knob, encoding="ascii") as file:
                if file.read().strip() == closed and os.geteuid() != 0:
                    return Check("user namespaces", "note", f"closed by {knob}", "only root may make them")
        except OSError:
            continue
    if most == 0:
        return Check("user namespaces", "note", "none allowed", "by /proc/sys/user/max_user_namespaces")
    return Check("user namespaces", "yes", f"up to {most}")


def _open_files() -> Check:
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    reach = reachable_open_files()
    found = f"{soft}, up to {reach}"
    if reach < 65536:
        return Check("open files", "note", found, "a guest that knows more inodes gets ENFILE: raise LimitNOFILE=")
    return Check("open files", "yes", found, "the server raises it by itself")


def _privileges() -> Check:
    missing = [name for name in OWNER_CAPABILITIES if not has_capability(name)]
    if missing:
        lacks = ", ".join(f"CAP_{name}" for name in missing)
        return Check("privileges", "note", f"without {lacks}", "files that guests create belong to this user")
    return Check("privileges", "yes", "may change owners", "files that guests create belong to the guest's users")


def _shm() -> Check:
    found = os.statvfs("/dev/shm")
    free = found.f_bavail * found.f_frsize >> 20
    return Check("/dev/shm", "yes" if free >= 256 else "note", f"{free} MiB free", "for guests whose memory lies there")
