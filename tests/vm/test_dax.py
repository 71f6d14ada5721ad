"""Files mapped into guests: stock kernels under QEMU 11.1, whose test device is the one that has a DAX window.

Nothing helps QEMU but the daemon: see docs/dax.md, "QEMU".
"""

from __future__ import annotations

import hashlib
import mmap
import os
import random
import re
import threading
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.test_dax import Memfds
from virtiofs import Passthrough, Policy, Rule, Server

from . import daemon, provision
from .daemon import Daemon
from .guest import Guest, Share
from .qemu import Qemu
from .test_suites import FSX
from .work import Place

MIB = 1 << 20
PAGE = 4096
OPERATIONS = int(os.environ.get("VIRTIOFS_OPERATIONS", "1500"))
MODES = ["always", "inode"]
# QEMU's test device asks the daemon how many queues there are, and has as many as its command line says.
QUEUES = ["--request-queues", "1"]

pytestmark = [
    pytest.mark.skipif(not daemon.is_ours(), reason=f"{daemon.name()} has no DAX window"),
    pytest.mark.skipif(os.geteuid() != 0, reason="QEMU maps whole pages of files alone, unless the daemon is root"),
]


@contextmanager
def mapping(
    folder: Path, mode: str = "inode", window: str = "64M", *options: str, shares: Sequence[Share] = (), **qemu: Any
) -> Iterator[Place]:
    """A guest with `folder` mounted by `mode`, over a window of so many bytes."""
    with (
        Daemon(folder, options=[*QUEUES, "--dax-window", window, *options]) as served,
        Qemu([Share(served.socket, options=f"dax={mode}", window=True), *shares], **qemu) as guest,
    ):
        give_checks(guest)
        yield Place(guest, served, "/mnt/share", folder)


def give_checks(guest: Guest) -> None:
    guest.put("/run/mapped.py", (Path(__file__).parent / "inside/mapped.py").read_bytes())


def check(place: Place, name: str, *arguments: str | int, timeout: float = 120) -> str:
    """Runs a check of inside/mapped.py on a file of the share."""
    words = " ".join(map(str, arguments))
    return place.guest.check(f"python3 -I /run/mapped.py {name} {place.inside}/{words}", timeout)


def healthy(place: Place) -> None:
    """Nobody complained: neither the guest's kernel nor the daemon."""
    assert place.guest.complaints() == []
    assert place.daemon.alive()
    log = place.daemon.log()
    assert not [line for line in log.splitlines() if " WARN " in line or " ERROR " in line or "panicked" in line]


@pytest.fixture(scope="module", params=MODES)
def place(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    with (
        Daemon(provision.cache().suites, "suites", cache="always", options=["--readonly"]) as suites,
        mapping(
            tmp_path_factory.mktemp("share"), request.param, shares=[Share(suites.socket, "suites", "/mnt/suites")]
        ) as place,
    ):
        yield place


def test_the_kernel_has_the_window(place: Place) -> None:
    log = place.guest.kernel_log()
    assert re.search(r"virtiofs virtio\d+: Cache len: 0x4000000 @", log), log
    assert "has a DAX window" in place.daemon.log()


def test_everything_that_happens_to_a_file(place: Place) -> None:
    check(place, "everything", "life")
    assert (place.outside / "life").read_bytes() == random.Random(8).randbytes(4 * MIB + 1)
    healthy(place)


def test_a_mapped_file_is_truncated_at_open(place: Place) -> None:
    check(place, "truncated_at_open", "truncated")
    expected = bytearray(4 * MIB + 1)
    expected[:5], expected[3 * MIB : 3 * MIB + 6] = b"short", b"stored"
    assert (place.outside / "truncated").read_bytes() == expected
    healthy(place)


def test_buffers_in_the_window(place: Place) -> None:
    check(place, "buffers", "buffer")
    content = random.Random(9).randbytes(3 * MIB)
    assert (place.outside / "buffer").read_bytes() == content + b"end"
    for number in (0, 1):
        assert (place.outside / f"buffer.{number}").read_bytes()[PAGE:] == content[PAGE:]
    healthy(place)


def test_host_and_guest_see_each_others_stores(place: Place) -> None:
    file = place.outside / "shared"
    file.write_bytes(b"the host" + bytes(100 * PAGE))
    with file.open("r+b") as opened, mmap.mmap(opened.fileno(), 0) as mapped:
        for line in place.guest.stream(f"python3 -I /run/mapped.py host {place.inside}/shared 2>&1"):
            if line == "stored":
                assert mapped[PAGE : PAGE + 9] == b"the guest"
                mapped[2 * PAGE : 2 * PAGE + 5] = b"reply"
            else:
                assert line == "seen", line
                break
        else:
            pytest.fail("the guest said nothing")
    healthy(place)


def test_a_thousand_operations(place: Place) -> None:
    check(place, "exerciser", "exercised", 1000)
    assert (place.outside / "exercised").read_bytes() == (place.outside / "exercised.expected").read_bytes()
    healthy(place)


@pytest.mark.slow
def test_fifty_thousand_operations(place: Place) -> None:
    check(place, "exerciser", "exercised", 50_000, timeout=550)
    assert (place.outside / "exercised").read_bytes() == (place.outside / "exercised.expected").read_bytes()
    healthy(place)


@pytest.mark.timeout(600 + OPERATIONS // 10, method="signal")
def test_fsx(place: Place) -> None:
    """Its file is three granules of the window long, and half of what it does goes through mappings.

    VIRTIOFS_OPERATIONS says how many operations; in emulation on an idle machine a thousand take some seconds.
    """
    place.guest.put("/tmp/fsx.toml", f"flen = {6 * MIB}\n{FSX}".encode())
    fsx = f"/mnt/suites/usr/bin/fsx -f /tmp/fsx.toml -N {OPERATIONS} -S 3 -P /tmp fsx"
    # Large enough to be mapped when it is seen first, and known to the guest for as long as somebody has it open.
    (place.outside / "fsx").write_bytes(bytes(MIB))
    script = f"cd {place.inside}\nexec 9< fsx\n{fsx}\npython3 -I /run/mapped.py which ."
    said = place.guest.check(script, timeout=550 + OPERATIONS // 10)
    assert "fsx" in said.splitlines()[-1].split(), "it was mapped"
    assert (place.outside / "fsx").stat().st_size <= 6 * MIB
    healthy(place)


def test_reading_leaves_no_copy_in_the_guest(place: Place) -> None:
    (place.outside / "once").write_bytes(random.Random(11).randbytes(48 * MIB))
    measure = "awk '/^Cached/ {print $2}' /proc/meminfo"
    script = f"sync; echo 3 > /proc/sys/vm/drop_caches; {measure}; md5sum < {place.inside}/once; {measure}"
    before, digest, after = place.guest.check(script).splitlines()
    assert digest.split()[0] == hashlib.md5((place.outside / "once").read_bytes()).hexdigest()
    assert int(after) - int(before) < 8 * 1024, "KiB of 48 MiB"


def test_which_files_are_mapped(tmp_path: Path) -> None:
    """Large ones, in a mount that leaves it to the daemon: no option says so."""
    for name, size in (("empty", 0), ("small", 65535), ("large", 65536), ("larger", MIB)):
        (tmp_path / name).write_bytes(bytes(size))
    with mapping(tmp_path, "inode") as place:
        assert check(place, "which", "").split() == ["large", "larger"]
        place.guest.check("umount /mnt/share\nmount -t virtiofs share /mnt/share")
        assert check(place, "which", "").split() == ["large", "larger"], "as without any option"
        place.guest.check("umount /mnt/share\nmount -t virtiofs -o dax=never share /mnt/share")
        assert check(place, "which", "").split() == []
        place.guest.check("umount /mnt/share\nmount -t virtiofs -o dax=always share /mnt/share")
        assert check(place, "which", "").split() == ["empty", "large", "larger", "small"]
        healthy(place)


def test_rules_and_python_say_which_files(tmp_path: Path) -> None:
    """A directory with rules, and files in memory that a Python file system gives: two windows in one guest."""
    folder = tmp_path / "folder"
    folder.mkdir()
    for name, size in (("never", MIB), ("always", 10), ("other", MIB)):
        (folder / name).write_bytes(b"x" * size)
    policy = Policy(Rule(name="never", dax="never"), Rule(name="always", dax="always"))
    sockets = tmp_path / "a", tmp_path / "b"
    window: dict[str, Any] = {"request_queues": 1, "dax_window": "16M"}
    with closing(Memfds()) as memfds:
        for name, fd in memfds.files.items():
            os.pwrite(fd, f"{name} on the host".encode(), 0)
        with (
            Server(Passthrough(folder, policy=policy), socket=sockets[0], tag="share", **window),
            Server(memfds, socket=sockets[1], tag="files", **window),
            Qemu([Share(sockets[0], window=True), Share(sockets[1], "files", "/mnt/files", window=True)]) as guest,
        ):
            give_checks(guest)
            assert guest.check("python3 -I /run/mapped.py which /mnt/share").split() == ["always", "other"]
            assert guest.check("python3 -I /run/mapped.py which /mnt/files").split() == ["mapped"]
            store = (
                "import mmap, sys; file = open(sys.argv[1], 'r+b'); mapped = mmap.mmap(file.fileno(), 0); "
                "print(mapped[:].decode()); mapped[:7] = b'MAPPED '"
            )
            for path, there in (("/mnt/share/always", "x" * 10), ("/mnt/files/mapped", "mapped on the host")):
                assert guest.check(f'python3 -I -c "{store}" {path}').strip() == there
            assert (folder / "always").read_bytes() == b"MAPPED xxx"
            assert os.pread(memfds.files["mapped"], 100, 0) == b"MAPPED on the host"
            assert guest.complaints() == []


def test_files_that_may_not_be_written_are_read(tmp_path: Path) -> None:
    """QEMU maps nothing that is not open for writing: a read-only share is served by requests, or not at all."""
    content = random.Random(12).randbytes(MIB + 3)
    (tmp_path / "file").write_bytes(content)
    with (
        Daemon(tmp_path, options=[*QUEUES, "--dax-window", "64M", "--readonly"]) as served,
        Qemu([Share(served.socket, mount="", window=True)]) as guest,
    ):
        guest.check("mkdir /mnt/share\nmount -t virtiofs share /mnt/share")
        digest = guest.check("md5sum < /mnt/share/file").split()[0]
        assert digest == hashlib.md5(content).hexdigest()
        guest.check("umount /mnt/share")
        assert guest.run("mount -t virtiofs -o dax=always share /mnt/share\ncat /mnt/share/file").status != 0
        assert "dax=always" in served.log()
        assert served.alive()


@pytest.mark.parametrize("kernel", ["7", "6.1"])
def test_a_working_set_of_four_windows(kernel: str, tmp_path: Path) -> None:
    pages = 64 * MIB // PAGE
    with (tmp_path / "file").open("wb") as file:
        for page in range(pages):
            file.write(page.to_bytes(8, "little") + bytes(PAGE - 8))
    with mapping(tmp_path, "always", "16M", kernel=kernel) as place:
        for line in check(place, "random_pages", "file", 64, timeout=300).splitlines():
            number, stored = line.split()
            with (tmp_path / "file").open("rb") as file:
                assert os.pread(file.fileno(), 8, int(number) * PAGE).hex() == stored
        healthy(place)


def test_a_guest_that_reboots_or_is_killed_leaves_nothing(tmp_path: Path) -> None:
    """Whatever was mapped for one guest, the next one gets its own files at the same places."""
    contents = [random.Random(number).randbytes(20 * MIB) for number in range(3)]
    for number, content in enumerate(contents):
        (tmp_path / f"file{number}").write_bytes(content)
    digests = [hashlib.md5(content).hexdigest() for content in contents]
    hold = "(exec 3< {0}; md5sum <&3; sleep 1000 <&3) > /dev/null & md5sum < {0}"
    with Daemon(tmp_path, options=[*QUEUES, "--dax-window", "32M"]) as served:
        share = Share(served.socket, options="dax=always", window=True)
        # Without a root share: QEMU crashes at the restart if another vhost-user device with memory slots is there.
        with Qemu([share], reboots=True, root=False) as guest:
            for digest, name in zip(digests[:2], ("file0", "file1"), strict=True):
                assert guest.check(hold.format(f"/mnt/share/{name}")).split()[0] == digest
                guest.reboot()
                guest.mount(share)
            assert guest.check(hold.format("/mnt/share/file2")).split()[0] == digests[2]
            assert guest.complaints() == []
            guest.kill()
        assert served.answers(timeout=1)
        with Qemu([share], root=False) as guest:
            for number, digest in enumerate(digests):
                assert guest.check(f"md5sum < /mnt/share/file{number}").split()[0] == digest
            assert guest.complaints() == []
        assert "panicked" not in served.log()


def test_two_guests_talk_through_a_mapped_file(tmp_path: Path) -> None:
    (tmp_path / "ring").write_bytes(bytes(MIB))
    said: dict[str, str] = {}
    with ExitStack() as stack:
        first = stack.enter_context(mapping(tmp_path))
        second = stack.enter_context(mapping(tmp_path))

        def run(place: Place, side: str) -> None:
            said[side] = place.guest.run(
                f"python3 -I /run/mapped.py ring {place.inside}/ring {side} 2>&1"
            ).output.strip()

        sides = [threading.Thread(target=run, args=pair) for pair in ((first, "there"), (second, "back"))]
        for side in sides:
            side.start()
        for side in sides:
            side.join()
        assert said == {"there": "done", "back": "done"}
        healthy(first)
        healthy(second)
