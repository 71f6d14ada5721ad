"""A share that an ordinary user serves looks multi-user to a stock kernel, by owners that are kept in extended attributes."""

from __future__ import annotations

import os
import shutil
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from . import daemon
from .daemon import Daemon
from .guest import Guest, Share
from .uml import Uml

NOBODY = 65534

ROOTS_WORK = """
exec 2>&1; set -x; cd /mnt/share
chown 0:0 .; chmod 755 .
mkdir home; for user in 1000 1001; do mkdir home/$user; chown $user:$user home/$user; chmod 700 home/$user; done
as() { user=$1; shift; setpriv --reuid=$user --regid=$user --clear-groups "$@"; }

# Each user has what is his, and nothing else.
as 1000 sh -c 'umask 027; echo mine > home/1000/file; mkdir home/1000/dir; ln -s file home/1000/link'
test "$(stat -c %u:%g:%a home/1000/file home/1000/dir | tr '\\n' ' ')" = '1000:1000:640 1000:1000:750 '
test "$(stat -c %u:%F home/1000/link)" = '1000:symbolic link'; test "$(cat home/1000/link)" = mine
! as 1001 cat home/1000/file 2> /dev/null
! as 1001 chown 1001 home/1000 2> /dev/null
chmod 0 home/1000/file; ! as 1000 cat home/1000/file 2> /dev/null; test "$(cat home/1000/file)" = mine
mkdir -m 1777 tmp; as 1000 touch tmp/his; ! as 1001 rm -f tmp/his 2> /dev/null
mkdir group; chown 0:50 group; chmod 2777 group; as 1001 mkdir group/below
test "$(stat -c %u:%g:%a group/below)" = 1001:50:2755

# Programs with the rights of their owner, and what takes those away.
cp /bin/id id; chmod 4755 id; test "$(as 1000 ./id -u)" = 0
chmod 4777 id; as 1000 sh -c 'echo >> id'; test "$(stat -c '%a %s' id | cut -d' ' -f1)" = 777
chmod 6755 id; chown 1000 id; test "$(stat -c %a id)" = 755

# Devices, pipes and sockets work in the guest.
mknod null c 1 3; chmod 666 null; as 1000 sh -c 'echo gone > null'; test "$(stat -c %t:%T null)" = 1:3; test ! -s null
mknod zero c 1 5; test "$(head -c 4 zero | od -An -tx1 | tr -d ' ')" = 00000000
mkfifo pipe; (echo through > pipe &); test "$(cat pipe)" = through
python3 -c 'import socket; socket.socket(socket.AF_UNIX).bind("socket")'; test -S socket
find . -type p | grep -qx ./pipe; test "$(find . -type c | wc -l)" = 2; test "$(find . -type l | wc -l)" = 1

# Copies keep all of it: by tar, by cp, by rename.
tar -C /mnt/share --numeric-owner -cf /tmp/all.tar home tmp group id null zero pipe
mkdir copy; tar -C copy --same-owner -xpf /tmp/all.tar
same() { (cd "$1"; find home tmp group id null zero pipe -printf '%p %U:%G %m %y %l\\n' | sort); }
test "$(same .)" = "$(same copy)"
cp -a copy again; test "$(same .)" = "$(same again)"
mv again moved; ln moved/id hard; chown 7:8 hard; test "$(stat -c %u:%g:%h moved/id)" = 7:8:2
test -z "$(getfattr -d -m - -R . 2> /dev/null | grep virtiofs)"
sync; echo 2 > /proc/sys/vm/drop_caches; test "$(same .)" = "$(same copy)"
"""


@pytest.fixture
def folder() -> Iterator[Path]:
    """A directory of nobody's, on the way to which nothing stands."""
    if not daemon.is_ours():
        pytest.skip(f"{daemon.name()} keeps no owners")
    path = Path(tempfile.mkdtemp(prefix="vmtest-"))
    try:
        os.setxattr(path, "user.test", b"")
        if os.geteuid() == 0:
            os.chown(path, NOBODY, NOBODY)
        yield path
    except OSError as error:
        pytest.skip(f"{path}: {error}")
    finally:
        shutil.rmtree(path, ignore_errors=True)


def test_root_of_a_guest_works_on_an_ordinary_users_share(folder: Path) -> None:
    served = Daemon(folder, options=["--ownership=xattr", "--xattr"], user=NOBODY)
    with served, Uml([Share(served.socket)], memory="512M") as guest:
        status = Path(f"/proc/{served.serving}/status").read_text()
        assert int(status.partition("CapEff:\t")[2].split()[0], 16) == 0
        guest.check(ROOTS_WORK, timeout=200)
        assert guest.complaints() == []
        assert "panicked" not in served.log()
        assert " WARN " not in served.log()
    owner = NOBODY if os.geteuid() == 0 else os.geteuid()
    for path in folder.rglob("*"):
        found = path.lstat()
        kind = stat.S_IFDIR | 0o700 if path.is_dir() else stat.S_IFREG | 0o600
        assert (found.st_uid, found.st_mode) == (owner, kind), path


def test_two_guests_see_the_same_owners(folder: Path) -> None:
    options = ["--ownership=xattr"]
    one = Daemon(folder, cache="none", options=options, user=NOBODY)
    two = Daemon(folder, cache="none", options=options, user=NOBODY)
    with one, two, Uml([Share(one.socket)]) as first, Uml([Share(two.socket)]) as second:
        first.check("cd /mnt/share; echo x > file; chown 1000:1001 file; chmod 4711 file; mknod null c 1 3")
        look(second, "1000:1001:4711", "character special file")
        second.check("cd /mnt/share; chown 5 file")
        look(first, "5:1001:711", "character special file")


def look(guest: Guest, owner: str, kind: str) -> None:
    assert guest.check("cd /mnt/share; stat -c %u:%g:%a file; stat -c %F null").splitlines() == [owner, kind]
