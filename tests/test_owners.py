"""Owners, modes and devices that are kept in an extended attribute: what a guest sees, and what is on the host."""

import errno
import os
import stat
from pathlib import Path

import pytest

from tests.daemon import Start
from tests.errnos import fails
from tests.test_sandbox import NOBODY, reachable
from virtiofs import Config, ConfigError, Passthrough, Policy, Rule
from virtiofs.passthrough import KEPT
from virtiofs.testing import Guest

DEVICE = os.makedev(8, 1)


@pytest.fixture(autouse=True)
def has_attributes(share: Path) -> None:
    try:
        os.setxattr(share, "user.test", b"")
    except OSError as error:
        pytest.skip(f"{share}: {error}")


def multi_user(guest: Guest) -> None:
    """What takes root on a local disk."""
    client = guest.client
    guest.write_file("file", b"content")
    guest.chown("file", 1000, 2000)
    guest.chmod("file", 0o6755)
    client.mknod(1, "disk", stat.S_IFBLK | 0o660, DEVICE)
    client.mknod(1, "fifo", stat.S_IFIFO | 0o600)
    guest.mkdir("dir", 0o700)
    guest.chmod("dir", 0o3770)
    guest.symlink("/etc/shadow", "link")
    client.setattr(client.lookup(1, "link").node, uid=5, gid=6)
    client.set_caller(77, 88)
    guest.write_file("theirs", b"")
    client.set_caller(0, 0)
    guest.chmod("theirs", 0)


SEEN = {
    "file": (1000, 2000, stat.S_IFREG | 0o6755, 0),
    "disk": (0, 0, stat.S_IFBLK | 0o660, DEVICE),
    "fifo": (0, 0, stat.S_IFIFO | 0o600, 0),
    "dir": (0, 0, stat.S_IFDIR | 0o3770, 0),
    "link": (5, 6, stat.S_IFLNK | 0o777, 0),
    "theirs": (77, 88, stat.S_IFREG, 0),
}


def is_seen(guest: Guest) -> None:
    client = guest.client
    handle = client.opendir(1).handle
    listed = {entry.name: entry.entry for entry in client.readdir(1, handle, plus=True)}
    client.releasedir(1, handle)
    for name, expected in SEEN.items():
        found = client.lookup(1, name)
        entry = listed[name]
        assert entry is not None
        for attr in (found.attr, client.getattr(found.node), entry.attr):
            assert (attr.uid, attr.gid, attr.mode, attr.rdev) == expected, name
    assert guest.readlink("link") == "/etc/shadow"
    assert guest.read_file("theirs") == b""


def is_plain(share: Path, uid: int) -> None:
    """Nothing on the host has privileges, acts, leads elsewhere, or is open to others."""
    for name in SEEN:
        found = (share / name).lstat()
        kind = stat.S_IFDIR | 0o700 if name == "dir" else stat.S_IFREG | 0o600
        assert (found.st_mode, found.st_uid) == (kind, uid), name
    assert (share / "link").read_text() == "/etc/shadow"
    assert os.getxattr(share / "disk", KEPT) == b"0:0:60660:8:1"


def test_a_share_looks_multi_user(share: Path) -> None:
    with Guest(Passthrough(share, ownership="xattr")) as guest:
        multi_user(guest)
        is_seen(guest)
    is_plain(share, os.getuid())
    # Another guest finds what was kept, also where attributes of its own are served.
    with Guest(Passthrough(share, ownership="xattr", xattr=True)) as guest:
        is_seen(guest)
        assert guest.listxattr("file") == []
        with fails(errno.EPERM):
            guest.setxattr("file", KEPT, b"0:0:104755")
        with fails(errno.EPERM):
            guest.removexattr("file", KEPT)
        with fails(errno.ENODATA):
            guest.getxattr("file", KEPT)
        is_seen(guest)


def test_renamed_attributes_do_not_lead_to_it(share: Path) -> None:
    with Guest(Passthrough(share, ownership="xattr", xattrmap=":map::user.virtiofs.:")) as guest:
        guest.write_file("file", b"")
        node = guest.client.lookup(1, "file").node
        with fails(errno.EPERM):
            guest.client.setxattr(node, "stat", b"0:0:104755")
        guest.setxattr("file", "trusted.x", b"y")
        assert guest.listxattr("file") == ["trusted.x"]
    assert set(os.listxattr(share / "file")) == {KEPT, "user.virtiofs.trusted.x"}


def test_a_daemon_without_privileges_in_its_sandbox(share: Path, tmp_path: Path, start: Start) -> None:
    reachable(share)
    options = (share, "--socket", tmp_path / "s", "--ownership=xattr", "--sandbox=namespace")
    if os.getuid() == 0:
        os.chown(share, 65534, 65534)
        daemon = start(*options, wrap=NOBODY)
    else:
        daemon = start(*options)
    with Guest(tmp_path / "s") as guest:
        multi_user(guest)
        is_seen(guest)
    is_plain(share, 65534 if os.getuid() == 0 else os.getuid())
    assert " WARN " not in daemon.log()
    assert daemon.end() == 0


def test_rules_and_translations_are_about_what_guests_see(share: Path) -> None:
    policy = Policy(Rule(kind="block", hidden=True), Rule(owner=1000, hidden=True))
    with Guest(Passthrough(share, ownership="xattr")) as guest:
        multi_user(guest)
    with Guest(Passthrough(share, ownership="xattr", policy=policy)) as guest:
        assert set(guest.listdir()) == {"hello", "sub", *SEEN} - {"disk", "file"}
    fs = Passthrough(share, ownership="xattr", translate_uid="map:0:1000:10", translate_gid="map:0:2000:10")
    with Guest(fs) as guest:
        seen = guest.stat("file")
        assert (seen.uid, seen.gid) == (0, 0)
        guest.client.set_caller(3, 4)
        guest.write_file("new", b"")
        assert guest.stat("new").uid == 3
    assert os.getxattr(share / "new", KEPT) == b"1003:2004:100644"


def test_options_and_files_lead_to_it(share: Path, tmp_path: Path) -> None:
    path = tmp_path / "v.toml"
    path.write_text(f'[[share]]\ndirectory = "{share}"\nsocket = "s"\nownership = "xattr"\n')
    (loaded,) = Config.load(path).shares
    assert loaded.ownership == "xattr"
    with pytest.raises(ConfigError, match="does not go with ACLs"):
        Passthrough(share, ownership="xattr", posix_acl=True)
    with pytest.raises(ConfigError, match="keeps no extended attributes for users"):
        Passthrough("/proc", ownership="xattr")
