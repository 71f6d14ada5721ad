"""Real work that a guest does on a share, and what the host must find afterwards.

A list of named checks over one directory that both sides see, so the same list runs in any guest, over any daemon.
"""

from __future__ import annotations

import filecmp
import os
import shutil
import sqlite3
import stat
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from . import provision
from .daemon import Daemon
from .guest import Guest


@dataclass(frozen=True)
class Place:
    """A directory on a share: ``inside`` is its path in the guest, ``outside`` on the host."""

    guest: Guest
    daemon: Daemon
    inside: str
    outside: Path

    def fresh(self, name: str) -> Place:
        """A new, empty directory below this one."""
        path = self.outside / name
        path.mkdir()
        return Place(self.guest, self.daemon, f"{self.inside}/{name}", path)


def same_tree(left: Path, right: Path) -> None:
    """Assert that two trees on the host hold the same names, types, modes, times, link targets and bytes."""
    for (at, folders, files), (other, folders2, files2) in zip(_walk(left), _walk(right), strict=True):
        assert (sorted(folders), sorted(files)) == (sorted(folders2), sorted(files2)), at
        for name in folders + files:
            one, two = os.lstat(os.path.join(at, name)), os.lstat(os.path.join(other, name))
            assert one.st_mode == two.st_mode, name
            if stat.S_ISREG(one.st_mode):
                assert one.st_mtime_ns == two.st_mtime_ns, name
            elif stat.S_ISLNK(one.st_mode):
                assert os.readlink(os.path.join(at, name)) == os.readlink(os.path.join(other, name)), name
        regular = [name for name in files if not os.path.islink(os.path.join(at, name))]
        _, different, errors = filecmp.cmpfiles(at, other, regular, shallow=False)
        assert (different, errors) == ([], []), at


def _walk(top: Path) -> list[tuple[str, list[str], list[str]]]:
    return sorted(os.walk(top), key=lambda step: os.path.relpath(step[0], top))


def copy_in(place: Place) -> None:
    """The Python standard library with its tests, several thousand files, from the guest to the share."""
    library = provision.cache().stdlib
    place.guest.check(f"cp -a {library} {place.inside}/in\ndiff -r {library} {place.inside}/in", timeout=400)
    same_tree(provision.cache().tree / library.relative_to("/"), place.outside / "in")


def copy_out(place: Place) -> None:
    """The same, from the share to the guest's memory, against the guest's own copy."""
    library = provision.cache().stdlib
    shutil.copytree(provision.cache().tree / library.relative_to("/"), place.outside / "out", symlinks=True)
    place.guest.check(f"cp -a {place.inside}/out /tmp/out\ndiff -r /tmp/out {library}\nrm -rf /tmp/out", timeout=400)
    place.guest.check(f"rm -rf {place.inside}/out", timeout=200)
    assert list(place.outside.iterdir()) == []


def archive(place: Place) -> None:
    """tar writes an archive to the share, unpacks it there and compares."""
    library = provision.cache().stdlib
    place.guest.check(
        f"""cd {place.inside}
        tar -C {library} --exclude=./test --exclude=__pycache__ -cf library.tar .
        mkdir unpacked
        tar -C unpacked -xpf library.tar
        tar -C unpacked -df library.tar
        diff -r --exclude=test --exclude=__pycache__ {library} unpacked""",
        timeout=300,
    )
    assert len(list((place.outside / "unpacked").rglob("*.py"))) > 300


def repository(place: Place) -> None:
    """git keeps its objects, index and locks on the share."""
    library = provision.cache().stdlib
    place.guest.check(
        f"""cd {place.inside}
        export GIT_AUTHOR_NAME=guest GIT_AUTHOR_EMAIL=guest@example.org
        export GIT_COMMITTER_NAME=guest GIT_COMMITTER_EMAIL=guest@example.org
        git config --global safe.directory '*'
        git init -q -b main work
        cd work
        cp -r {library}/json {library}/asyncio {library}/email {library}/xml {library}/importlib .
        git add .
        git commit -q -m first
        git checkout -q -b other
        git mv json renamed
        git rm -q -r email
        echo more >> asyncio/__init__.py
        git commit -q -a -m second
        git checkout -q main
        test -d email
        git merge -q other
        test ! -e email
        git gc -q
        git fsck --full --strict
        test -z "$(git status --porcelain)"
        git clone -q . ../clone
        diff -r --exclude=.git . ../clone
        git -C ../clone fsck --full --strict""",
        timeout=300,
    )
    assert (place.outside / "clone/renamed/decoder.py").is_file()
    assert not (place.outside / "clone/email").exists()


def database(place: Place) -> None:
    """sqlite in WAL mode, with writers and a reader at once."""
    place.guest.python("database", place.inside, timeout=300)
    query = "PRAGMA integrity_check; SELECT value FROM total"
    shell = place.guest.check(f"sqlite3 -batch -list {place.inside}/data.db '{query}'")
    assert shell.split() == ["ok", "120"]
    with sqlite3.connect(place.outside / "data.db") as connection:
        assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        assert connection.execute("SELECT count(*), sum(length(body)) FROM log").fetchone() == (120, 240_000)
    connection.close()


def renames(place: Place) -> None:
    place.guest.python("renames", place.inside)
    assert sorted(os.listdir(place.outside)) == ["c", "d", "empty", "fresh", "full", "right"]
    assert (place.outside / "empty/f/g").read_bytes() == b"deep"
    assert (place.outside / "right").read_bytes() == b"left"


def links(place: Place) -> None:
    place.guest.python("links", place.inside)
    assert os.path.samefile(place.outside / "second", place.outside / "d/third")
    assert os.readlink(place.outside / "long") == "x/" * 2047 + "y"
    assert os.readlink(place.outside / "absolute") == "/etc/passwd"


def names(place: Place) -> None:
    place.guest.python("names", place.inside)
    outside = os.fsencode(place.outside)
    found = os.listdir(outside)
    for name in (b"n" * 255, b"\xff" * 255, b"latin-\xe4\xf6\xfc", b"new\nline", b"\x80\x80\x80", b"..."):
        assert name in found, name
        with open(os.path.join(outside, name), "rb") as file:
            assert file.read() == name


def deep(place: Place) -> None:
    place.guest.python("deep", place.inside)
    at, levels = os.open(place.outside, os.O_RDONLY | os.O_DIRECTORY), 0
    while (entry := os.listdir(at)) != ["bottom"]:
        below = os.open(entry[0], os.O_RDONLY | os.O_DIRECTORY, dir_fd=at)
        os.close(at)
        at, levels = below, levels + 1
    os.close(at)
    assert levels == 120
    place.guest.check(f"rm -r {place.inside}/000-*")
    assert os.listdir(place.outside) == []


def sparse(place: Place) -> None:
    place.guest.python("sparse", place.inside)
    with (place.outside / "sparse").open("rb") as file:
        assert os.fstat(file.fileno()).st_size == (5 << 30) + 12345 + 3
        assert os.pread(file.fileno(), 11, (1 << 30) - 3) == b"round 1 GiB"
        assert os.pread(file.fileno(), 8, (4 << 30) - 4) == b"over t\0\0"


def attributes(place: Place) -> None:
    place.guest.python("attributes", place.inside)
    found = os.stat(place.outside / "file")
    assert (found.st_size, stat.S_IMODE(found.st_mode)) == (100, 0o644)
    assert (found.st_atime_ns, found.st_mtime_ns) == (1_000_000_001, 2_000_000_000_000_000_003)


def owners(place: Place) -> None:
    place.guest.python("owners", place.inside)
    for name, owner in {"file": (1235, 4321), "mine": (1235, 77), "my-link": (1235, 77)}.items():
        found = os.lstat(place.outside / name)
        assert (found.st_uid, found.st_gid) == owner, name


def mapped(place: Place) -> None:
    place.guest.python("mapped", place.inside)
    data = (place.outside / "mapped").read_bytes()
    assert len(data) == 1 << 20
    assert (data[4090:4101], data[500_000:500_008]) == (b"both pages!", b"by write")


def crowded(place: Place) -> None:
    place.guest.python("crowded", place.inside, timeout=200)
    assert os.listdir(place.outside) == ["last"]


Work = Callable[[Place], None]
LIGHT: tuple[Work, ...] = (attributes, owners, links, renames, names, deep, sparse, mapped, crowded, database)
# Those that a daemon without privileges cannot serve.
NEED_ROOT: tuple[Work, ...] = (owners,)
# Those that take a minute rather than seconds where the guest is emulated.
HEAVY: tuple[Work, ...] = (archive, repository, copy_in, copy_out)
