"""execve(2): programs and scripts that lie on the file system."""

import errno
import os
import shutil
import subprocess

from tests.posix.check import check, each, fails, not_run, same
from tests.posix.file import folder, touch, write
from tests.posix.peer import Line, Peer
from tests.posix.user import ALICE, acting_as, need_root


def _run(*command: str, **options: object) -> int:
    return subprocess.run(command, check=False, stdin=subprocess.DEVNULL, **options).returncode  # type: ignore[call-overload, no-any-return]


def _executable() -> None:
    if os.statvfs(".").f_flag & os.ST_NOEXEC:
        not_run("mounted with noexec")


def _script(name: str, text: str, permissions: int = 0o755) -> None:
    write(name, text.encode())
    os.chmod(name, permissions)


def _program(name: str, program: str) -> str:
    """A copy of one of the system's programs."""
    found = shutil.which(program)
    if not found:
        not_run(f"there is no program {program}")
    shutil.copyfile(found, name)
    os.chmod(name, 0o755)
    return f"./{name}"


@check
def a_script() -> None:
    """execve(2): a file that starts with #! is run by its interpreter."""
    _executable()
    _script("s", "#!/bin/sh\nexit $1\n")
    same(_run("./s", "7"), 7)


@check
def a_program() -> None:
    """execve(2): a program is run, and mapped, from the file system."""
    _executable()
    program = _program("p", "cat")
    write("in", b"text" * 5000)
    with open("in", "rb") as source, open("out", "wb") as target:
        same(subprocess.run([program], stdin=source, stdout=target, check=False).returncode, 0)
    same(os.stat("out").st_size, 20_000)


@check
def an_interpreter() -> None:
    """execve(2): the interpreter of a script may lie on the file system too."""
    _executable()
    interpreter = _program("interpreter", "sh")
    _script("s", f"#!{interpreter}\nexit 5\n")
    same(_run("./s"), 5)


@check
def by_a_new_version() -> None:
    """execve(2): a program that was replaced runs as the new one."""
    _executable()
    for status in range(5):
        _script("new", f"#!/bin/sh\nexit {status}\n")
        os.rename("new", "s")
        same(_run("./s"), status)


@check
def without_permission() -> None:
    """execve(2): EACCES for a file that nobody may execute, for root too."""
    _executable()
    _script("s", "#!/bin/sh\n", 0o666)
    fails(errno.EACCES, _run, "./s")
    os.mkdir("d")
    fails(errno.EACCES, _run, "./d")


@each({"owner": (0o700, False), "others": (0o701, True)})
def by_a_user(permissions: int, may: bool) -> None:
    """execve(2): needs execute permission, and reading for a script: only the {case} may."""
    _executable()
    need_root()
    program = _program("p", "true")
    os.chmod("p", permissions)
    with acting_as(ALICE):
        if may:
            same(_run(program), 0)
        else:
            fails(errno.EACCES, _run, program)


@check
def text_file_busy() -> None:
    """execve(2): ETXTBSY for a program that is open for writing."""
    _executable()
    program = _program("p", "true")
    file = os.open("p", os.O_WRONLY)
    fails(errno.ETXTBSY, _run, program)
    os.close(file)
    same(_run(program), 0)


@check
def text_file_busy_for_writers() -> None:
    """open(2): ETXTBSY for writing to a program while it runs; it may be unlinked or replaced."""
    _executable()
    program = _program("p", "cat")
    running = subprocess.Popen([program], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert running.stdin
    assert running.stdout
    # An answer proves that it runs: until exec the file is not busy.
    running.stdin.write(b"x")
    running.stdin.flush()
    same(running.stdout.read(1), b"x")
    fails(errno.ETXTBSY, os.open, "p", os.O_WRONLY)
    fails(errno.ETXTBSY, os.truncate, "p", 0)
    _program("q", "true")
    os.rename("q", "p")
    same(_run(program), 0)
    running.stdin.close()
    same(running.wait(), 0)


@check
def not_a_program() -> None:
    """execve(2): ENOEXEC for a file of no known format, ENOENT for a missing interpreter."""
    _executable()
    _script("s", "\0\0\0nonsense")
    fails(errno.ENOEXEC, _run, "./s")
    _script("t", "#!/no/such/interpreter\n")
    fails(errno.ENOENT, _run, "./t")


@check
def setuid() -> None:
    """execve(2): a set-user-ID program runs as its owner, unless the mount says nosuid."""
    _executable()
    need_root()
    if os.statvfs(".").f_flag & os.ST_NOSUID:
        not_run("mounted with nosuid")
    program = _program("p", "id")
    os.chmod("p", 0o4755)

    def user(line: Line) -> str:
        os.setgroups([])
        os.setresgid(ALICE, ALICE, ALICE)
        os.setresuid(ALICE, ALICE, ALICE)
        return subprocess.run([program, "-u"], capture_output=True, text=True, check=False).stdout.strip()

    same(Peer(user).result(), "0")
    os.chmod("p", 0o755)
    same(Peer(user).result(), str(ALICE))


@check
def setgid() -> None:
    """execve(2): a set-group-ID program runs with its group."""
    _executable()
    need_root()
    if os.statvfs(".").f_flag & os.ST_NOSUID:
        not_run("mounted with nosuid")
    program = _program("p", "id")
    os.chown("p", -1, 777)
    os.chmod("p", 0o2755)

    def user(line: Line) -> str:
        os.setgroups([])
        os.setresgid(ALICE, ALICE, ALICE)
        os.setresuid(ALICE, ALICE, ALICE)
        return subprocess.run([program, "-g"], capture_output=True, text=True, check=False).stdout.strip()

    same(Peer(user).result(), "777")


@check
def by_descriptor() -> None:
    """fexecve(3): runs an open file, one without a name too."""
    _executable()
    _program("p", "true")
    file = os.open("p", os.O_RDONLY)
    os.unlink("p")

    def other(line: Line) -> None:
        os.execve(file, ["p"], {})

    peer = Peer(other)
    _, status = os.waitpid(peer.pid, 0)
    same(os.waitstatus_to_exitcode(status), 0)


@check
def in_a_directory_that_cannot_be_listed() -> None:
    """execve(2): search permission on the way suffices."""
    _executable()
    need_root()
    folder("d", 0o711)
    _script("d/s", "#!/bin/sh\nexit 4\n")
    with acting_as(ALICE):
        same(_run("./d/s"), 4)


@check
def a_write_protected_file() -> None:
    """execve(2): execution needs no write permission, and makes no change."""
    _executable()
    touch("empty", 0o555)
    program = _program("p", "true")
    os.chmod("p", 0o555)
    before = os.stat("p")
    same(_run(program), 0)
    after = os.stat("p")
    same(
        (after.st_mtime_ns, after.st_ctime_ns, after.st_size), (before.st_mtime_ns, before.st_ctime_ns, before.st_size)
    )
