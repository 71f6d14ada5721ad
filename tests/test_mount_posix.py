"""The POSIX checks on a mount of this host, against the directory behind it: tests/posix says what they are."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests import takes
from tests.posix.comparison import compare
from tests.posix.expected import DIFFERENCES
from tests.posix.runner import OK, load
from virtiofs import Passthrough, cache, mount

TOP = Path(__file__).parents[1]

pytestmark = [
    pytest.mark.root,
    pytest.mark.slow,
    pytest.mark.timeout(300),
    takes.mounts,
]


def results(directory: Path, into: Path) -> Path:
    """Runs the suite, in a process of its own that forks for each check. Its status is for the comparison to judge."""
    command = [sys.executable, "-m", "tests.posix", str(directory), "--quiet", "--json", str(into)]
    subprocess.run(command, cwd=TOP, check=False, stdout=subprocess.DEVNULL)
    return into


@pytest.fixture(scope="session")
def control(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The results of the local disk."""
    folder = tmp_path_factory.mktemp("control")
    into = results(folder, folder / "results.json")
    assert sum(result.result == OK for result in load(into)) > 300
    return into


@pytest.mark.parametrize("kind", ["none", "auto", "always", "auto-writeback"])
def test_a_mount_does_what_its_directory_does(kind: str, control: Path, tmp_path: Path) -> None:
    source, there = tmp_path / "source", tmp_path / "mnt"
    source.mkdir()
    there.mkdir()
    # Others than root run checks too, and have to get there.
    for folder in (*tmp_path.parents, tmp_path):
        if str(folder).startswith("/tmp/pytest-"):
            folder.chmod(0o755)
    mode = cache.mode(kind.partition("-")[0])
    fs = Passthrough(source, mode, posix_acl=True, writeback=kind.endswith("-writeback"))
    with mount(fs, there) as served:
        verdict = compare(load(control), load(results(there, tmp_path / "mount.json")), DIFFERENCES, kind)
        assert verdict.faults() == []
        assert served.stats().panics == 0
        assert os.listdir(there) == []
