"""How a serving process is confined: what it takes from itself before it listens to its first guest.

Here are the decisions, as plain values; `virtiofs.confined` carries them out, with one native function for each means.
"""

import errno
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final, Literal, TypeAlias, get_args

from . import _core, syscalls
from .errors import ConfigError, hinted
from .ids import IdMap, disjoint

Mode: TypeAlias = Literal["auto", "namespace", "chroot", "none"]
"""How the files of the host are put out of reach; `auto` is the strongest way that works."""

Seccomp: TypeAlias = Literal["kill", "trap", "log", "none"]
"""What happens at a system call that no guest's request needs."""

Way: TypeAlias = Literal["namespace", "chroot", "landlock", "none"]
"""A mode, or what is left where none can be had."""

CLONE_NEWNS: Final = 0x00020000
CLONE_NEWUTS: Final = 0x04000000
CLONE_NEWIPC: Final = 0x08000000
CLONE_NEWUSER: Final = 0x10000000
CLONE_NEWPID: Final = 0x20000000
CLONE_NEWNET: Final = 0x40000000

NAMESPACES: Final = CLONE_NEWNS | CLONE_NEWUTS | CLONE_NEWIPC | CLONE_NEWPID | CLONE_NEWNET
"""What a confined process has of its own; without CAP_SYS_ADMIN a user namespace comes first, which allows the rest."""

CAPABILITIES: Final = (
    "chown",
    "dac_override",
    "fowner",
    "fsetid",
    "linux_immutable",
    "mknod",
    "setfcap",
    "setgid",
    "setuid",
)
"""What it takes to do for guests' users what they may do: give files owners, modes, flags and file capabilities, and make
device nodes. CAP_SYS_ADMIN is not among it, so attributes in ``trusted.`` and ``security.`` are refused unless they are
renamed, or kept possible with ``modcaps="+sys_admin"``."""

LANDLOCK: Final = 2
"""The first version that lets files be renamed and linked from one directory to another."""

PRECEDENCE: Final = ("namespace", "chroot", "landlock")
"""What `auto` tries, the strongest first."""

MODULES: Final = (
    "virtiofs.lane",
    "asyncio",
    "concurrent.futures.process",
    "concurrent.futures.thread",
    "encodings.idna",
    "encodings.latin_1",
    "traceback",
)
"""What Python imports when it is first needed, and must have before its files are out of reach: the event loop of methods that
are awaited, threads, names of hosts, what is told of exceptions."""

MEANS: Final = {
    "namespace": "namespaces of its own and a root with nothing but what is served",
    "chroot": "a root of its own (chroot)",
    "landlock": "Landlock alone",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Sandbox:
    """What was asked for.

    Args:
        mode: How the host's files are put out of reach.
        seccomp: What happens at a system call that is not on the list. None for `kill`, for EPERM where Python methods serve
            guests, or for `none` with mode `none`.
        modcaps: Capabilities to keep beside `CAPABILITIES` (``+name``) or to give up as well (``-name``).
        file_handles: Keep the right to open files by handle, so that a guest may remember more files than the process may
            open. Who takes over the process can then read and write files outside of the share, on the same file system.
        window: A guest is offered a DAX window; a process with CAP_SYS_ADMIN maps ends of files there by mounts of its own.
        uid_map: Users of the user namespace, where it is not to have the ids of this process.
        gid_map: Groups of it.

    Raises:
        ConfigError: There is no such mode, action or capability.
    """

    mode: Mode = "auto"
    seccomp: Seccomp | None = None
    modcaps: str | None = None
    file_handles: bool = False
    window: bool = False
    uid_map: tuple[IdMap, ...] = ()
    gid_map: tuple[IdMap, ...] = ()

    def __post_init__(self) -> None:
        for name, known in (("mode", Mode), ("seccomp", Seccomp)):
            value = getattr(self, name)
            if value is not None and value not in get_args(known):
                option = "sandbox" if name == "mode" else name
                raise ConfigError(f"--{option}: unknown value {value!r}: choose one of {', '.join(get_args(known))}")
        self.capabilities()
        if self.maps and self.mode not in ("auto", "namespace"):
            raise hinted(
                ConfigError("--uid-map and --gid-map are for namespaces"), "give --sandbox=namespace, or leave them out"
            )
        if bool(self.uid_map) != bool(self.gid_map):
            raise hinted(ConfigError("--uid-map and --gid-map go together"), "give both")
        for option, maps in (("uid", self.uid_map), ("gid", self.gid_map)):
            if not disjoint(maps):
                raise ConfigError(f"--{option}-map: an id is mapped twice")

    @property
    def maps(self) -> bool:
        """Whether ids are mapped otherwise than to themselves."""
        return bool(self.uid_map or self.gid_map)

    def ways(self, *, python: bool) -> Sequence[Way]:
        """Returns what is to be tried, in this order.

        Args:
            python: Whether what serves may need anything of the host, as Python methods do: it is not confined unless that is
                asked for.
        """
        if self.mode != "auto":
            return (self.mode,)
        return ("none",) if python else PRECEDENCE

    def forks(self, *, python: bool) -> bool:
        """Returns whether a process of its own serves; Python methods may have begun things that a fork would break."""
        return self.ways(python=python) != ("none",) or (not python and bool(self.filters("none", python=False)))

    def capabilities(self) -> set[str]:
        """Returns the capabilities to keep, where there are any.

        Raises:
            ConfigError: `modcaps` names one that does not exist, or does not say what to do with it.
        """
        kept = set(CAPABILITIES)
        if self.file_handles:
            kept.add("dac_read_search")
        for change in filter(None, (self.modcaps or "").split(":")):
            sign, name = change[0], change[1:].lower().removeprefix("cap_")
            if sign not in "+-" or name not in _core.CAPABILITIES:
                raise hinted(
                    ConfigError(f"--modcaps: {change!r} is no change of capabilities"),
                    "write +name or -name, as in +sys_admin",
                )
            kept = kept | {name} if sign == "+" else kept - {name}
        return kept

    def filters(self, way: Way, *, python: bool) -> list[syscalls.Filter]:
        """Returns the filters of system calls for a process that is confined in `way`."""
        action: syscalls.Answer | Literal["none"] = self.seccomp or ("none" if self.mode == "none" else "kill")
        if action == "none":
            return []
        handles = self.file_handles or way == "none" or "dac_read_search" in self.capabilities()
        if python:
            # Unless it was asked for, nobody's program ends because of a library that tries something.
            action = errno.EPERM if self.seccomp is None else action
            return syscalls.python(action, file_handles=handles, mounts=self.window)
        return syscalls.native(action, file_handles=handles, mounts=self.window and way == "none")


def told(*, python: bool) -> str:
    """Returns what `virtiofs explain` says of the sandbox.

    Args:
        python: Whether a class of the user's own is served.
    """
    if python:
        return (
            "virtiofs serve filters the system calls of this class and confines it no further, since its methods may need"
            " anything of the host; --sandbox=namespace leaves it the shared directories alone."
        )
    return (
        "virtiofs serve confines itself: nothing but the directory in sight, few capabilities, a list of system calls."
    )


def served(directories: Iterable[str]) -> list[str]:
    """Returns the directories of `directories` that lie in no other one."""
    outer: list[str] = []
    for path in sorted(set(directories)):
        if not any(path == above or path.startswith(above.rstrip("/") + "/") for above in outer):
            outer.append(path)
    return outer


def is_privileged() -> bool:
    """Whether this process may make namespaces without a user namespace."""
    return "sys_admin" in _core.effective_capabilities()


def acts_for_others() -> bool:
    """Whether what guests' users make can belong to them."""
    return {"setuid", "setgid"} <= set(_core.effective_capabilities())


def own_id(kind: Literal["uid", "gid"]) -> int:
    """Returns the user or the group of this process."""
    return os.geteuid() if kind == "uid" else os.getegid()


def own_ids(kind: Literal["uid", "gid"]) -> str:
    """Returns the map for a user namespace in which ids mean what they mean here, as far as this process can have them."""
    if not acts_for_others():
        own = own_id(kind)
        return id_lines([(own, own, 1)])
    with open(f"/proc/self/{kind}_map", encoding="ascii") as file:
        here = [line.split() for line in file]
    return id_lines([(int(first), int(first), int(count)) for first, _, count in here])


def id_lines(maps: Iterable[IdMap]) -> str:
    """Returns `maps` as /proc takes them."""
    return "".join(f"{inside} {outside} {count}\n" for inside, outside, count in maps)


def inside(maps: Iterable[IdMap], now: int) -> int:
    """Returns the id to take in a user namespace with `maps`, in which one is `now`.

    That is 0 if it has it; otherwise what one is, if that is mapped, and the first one if not.
    """
    mapped = [(first, first + count) for first, _, count in maps]
    for wanted in (0, now):
        if any(first <= wanted < end for first, end in mapped):
            return wanted
    return min(first for first, _ in mapped)
