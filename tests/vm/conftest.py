"""Fixtures of the VM tests: all are marked ``vm`` and are skipped, with the reason, where no guest can run."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import pytest

# Before these modules are imported: their assertions tell what they saw.
pytest.register_assert_rewrite(f"{__package__}.work")

from . import daemon, provision  # noqa: E402
from .daemon import Daemon  # noqa: E402
from .guest import Guest  # noqa: E402
from .work import NEED_ROOT, Place, Work  # noqa: E402

HERE = Path(__file__).parent


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "vm: boots a real guest")
    config.addinivalue_line("markers", "slow: not part of the everyday selection")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.path.is_relative_to(HERE):
            item.add_marker(pytest.mark.vm)
            # Scripts in a guest have their own, shorter limits, which say more.
            if item.get_closest_marker("timeout") is None:
                item.add_marker(pytest.mark.timeout(600, method="signal"))


@pytest.fixture(scope="session", autouse=True)
def guests_can_run() -> None:
    for reason in (provision.problem(), daemon.problem()):
        if reason is not None:
            pytest.skip(reason)


@pytest.fixture(scope="session")
def do() -> Callable[[Place, Work], None]:
    """Do one piece of work in a directory of its own, then look at the guest's kernel log and the daemon."""

    def run(place: Place, work: Work) -> None:
        if work in NEED_ROOT and os.geteuid() != 0:
            pytest.skip("the daemon gives files to other users only as root")
        before = len(place.guest.complaints())
        fresh = place.fresh(work.__name__)
        work(fresh)
        shutil.rmtree(fresh.outside)
        assert place.guest.complaints()[before:] == []
        assert place.daemon.alive()
        assert "panicked" not in place.daemon.log()

    return run


@contextmanager
def sharing(
    guest: Callable[[Daemon], AbstractContextManager[Guest]], folder: Path, cache: str = "auto"
) -> Iterator[Place]:
    """A daemon on ``folder`` and a guest that has it mounted at ``/mnt/share``."""
    with Daemon(folder, cache=cache) as served, guest(served) as running:
        yield Place(running, served, "/mnt/share", folder)
