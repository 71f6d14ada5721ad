"""What the tests of Python file systems share."""

import time
from collections.abc import Callable, Iterator

import pytest

from tests.python_fs.tree import Tree
from virtiofs import faults
from virtiofs.testing import Guest


@pytest.fixture
def tree() -> Tree:
    return Tree()


@pytest.fixture
def guest(tree: Tree) -> Iterator[Guest]:
    with Guest(tree) as guest:
        yield guest


@pytest.fixture(autouse=True)
def untold() -> None:
    """Faults are told anew in each test."""
    faults._told.clear()


def eventually(condition: Callable[[], bool], seconds: float = 10) -> None:
    """Waits for what another thread is to do."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.005)
