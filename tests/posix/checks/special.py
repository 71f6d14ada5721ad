"""FIFOs, sockets and device nodes."""

import errno
import os
import socket
import stat

from tests.posix.check import check, each, fails, not_run, same
from tests.posix.file import folder, write
from tests.posix.peer import Line, Peer
from tests.posix.user import ALICE, acting_as, need_root


@check
def fifo_between_processes() -> None:
    """fifo(7): what one process writes another reads; the end of the writers is the end of the data."""
    os.mkfifo("f")

    def writer(line: Line) -> None:
        with open("f", "wb") as file:
            file.write(b"through the fifo")

    peer = Peer(writer)
    with open("f", "rb") as file:
        same(file.read(), b"through the fifo")
    peer.result()


@check
def fifo_without_a_reader() -> None:
    """fifo(7): ENXIO for a writer with O_NONBLOCK when nobody reads; a reader need not wait."""
    os.mkfifo("f")
    fails(errno.ENXIO, os.open, "f", os.O_WRONLY | os.O_NONBLOCK)
    reader = os.open("f", os.O_RDONLY | os.O_NONBLOCK)
    writer = os.open("f", os.O_WRONLY | os.O_NONBLOCK)
    os.write(writer, b"x")
    same(os.read(reader, 10), b"x")


@check
def fifo_by_two_names() -> None:
    """fifo(7): all names of a FIFO are one pipe."""
    os.mkfifo("f")
    os.link("f", "g")
    reader = os.open("f", os.O_RDONLY | os.O_NONBLOCK)
    os.write(os.open("g", os.O_WRONLY), b"x")
    same(os.read(reader, 10), b"x")


@check
def fifo_has_no_size() -> None:
    """stat(2): a FIFO with data in it is of size 0, and data are not stored in the file system."""
    os.mkfifo("f")
    file = os.open("f", os.O_RDWR)
    os.write(file, b"data")
    same((os.stat("f").st_size, stat.S_ISFIFO(os.stat("f").st_mode)), (0, True))
    fails(errno.ESPIPE, os.lseek, file, 0, os.SEEK_SET)


@each({"stream": (socket.SOCK_STREAM,), "datagram": (socket.SOCK_DGRAM,), "seqpacket": (socket.SOCK_SEQPACKET,)})
def socket_between_processes(kind: int) -> None:
    """unix(7): a {case} socket that is bound to a name is reached by it."""
    with socket.socket(socket.AF_UNIX, kind) as server:
        server.bind("s")
        assert stat.S_ISSOCK(os.stat("s").st_mode)
        if kind != socket.SOCK_DGRAM:
            server.listen()

        def client(line: Line) -> None:
            with socket.socket(socket.AF_UNIX, kind) as mine:
                mine.connect("s")
                mine.sendall(b"hello")

        peer = Peer(client)
        receiver = server if kind == socket.SOCK_DGRAM else server.accept()[0]
        same(receiver.recv(10), b"hello")
        peer.result()


@check
def socket_nobody_listens_at() -> None:
    """unix(7): ECONNREFUSED for a socket's name without a listener; EADDRINUSE to bind it again."""
    with socket.socket(socket.AF_UNIX) as server:
        server.bind("s")
    with socket.socket(socket.AF_UNIX) as other:
        fails(errno.ECONNREFUSED, other.connect, "s")
        fails(errno.EADDRINUSE, other.bind, "s")
        os.unlink("s")
        fails(errno.ENOENT, other.connect, "s")
        other.bind("s")


@check
def socket_cannot_be_opened() -> None:
    """open(2): ENXIO for a socket."""
    with socket.socket(socket.AF_UNIX) as server:
        server.bind("s")
        fails(errno.ENXIO, os.open, "s", os.O_RDONLY)


@check
def socket_permissions() -> None:
    """unix(7): connecting needs write permission on the socket's name."""
    need_root()
    with socket.socket(socket.AF_UNIX) as server:
        server.bind("s")
        server.listen()
        for bits, may in ((0o600, False), (0o666, True)):
            os.chmod("s", bits)
            with acting_as(ALICE), socket.socket(socket.AF_UNIX) as client:
                if may:
                    client.connect("s")
                else:
                    fails(errno.EACCES, client.connect, "s")


@check
def socket_moved_and_linked() -> None:
    """unix(7): a socket is reached by whatever name its inode has."""
    with socket.socket(socket.AF_UNIX) as server:
        server.bind("s")
        server.listen()
        os.link("s", "linked")
        os.rename("s", "moved")
        for name in ("linked", "moved"):
            with socket.socket(socket.AF_UNIX) as client:
                client.connect(name)
                server.accept()[0].close()


@each(
    {
        "null": (stat.S_IFCHR, 1, 3),
        "large_numbers": (stat.S_IFCHR, 4095, 1_048_575),
        "block": (stat.S_IFBLK, 7, 200),
        "zero": (stat.S_IFCHR, 0, 0),
    }
)
def device_numbers(kind: int, major: int, minor: int) -> None:
    """mknod(2): a device node keeps its kind and numbers: {case}."""
    need_root()
    os.mknod("dev", kind | 0o640, os.makedev(major, minor))
    found = os.stat("dev")
    same((stat.S_IFMT(found.st_mode), os.major(found.st_rdev), os.minor(found.st_rdev)), (kind, major, minor))


@check
def device_is_opened() -> None:
    """mknod(2), mount(8): a character device leads to its driver, where the mount allows devices."""
    need_root()
    os.mknod("zero", stat.S_IFCHR | 0o666, os.makedev(1, 5))
    try:
        file = os.open("zero", os.O_RDWR)
    except OSError as error:
        if error.errno not in (errno.EACCES, errno.EPERM):
            raise
        not_run("mounted with nodev")
    same((os.read(file, 4), os.write(file, b"gone")), (bytes(4), 4))


@check
def device_needs_a_capability() -> None:
    """mknod(2): EPERM for a device without CAP_MKNOD; FIFOs and sockets need none."""
    need_root()
    folder("d", 0o777)
    with acting_as(ALICE):
        fails(errno.EPERM, os.mknod, "d/dev", stat.S_IFCHR | 0o666, os.makedev(1, 3))
        fails(errno.EPERM, os.mknod, "d/dev", stat.S_IFBLK | 0o666, os.makedev(7, 0))
        os.mkfifo("d/f")
        os.mknod("d/s", stat.S_IFSOCK | 0o600)
    same(sorted(os.listdir("d")), ["f", "s"])


@check
def mknod_of_a_file() -> None:
    """mknod(2): S_IFREG, or no type, makes an empty file."""
    os.mknod("a", stat.S_IFREG | 0o600)
    os.mknod("b", 0o600)
    for name in ("a", "b"):
        assert stat.S_ISREG(os.stat(name).st_mode)
        write(name, b"x")


@check
def mknod_of_nonsense() -> None:
    """mknod(2): EPERM or EINVAL for directories, links and unknown types."""
    for kind in (stat.S_IFDIR, stat.S_IFLNK, 0o030000):
        fails((errno.EPERM, errno.EINVAL), os.mknod, "x", kind | 0o600)
    same(os.listdir(), [])


@check
def mknod_of_dot() -> None:
    """mknod(2): EEXIST for a name that is there."""
    fails(errno.EEXIST, os.mknod, ".", stat.S_IFREG | 0o600)
