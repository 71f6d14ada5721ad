"""Each example runs, and is short enough to be read."""

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest

import virtiofs
from tests.driver import GETATTR, VERSION_1, Ring, ask, init, request
from virtiofs import Passthrough, serve
from virtiofs.testing import Guest

EXAMPLES = Path(__file__).parent.parent / "examples"


def run(name: str, *arguments: str | Path) -> str:
    done = subprocess.run(
        [sys.executable, "-W", "error", str(EXAMPLES / name), *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=50,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.py")), ids=lambda path: path.name)
def test_is_short_and_tested(path: Path) -> None:
    assert len(path.read_text().splitlines()) < 80
    assert f'"{path.name}"' in Path(__file__).read_text(), "no test runs it"


def test_try_without_vm() -> None:
    said = run("try_without_vm.py")
    assert "guest reads: hello, guest\n" in said
    assert "host reads: hello, host\n" in said
    assert "notes/from-guest\n" in said


def test_check_daemon(share: Path, tmp_path: Path) -> None:
    with serve(Passthrough(share), tmp_path / "s", tag="checked"):
        said = run("check_daemon.py", tmp_path / "s")
    assert said.startswith("tag checked, FUSE 7.46, requests up to 1024 KiB\nGETATTR takes ")
    assert sorted(os.listdir(share)) == ["hello", "sub"]


def test_embed(share: Path) -> None:
    said = run("embed.py", share)
    assert said.startswith("device 26 with tag share offers features 0x130000000\n")
    assert "request 2 was answered with error 0 and 80 bytes: FUSE 7.46\n" in said
    assert "the device is paused and goes on at [0, 1]\n" in said
    assert said.endswith("the device is closed\n")


def test_share(share: Path, tmp_path: Path) -> None:
    with subprocess.Popen(
        [sys.executable, "-W", "error", str(EXAMPLES / "share.py"), str(share), str(tmp_path / "s")],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            with Guest(tmp_path / "s", connect_timeout=20) as guest:
                assert guest.read_file("hello") == b"hello from the host\n"
                assert guest.client.lookup(1, "hello").attr_timeout == 5
                with pytest.raises(OSError, match="Read-only file system"):
                    guest.write_file("hello", b"")
            process.send_signal(signal.SIGINT)
            said, log = process.communicate(timeout=20)
        finally:
            process.kill()
    assert process.returncode == 0, log
    assert said.startswith("qemu-system-")
    assert "tag=shared" in said
    assert said.endswith(" requests served\n")
    assert "a VMM is connected" in log


@pytest.mark.parametrize("page", ["README.md", "docs/python.md"])
def test_pages(page: str, tmp_path: Path) -> None:
    """The Python of a page runs as it stands there."""
    text = (EXAMPLES.parent / page).read_text()
    programs = [part.partition("```")[0] for part in text.split("```python\n")[1:]]
    assert programs
    for number, program in enumerate(programs):
        path = tmp_path / f"{number}.py"
        path.write_text(program)
        done = subprocess.run(
            [sys.executable, "-W", "error", str(path)], cwd=tmp_path, capture_output=True, text=True, timeout=50
        )
        assert done.returncode == 0, done.stderr


def test_the_page_for_who_embeds(share: Path) -> None:
    """Its Python runs, in one process from top to bottom, with a VMM that only has the names."""
    text = (EXAMPLES.parent / "docs" / "embedding.md").read_text().replace("/srv/data", str(share))
    first, saving, keeping, window, table = [part.partition("```")[0] for part in text.split("```python\n")[1:]]
    memory, interrupts = os.memfd_create("memory"), os.eventfd(0)
    os.truncate(memory, 1 << 20)
    names: dict[str, Any] = {name: getattr(virtiofs, name) for name in virtiofs.__all__}
    names |= {
        "ram_fd": memory,
        "ram_size": 1 << 20,
        "irqfd": interrupts,
        "vm": Mock(),
        "slot": 1,
        "KVM_MEM_READONLY": 2,
    }
    names |= {"BASE": 0x1000, "BAR": 1 << 40, "TABLE": 1 << 41, "address": 0x1000, "size": 4, "data": bytes(4)}
    exec(first, names)
    assert names["data"] == b"virt"
    hiprio, ring = (Ring(names["memory"], 0x4000_0000 + at) for at in (0, 0x4000))
    names["device"].start(VERSION_1, [hiprio.queue(), ring.queue(call=interrupts)])
    ask(names["device"], ring, init())
    exec(saving, names)
    assert names["device"].state == "running"
    assert ask(names["device"], ring, request(GETATTR, node=1, body=bytes(16))) != b""
    assert ring.error() == 0
    names["device"].close()
    for program in keeping, window:
        exec(program, names)
    names["device"].close()
    with virtiofs.Device(Passthrough(share, version_table=virtiofs.VersionTable()), "data", names["memory"]) as device:
        exec(table, names | {"device": device})
    os.close(memory)
    os.close(interrupts)
