"""What cannot be served is said on one line, with what to do, and leaves nothing behind."""

import os
import shutil
import socket
import subprocess
from pathlib import Path

import pytest

from tests.daemon import COMMAND, virtiofs


def refused(tmp_path: Path, *arguments: str | Path, wrap: tuple[str, ...] = (), **options: object) -> str:
    """Runs `virtiofs serve`, checks that it ends as bad input should, and returns what it said."""
    before = sorted(tmp_path.rglob("*"))
    done = subprocess.run(  # type: ignore[call-overload]
        [*wrap, *COMMAND, "serve", *map(str, arguments)],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=20,
        cwd=tmp_path,
        **options,
    )
    assert done.returncode == 2, done.stderr
    assert done.stdout == ""
    assert done.stderr.endswith("\n")
    assert done.stderr.count("\n") == 1, f"more than one line: {done.stderr}"
    assert "Traceback" not in done.stderr
    assert sorted(tmp_path.rglob("*")) == before, "something was left behind"
    return str(done.stderr)


def without(*capabilities: str) -> tuple[str, ...]:
    """A command that runs another one without some capabilities, as the user who runs the tests."""
    if os.geteuid() != 0:
        return ()
    if shutil.which("setpriv") is None:
        pytest.skip("setpriv (util-linux) is missing")
    lost = ",".join(f"-{name}" for name in capabilities)
    return ("setpriv", f"--bounding-set={lost}", f"--inh-caps={lost}")


def test_missing_directory(tmp_path: Path) -> None:
    said = refused(tmp_path, tmp_path / "missing", "--socket", tmp_path / "s")
    assert f"{tmp_path}/missing: no such file or directory" in said
    assert "mkdir -p" in said


def test_unreadable_directory(tmp_path: Path) -> None:
    closed = tmp_path / "closed"
    closed.mkdir()
    if os.geteuid() == 0:
        os.chown(closed, 65534, 65534)
        closed.chmod(0o700)
    else:
        closed.chmod(0)
    said = refused(tmp_path, closed, "--socket", tmp_path / "s", wrap=without("dac_override", "dac_read_search"))
    assert f"{closed}: permission denied" in said
    assert "run as one who may" in said


def test_unreachable_directory(tmp_path: Path) -> None:
    closed = tmp_path / "closed"
    (closed / "inner").mkdir(parents=True)
    if os.geteuid() == 0:
        os.chown(closed, 65534, 65534)
    closed.chmod(0o700 if os.geteuid() == 0 else 0)
    try:
        said = subprocess.run(
            [*without("dac_override", "dac_read_search"), *COMMAND, "serve", str(closed / "inner"), "--socket", "s"],
            capture_output=True,
            text=True,
            cwd=tmp_path,
            check=False,
        )
    finally:
        closed.chmod(0o700)
    assert said.returncode == 2
    assert "permission denied" in said.stderr
    assert said.stderr.count("\n") == 1


def test_file_instead_of_a_directory(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.touch()
    said = refused(tmp_path, file, "--socket", tmp_path / "s")
    assert f"{file}: not a directory; only directories can be shared" in said


def test_no_directory(tmp_path: Path) -> None:
    assert "which directory is to be shared?" in refused(tmp_path, "--socket", tmp_path / "s")
    assert "has no name" in refused(tmp_path, "", "--socket", tmp_path / "s")
    assert "which one" in refused(tmp_path, tmp_path, "--shared-dir", tmp_path, "--socket", tmp_path / "s")


@pytest.mark.parametrize(
    ("tag", "wrong"),
    [
        ("", "1 to 36 bytes, this one has 0"),
        ("x" * 37, "1 to 36 bytes, this one has 37"),
        ("ä" * 19, "1 to 36 bytes, this one has 38"),
        ("two\nlines", "no newline"),
    ],
)
def test_tag(tmp_path: Path, tag: str, wrong: str) -> None:
    said = refused(tmp_path, tmp_path, "--socket", tmp_path / "s", "--tag", tag)
    assert wrong in said
    assert "set another tag" in said


def test_socket_path_too_long(tmp_path: Path) -> None:
    said = refused(tmp_path, tmp_path, "--socket", "/tmp/" + "x" * 103)
    assert "1 to 107 bytes, this one has 108" in said
    assert "take a shorter one" in said


def test_no_socket(tmp_path: Path) -> None:
    assert "give --socket PATH" in refused(tmp_path, tmp_path)
    assert "both --socket and --fd" in refused(tmp_path, tmp_path, "--socket", "s", "--fd", "3")


def test_socket_in_use(tmp_path: Path) -> None:
    path = tmp_path / "s"
    with socket.socket(socket.AF_UNIX) as live:
        live.bind(str(path))
        live.listen(1)
        said = refused(tmp_path, tmp_path, "--socket", path)
        assert f"{path}: another program listens there" in said
        live.setblocking(False)
        with pytest.raises(BlockingIOError):
            live.accept()  # nobody connected to it: that would end a server of one guest
    assert path.is_socket()


def test_socket_path_is_something_else(tmp_path: Path) -> None:
    path = tmp_path / "precious"
    path.write_text("data")
    assert "not a socket" in refused(tmp_path, tmp_path, "--socket", path)
    assert path.read_text() == "data"
    assert "not a socket" in refused(tmp_path, tmp_path, "--socket", tmp_path)


def test_socket_without_a_directory(tmp_path: Path) -> None:
    said = refused(tmp_path, tmp_path, "--socket", tmp_path / "missing" / "s")
    assert f"mkdir -p {tmp_path}/missing" in said


def test_socket_in_a_directory_of_somebody_else(tmp_path: Path) -> None:
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    if os.geteuid() == 0:
        os.chown(foreign, 65534, 65534)
        foreign.chmod(0o755)
    else:
        foreign.chmod(0o555)
    said = refused(tmp_path, tmp_path, "--socket", foreign / "s", wrap=without("dac_override", "dac_read_search"))
    assert f"{foreign}/s: permission denied" in said
    assert "that you may write to" in said


def test_socket_group(tmp_path: Path) -> None:
    said = refused(tmp_path, tmp_path, "--socket", tmp_path / "s", "--socket-group", "no-such-group")
    assert "there is no group 'no-such-group'" in said


def test_socket_group_that_may_not_be_given(tmp_path: Path) -> None:
    said = refused(tmp_path, tmp_path, "--socket", tmp_path / "s", "--socket-group", "54321", wrap=without("chown"))
    assert "only root and members of group 54321" in said


def test_owners_that_may_not_be_changed(tmp_path: Path) -> None:
    said = refused(
        tmp_path, tmp_path, "--socket", tmp_path / "s", "--ownership", "caller", wrap=without("setuid", "setgid")
    )
    assert "may not create files for others" in said
    assert "run as root, or take ownership=auto" in said


def test_cache_mode(tmp_path: Path) -> None:
    said = refused(tmp_path, tmp_path, "--socket", tmp_path / "s", "--cache", "sometimes")
    assert "unknown cache mode 'sometimes': choose one of none, never, metadata, auto, adaptive, always" in said


@pytest.mark.parametrize(
    ("arguments", "wrong"),
    [
        (["--attr-timeout", "-1"], "attr_timeout is in seconds, from 0 on, not -1.0"),
        (["--entry-timeout", "nan"], "entry_timeout is in seconds, from 0 on, not nan"),
        (["--negative-timeout", "soon"], "invalid float value: 'soon'"),
        (["--request-queues", "0"], "request queues are 1 to"),
        (["--request-queues", "many"], "invalid int value: 'many'"),
        (["--socket-mode", "rw"], "not an octal number: 'rw'"),
        (["--socket-mode", "7777"], "permission bits are 0 to 0777"),
        (["--log-level", "loud"], "unknown log level 'loud'"),
        (["--posix-acl=maybe"], "--posix-acl: unknown value 'maybe'"),
        (["--ownership", "anyone"], "invalid choice: 'anyone'"),
        (["--no-such-option"], "unrecognized arguments: --no-such-option"),
        (["--sandbox", "box"], "--sandbox: unknown value 'box': choose one of auto, namespace, chroot, none"),
        (
            ["--inode-file-handles", "mandatory"],
            "invalid choice: 'mandatory' (choose from 'never', 'prefer', 'fallback')",
        ),
        (["--xattrmap", ":map::user.virtiofs."], "xattrmap: rule 1 at character 1, ':map::user.virtiofs.'"),
        (["--translate-uid", "all:0:1000:1"], "'all:0:1000:1': unknown kind 'all'"),
        (["--uid-map", ":0:100000:65536:"], "--uid-map and --gid-map go together"),
        (["--security-label=maybe"], "--security-label: unknown value 'maybe': choose one of never, auto, always"),
        (["-o", "no_such_option"], "unknown option -o 'no_such_option'"),
        (["--rlimit-nofile", "99999999999"], "the limit of open files cannot be raised"),
    ],
)
def test_options(tmp_path: Path, arguments: list[str], wrong: str) -> None:
    assert wrong in refused(tmp_path, tmp_path, "--socket", tmp_path / "s", *arguments)


def test_descriptors(tmp_path: Path) -> None:
    assert "descriptor 77 is no socket" in refused(tmp_path, tmp_path, "--fd", "77")
    with open(os.devnull, "rb") as file:
        said = refused(tmp_path, tmp_path, "--fd", str(file.fileno()), pass_fds=(file.fileno(),))
        assert f"descriptor {file.fileno()} is no socket" in said
    with socket.socket(socket.AF_INET) as inet:
        said = refused(tmp_path, tmp_path, "--fd", str(inet.fileno()), pass_fds=(inet.fileno(),))
        assert "no Unix stream socket" in said
    with socket.socket(socket.AF_UNIX) as idle:
        said = refused(tmp_path, tmp_path, "--fd", str(idle.fileno()), pass_fds=(idle.fileno(),))
        assert "neither listens nor is connected" in said


def test_several_sockets_of_systemd(tmp_path: Path) -> None:
    script = 'LISTEN_PID=$$ LISTEN_FDS=2 exec "$@"'
    said = refused(tmp_path, tmp_path, wrap=("sh", "-c", script, "sh"))
    assert "systemd handed 2 sockets down" in said


def test_no_command() -> None:
    done = virtiofs()
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize("name", ["a\x1b[31mred", "two\nlines", "bad\udcff"])
def test_names_cannot_forge_lines(tmp_path: Path, name: str) -> None:
    said = refused(tmp_path, tmp_path / name, "--socket", tmp_path / "s")
    assert said.strip().isprintable()
