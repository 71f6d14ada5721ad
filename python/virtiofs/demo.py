"""`virtiofs demo`: a directory of this host, a server for it, and a guest without a virtual machine that uses it."""

import os
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Final, TypeVar

from .cache import AUTO
from .passthrough import Passthrough
from .server import Server
from .testing import Guest

_T = TypeVar("_T")

_MIB: Final = 1 << 20


class _Transcript:
    """Prints what is done, how long it took, and what came of it."""

    def heading(self, text: str) -> None:
        print(f"\n{text}")

    def step(self, what: str, work: Callable[[], _T], result: Callable[[_T], str] = str) -> _T:
        begin = time.perf_counter()
        value = work()
        took = time.perf_counter() - begin
        print(f"  {what:<44} {_time(took):>9}  {result(value)}".rstrip())
        return value

    def rate(self, what: str, count: int, work: Callable[[], object], unit: str = "", amount: float = 0) -> None:
        begin = time.perf_counter()
        work()
        took = time.perf_counter() - begin
        each = f"{count / took:,.0f}/s" if not unit else f"{amount / took:,.0f} {unit}/s"
        print(f"  {what:<44} {_time(took):>9}  {each}")


def run(directory: str | None = None) -> int:
    """Shows the directory `directory`, or a new one with the modules of Python in it, and returns the exit status."""
    say = _Transcript()
    with ExitStack() as stack:
        scratch = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="virtiofs-demo-")))
        if directory is None:
            shared = scratch / "shared"
            (shared / "from-host").mkdir(parents=True)
            (shared / "from-host" / "hello").write_text("hello, guest\n")
        else:
            shared = Path(directory)
        fs = Passthrough(shared, AUTO, read_only=directory is not None)

        say.heading(f"host: serve {shared}")
        server = Server(fs, socket=scratch / "socket", tag="demo", once=True)
        say.step("start the server", server.start, lambda _: f"{server.request_queues} request queues, tag demo")
        stack.callback(server.close)

        say.heading("guest: mount it, over vhost-user, without a virtual machine")
        guest = say.step("connect, negotiate, mount", lambda: Guest(server), _session)
        stack.callback(guest.close)
        if directory is None:
            _write_and_read(say, guest, shared)
        tree = say.step("walk the tree", guest.walk, lambda found: f"{len(found):,} names")
        files = [path for path, attr in tree if attr.is_file and attr.size <= _MIB][:1000]
        if files:
            say.rate("read files", len(files), lambda: [guest.read_file(path) for path in files])
        root = guest.client
        say.rate("10,000 x GETATTR, one after the other", 10_000, lambda: [root.getattr(1) for _ in range(10_000)])

        say.heading("end")
        say.step("unmount", guest.close, lambda _: "")
        say.step(
            "the server ends with its guest (once)", lambda: server.wait(10), lambda over: "" if over else "it hangs"
        )
        stats = server.stats()
        say.step("close", server.close, lambda _: f"{sum(stats.requests.values()):,} requests served")
        return 0 if not stats.panics and not stats.malformed else 1


def _write_and_read(say: _Transcript, guest: Guest, shared: Path) -> None:
    """What only a directory of our own is used for."""
    say.step("what the host wrote, read by the guest", lambda: guest.read_file("from-host/hello"), repr)
    say.step("what the guest writes ...", lambda: _write(guest), lambda _: "")
    say.step("... is on the host", lambda: (shared / "from-guest").read_bytes(), repr)
    say.step("a symlink, a hard link, a rename", lambda: _names(guest), lambda names: " ".join(names))

    modules = [path for path in Path(os.__file__).parent.glob("*.py") if path.is_file()]
    content = [(f"modules/{path.name}", path.read_bytes()) for path in modules]
    guest.mkdir("modules")
    say.rate("write the modules of Python", len(content), lambda: _write_all(guest, content))
    same = all((shared / name).read_bytes() == data for name, data in content)
    print(
        f"  {'compare them on the host':<44} {'':>9}  {f'{len(content)} files, all the same' if same else 'they differ'}"
    )
    if not same:
        raise AssertionError("what the guest wrote is not what the host has")
    data = os.urandom(64 * _MIB)
    say.rate("write 64 MiB", 0, lambda: guest.write_file("big", data), "MiB", 64)
    say.rate("read it back", 0, lambda: _equal(guest.read_file("big"), data), "MiB", 64)


def _write(guest: Guest) -> None:
    guest.write_file("from-guest", b"hello, host\n")


def _write_all(guest: Guest, files: list[tuple[str, bytes]]) -> None:
    for name, data in files:
        guest.write_file(name, data)


def _names(guest: Guest) -> list[str]:
    guest.symlink("from-host/hello", "symlink")
    guest.link("from-guest", "hard-link")
    guest.rename("hard-link", "renamed")
    if guest.read_file("symlink") != b"hello, guest\n" or guest.stat("renamed").nlink != 2:
        raise AssertionError("the names do not lead where they should")
    return sorted(guest.listdir())


def _equal(one: bytes, other: bytes) -> None:
    if one != other:
        raise AssertionError("what was read is not what was written")


def _session(guest: Guest) -> str:
    session = guest.client.session
    return f"FUSE 7.{session['minor']}, requests up to {session['max_io'] >> 10} KiB"


def _time(seconds: float) -> str:
    """Returns a duration as people read it."""
    for unit, size in (("s", 1.0), ("ms", 1e-3)):
        if seconds >= size:
            return f"{seconds / size:.2f} {unit}"
    return f"{seconds * 1e6:.0f} us"
