"""Rules for the names of extended attributes: read, refused, and obeyed by the server."""

import errno
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.daemon import Start, virtiofs
from tests.errnos import fails
from virtiofs import ConfigError, Passthrough
from virtiofs.errors import one_line
from virtiofs.testing import Guest
from virtiofs.xattrmap import Rule, XattrMap, parse

ALL = Rule("ok", "all")
NONE = Rule("bad", "all")

MOVED = (
    Rule("prefix", "all", "trusted.", "user.virtiofs."),
    Rule("bad", "server", "", "trusted."),
    Rule("bad", "client", "user.virtiofs.", ""),
    ALL,
)


@pytest.mark.parametrize(
    ("text", "rules"),
    [
        (":ok:all:::", (ALL,)),
        ("  /ok/all///  ", (ALL,)),
        (":prefix:all::user.v.::bad:all:::", (Rule("prefix", "all", "", "user.v."), NONE)),
        (":map::user.v.:", (Rule("prefix", "all", "", "user.v."), NONE)),
        ("/map/trusted./user.virtiofs./", MOVED),
        ("/map/trusted./user.virtiofs./\n", MOVED),
        (
            "/prefix/all/trusted./user.virtiofs./\n  |bad|server||trusted.|\n:bad:client:user.virtiofs.::\t/ok/all///",
            MOVED,
        ),
        (
            "#unsupported#all#security.#security.##ok#client#a b##" + "#ok#all###",
            (Rule("unsupported", "all", "security.", "security."), Rule("ok", "client", "a b"), ALL),
        ),
    ],
)
def test_rules_are_read(text: str, rules: tuple[Rule, ...]) -> None:
    assert parse(text) == XattrMap(rules)


@pytest.mark.parametrize(
    ("text", "wrong"),
    [
        ("", "xattrmap: there is no rule; write at least :ok:all:::"),
        (" \n", "xattrmap: there is no rule"),
        ("prefix:all::x:", "rule 1 at character 1, 'prefix:all::x:': 'p' is no separator; begin each rule with one"),
        (":ok:all", "rule 1 at character 1, ':ok:all': its end is missing; write :TYPE:SCOPE:KEY:PREPEND:"),
        ("/map/x/y", "rule 1 at character 1, '/map/x/y': its end is missing; write /map/KEY/PREPEND/"),
        (
            ":ok:all:::\n :no:all:::",
            "rule 2 at character 13, ':no:all:::': unknown type 'no': choose one of prefix, ok,",
        ),
        (":ok:both:::", "unknown scope 'both': choose one of client, server, all"),
        (":map:a:b: :ok:all:::", "rule 2 at character 11, ':ok:all:::': map must be the last rule; leave out what"),
        (":map:user.::", "it says nothing to put in front"),
        (":ok:client:::", "some names on the host fit no rule; end it with :bad:all::: to refuse and hide them"),
        (":ok:server:::", "some names of guests fit no rule; end it with :bad:all:::"),
        (f":ok:all:{'x' * 256}::", "a name has at most 255 bytes, 'xxxxxxxxxxxxxxxxxxxx'… has 256"),
        (f":ok:all:{'x' * 256}::", f"character 1, ':ok:all:{'x' * 52}'…: "),
        (":ok:all:\0::", "a name has no NUL: '\\x00'"),
    ],
)
def test_what_is_wrong_is_quoted_with_its_place(text: str, wrong: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse(text)
    said = one_line(caught.value)
    assert wrong in said
    assert said.startswith("xattrmap: ")
    assert said.isprintable()


# Texts with separators, white space and bytes that are no UTF-8 in them.
TEXTS = st.text(st.sampled_from(":/|,;!%#+=@^~ \n.abü\udcff─━"), max_size=12)
RULES = st.builds(
    Rule,
    st.sampled_from(["prefix", "ok", "bad", "unsupported"]),
    st.sampled_from(["client", "server", "all"]),
    TEXTS,
    TEXTS,
)


@given(st.lists(RULES, max_size=6))
def test_a_map_reads_as_it_is_written(rules: list[Rule]) -> None:
    written = XattrMap((*rules, NONE))
    assert parse(str(written)) == written


@given(st.text())
def test_any_text_is_read_or_refused(text: str) -> None:
    try:
        read = parse(text)
    except ConfigError:
        return
    assert parse(str(read)) == read


@given(st.lists(RULES, max_size=4), TEXTS)
def test_the_native_side_gets_what_the_rules_say(rules: list[Rule], name: str) -> None:
    for rule in rules:
        guest, host, prefix, number = rule.native
        assert rule.of_guest(name) == (guest is not None and os.fsencode(name).startswith(guest))
        assert rule.of_host(name) == (host is not None and os.fsencode(name).startswith(host))
        assert prefix == (os.fsencode(rule.prepend) if rule.type == "prefix" else b"")
        assert number == {"bad": errno.EPERM, "unsupported": errno.EOPNOTSUPP}.get(rule.type, 0)


@pytest.mark.parametrize(
    ("text", "moves"),
    [
        (":ok:all:::", False),
        (":map:security.:user.v.:", False),
        (":ok:all:system.:system.::map::user.v.:", False),
        (":map::user.v.:", True),
        (":bad:all:system.posix_acl_default:system.posix_acl_default::ok:all:::", True),
        (":unsupported:server::system.::ok:all:::", True),
    ],
)
def test_acls_stay_what_they_are(share: Path, text: str, moves: bool) -> None:
    assert parse(text).moves_acls == moves
    if moves:
        with pytest.raises(ConfigError, match="_access and _default must stay") as caught:
            Passthrough(share, xattrmap=text, posix_acl=True)
        assert "begin with :ok:all:system.posix_acl_:" in one_line(caught.value)
    else:
        assert Passthrough(share, xattrmap=text, posix_acl=True).posix_acl
    assert Passthrough(share, xattrmap=text).xattr


def test_it_is_shown_with_the_file_system(share: Path) -> None:
    assert "xattrmap=':prefix:all::user.v.::bad:all:::'" in repr(Passthrough(share, xattrmap=":map::user.v.:"))


@pytest.fixture
def guest(share: Path) -> Iterator[Guest]:
    rules = ":unsupported:all:system.:system.: :bad:all:user.secret.:user.secret.: /map/trusted./user.virtiofs./"
    with Guest(Passthrough(share, xattrmap=rules)) as guest:
        yield guest


def test_names_change_on_their_way(guest: Guest, share: Path) -> None:
    guest.setxattr("hello", "trusted.overlay.opaque", b"y")
    assert os.getxattr(share / "hello", "user.virtiofs.trusted.overlay.opaque") == b"y"
    os.setxattr(share / "sub", "user.virtiofs.trusted.x", b"by the host")
    assert guest.getxattr("sub", "trusted.x") == b"by the host"
    guest.setxattr("hello", "user.same", b"1")
    assert os.getxattr(share / "hello", "user.same") == b"1"
    os.setxattr(share / "hello", "user.secret.key", b"1")
    os.setxattr(share / "hello", "user.virtiofs.", b"nothing left of its name")
    os.setxattr(share / "hello", "user.virtiofs.security.x", b"of another rule")
    assert sorted(guest.listxattr("hello")) == ["trusted.overlay.opaque", "user.same"]
    guest.removexattr("hello", "trusted.overlay.opaque")
    assert "user.virtiofs.trusted.overlay.opaque" not in os.listxattr(share / "hello")


def test_names_are_refused_as_the_rules_say(guest: Guest, share: Path) -> None:
    os.setxattr(share / "hello", "user.secret.key", b"1")
    for name, number in (
        ("system.other", errno.EOPNOTSUPP),
        ("user.secret.key", errno.EPERM),
        ("user.virtiofs.trusted.x", errno.EPERM),
    ):
        with fails(number):
            guest.getxattr("hello", name)
        with fails(number):
            guest.setxattr("hello", name, b"2")
        with fails(number):
            guest.removexattr("hello", name)
    assert os.getxattr(share / "hello", "user.secret.key") == b"1"
    with fails(errno.ERANGE):
        guest.setxattr("hello", "trusted." + "x" * 240, b"too long on the host")
    # No answer was one that would end extended attributes for the whole mount.
    guest.setxattr("hello", "user.still", b"1")


def test_sizes_are_those_of_what_is_seen(guest: Guest, share: Path) -> None:
    node = guest.node("hello")
    assert guest.client.listxattr(node) == []
    for number in range(100):
        os.setxattr(share / "hello", f"user.secret.{number}", b"")
    guest.setxattr("hello", "user.seen", b"1")
    assert guest.client.listxattr(node, len("user.seen") + 1) == ["user.seen"]
    with fails(errno.ERANGE):
        guest.client.listxattr(node, len("user.seen"))


def test_the_command_takes_rules(start: Start, share: Path, tmp_path: Path) -> None:
    start(share, "--socket", tmp_path / "s", "--xattrmap", ":map::user.virtiofs.:")
    with Guest(tmp_path / "s") as guest:
        guest.setxattr("hello", "security.anything", b"1")
    assert os.getxattr(share / "hello", "user.virtiofs.security.anything") == b"1"


def test_the_command_refuses_rules(share: Path, tmp_path: Path) -> None:
    for rules, wrong in (
        (":map::", "rule 1 at character 1, ':map::': its end is missing"),
        (":map::user.v.:", "with ACLs served, system.posix_acl_access and _default must stay"),
    ):
        done = virtiofs("serve", share, "--socket", tmp_path / "s", "--posix-acl", "--xattrmap", rules)
        assert done.returncode == 2
        assert done.stderr.startswith("virtiofs: error: xattrmap: ")
        assert wrong in done.stderr
        assert done.stderr.count("\n") == 1
    assert not (tmp_path / "s").exists()
