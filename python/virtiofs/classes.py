"""File systems that are named by their class, as ``module:Class``."""

import importlib
import re
from collections.abc import Callable
from typing import Any, Final, cast

from .errors import ConfigError, hinted
from .filesystem import FileSystem

_CLASS: Final = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_][\w.]*")


def find(name: str) -> Callable[..., object]:
    """Returns the class or function that is called `name`, as ``module:Class``.

    Raises:
        ConfigError: There is none.
    """
    if not names_class(name):
        raise hinted(ConfigError(f"{name!r} names no class"), "write module:Class")
    module, _, path = name.partition(":")
    try:
        found: Any = importlib.import_module(module)
    except ModuleNotFoundError as error:
        raise hinted(ConfigError(f"{name}: {error}"), "set PYTHONPATH to where it is, or install it") from error
    for part in path.split("."):
        try:
            found = getattr(found, part)
        except AttributeError:
            raise ConfigError(f"{name}: {module} has no {part!r}") from None
    if not callable(found):
        raise hinted(ConfigError(f"{name} is not a class"), "name one, or a function that makes a file system")
    return cast(Callable[..., object], found)


def names_class(name: str) -> bool:
    """Whether `name` looks like ``module:Class``."""
    return _CLASS.fullmatch(name) is not None


def made(make: Callable[..., object], name: str | None, *arguments: object, **keywords: object) -> FileSystem:
    """Calls `make`, which `find` has found by this name, and checks what comes.

    Raises:
        ConfigError: It takes other arguments, or makes no file system.
    """
    try:
        fs = make(*arguments, **keywords)
    except TypeError as error:
        raise ConfigError(f"{name}: {error}") from error
    if not isinstance(fs, FileSystem):
        raise ConfigError(f"{name} makes no file system, but {type(fs).__name__}")
    return fs
