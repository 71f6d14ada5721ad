"""Rules that rename extended attributes between guests and the host, in the syntax of virtiofsd's ``--xattrmap``.

A rule is ``:TYPE:SCOPE:KEY:PREPEND:``. The separator is whatever character the rule begins with; white space may stand between
rules. Of several rules that fit a name, the first holds.

=============  ===============================================================================================
TYPE           what it does
=============  ===============================================================================================
`prefix`       PREPEND goes in front of the guest's name on the host, and is taken away again in lists
`ok`           the name stays as it is
`bad`          the guest gets EPERM; the host's name is not listed
`unsupported`  the guest gets EOPNOTSUPP; the host's name is not listed
=============  ===============================================================================================

SCOPE says which names: `client`, those of a guest's getxattr, setxattr and removexattr that begin with KEY; `server`, those of
listxattr on the host that begin with PREPEND; `all`, both. An empty KEY or PREPEND fits every name, and a map must have a rule
for every name of either side.

``:map:KEY:PREPEND:`` is short for a whole set, and the last: names that begin with KEY get PREPEND in front, the host's own
names of that kind are hidden, the guest may not use names with PREPEND itself, and all others stay. With an empty KEY, all
names of the guest get PREPEND, and no others are seen.
"""

import errno
import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final, Literal

from .errors import ConfigError, hinted

_TYPES: Final = ("prefix", "ok", "bad", "unsupported")
_SCOPES: Final = ("client", "server", "all")
_ERRNOS: Final = {"prefix": 0, "ok": 0, "bad": errno.EPERM, "unsupported": errno.EOPNOTSUPP}
_NAME_MAX: Final = 255
_ACLS: Final = ("system.posix_acl_access", "system.posix_acl_default")
_SEPARATORS: Final = ":/|,;!%#+=@^~"

Native = tuple[bytes | None, bytes | None, bytes, int]
"""A rule for the native side: what a guest's name begins with, what a host's name begins with, what goes in front, an errno."""


@dataclass(frozen=True, slots=True)
class Rule:
    """One rule.

    Args:
        type: What is done.
        scope: Whose names it is for.
        key: How a guest's name must begin.
        prepend: How a host's name must begin, and what a `prefix` rule puts in front.

    Raises:
        ConfigError: Type or scope are unknown, or a text cannot be part of a name.
    """

    type: Literal["prefix", "ok", "bad", "unsupported"]
    scope: Literal["client", "server", "all"]
    key: str = ""
    prepend: str = ""

    def __post_init__(self) -> None:
        if self.type not in _TYPES:
            raise ConfigError(f"unknown type {self.type!r}: choose one of {', '.join(_TYPES)}, map")
        if self.scope not in _SCOPES:
            raise ConfigError(f"unknown scope {self.scope!r}: choose one of {', '.join(_SCOPES)}")
        for text in (self.key, self.prepend):
            if "\0" in text:
                raise ConfigError(f"a name has no NUL: {text!r}")
            if len(os.fsencode(text)) > _NAME_MAX:
                raise ConfigError(f"a name has at most {_NAME_MAX} bytes, {text[:20]!r}… has {len(os.fsencode(text))}")

    def of_guest(self, name: str) -> bool:
        """Whether it is for this name of a guest."""
        return self.scope != "server" and name.startswith(self.key)

    def of_host(self, name: str) -> bool:
        """Whether it is for this name on the host."""
        return self.scope != "client" and name.startswith(self.prepend)

    @property
    def native(self) -> Native:
        """The rule for the native side."""
        return (
            None if self.scope == "server" else os.fsencode(self.key),
            None if self.scope == "client" else os.fsencode(self.prepend),
            os.fsencode(self.prepend) if self.type == "prefix" else b"",
            _ERRNOS[self.type],
        )


@dataclass(frozen=True, slots=True)
class XattrMap:
    """Rules for the names of extended attributes, as `parse` makes them.

    Args:
        rules: The rules in their order.

    Raises:
        ConfigError: Some names fit no rule.
    """

    rules: tuple[Rule, ...]

    def __post_init__(self) -> None:
        if not any(rule.of_guest("") for rule in self.rules):
            raise _unended("some names of guests fit no rule")
        if not any(rule.of_host("") for rule in self.rules):
            raise _unended("some names on the host fit no rule")

    def __str__(self) -> str:
        """The rules as `parse` reads them."""
        texts = "".join(rule.key + rule.prepend for rule in self.rules)
        at = next(char for char in _separators() if char not in texts)
        return "".join(f"{at}{at.join((rule.type, rule.scope, rule.key, rule.prepend))}{at}" for rule in self.rules)

    @property
    def moves_acls(self) -> bool:
        """Whether ACLs would not be the host's, which then would not obey them."""
        for name in _ACLS:
            of_guest = next(rule for rule in self.rules if rule.of_guest(name))
            of_host = next(rule for rule in self.rules if rule.of_host(name))
            if (of_guest.type, of_host.type) != ("ok", "ok"):
                return True
        return False

    @property
    def native(self) -> list[Native]:
        """The rules for the native side."""
        return [rule.native for rule in self.rules]


def parse(text: str) -> XattrMap:
    """Returns the map that `text` describes.

    Raises:
        ConfigError: It describes none; the message quotes the rule and says where it begins, counted from 1.
    """
    rules: list[Rule] = []
    number, at, complete = 0, _skip(text, 0), False
    while at < len(text):
        number += 1
        if complete:
            raise hinted(_wrong("map must be the last rule", number, text, at), "leave out what follows it")
        separator, start = text[at], at
        if separator.isalnum():
            raise hinted(
                _wrong(f"{separator!r} is no separator", number, text, at), "begin each rule with one: :ok:all:::"
            )
        complete = text.startswith(f"map{separator}", at + 1)
        fields = text[at + 1 :].split(separator, 3 if complete else 4)
        wanted = ("map", "KEY", "PREPEND") if complete else ("TYPE", "SCOPE", "KEY", "PREPEND")
        if len(fields) <= len(wanted):
            form = separator + separator.join(wanted) + separator
            raise hinted(_wrong("its end is missing", number, text, at), f"write {form}")
        rest = fields.pop()
        at = _skip(text, len(text) - len(rest))
        try:
            if complete:
                rules += _map(fields[1], fields[2])
            else:
                rules.append(Rule(*fields))  # type: ignore[arg-type]  # it checks them
        except ConfigError as error:
            raise _wrong(str(error), number, text[: len(text) - len(rest)], start) from None
    if not rules:
        raise hinted(ConfigError("xattrmap: there is no rule"), "write at least :ok:all:::")
    return XattrMap(tuple(rules))


def _map(key: str, prepend: str) -> list[Rule]:
    if not prepend:
        raise ConfigError("it says nothing to put in front")
    first = Rule("prefix", "all", key, prepend)
    if not key:
        return [first, Rule("bad", "all")]
    return [first, Rule("bad", "server", "", key), Rule("bad", "client", prepend, ""), Rule("ok", "all")]


def _skip(text: str, at: int) -> int:
    while at < len(text) and text[at].isspace():
        at += 1
    return at


def _wrong(what: str, number: int, text: str, at: int) -> ConfigError:
    rule = text[at:].rstrip()
    shown = repr(rule) if len(rule) <= 60 else f"{rule[:60]!r}…"
    return ConfigError(f"xattrmap: rule {number} at character {at + 1}, {shown}: {what}")


def _unended(what: str) -> ConfigError:
    return hinted(ConfigError(f"xattrmap: {what}"), "end it with :bad:all::: to refuse and hide them, or :ok:all:::")


def _separators() -> Iterator[str]:
    """Yields what may stand between the fields of a rule; more of it than a map can use up."""
    yield from _SEPARATORS
    yield from (char for char in map(chr, range(0x2500, 0xD800)) if not char.isalnum() and not char.isspace())
