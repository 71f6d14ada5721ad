"""Python file systems under a stock kernel: what a guest's programs do with them, and what Python is asked for."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from tests import s3
from virtiofs import Attr, Entry, Node, Passthrough, Request
from virtiofs.fsspecfs import FsspecFS
from virtiofs.memory import MemoryFS

from . import daemon
from .served import serving


@pytest.fixture(autouse=True)
def needs_python() -> None:
    if not daemon.is_ours():
        pytest.skip(f"{daemon.name()} serves no Python")


REPOSITORY = """
export HOME=/tmp GIT_AUTHOR_NAME=a GIT_AUTHOR_EMAIL=a@b GIT_COMMITTER_NAME=a GIT_COMMITTER_EMAIL=a@b
mkdir repository; cd repository; git init -q .
cp -r /usr/lib/python3*/json /usr/lib/python3*/xml .
git add .; git commit -q -m first
git checkout -q -b other; echo more > new; git mv json renamed; git add .; git commit -q -m second
git checkout -q -; git merge -q other; git gc -q; git fsck --strict
test -z "$(git status --porcelain)"; git clone -q . ../clone; diff -r -x .git . ../clone
"""
"""git maps its packs, links, renames over locks and looks at every time stamp."""


def test_a_file_system_in_memory(tmp_path: Path) -> None:
    fs = MemoryFS()
    with serving(fs, tmp_path) as (server, guest):
        guest.check(
            """cd /mnt/share
            cp -a /usr/lib/python3*/email tree; diff -r /usr/lib/python3*/email tree
            tar -cf tree.tar tree; mkdir there; tar -C there -xf tree.tar; diff -r tree there/tree; rm -r there
            ln tree.tar hard; test "$(stat -c %h tree.tar)" = 2; cmp hard tree.tar; rm hard
            ln -s tree.tar soft; test "$(readlink soft)" = tree.tar; rm soft
            mkfifo pipe; (echo through > pipe &); test "$(cat pipe)" = through; rm pipe
            setfattr -n user.x -v y tree.tar; getfattr -d tree.tar | grep -q 'user.x="y"'
            echo 'create table t(n); insert into t values(42);' | sqlite3 db
            test "$(sqlite3 db 'select n from t; pragma integrity_check')" = $'42\\nok'; rm db
            truncate -s 1M sparse; fallocate -p -o 0 -l 4096 sparse; test "$(stat -c %s sparse)" = 1048576; rm sparse
            cp /bin/true program; ./program; rm program
            (echo held > open; exec 5<open; rm open; test "$(cat <&5)" = held)
            test "$(df --output=size -B1 . | tail -1)" = $((1 << 30))""",
            timeout=200,
        )
        guest.check(f"cd /mnt/share{REPOSITORY}", timeout=200)
        assert set(fs.root.names) == {"tree", "tree.tar", "repository", "clone"}
        assert bytes(fs.root.names["repository"].names["new"].data) == b"more\n"
        guest.check("cd /mnt/share; rm -r *; ls -A | wc -l | grep -qx 0; sync; echo 2 > /proc/sys/vm/drop_caches")
        assert server.stats().errors.get("FORGET", 0) == 0
        assert server.stats().handles == 0
    assert fs.used == 0


class Private(Passthrough):
    """A host directory whose files look as if nobody but their owner could read them, and that lets no key out."""

    def getattr(self, request: Request, node: Node, handle: object) -> Attr:
        attr = super().getattr(request, node, handle)
        return attr if attr.is_dir else attr.replace(mode=attr.mode & ~0o077)

    def lookup(self, request: Request, parent: Node, name: str) -> Entry | None:
        if name.endswith(".key"):
            return None
        return super().lookup(request, parent, name)


def test_single_methods_over_a_directory(tmp_path: Path) -> None:
    share = tmp_path / "share"
    share.mkdir()
    (share / "secret.key").write_text("secret")
    (share / "open").write_text("open")
    with serving(Private(share), tmp_path) as (server, guest):
        guest.check(
            """cd /mnt/share
            test "$(cat open)" = open; test "$(stat -c %a open)" = 600
            ! cat secret.key 2> /dev/null
            cp -r /usr/lib/python3*/email tree; diff -r /usr/lib/python3*/email tree""",
            timeout=200,
        )
        guest.check(f"cd /mnt/share{REPOSITORY}", timeout=200)
        requests = server.stats().requests
        assert "READDIRPLUS" not in requests, "it would go past lookup"
        assert requests["LOOKUP"] > 100
    assert stat.S_IMODE((share / "open").stat().st_mode) == 0o644
    assert (share / "repository" / "new").read_text() == "more\n"
    assert sorted(os.listdir(share)) == ["clone", "open", "repository", "secret.key", "tree"]


def test_an_object_store(tmp_path: Path) -> None:
    with s3.serving() as store:
        large = os.urandom(9 << 20)
        store.bucket("bucket", **{"data/large": large, "data/small": b"small\n"})
        fs = FsspecFS(
            "s3://bucket/data", cache_dir=tmp_path, cache_size="16M", block_size="1M", read_ahead="4M", **store.options
        )
        with serving(fs, tmp_path) as (server, guest):
            guest.check(
                """cd /mnt/share
                test "$(ls | tr '\\n' ' ')" = 'large small '; test "$(cat small)" = small
                cp large copy; cmp large copy; echo more >> copy; truncate -s 1M large
                mkdir made; cp -r /usr/lib/python3*/json made/json; diff -r /usr/lib/python3*/json made/json
                mv made/json moved; rmdir made; rm small; ls moved | grep -q decoder.py
                echo 1 > new; mv new renamed; test "$(cat renamed)" = 1; sync""",
                timeout=120,
            )
            assert store.get("bucket", "data/large") == large[: 1 << 20]
            assert store.get("bucket", "data/copy") == large + b"more\n"
            assert store.get("bucket", "data/renamed") == b"1\n"
            assert "data/moved/decoder.py" in store.keys("bucket")
            assert "data/small" not in store.keys("bucket")
            requests = server.stats().requests["READ"]
            guest.check("cd /mnt/share; echo 3 > /proc/sys/vm/drop_caches; md5sum copy", timeout=60)
            assert server.stats().requests["READ"] > requests
        fs.close()
