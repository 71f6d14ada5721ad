"""Fetch from Debian and crates.io what the VM tests need, into a folder of the checkout.

``python -m tests.vm.provision`` fills ``.cache/vm`` (or the folder that VIRTIOFS_VM_CACHE names) with

- ``sid/``: a Debian tree with QEMU, User-Mode Linux and virtiofsd, which is also the guests' root,
- ``suites/``: suites that try file systems, which lie over that tree in some guests,
- ``kernels/NAME/``: stock Debian kernels for QEMU guests,
- ``virtiofsd-c/``: the old virtiofsd in C,
- ``bin/``: a launcher for each program that runs on the host, usable by its path from anywhere.

The programs of a newer Debian run on an older host because their launchers go through the tree's own dynamic linker.
Nothing is installed on it, and no root is needed. Each part carries a stamp made of what it was asked for, so a second
run does nothing. Only the standard library is imported: this runs before anything else is there.
"""

from __future__ import annotations

import fcntl
import fnmatch
import json
import os
import re
import shlex
import shutil
import stat
import struct
import subprocess
import sys
import time
import tomllib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .apt import PROGRAMS, Apt, AptError

HERE = Path(__file__).resolve().parent
PACKAGES = HERE / "packages.toml"
# Part of every stamp: raise it when the layout below the cache changes.
LAYOUT = 4

LAUNCHER = """#!/bin/sh
# Runs a program of the Debian tree on this host, with the tree's own libraries.
tree={tree}
lib=$tree/usr/lib/x86_64-linux-gnu
{run} "$@"
"""
INTERPRETER = "usr/lib64/ld-linux-x86-64.so.2"
# Through the tree's dynamic linker: the environment stays clean.
LINKER = f'exec "$tree/{INTERPRETER}" --library-path "$lib:$lib/systemd:$lib/pulseaudio"'
RUN = {
    "qemu-system-x86_64": 'export QEMU_MODULE_DIR="$lib/qemu"\n'
    + LINKER
    + ' "$tree/usr/bin/qemu-system-x86_64"'
    + ' -L "$tree/usr/share/qemu" -L "$tree/usr/share/seabios" -L "$tree/usr/lib/ipxe/qemu"',
    "virtiofsd": LINKER + ' "$tree/usr/libexec/virtiofsd"',
    "virtiofsd-c": LINKER + ' "$tree/../virtiofsd-c/usr/lib/qemu/virtiofsd"',
    "linux.uml": 'LD_LIBRARY_PATH="$lib" exec "$tree/../bin/.linux.uml"',
}


class ProvisionError(AptError):
    """What the VM tests need cannot be had; the message is one line and says what to do."""


@dataclass(frozen=True)
class Cache:
    """Where the provisioned things are; every path is below ``root`` and may not exist yet."""

    root: Path

    @property
    def tree(self) -> Path:
        """The Debian tree: the guests' root."""
        return self.root / "sid"

    @property
    def suites(self) -> Path:
        """What lies over the tree in guests that run suites."""
        return self.root / "suites"

    @property
    def qemu(self) -> Path:
        return self.root / "bin/qemu-system-x86_64"

    @property
    def uml(self) -> Path:
        return self.root / "bin/linux.uml"

    @property
    def virtiofsd(self) -> Path:
        """The Rust virtiofsd."""
        return self.root / "bin/virtiofsd"

    @property
    def virtiofsd_c(self) -> Path:
        """The old virtiofsd in C."""
        return self.root / "bin/virtiofsd-c"

    @property
    def busybox(self) -> Path:
        """A static busybox, for an initramfs."""
        return self.tree / "usr/bin/busybox"

    @property
    def uml_modules(self) -> Path:
        """``/lib/modules/VERSION`` of User-Mode Linux. Raises ProvisionError when it is not there."""
        return _only(self.tree / "usr/lib/uml/modules", "*")

    @property
    def stdlib(self) -> Path:
        """Python's standard library with its tests, as a path inside the tree: ``/usr/lib/python3.N``."""
        found = _only(self.tree / "usr/lib", "python3.[0-9]*")
        return Path("/") / found.relative_to(self.tree)

    def kernel(self, name: str) -> tuple[Path, Path]:
        """The image and the ``/lib/modules/VERSION`` of the stock kernel called ``name`` in packages.toml."""
        base = self.root / "kernels" / name
        usr = base / "usr/lib/modules"
        modules = _only(usr if usr.is_dir() else base / "lib/modules", "*")
        images = [*base.glob("boot/vmlinuz-*"), *base.glob("usr/lib/modules/*/vmlinuz")]
        if not images:
            raise ProvisionError(f"no kernel image below {base}: run python -m tests.vm.provision")
        return images[0], modules


def _only(folder: Path, pattern: str) -> Path:
    found = sorted(folder.glob(pattern))
    if len(found) != 1:
        raise ProvisionError(f"{folder}/{pattern}: {len(found)} found, one wanted: run python -m tests.vm.provision")
    return found[0]


def cache() -> Cache:
    """The cache of this checkout, or the one that VIRTIOFS_VM_CACHE names."""
    named = os.environ.get("VIRTIOFS_VM_CACHE")
    # As the stamps name it: work trees that share a cache by a link make it once.
    return Cache((Path(named) if named else HERE.parents[1] / ".cache/vm").resolve())


def packages() -> dict[str, Any]:
    """The list of packages, as in packages.toml."""
    return tomllib.loads(PACKAGES.read_text())


def problem(*optional: str) -> str | None:
    """Why the VM tests cannot run here, in one line; None when they can.

    Parts that packages.toml calls optional count only when they are named, as in ``kernels/9p``.
    """
    if os.uname().machine != "x86_64":
        return f"the VM tests need an x86_64 host, this is {os.uname().machine}"
    here = cache()
    parts = [part for part in _parts(here.root, packages()) if not part.optional or part.folder in optional]
    stale = [part.folder for part in parts if not _fresh(here.root, part)]
    if stale:
        return f"not provisioned in {here.root}: {', '.join(stale)}; run python -m tests.vm.provision"
    return None


def provision(report: Callable[[str], None] = print) -> Cache:
    """Make the cache complete and return it; a complete one is left as it is.

    ``report`` is given one line for each step. Raises AptError.
    """
    here, wanted = cache(), packages()
    if all(_fresh(here.root, part) for part in _parts(here.root, wanted)):
        return here
    missing = [name for name in PROGRAMS if shutil.which(name) is None]
    if missing:
        raise ProvisionError(f"the host lacks {', '.join(missing)}: the VM tests need a Debian or a derivative of it")
    if not Path(wanted["keyring"]).exists():
        raise ProvisionError(f"{wanted['keyring']} is missing: apt-get install debian-archive-keyring")
    here.root.mkdir(parents=True, exist_ok=True)
    with _locked(here.root / "lock"):
        apt = Apt(here.root / "apt", wanted, report)
        for part in _parts(here.root, wanted):
            if _fresh(here.root, part):
                continue
            began = time.monotonic()
            # Made beside the old one and put in its place when it is whole.
            folder, making = here.root / part.folder, here.root / "making"
            shutil.rmtree(making, ignore_errors=True)
            making.mkdir()
            summary = part.fill(apt, making)
            (making / ".stamp").write_text(part.request)
            shutil.rmtree(folder, ignore_errors=True)
            folder.parent.mkdir(exist_ok=True)
            making.rename(folder)
            report(f"  {part.folder}: {summary}, {time.monotonic() - began:.0f} s")
        shutil.rmtree(here.root / "apt", ignore_errors=True)
    return here


# The parts of the cache.


@dataclass(frozen=True)
class _Part:
    """One folder of the cache: what it is asked to hold, and what fills it and answers a few words about it."""

    folder: str
    request: str
    fill: Callable[[Apt, Path], str]
    optional: bool


def _parts(root: Path, wanted: dict[str, Any]) -> list[_Part]:
    def part(folder: str, fill: Callable[[Apt, Path, dict[str, Any]], str], spec: dict[str, Any]) -> _Part:
        request = json.dumps([LAYOUT, spec], sort_keys=True)
        return _Part(folder, request, lambda apt, path: fill(apt, path, spec), spec.get("optional", False))

    return [
        part("sid", _fill_tree, wanted["tree"]),
        part("suites", _fill_suites, wanted["suites"] | {"over": wanted["tree"]["packages"]}),
        *(part(f"kernels/{name}", _fill_kernel, spec) for name, spec in wanted["kernels"].items()),
        part("virtiofsd-c", _fill_package, wanted["virtiofsd-c"]),
        # Last, for it looks into the tree; made again when the tree was, or when the cache was moved.
        part("bin", _fill_bin, {"root": str(root), "run": RUN, "tree": wanted["tree"]}),
    ]


def _fresh(root: Path, part: _Part) -> bool:
    try:
        return (root / part.folder / ".stamp").read_text() == part.request
    except OSError:
        return False


def _fill_tree(apt: Apt, folder: Path, spec: dict[str, Any]) -> str:
    suite = apt.suite(spec["suite"])
    names = suite.closure(spec["packages"])
    pythons = [match[1] for name in names if (match := re.fullmatch(r"python(3\.\d+)", name))]
    if len(pythons) != 1:
        raise ProvisionError(f"one Python expected in {suite.name}, found {pythons}")
    names += [name.format(python=pythons[0]) for name in spec["extra"]]
    summary = suite.unpack(names, folder)
    # Debian compiles the library when it installs Python. Without it every start of Python in a guest would.
    python = folder / f"usr/bin/python{pythons[0]}"
    library = folder / f"usr/lib/python{pythons[0]}"
    linker = [f"{folder}/{INTERPRETER}", "--library-path", f"{folder}/usr/lib/x86_64-linux-gnu"]
    # Not its tests: nobody runs them, and some are wrong on purpose.
    compiler = [f"{python}", "-m", "compileall", "-q", "-s", f"{folder}", "-p", "/", "-x", "/test/", f"{library}"]
    home = {"PYTHONHOME": f"{folder}/usr"}
    compiled = subprocess.run([*linker, *compiler], env=home, capture_output=True, text=True, check=False)
    if compiled.returncode != 0:
        raise ProvisionError(f"compiling {library}: {compiled.stdout.strip()[-200:]}")
    _tidy(folder)
    # What maintainer scripts would have made, as far as a guest's programs want it.
    for master in ("passwd", "group"):
        shutil.copy(folder / f"usr/share/base-passwd/{master}.master", folder / f"etc/{master}")
    (folder / "etc/mtab").unlink(missing_ok=True)
    (folder / "etc/mtab").symlink_to("/proc/self/mounts")
    (folder / "etc/hosts").write_text("127.0.0.1 localhost guest\n")
    if not (folder / "usr/bin/awk").exists():
        (folder / "usr/bin/awk").symlink_to("gawk")
    for mount_point in ("dev", "mnt", "proc", "root", "run", "sys", "tmp", "var/tmp"):
        (folder / mount_point).mkdir(parents=True, exist_ok=True)
    return summary


def _tidy(folder: Path) -> None:
    for unused in ("usr/share/doc", "usr/share/man", "usr/share/info", "usr/share/locale"):
        shutil.rmtree(folder / unused, ignore_errors=True)
    # A guest's programs run as root. On the host nobody shall find a setuid program here.
    for at, _, files in os.walk(folder):
        for name in files:
            mode = os.lstat(f"{at}/{name}").st_mode
            if stat.S_ISREG(mode) and mode & (stat.S_ISUID | stat.S_ISGID):
                os.chmod(f"{at}/{name}", stat.S_IMODE(mode) & ~(stat.S_ISUID | stat.S_ISGID))


def _fill_suites(apt: Apt, folder: Path, spec: dict[str, Any]) -> str:
    suite = apt.suite(spec["suite"])
    below = set(suite.closure(spec["over"]))
    names = [name for name in suite.closure(spec["packages"]) if name not in below]
    unwanted = [name for name in names if any(fnmatch.fnmatch(name, pattern) for pattern in spec["without"])]
    summary = suite.unpack([name for name in names if name not in unwanted], folder)
    for crate, version in spec["crates"].items():
        command = ["cargo", "install", "--quiet", "--locked", "--root", f"{folder}/usr", "--version", version, crate]
        built = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
        if built.returncode != 0:
            raise ProvisionError(f"{' '.join(command)}: {' '.join(built.stderr.splitlines()[-1:])}")
        summary += f", {crate} {version}"
    _tidy(folder)
    return summary


def _fill_kernel(apt: Apt, folder: Path, spec: dict[str, Any]) -> str:
    suite = apt.suite(spec["suite"])
    # Only the packages that hold the image and its modules, whatever the release's way to split them: not what makes a
    # machine boot by them.
    pattern = re.compile(r"linux-(image|binary|modules)-\d")
    names = [name for name in suite.recursive_depends(spec["package"]) if pattern.match(name)]
    return suite.unpack(names, folder)


def _fill_package(apt: Apt, folder: Path, spec: dict[str, Any]) -> str:
    return apt.suite(spec["suite"]).unpack([spec["package"]], folder)


def _fill_bin(_apt: Apt, folder: Path, spec: dict[str, Any]) -> str:
    tree = Cache(Path(spec["root"])).tree
    for name, run in spec["run"].items():
        launcher = folder / name
        launcher.write_text(LAUNCHER.format(tree=shlex.quote(str(tree)), run=run))
        launcher.chmod(0o755)
    # UML executes itself again and takes the end of its heap for the end of its image: it has to be the program, the
    # dynamic linker its interpreter and not the other way round.
    patched = folder / ".linux.uml"
    patched.write_bytes(_with_interpreter((tree / "usr/bin/linux.uml").read_bytes(), tree / INTERPRETER))
    patched.chmod(0o755)
    return f"{len(spec['run'])} launchers"


def _with_interpreter(program: bytes, interpreter: Path) -> bytes:
    """A 64-bit ELF program that names another dynamic linker: PT_INTERP moved to a path behind the file's end."""
    image = bytearray(program)
    (headers,) = struct.unpack_from("<Q", image, 0x20)
    size, count = struct.unpack_from("<HH", image, 0x36)
    path = bytes(interpreter) + b"\0"
    for header in range(headers, headers + size * count, size):
        if struct.unpack_from("<I", image, header)[0] == 3:  # PT_INTERP
            struct.pack_into("<Q", image, header + 0x08, len(image))  # p_offset
            struct.pack_into("<QQ", image, header + 0x20, len(path), len(path))  # p_filesz, p_memsz
            return bytes(image) + path
    raise ProvisionError("linux.uml has no PT_INTERP: it cannot be run with the tree's libraries")


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def main() -> int:
    began = time.monotonic()
    here = cache()
    print(f"provisioning {here.root}", flush=True)
    try:
        provision(lambda line: print(line, flush=True))
    except AptError as error:
        print(f"provision: {error}", file=sys.stderr)
        return 1
    print(f"ready in {time.monotonic() - began:.0f} s", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
