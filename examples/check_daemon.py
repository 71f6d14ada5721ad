"""Test any vhost-user-fs daemon.

Run it as ``python check_daemon.py SOCKET``. The embedded guest connects to the socket as a virtual machine monitor would,
and holds each reply to what Linux demands. A broken protocol ends the run with ProtocolError.
"""

import os
import sys
import time

from virtiofs.testing import Guest


def check(guest: Guest) -> None:
    """Makes, changes and removes names in a directory of its own."""
    guest.mkdir("check")
    guest.write_file("check/file", b"0123456789" * 100_000)
    guest.rename("check/file", "check/renamed")
    guest.link("check/renamed", "check/second")
    assert guest.stat("check/second").nlink == 2
    assert guest.read_file("check/second").endswith(b"789")
    with guest.open("check/second", os.O_RDWR) as file:
        file.truncate(5)
        assert file.read() == b"01234"
    assert sorted(guest.listdir("check")) == ["renamed", "second"]
    guest.remove_tree("check")


def main() -> None:
    """Checks the daemon at the socket and says how fast it answers."""
    with Guest(sys.argv[1], connect_timeout=5) as guest:
        session = guest.client.session
        print(f"tag {session['tag']}, FUSE 7.{session['minor']}, requests up to {session['max_io'] >> 10} KiB")
        check(guest)
        begin = time.perf_counter()
        for _ in range(1000):
            guest.client.getattr(1)
        print(f"GETATTR takes {(time.perf_counter() - begin) * 1000:.1f} us, this process included")


if __name__ == "__main__":
    main()
