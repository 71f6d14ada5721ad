"""What the Python side costs: start-up, servers, a call through the embedded guest, methods. Run by `make bench`."""

import os
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from virtiofs import Attr, Entry, FileSystem, Node, Open, Passthrough, Policy, Request, Rule, serve
from virtiofs.testing import Guest


@pytest.fixture
def guest(tmp_path: Path) -> Iterator[Guest]:
    (tmp_path / "file").write_bytes(bytes(1 << 20))
    with Guest(Passthrough(tmp_path)) as guest:
        yield guest


def test_command_starts(benchmark: BenchmarkFixture) -> None:
    """`virtiofs --version`, interpreter included."""
    benchmark(lambda: subprocess.run([sys.executable, "-m", "virtiofs", "--version"], check=True, capture_output=True))


def test_server_starts_and_ends(benchmark: BenchmarkFixture, tmp_path: Path) -> None:
    """Socket and threads, without a guest."""
    fs = Passthrough(tmp_path)

    def cycle() -> None:
        with serve(fs, tmp_path / "s"):
            pass

    benchmark(cycle)


def test_guest_mounts_and_unmounts(benchmark: BenchmarkFixture, tmp_path: Path) -> None:
    """Connect, memory, queues, INIT, DESTROY."""
    with serve(Passthrough(tmp_path), tmp_path / "s") as server:

        def cycle() -> None:
            with Guest(server):
                pass

        benchmark(cycle)


def test_getattr(benchmark: BenchmarkFixture, guest: Guest) -> None:
    """One GETATTR, both sides in this process."""
    client = guest.client
    benchmark(lambda: client.getattr(1))


def test_read_file(benchmark: BenchmarkFixture, guest: Guest) -> None:
    """LOOKUP (cached), OPEN, one READ of 1 MiB, FLUSH, RELEASE."""
    benchmark(lambda: guest.read_file("file"))


class Files(FileSystem):
    """One file of 1 MiB, in the ways that there are to serve it."""

    data = bytes(1 << 20)

    def __init__(self, *, backed: bool = False) -> None:
        self.fd = os.memfd_create("file") if backed else None
        if self.fd is not None:
            os.write(self.fd, self.data)

    def lookup(self, request: Request, parent: object, name: str) -> Entry | None:
        return Entry(name, self.getattr(request, name, None)) if name == "file" else None

    def getattr(self, request: Request, node: object, handle: object) -> Attr:
        return Attr(stat.S_IFREG | 0o644, size=1 << 20) if node == "file" else Attr(stat.S_IFDIR | 0o755)

    def open(self, request: Request, node: object, flags: int) -> Open:
        return Open() if self.fd is None else Open(backing=os.dup(self.fd))

    def read(self, request: Request, node: object, handle: object, offset: int, size: int) -> memoryview:
        return memoryview(self.data)[offset : offset + size]


class Awaited(Files):
    async def getattr(self, request: Request, node: object, handle: object) -> Attr:  # type: ignore[override]
        return Attr(stat.S_IFDIR | 0o755)


class Same(Passthrough):
    """Overrides nothing."""


class Looks(Passthrough):
    def lookup(self, request: Request, parent: Node, name: str) -> Entry | None:
        return super().lookup(request, parent, name)


@pytest.mark.parametrize("kind", [Files, Awaited])
def test_getattr_in_python(benchmark: BenchmarkFixture, kind: type[Files]) -> None:
    """One GETATTR whose answer a method makes, plain and async: compare with test_getattr."""
    with Guest(kind()) as guest:
        client = guest.client
        benchmark(lambda: client.getattr(1))


@pytest.mark.parametrize("kind", [Passthrough, Same, Looks])
def test_getattr_beside_an_override(benchmark: BenchmarkFixture, tmp_path: Path, kind: type[Passthrough]) -> None:
    """One native GETATTR of classes that override nothing, or another operation: all the same."""
    with Guest(kind(tmp_path)) as guest:
        client = guest.client
        benchmark(lambda: client.getattr(1))


@pytest.mark.parametrize("kind", [Passthrough, Looks])
def test_lookup_with_super(benchmark: BenchmarkFixture, tmp_path: Path, kind: type[Passthrough]) -> None:
    """One LOOKUP, native, and by a method that calls the native one."""
    (tmp_path / "file").touch()
    with Guest(kind(tmp_path)) as guest:
        client = guest.client
        benchmark(lambda: client.lookup(1, "file"))


@pytest.mark.parametrize("backed", [False, True], ids=["by-a-method", "by-a-descriptor"])
def test_read_in_python(benchmark: BenchmarkFixture, backed: bool) -> None:
    """READs of 1 MiB in all, from a method's buffer or a memfd: compare with test_read_file."""
    with Guest(Files(backed=backed)) as guest:
        benchmark(lambda: guest.read_file("file"))


@pytest.mark.parametrize("policy", [None, Policy(Rule(name="*.x", hidden=True), Rule(path="a/**", read_only=True))])
def test_new_inodes(benchmark: BenchmarkFixture, tmp_path: Path, policy: Policy | None) -> None:
    """LOOKUP of a file that is new each time, without rules and with two by name and path."""
    (tmp_path / "file").touch()
    with Guest(Passthrough(tmp_path, policy=policy)) as guest:
        client = guest.client

        def cycle() -> None:
            client.lookup(1, "file")
            guest.drop_caches()

        benchmark(cycle)
