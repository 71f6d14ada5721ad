"""Python file systems from the command line."""

import os
import textwrap
from pathlib import Path

import pytest

from tests import takes
from tests.daemon import Start, virtiofs
from virtiofs.testing import Guest

MODULE = """
from virtiofs import Passthrough
from virtiofs.memory import MemoryFS

class Greeting(MemoryFS):
    def __init__(self, text="hello", size=1 << 20, loud=False):
        super().__init__(size)
        self.text = text.upper() if loud else text

    def read(self, request, node, handle, offset, size):
        return self.text.encode()[offset : offset + size]

class Upper(Passthrough):
    def read(self, request, node, handle, offset, size):
        return super().read(request, node, handle, offset, size).upper()

def make():
    return Greeting()
"""


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    (tmp_path / "modules").mkdir()
    (tmp_path / "modules" / "mine.py").write_text(MODULE)
    return {"PYTHONPATH": str(tmp_path / "modules")}


def test_a_class_is_served_with_its_arguments(tmp_path: Path, start: Start, environment: dict[str, str]) -> None:
    options = ("--fs-option", "text=hello you", "--fs-option", "loud=true", "--fs-option", "size=65536")
    start("mine:Greeting", "--socket", tmp_path / "s", *options, env=environment)
    with Guest(tmp_path / "s") as guest:
        guest.write_file("file", b"x" * 9)
        assert guest.read_file("file") == b"HELLO YOU"
        assert guest.statfs().blocks == 16


def test_a_directory_is_served_by_a_class(
    tmp_path: Path, share: Path, start: Start, environment: dict[str, str]
) -> None:
    start(share, "--fs", "mine:Upper", "--socket", tmp_path / "s", "--readonly", env=environment)
    with Guest(tmp_path / "s") as guest:
        assert guest.read_file("hello") == b"HELLO FROM THE HOST\n"
        with pytest.raises(OSError, match="Read-only"):
            guest.write_file("hello", b"")


@pytest.mark.root
@takes.mounts
def test_a_class_is_mounted(tmp_path: Path, start: Start, environment: dict[str, str]) -> None:
    there = tmp_path / "there"
    there.mkdir()
    served = start("mine:make", there, command="mount", env=environment)
    (there / "file").write_text("12345")
    assert (there / "file").read_text() == "hello"
    assert served.end() == 0
    assert not os.path.ismount(there)


def test_who_serves_what(share: Path, environment: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", environment["PYTHONPATH"])
    said = virtiofs("explain", "mine:Upper")
    assert said.returncode == 0
    lines = said.stdout.splitlines()
    assert lines[0] == "Upper: 1 operations in Python, 38 native"
    assert "  read             Python         Upper.read" in lines
    assert "  copy_file_range  -              ENOSYS: Python has read" in lines
    assert "  MAP_ALIGNMENT: Python has read; the guest maps nothing (DAX)" in lines
    assert lines[-1].startswith("virtiofs serve filters the system calls of this class")
    native = virtiofs("explain", share).stdout
    assert native.startswith("Passthrough: 0 operations in Python")
    assert native.splitlines()[-1].startswith("virtiofs serve confines itself")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("explain", "mine:make"), "mine:make is not a class of file systems"),
        (("explain", "mine:None"), "mine:None: mine has no 'None'"),
        (("explain", "/none"), "/none"),
        (("serve", "/tmp", "--fs-option", "a=1", "--socket=s"), "--fs-option: a directory takes no arguments"),
        (("serve", "mine:make", "--fs-option", "a", "--socket=s"), "not NAME=VALUE: 'a'"),
        (("serve", "mine:make", "--fs-option", "a=b", "--socket=s"), "unexpected keyword argument 'a'"),
        (("serve", "mine:make", "--fs", "mine:Upper", "--socket=s"), "which class is it, mine:make or mine:Upper?"),
        (("serve", "mine:Upper", "--socket=s"), "which directory is to be shared?"),
        (("serve", "/tmp", "--fs", "mine:Greeting", "--socket=s"), "mine:Greeting shares no directory of this host"),
        (("serve", "mine:Greeting", "--dax-window=2M", "--socket=s"), "Greeting has no files that guests could map"),
    ],
)
def test_what_cannot_be_served_is_told_on_one_line(
    arguments: tuple[str, ...], message: str, environment: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", environment["PYTHONPATH"])
    done = virtiofs(*arguments)
    assert done.returncode == 2
    assert message in done.stderr
    assert done.stderr.count("\n") == 1, textwrap.indent(done.stderr, "| ")
