"""Where something is mounted: what the kernel says of it, who may change it, and who clears it away."""

import errno
import os
import socket
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from . import _core
from .errors import hinted

_DEAD: Final = (errno.ENOTCONN, errno.ECONNABORTED)
"""What the kernel answers where no server is left."""

_GUARD: Final = r"""
read -r _
while read -r _ _ device _ point _; do
  if [ "$device $point" = "$0" ]; then
    abort="/sys/fs/fuse/connections/${device#*:}/abort"
    if [ -w "$abort" ]; then echo 1 >"$abort"; fi
    exec "$@"
  fi
done </proc/self/mountinfo
"""
"""Waits for the end of the process at the other end of the pipe, and unmounts.

It aborts the connection first, which sets free whoever waits for a reply: also the process itself, which may wait so at its
end. Where fusectl is not mounted, umount -f does that for root.
"""


@dataclass(frozen=True, slots=True)
class Mounted:
    """A line of proc_pid_mountinfo(5).

    Args:
        number: Of the mount.
        device: Number of the file system, as major:minor.
        point: Where it is mounted, escaped as there.
        kind: Type of the file system.
    """

    number: str
    device: str
    point: str
    kind: str


def mounted_at(path: str) -> Mounted | None:
    """Returns what is mounted at `path`, the topmost of several, or None."""
    point = _escaped(path)
    found = None
    with open("/proc/self/mountinfo", encoding=sys.getfilesystemencoding(), errors="surrogateescape") as lines:
        for line in lines:
            fields = line.split(" ")
            if fields[4] == point:
                found = Mounted(fields[0], fields[2], point, fields[fields.index("-") + 1])
    return found


def procfs_within(directory: str) -> str | None:
    """Returns where a procfs is mounted at or below `directory`, or lies around it, or None."""
    top = _escaped(os.path.realpath(directory)).rstrip("/")
    around: tuple[str, str] = ("", "")
    with open("/proc/self/mountinfo", encoding=sys.getfilesystemencoding(), errors="surrogateescape") as lines:
        for line in lines:
            fields = line.split(" ")
            point, kind = fields[4].rstrip("/"), fields[fields.index("-") + 1]
            if kind == "proc" and f"{point}/".startswith(f"{top}/"):
                return _unescaped(fields[4])
            # Of those that the directory lies on, the last of the longest.
            if f"{top}/".startswith(f"{point}/") and len(point) >= len(around[0]):
                around = (point, kind)
    return _unescaped(around[0]) if around[1] == "proc" else None


def dead(path: str) -> Mounted | None:
    """Returns what is mounted at `path` if its server is gone."""
    try:
        os.stat(path)
    except OSError as error:
        if error.errno in _DEAD:
            return mounted_at(path)
    return None


def inside(path: str, directory: str) -> bool:
    """Whether `path` is `directory` or lies below it, whatever names lead there."""
    top = os.stat(directory)
    while True:
        if os.path.samestat(os.stat(path), top):
            return True
        if path == "/":
            return False
        path = os.path.dirname(path)


def fusermount(path: str, source: str, subtype: str, options: Sequence[str]) -> int:
    """Mounts /dev/fuse at `path` by the setuid program fusermount3, and returns its descriptor (fuse(8), `_FUSE_COMMFD`).

    Raises:
        PermissionError: There is no such program.
        OSError: It refused.
    """
    import subprocess

    named = [f"fsname={_optional(source)}", f"subtype={subtype}", *options]
    ours, theirs = socket.socketpair()
    with ours, theirs:
        done = subprocess.run(
            [_helper(), "-o", ",".join(named), "--", path],
            env=os.environ | {"_FUSE_COMMFD": str(theirs.fileno())},
            pass_fds=[theirs.fileno()],
            stdin=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
            check=False,
        )
        theirs.close()
        fds = socket.recv_fds(ours, 1, 1)[1] if done.returncode == 0 else []
    if not fds:
        hint = (
            "allow it in /etc/fuse.conf (user_allow_other)"
            if "user_allow_other" in done.stderr
            else "see fusermount3(1)"
        )
        raise hinted(OSError(errno.EPERM, _said(done.stderr), path), hint)
    os.set_inheritable(fds[0], False)
    return fds[0]


def unmounting(path: str, *, detach: bool) -> None:
    """Unmounts what `fusermount` mounted at `path`; with `detach` even while it is in use.

    Raises:
        OSError: It was refused: EBUSY while it is in use.
    """
    import subprocess

    done = subprocess.run(
        [_helper(), "-u", *(["-z"] if detach else []), "--", path],
        stdin=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        errors="replace",
        check=False,
    )
    if done.returncode != 0:
        busy = "busy" in done.stderr.lower()
        raise OSError(errno.EBUSY if busy else errno.EPERM, _said(done.stderr), path)


class Guard:
    """A process that unmounts what this one leaves behind when it dies.

    Args:
        mounted: What to unmount. Something else that is mounted there by then is left alone.
        by_helper: By fusermount3.
    """

    def __init__(self, mounted: Mounted, *, by_helper: bool) -> None:
        import subprocess

        path = _unescaped(mounted.point)
        command = [_helper(), "-u", "-q", "-z", "--", path] if by_helper else ["umount", "-f", "-l", path]
        there, alive = os.pipe()
        try:
            self._alive = _core.Tether(alive)
            # In a session of its own: a Ctrl-C in the terminal is for the process that serves.
            self._process: subprocess.Popen[bytes] = subprocess.Popen(
                ["/bin/sh", "-c", _GUARD, f"{mounted.device} {mounted.point}", *command],
                stdin=there,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                cwd="/",
                start_new_session=True,
            )
        finally:
            os.close(alive)
            os.close(there)

    def dismiss(self) -> None:
        """Ends it: there is nothing left to unmount."""
        self._process.kill()
        self._process.wait()
        del self._alive

    def forked(self) -> None:
        """Lets go of it in a fork of the process, whose life is not the one that counts."""
        self._process.returncode = 0  # not a child of the fork


def _helper() -> str:
    import shutil

    found = shutil.which("fusermount3") or shutil.which("fusermount")
    if found is None:
        raise hinted(
            PermissionError(errno.EPERM, "only root can mount by itself"),
            "run as root, or install fusermount3 (package fuse3)",
        )
    return found


def _said(stderr: str) -> str:
    lines = stderr.strip().splitlines()
    return lines[-1] if lines else "fusermount3 refused, and did not say why"


def _optional(value: str) -> str:
    """Returns `value` as part of a list of mount options."""
    return value.replace("\\", "\\\\").replace(",", "\\,")


def _escaped(path: str) -> str:
    for char in ("\\", " ", "\t", "\n"):
        path = path.replace(char, f"\\{ord(char):03o}")
    return path


def _unescaped(point: str) -> str:
    for char in (" ", "\t", "\n", "\\"):
        point = point.replace(f"\\{ord(char):03o}", char)
    return point
