"""Users and groups that are called something else on the host: by rules, and by a user namespace."""

import errno
import os
import shutil
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.daemon import Start
from tests.test_sandbox import NOBODY, reachable
from virtiofs import ConfigError, Passthrough, Policy, Rule
from virtiofs.ids import NO_ID, disjoint, id_map, shown_as, translation
from virtiofs.testing import Guest

root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")


def test_what_rules_say() -> None:
    rules = ["guest:0:1000:5", "host:70:7:1", "map:100:200:10", "squash-guest:500:33:9", "squash-host:600:44:9"]
    made = translation([*rules, "forbid-guest:900:2"])
    assert made.to_host == ((0, 5, 1000, False), (100, 10, 200, False), (500, 9, 33, True), (900, 2, None, False))
    assert made.to_guest == ((70, 1, 7, False), (200, 10, 100, False), (600, 9, 44, True))
    assert translation("map:0:1:2") == translation(["map:0:1:2"])
    assert translation([]).ranges == ()


@pytest.mark.parametrize(
    ("rules", "why"),
    [
        (["all:0:1:2"], "unknown kind 'all'"),
        (["map:0:1"], "numbers are missing or too many"),
        (["forbid-guest:0:1:2"], "numbers are missing or too many"),
        (["map:0:x:1"], "numbers are missing or too many"),
        (["map:0:-1:1"], "numbers are missing or too many"),
        (["map:0:1:0"], "a range has one id at least"),
        ([f"map:0:{NO_ID - 1}:2"], "ids end at"),
        ([f"squash-guest:0:{NO_ID}:1"], "ids end at"),
        ([f"forbid-guest:{NO_ID}:1"], "ids end at"),
        (["map:0:1000:10", "guest:9:5:1"], "another rule is about 9 already"),
        (["map:0:1000:10", "host:1009:5:1"], "another rule is about 1009 already"),
    ],
)
def test_what_rules_cannot_say(rules: list[str], why: str) -> None:
    with pytest.raises(ConfigError, match=why):
        translation(rules)


@pytest.mark.parametrize("text", ["", ":", "0:1:2", ":0:1:", ":0:1:2:3:", ":0:1:0:", f":0:{NO_ID}:1:", ":a:0:1:"])
def test_no_range_of_ids(text: str) -> None:
    with pytest.raises(ConfigError):
        id_map(text)


def test_ranges_of_ids() -> None:
    assert id_map(":0:100000:65536:") == id_map("/0/100000/65536") == (0, 100000, 65536)
    assert disjoint([(0, 10, 5), (5, 20, 5)])
    assert not disjoint([(0, 10, 5), (4, 20, 5)])
    assert not disjoint([(0, 10, 5), (5, 14, 5)])


def test_acls_name_the_ids_of_the_host(share: Path) -> None:
    with pytest.raises(ConfigError, match="do not go with ACLs"):
        Passthrough(share, posix_acl=True, translate_uid="map:0:1000:1")

    with pytest.raises(ConfigError, match="do not go with ACLs"):
        Passthrough(share, posix_acl=True, policy=Policy(Rule(name="*", uid=5)))


def test_rules_for_ids() -> None:
    assert translation(shown_as(5)).to_guest == ((0, NO_ID, 5, True),)
    assert Rule(name="*", uid=5).native()["users"] == ((), ((0, NO_ID, 5, True),))
    assert Rule(name="*", uid=5).native()["groups"] is None
    both = Rule(name="*", gid=5, translate_gid="guest:1:2:3").native()["groups"]
    assert both == (((1, 3, 2, False),), ((0, NO_ID, 5, True),))
    assert Rule(name="*", translate_uid=()).native()["users"] == ((), ()), "as on the host"
    for wrong, why in (({"uid": -1}, "ids are from"), ({"translate_gid": "all"}, "translate_gid: .*unknown kind")):
        with pytest.raises(ConfigError, match=why):
            Rule(name="*", **wrong)
    with pytest.raises(ConfigError, match="another rule is about 7 already"):
        Rule(name="*", uid=5, translate_uid="host:7:8:1")


@root
def test_rules_translate_what_they_are_about(share: Path) -> None:
    for name, uid in (("hello", 33), ("sub", 33), ("sub/deep", 33)):
        os.chown(share / name, uid, uid)
    policy = Policy(
        Rule(path=("www", "www/**"), translate_uid="map:1000:33:1", translate_gid="forbid-guest:7:1"),
        Rule(name="sub", uid=5, gid=6),
        Rule(name="plain", translate_uid=()),
    )
    fs = Passthrough(share, policy=policy, translate_uid="map:0:100000:1000")
    with Guest(fs, uid=1000, gid=1000) as guest:
        seen = guest.stat("sub")
        assert (seen.uid, seen.gid) == (5, 6)
        assert guest.stat("hello").uid == 33
        assert guest.stat("sub/deep").uid == 33
        for kind, make in MAKERS.items():
            make(guest, f"other-{kind}")
            assert owner(share / f"other-{kind}") == (1000, 1000)
        guest.mkdir("www", 0o755)
        for kind, make in MAKERS.items():
            if kind != "fifo":
                make(guest, f"www/{kind}")
                assert owner(share / "www" / kind) == (33, 1000)
                assert guest.client.lookup(guest.client.lookup(1, "www").node, kind).attr.uid == 1000
        with pytest.raises(PermissionError):
            guest.chown("www/file", 1000, 7)
        guest.chown("www/file", 5, 8)
        assert owner(share / "www" / "file") == (5, 8)
        guest.client.set_caller(5, 5)
        guest.write_file("plain", b"")
        guest.write_file("mapped", b"")
        assert owner(share / "plain") == (5, 5)
        assert owner(share / "mapped") == (100005, 5)
        assert guest.stat("mapped").uid == 5
        guest.client.set_caller(1000, 7)
        with pytest.raises(PermissionError):
            guest.write_file("www/refused", b"")


def owner(path: Path) -> tuple[int, int]:
    found = path.lstat()
    return found.st_uid, found.st_gid


Make = Callable[[Guest, str], object]

MAKERS: dict[str, Make] = {
    "file": lambda guest, name: guest.write_file(name, b"x"),
    "directory": lambda guest, name: guest.mkdir(name, 0o755),
    "symlink": lambda guest, name: guest.symlink("nowhere", name),
    "fifo": lambda guest, name: guest.client.mknod(1, name, stat.S_IFIFO | 0o644),
}


@root
@pytest.mark.parametrize("kind", MAKERS)
def test_what_a_guest_makes_is_translated_both_ways(share: Path, kind: str) -> None:
    fs = Passthrough(share, translate_uid="map:0:100000:1000", translate_gid=["map:0:200000:1000"])
    with Guest(fs) as guest:
        guest.client.set_caller(5, 6)
        MAKERS[kind](guest, "new")
        assert owner(share / "new") == (100005, 200006)
        seen = guest.client.lookup(1, "new")
        assert (seen.attr.uid, seen.attr.gid) == (5, 6)
        changed = guest.client.setattr(seen.node, uid=7, gid=8)
        assert (changed.uid, changed.gid) == (7, 8)
        assert owner(share / "new") == (100007, 200008)
        found = guest.client.getattr(seen.node)
        assert (found.uid, found.gid) == (7, 8)
        handle = guest.client.opendir(1).handle
        listed = {entry.name: entry for entry in guest.client.readdir(1, handle, plus=True)}
        guest.client.releasedir(1, handle)
        entry = listed["new"].entry
        assert entry is not None
        attr = entry.attr
        assert (attr.uid, attr.gid) == (7, 8)


@root
def test_each_kind_of_rule(share: Path) -> None:
    for name, uid in (("many", 3001), ("one", 4001), ("other", 5001)):
        (share / name).write_text("")
        os.chown(share / name, uid, uid)
    rules = (
        "host:3000:30:10",
        "squash-host:4000:40:10",
        "guest:50:5000:5",
        "squash-guest:60:6000:5",
        "forbid-guest:70:5",
    )
    with Guest(Passthrough(share, translate_uid=rules, translate_gid=rules)) as guest:
        assert [guest.stat(name).uid for name in ("many", "one", "other")] == [31, 40, 5001]
        assert [guest.stat(name).gid for name in ("many", "one", "other")] == [31, 40, 5001]
        for wanted, made in ((52, 5002), (64, 6000), (80, 80)):
            guest.client.set_caller(wanted, wanted)
            guest.write_file(f"by{wanted}", b"")
            assert owner(share / f"by{wanted}") == (made, made)
        guest.client.set_caller(0, 0)
        for uid, gid in ((70, 80), (80, 74)):
            with pytest.raises(PermissionError):
                guest.chown("other", uid, gid)
            assert owner(share / "other") == (5001, 5001)
        guest.client.set_caller(72, 0)
        for make in MAKERS.values():
            with pytest.raises(PermissionError):
                make(guest, "never")
        assert not (share / "never").exists()
        assert guest.read_file("hello") == b"hello from the host\n"  # reads ask for no owner


@root
def test_options_lead_to_it(start: Start, share: Path, tmp_path: Path) -> None:
    options = (
        "--translate-uid=map:0:100000:10",
        "--translate-uid",
        "forbid-guest:10:5",
        "--translate-gid=squash-guest:0:99:9",
    )
    start(share, "--socket", tmp_path / "s", *options)
    with Guest(tmp_path / "s") as guest:
        guest.client.set_caller(1, 1)
        guest.write_file("new", b"")
        assert owner(share / "new") == (100001, 99)
        guest.client.set_caller(12, 1)
        with pytest.raises(PermissionError):
            guest.write_file("never", b"")


@root
def test_a_namespace_with_ids_of_its_own(start: Start, share: Path, tmp_path: Path) -> None:
    reachable(share)
    for path in (share, share / "hello"):
        os.chown(path, 100000, 100000)
    maps = ("--uid-map", ":0:100000:1000:", "--gid-map", ":0:100000:1000:")
    daemon = start(share, "--socket", tmp_path / "s", *maps)
    assert Path(f"/proc/{daemon.serving}/uid_map").read_text().split() == ["0", "100000", "1000"]
    assert Path(f"/proc/{daemon.serving}/status").read_text().partition("Uid:\t")[2].split()[0] == "100000"
    with Guest(tmp_path / "s") as guest:
        assert guest.stat("hello").uid == 0
        guest.client.set_caller(5, 6)
        guest.write_file("new", b"mine")
        assert owner(share / "new") == (100005, 100006)
        assert guest.stat("new").uid == 5
        guest.client.set_caller(0, 0)
        guest.chown("new", 7, 7)
        assert owner(share / "new") == (100007, 100007)
        # Ids that the namespace has not got own nothing, and what the host's root owns is nobody's there.
        with pytest.raises(OSError) as caught:
            guest.chown("new", 1000, 0)
        assert caught.value.errno == errno.EINVAL
        assert guest.stat("sub").uid == 65534
    assert daemon.end() == 0


@root
def test_an_unprivileged_server_may_be_root_to_its_guests(start: Start, share: Path, tmp_path: Path) -> None:
    reachable(share)
    maps = ("--uid-map", ":0:65534:1:", "--gid-map", ":0:65534:1:")
    start(share, "--socket", tmp_path / "s", *maps, wrap=NOBODY)
    with Guest(tmp_path / "s") as guest:
        guest.write_file("new", b"")
        assert owner(share / "new") == (65534, 65534)
        assert guest.stat("new").uid == 0


@root
def test_more_ids_take_a_program(start: Start, share: Path, tmp_path: Path) -> None:
    reachable(share)
    maps = ("--uid-map", ":0:100000:1000:", "--gid-map", ":0:100000:1000:")
    wrap = ("env", "PATH=/nonexistent", shutil.which("setpriv") or "", *NOBODY[1:])
    daemon = start(share, "--socket", tmp_path / "s", *maps, wrap=wrap, ready=False)
    assert daemon.ends() == 2
    assert "--uid-map takes newuidmap" in daemon.log()


@pytest.mark.parametrize(
    ("options", "why"),
    [
        (("--uid-map=:0:1:1:",), "go together"),
        (("--uid-map=:0:1:1:", "--gid-map=:0:1:1:", "--sandbox=none"), "are for namespaces"),
        (("--uid-map=:0:1:2:", "--uid-map=:1:9:2:", "--gid-map=:0:1:1:"), "an id is mapped twice"),
        (("--uid-map=:0:1:1:", "--gid-map=:0:1:1:", "--version-slots=64"), "there are none"),
    ],
)
def test_maps_that_cannot_be(start: Start, share: Path, tmp_path: Path, options: tuple[str, ...], why: str) -> None:
    daemon = start(share, "--socket", tmp_path / "s", *options, ready=False)
    assert daemon.ends() == 2
    log = daemon.log()
    assert why in log
    assert log.count("\n") == 1
