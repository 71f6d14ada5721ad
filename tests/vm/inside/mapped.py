"""Checks of mapped files, run in a guest by its own Python: ``mapped.py NAME PATH [NUMBER]``.

Each is a function of a path on a share, and fails by an assertion. What is mapped lies in the DAX window where the file is
one that is mapped there, in the guest's page cache where it is not: the results must be the same.
"""

import ctypes
import mmap
import os
import random
import signal
import sys
import time

MIB = 1 << 20
PAGE = 4096
FALLOC_FL_KEEP_SIZE = 1
FALLOC_FL_PUNCH_HOLE = 2
AT_FDCWD = -100
STATX_ATTR_DAX = 0x200000

libc = ctypes.CDLL(None, use_errno=True)
libc.fallocate.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64)


def is_dax(path):
    """Whether the kernel maps this file past its page cache: stx_attributes of statx(2)."""
    statx = (ctypes.c_uint64 * 32)()
    assert libc.statx(AT_FDCWD, os.fsencode(path), 0, 0, statx) == 0, os.strerror(ctypes.get_errno())
    return bool(statx[1] & STATX_ATTR_DAX)


def which(top):
    """Prints the names of the files that are mapped."""
    print(*sorted(name for name in os.listdir(top) if is_dax(os.path.join(top, name))))


def punch(fd, offset, length):
    if libc.fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, offset, length) != 0:
        raise OSError(ctypes.get_errno(), "fallocate")


def everything(path):
    """One file, 5 MiB and some bytes, through its whole life, all the while open, mapped or both."""
    content = bytearray(random.Random(7).randbytes(5 * MIB + 77))
    with open(path, "wb") as file:
        file.write(content)
    # Opened anew, so that a file that was too small to be mapped when it was made is seen as it is now.
    with open("/proc/sys/vm/drop_caches", "w") as drop:
        drop.write("3")
    fd = os.open(path, os.O_RDWR)

    def same():
        """By read(2), by a mapping, and in its size."""
        assert os.fstat(fd).st_size == len(content)
        assert os.pread(fd, len(content) + 1, 0) == content
        with mmap.mmap(fd, 0, prot=mmap.PROT_READ) as seen:
            assert seen[:] == content

    same()
    with mmap.mmap(fd, 0) as mapped:
        for at in (0, 4095, 2 * MIB - 3, 4 * MIB, len(content) - 6):
            mapped[at : at + 6] = b"mapped"
            content[at : at + 6] = b"mapped"
        assert os.pread(fd, 6, 2 * MIB - 3) == b"mapped"
        os.pwrite(fd, b"written", 3 * MIB)
        content[3 * MIB : 3 * MIB + 7] = b"written"
        assert mapped[3 * MIB : 3 * MIB + 7] == b"written"
        mapped.flush()
    same()

    # It grows by a little, within its last page, beyond that, and by a hole.
    for more in (b"x", b"y" * 5000, b"z" * 3 * MIB):
        with open(path, "ab") as file:
            file.write(more)
        content += more
        same()
    os.ftruncate(fd, len(content) + MIB)
    content += bytes(MIB)
    same()

    # It shrinks while it is mapped, and grows again: nothing of what was there comes back.
    with mmap.mmap(fd, 0) as mapped:
        assert mapped[6 * MIB] == content[6 * MIB]
        os.ftruncate(fd, 3 * MIB + 5)
        del content[3 * MIB + 5 :]
        assert mapped[: len(content)] == content
        os.ftruncate(fd, 6 * MIB)
        content += bytes(6 * MIB - len(content))
        assert mapped[: len(content)] == content
        punch(fd, PAGE, 2 * MIB)
        content[PAGE : PAGE + 2 * MIB] = bytes(2 * MIB)
        assert mapped[: len(content)] == content
        os.rename(path, path + ".moved")
        os.rename(path + ".moved", path)
        mapped[5] = content[5] = 200
        same()

    # Whoever truncates it at open.
    with open(path, "wb") as file:
        file.write(b"short")
    content[:] = b"short"
    same()
    os.close(fd)
    content[:] = random.Random(8).randbytes(4 * MIB + 1)
    with open(path, "wb") as file:
        file.write(content)


def in_a_child(what):
    """Runs it in a process of its own: the signal that ended it, or 0."""
    child = os.fork()
    if child == 0:
        signal.signal(signal.SIGBUS, signal.SIG_DFL)
        what()
        os._exit(0)
    return os.WTERMSIG(os.waitpid(child, 0)[1])


def truncated_at_open(path):
    """Another process opens a file with O_TRUNC while it is mapped here, all of it in use, and writes a little."""
    content = random.Random(13).randbytes(5 * MIB)
    with open(path, "wb") as file:
        file.write(content)
    with open(path, "r+b") as file, mmap.mmap(file.fileno(), 0) as mapped:
        assert mapped[:] == content
        mapped[4 * MIB] = 1

        def open_anew():
            with open(path, "wb") as other:
                other.write(b"short")

        assert in_a_child(open_anew) == 0
        assert os.fstat(file.fileno()).st_size == 5
        assert mapped[:PAGE] == b"short" + bytes(PAGE - 5)
        # Behind the end there is nothing, for who reads and who writes, and also where a mapping of its own was.
        assert in_a_child(lambda: mapped[2 * PAGE]) == signal.SIGBUS
        assert in_a_child(lambda: mapped.__setitem__(4 * MIB, 2)) == signal.SIGBUS
        os.ftruncate(file.fileno(), 4 * MIB + 1)
        assert mapped[PAGE : 4 * MIB + 1] == bytes(4 * MIB + 1 - PAGE)
        mapped[3 * MIB : 3 * MIB + 6] = b"stored"
        assert os.pread(file.fileno(), 6, 3 * MIB) == b"stored"


def buffers(path):
    """Reads and writes of one file to and from the mapping of another, O_DIRECT and not."""
    content = random.Random(9).randbytes(3 * MIB)
    with open(path, "wb") as file:
        file.write(content + b"end")
    with open(path, "r+b") as file, mmap.mmap(file.fileno(), 0) as mapped:
        for number, flag in enumerate((0, os.O_DIRECT)):
            other = f"{path}.{number}"
            out = os.open(other, os.O_RDWR | os.O_CREAT | flag)
            whole = memoryview(mapped)[: 3 * MIB]
            assert os.pwritev(out, [whole], 0) == 3 * MIB
            whole[:] = bytes(3 * MIB)
            assert os.preadv(out, [whole], 0) == 3 * MIB
            assert whole == content
            # The last page, of which the file has three bytes: the others are in memory alone.
            os.pwrite(out, b"\1" * PAGE if not flag else content[:PAGE], 0)
            whole.release()
            os.close(out)
        assert mapped[3 * MIB :] == b"end"


def random_pages(path, megabytes):
    """Stores and loads all over a file that is larger than the window, and says what is to be found in it."""
    numbers, pages = random.Random(10), int(megabytes) * MIB // PAGE
    with open(path, "r+b") as file, mmap.mmap(file.fileno(), 0) as mapped:
        model = {}
        for _ in range(3000):
            page = numbers.randrange(pages)
            assert mapped[page * PAGE : page * PAGE + 8] == model.get(page, page.to_bytes(8, "little")), page
            model[page] = numbers.randbytes(8)
            mapped[page * PAGE : page * PAGE + 8] = model[page]
    for page, stored in model.items():
        print(page, stored.hex())


def exerciser(path, operations):
    """Operations at random on one file, each compared with a copy in memory: what fsx does."""
    seed = 20
    numbers, most = random.Random(seed), 6 * MIB
    content = bytearray(numbers.randbytes(3 * MIB))
    with open(path, "wb") as file:
        file.write(content)
    fd = os.open(path, os.O_RDWR)

    def place():
        at = numbers.randrange(max(1, len(content)))
        return at, numbers.randrange(1, 20000)

    for count in range(int(operations)):
        what = numbers.randrange(100)
        at, size = place()
        if what < 25:
            assert os.pread(fd, size, at) == content[at : at + size], (count, "read", at, size)
        elif what < 50 and content:
            with mmap.mmap(fd, 0, prot=mmap.PROT_READ) as mapped:
                assert mapped[at : at + size] == content[at : at + size], (count, "mapped read", at, size)
        elif what < 75:
            if at + size > most:
                continue
            data = numbers.randbytes(size)
            os.pwrite(fd, data, at)
            content[at : at + size] = data
        elif what < 90 and content:
            data = numbers.randbytes(min(size, len(content) - at))
            with mmap.mmap(fd, 0) as mapped:
                mapped[at : at + len(data)] = data
                if what < 78:
                    mapped.flush()
            content[at : at + len(data)] = data
        elif what < 95:
            size = numbers.randrange(most)
            os.ftruncate(fd, size)
            content[size:] = bytes(max(0, size - len(content)))
        elif what < 98 and content:
            punch(fd, at, size)
            size = min(size, len(content) - at)
            content[at : at + size] = bytes(size)
        else:
            os.close(fd)
            fd = os.open(path, os.O_RDWR)
        assert os.fstat(fd).st_size == len(content), (count, what)
    assert os.pread(fd, most, 0) == content
    os.close(fd)
    with open(path + ".expected", "wb") as file:
        file.write(content)


def host(path):
    """Stores, waits for what the host stores, and says so: no call but the loads and stores themselves."""
    with open(path, "r+b") as file, mmap.mmap(file.fileno(), 0) as mapped:
        assert mapped[:8] == b"the host"
        mapped[PAGE : PAGE + 9] = b"the guest"
        print("stored", flush=True)
        deadline = time.monotonic() + 60
        while mapped[2 * PAGE : 2 * PAGE + 5] != b"reply":
            assert time.monotonic() < deadline, "the host's store is not seen"
        print("seen", flush=True)


def ring(path, side):
    """Two thousand messages through a ring in a mapped file: `there` sends to `back`, which sends each back."""
    slots, size = 16, 256
    mine, theirs = (0, 8) if side == "there" else (8, 0)
    base = PAGE if side == "there" else PAGE + slots * size
    other = PAGE + slots * size if side == "there" else PAGE
    with open(path, "r+b") as file, mmap.mmap(file.fileno(), 0) as mapped:
        words = memoryview(mapped)[:16].cast("Q")

        def wait(count):
            deadline = time.monotonic() + 100
            while words[theirs // 8] < count:
                assert time.monotonic() < deadline, (side, count)

        def slot(start, number):
            at = start + number % slots * size
            return slice(at, at + size)

        for number in range(2000):
            message = number.to_bytes(8, "little") * (size // 8)
            if side == "there":
                mapped[slot(base, number)] = message
                words[mine // 8] = number + 1
                wait(number + 1)
                assert mapped[slot(other, number)] == message[::-1]
            else:
                wait(number + 1)
                assert mapped[slot(other, number)] == message
                mapped[slot(base, number)] = message[::-1]
                words[mine // 8] = number + 1
        words.release()
    print("done")


if __name__ == "__main__":
    globals()[sys.argv[1]](*sys.argv[2:])
