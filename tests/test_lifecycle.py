"""Guests come and go, signals come, and nothing piles up."""

import errno
import gc
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.daemon import Start
from tests.errnos import fails
from virtiofs import ConfigError, Passthrough, Server, serve
from virtiofs.testing import Guest


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


def threads() -> int:
    return len(os.listdir("/proc/self/task"))


def settles(count: Callable[[], int], expected: int, seconds: float = 10) -> int:
    """Waits until `count()` has come down to `expected`, and returns what it is then."""
    deadline = time.monotonic() + seconds
    while (now := count()) > expected and time.monotonic() < deadline:
        time.sleep(0.02)
    return now


def test_one_guest_after_the_other(start: Start, share: Path, tmp_path: Path) -> None:
    """50 guests, some of which leave without a word; descriptors, threads and memory stay where they were."""
    daemon = start(share, "--socket", tmp_path / "s", "--request-queues", "2")

    def visit(politely: bool) -> None:
        guest = Guest(tmp_path / "s", request_queues=2)
        guest.read_file("hello")
        handle = guest.open("hello")
        guest.walk()
        if politely:
            handle.close()
            guest.close()
        else:
            del handle, guest
            gc.collect()

    for _ in range(5):
        visit(politely=True)
    idle = settles(daemon.threads, 2)
    opened, resident = daemon.descriptors(), daemon.resident()
    for turn in range(50):
        visit(politely=turn % 2 == 0)
    assert settles(daemon.threads, idle) <= idle
    assert settles(daemon.descriptors, opened) <= opened
    assert daemon.resident() - resident < 4 << 20
    assert daemon.end() == 0


def test_guest_that_vanishes(start: Start, share: Path, tmp_path: Path) -> None:
    """A guest killed in the middle of its writes makes room for the next, and what it synced is there."""
    start(share, "--socket", tmp_path / "s")
    program = """
import os, sys
from virtiofs.testing import Guest
guest = Guest(sys.argv[1])
with guest.open("synced", os.O_WRONLY | os.O_CREAT) as file:
    file.write_at(0, b"safe" * 1000)
    file.sync()
print("synced", flush=True)
while True:
    guest.write_file("torn", b"x" * (1 << 20))
"""
    with subprocess.Popen(
        [sys.executable, "-c", program, str(tmp_path / "s")], stdout=subprocess.PIPE, text=True
    ) as victim:
        assert victim.stdout is not None
        assert victim.stdout.readline() == "synced\n"
        time.sleep(0.05)
        victim.kill()
    begin = time.monotonic()
    with Guest(tmp_path / "s", timeout=10) as guest:
        assert guest.read_file("synced") == b"safe" * 1000
        assert guest.read_file("hello")
    assert time.monotonic() - begin < 10


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
@pytest.mark.parametrize("mounted", [False, True])
def test_signals_end_it_cleanly(
    start: Start, share: Path, tmp_path: Path, number: signal.Signals, mounted: bool
) -> None:
    daemon = start(share, "--socket", tmp_path / "s")
    guest = Guest(tmp_path / "s") if mounted else None
    assert daemon.end(number) == 0
    assert f"ending signal={number.name}" in daemon.log()
    assert not (tmp_path / "s").exists()
    if guest is not None:
        with pytest.raises(ConnectionResetError):
            guest.client.getattr(1)


def test_signal_right_after_the_socket_was_made(start: Start, share: Path, tmp_path: Path) -> None:
    for _ in range(5):
        daemon = start(share, "--socket", tmp_path / "s", ready=False)
        deadline = time.monotonic() + 20
        while not (tmp_path / "s").exists():
            assert daemon.process.poll() is None, daemon.log()
            assert time.monotonic() < deadline
        assert daemon.end() == 0
        assert not (tmp_path / "s").exists()


def test_signal_while_half_a_message_is_there(start: Start, share: Path, tmp_path: Path) -> None:
    daemon = start(share, "--socket", tmp_path / "s")
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(str(tmp_path / "s"))
        client.sendall(b"\x01\0\0")
        assert daemon.end() == 0


def test_once(start: Start, share: Path, tmp_path: Path) -> None:
    daemon = start(share, "--socket", tmp_path / "s", "--once")
    with Guest(tmp_path / "s") as guest:
        guest.read_file("hello")
    assert daemon.ends() == 0
    assert not (tmp_path / "s").exists()


def test_nonsense_at_the_socket(start: Start, share: Path, tmp_path: Path) -> None:
    daemon = start(share, "--socket", tmp_path / "s")
    for nonsense in (b"", b"GET / HTTP/1.1\r\n\r\n", b"\xff" * 5000, bytes(12)):
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(str(tmp_path / "s"))
            client.sendall(nonsense)
            client.shutdown(socket.SHUT_WR)
            client.settimeout(20)
            try:
                while client.recv(4096):
                    pass
            except ConnectionResetError:
                pass
    with Guest(tmp_path / "s") as guest:
        assert guest.read_file("hello")
    assert daemon.end() == 0


def test_memory_of_an_idle_daemon(start: Start, share: Path, tmp_path: Path) -> None:
    daemon = start(share, "--socket", tmp_path / "s")
    with Guest(tmp_path / "s") as guest:
        guest.read_file("hello")
        assert daemon.resident() < 40 << 20


def test_server_object(share: Path, tmp_path: Path) -> None:
    before = descriptors(), threads()
    server = Server(Passthrough(share), socket=tmp_path / "s", tag="obj")
    assert not (tmp_path / "s").exists()
    assert server.wait(0)
    with server:
        assert (tmp_path / "s").is_socket()
        assert not server.wait(0.01)
        with pytest.raises(RuntimeError, match="started once"):
            server.start()
        with Guest(server) as guest:
            assert guest.read_file("hello")
            assert server.stats().connected
    assert not (tmp_path / "s").exists()
    assert server.wait(0)
    server.close()
    assert server.stats().connections == 1
    del server, guest
    gc.collect()
    assert settles(descriptors, before[0]) <= before[0]
    assert settles(threads, before[1]) <= before[1]


def test_fifty_servers(share: Path, tmp_path: Path) -> None:
    with serve(Passthrough(share), tmp_path / "s"):
        pass
    before = descriptors(), threads()
    for _ in range(50):
        with serve(Passthrough(share), tmp_path / "s") as server, Guest(server) as guest:
            guest.read_file("hello")
    del server, guest
    gc.collect()
    assert settles(descriptors, before[0]) <= before[0]
    assert settles(threads, before[1]) <= before[1]


def test_several_servers_in_one_process(share: Path, tmp_path: Path) -> None:
    fs = Passthrough(share)
    with (
        serve(fs, tmp_path / "a", tag="a") as a,
        serve(fs, tmp_path / "b", tag="b") as b,
        Guest(a) as at_a,
        Guest(b) as at_b,
    ):
        at_a.write_file("from-a", b"1")
        assert at_b.read_file("from-a") == b"1"
        assert at_b.client.session["tag"] == "b"


def test_close_from_another_thread_ends_wait(share: Path, tmp_path: Path) -> None:
    with serve(Passthrough(share), tmp_path / "s") as server:
        closer = threading.Timer(0.1, server.close)
        closer.start()
        assert server.wait(20)
        closer.join()


def test_failed_start_leaves_nothing(share: Path, tmp_path: Path) -> None:
    fs = Passthrough(share)
    (share / "hello").unlink()
    (share / "sub" / "deep").unlink()
    (share / "sub").rmdir()
    share.rmdir()
    before = descriptors()
    server = Server(fs, socket=tmp_path / "s")
    with pytest.raises(FileNotFoundError):
        server.start()
    assert not (tmp_path / "s").exists()
    assert descriptors() == before


def test_socket_of_somebody_else_is_not_removed(share: Path, tmp_path: Path) -> None:
    with serve(Passthrough(share), tmp_path / "s"):
        (tmp_path / "s").unlink()
        (tmp_path / "s").write_text("not ours")
    assert (tmp_path / "s").read_text() == "not ours"


@pytest.mark.parametrize("ending", ["", "sys.exit(3)", "raise RuntimeError", "os.kill(os.getpid(), signal.SIGINT)"])
def test_interpreter_exit_does_not_hang(share: Path, tmp_path: Path, ending: str) -> None:
    """A program that forgets to close its servers ends all the same, and takes its sockets with it."""
    program = f"""
import logging, os, signal, sys
logging.basicConfig(level=logging.DEBUG)
from virtiofs import Passthrough, serve
from virtiofs.testing import Guest
server = serve(Passthrough({str(share)!r}), {str(tmp_path / "s")!r})
guest = Guest(server)
guest.read_file("hello")
{ending}
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=30, check=False)
    expected = {"": 0, "sys.exit(3)": 3, "raise RuntimeError": 1}.get(ending, -signal.SIGINT)
    assert done.returncode == expected, done.stderr
    assert "a VMM is connected" in done.stderr
    assert not (tmp_path / "s").exists()


def test_a_fork_leaves_the_server_alone(share: Path, tmp_path: Path) -> None:
    program = f"""
import os, sys
from virtiofs import Passthrough, serve
from virtiofs.testing import Guest
server = serve(Passthrough({str(share)!r}), {str(tmp_path / "s")!r})
child = os.fork()
if child == 0:
    server.close()
    try:
        server.stats()
    except RuntimeError:
        sys.exit(7)
    sys.exit(8)
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
with Guest(server) as guest:
    guest.read_file("hello")
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=30, check=False)
    assert done.returncode == 0, done.stderr
    assert not (tmp_path / "s").exists()


def test_guest_without_a_server(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=str(tmp_path / "missing")) as caught:
        Guest(tmp_path / "missing")
    assert caught.value.errno == errno.ENOENT
    with socket.socket(socket.AF_UNIX) as silent:
        silent.bind(str(tmp_path / "silent"))
        silent.listen(1)
        with pytest.raises(TimeoutError):
            Guest(tmp_path / "silent", timeout=0.1)


def test_server_that_goes_away_is_said(share: Path, tmp_path: Path) -> None:
    with serve(Passthrough(share), tmp_path / "s") as server:
        guest = Guest(tmp_path / "s")
        server.close()
        with pytest.raises(ConnectionResetError):
            guest.read_file("hello")
    with pytest.raises(FileNotFoundError):
        Guest(tmp_path / "s")


def test_directory_removed_while_it_is_served(share: Path) -> None:
    with Guest(Passthrough(share)) as guest:
        guest.remove_tree("sub")
        guest.unlink("hello")
        share.rmdir()
        with fails(errno.ENOENT):
            guest.write_file("new", b"")
        assert guest.client.getattr(1).is_dir


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"reconnect_timeout": -1.0}, "0 to 86400 seconds, not -1.0"),
        ({"reconnect_timeout": float("nan")}, "0 to 86400 seconds, not nan"),
        ({"migration_on_error": "perhaps"}, "choose one of abort, guest-error"),
    ],
)
def test_what_becomes_of_a_guest_that_went_away_is_one_of_few_things(share: Path, wrong: Any, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        Server(Passthrough(share), socket="s", **wrong)
    server = Server(Passthrough(share), socket="s", reconnect_timeout=0, migration_on_error="guest-error")
    assert (server.reconnect_timeout, server.migration_on_error) == (0, "guest-error")
