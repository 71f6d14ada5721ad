"""A VMM that is killed in the middle of writes: the daemon goes on, and what was fsynced is there."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from . import daemon
from .daemon import Daemon
from .guest import Guest, Share
from .qemu import Qemu
from .uml import Uml

# A writer that says which of its files are on stable storage, beside one that never asks for that.
WRITER = """cd /mnt/share
(while :; do dd if=/dev/zero of=unsynced bs=65536 count=400 2>/dev/null; done) &
i=1
while :; do
    yes "file $i" 2>/dev/null | head -c 200000 > new || :
    sync new
    mv new file$i
    sync .
    echo $i
    i=$((i + 1))
done
"""


@pytest.mark.parametrize("boot", [lambda share: Uml([share]), lambda share: Qemu([share])], ids=["uml", "qemu"])
def test_nothing_fsynced_is_lost_and_the_next_guest_is_served(boot: Callable[[Share], Guest], tmp_path: Path) -> None:
    if not daemon.is_ours():
        pytest.skip(f"{daemon.name()} ends with its first guest")
    with Daemon(tmp_path) as served:
        pid = served.pid
        promised = 0
        with boot(Share(served.socket)) as guest:
            for line in guest.stream(WRITER):
                promised = int(line)
                if promised == 25:
                    break
            guest.kill()
        # The requirement: a new front end is served within a second.
        assert served.answers(timeout=1)
        for number in range(1, promised + 1):
            content = b"file %d\n" % number * 50_000
            assert (tmp_path / f"file{number}").read_bytes() == content[:200_000]
        with boot(Share(served.socket)) as guest:
            assert guest.check("cd /mnt/share\nhead -n 1 file25\necho again > again\nsync again") == "file 25\n"
            assert guest.complaints() == []
        assert (tmp_path / "again").read_text() == "again\n"
        assert served.alive()
        assert served.pid == pid
        assert "panicked" not in served.log()


def test_killed_again_and_again(tmp_path: Path) -> None:
    """Ten guests, each killed at work: the daemon keeps no descriptor of any of them."""
    if not daemon.is_ours():
        pytest.skip(f"{daemon.name()} ends with its first guest")
    with Daemon(tmp_path) as served:
        assert served.answers(timeout=10)
        counts = []
        for _ in range(10):
            with Uml([Share(served.socket)]) as guest:
                next(iter(guest.stream(WRITER)))
                guest.kill()
            assert served.answers(timeout=10)
            counts.append(len(list(Path(f"/proc/{served.serving}/fd").iterdir())))
        # The first rounds may fill a pool; after them, nothing adds up.
        assert counts[-1] <= max(counts[:3]), counts
        assert "panicked" not in served.log()
