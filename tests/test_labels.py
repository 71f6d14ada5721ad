"""Security labels that come with a creation, and are there from its first moment or the creation is not."""

import errno
import os
import stat
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.errnos import fails
from virtiofs import Passthrough, _core
from virtiofs.testing import Guest

ROOT = 1
FEATURES = sum(_core.INIT[name] for name in ("INIT_EXT", "MAX_PAGES", "SECURITY_CTX", "SETXATTR_EXT"))
# On the host a plain attribute: setting a real label takes privileges, and a host with labels of its own gives one by itself.
APART = ":map::user.virtiofs.:"
ON_HOST = "user.virtiofs.security.selinux"
LABEL = b"system_u:object_r:tmp_t:s0\0"


@pytest.fixture
def guest(share: Path) -> Iterator[Guest]:
    with Guest(Passthrough(share, security_label=True, xattrmap=APART), init_flags=FEATURES) as guest:
        guest.client.set_label("security.selinux", LABEL)
        yield guest


def test_a_session_has_labels_where_both_sides_want_them(share: Path) -> None:
    for option, offered, agreed in ((True, FEATURES, True), (True, None, False), (False, FEATURES, False)):
        with Guest(Passthrough(share, security_label=option), init_flags=offered) as guest:
            assert bool(guest.client.session["flags"] & _core.INIT["SECURITY_CTX"]) == agreed
            guest.client.set_label("security.selinux", LABEL)
            if not agreed:
                guest.write_file(f"{option}-{agreed}-{offered}", b"")
    assert Passthrough(share, security_label=True).xattr


@pytest.mark.parametrize("length", range(1, 18))
def test_files_and_directories_are_labelled(guest: Guest, share: Path, length: int) -> None:
    # The record follows the name at once, wherever that leaves it.
    name = "n" * length
    guest.client.mkdir(ROOT, name)
    assert os.getxattr(share / name, ON_HOST) == LABEL
    node = guest.client.lookup(ROOT, name).node
    guest.client.create(node, name, os.O_RDWR)
    assert os.getxattr(share / name / name, ON_HOST) == LABEL
    guest.client.mknod(node, "node", stat.S_IFREG | 0o600)
    assert os.getxattr(share / name / "node", ON_HOST) == LABEL
    assert guest.getxattr(f"{name}/{name}", "security.selinux") == LABEL


def test_a_creation_without_its_label_did_not_happen(guest: Guest, share: Path) -> None:
    # User attributes are for files and directories alone, so here the host refuses.
    before = sorted(os.listdir(share))
    attempts: list[Callable[[], object]] = [
        lambda: guest.client.symlink(ROOT, "new", "target"),
        lambda: guest.client.mknod(ROOT, "new", stat.S_IFIFO | 0o600),
    ]
    for attempt in attempts:
        with fails(errno.EPERM):
            attempt()
    guest.client.set_label("security.selinux", b"x" * 3000)
    guest.client.mkdir(ROOT, "long")
    assert len(os.getxattr(share / "long", ON_HOST)) == 3000
    (share / "long").rmdir()
    guest.client.set_label("security." + "x" * 240, b"1")
    attempts = [
        lambda: guest.client.mkdir(ROOT, "new"),
        lambda: guest.client.create(ROOT, "new", os.O_RDWR),
        lambda: guest.client.mknod(ROOT, "new", stat.S_IFREG | 0o600),
    ]
    for attempt in attempts:
        with fails(errno.ERANGE):
            attempt()
    assert sorted(os.listdir(share)) == before
    guest.client.set_label()
    guest.client.mkdir(ROOT, "new")
    assert os.listxattr(share / "new") == []


def test_only_security_attributes_are_labels(guest: Guest, share: Path) -> None:
    guest.client.set_label("user.else", b"1")
    with fails(errno.EPERM):
        guest.client.mkdir(ROOT, "new")
    assert not (share / "new").exists()


def test_a_map_refuses_labels_too(share: Path) -> None:
    rules = ":unsupported:all:security.:security.: :ok:all:::"
    with Guest(Passthrough(share, security_label=True, xattrmap=rules), init_flags=FEATURES) as guest:
        guest.client.mkdir(ROOT, "fine")
        guest.client.set_label("security.selinux", LABEL)
        with fails(errno.EOPNOTSUPP):
            guest.client.mkdir(ROOT, "new")
    assert not (share / "new").exists()


@pytest.mark.root
@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to set security attributes")
def test_real_labels_of_all_kinds_of_files(share: Path) -> None:
    try:
        os.setxattr(share, "security.virtiofs", b"1")
    except OSError as error:
        if error.errno not in (errno.EOPNOTSUPP, errno.EPERM):
            raise
        pytest.skip("no security attributes here: they take CAP_SYS_ADMIN and a file system that has them")
    with Guest(Passthrough(share, security_label=True), init_flags=FEATURES) as guest:
        guest.client.set_label("security.virtiofs", b"label")
        guest.client.symlink(ROOT, "link", "nowhere")
        guest.client.mknod(ROOT, "fifo", stat.S_IFIFO | 0o600)
        guest.client.mkdir(ROOT, "directory")
        guest.client.create(ROOT, "file", os.O_RDWR)
    for name in ("link", "fifo", "directory", "file"):
        assert os.getxattr(share / name, "security.virtiofs", follow_symlinks=False) == b"label"
