"""The exceptions that Python has no word for, and the hints that go with those it has.

::

    Exception
    ├── VirtiofsError
    │   ├── BoundsError      (also an IndexError)  an address that is not in guest memory
    │   ├── ConfigError      (also a ValueError)   a setting that cannot be served
    │   ├── ProtocolError    a server under test answered against the protocol
    │   ├── RestoreError     something that the guest of a saved device has is not there any more
    │   └── StateError       (also a RuntimeError) a device that is not in the state for what it was asked
    └── OSError              everything that the operating system refused

Each error says what is wrong; where something can be done about it, a note (`BaseException.add_note`) says what.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Final, TypeVar

if TYPE_CHECKING:
    from .types import Lost

_E = TypeVar("_E", bound=BaseException)


class VirtiofsError(Exception):
    """Base of the exceptions of this package."""


class BoundsError(VirtiofsError, IndexError):
    """An address that is not in guest memory; the message names it and the regions that there are."""


class ConfigError(VirtiofsError, ValueError):
    """A setting that cannot be served, whatever the state of the host."""


class ProtocolError(VirtiofsError):
    """A server that the embedded guest talks to broke the vhost-user, virtio or FUSE protocol."""


class RestoreError(VirtiofsError):
    """Something that the guest of a saved device has is not to be had any more.

    Attributes:
        lost: What that is, each with a reason.
    """

    def __init__(self, lost: "Sequence[Lost]") -> None:
        """Says how much is lost, and the first of it."""
        more = f", and {len(lost) - 1} more" if len(lost) > 1 else ""
        super().__init__(f"the guest has what cannot be had any more: {lost[0]}{more}")
        self.lost: Final = tuple(lost)
        self.add_note("missing='stale' goes on without")


class StateError(VirtiofsError, RuntimeError):
    """A device that is not in the state for what it was asked; the message says which one it is in and which are needed."""


def hinted(error: _E, hint: str) -> _E:
    """Returns `error` with one note: what to do about it."""
    error.add_note(hint)
    return error


def one_line(error: BaseException) -> str:
    """Says `error` and its hints on one line, without the type and the errno."""
    if isinstance(error, OSError) and error.strerror is not None:
        text = error.strerror[:1].lower() + error.strerror[1:]
        if error.filename is not None:
            text = f"{_printable(error.filename)}: {text}"
    else:
        text = str(error) or type(error).__name__
    hints = getattr(error, "__notes__", [])
    return "; ".join([text, *hints]).replace("\n", "\\n")


def _printable(name: object) -> str:
    text = name.decode(errors="backslashreplace") if isinstance(name, bytes) else str(name)
    text = text.encode(errors="backslashreplace").decode()
    return text if text.isprintable() and text else repr(text)
