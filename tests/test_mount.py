"""A mount of this host does what a local disk does, and leaves nothing behind."""

import ctypes
import errno
import fcntl
import filecmp
import gc
import mmap
import os
import shutil
import signal
import sqlite3
import stat
import subprocess
import sys
import sysconfig
import textwrap
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

import pytest

from tests import takes
from tests.daemon import Start, virtiofs
from tests.errnos import fails
from virtiofs import ALWAYS, AUTO, NONE, Cache, ConfigError, Mount, Passthrough, mount, mountpoint

CONTROL = Path("/sys/fs/fuse/connections")
GONE = (errno.ENOTCONN, errno.ECONNABORTED)
"""What whoever uses a mount gets when nobody serves it any more."""

pytestmark = [pytest.mark.root, takes.mounts]


@dataclass(frozen=True)
class Place:
    """One directory by two ways."""

    mount: Mount
    inside: Path
    outside: Path


@pytest.fixture
def there(tmp_path: Path) -> Path:
    """A directory to mount at."""
    path = tmp_path / "mnt"
    path.mkdir()
    return path


@pytest.fixture(params=[NONE, AUTO, ALWAYS], ids=lambda cache: cache.name)
def place(request: pytest.FixtureRequest, tmp_path: Path, there: Path) -> Iterator[Place]:
    cache: Cache = request.param
    source = tmp_path / "source"
    source.mkdir()
    with mount(Passthrough(source, cache, xattr=True, allow_direct_io=True), there) as served:
        yield Place(served, there, source)
        assert served.stats().panics == 0
        assert served.stats().malformed == 0
    assert not os.path.ismount(there)
    assert os.listdir(there) == []


def run(program: str, *arguments: str | Path, seconds: float = 30) -> str:
    """Runs a Python program and returns what it printed."""
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program), *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=seconds,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


class Program(subprocess.Popen[str]):
    """Waited for at the end of its block; ended if that ends early, so that a failure is told and nothing waits for ever."""

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if kind is not None:
            self.kill()
        super().__exit__(kind, value, traceback)


def start(program: str, *arguments: str | Path) -> Program:
    return Program(
        [sys.executable, "-c", textwrap.dedent(program), *map(str, arguments)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@contextmanager
def held(path: Path, flags: int = os.O_RDWR) -> Iterator[int]:
    """An open file, whose close may fail: its server may be gone by then."""
    fd = os.open(path, flags)
    try:
        yield fd
    finally:
        with suppress(OSError):
            os.close(fd)


def settles(path: Path, mounted: bool, seconds: float = 20) -> bool:
    """Waits until `path` is a mount point, or none, and returns which."""
    deadline = time.monotonic() + seconds
    while (now := mountpoint.mounted_at(str(path)) is not None) != mounted and time.monotonic() < deadline:
        time.sleep(0.01)
    return now


# What programs do


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_tree_is_copied_in_and_out(place: Place, tmp_path: Path) -> None:
    """The Python standard library with its tests: thousands of files of all sizes, with their modes and times."""
    library = Path(sysconfig.get_path("stdlib"))
    ignore = shutil.ignore_patterns("__pycache__", "site-packages")
    shutil.copytree(library, place.inside / "in", symlinks=True, ignore=ignore)
    shutil.copytree(place.inside / "in", tmp_path / "out", symlinks=True)
    count = 0
    for at, folders, files in os.walk(tmp_path / "out"):
        relative = os.path.relpath(at, tmp_path / "out")
        original, copied = library / relative, place.outside / "in" / relative
        for name in files:
            one, two = os.lstat(original / name), os.lstat(copied / name)
            assert (one.st_mode, one.st_mtime_ns, one.st_size) == (two.st_mode, two.st_mtime_ns, two.st_size), name
        regular = [name for name in files if not os.path.islink(os.path.join(at, name))]
        for other in (original, copied):
            assert filecmp.cmpfiles(at, other, regular, shallow=False)[1:] == ([], []), at
        assert sorted(folders) == sorted(entry.name for entry in os.scandir(copied) if entry.is_dir())
        count += len(files)
    assert count > 1000
    shutil.rmtree(place.inside / "in")
    assert os.listdir(place.outside) == []


@pytest.mark.timeout(120)
def test_git(place: Place) -> None:
    def git(*arguments: str) -> str:
        done = subprocess.run(
            ["git", "-c", "user.name=a", "-c", "user.email=a@b", "-C", str(place.inside / "repo"), *arguments],
            capture_output=True,
            text=True,
            check=False,
            env=os.environ | {"GIT_CONFIG_GLOBAL": "/dev/null", "GIT_CONFIG_SYSTEM": "/dev/null"},
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    (place.inside / "repo").mkdir()
    git("init", "-q")
    shutil.copytree(Path(sysconfig.get_path("stdlib")) / "email", place.inside / "repo" / "email")
    git("add", "--all")
    git("commit", "-q", "-m", "one")
    (place.inside / "repo" / "email" / "new").write_text("new")
    git("add", "--all")
    git("commit", "-q", "-m", "two")
    git("gc", "-q")
    git("fsck", "--strict")
    assert git("status", "--porcelain") == ""
    git("checkout", "-q", "HEAD~1")
    assert not (place.inside / "repo" / "email" / "new").exists()


@pytest.mark.timeout(120)
def test_sqlite_with_a_write_ahead_log(place: Place) -> None:
    """Several writers by shared memory and locks, on the mount and on the directory behind it."""
    database = place.inside / "db"
    with sqlite3.connect(database) as first:
        assert first.execute("pragma journal_mode=wal").fetchone() == ("wal",)
        first.execute("create table t (writer, n)")
    first.close()
    program = """
        import sqlite3, sys
        connection = sqlite3.connect(sys.argv[1], timeout=30, isolation_level=None)
        for n in range(100):
            connection.execute("begin immediate")
            connection.execute("insert into t values (?, ?)", (sys.argv[2], n))
            connection.execute("commit")
        connection.close()
    """
    writers = [start(program, database, str(number)) for number in range(3)]
    for writer in writers:
        assert writer.communicate(timeout=60)[1] == ""
        assert writer.returncode == 0
    check = sqlite3.connect(place.outside / "db")
    assert check.execute("select writer, count(*) from t group by writer").fetchall() == [
        ("0", 100),
        ("1", 100),
        ("2", 100),
    ]
    assert check.execute("pragma integrity_check").fetchone() == ("ok",)
    check.close()


def test_shared_mappings(place: Place) -> None:
    path = place.inside / "mapped"
    path.write_bytes(bytes(3 * mmap.PAGESIZE + 100))
    with open(path, "r+b") as file, mmap.mmap(file.fileno(), 0) as one, mmap.mmap(file.fileno(), 0) as two:
        one[5000:5005] = b"hello"
        assert two[5000:5005] == b"hello"
        one.flush()
        assert (place.outside / "mapped").read_bytes()[5000:5005] == b"hello"
        assert os.pread(file.fileno(), 5, 5000) == b"hello"
        two[-1:] = b"z"
    assert (place.outside / "mapped").read_bytes()[-1:] == b"z"


def test_files_that_nobody_can_name_any_more(place: Place) -> None:
    with open(place.inside / "f", "w+b") as file:
        file.write(b"one")
        file.flush()
        os.unlink(place.inside / "f")
        assert os.fstat(file.fileno()).st_nlink == 0
        file.write(b"two")
        file.seek(0)
        assert file.read() == b"onetwo"
        os.ftruncate(file.fileno(), 2)
        assert os.fstat(file.fileno()).st_size == 2
    fd = os.open(place.inside, os.O_TMPFILE | os.O_RDWR, 0o600)
    os.write(fd, b"nameless")
    os.link(f"/proc/self/fd/{fd}", place.inside / "named", src_dir_fd=fd)  # linkat(2), which follows
    os.close(fd)
    assert (place.outside / "named").read_bytes() == b"nameless"


def test_names_and_links(place: Place) -> None:
    inside = place.inside
    (inside / "a").write_text("a")
    os.link(inside / "a", inside / "b")
    assert os.stat(inside / "a").st_ino == os.stat(inside / "b").st_ino == os.stat(place.outside / "a").st_ino
    assert os.stat(inside / "b").st_nlink == 2
    os.symlink("nowhere\n", inside / "s")
    assert os.readlink(inside / "s") == "nowhere\n"
    os.rename(inside / "b", inside / "c")
    with fails(errno.ENOENT):
        os.stat(inside / "b")
    (inside / "d" / "e").mkdir(parents=True)
    with fails(errno.ENOTEMPTY):
        os.rmdir(inside / "d")
    with fails(errno.EINVAL):
        os.rename(inside / "d", inside / "d" / "e" / "f")
    os.rename(inside / "d" / "e", inside / "e")
    os.mkfifo(inside / "fifo")
    assert stat.S_ISFIFO(os.lstat(place.outside / "fifo").st_mode)
    long, raw = "n" * 255, b"\xff\xfe"
    (inside / long).touch()
    with fails(errno.ENAMETOOLONG):
        (inside / (long + "n")).touch()
    Path(os.fsdecode(os.path.join(os.fsencode(inside), raw))).touch()
    assert raw in os.listdir(os.fsencode(place.outside))
    assert sorted(os.listdir(inside)) == sorted(os.listdir(place.outside))


def test_attributes(place: Place) -> None:
    path, behind = place.inside / "f", place.outside / "f"
    path.write_text("x")
    os.setxattr(path, "user.one", b"1")
    os.setxattr(path, "user.empty", b"")
    assert os.getxattr(behind, "user.one") == b"1"
    assert sorted(os.listxattr(path)) == sorted(os.listxattr(behind))
    with fails(errno.ENODATA):
        os.getxattr(path, "user.two")
    os.removexattr(path, "user.one")
    assert "user.one" not in os.listxattr(behind)
    os.utime(path, ns=(1_000_000_001, 2_000_000_002))
    assert (os.stat(behind).st_atime_ns, os.stat(behind).st_mtime_ns) == (1_000_000_001, 2_000_000_002)
    assert os.stat(path).st_mtime_ns == 2_000_000_002
    os.chmod(path, 0o6755)
    os.chown(path, 1234, 5678)
    found = os.stat(path)
    assert (found.st_uid, found.st_gid, stat.S_IMODE(found.st_mode)) == (1234, 5678, 0o755)  # chown(2) clears both


def test_users_are_told_apart(place: Place) -> None:
    """What another user makes is theirs, and what is not theirs is refused by the kernel."""
    os.chmod(place.inside, 0o777)
    (place.inside / "private").write_text("x")
    os.chmod(place.inside / "private", 0o600)
    run(
        """
        import os, sys
        os.chdir(sys.argv[1])  # by a path that is closed to others
        os.setgroups([]); os.setgid(5678); os.setuid(1234)
        open("mine", "w").close()
        os.mkdir("ours", 0o700)
        for refused in (lambda: open("private"), lambda: os.chmod("private", 0o777)):
            try:
                refused()
            except PermissionError:
                continue
            sys.exit("it was let in")
        """,
        place.inside,
    )
    for name in ("mine", "ours"):
        found = os.stat(place.outside / name)
        assert (found.st_uid, found.st_gid) == (1234, 5678)


def test_direct_io(place: Place) -> None:
    memory = mmap.mmap(-1, 1 << 20)
    memory.write(os.urandom(1 << 20))
    fd = os.open(place.inside / "direct", os.O_RDWR | os.O_CREAT | os.O_DIRECT)
    assert os.writev(fd, [memory]) == 1 << 20
    back = mmap.mmap(-1, 1 << 20)
    assert os.preadv(fd, [back], 0) == 1 << 20
    assert back[:] == memory[:]
    assert (place.outside / "direct").read_bytes() == memory[:]
    os.close(fd)


def test_holes_and_copies(place: Place) -> None:
    fd = os.open(place.inside / "sparse", os.O_RDWR | os.O_CREAT)
    os.pwrite(fd, b"end", 1 << 32)
    assert os.fstat(fd).st_size == (1 << 32) + 3
    assert os.fstat(fd).st_blocks < 1000
    assert os.lseek(fd, 0, os.SEEK_DATA) <= 1 << 32
    assert os.lseek(fd, 0, os.SEEK_HOLE) == 0
    os.posix_fallocate(fd, 0, 8192)
    other = os.open(place.inside / "copy", os.O_RDWR | os.O_CREAT)
    assert os.copy_file_range(fd, other, 3, offset_src=1 << 32) == 3
    assert os.pread(other, 10, 0) == b"end"
    os.close(fd)
    os.close(other)


def test_append_and_truncate_from_many_threads(place: Place) -> None:
    path = place.inside / "log"
    path.touch()

    def write(number: int) -> None:
        for _ in range(100):
            with open(path, "ab", buffering=0) as file:
                file.write(bytes([number]) * 100)

    writers = [threading.Thread(target=write, args=(number,)) for number in range(4)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    content = (place.outside / "log").read_bytes()
    lines = [content[at : at + 100] for at in range(0, len(content), 100)]
    assert sorted(lines) == sorted(bytes([number]) * 100 for number in range(4) for _ in range(100))
    with open(path, "wb"):
        assert os.path.getsize(place.outside / "log") == 0


# Locks

HOLD = """
    import fcntl, sys
    file = open(sys.argv[1], "r+b")
    getattr(fcntl, sys.argv[2])(file, fcntl.LOCK_EX)
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.mark.parametrize("kind", ["lockf", "flock"])
def test_locks_are_waited_for(place: Place, kind: str) -> None:
    """Waiters get the lock in their turn, one that is interrupted gives up, and the host's own processes count."""
    (place.inside / "f").write_text("x" * 100)
    with start(HOLD, place.outside / "f", kind) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        with open(place.inside / "f", "r+b") as file, fails(errno.EAGAIN):
            getattr(fcntl, kind)(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        with start(HOLD, place.inside / "f", kind) as impatient, start(HOLD, place.inside / "f", kind) as patient:
            assert impatient.stdout is not None
            assert patient.stdout is not None
            waits_for(impatient.pid)
            waits_for(patient.pid)
            impatient.send_signal(signal.SIGINT)  # a Ctrl-C
            assert "KeyboardInterrupt" in impatient.communicate(timeout=20)[1]
            assert patient.poll() is None
            holder.communicate(timeout=20)
            assert patient.stdout.readline() == "held\n"
            with open(place.outside / "f", "r+b") as file, fails(errno.EAGAIN):
                getattr(fcntl, kind)(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            patient.kill()
    with open(place.inside / "f", "r+b") as file:
        getattr(fcntl, kind)(file, fcntl.LOCK_EX)


def waits_for(pid: int, seconds: float = 20) -> None:
    """Waits until the process waits for an answer of the server, having asked for a lock."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        with open(f"/proc/{pid}/syscall", encoding="ascii") as file:
            number = file.read().split()[0]
        if number in {"72", "73"} if os.uname().machine == "x86_64" else {"25", "32"}:  # fcntl, flock
            return
        time.sleep(0.01)
    raise AssertionError("it does not ask for a lock")


def test_deadlocks_of_locks_are_found(place: Place) -> None:
    (place.inside / "f").write_text("x" * 100)
    program = """
        import errno, fcntl, sys
        file = open(sys.argv[1], "r+b")
        mine, other = map(int, sys.argv[2:])
        fcntl.lockf(file, fcntl.LOCK_EX, 1, mine)
        print("held", flush=True)
        sys.stdin.readline()
        try:
            fcntl.lockf(file, fcntl.LOCK_EX, 1, other)
            print("got it", flush=True)
        except OSError as error:
            print(error.errno == errno.EDEADLK, flush=True)
    """
    with start(program, place.inside / "f", "0", "1") as one, start(program, place.inside / "f", "1", "0") as two:
        for each in (one, two):
            assert each.stdout is not None
            assert each.stdout.readline() == "held\n"
        for each in (one, two):
            assert each.stdin is not None
            each.stdin.write("\n")
            each.stdin.flush()
        said = {each.communicate(timeout=20)[0] for each in (one, two)}
    assert said == {"True\n", "got it\n"}


# Its life


def test_busy_mount(tmp_path: Path, share: Path, there: Path) -> None:
    served = mount(Passthrough(share), there)
    with held(there / "hello") as file, held(there / "sub" / "deep") as mapped:
        with fails(errno.EBUSY):
            served.unmount()
        assert (there / "hello").read_text() == "hello from the host\n"
        saved = b"saved..." * (4 << 20)
        os.ftruncate(mapped, len(saved))
        with mmap.mmap(mapped, len(saved)) as memory:
            memory[:] = saved
            served.close()
            assert (share / "sub" / "deep").read_bytes() == saved
        assert not os.path.ismount(there)
        with pytest.raises(OSError) as gone:
            os.ftruncate(file, 1)
        assert gone.value.errno in GONE
    assert served.wait(0)
    served.close()


def test_unmounted_by_somebody_else(share: Path, there: Path) -> None:
    with mount(Passthrough(share), there) as served:
        subprocess.run(["umount", str(there)], check=True)
        assert served.wait(20)
        assert not served.stats().connected
    with mount(Passthrough(share), there) as served:
        served.unmount()
        assert served.wait(0)


def test_object(share: Path, there: Path) -> None:
    served = Mount(Passthrough(share, read_only=True), there, options=["nosuid", "noexec"], threads=3)
    assert served.wait(0)
    with pytest.raises(ValueError, match="not started"):
        served.stats()
    with served:
        assert os.path.ismount(there)
        assert not served.wait(0.01)
        with pytest.raises(RuntimeError, match="started once"):
            served.start()
        line = next(line for line in Path("/proc/mounts").read_text().splitlines() if str(there) in line)
        source, _, kind, options, *_ = line.split()
        assert (source, kind) == (str(share), "fuse.virtiofs")
        assert {"ro", "nosuid", "noexec", "default_permissions", "allow_other"} <= set(options.split(","))
        with fails(errno.EROFS):
            (there / "new").touch()
        assert (there / "hello").read_text()
        assert served.stats().requests["LOOKUP"] >= 1
    assert served.wait(0)
    assert "Passthrough" in repr(served)


def test_fifty_mounts(share: Path, there: Path) -> None:
    def use() -> None:
        with mount(Passthrough(share), there):
            assert (there / "hello").read_text()

    def count() -> tuple[int, int]:
        return len(os.listdir("/proc/self/fd")), len(os.listdir("/proc/self/task"))

    use()
    gc.collect()
    before = count()
    for _ in range(50):
        use()
    gc.collect()
    deadline = time.monotonic() + 10
    while any(now > then for now, then in zip(count(), before, strict=True)):
        assert time.monotonic() < deadline, (count(), before)
        time.sleep(0.02)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
@pytest.mark.parametrize("busy", [False, True])
def test_signals_unmount(start: Start, share: Path, there: Path, number: signal.Signals, busy: bool) -> None:
    daemon = start(share, there, command="mount")
    with ExitStack() as stack:
        if busy:
            stack.enter_context(held(there / "hello"))
        assert (there / "sub" / "deep").read_bytes() == b"deep"
        assert daemon.end(number) == 0
    assert f"ending signal={number.name}" in daemon.log()
    assert ("unmounted while in use" in daemon.log()) == busy
    assert not os.path.ismount(there)


def test_umount_ends_the_command(start: Start, share: Path, there: Path) -> None:
    daemon = start(share, there, command="mount")
    subprocess.run(["umount", str(there)], check=True)
    assert daemon.ends() == 0
    assert "unmounted" in daemon.log()


@pytest.mark.parametrize("name", ["mnt", "m n\\t", "mnté"])
def test_killed(start: Start, share: Path, tmp_path: Path, name: str) -> None:
    """Whoever waits for a killed server is set free, and its mount point is cleared away."""
    there = tmp_path / name
    there.mkdir()
    daemon = start(share, there, command="mount")
    with held(there / "hello") as file:
        daemon.kill()
        with pytest.raises(OSError) as caught:
            os.ftruncate(file, 1)
        assert caught.value.errno in GONE
        assert not settles(there, mounted=False)
    assert os.listdir(there) == []
    assert start(share, there, command="mount").end() == 0


@pytest.mark.parametrize("fusectl", [True, False])
def test_killed_with_a_file_of_its_own_mount_open(share: Path, there: Path, fusectl: bool) -> None:
    """It dies: the kernel has it wait for the reply to its own FLUSH, if the file is closed before /dev/fuse is."""
    program = """
        import os, signal, sys
        from virtiofs import Passthrough, mount
        lower = os.open("/", os.O_PATH)
        served = mount(Passthrough(sys.argv[1]), sys.argv[2])
        os.close(lower)
        assert os.open(sys.argv[2] + "/hello", os.O_RDWR) == lower
        print("open", flush=True)
        sys.stdin.read(1)
    """
    # In a mount namespace of its own, where nobody else misses fusectl.
    prepare = f"umount {CONTROL} 2>/dev/null\n" + (f"mount -t fusectl none {CONTROL}\n" if fusectl else "")
    command = ["unshare", "-m", "sh", "-c", prepare + 'exec "$@"', "sh", sys.executable, "-c", textwrap.dedent(program)]
    with subprocess.Popen([*command, share, there], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as server:
        assert server.stdout is not None
        assert server.stdout.readline() == b"open\n"
        with held(Path(f"/proc/{server.pid}/root{there}/hello")) as file:
            device = os.minor(os.fstat(file).st_dev)
            server.kill()
            try:
                assert server.wait(20) == -signal.SIGKILL
            finally:
                # Else all who are in it would wait, this process too.
                abort = f"mount -t fusectl none {CONTROL}\necho 1 >{CONTROL}/{device}/abort"
                subprocess.run(["unshare", "-m", "sh", "-c", abort], stderr=subprocess.DEVNULL, check=False)
            with pytest.raises(OSError) as caught:
                os.ftruncate(file, 1)
            assert caught.value.errno in GONE


def test_a_dead_mount_is_replaced(start: Start, share: Path, there: Path) -> None:
    """Where nobody was left to clear it away: the guardian was killed as well."""
    program = """
        import os, signal, sys
        from virtiofs import Passthrough, Mount
        Mount(Passthrough(sys.argv[1]), sys.argv[2], guard=False).start()
        os.kill(os.getpid(), signal.SIGKILL)
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program), str(share), str(there)], timeout=30, check=False
    )
    assert done.returncode == -signal.SIGKILL
    with pytest.raises(OSError) as caught:
        os.listdir(there)
    assert caught.value.errno in GONE
    daemon = start(share, there, command="mount")
    assert "replaced a mount whose server had died" in daemon.log()
    assert (there / "hello").read_text()
    assert daemon.end() == 0
    assert settles(there, mounted=False) is False


@pytest.mark.parametrize("ending", ["", "sys.exit(3)", "raise RuntimeError", "os.kill(os.getpid(), signal.SIGINT)"])
def test_interpreter_exit_unmounts(share: Path, there: Path, ending: str) -> None:
    program = f"""
import os, signal, sys
from virtiofs import Passthrough, mount
served = mount(Passthrough(sys.argv[1]), sys.argv[2])
os.stat(sys.argv[2] + "/hello")
{ending}
"""
    done = subprocess.run(
        [sys.executable, "-c", program, str(share), str(there)], capture_output=True, text=True, timeout=30, check=False
    )
    expected = {"": 0, "sys.exit(3)": 3, "raise RuntimeError": 1}.get(ending, -signal.SIGINT)
    assert done.returncode == expected, done.stderr
    assert mountpoint.mounted_at(str(there)) is None


def test_a_fork_does_not_keep_the_mount_alive(share: Path, there: Path) -> None:
    """Descriptors of /dev/fuse in a forked child would keep everybody waiting who uses the mount of a dead process."""
    program = """
        import os, signal, sys, time
        from virtiofs import Passthrough, mount
        served = mount(Passthrough(sys.argv[1]), sys.argv[2])
        child = os.fork()
        if child == 0:
            served.close()
            try:
                served.stats()
            except RuntimeError:
                print(os.getpid(), flush=True)
            time.sleep(60)
            os._exit(0)
        time.sleep(60)
    """
    with start(program, share, there) as parent:
        assert parent.stdout is not None
        child = int(parent.stdout.readline())
        try:
            assert (there / "hello").read_text()
            parent.kill()
            assert not settles(there, mounted=False)
        finally:
            os.kill(child, signal.SIGKILL)


# What is refused


def test_a_mount_over_its_own_source(share: Path, tmp_path: Path) -> None:
    link = tmp_path / "link"
    link.symlink_to(share / "sub")
    for path in (share, share / "sub", link):
        with pytest.raises(ConfigError, match="would wait for itself"):
            mount(Passthrough(share), path)
    other = tmp_path / "bound"
    other.mkdir()
    subprocess.run(["mount", "--bind", str(share), str(other)], check=True)
    try:
        with pytest.raises(ConfigError, match="would wait for itself"):
            mount(Passthrough(share), other / "sub")
    finally:
        subprocess.run(["umount", str(other)], check=True)
    assert virtiofs("mount", share, share / "sub").returncode == 2


def test_a_mount_above_its_source(share: Path) -> None:
    """That hides the source from others, and harms nobody."""
    with mount(Passthrough(share / "sub"), share):
        assert os.listdir(share) == ["deep"]
    assert (share / "hello").exists()


def test_clear_errors(share: Path, there: Path, tmp_path: Path) -> None:
    for arguments, message in (
        ((share, tmp_path / "none"), "no such file or directory; name an existing directory"),
        ((share, share / "hello"), "not a directory; mount at a directory"),
        ((tmp_path / "none", there), "no such file or directory"),
        ((share, there, "-o", "rw,bad"), "unknown mount option 'rw': choose of ro, nosuid"),
        ((share, there, "--threads", "0"), "threads: 1 to 1024, not 0"),
        ((share,), "the following arguments are required: MOUNTPOINT"),
    ):
        done = virtiofs("mount", *arguments)
        assert done.returncode == 2
        assert message in done.stderr
        assert done.stderr.count("\n") == 1


HELPER = f"""#!{sys.executable}
import os, shlex, socket, sys
from virtiofs import _core
with open(os.path.dirname(__file__) + "/said", "a") as said:
    print(shlex.join(sys.argv[1:]), file=said)
if sys.argv[1] == "-u":
    try:
        _core.fuse_unmount(sys.argv[-1], detach="-z" in sys.argv)
    except OSError:
        sys.exit("fusermount3: failed to unmount: Device or resource busy")
elif "allow_other" in sys.argv[2]:
    sys.exit("fusermount3: option allow_other only allowed if 'user_allow_other' is set in /etc/fuse.conf")
else:
    fd = _core.fuse_mount(sys.argv[-1], "helped", "virtiofs", 0, "default_permissions")
    socket.send_fds(socket.socket(fileno=int(os.environ["_FUSE_COMMFD"])), [b"x"], [fd])
"""


def test_mounting_by_fusermount(share: Path, there: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Users mount by a program with the protocol of fusermount3; this is one that the test brings along."""
    monkeypatch.setattr("virtiofs.mounts.has_capability", lambda name: False)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(PermissionError, match="only root can mount by itself") as caught:
        mount(Passthrough(share), there)
    assert "install fusermount3" in caught.value.__notes__[0]
    helper = tmp_path / "fusermount3"
    helper.write_text(HELPER)
    helper.chmod(0o755)
    with ExitStack() as stack, mount(Passthrough(share), there, options=["noexec"]) as served:
        assert (there / "hello").read_text()
        stack.enter_context(held(there / "hello"))
        with fails(errno.EBUSY):
            served.unmount()
    assert not os.path.ismount(there)
    with pytest.raises(OSError, match="user_allow_other") as refused:
        mount(Passthrough(share), there, allow_other=True)
    assert "/etc/fuse.conf" in refused.value.__notes__[0]
    said = (tmp_path / "said").read_text().splitlines()
    assert said[0] == f"-o fsname={share},subtype=virtiofs,default_permissions,noexec -- {there}"
    assert said[-2] == f"-u -z -- {there}"


# What the kernel is told


def test_notifications(tmp_path: Path, there: Path) -> None:
    """What the kernel keeps for ever it forgets when it is told to."""
    source = tmp_path / "source"
    source.mkdir()
    with mount(Passthrough(source, ALWAYS.replace(negative_timeout=3600)), there) as served:
        native = served._native
        assert native is not None
        before = os.stat(there).st_mtime_ns
        assert not (there / "new").exists()
        (source / "new").write_text("1")
        assert not (there / "new").exists()
        assert os.stat(there).st_mtime_ns == before
        native.inval_entry(1, b"new")
        assert native.flush_notifications() == 0
        assert (there / "new").exists()
        native.inval_inode(1)
        assert native.flush_notifications() == 0
        assert os.stat(there).st_mtime_ns == os.stat(source).st_mtime_ns != before
        native.inval_entry(1, b"unknown")
        native.inval_inode(12345)
        assert native.flush_notifications() == 0
        os.rename(source / "new", source / "moved")
        assert (there / "new").exists()
        native.inval_names()
        if native.flush_notifications() == 0:  # Linux 6.16
            assert not (there / "new").exists()
        with pytest.raises(ValueError, match="nul"):
            native.inval_entry(1, b"a\0b")


libc = ctypes.CDLL(None, use_errno=True)


def test_crash_of_the_connection_is_cleared_away(share: Path, there: Path) -> None:
    """The administrator aborts it: it ends, and no dead mount point stays when it is closed."""
    if not os.path.ismount(CONTROL) and libc.mount(b"none", bytes(CONTROL), b"fusectl", 0, None) != 0:
        pytest.skip("no fusectl here")
    with mount(Passthrough(share), there) as served:
        device = os.minor(os.stat(there).st_dev)
        (CONTROL / str(device) / "abort").write_text("1")
        assert served.wait(20)
        with pytest.raises(OSError) as caught:
            os.listdir(there)
        assert caught.value.errno in GONE
    assert not settles(there, mounted=False)
    assert os.listdir(there) == []


CRASHES = """
import os, resource, stat, sys
from virtiofs import Attr, FileSystem, mount

resource.setrlimit(resource.RLIMIT_CORE, (0, 0))

class Crashes(FileSystem):
    def getattr(self, request, node, handle):
        return Attr(stat.S_IFDIR | 0o755)
    def statfs(self, request, node):
        os.abort()

with mount(Crashes(), sys.argv[1]) as served:
    print(served.in_flight(), flush=True)
    served.wait()
"""


def test_a_handler_that_crashes_the_process(there: Path) -> None:
    """Who asked is set free, and the mount point is cleared away."""
    with subprocess.Popen([sys.executable, "-c", CRASHES, there], stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "[]\n"
            with pytest.raises(OSError) as caught:
                os.statvfs(there)
            assert caught.value.errno in GONE
            assert process.wait(20) == -signal.SIGABRT
        finally:
            process.kill()
    assert not settles(there, mounted=False)
    assert os.listdir(there) == []
