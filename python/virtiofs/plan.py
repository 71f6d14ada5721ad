"""From a class to what the server is told: who serves each operation, and what is switched off because of that.

Most operations that a class overrides are asked of it alone. Some native ones walk round: a listing that brings
attributes along needs no lookup, a creation opens without an open. Those are switched off where Python wants to be asked,
and the guest takes the long way.
"""

import errno
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from . import _core
from .errors import ConfigError, hinted
from .host import most_descriptors
from .opens import DIRECTORIES, FEATURES, FILES
from .operations import MOMENTS, OPERATIONS

if TYPE_CHECKING:
    from .filesystem import FileSystem

NATIVE: Final = "native"
PYTHON: Final = "Python"
NOBODY: Final = "-"

_PLUS: Final = ("DO_READDIRPLUS", "READDIRPLUS_AUTO")


@dataclass(frozen=True, slots=True)
class Detour:
    """What is switched off when Python has one of some operations, so that the guest asks for it.

    Args:
        asked: The operations: one of them is enough.
        lacking: Operations that answer ENOSYS, unless Python has them too.
        flags: Features that are not agreed on, unless Python has `unless`.
        unless: An operation.
        then: What the guest does instead.
    """

    asked: tuple[str, ...]
    then: str
    lacking: tuple[str, ...] = ()
    flags: tuple[str, ...] = ()
    unless: str = ""


_BY_FILE: Final = (
    *("open", "create", "tmpfile", "read", "write", "flush", "fsync", "fallocate", "lseek", "copy_file_range", "ioctl"),
    *("release", "getattr", "statx", "setattr", "getlk", "setlk", "setlkw"),
)
"""Operations that are told which open file it is, or what becomes of one."""

_BY_DIRECTORY: Final = ("opendir", "readdir", "readdirplus", "fsyncdir", "ioctl", "releasedir")

DETOURS: Final = (
    Detour(("lookup", "readdir"), "lists names, and looks each up", ("readdirplus",), _PLUS, "readdirplus"),
    Detour(("open", "mknod"), "makes files by mknod and open", ("create", "tmpfile")),
    Detour(("open", "mknod", "setattr"), "truncates by setattr", flags=("ATOMIC_O_TRUNC",)),
    Detour(("getattr",), "asks getattr each time, and knows no birth times", ("statx",)),
    Detour(("read", "write"), "copies by read and write", ("copy_file_range",)),
    Detour(("open", "create", "read", "write"), "maps nothing (DAX)", flags=("MAP_ALIGNMENT",)),
    Detour(_BY_FILE, "opens each file by a message", flags=("NO_OPEN_SUPPORT",)),
    Detour(_BY_DIRECTORY, "opens each directory by a message", flags=("NO_OPENDIR_SUPPORT",)),
)
"""How native operations walk round Python's."""

_NAMED: Final = frozenset(("symlink", "mknod", "mkdir", "create", "tmpfile", *MOMENTS))
"""Operations whose caller Linux names also where it makes idmapped mounts: of all others it does not."""


@dataclass(frozen=True, slots=True)
class Route:
    """Who serves an operation.

    Args:
        operation: Its name.
        by: "native", "Python" or "-".
        errno: What it answers if nobody serves it.
        note: Where its method is, what its lack means, or why it is switched off.
        awaits: Its method is a coroutine.
    """

    operation: str
    by: str
    errno: int = 0
    note: str = ""
    awaits: bool = False


@dataclass(frozen=True)
class Plan:
    """Who serves what of a class. As a string, the table that `virtiofs explain` prints."""

    name: str
    routes: tuple[Route, ...]
    refused: frozenset[str]
    """Features of the session that are not agreed on."""
    added: frozenset[str]
    """Features that are agreed on, since the class has what they need."""
    off: tuple[str, ...]
    """What is switched off and what the guest does instead, one line each."""

    def by(self, who: str) -> list[Route]:
        """Returns the operations that `who` serves."""
        return [route for route in self.routes if route.by == who]

    @property
    def is_native(self) -> bool:
        """Whether no request comes to Python."""
        return not self.by(PYTHON)

    @property
    def maps_files(self) -> bool:
        """Whether guests may map files, where there is a DAX window: that goes past all methods.

        Files of the host, or the backings of a class that reads and writes by nothing else.
        """
        if self.by(NATIVE):
            return "MAP_ALIGNMENT" not in self.refused
        has = {route.operation for route in self.by(PYTHON)}
        return bool(has & {"open", "create"}) and not has & {"read", "write"}

    def __str__(self) -> str:
        lines = [f"{self.name}: {len(self.by(PYTHON))} operations in Python, {len(self.by(NATIVE))} native", ""]
        for route in self.routes:
            by = f"{route.by}, async" if route.awaits else route.by
            answer = f"{errno.errorcode.get(route.errno, route.errno)}: " if route.errno else ""
            lines.append(f"  {route.operation:<16} {by:<14} {answer}{route.note}".rstrip())
        if self.off:
            lines += ["", "Switched off, so that Python is asked:", *(f"  {line}" for line in self.off)]
        return "\n".join(lines)


def explain(fs: "FileSystem | type[FileSystem]") -> Plan:
    """Tells who serves each operation of a file system, and what is switched off because of that. Print it.

    Raises:
        ConfigError: The class cannot be served.
    """
    kind = fs if isinstance(fs, type) else type(fs)
    found = {name: _route(kind, name) for name in (*OPERATIONS, *MOMENTS)}
    if found["getattr"].by == NOBODY:
        raise hinted(ConfigError(f"{kind.__name__} has no getattr"), "define it: every file system needs it")
    policy = None if isinstance(fs, type) else getattr(fs, "policy", None)
    if policy is not None and policy.sees_opens and found["open"].by != PYTHON:
        found["open"] = Route("open", PYTHON, note="Policy.on_open" if policy.on_open is not None else "Policy.audit")
    has = {name for name, route in found.items() if route.by == PYTHON}
    native = any(route.by == NATIVE for route in found.values())
    wanted = frozenset[str]() if isinstance(fs, type) else fs.features & FEATURES
    refused: set[str] = set()
    off = []
    for detour in DETOURS if native else ():
        asked = [name for name in detour.asked if name in has]
        if not asked or detour.unless in has:
            continue
        why = f"Python has {' and '.join(asked)}"
        lacking = [name for name in detour.lacking if found[name].by == NATIVE]
        for name in lacking:
            found[name] = Route(name, NOBODY, errno.ENOSYS, why)
        flags = [flag for flag in detour.flags if flag not in refused]
        refused |= set(flags)
        # Nothing is switched off that was not to be.
        flags = [flag for flag in flags if flag in wanted or flag not in FEATURES]
        if lacking or flags:
            off.append(f"{', '.join([*lacking, *flags])}: {why}; the guest {detour.then}")
    for feature, names in (("NO_OPEN_SUPPORT", FILES), ("NO_OPENDIR_SUPPORT", DIRECTORIES)):
        for name in names if feature in wanted - refused else ():
            found[name] = Route(name, NATIVE, note="not sent: guests do this by themselves")
    added = set()
    if not native and "readdirplus" in has:
        added |= set(_PLUS)
    if not native and "setlk" in has:
        added |= {"POSIX_LOCKS", "FLOCK_LOCKS"} if "getlk" in has else {"FLOCK_LOCKS"}
    routes = tuple(found[name] for name in (*MOMENTS, *OPERATIONS) if name in OPERATIONS or name in has)
    return Plan(kind.__name__, routes, frozenset(refused), frozenset(added), tuple(off))


def engine(fs: "FileSystem") -> "_core.HostDir | _core.Routed":
    """Returns what the native side serves of `fs`: for servers, which ask once each."""
    plan = explain(fs)
    overrides = [route.operation for route in plan.by(PYTHON)]
    # The guest must ask Python's getattr: what native answers bring along is not to be trusted.
    native = fs.native_engine(attr_timeout=0.0 if "getattr" in overrides else None)
    if native is not None and plan.is_native:
        return native
    routes = {route.operation: route.errno for route in plan.routes if route.by == NOBODY and route.errno}
    routes |= dict.fromkeys((name for name in overrides if name not in ("forget", *MOMENTS)), 0)
    if native is not None:
        # Handles that may be Python's are closed where Python is.
        if {"open", "create", "tmpfile"} & set(overrides):
            routes["release"] = 0
        if {"opendir", "readdir", "readdirplus"} & set(overrides):
            routes["releasedir"] = 0
    handlers = {route.operation: (_handler(fs, route), route.awaits) for route in plan.by(PYTHON)}
    unknown = set(fs.deadlines) - set(OPERATIONS)
    if unknown:
        raise hinted(ConfigError(f"deadlines: there is no operation {min(unknown)!r}"), "take names of methods")
    if fs.lanes < 1:
        raise ConfigError(f"lanes are 1 or more, not {fs.lanes}")
    for what in ("most_nodes", "most_handles"):
        if (number := getattr(fs, what)) is not None and number < 0:
            raise ConfigError(f"{what} is 0 or more, not {number}")
    return _core.Routed(
        plan.name,
        native=native,
        root=fs if fs.root is None else fs.root,
        routes=routes,
        handlers=handlers,
        lanes=fs.lanes,
        deadlines=dict(fs.deadlines),
        read_only=fs.read_only,
        attr_timeout=fs.cache.attr_timeout,
        entry_timeout=fs.cache.entry_timeout,
        negative_timeout=fs.cache.negative_timeout,
        open_flags=fs.cache.open_flags,
        dir_open_flags=fs.cache.dir_open_flags,
        most_nodes=fs.most_nodes,
        most_handles=most_descriptors() if fs.most_handles is None else fs.most_handles,
        keepers=(fs.save_node, fs.restore_node, fs.save_handle, fs.restore_handle),
        versions=fs.version_table,
    )


def init_flags(fs: "FileSystem") -> int:
    """Returns the features of the FUSE session to accept where the guest offers them."""
    plan = explain(fs)
    flags = (fs.features | plan.added) - plan.refused
    if any(route.operation not in _NAMED for route in plan.by(PYTHON)):
        flags -= {"ALLOW_IDMAP"}
    return sum(_core.INIT[name] for name in flags)


def _route(kind: type, name: str) -> Route:
    """Returns who serves an operation by what the class says alone."""
    method = getattr(kind, name)
    lacks: int | None = getattr(method, "lacks", None)
    if lacks is not None:
        return Route(name, NOBODY, lacks, method.then)
    if getattr(method, "native", False):
        return Route(name, NATIVE)
    where = next((base.__qualname__ for base in kind.__mro__ if name in vars(base)), kind.__qualname__)
    return Route(name, PYTHON, note=f"{where}.{name}", awaits=_awaits(method))


def _awaits(method: Callable[..., Any]) -> bool:
    import inspect

    return inspect.iscoroutinefunction(method) or inspect.isasyncgenfunction(method)


def _handler(fs: "FileSystem", route: Route) -> Callable[..., Any]:
    """Returns what is called for an operation: the bound method, but for listings, whose items are taken out while it runs."""
    method: Callable[..., Any] = getattr(fs, route.operation)
    policy = getattr(fs, "policy", None)
    if route.operation == "open" and policy is not None and policy.sees_opens:
        opening: Callable[..., Any] = policy.opening(method, awaits=route.awaits)
        return opening
    if route.operation not in ("readdir", "readdirplus"):
        return method
    import inspect

    async def collected(*arguments: Any) -> Any:
        return [item async for item in method(*arguments)]

    async def awaited(*arguments: Any) -> Any:
        return _listed(await method(*arguments))

    def called(*arguments: Any) -> Any:
        return _listed(method(*arguments))

    if inspect.isasyncgenfunction(method):
        return collected
    return awaited if route.awaits else called


def _listed(listing: Any) -> Any:
    """Returns the items of a listing; what is none goes on as it is, to be named for what it is."""
    return list(listing) if hasattr(listing, "__iter__") else listing
