"""Devices that were saved: what is asked of a new one that goes on, and what is said when it cannot."""

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal, TypeAlias

from . import _core
from .errors import ConfigError, RestoreError
from .types import Lost

if TYPE_CHECKING:
    from ._core import _Restored

Missing: TypeAlias = Literal["fail", "stale"]
"""What becomes of a device whose guest has what is not to be had any more."""


def shape(saved: bytes, *, registers: bool = False) -> tuple[str, int, int]:
    """Returns tag, number of request queues and bytes of the DAX window of a saved device.

    Raises:
        ConfigError: It was not saved by a release that saves as this one does.
    """
    try:
        return _core.saved_shape(saved, registers)
    except ValueError as error:
        raise ConfigError(str(error)) from None


def may_lose(missing: Missing) -> bool:
    """Says whether a device may go on without all that its guest has.

    Raises:
        ConfigError: `missing` is neither of the two.
    """
    if missing not in ("fail", "stale"):
        raise ConfigError(f"what is missing is to be 'fail' or 'stale', not {missing!r}")
    return missing == "stale"


def lost(restored: "_Restored") -> Sequence[Lost]:
    """Returns what is lost.

    Raises:
        RestoreError: It was not to be.
    """
    went, things = restored
    losses = [
        Lost(kind=kind, node=node, path=os.fsdecode(path), error=OSError(errno, os.strerror(errno)))
        for kind, node, path, errno in things
    ]
    if not went:
        raise RestoreError(losses)
    return losses
