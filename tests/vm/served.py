"""A file system of this process, and a guest that has it mounted."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from virtiofs import FileSystem, Server

from .guest import Guest, Share
from .uml import Uml


@contextmanager
def serving(fs: FileSystem, folder: Path) -> Iterator[tuple[Server, Guest]]:
    """Boots a guest with `fs`, which must leave nothing to complain of on either side."""
    with (
        Server(fs, socket=folder / "s", tag="share") as server,
        Uml([Share(folder / "s")], memory="512M") as guest,
    ):
        yield server, guest
        assert guest.complaints() == []
        stats = server.stats()
        assert (stats.malformed, stats.panics) == (0, 0)
