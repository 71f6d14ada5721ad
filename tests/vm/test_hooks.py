"""Functions that are asked and told of opens, named in a configuration file, under a stock kernel."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest

from tests.daemon import Daemon

from . import daemon
from .guest import Share
from .uml import Uml

MODULE = """
import errno, os
from virtiofs import Open

def decide(request, node, flags):
    if node.path.name == "host.key" and request.uid != 0:
        raise PermissionError(node.path)
    if node.path.name == "busy":
        raise OSError(errno.ETXTBSY, "for now")
    if node.path.name == "passwords" and request.uid != 0:
        fd = os.memfd_create("nothing")
        os.write(fd, b"nothing here\\n")
        return Open(backing=fd)

def note(event):
    with open(os.environ["NOTED"], "a") as file:
        print(os.path.basename(event.path), event.uid, event.errno, event.replaced, file=file)
"""


@pytest.fixture(autouse=True)
def needs_python() -> None:
    if not daemon.is_ours():
        pytest.skip(f"{daemon.name()} serves no Python")


def test_opens_are_allowed_refused_and_replaced(tmp_path: Path) -> None:
    share = tmp_path / "share"
    share.mkdir()
    for name in ("host.key", "busy", "passwords", "notes"):
        (share / name).write_text(f"{name}!!!!!!!!\n")
    (tmp_path / "hooks.py").write_text(MODULE)
    config = tmp_path / "v.toml"
    config.write_text(
        f"""
        [[share]]
        directory = "{share}"
        socket = "s"
        tag = "share"
        on_open = "hooks:decide"
        audit = "hooks:note"
        """
    )
    noted = tmp_path / "noted"
    served = Daemon(tmp_path, "--config", config, env={"NOTED": str(noted), "PYTHONPATH": str(tmp_path)})
    with served, Uml([Share(tmp_path / "s")]) as guest:
        user = "setpriv --reuid=1000 --regid=1000 --clear-groups"
        guest.check(
            f"""cd /mnt/share
            test "$({user} cat notes)" = 'notes!!!!!!!!'
            test "$(cat host.key)" = 'host.key!!!!!!!!'
            ({user} cat host.key 2>&1 || true) | grep -q 'Permission denied'
            (cat busy 2>&1 || true) | grep -q 'Text file busy'
            test "$({user} cat passwords)" = 'nothing here'
            test "$(cat passwords)" = 'passwords!!!!!!!!'
            echo new > made; test "$(cat made)" = new"""
        )
        assert guest.complaints() == []
        assert served.end() == 0
    assert (share / "made").read_text() == "new\n"
    events = noted.read_text().splitlines()
    assert {
        "notes 1000 0 False",
        "host.key 0 0 False",
        f"host.key 1000 {errno.EACCES} False",
        "passwords 1000 0 True",
        "passwords 0 0 False",
        "made 0 0 False",
    } <= set(events)
