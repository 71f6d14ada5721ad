"""Packages from Debian releases other than the host's, by apt with a state of its own.

Nothing is installed and the host's own package lists are left alone: apt resolves as if for an empty machine and
downloads, ``dpkg-deb`` unpacks into a folder. No root, no chroot.
"""

from __future__ import annotations

import fnmatch
import os
import shutil
import subprocess
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

PROGRAMS = ("apt-get", "apt-cache", "dpkg-deb")


class AptError(Exception):
    """Packages cannot be had; the message is one line and says why."""


def _mirror(wanted: dict[str, Any]) -> str:
    return os.environ.get("VIRTIOFS_DEBIAN_MIRROR") or str(wanted["mirror"])


class Apt:
    """The Debian releases that this run has looked at, each asked for its package lists once."""

    def __init__(self, state: Path, wanted: dict[str, Any], report: Callable[[str], None]) -> None:
        self._state = state
        self._wanted = wanted
        self._report = report
        self._suites: dict[str, Suite] = {}

    def suite(self, name: str) -> Suite:
        if name not in self._suites:
            self._report(f"  {name}: package lists from {_mirror(self._wanted)}")
            self._suites[name] = Suite(self._state / name, name, self._wanted)
        return self._suites[name]


class Suite:
    """One Debian release as apt sees it from an empty machine; downloads go to ``state``."""

    def __init__(self, state: Path, name: str, wanted: dict[str, Any]) -> None:
        self.name = name
        self.state = state
        for folder in ("lists/partial", "cache/archives/partial"):
            (state / folder).mkdir(parents=True, exist_ok=True)
        (state / "status").touch()
        (state / "debian.sources").write_text(
            f"Types: deb\nURIs: {_mirror(wanted)}\nSuites: {name}\nComponents: main\n"
            f"Architectures: amd64\nSigned-By: {wanted['keyring']}\n"
        )
        # The host's other settings stay (a proxy, say); its sources, pins and installed packages do not count.
        (state / "apt.conf").write_text(
            "".join(
                f'{key} "{value}";\n'
                for key, value in {
                    "Dir::Etc::sourcelist": state / "debian.sources",
                    "Dir::Etc::sourceparts": "/dev/null",
                    "Dir::Etc::preferences": "/dev/null",
                    "Dir::Etc::preferencesparts": "/dev/null",
                    "Dir::State": state,
                    "Dir::State::status": state / "status",
                    "Dir::Cache": state / "cache",
                    "APT::Architecture": "amd64",
                    "APT::Install-Recommends": "false",
                    "APT::Sandbox::User": "",
                    "Acquire::Languages": "none",
                    "Acquire::Retries": "3",
                    "Acquire::IndexTargets::deb::DEP-11::DefaultEnabled": "false",
                    "Acquire::IndexTargets::deb::DEP-11-icons-small::DefaultEnabled": "false",
                    "Acquire::IndexTargets::deb::DEP-11-icons::DefaultEnabled": "false",
                    "Acquire::IndexTargets::deb::Contents-deb::DefaultEnabled": "false",
                }.items()
            )
        )
        self._apt("apt-get", "-q", "update")

    def _apt(self, *command: str, cwd: Path | None = None) -> str:
        environment = {**os.environ, "APT_CONFIG": str(self.state / "apt.conf"), "LC_ALL": "C.UTF-8"}
        done = subprocess.run(
            command, env=environment, cwd=cwd, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False
        )
        # apt-get update answers 0 with warnings only when nothing could be fetched.
        failed = done.returncode != 0 or (command[-1] == "update" and "W: Failed to fetch" in done.stderr)
        if failed:
            last = (done.stderr.strip() or done.stdout.strip()).splitlines()[-1:]
            raise AptError(f"{' '.join(command[:4])} ({self.name}) failed: {' '.join(last)}")
        return done.stdout

    def closure(self, names: list[str]) -> list[str]:
        """The packages, with all they depend on, that an empty machine would install."""
        out = self._apt("apt-get", "install", "--simulate", "-y", *names)
        return [line.split()[1] for line in out.splitlines() if line.startswith("Inst ")]

    def recursive_depends(self, name: str) -> list[str]:
        """``name`` and every package that it may depend on, near or far."""
        flags = ["--recurse", "--no-recommends", "--no-suggests", "--no-conflicts", "--no-breaks", "--no-replaces"]
        flags += ["--no-enhances"]
        return [line for line in self._apt("apt-cache", "depends", *flags, name).splitlines() if not line[0].isspace()]

    def unpack(self, names: list[str], folder: Path) -> str:
        """Download the packages and unpack them into ``folder``; answers how many and how much, in words."""
        archives = self.state / "cache/fetched"
        archives.mkdir(exist_ok=True)
        self._apt("apt-get", "-q", "download", *names, cwd=archives)
        files = sorted(archives.glob("*.deb"), key=lambda file: file.stat().st_size, reverse=True)
        # base-files first: it brings the links from /bin, /lib and /sbin to /usr, which the others must find.
        first = [file for file in files if fnmatch.fnmatch(file.name, "base-files_*")]
        for file in first:
            _extract(file, folder)
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            for _ in pool.map(lambda file: _extract(file, folder), [file for file in files if file not in first]):
                pass
        total = sum(file.stat().st_size for file in files)
        shutil.rmtree(archives)
        return f"{len(files)} package{'s' if len(files) > 1 else ''}, {total / 1e6:.0f} MB"


def _extract(archive: Path, folder: Path) -> None:
    done = subprocess.run(["dpkg-deb", "-x", archive, folder], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise AptError(f"dpkg-deb -x {archive.name}: {done.stderr.strip()}")
