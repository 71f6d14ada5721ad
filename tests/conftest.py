"""What all tests share."""

import os
import signal
from collections.abc import Generator, Iterator
from pathlib import Path

import pytest

from tests.daemon import Daemon, Start

NO_SKIP = os.environ.get("VIRTIOFS_NO_SKIP", "") not in ("", "0")
"""Whether a test that is skipped counts as failed: continuous integration runs everything or says so."""


def pytest_configure() -> None:
    # A run in the background of a shell has SIGINT ignored, and so would all programs have that it starts.
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    if NO_SKIP and report.skipped and not hasattr(report, "wasxfail"):
        report.outcome = "failed"
        report.longrepr = f"skipped, which VIRTIOFS_NO_SKIP forbids: {call.excinfo and call.excinfo.value}"
    return report


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(
    collector: pytest.Collector,
) -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    report = yield
    if NO_SKIP and report.skipped:
        report.outcome = "failed"
        report.longrepr = f"skipped as a whole, which VIRTIOFS_NO_SKIP forbids: {report.longrepr}"
    return report


@pytest.fixture
def share(tmp_path: Path) -> Path:
    """A directory to share with a little in it."""
    directory = tmp_path / "share"
    directory.mkdir()
    (directory / "hello").write_text("hello from the host\n")
    (directory / "sub").mkdir()
    (directory / "sub" / "deep").write_bytes(b"deep")
    return directory


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Starts `virtiofs serve`; what a test leaves running is ended."""
    daemons: list[Daemon] = []

    def start(*arguments: str | Path, **options: object) -> Daemon:
        daemon = Daemon(tmp_path, *arguments, **options)  # type: ignore[arg-type]
        daemons.append(daemon)
        return daemon

    yield start
    for daemon in daemons:
        daemon.kill()
