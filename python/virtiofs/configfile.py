"""A configuration in TOML, and every complaint about it with its line."""

import difflib
import os
import tomllib
import types
from collections.abc import Callable, Mapping
from dataclasses import fields
from typing import Any, Final, Literal, Union, get_args, get_origin, get_type_hints

from . import cache, xattrmap
from .classes import find
from .config import Config, Share, level
from .errors import ConfigError, hinted, one_line
from .ids import translation
from .policy import Policy, Rule

OF_CACHE: Final[dict[str, type]] = {
    "attr_timeout": float,
    "entry_timeout": float,
    "negative_timeout": float,
    "opens": bool,
}
"""Keys of a share that change one thing of its cache mode."""

HOOKS: Final = ("on_open", "audit")
"""Keys of a share that name functions of its policy."""

_Where = tuple[str | int, ...]
"""The way to a value: keys, and positions in arrays of tables."""

_PATHS: Final = ("directory", "socket", "coherence_dir")
"""What is relative to the folder of the file."""

_NOT_KEYS: Final = ("fd", "origin")
"""Fields of a share that no file can know."""


def keys() -> dict[str, list[str]]:
    """Returns the keys of a configuration, and those of a share in it."""
    share = [field.name for field in fields(Share) if field.name not in _NOT_KEYS]
    share[share.index("cache") + 1 : share.index("cache") + 1] = OF_CACHE
    share += HOOKS
    return {"": [*(field.name for field in fields(Config) if field.name != "shares"), "share"], "share": share}


def read(path: str) -> Config:
    """Returns the configuration in the file at `path`.

    Raises:
        ConfigError: Something in it is wrong; the message begins with file and line.
        OSError: It cannot be read.
    """
    with open(path, "rb") as file:
        content = file.read()
    try:
        text = content.decode()
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise ConfigError(f"{path}:{line}: not UTF-8, as TOML has to be") from None
    try:
        given = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{path}:{_line_of(error, text)}: {str(error).partition(' (at ')[0]}") from None
    except (ValueError, RecursionError) as error:
        # Numbers of thousands of digits, arrays in arrays in arrays: the parser has no word for them.
        raise ConfigError(f"{path}: {one_line(error)}") from None
    return _Reader(path, _lines(text)).config(given)


class _Reader:
    """One file, and where in it what stands."""

    def __init__(self, path: str, lines: Mapping[_Where, int]) -> None:
        self.path = path
        self.lines = lines

    def config(self, given: dict[str, Any]) -> Config:
        hints = get_type_hints(Config)
        values = {}
        for key in self.known(given, (), keys()[""]):
            if key != "share":
                values[key] = self.typed(given[key], hints[key], (key,))
            if key == "log_level":
                values[key] = self.parsed(level, values[key], (key,))
        tables = given.get("share", [])
        if not isinstance(tables, list) or not all(isinstance(table, dict) for table in tables):
            raise self.wrong(("share",), "share: expected tables", "write [[share]] before each")
        if not tables:
            raise hinted(ConfigError(f"{self.path}: there is no share in it"), "begin one with [[share]]")
        shares = tuple(self.share(table, ("share", index)) for index, table in enumerate(tables))
        self.distinct(shares)
        return Config(shares=shares, **values)

    def share(self, given: dict[str, Any], where: _Where) -> Share:
        hints = get_type_hints(Share)
        values: dict[str, Any] = {}
        of_cache = {}
        hooks: dict[str, Callable[..., Any]] = {}
        rules: list[Rule] = []
        for key in self.known(given, where, keys()["share"]):
            value, at = given[key], (*where, key)
            if key in OF_CACHE:
                of_cache[key] = self.typed(value, OF_CACHE[key], at)
            elif key == "cache":
                values[key] = self.parsed(cache.mode, self.typed(value, str, at), at)
            elif key == "xattrmap":
                values[key] = self.parsed(xattrmap.parse, self.typed(value, str, at), at)
            elif key in ("translate_uid", "translate_gid"):
                values[key] = self.typed(value, hints[key], at)
                self.parsed(translation, values[key], at)
            elif key == "policy":
                rules = self.rules(value, at)
            elif key in HOOKS:
                hooks[key] = self.parsed(find, self.typed(value, str, at), at)
            elif key == "socket_mode" and isinstance(value, str):
                values[key] = self.parsed(_octal, value, at)
            else:
                values[key] = self.typed(value, hints[key], at)
        if rules or hooks:
            values["policy"] = self.policy(rules, hooks, where)
        for key in _PATHS:
            if key in values:
                values[key] = os.path.join(os.path.dirname(self.path), values[key])
        for key, value in of_cache.items():
            mode: cache.Cache = values.get("cache", cache.AUTO)
            try:
                values["cache"] = mode.replace(**{key: value})
            except ConfigError as error:
                raise self.wrong((*where, key), str(error)) from None
        if "directory" not in values and "fs" not in values:
            raise self.wrong(
                where, "which directory is to be shared?", 'give directory = "DIR", or fs = "module:Class"'
            )
        if "socket" not in values:
            raise self.wrong(where, "no socket to serve at", 'give socket = "PATH"')
        return Share(**values, origin=f"{self.path}:{self.line(where)}")

    def policy(self, rules: list[Rule], hooks: dict[str, Callable[..., Any]], where: _Where) -> Policy:
        if "on_open" in hooks:
            self.parsed(lambda function: Policy(on_open=function), hooks["on_open"], (*where, "on_open"))
        try:
            return Policy(*rules, **hooks)
        except ConfigError as error:
            raise self.wrong((*where, "policy"), str(error)) from None

    def rules(self, tables: object, where: _Where) -> list[Rule]:
        if not isinstance(tables, list) or not all(isinstance(table, dict) for table in tables):
            raise self.wrong(where, "policy: expected tables", "write [[share.policy]] before each rule")
        hints = get_type_hints(Rule)
        rules = []
        for index, table in enumerate(tables):
            at = (*where, index)
            values: dict[str, Any] = {}
            for key in self.known(table, at, list(hints)):
                value = table[key]
                if hints[key] in (bool | None, float | None, int | None):
                    value = self.typed(value, hints[key], (*at, key))
                elif key == "when":
                    value = self.parsed(find, self.typed(value, str, (*at, key)), (*at, key))
                values[key] = tuple(value) if isinstance(value, list) else value
            try:
                rules.append(Rule(**values))
            except ConfigError as error:
                raise self.wrong(at, f"policy: {error}", *getattr(error, "__notes__", [])) from None
        return rules

    def known(self, given: dict[str, Any], where: _Where, known: list[str]) -> list[str]:
        """Returns the keys of a table, which are all known."""
        for key in given:
            if key not in known:
                near = difflib.get_close_matches(key.replace("-", "_").lower(), known, 1, 0.5)
                hint = f"did you mean {near[0]!r}?" if near else f"there are: {', '.join(known)}"
                raise self.wrong((*where, key), f"unknown key {key!r}", hint)
        return list(given)

    def typed(self, value: object, hint: Any, where: _Where) -> Any:
        """Returns a value that is of the type that its field wants."""
        if get_origin(hint) in (Union, types.UnionType):
            (hint,) = (each for each in get_args(hint) if each is not types.NoneType)
        key = where[-1]
        if get_origin(hint) is Literal:
            if value not in get_args(hint):
                raise self.wrong(where, f"{key}: unknown value {value!r}", f"choose one of {', '.join(get_args(hint))}")
            return value
        kind = get_origin(hint) or hint
        if kind is tuple:
            if type(value) is not list or not all(type(one) is str for one in value):
                raise self.wrong(where, f"{key}: expected an array of strings, not {_called(value)}")
            return tuple(value)
        if kind is float and type(value) is int:
            return float(value)
        if type(value) is not (dict if kind is Mapping else kind):
            raise self.wrong(where, f"{key}: expected {_CALLED[kind]}, not {_called(value)}")
        return value

    def parsed(self, parse: Callable[[Any], Any], value: object, where: _Where) -> Any:
        """Returns what `parse` makes of a value."""
        try:
            return parse(value)
        except ConfigError as error:
            hints = getattr(error, "__notes__", [])
            raise self.wrong(where, f"{where[-1]}: {error}", *hints) from None

    def distinct(self, shares: tuple[Share, ...]) -> None:
        """Checks that no two shares want one socket."""
        seen: dict[str, str | None] = {}
        for index, share in enumerate(shares):
            path = os.path.realpath(share.socket or "")
            if path in seen:
                raise self.wrong(("share", index, "socket"), f"socket: {share.socket} is that of {seen[path]} already")
            seen[path] = share.origin

    def line(self, where: _Where) -> int:
        while where and where not in self.lines:
            where = where[:-1]
        return self.lines.get(where, 1)

    def wrong(self, where: _Where, message: str, *hints: str) -> ConfigError:
        error = ConfigError(f"{self.path}:{self.line(where)}: {message}")
        for hint in hints:
            error = hinted(error, hint)
        return error


_CALLED: Final = {
    str: "a string",
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    Mapping: "a table",
    dict: "a table",
    list: "an array",
}


def _called(value: object) -> str:
    called = _CALLED.get(type(value), f"a {type(value).__name__}")
    return f"{called} ({value!r})" if isinstance(value, (str, int, float)) else called


def _octal(text: str) -> int:
    try:
        return int(text, 8)
    except ValueError:
        raise ConfigError(f"not an octal number: {text!r}") from None


def _line_of(error: tomllib.TOMLDecodeError, text: str) -> int:
    """Returns the line of a syntax error, which Python 3.11 tells in the message alone."""
    _, _, place = str(error).rpartition("(at line ")
    number = place.partition(",")[0]
    return int(number) if number.isdecimal() else text.rstrip("\n").count("\n") + 1


def _lines(text: str) -> dict[_Where, int]:
    """Returns the line on which each key and each table of valid TOML begins.

    A statement is the shortest run of lines from where the last one ended that is TOML by itself, so it is the parser that
    tells strings over several lines, quoted keys and dotted ones.
    """
    lines = text.split("\n")
    found: dict[_Where, int] = {}
    counts: dict[_Where, int] = {}
    table: _Where = ()
    begin = 0
    while begin < len(lines):
        end, statement = begin + 1, None
        while statement is None and end <= len(lines):
            try:
                statement = tomllib.loads("\n".join(lines[begin:end]))
            except tomllib.TOMLDecodeError:
                end += 1
        if statement:
            header = lines[begin].lstrip().startswith("[")
            where: _Where = () if header else table
            rest: Any = statement
            while isinstance(rest, dict) and len(rest) == 1:
                ((key, rest),) = rest.items()
                where = (*where, key)
                if header and rest == [{}]:  # [[key]]: one more
                    counts[where] = counts.get(where, -1) + 1
                    where = (*where, counts[where])
                elif header and where in counts:  # below the last one
                    where = (*where, counts[where])
                found.setdefault(where, begin + 1)
            if header:
                table = where
        begin = end
    return found
