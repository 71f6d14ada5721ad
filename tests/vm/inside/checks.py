"""Checks that run in a guest, by the guest's own Python, in a directory on a share: ``checks.py NAME DIRECTORY [WORD…]``.

Each is a function of that directory's path, which it finds empty, and fails by an assertion. What it leaves there is
for the host to look at. Names are bytes where it matters: a share carries bytes, not text.
"""
# ruff: noqa: PT017, PT018 - there is no pytest in the guest

import ctypes
import errno
import fcntl
import mmap
import multiprocessing
import os
import signal
import sqlite3
import stat
import sys
import time

GIB = 1 << 30
RENAME_NOREPLACE = 1
RENAME_EXCHANGE = 2
AT_FDCWD = -100

libc = ctypes.CDLL(None, use_errno=True)


def write(path, data):
    with open(path, "wb") as file:
        file.write(data)


def read(path):
    with open(path, "rb") as file:
        return file.read()


def fails(expected, call, *arguments):
    try:
        call(*arguments)
    except OSError as error:
        assert error.errno == expected, f"{errno.errorcode[error.errno]}, not {errno.errorcode[expected]}"
    else:
        raise AssertionError(f"succeeded, {errno.errorcode[expected]} expected")


def renameat2(old, new, flags):
    if libc.renameat2(AT_FDCWD, os.fsencode(old), AT_FDCWD, os.fsencode(new), flags) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


def renames(top):
    os.chdir(top)
    write("a", b"alpha")
    write("b", b"beta")
    inode = os.stat("a").st_ino
    os.rename("a", "b")
    assert read("b") == b"alpha" and os.stat("b").st_ino == inode and os.listdir() == ["b"]

    # An open file follows its inode.
    with open("b", "r+b") as held:
        os.rename("b", "c")
        held.write(b"ALPHA")
        held.flush()
        assert read("c") == b"ALPHA"

    os.makedirs("d/e/f")
    write("d/e/f/g", b"deep")
    os.rename("d/e", "moved")
    assert read("moved/f/g") == b"deep" and not os.path.exists("d/e")
    os.mkdir("empty")
    os.rename("moved", "empty")
    assert read("empty/f/g") == b"deep"
    os.mkdir("full")
    write("full/x", b"")
    fails(errno.ENOTEMPTY, os.rename, "empty", "full")
    fails(errno.EINVAL, os.rename, "empty", "empty/f/inner")
    fails(errno.EISDIR, os.rename, "c", "full")
    fails(errno.ENOTDIR, os.rename, "full", "c")
    fails(errno.ENOENT, os.rename, "none", "c")

    write("left", b"left")
    write("right", b"right")
    fails(errno.EEXIST, renameat2, "left", "right", RENAME_NOREPLACE)
    renameat2("left", "fresh", RENAME_NOREPLACE)
    renameat2("fresh", "right", RENAME_EXCHANGE)
    assert read("fresh") == b"right" and read("right") == b"left"
    renameat2("fresh", "full", RENAME_EXCHANGE)
    assert read("full") == b"right" and os.listdir("fresh") == ["x"]

    # A name that was a file becomes a directory and a file again, with nothing of it remembered.
    for turn in range(20):
        write("name", b"%d" % turn)
        os.unlink("name")
        os.mkdir("name")
        assert os.listdir("name") == []
        os.rmdir("name")


def links(top):
    os.chdir(top)
    os.mkdir("d")
    write("file", b"one")
    for name in ("second", "d/third"):
        os.link("file", name)
    assert {os.stat(name).st_ino for name in ("file", "second", "d/third")} == {os.stat("file").st_ino}
    assert os.stat("second").st_nlink == 3
    with open("d/third", "ab") as file:
        file.write(b" two")
    assert read("file") == b"one two"
    os.unlink("file")
    assert os.stat("second").st_nlink == 2 and read("second") == b"one two"
    fails(errno.EEXIST, os.link, "second", "d/third")
    fails(errno.EPERM, os.link, "d", "directory")

    targets = {"relative": "d/third", "dangling": "no/such/thing", "up": "../d/../d", "absolute": "/etc/passwd"}
    targets["long"] = "x/" * 2047 + "y"
    for name, target in targets.items():
        os.symlink(target, name)
        assert os.readlink(name) == target and os.lstat(name).st_size == len(target), name
    assert read("relative") == b"one two" and read("absolute") == read("/etc/passwd")
    fails(errno.ENOENT, os.stat, "dangling")
    os.symlink("loop2", "loop1")
    os.symlink("loop1", "loop2")
    fails(errno.ELOOP, os.stat, "loop1")
    os.link("dangling", "linked-symlink", follow_symlinks=False)
    assert os.readlink("linked-symlink") == "no/such/thing"


def names(top):
    top = os.fsencode(top)
    wanted = {bytes([byte]) * 3 for byte in range(1, 256) if byte not in b"/"}
    wanted.remove(b"...")
    wanted |= {b"...", b"....", b" ", b"a b", b"-rf", b"new\nline", b"tab\t", b"back\\slash", b"'quote\"", b"*?[]"}
    wanted |= {b"n" * 255, "ä".encode() * 127 + b"x", "\U0001f980".encode() * 63 + b"crab"[:3], b"\xff" * 255}
    wanted |= {b"\xc3", b"\xc3\x28", b"\xed\xa0\x80", b"latin-\xe4\xf6\xfc"}
    for name in wanted:
        write(os.path.join(top, name), name)
    assert set(os.listdir(top)) == wanted
    for name in wanted:
        assert read(os.path.join(top, name)) == name
    for name in (b"n" * 256, "ä".encode() * 128):
        fails(errno.ENAMETOOLONG, write, os.path.join(top, name), b"")
        fails(errno.ENAMETOOLONG, os.stat, os.path.join(top, name))
    # Case and normal forms stay apart.
    for name in (b"Case", b"case", "é".encode(), "e\u0301".encode()):
        write(os.path.join(top, name), name)
    assert read(os.path.join(top, b"Case")) == b"Case"
    assert len(os.listdir(top)) == len(wanted) + 4


def deep(top):
    """A directory so deep that its path is longer than PATH_MAX: made and walked by descriptor."""
    levels = 120
    at = os.open(top, os.O_RDONLY | os.O_DIRECTORY)
    for level in range(levels):
        name = f"{level:03}-" + "d" * 60
        os.mkdir(name, dir_fd=at)
        below = os.open(name, os.O_RDONLY | os.O_DIRECTORY, dir_fd=at)
        os.close(at)
        at = below
    file = os.open("bottom", os.O_CREAT | os.O_RDWR, 0o644, dir_fd=at)
    os.write(file, b"reached")
    os.close(file)
    for _ in range(levels):
        above = os.open("..", os.O_RDONLY | os.O_DIRECTORY, dir_fd=at)
        os.close(at)
        at = above
    found, below = os.fstat(at), os.stat(top)
    assert (found.st_dev, found.st_ino) == (below.st_dev, below.st_ino)
    os.close(at)


def sparse(top):
    """A file of more than 5 GiB that is nearly all hole; offsets on both sides of 4 GiB."""
    path = os.path.join(top, "sparse")
    marks = {0: b"start", GIB - 3: b"round 1 GiB", 4 * GIB - 4: b"over the 4 GiB edge", 5 * GIB + 12345: b"end"}
    size = 5 * GIB + 12345 + 3
    with open(path, "w+b", buffering=0) as file:
        for offset, mark in reversed(marks.items()):
            assert os.pwrite(file.fileno(), mark, offset) == len(mark)
        os.fsync(file.fileno())
        found = os.fstat(file.fileno())
        assert found.st_size == size, found.st_size
        assert found.st_blocks * 512 < 4 << 20, found.st_blocks
        for offset, mark in marks.items():
            assert os.pread(file.fileno(), len(mark), offset) == mark
        assert os.pread(file.fileno(), 4096, 3 * GIB) == bytes(4096)
        assert os.pread(file.fileno(), 100, size - 1) == b"d" and os.pread(file.fileno(), 100, size) == b""
        hole = os.lseek(file.fileno(), 0, os.SEEK_HOLE)
        data = os.lseek(file.fileno(), hole, os.SEEK_DATA)
        assert 5 <= hole <= GIB - 3 and hole < data <= GIB - 3, (hole, data)
        assert os.lseek(file.fileno(), 0, os.SEEK_END) == size
        os.ftruncate(file.fileno(), 4 * GIB + 2)
        os.ftruncate(file.fileno(), size)
        assert os.pread(file.fileno(), 30, 4 * GIB - 4) == b"over t" + bytes(24)
        os.posix_fallocate(file.fileno(), 2 * GIB, 1 << 20)
        assert os.fstat(file.fileno()).st_blocks * 512 >= 1 << 20 and os.fstat(file.fileno()).st_size == size


def attributes(top):
    os.chdir(top)
    write("file", bytes(10000))
    for mode in (0o600, 0o4755, 0o2755, 0o1777, 0o000, 0o644):
        os.chmod("file", mode)
        assert stat.S_IMODE(os.stat("file").st_mode) == mode
    os.truncate("file", 100)
    assert os.stat("file").st_size == 100
    os.utime("file", ns=(1_000_000_001, 2_000_000_000_000_000_003))
    found = os.stat("file")
    assert (found.st_atime_ns, found.st_mtime_ns) == (1_000_000_001, 2_000_000_000_000_000_003)
    os.mkfifo("fifo")
    assert stat.S_ISFIFO(os.stat("fifo").st_mode)
    os.mkdir("directory")
    assert os.stat(".").st_nlink == 3
    found = os.statvfs(".")
    assert found.f_blocks > 0 and found.f_namemax == 255

    # A file without a name lives as long as it is open.
    with open("gone", "w+b", buffering=0) as file:
        os.unlink("gone")
        file.write(b"still here")
        assert os.fstat(file.fileno()).st_nlink == 0
        assert os.pread(file.fileno(), 100, 0) == b"still here"
    fails(errno.ENOENT, os.stat, "gone")


def owners(top):
    """What only root may do: give files away, be another user, make devices."""
    os.chdir(top)
    write("file", b"given away")
    os.chown("file", 1234, 4321)
    assert (os.stat("file").st_uid, os.stat("file").st_gid) == (1234, 4321)
    os.chmod("file", 0o6755)
    os.chown("file", 1235, -1)
    assert stat.S_IMODE(os.stat("file").st_mode) == 0o755
    os.mknod("device", 0o600 | stat.S_IFCHR, os.makedev(1, 3))
    assert os.stat("device").st_rdev == os.makedev(1, 3)
    assert read("device") == b""

    os.chmod(".", 0o777)
    child = os.fork()
    if child == 0:
        os.setgroups([])
        os.setgid(77)
        os.setuid(1235)
        write("mine", b"by another user")
        os.mkdir("my-directory")
        os.symlink("mine", "my-link")
        fails(errno.EPERM, os.chown, "mine", 1, 1)
        fails(errno.EPERM, os.chmod, "my-directory/..", 0o700)
        os.chmod("mine", 0o600)
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
    for name in ("mine", "my-directory", "my-link"):
        assert (os.lstat(name).st_uid, os.lstat(name).st_gid) == (1235, 77)


def mapped(top):
    """A shared mapping and the file's descriptor see each other's bytes."""
    path = os.path.join(top, "mapped")
    with open(path, "w+b", buffering=0) as file:
        os.ftruncate(file.fileno(), 1 << 20)
        with mmap.mmap(file.fileno(), 1 << 20) as memory:
            memory[4090:4101] = b"both pages!"
            memory.flush()
            assert os.pread(file.fileno(), 11, 4090) == b"both pages!"
            os.pwrite(file.fileno(), b"by write", 500_000)
            assert memory[500_000:500_008] == b"by write"
    assert read(path)[4090:4101] == b"both pages!"


def crowded(top):
    """A directory of thousands: listed whole, while it grows, and while it is emptied."""
    wanted = {f"entry-{number:05}-{'x' * (number % 90)}" for number in range(2000)}
    for name in sorted(wanted):
        os.close(os.open(os.path.join(top, name), os.O_CREAT | os.O_WRONLY, 0o644))
    assert set(os.listdir(top)) == wanted
    seen = set()
    for entry in os.scandir(top):
        seen.add(entry.name)
        assert entry.is_file(follow_symlinks=False)
        os.unlink(entry.path)
    assert seen == wanted and os.listdir(top) == []
    write(os.path.join(top, "last"), b"last")


def database(top):
    """A sqlite database in WAL mode under two writers and a reader, each its own process."""
    path = os.path.join(top, "data.db")

    def connect():
        return sqlite3.connect(path, timeout=60, isolation_level=None)

    def writer(who):
        connection = connect()
        for number in range(60):
            connection.execute("BEGIN IMMEDIATE")
            connection.execute("INSERT INTO log VALUES (?, ?, ?)", (who, number, os.urandom(2000)))
            connection.execute("UPDATE total SET value = value + 1")
            connection.execute("COMMIT")
        connection.close()

    def reader():
        connection = connect()
        last = 0
        while last < 120:
            (rows,), (total,) = connection.execute("SELECT count(*) FROM log UNION ALL SELECT value FROM total")
            assert rows == total and rows >= last, (rows, total, last)
            last = rows
        connection.close()

    first = connect()
    assert first.execute("PRAGMA journal_mode = WAL").fetchone() == ("wal",)
    first.execute("CREATE TABLE log (who INTEGER, number INTEGER, body BLOB, PRIMARY KEY (who, number))")
    first.execute("CREATE TABLE total (value INTEGER)")
    first.execute("INSERT INTO total VALUES (0)")
    first.close()
    fork = multiprocessing.get_context("fork")
    workers = [
        fork.Process(target=writer, args=(1,)),
        fork.Process(target=writer, args=(2,)),
        fork.Process(target=reader),
    ]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert [worker.exitcode for worker in workers] == [0, 0, 0]
    last = connect()
    assert last.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    assert last.execute("SELECT count(*) FROM log").fetchone() == (120,)
    last.close()


def locks(path, log, *steps):
    """Takes locks on a file one after the other, says in the file ``log`` how each went, and keeps them until it is ended.

    A step is HOW:MODE:WAIT:FIRST:LENGTH (fcntl or flock; shared, exclusive or none; wait or try; bytes), or when:FILE, which
    waits until that file is there.
    """
    with open(path, "r+b", buffering=0) as file, open(log, "a") as said:
        for step in steps:
            how, *rest = step.split(":")
            if how == "when":
                while not os.path.exists(rest[0]):
                    time.sleep(0.01)
                continue
            mode, wait, first, length = rest
            operation = {"shared": fcntl.LOCK_SH, "exclusive": fcntl.LOCK_EX, "none": fcntl.LOCK_UN}[mode]
            operation |= fcntl.LOCK_NB if wait == "try" else 0
            try:
                if how == "flock":
                    fcntl.flock(file, operation)
                else:
                    fcntl.lockf(file, operation, int(length), int(first))
                outcome = "granted"
            except OSError as error:
                outcome = errno.errorcode[error.errno].replace("EDEADLOCK", "EDEADLK")
            print(outcome, file=said, flush=True)
        signal.pause()


def unnamed(path):
    """A file that has lost its name, on whichever side, is a file in all else."""
    with open(path, "r+b", buffering=0) as file:
        os.unlink(path)
        assert os.fstat(file.fileno()).st_nlink == 0
        file.write(b"still")
        os.ftruncate(file.fileno(), 100)
        os.fchmod(file.fileno(), 0o600)
        os.fsync(file.fileno())
        assert os.pread(file.fileno(), 5, 0) == b"still"
        assert os.fstat(file.fileno()).st_size == 100
        fails(errno.ENOENT, os.stat, path)
        write(path, b"another file of that name")
        assert os.fstat(file.fileno()).st_ino != os.stat(path).st_ino
        assert os.pread(file.fileno(), 5, 0) == b"still"


def partly(top):
    """Listings that are broken off, started anew in the middle, and gone back in."""
    for _ in range(3):
        with os.scandir(top) as entries:
            assert len([next(entries) for _ in range(7)]) == 7
    directory = os.open(top, os.O_RDONLY | os.O_DIRECTORY)
    buffer = ctypes.create_string_buffer(300)
    getdents64 = 217

    def some():
        length = libc.syscall(getdents64, directory, buffer, len(buffer))
        assert length >= 0, os.strerror(ctypes.get_errno())
        names, at = [], 0
        while at < length:
            size = int.from_bytes(buffer.raw[at + 16 : at + 18], "little")
            names.append(buffer.raw[at + 19 : at + size].split(b"\0")[0])
            at += size
        return names

    first, second = some(), some()
    assert first and second and not set(first) & set(second)
    os.lseek(directory, 0, os.SEEK_SET)
    assert some() == first
    os.close(directory)


if __name__ == "__main__":
    globals()[sys.argv[1]](*sys.argv[2:])
