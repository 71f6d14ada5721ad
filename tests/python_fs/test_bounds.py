"""A guest that takes all it can get of a file system in Python: it gets an errno, and what it gives back it may have again."""

import errno
import os
import stat
import tempfile
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.errnos import fails
from tests.python_fs.conftest import eventually
from virtiofs import Attr, ConfigError, DirEntry, Entry, FileSystem, Open
from virtiofs.memory import MemoryFS
from virtiofs.testing import Guest

MOST = 20


class Endless(FileSystem):
    """Every name is there, a new file each time it is asked for."""

    most_nodes = MOST
    most_handles = MOST

    def __init__(self, backing: Any = None) -> None:
        self.opened = self.listed = 0
        self.backing = backing

    def getattr(self, request: Any, node: Any, handle: Any) -> Attr:
        return Attr(stat.S_IFREG | 0o644) if isinstance(node, str) else Attr(stat.S_IFDIR | 0o755, nlink=2)

    def lookup(self, request: Any, parent: Any, name: str) -> Entry:
        return Entry(name, self.getattr(request, name, None))

    def open(self, request: Any, node: Any, flags: int) -> Open:
        self.opened += 1
        return Open(object(), backing=self.backing)

    def opendir(self, request: Any, node: Any, flags: int) -> Open:
        self.opened += 1
        return Open(object())

    def readdir(self, request: Any, node: Any, handle: Any) -> Iterator[DirEntry]:
        self.listed += 1
        return (DirEntry(f"{number}", stat.S_IFREG) for number in range(3))

    def readdirplus(self, request: Any, node: Any, handle: Any) -> Iterator[DirEntry]:
        return (
            DirEntry(name, entry=self.lookup(request, node, name))
            for name in (f"{number}" for number in range(2 * MOST))
        )


def answers(call: Callable[..., object], *arguments: object) -> bool:
    """Whether there is room for what a call asks for."""
    try:
        call(*arguments)
    except OSError as error:
        if error.errno != errno.ENFILE:
            raise
        return False
    return True


def test_nodes() -> None:
    with Guest(Endless()) as guest:
        client = guest.client
        nodes = [client.lookup(1, f"{number}").node for number in range(MOST)]
        for _ in range(3):
            with fails(errno.ENFILE):
                client.lookup(1, "one more")
        assert client.lookup(1, "7").node == nodes[7]
        client.forget(nodes[3], 1)
        # That is said on a queue of its own.
        eventually(lambda: answers(client.lookup, 1, "one more"))
        with fails(errno.ENFILE):
            client.lookup(1, "two more")


def test_a_listing_goes_on_without_nodes() -> None:
    with Guest(Endless()) as guest:
        client = guest.client
        handle = client.opendir(1).handle
        entries = client.readdir(1, handle, plus=True)
        assert [entry.name for entry in entries[2:]] == [f"{number}" for number in range(2 * MOST)]
        assert len([entry for entry in entries if entry.entry is not None]) == MOST


def test_what_is_not_told_is_not_made() -> None:
    fs = MemoryFS()
    fs.most_nodes = MOST
    with Guest(fs) as guest:
        client = guest.client
        made = [client.mkdir(1, f"{number}").node for number in range(MOST)]
        with fails(errno.ENFILE):
            client.mkdir(1, "one more")
        with fails(errno.ENFILE):
            client.create(1, "one more", os.O_RDWR)
        assert "one more" not in fs.root.names
        client.forget(made[0], 1)
        eventually(lambda: answers(client.mkdir, 1, "one more"))


@pytest.mark.parametrize("backed", [False, True])
def test_open_files(backed: bool) -> None:
    with tempfile.TemporaryFile() as file, Guest(fs := Endless(file if backed else None)) as guest:
        client = guest.client
        node = client.lookup(1, "file").node
        handles = [client.open(node, os.O_RDONLY).handle for _ in range(MOST)]
        with fails(errno.ENFILE):
            client.open(node, os.O_RDONLY)
        with fails(errno.ENFILE):
            client.opendir(1)
        assert fs.opened == MOST, "a method is not asked to open what nobody would close"
        client.release(node, handles[0])
        client.release(node, client.open(node, os.O_RDONLY).handle)


def test_made_up_handles_of_directories() -> None:
    """Each would have its listing kept."""
    fs = Endless()
    with Guest(fs) as guest:
        client = guest.client
        for number in range(MOST):
            client.readdir(1, 1000 + number)
        with fails(errno.ENFILE):
            client.readdir(1, 5)
        assert fs.listed == MOST
        assert len(client.readdir(1, 1000)) == 2 + 3
        client.releasedir(1, 1000)
        assert len(client.readdir(1, 5)) == 2 + 3


def test_no_bounds() -> None:
    fs = Endless()
    fs.most_nodes = fs.most_handles = 0
    with Guest(fs) as guest:
        for number in range(5 * MOST):
            guest.client.open(guest.client.lookup(1, f"{number}").node, os.O_RDONLY)


@pytest.mark.parametrize("what", ["most_nodes", "most_handles"])
def test_bounds_that_are_none(what: str) -> None:
    fs = Endless()
    setattr(fs, what, -1)
    with pytest.raises(ConfigError, match=what):
        fs.engine()
