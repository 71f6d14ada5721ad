"""This host in place of a guest: the same programs in the same tree, over a mount of the host's own kernel.

Native speed, and another kernel's FUSE. The tree is the guests', so that one build of a suite serves both.
"""

from __future__ import annotations

import contextlib
import os
import platform
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

from tests.vm import provision
from tests.vm.guest import Done, GuestError, complaints


class Host:
    """Scripts run as in a `Guest`, in a root of their own at ``root``, which `rooted` makes."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.release = platform.release()
        self._said = len(_log())

    def run(self, script: str, timeout: float = 120) -> Done:
        """Run a script by bash and answer its status and output. Raises GuestError after ``timeout`` seconds."""
        command = ["chroot", str(self.root), "bash", "-euo", "pipefail", "-c", script]
        environment = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "HOME": "/root", "LANG": "C.UTF-8"}
        with subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            env=environment,
        ) as process:
            try:
                output, _ = process.communicate(timeout=timeout)
            except subprocess.TimeoutExpired:
                raise GuestError(f"no answer in time: {script[:300]}") from None
            finally:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
        return Done(process.returncode, output.decode("utf-8", "surrogateescape").removesuffix("\n"))

    def check(self, script: str, timeout: float = 120) -> str:
        """Run a script that must end with status 0; answers its output. Raises GuestError otherwise."""
        done = self.run(script, timeout)
        if done.status != 0:
            raise GuestError(f"status {done.status} of\n{script}\n--- output\n{done.output}")
        return done.output

    def complaints(self) -> list[str]:
        """What the kernel has complained of since; its log is that of everything that runs on this host."""
        return complaints("\n".join(_log()[self._said :]))


@contextlib.contextmanager
def rooted(root: Path, memory: Path) -> Iterator[None]:
    """Make ``root`` look as the guests' root does: the provisioned tree, writable for as long as this lasts in ``memory``."""
    cache = provision.cache()
    with contextlib.ExitStack() as stack:

        def mount(*arguments: str | Path) -> None:
            _run("mount", *arguments)
            stack.callback(_run, "umount", "--lazy", arguments[-1])

        for folder in (root, memory):
            folder.mkdir()
        mount("-t", "tmpfs", "-o", "mode=755", "none", memory)
        for name in ("files", "work"):
            (memory / name).mkdir()
        layers = f"lowerdir={cache.suites}:{cache.tree},upperdir={memory / 'files'},workdir={memory / 'work'}"
        mount("-t", "overlay", "-o", layers, "none", root)
        for name in ("tmp", "run", "mnt"):
            mount("-t", "tmpfs", "-o", "mode=1777", "none", root / name)
        mount("-t", "proc", "none", root / "proc")
        mount("--bind", "/dev", root / "dev")
        yield


@contextlib.contextmanager
def bound(folder: Path, at: Path) -> Iterator[None]:
    """Show ``folder`` at ``at``, which is made."""
    at.mkdir(parents=True)
    _run("mount", "--bind", folder, at)
    try:
        yield
    finally:
        _run("umount", "--lazy", at)


def _log() -> list[str]:
    return subprocess.run(["dmesg"], capture_output=True, text=True, errors="replace", check=False).stdout.splitlines()


def _run(*command: str | Path) -> None:
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise SystemExit(f"{' '.join(map(str, command))}: {done.stderr.strip()}")
