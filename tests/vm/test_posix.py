"""The POSIX checks on a share in User-Mode Linux, against the directory behind it: tests/posix says what they are."""

from __future__ import annotations

import io
import os
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

from tests.posix.comparison import compare
from tests.posix.expected import DIFFERENCES
from tests.posix.runner import OK, load

from . import daemon
from .daemon import Daemon
from .guest import Share
from .uml import Uml

TOP = Path(__file__).parents[2]
# All that a share can do of what a local disk does.
COMPLETE = ("--xattr", "--posix-acl=always", "--modcaps=+sys_admin")
KINDS = {
    "none": ("none", ()),
    "auto": ("auto", ()),
    "always": ("always", ()),
    "auto-writeback": ("auto", ("--writeback",)),
    "always-writeback": ("always", ("--writeback",)),
    "xattr": ("auto", ("--ownership=xattr", "--posix-acl=never")),
}


def packed() -> bytes:
    """The suite as a tar archive, to be unpacked in the guest."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        archive.add(TOP / "tests/__init__.py", "tests/__init__.py")
        archive.add(
            TOP / "tests/posix", "tests/posix", filter=lambda entry: None if "__pycache__" in entry.name else entry
        )
    return buffer.getvalue()


@pytest.fixture(scope="session")
def control(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The results of the host's own kernel, on the file system that the share will be on."""
    if os.geteuid() != 0:
        pytest.skip("the daemon gives files to other users only as root")
    folder = tmp_path_factory.mktemp("control")
    results = folder / "results.json"
    command = [sys.executable, "-m", "tests.posix", str(folder), "--quiet", "--json", str(results)]
    subprocess.run(command, cwd=TOP, check=False, stdout=subprocess.DEVNULL)
    assert sum(result.result == OK for result in load(results)) > 300
    return results


@pytest.mark.parametrize("kind", KINDS)
def test_the_share_does_what_its_directory_does(kind: str, control: Path, tmp_path: Path) -> None:
    if not daemon.is_ours():
        pytest.skip(f"expected.py is about our own daemon, not {daemon.name()}")
    cache, options = KINDS[kind]
    with (
        Daemon(tmp_path, cache=cache, options=[*COMPLETE, *options]) as served,
        Uml([Share(served.socket)], memory="1G") as guest,
    ):
        guest.put("/run/posix.tar.gz", packed())
        guest.check("cd /run && tar xzf posix.tar.gz")
        # Its status says whether a check failed: what that means is for the comparison.
        done = guest.run("cd /run && python3 -m tests.posix /mnt/share --quiet --json /run/posix.json", timeout=400)
        share = tmp_path / "share.json"
        share.write_text(guest.check("cat /run/posix.json"))
        verdict = compare(load(control), load(share), DIFFERENCES, kind)
        assert verdict.faults() == [], done.output
        assert guest.complaints() == []
        assert served.alive()
        assert "panicked" not in served.log()
