"""What holds for single files of a directory: rules that are asked once per inode, when a guest first meets it."""

import functools
import grp
import inspect
import os
import pwd
import stat
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final, TypeAlias

from . import _core, cache, dax
from .audit import Audit, OpenEvent
from .cache import Cache
from .errors import ConfigError, hinted
from .faults import number
from .ids import Range, shown_as, translation
from .types import Attr, Node, Open, Request

KINDS: Final[dict[str, int]] = {
    "file": stat.S_IFREG,
    "directory": stat.S_IFDIR,
    "symlink": stat.S_IFLNK,
    "fifo": stat.S_IFIFO,
    "socket": stat.S_IFSOCK,
    "char": stat.S_IFCHR,
    "block": stat.S_IFBLK,
}
"""Kinds of files by name, with their bits in a mode."""

_Translated: TypeAlias = tuple[tuple[Range, ...], tuple[Range, ...]]

_DIRECT: Final = _core.FOPEN["DIRECT_IO"]
_KEEP: Final = _core.FOPEN["KEEP_CACHE"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """Conditions, all of which must hold, and what holds then. What is left out is no condition, or changes nothing.

    An inode is judged when a guest first meets it, and again when the guest has forgotten it in between; what was found stays
    while it is known, whatever happens to its name or size. The root of the share is not judged.

    Names say nothing about security: hard links and renames give a file other names. To keep guests from changing a share,
    serve all of it read-only; `hidden` tidies up.

    Args:
        name: Glob, or several of which one must fit the last component: ``*``, ``?``, ``[a-z]``, ``{a,b}``.
        path: The same for the path from the share's root, without a slash in front. ``*`` stays within a component, ``**``
            does not.
        kind: Kind of file, or several: file, directory, symlink, fifo, socket, char or block.
        min_size: Bytes that it has at least: a number, or text such as 64K.
        max_size: Bytes that it has at most.
        owner: User, by number or name, or several.
        group: The same for the group.
        when: Asked last, with the path from the root and the attributes; true if the rule holds. It may take its time: only who
            waits for this inode waits for it. An exception is an EIO for who asked, and is logged.
        cache: What guests may keep, as a mode or its name; of a directory also of names that do not exist in it.
        entry_timeout: Seconds for which guests trust that the name leads here.
        attr_timeout: Seconds for which they trust the attributes.
        negative_timeout: Of a directory: seconds for which they trust that a name does not exist in it.
        read_only: Refuse changes with EROFS: of the file, or of the entries of a directory. What lies below a directory takes
            a rule by path.
        hidden: Names that lead here are absent, from listings too; nobody can make, remove or replace them (EPERM).
        direct_io: Guests keep no data, and read and write past their cache.
        dax: Which of them guests map, where there is a DAX window: never, always, or from a size on.
        uid: User that guests see as the owner, whoever it is on the host: ``squash-host:0:UID:COUNT`` for all ids.
        gid: The same for the group.
        translate_uid: Users that are called something else on the host, in place of the share's own rules for that: rules as in
            `virtiofs.ids`, such as ``map:1000:33:1``. They hold for what is made here, too, as far as name, path and kind
            tell that it will be here.
        translate_gid: The same for groups.

    Raises:
        ConfigError: Something is not what it has to be.
    """

    name: str | Sequence[str] = ()
    path: str | Sequence[str] = ()
    kind: str | Sequence[str] = ()
    min_size: int | str | None = None
    max_size: int | str | None = None
    owner: int | str | Sequence[int | str] = ()
    group: int | str | Sequence[int | str] = ()
    when: Callable[[str, Attr], bool] | None = None
    cache: Cache | str | None = None
    entry_timeout: float | None = None
    attr_timeout: float | None = None
    negative_timeout: float | None = None
    read_only: bool | None = None
    hidden: bool | None = None
    direct_io: bool | None = None
    dax: int | str | None = None
    uid: int | None = None
    gid: int | None = None
    translate_uid: str | Sequence[str] | None = None
    translate_gid: str | Sequence[str] | None = None

    def __post_init__(self) -> None:
        if all(getattr(self, effect) is None for effect in EFFECTS):
            raise hinted(ConfigError("a rule without an effect"), f"give it one of {', '.join(EFFECTS)}")
        self.native()

    def native(self, *, attr_timeout: float | None = None) -> "_core._Rule":
        """Returns the rule as the native side takes it. With `attr_timeout`, attributes are never trusted for other times."""
        kinds = _strings("kind", self.kind)
        for kind in kinds:
            if kind not in KINDS:
                raise ConfigError(f"unknown kind {kind!r}: choose of {', '.join(KINDS)}")
        mode = cache.mode(self.cache) if isinstance(self.cache, str) else self.cache
        entry, attr, negative = self.entry_timeout, self.attr_timeout, self.negative_timeout
        for name, value in (("entry_timeout", entry), ("attr_timeout", attr), ("negative_timeout", negative)):
            if value is not None and not value >= 0:
                raise ConfigError(f"{name} is in seconds, from 0 on, not {value}")
        if mode is not None:
            entry = mode.entry_timeout if entry is None else entry
            attr = mode.attr_timeout if attr is None else attr
            negative = mode.negative_timeout if negative is None else negative
        mask, bits = (0, 0) if mode is None else ((1 << 32) - 1, mode.open_flags)
        if self.direct_io is not None:
            mask |= _DIRECT | _KEEP
            bits = bits & ~(_DIRECT | (_KEEP if self.direct_io else 0)) | (_DIRECT if self.direct_io else 0)
        sizes = None
        if self.min_size is not None or self.max_size is not None:
            sizes = (dax.size(self.min_size or 0), (1 << 64) - 1 if self.max_size is None else dax.size(self.max_size))
        return {
            "names": _strings("name", self.name),
            "paths": _strings("path", self.path),
            "kinds": [KINDS[kind] for kind in kinds],
            "sizes": sizes,
            "uids": _numbers(self.owner, "user", _user),
            "gids": _numbers(self.group, "group", _group),
            "when": self.when,
            "entry_timeout": entry,
            "attr_timeout": attr if attr is None or attr_timeout is None else attr_timeout,
            "negative_timeout": negative,
            "pace": None if mode is None else ((mode.restless, mode.growth) if mode.growth else False),
            "open_flags": (mask, bits),
            "dir_open_flags": None if mode is None else mode.dir_open_flags,
            "read_only": self.read_only,
            "hidden": self.hidden,
            "dax": None if self.dax is None else (dax.files(self.dax) is not None, dax.files(self.dax) or 0),
            "users": _translated("uid", self.uid, self.translate_uid),
            "groups": _translated("gid", self.gid, self.translate_gid),
        }


EFFECTS: Final = tuple(Rule.__dataclass_fields__)[tuple(Rule.__dataclass_fields__).index("cache") :]
"""What a rule can change."""


class Policy:
    """Rules in order. Of several that hold and change the same thing, the first has its way.

    What none changes is as the share has it.

    ::

        Passthrough(
            "/srv/data",
            policy=Policy(
                Rule(name="*.tmp", hidden=True),
                Rule(path="releases/**", cache="always", read_only=True),
                Rule(kind="file", min_size="1G", direct_io=True),
                Rule(when=lambda path, attr: path in secrets, hidden=True),
            ),
        )

    What is decided anew at each open is a function, `on_open`. It gets what `Passthrough.open` gets, and lets the file be
    opened by returning None, refuses by raising an OSError, or puts another file in its place: ``return Open(backing=fd)``,
    of which the descriptor is duplicated. What is then read and written stays native.

    Args:
        rules: The rules, the most important one first; up to 128.
        on_open: Asked at each open of a file.
        audit: Told of each open of a file and what became of it, on a thread of its own: no guest waits for it.

    Raises:
        ConfigError: There are too many, a glob is none, or `on_open` is a coroutine.
    """

    def __init__(
        self,
        *rules: Rule,
        on_open: Callable[[Request, Node, int], Open | None] | None = None,
        audit: Audit | Callable[[OpenEvent], object] | None = None,
    ) -> None:
        self.rules: Final = rules
        self.on_open: Final = on_open
        self.audit: Final = audit if audit is None or isinstance(audit, Audit) else Audit(audit)
        if inspect.iscoroutinefunction(on_open):
            raise hinted(ConfigError("on_open may not be async"), "override Passthrough.open, which may")
        self.native()

    @property
    def translates(self) -> bool:
        """Whether owners of some files are called something else."""
        rules = (rule.native() for rule in self.rules)
        return any(rule["users"] is not None or rule["groups"] is not None for rule in rules)

    @property
    def sees_opens(self) -> bool:
        """Whether each open has to come to Python."""
        return self.on_open is not None or self.audit is not None

    def opening(self, method: Callable[..., Any], *, awaits: bool) -> Callable[..., Any]:
        """Returns what is called for an open instead of the method that opens."""

        def decided(request: Request, node: Node, flags: int) -> Open | None:
            return None if self.on_open is None else self.on_open(request, node, flags)

        async def awaited(request: Request, node: Node, flags: int) -> Any:
            with self._told(request, node, flags) as outcome:
                answer = decided(request, node, flags)
                outcome.replaced = answer is not None
                return await method(request, node, flags) if answer is None else answer

        def called(request: Request, node: Node, flags: int) -> Any:
            with self._told(request, node, flags) as outcome:
                answer = decided(request, node, flags)
                outcome.replaced = answer is not None
                return method(request, node, flags) if answer is None else answer

        return awaited if awaits else called

    @contextmanager
    def _told(self, request: Request, node: Node, flags: int) -> Iterator["_Outcome"]:
        outcome = _Outcome()
        if self.audit is None:
            yield outcome
            return
        # Before it is opened: who is asked may rename it.
        path, refused = os.fspath(node.path), 0
        try:
            yield outcome
        except BaseException as error:
            refused = number(error)
            raise
        finally:
            self.audit.tell(
                OpenEvent(
                    time_ns=time.time_ns(),
                    path=path,
                    flags=flags,
                    uid=request.uid,
                    gid=request.gid,
                    pid=request.pid,
                    errno=refused,
                    replaced=outcome.replaced,
                )
            )

    @property
    def asks_python(self) -> bool:
        """Whether files, or opens of them, are decided about in Python."""
        return self.sees_opens or any(rule.when is not None for rule in self.rules)

    def native(self, *, attr_timeout: float | None = None) -> _core.Rules:
        """Returns the native program. For file systems, which ask once."""
        try:
            return _core.Rules([rule.native(attr_timeout=attr_timeout) for rule in self.rules])
        except ValueError as error:
            raise ConfigError(f"policy: {error}") from None

    def __iter__(self) -> Iterator[Rule]:
        return iter(self.rules)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Policy) and self._parts == other._parts

    def __hash__(self) -> int:
        return hash(self._parts)

    @property
    def _parts(self) -> tuple[object, ...]:
        return self.rules, self.on_open, self.audit

    def __repr__(self) -> str:
        return f"Policy({len(self.rules)} rules)"


class _Outcome:
    """What became of an open."""

    replaced = False


@functools.cache
def _user(name: str) -> int:
    # Once: the server that asks again has given up the files that tell.
    return pwd.getpwnam(name).pw_uid


@functools.cache
def _group(name: str) -> int:
    return grp.getgrnam(name).gr_gid


def _translated(called: str, shown: int | None, rules: str | Sequence[str] | None) -> _Translated | None:
    """Returns what users or groups are called; None leaves it to the share."""
    if shown is None and rules is None:
        return None
    several = [] if rules is None else _strings(f"translate_{called}", rules)
    if shown is not None:
        several.append(shown_as(shown))
    try:
        return translation(several).native
    except ConfigError as error:
        raise ConfigError(f"translate_{called}: {error}") from None


def _strings(called: str, value: str | Sequence[str]) -> list[str]:
    """Returns one text or several as several."""
    several = [value] if isinstance(value, str) or not isinstance(value, Sequence) else list(value)
    if not all(isinstance(one, str) for one in several):
        raise ConfigError(f"{called}: expected text, not {value!r}")
    return several


def _numbers(value: int | str | Sequence[int | str], what: str, find: Callable[[str], int]) -> list[int]:
    """Returns the numbers of users or groups."""
    numbers = []
    for one in (value,) if isinstance(value, (int, str)) else value:
        try:
            numbers.append(find(one) if isinstance(one, str) else one)
        except KeyError:
            raise ConfigError(f"there is no {what} {one!r}") from None
    return numbers
