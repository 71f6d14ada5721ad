"""What the Python side costs: start-up, servers, and a call through the embedded guest. Run by `make bench`."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from virtiofs import Passthrough, serve
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
