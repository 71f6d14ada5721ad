"""`virtiofs serve` as people and scripts start it."""

import json
import os
import re
import shlex
import socket
import stat
import subprocess
from pathlib import Path

import pytest

from tests.daemon import COMMAND, Start, virtiofs
from virtiofs import ALWAYS, METADATA, NONE, ConfigError, Share, cli, compat, options
from virtiofs.testing import Guest
from virtiofs.xattrmap import parse


def config(*arguments: str) -> Share:
    """What `virtiofs serve` makes of its arguments."""
    parsed = cli._parser().parse_args(["serve", *compat.expand(list(arguments))])
    compat.check(parsed)
    (share,) = options.config(parsed).shares
    return share


def test_serves(start: Start, share: Path, tmp_path: Path) -> None:
    daemon = start(share, "--socket", tmp_path / "s", "--tag", "mine")
    with Guest(tmp_path / "s") as guest:
        assert guest.client.session["tag"] == "mine"
        assert guest.client.session["peer"] == daemon.pid
        assert guest.read_file("hello") == b"hello from the host\n"
        guest.write_file("new", b"new")
    assert (share / "new").read_bytes() == b"new"
    assert daemon.end() == 0
    assert not (tmp_path / "s").exists()


def test_virtiofsd_spelling(share: Path, tmp_path: Path) -> None:
    """A line of a script written for virtiofsd works unchanged, without the word serve."""
    process = subprocess.Popen(
        [
            *COMMAND,
            *("--shared-dir", str(share), f"--socket-path={tmp_path}/s", "--tag", "old", "--cache=never"),
            *("--xattr", "--allow-direct-io", "--log-level", "debug", "--announce-submounts", "--killpriv-v2"),
            *("--sandbox", "none", "--seccomp=none", "--inode-file-handles=never", "--thread-pool-size=4", "-f"),
            *("--rlimit-nofile=0", "--posix-acl"),
        ],
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        with Guest(tmp_path / "s", connect_timeout=20) as guest:
            assert guest.client.session["tag"] == "old"
            guest.setxattr("hello", "user.x", b"1")
            assert guest.client.lookup(1, "hello").entry_timeout == 0
    finally:
        process.terminate()
        log = process.communicate(timeout=20)[1]
    assert process.returncode == 0, log
    assert " WARN " not in log


def test_options_of_the_c_virtiofsd() -> None:
    given = config(
        "-o", r"source=/a\,b,cache=none,xattr,no_posix_lock,no_flock,timeout=7,writeback", "--socket-path=/s"
    )
    assert given.directory == "/a,b"
    assert given.cache.name == "none"
    assert (given.cache.attr_timeout, given.cache.negative_timeout) == (7, 7)
    assert given.xattr
    assert given.writeback
    assert not given.posix_lock
    assert not given.flock
    assert config("-osource=/a", "--fd=5").fd == 5


def test_options() -> None:
    given = config("/dir", "--socket", "/s")
    assert given == Share(directory="/dir", socket="/s")
    assert config("/dir", "--socket", "/s", "--cache", "never").cache is NONE
    assert config("/dir", "--socket", "/s", "--cache", "always").cache is ALWAYS
    assert config("/dir", "--socket", "/s", "--cache=metadata", "--attr-timeout=2").cache == METADATA.replace(
        attr_timeout=2
    )
    given = config(
        *("--shared-dir", "/dir", "--socket", "/s", "--readonly", "--posix-acl", "--no-announce-submounts"),
        *("--xattrmap", ":map::user.v.:", "--security-label"),
        *("--no-readdirplus", "--no-killpriv-v2", "--request-queues", "7", "--once", "--socket-mode=660"),
        *("--socket-group=kvm", "--thread-pool-size=3", "--allow-direct-io", "--writeback", "--idmap"),
    )
    assert given == Share(
        directory="/dir",
        socket="/s",
        read_only=True,
        posix_acl=True,
        xattrmap=parse(":map::user.v.:"),
        security_label=True,
        announce_submounts=False,
        readdirplus=False,
        killpriv_v2=False,
        request_queues=7,
        once=True,
        socket_mode=0o660,
        socket_group="kvm",
        slow_threads=3,
        allow_direct_io=True,
        writeback=True,
        idmap=True,
    )


def test_says_how_to_use_it(start: Start, share: Path, tmp_path: Path) -> None:
    path = tmp_path / "with,comma"
    log = start(share, "--socket", path, "--tag", "a b", "--request-queues", "2").wait_for("in the guest")
    line = next(line for line in log.splitlines() if "start a guest with: " in line)
    arguments = shlex.split(line.partition("start a guest with: ")[2])
    assert arguments[0].startswith("qemu-system-")
    assert f"socket,id=fs0,path={tmp_path}/with,,comma" in arguments
    assert "vhost-user-fs-pci,chardev=fs0,tag=a b,queue-size=1024,num-request-queues=2" in arguments
    assert any(argument.startswith("memory-backend-memfd,") and "share=on" in argument for argument in arguments)


@pytest.mark.parametrize("mode", [0o600, 0o660, 0o666])
def test_socket_mode_and_group(start: Start, share: Path, tmp_path: Path, mode: int) -> None:
    group = os.getgroups()[-1] if os.getgroups() else os.getegid()
    start(share, "--socket", tmp_path / "s", "--socket-mode", f"{mode:o}", "--socket-group", str(group))
    found = (tmp_path / "s").stat()
    assert stat.S_IMODE(found.st_mode) == mode
    assert found.st_gid == group


def test_stale_socket_is_replaced(start: Start, share: Path, tmp_path: Path) -> None:
    first = start(share, "--socket", tmp_path / "s")
    first.kill()
    assert (tmp_path / "s").is_socket()
    second = start(share, "--socket", tmp_path / "s")
    with Guest(tmp_path / "s") as guest:
        assert guest.client.session["peer"] == second.pid


def test_live_server_keeps_its_socket(start: Start, share: Path, tmp_path: Path) -> None:
    first = start(share, "--socket", tmp_path / "s")
    with Guest(tmp_path / "s") as guest:
        second = start(share, "--socket", tmp_path / "s", ready=False)
        assert second.ends() == 2
        assert "another program listens there" in second.log()
        assert guest.read_file("hello")
    with Guest(tmp_path / "s") as guest:
        assert guest.client.session["peer"] == first.pid


def test_inherited_listening_socket(start: Start, share: Path, tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "s"))
        listener.listen(1)
        daemon = start(share, "--fd", str(listener.fileno()), pass_fds=[listener.fileno()])
    for _ in range(2):
        with Guest(tmp_path / "s") as guest:
            assert guest.read_file("hello")
    assert daemon.end() == 0
    assert (tmp_path / "s").is_socket(), "the path belongs to whoever made it"


def test_socket_from_systemd(start: Start, share: Path, tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "s"))
        listener.listen(1)
        # As systemd does it: the socket is descriptor 3, and LISTEN_PID the daemon's own process.
        script = 'exec 3<&"$0" && LISTEN_PID=$$ LISTEN_FDS=1 LISTEN_FDNAMES=virtiofs exec "$@"'
        wrap = ("bash", "-c", script, str(listener.fileno()))
        start(share, wrap=wrap, pass_fds=[listener.fileno()])
        with Guest(tmp_path / "s") as guest:
            assert guest.read_file("hello")


def test_systemd_variables_of_another_process_do_not_count(start: Start, share: Path) -> None:
    daemon = start(share, env={"LISTEN_PID": str(os.getpid()), "LISTEN_FDS": "1"}, ready=False)
    assert daemon.ends() == 2
    assert "no socket to serve at" in daemon.log()


def test_connected_socket_is_served_until_it_closes(start: Start, share: Path) -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX)
    with ours, theirs:
        daemon = start(share, "--fd", str(theirs.fileno()), pass_fds=[theirs.fileno()])
        theirs.close()
        # VHOST_USER_GET_FEATURES, version 1, no payload; the answer has 8 bytes.
        ours.sendall((1).to_bytes(4, "little") + (1).to_bytes(4, "little") + bytes(4))
        answer = ours.recv(20)
        assert len(answer) == 20
        assert int.from_bytes(answer[12:], "little") >> 32 & 1, "VIRTIO_F_VERSION_1 is not offered"
        ours.close()
        assert daemon.ends() == 0


def test_log_levels(start: Start, share: Path, tmp_path: Path) -> None:
    quiet = start(share, "--socket", tmp_path / "s", "--log-level", "off", ready=False)
    with Guest(tmp_path / "s", connect_timeout=20) as guest:
        guest.read_file("hello")
    assert quiet.end() == 0
    assert quiet.log() == ""
    loud = start(share, "--socket", tmp_path / "s", "-d")
    with Guest(tmp_path / "s") as guest:
        guest.read_file("hello")
    assert loud.end() == 0
    line = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z (ERROR|WARN |INFO |DEBUG) [\w:]+: .+")
    assert all(line.fullmatch(text) for text in loud.log().splitlines()), loud.log()
    assert " DEBUG " in loud.log()


def test_no_log_per_request(start: Start, share: Path, tmp_path: Path) -> None:
    daemon = start(share, "--socket", tmp_path / "s", "-d")
    with Guest(tmp_path / "s") as guest:
        guest.read_file("hello")
        before = len(daemon.log().splitlines())
        for _ in range(100):
            guest.client.getattr(1)
            guest.read_file("hello")
        # What was on its way when the guest began may still come.
        assert len(daemon.log().splitlines()) < before + 20


def test_print_capabilities() -> None:
    done = virtiofs("--print-capabilities")
    assert done.returncode == 0
    assert json.loads(done.stdout) == {"type": "fs", "features": ["separate-options"]}


def test_version_and_help() -> None:
    assert re.fullmatch(r"virtiofs \d+\.\d+\.\d+\n", virtiofs("--version").stdout)
    said = virtiofs("serve", "--help").stdout
    for option in ("--socket", "--shared-dir", "--cache", "--writeback", "--readonly", "--once", "--fd", "--tag"):
        assert option in said
    assert virtiofs("--help").returncode == 0


def test_directory_is_the_one_that_was_named(start: Start, share: Path, tmp_path: Path) -> None:
    start(share, "--socket", tmp_path / "s")
    share.rename(tmp_path / "elsewhere")
    share.mkdir()
    with Guest(tmp_path / "s") as guest:
        assert guest.read_file("hello") == b"hello from the host\n"


def test_expand_refuses_what_it_does_not_know() -> None:
    with pytest.raises(ConfigError, match="unknown option -o 'nonsense=1'"):
        compat.expand(["-o", "nonsense=1"])
    assert compat.expand(["--", "-o", "x"]) == ["--", "-o", "x"]
