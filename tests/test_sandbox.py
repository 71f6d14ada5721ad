"""The process that serves has given up what it does not need, guests do not notice, and nothing of it is left behind."""

import errno
import os
import select
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from tests.daemon import COMMAND, Daemon, Start, virtiofs
from virtiofs import ConfigError, _core, sandbox, syscalls
from virtiofs.sandbox import Sandbox
from virtiofs.testing import Guest

root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
MODES = ("namespace", "chroot", "none")
NOBODY = ("setpriv", "--reuid=65534", "--regid=65534", "--clear-groups")


def status(pid: int) -> dict[str, str]:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return {key: value.strip() for key, _, value in (line.partition(":") for line in lines)}


def capabilities(pid: int) -> set[str]:
    effective = int(status(pid)["CapEff"], 16)
    return {name for bit, name in enumerate(_core.CAPABILITIES) if effective >> bit & 1}


def mount_points(pid: int) -> set[str]:
    return {line.split()[4] for line in Path(f"/proc/{pid}/mountinfo").read_text().splitlines()}


def namespace(pid: int, kind: str) -> str:
    return os.readlink(f"/proc/{pid}/ns/{kind}")


def uses(guest: Guest) -> None:
    """What most guests do, each of which makes system calls of its own."""
    assert guest.read_file("hello") == b"hello from the host\n"
    guest.write_file("new", b"x" * 300_000)
    guest.mkdir("d", 0o750)
    guest.rename("new", "d/n")
    guest.chmod("d/n", 0o640)
    guest.symlink("../outside", "link")
    assert guest.readlink("link") == "../outside"
    assert guest.stat("d/n").size == 300_000
    assert sorted(guest.listdir()) == ["d", "hello", "link", "sub"]
    guest.unlink("d/n")
    guest.rmdir("d")
    guest.unlink("link")


@root
def test_the_default_is_the_strongest(start: Start, share: Path, tmp_path: Path) -> None:
    daemon = start(share, "--socket", tmp_path / "s")
    assert " WARN " not in daemon.log()
    assert daemon.serving != daemon.pid
    for kind in ("mnt", "pid", "net", "ipc", "uts"):
        assert namespace(daemon.serving, kind) != namespace(daemon.pid, kind), kind
    assert mount_points(daemon.serving) == {"/", "/proc", str(share)}
    assert capabilities(daemon.serving) == set(sandbox.CAPABILITIES)
    inside = status(daemon.serving)
    assert inside["CapBnd"] == inside["CapPrm"] == inside["CapEff"]
    assert (inside["NoNewPrivs"], inside["Seccomp"]) == ("1", "2")
    with Guest(tmp_path / "s") as guest:
        uses(guest)
        # Threads that came later are no freer.
        for task in Path(f"/proc/{daemon.serving}/task").iterdir():
            assert "Seccomp:\t2" in (task / "status").read_text()


@root
@pytest.mark.parametrize("mode", MODES)
def test_guests_do_not_notice(start: Start, share: Path, tmp_path: Path, mode: str) -> None:
    daemon = start(share, "--socket", tmp_path / "s", "--sandbox", mode, "--seccomp=kill", "--xattr")
    for _ in range(2):
        with Guest(tmp_path / "s") as guest:
            uses(guest)
    assert daemon.end() == 0
    assert not (tmp_path / "s").exists()


@root
def test_none_is_none(start: Start, share: Path, tmp_path: Path) -> None:
    daemon = start(share, "--socket", tmp_path / "s", "--sandbox=none")
    assert daemon.serving == daemon.pid
    assert status(daemon.pid)["Seccomp"] == status(os.getpid())["Seccomp"]
    assert capabilities(daemon.pid) == capabilities(os.getpid())


@root
def test_a_read_only_share_is_that_for_the_kernel_too(start: Start, share: Path, tmp_path: Path) -> None:
    start("--sandbox=auto", share, "--socket", tmp_path / "s", "--readonly")
    with Guest(tmp_path / "s") as guest:
        assert guest.read_file("hello") == b"hello from the host\n"
        with pytest.raises(OSError) as caught:
            guest.write_file("new", b"")
        assert caught.value.errno == errno.EROFS


@root
def test_mounts_below_the_share_are_served(start: Start, share: Path, tmp_path: Path) -> None:
    subprocess.run(["mount", "-t", "tmpfs", "none", share / "sub"], check=True)
    try:
        (share / "sub" / "mounted").write_text("m")
        daemon = start("--sandbox=auto", share, "--socket", tmp_path / "s")
        with Guest(tmp_path / "s") as guest:
            assert guest.read_file("sub/mounted") == b"m"
        assert daemon.end() == 0
    finally:
        subprocess.run(["umount", share / "sub"], check=True)
    assert not any(str(tmp_path) in line for line in Path("/proc/mounts").read_text().splitlines())


@root
def test_several_shares_and_one_within_another(start: Start, share: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    (other / "f").write_text("o")
    config = tmp_path / "v.toml"
    tables = ((share, "a"), (share / "sub", "b"), (other, "c"))
    config.write_text(
        "".join(f'[[share]]\ndirectory = "{path}"\nsocket = "{tmp_path / name}"\n' for path, name in tables)
    )
    daemon = start("--sandbox=auto", "--config", config)
    daemon.wait_for(f"socket={tmp_path / 'c'}")
    assert mount_points(daemon.serving) == {"/", "/proc", str(share), str(other)}
    for name, there in (("a", "hello"), ("b", "deep"), ("c", "f")):
        with Guest(tmp_path / name) as guest:
            assert there in guest.listdir()
    assert daemon.end() == 0
    refused = virtiofs("serve", "--config", config, "--sandbox=chroot")
    assert refused.returncode == 2
    assert refused.stderr.count("\n") == 1
    assert "several directories" in refused.stderr


@root
def test_relative_paths_and_symlinks_lead_to_the_share(start: Start, share: Path, tmp_path: Path) -> None:
    (tmp_path / "way").symlink_to(share)
    start("--sandbox=auto", "way/../share", "--socket", "s")  # started in tmp_path
    with Guest(tmp_path / "s") as guest:
        uses(guest)


@root
def test_an_inherited_socket(start: Start, share: Path, tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(tmp_path / "s"))
        listening.listen(1)
        daemon = start(
            "--sandbox=auto", share, "--fd", str(listening.fileno()), "--once", pass_fds=[listening.fileno()]
        )
    with Guest(tmp_path / "s") as guest:
        uses(guest)
    assert daemon.ends() == 0


@root
def test_the_server_does_not_outlive_the_process_outside(start: Start, share: Path, tmp_path: Path) -> None:
    daemon = start("--sandbox=auto", share, "--socket", tmp_path / "s")
    guest = Guest(tmp_path / "s")
    inside = os.pidfd_open(daemon.serving)
    daemon.kill()
    assert select.select([inside], [], [], 20)[0] == [inside]
    os.close(inside)
    with pytest.raises(ConnectionError):
        guest.close()


@root
def test_the_process_outside_ends_as_the_server_does(start: Start, share: Path, tmp_path: Path) -> None:
    daemon = start("--sandbox=auto", share, "--socket", tmp_path / "s")
    os.kill(daemon.serving, signal.SIGKILL)
    assert daemon.ends() == 128 + signal.SIGKILL
    assert "the server was ended (SIGKILL)" in daemon.log()
    assert not (tmp_path / "s").exists()


@root
def test_without_root_by_a_user_namespace(start: Start, share: Path, tmp_path: Path) -> None:
    reachable(share)
    daemon = start("--sandbox=auto", share, "--socket", tmp_path / "s", wrap=NOBODY)
    assert " WARN " not in daemon.log()
    assert Path(f"/proc/{daemon.serving}/uid_map").read_text().split() == ["65534", "65534", "1"]
    assert mount_points(daemon.serving) == {"/", "/proc", str(share)}
    assert capabilities(daemon.serving) == set()
    with Guest(tmp_path / "s") as guest:
        uses(guest)
        guest.write_file("mine", b"")
    assert (share / "mine").stat().st_uid == 65534
    assert daemon.end() == 0
    assert not (tmp_path / "s").exists()


@root
def test_where_no_namespace_can_be_had(start: Start, share: Path, tmp_path: Path) -> None:
    reachable(share)
    closed = (sys.executable, "-c", WITHOUT_NAMESPACES, *NOBODY)
    daemon = start("--sandbox=auto", share, "--socket", tmp_path / "s", wrap=closed)
    # The process outside says it, at its own time.
    log = daemon.wait_for("confined by Landlock alone")
    (warning,) = [line for line in log.splitlines() if " WARN " in line]
    assert "namespace: Operation not permitted" in warning
    with Guest(tmp_path / "s") as guest:
        uses(guest)
    assert daemon.end() == 0
    refused = subprocess.run(
        [*closed, *COMMAND, "serve", share, "--socket", tmp_path / "t", "--sandbox=namespace"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert refused.returncode == 2
    assert refused.stderr.count("\n") == 1
    assert "--sandbox=namespace is not possible here: operation not permitted" in refused.stderr.lower()
    assert not (tmp_path / "t").exists()


WITHOUT_NAMESPACES = """
import errno, os, sys
from virtiofs import _core
_core.no_new_privileges()
_core.filter_calls([([("unshare", [(0, flag, flag)]) for flag in (0x20000, 0x10000000)], errno.EPERM, "allow")])
os.execvp(sys.argv[1], sys.argv[1:])
"""


def reachable(share: Path) -> None:
    """Lets everybody come to `share` and change it, and make a socket beside it."""
    for path in (share, share / "sub", share.parent):
        path.chmod(0o777)
    for path in share.parents:
        if path.owner() == "root" and path != Path("/") and not path.stat().st_mode & 0o001:
            path.chmod(path.stat().st_mode | 0o011)


def filtered(program: str, filters: str) -> "subprocess.CompletedProcess[str]":
    text = (
        f"import os, threading, ctypes\nfrom virtiofs import _core, syscalls\n_core.filter_calls({filters})\n{program}"
    )
    return subprocess.run([sys.executable, "-c", text], capture_output=True, text=True, check=False)


@pytest.mark.parametrize(
    "program",
    [
        "os.execv('/bin/true', ['true'])",
        "os.fork()",
        "ctypes.CDLL(None).mount(None, None, None, 0, None)",
        "import socket; socket.socket()",
        "import mmap; mmap.mmap(-1, 4096, prot=mmap.PROT_READ | mmap.PROT_EXEC)",
        "ctypes.CDLL(None).prctl(4, 1, 0, 0, 0)",
        "threading.Thread(target=lambda: os.kill(os.getppid(), 0)).start()",
    ],
)
def test_other_system_calls_end_the_process(program: str) -> None:
    assert filtered(program, "syscalls.native('kill', file_handles=False)").returncode == -signal.SIGSYS


def test_what_serving_takes_is_allowed() -> None:
    done = filtered(
        "thread = threading.Thread(target=os.getpid); thread.start(); thread.join(); print(os.listdir('/') != [], end='')",
        "syscalls.native('kill', file_handles=False)",
    )
    assert (done.returncode, done.stdout) == (0, "True")


def test_handles_are_refused_without_ending_the_process() -> None:
    program = "lib = ctypes.CDLL(None, use_errno=True); print(lib.open_by_handle_at(-1, None, 0), ctypes.get_errno())"
    without = filtered(program, "syscalls.native('kill', file_handles=False)")
    assert without.stdout.split() == ["-1", str(errno.EPERM)]
    assert filtered(program, "syscalls.native('kill', file_handles=True)").stdout.split()[1] != str(errno.EPERM)


def test_with_python_the_list_is_wider() -> None:
    assert filtered("os.execv('/bin/true', ['true'])", "syscalls.python('kill', file_handles=False)").returncode == 0
    mount = "ctypes.CDLL(None).mount(None, None, None, 0, None)"
    assert filtered(mount, "syscalls.python('kill', file_handles=False)").returncode == -signal.SIGSYS
    assert not syscalls.names(syscalls.KERNEL) & syscalls.names(syscalls.NATIVE)


NOSY = """
import ctypes, os
from virtiofs import Passthrough

class Nosy(Passthrough):
    def readlink(self, request, node):
        libc = ctypes.CDLL(None, use_errno=True)
        libc.mount(b"none", b"/mnt", b"tmpfs", 0, None)
        return f"{os.getpid()} {ctypes.get_errno()}".encode()

def is_listed(path, attr):
    return os.path.exists("/etc/passwd")
"""


@pytest.fixture
def nosy(tmp_path: Path) -> dict[str, str]:
    (tmp_path / "modules").mkdir()
    (tmp_path / "modules" / "nosy.py").write_text(NOSY)
    return {"PYTHONPATH": str(tmp_path / "modules")}


def test_python_methods_keep_the_host_and_mount_nothing(
    start: Start, share: Path, tmp_path: Path, nosy: dict[str, str]
) -> None:
    (share / "link").symlink_to("nothing")
    daemon = start(share, "--fs=nosy:Nosy", "--socket", tmp_path / "s", env=nosy)
    assert daemon.serving == daemon.pid
    assert "not confined but for system calls: Python methods serve guests" in daemon.log()
    with Guest(tmp_path / "s") as guest:
        assert guest.readlink("link") == f"{daemon.pid} {errno.EPERM}"
        assert guest.read_file("hello") == b"hello from the host\n"
    assert daemon.end() == 0


@root
def test_python_methods_in_namespaces_see_their_own_pid(
    start: Start, share: Path, tmp_path: Path, nosy: dict[str, str]
) -> None:
    (share / "link").symlink_to("nothing")
    daemon = start(share, "--fs=nosy:Nosy", "--socket", tmp_path / "s", "--sandbox=namespace", env=nosy)
    with Guest(tmp_path / "s") as guest:
        assert guest.readlink("link") == f"1 {errno.EPERM}"
    assert daemon.end() == 0


@root
def test_methods_that_are_awaited_and_a_cache_work_in_namespaces(start: Start, tmp_path: Path) -> None:
    (tmp_path / "cache").mkdir()
    options = ("target=memory://share", f"cache_dir={tmp_path / 'cache'}", "block_size=4K")
    given = [word for option in options for word in ("--fs-option", option)]
    socket = tmp_path / "s"
    daemon = start("virtiofs.fsspecfs:FsspecFS", *given, "--socket", socket, "--sandbox=namespace", "--seccomp=kill")
    with Guest(socket, timeout=20) as guest:
        guest.mkdir("d")
        guest.write_file("d/file", b"x" * 10_000)
        guest.rename("d/file", "d/other")
        assert guest.read_file("d/other") == b"x" * 10_000
        assert guest.listdir("d") == ["other"]
        guest.unlink("d/other")
        guest.rmdir("d")
    assert daemon.end() == 0


@pytest.mark.parametrize(
    ("settings", "why"),
    [
        ("version_slots = 1024", "the threads of a version table watch whole file systems"),
        ('policy = [{ when = "nosy:is_listed", read_only = true }]', "a policy asks Python"),
    ],
)
def test_what_needs_more_of_the_host_says_so(
    start: Start, share: Path, tmp_path: Path, nosy: dict[str, str], settings: str, why: str
) -> None:
    config = tmp_path / "v.toml"
    config.write_text(f'[[share]]\ndirectory = "{share}"\nsocket = "{tmp_path / "s"}"\n{settings}\n')
    daemon = start("--config", config, env=nosy)
    assert why in daemon.log()
    assert status(daemon.pid)["Seccomp"] == "2"
    with Guest(tmp_path / "s") as guest:
        assert guest.read_file("hello") == b"hello from the host\n"
    assert daemon.end() == 0


@root
def test_a_privileged_window_keeps_what_mounts_take(start: Start, share: Path, tmp_path: Path) -> None:
    daemon = start(share, "--socket", tmp_path / "s", "--dax-window=64M")
    assert "the DAX window by mounts" in daemon.log()
    assert status(daemon.pid)["Seccomp"] == "2"
    confined = start(share, "--socket", tmp_path / "t", "--dax-window=64M", "--sandbox=namespace")
    assert capabilities(confined.serving) == set(sandbox.CAPABILITIES)
    for socket_ in ("s", "t"):
        with Guest(tmp_path / socket_) as guest:
            uses(guest)


def test_names_in_a_policy_are_known_before(start: Start, share: Path, tmp_path: Path) -> None:
    config = tmp_path / "v.toml"
    rule = 'policy = [{ owner = "nobody", group = "daemon", hidden = true }]'
    config.write_text(f'[[share]]\ndirectory = "{share}"\nsocket = "{tmp_path / "s"}"\n{rule}\n')
    start("--config", config)
    with Guest(tmp_path / "s") as guest:
        assert guest.listdir() == ["hello", "sub"]


def test_what_is_kept() -> None:
    assert Sandbox().capabilities() == set(sandbox.CAPABILITIES)
    changed = Sandbox(modcaps="+sys_admin:-CAP_MKNOD", file_handles=True).capabilities()
    assert changed == {*sandbox.CAPABILITIES, "sys_admin", "dac_read_search"} - {"mknod"}


@pytest.mark.parametrize("modcaps", ["sys_admin", "+nothing", "+", "*chown"])
def test_no_change_of_capabilities(modcaps: str) -> None:
    with pytest.raises(ConfigError, match="is no change of capabilities"):
        Sandbox(modcaps=modcaps)


@root
def test_capabilities_are_changed(start: Start, share: Path, tmp_path: Path) -> None:
    daemon: Daemon = start("--sandbox=auto", share, "--socket", tmp_path / "s", "--modcaps=+sys_admin:-mknod")
    assert capabilities(daemon.serving) == {*sandbox.CAPABILITIES, "sys_admin"} - {"mknod"}


def test_nested_directories_are_one() -> None:
    assert sandbox.served(["/a/b", "/a", "/ab", "/a/b/c", "/c/d"]) == ["/a", "/ab", "/c/d"]
    assert sandbox.served(["/a", "/"]) == ["/"]
