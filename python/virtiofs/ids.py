"""Users and groups of a guest that are called something else on the host, in virtiofsd's syntax.

============================================  ==================================================================
``guest:<guest>:<host>:<count>``              ids of the guest, as many from `host` on on the host
``host:<host>:<guest>:<count>``               ids of the host, as many from `guest` on in the guest
``map:<guest>:<host>:<count>``                both
``squash-guest:<guest>:<host>:<count>``       ids of the guest, all of them one on the host
``squash-host:<host>:<guest>:<count>``        ids of the host, all of them one in the guest
``forbid-guest:<guest>:<count>``              ids of the guest that may own nothing: EPERM
============================================  ==================================================================

Ids that no rule is about stay what they are. Two rules for one id in one direction are a mistake.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Final, TypeAlias

from .errors import ConfigError, hinted

NO_ID: Final = (1 << 32) - 1
"""What is nobody's id."""

Range: TypeAlias = tuple[int, int, int | None, bool]
"""First id, how many, what the first becomes (None: it is refused), and whether all become that one."""

_TO_HOST: Final = ("guest", "map", "squash-guest", "forbid-guest")
_TO_GUEST: Final = ("host", "map", "squash-host")
_ONE: Final = ("squash-guest", "squash-host")


@dataclass(frozen=True, slots=True)
class Translation:
    """What ids become on their way to the host and back.

    Args:
        to_host: Ranges of the guest's ids.
        to_guest: Ranges of the host's.
    """

    to_host: tuple[Range, ...] = ()
    to_guest: tuple[Range, ...] = ()

    @property
    def ranges(self) -> tuple[Range, ...]:
        """All ranges: none where no id changes."""
        return self.to_host + self.to_guest

    @property
    def native(self) -> tuple[tuple[Range, ...], tuple[Range, ...]]:
        """As the native side takes it."""
        return self.to_host, self.to_guest


def shown_as(one: int) -> str:
    """Returns the rule by which everything in the guest is that of one id, whoever it is on the host.

    Raises:
        ConfigError: It is no id.
    """
    if not 0 <= one < NO_ID:
        raise ConfigError(f"ids are from 0 to {NO_ID - 1}, not {one}")
    return f"squash-host:0:{one}:{NO_ID}"


def translation(rules: str | Iterable[str]) -> Translation:
    """Returns what `rules` say.

    Raises:
        ConfigError: A rule cannot be understood, or contradicts another one.
    """
    to_host: list[Range] = []
    to_guest: list[Range] = []
    for rule in rules if not isinstance(rules, str) else (rules,):
        kind, *texts = rule.split(":")
        if kind not in _TO_HOST and kind not in _TO_GUEST:
            known = sorted({*_TO_HOST, *_TO_GUEST})
            raise hinted(ConfigError(f"{rule!r}: unknown kind {kind!r}"), f"choose one of {', '.join(known)}")
        numbers = _numbers(rule, texts, 2 if kind == "forbid-guest" else 3)
        first, target, count = (numbers[0], None, numbers[1]) if kind == "forbid-guest" else numbers
        if count < 1:
            raise ConfigError(f"{rule!r}: a range has one id at least")
        last = 0 if target is None else target + (1 if kind in _ONE else count)
        if max(first + count, last) > NO_ID:
            raise ConfigError(f"{rule!r}: ids end at {NO_ID - 1}")
        if kind in _TO_HOST:
            _add(to_host, rule, (first, count, target, kind in _ONE))
        if kind == "map":
            assert target is not None
            _add(to_guest, rule, (target, count, first, False))
        elif kind in _TO_GUEST:
            _add(to_guest, rule, (first, count, target, kind in _ONE))
    return Translation(tuple(to_host), tuple(to_guest))


def _is_number(text: str) -> bool:
    # No id has more digits, and Python reads no number of thousands of them.
    return text.isascii() and text.isdigit() and len(text) <= 20


def _numbers(rule: str, texts: list[str], count: int) -> list[int]:
    if len(texts) != count or not all(map(_is_number, texts)):
        wanted = "guest:count" if count == 2 else "from:to:count"
        raise hinted(ConfigError(f"{rule!r}: numbers are missing or too many"), f"write kind:{wanted}")
    return [int(text) for text in texts]


def _add(ranges: list[Range], rule: str, new: Range) -> None:
    for first, count, _, _ in ranges:
        if first < new[0] + new[1] and new[0] < first + count:
            raise ConfigError(f"{rule!r}: another rule is about {max(first, new[0])} already")
    ranges.append(new)


IdMap: TypeAlias = tuple[int, int, int]
"""Ids of a user namespace: the first one, what that is outside, and how many."""


def id_map(text: str) -> IdMap:
    """Returns what ``:<inside>:<outside>:<count>:`` says; the first character separates, whatever it is.

    Raises:
        ConfigError: It says nothing.
    """
    parts = text[1:].removesuffix(text[:1]).split(text[:1]) if text[:1] and not text[:1].isalnum() else []
    if len(parts) != 3 or not all(map(_is_number, parts)):
        raise hinted(
            ConfigError(f"{text!r} is no range of ids"), "write :inside:outside:count:, as in :0:100000:65536:"
        )
    inside, outside, count = map(int, parts)
    if count < 1 or max(inside, outside) + count > NO_ID:
        raise ConfigError(f"{text!r}: ids end at {NO_ID - 1}, and a range has one at least")
    return inside, outside, count


def disjoint(maps: Sequence[IdMap]) -> bool:
    """Whether no id is in two of `maps`, on either side."""
    sides = [[(line[side], line[side] + line[2]) for line in maps] for side in (0, 1)]
    return all(a[1] <= b[0] for side in sides for a, b in pairwise(sorted(side)))
