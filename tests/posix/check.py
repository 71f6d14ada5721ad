"""What a check is, and the words it is written in.

A check is a function without arguments whose docstring says in one line what is promised and by whom. It fails by an
exception. It runs in a fresh, empty directory that is its working directory, so it uses plain relative names; descriptors that
it leaves are closed, and the umask is 022 again. One that changes its process otherwise says so by ``changes_process``.
"""

from __future__ import annotations

import errno
import functools
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import NoReturn

Body = Callable[[], None]


@dataclass(frozen=True)
class Check:
    """A named promise and the function that tries it."""

    name: str
    promise: str
    body: Body


CHECKS: dict[str, Check] = {}
"""All checks by name, in the order of their definition; ``checks/__init__.py`` fills it."""


class NotRunError(Exception):
    """The check cannot be run here; the message says what it lacks."""


def not_run(reason: str) -> NoReturn:
    """End the check as not run."""
    raise NotRunError(reason)


_changed = False


def changes_process() -> None:
    """Say that the process, by its limits, signals or mounts, will not be fit for another check."""
    global _changed
    _changed = True


def process_is_changed() -> bool:
    """Whether a check has said so."""
    return _changed


def check(body: Body) -> Body:
    """Register a function as the check ``SUBJECT.FUNCTION``, the subject being its module."""
    _add(_name(body), body.__doc__, body)
    return body


def each(cases: Mapping[str, tuple[object, ...]]) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Register a function as one check per case, ``SUBJECT.FUNCTION.CASE``, called with the case's arguments.

    ``{case}`` in the docstring stands for the case's name.
    """

    def register(body: Callable[..., None]) -> Callable[..., None]:
        for case, arguments in cases.items():
            promise = (body.__doc__ or "").replace("{case}", case.replace("_", " "))
            _add(f"{_name(body)}.{case}", promise, functools.partial(body, *arguments))
        return body

    return register


def _name(body: Callable[..., None]) -> str:
    return f"{body.__module__.rpartition('.')[2]}.{body.__name__}"


def _add(name: str, promise: str | None, body: Body) -> None:
    assert promise, f"{name} promises nothing"
    assert name not in CHECKS, f"there are two of {name}"
    CHECKS[name] = Check(name, promise.strip(), body)


def same(found: object, wanted: object, what: str = "") -> None:
    """Fail unless both are equal; the message has both."""
    if found != wanted:
        raise AssertionError(f"{what}{': ' if what else ''}{_short(found)}, not {_short(wanted)}")


def _short(value: object) -> str:
    text = oct(value) if isinstance(value, Mode) else repr(value)
    return text if len(text) <= 120 else f"{text[:100]}… ({len(text)} characters)"


class Mode(int):
    """A file mode: permission bits that messages show in octal."""


def mode(path: str | int) -> Mode:
    """The permission bits, suid, sgid and sticky of a file, of a link itself where it is one."""
    found = os.fstat(path) if isinstance(path, int) else os.lstat(path)
    return Mode(found.st_mode & 0o7777)


def fails(expected: int | tuple[int, ...], call: Callable[..., object], *arguments: object, **named: object) -> None:
    """Fail unless the call raises an OSError with this errno, or one of these."""
    wanted = (expected,) if isinstance(expected, int) else expected
    names = " or ".join(errno.errorcode[number] for number in wanted)
    try:
        call(*arguments, **named)
    except OSError as error:
        if error.errno not in wanted:
            raise AssertionError(f"{errno.errorcode.get(error.errno or 0, error.errno)}, not {names}") from error
    else:
        raise AssertionError(f"succeeded, where {names} is due")
