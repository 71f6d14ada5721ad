"""Rules for single files: what each condition means, and what each effect does to a guest."""

import errno
import mmap
import os
import threading
from pathlib import Path

import pytest

from tests import takes
from tests.daemon import virtiofs
from tests.errnos import fails
from virtiofs import (
    ALWAYS,
    NONE,
    Attr,
    Config,
    ConfigError,
    Entry,
    Node,
    Open,
    Passthrough,
    Policy,
    Request,
    Rule,
    _core,
    explain,
    mount,
)
from virtiofs.audit import Audit, OpenEvent
from virtiofs.testing import Guest

ROOT = 1
DIRECT, KEEP = _core.FOPEN["DIRECT_IO"], _core.FOPEN["KEEP_CACHE"]


def serving(share: Path, *rules: Rule) -> Guest:
    return Guest(Passthrough(share, policy=Policy(*rules)))


@pytest.fixture
def tree(share: Path) -> Path:
    (share / "a.tmp").write_text("temporary")
    (share / "sub" / "b.tmp").write_text("temporary")
    (share / "large").write_bytes(bytes(5000))
    (share / "link").symlink_to("hello")
    return share


def hidden(tree: Path, **conditions: object) -> set[str]:
    """The names that are gone with a rule of these conditions."""
    with serving(tree) as guest:
        before = {str(path) for path, _ in guest.walk()}
    with serving(tree, Rule(hidden=True, **conditions)) as guest:  # type: ignore[arg-type]
        after = {str(path) for path, _ in guest.walk()}
        listed = {str(name) for name in guest.listdir()}
        assert listed == {name for name in after if "/" not in name}
        gone = before - after
        for name in gone:
            assert not guest.exists(name)
    assert after <= before
    return gone


def test_conditions(tree: Path) -> None:
    assert hidden(tree, name="*.tmp") == {"a.tmp", "sub/b.tmp"}
    assert hidden(tree, name=["a.*", "lin?"]) == {"a.tmp", "link"}
    assert hidden(tree, path="*.tmp") == {"a.tmp"}
    assert hidden(tree, path="**/*.tmp") == {"a.tmp", "sub/b.tmp"}
    assert hidden(tree, path="sub/**") == {"sub/b.tmp", "sub/deep"}
    assert hidden(tree, kind="symlink") == {"link"}
    assert hidden(tree, kind="file", min_size=5000) == {"large"}
    assert "large" not in hidden(tree, kind="file", max_size="4K")
    assert hidden(tree, name="large", owner=os.getuid(), group=os.getgid()) == {"large"}
    assert hidden(tree, name="large", owner=os.getuid() + 1) == set()


def test_a_function_is_asked_once_per_inode(tree: Path) -> None:
    asked: list[str] = []
    threads: set[str] = set()

    def when(path: str, attr: Attr) -> bool:
        asked.append(path)
        threads.add(threading.current_thread().name)
        return attr.size == 5000

    with serving(tree, Rule(when=when, kind="file", read_only=True)) as guest:
        for _ in range(3):
            assert guest.read_file("sub/deep") == b"deep"
            guest.write_file("hello", b"changed")
            with fails(errno.EROFS):
                guest.write_file("large", b"")
        assert sorted(asked) == ["hello", "large", "sub/deep"]
        guest.write_file("sub/new", b"made")
        assert asked[3:] == ["sub/new"]
    assert threading.current_thread().name not in threads


def test_a_function_that_fails_fails_closed(tree: Path, caplog: pytest.LogCaptureFixture) -> None:
    def when(path: str, attr: Attr) -> bool:
        raise ZeroDivisionError("on purpose")

    with serving(tree, Rule(name="hello", when=when, read_only=True)) as guest:
        with fails(errno.EIO):
            guest.read_file("hello")
        assert guest.read_file("large") == bytes(5000)
        assert guest.server is not None
        assert guest.server.stats().panics == 0
    assert "on purpose" in caplog.text


def test_what_is_hidden_cannot_be_made_replaced_or_taken_away(tree: Path) -> None:
    with serving(
        tree, Rule(name="*.tmp", hidden=True), Rule(when=lambda path, attr: path == "large", hidden=True)
    ) as guest:
        client = guest.client
        with fails(errno.EPERM):
            guest.write_file("new.tmp", b"")
        with fails(errno.EPERM):
            guest.mkdir("dir.tmp")
        with fails(errno.EPERM):
            guest.symlink("x", "link.tmp")
        for there in ("a.tmp", "large"):
            with fails(errno.EPERM):
                client.rename(ROOT, "hello", ROOT, there)
            with fails(errno.EPERM):
                client.rename(ROOT, there, ROOT, "found")
            with fails(errno.EPERM):
                client.unlink(ROOT, there)
        guest.write_file("tmp", b"made")
    assert (tree / "a.tmp").read_text() == "temporary"
    assert (tree / "large").stat().st_size == 5000


def test_read_only_holds_for_files_and_for_entries_of_directories(tree: Path) -> None:
    with serving(tree, Rule(path=["sub", "sub/**"], read_only=True)) as guest:
        with fails(errno.EROFS):
            guest.write_file("sub/deep", b"")
        with fails(errno.EROFS):
            guest.write_file("sub/new", b"")
        with fails(errno.EROFS):
            guest.unlink("sub/deep")
        with fails(errno.EROFS):
            guest.truncate("sub/deep", 1)
        with fails(errno.EROFS):
            guest.rename("hello", "sub/hello")
        guest.write_file("hello", b"changed")


def test_what_guests_may_keep(tree: Path) -> None:
    rules = (
        Rule(name="hello", attr_timeout=7),
        Rule(name="hello", cache=ALWAYS),
        Rule(name="large", cache="none"),
        Rule(name="a.tmp", direct_io=True),
    )
    with Guest(Passthrough(tree, policy=Policy(*rules))) as guest:
        client = guest.client
        hello, large, other = (client.lookup(ROOT, name) for name in ("hello", "large", "a.tmp"))
        assert (hello.attr_timeout, hello.entry_timeout) == (7, client.lookup(ROOT, "hello").entry_timeout)
        assert (hello.entry_timeout or 0) > 86400
        assert (large.attr_timeout, large.entry_timeout) == (0, 0)
        assert other.attr_timeout == 1
        flags = {
            name: client.open(guest.node(name), os.O_RDONLY).flags for name in ("hello", "large", "a.tmp", "sub/deep")
        }
        assert flags["hello"] & (DIRECT | KEEP) == KEEP
        assert flags["large"] & DIRECT == NONE.open_flags & DIRECT
        assert flags["a.tmp"] & (DIRECT | KEEP) == DIRECT
        assert flags["sub/deep"] & DIRECT == 0


def test_native_rules_stay_under_methods(tree: Path) -> None:
    class Looks(Passthrough):
        def lookup(self, request: Request, parent: Node, name: str) -> Entry | None:
            return super().lookup(request, parent, name)

    with Guest(
        Looks(tree, policy=Policy(Rule(name="*.tmp", hidden=True), Rule(name="large", read_only=True)))
    ) as guest:
        assert not guest.exists("a.tmp")
        with fails(errno.EROFS):
            guest.write_file("large", b"")


@pytest.mark.root
@takes.mounts
def test_a_mount_of_this_host(tree: Path, tmp_path: Path) -> None:
    there = tmp_path / "there"
    there.mkdir()
    rules = Rule(when=lambda path, attr: path.endswith(".tmp"), hidden=True), Rule(name="large", read_only=True)
    with mount(Passthrough(tree, policy=Policy(*rules)), there):
        assert sorted(os.listdir(there)) == sorted({*os.listdir(tree)} - {"a.tmp"})
        assert os.listdir(there / "sub") == ["deep"]
        with fails(errno.EROFS):
            (there / "large").write_bytes(b"")
        with fails(errno.ENOENT):
            (there / "a.tmp").read_text()


@pytest.mark.root
@takes.mounts
def test_a_file_past_the_cache_is_mapped_like_any_other(tree: Path, tmp_path: Path) -> None:
    there = tmp_path / "there"
    there.mkdir()
    with mount(Passthrough(tree, policy=Policy(Rule(name="large", direct_io=True))), there):
        with (there / "large").open("r+b") as file, mmap.mmap(file.fileno(), 0) as mapped:
            mapped[:6] = b"stored"
            mapped.flush()
        assert (tree / "large").read_bytes()[:6] == b"stored"


def test_rules_in_a_file(tree: Path, tmp_path: Path) -> None:
    path = tmp_path / "shares.toml"
    path.write_text(f"""
        [[share]]
        directory = "{tree}"
        socket = "s"
        [[share.policy]]
        name = ["*.tmp", "*.swp"]
        hidden = true
        [[share.policy]]
        min_size = "1G"
        direct_io = true
        cache = "none"
        """)
    policy = Config.load(path).shares[0].policy
    assert policy == Policy(
        Rule(name=("*.tmp", "*.swp"), hidden=True), Rule(min_size="1G", direct_io=True, cache="none")
    )
    path.write_text(path.read_text().replace("hidden", "hiden"))
    with pytest.raises(ConfigError, match=r"shares.toml:7: unknown key 'hiden'") as raised:
        Config.load(path)
    assert "did you mean 'hidden'?" in raised.value.__notes__[0]
    path.write_text(path.read_text().replace("hiden = true", "hidden = 1"))
    with pytest.raises(ConfigError, match=r"shares.toml:7: hidden: expected true or false"):
        Config.load(path)
    path.write_text(path.read_text().replace("hidden = 1", ""))
    assert "shares.toml:5: policy: a rule without an effect" in virtiofs("serve", "--config", path, "--check").stderr


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"name": "x"}, "a rule without an effect"),
        ({"kind": "pipe", "hidden": True}, "unknown kind 'pipe'"),
        ({"owner": "nobody-of-this-name", "hidden": True}, "there is no user"),
        ({"cache": "some"}, "some"),
        ({"attr_timeout": -1}, "attr_timeout is in seconds"),
        ({"min_size": "much", "hidden": True}, "'much' is no size"),
        ({"dax": "some"}, "which files are mapped"),
        ({"name": "a[", "hidden": True}, "policy: .*a\\["),
    ],
)
def test_what_is_no_rule(given: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Policy(Rule(**given))  # type: ignore[arg-type]


def test_each_open_is_decided(tree: Path) -> None:
    asked = []

    def decide(request: Request, node: Node, flags: int) -> Open | None:
        asked.append(node.path.name)
        if node.path.name == "large":
            raise OSError(errno.EBUSY, "not now")
        if node.path.name == "hello" and flags & os.O_ACCMODE == os.O_RDONLY:
            fd = os.memfd_create("other")
            os.write(fd, b"in its place")
            return Open(backing=fd)
        return None

    fs = Passthrough(tree, policy=Policy(Rule(name="*.tmp", hidden=True), on_open=decide))
    routes = {route.operation: route for route in explain(fs).routes}
    assert (routes["open"].by, routes["open"].note) == ("Python", "Policy.on_open")
    assert routes["read"].by == "native"
    with Guest(fs) as guest:
        assert guest.read_file("hello") == b"in its place"
        guest.write_file("hello", b"written")
        with fails(errno.EBUSY):
            guest.read_file("large")
        guest.write_file("made", b"here")
        assert guest.read_file("made") == b"here"
        assert not guest.exists("a.tmp")
    assert (tree / "hello").read_bytes() == b"written"
    assert asked == ["hello", "hello", "large", "made", "made"], "files that are made are opened too"


def test_a_decision_comes_before_a_method(tree: Path) -> None:
    class Opens(Passthrough):
        async def open(self, request: Request, node: Node, flags: int) -> Open | None:  # type: ignore[override]
            opened.append(node.path.name)
            return super().open(request, node, flags)

    def decide(request: Request, node: Node, flags: int) -> None:
        if node.path.name == "large":
            raise PermissionError(node.path)

    opened: list[str] = []
    with Guest(Opens(tree, policy=Policy(on_open=decide))) as guest:
        assert guest.read_file("hello") == b"hello from the host\n"
        with fails(errno.EACCES):
            guest.read_file("large")
    assert opened == ["hello"]


def test_opens_are_told(tree: Path) -> None:
    events: list[OpenEvent] = []
    going_on = threading.Event()

    def hear(event: OpenEvent) -> None:
        assert going_on.wait(20)
        events.append(event)

    def decide(request: Request, node: Node, flags: int) -> None:
        if node.path.name == "large":
            raise OSError(errno.EBUSY, "not now")

    audit = Audit(hear, size=2)
    with Guest(Passthrough(tree, policy=Policy(on_open=decide, audit=audit)), uid=5, gid=6) as guest:
        assert guest.read_file("sub/deep") == b"deep"
        with fails(errno.EBUSY):
            guest.read_file("large")
        for _ in range(10):
            guest.read_file("hello")
        assert not events, "nobody waited for it"
    going_on.set()
    assert audit.flush(20)
    assert audit.lost in (9, 10), "two wait, and one may be at the function"
    first, second = events[:2]
    assert (os.path.basename(first.path), first.errno, first.replaced) == ("deep", 0, False)
    assert (first.uid, first.gid) == (5, 6)
    assert first.flags & os.O_ACCMODE == os.O_RDONLY
    assert (os.path.basename(second.path), second.errno) == ("large", errno.EBUSY)


def test_bad_hooks() -> None:
    async def decide(request: Request, node: Node, flags: int) -> None:
        pass

    with pytest.raises(ConfigError, match="on_open may not be async"):
        Policy(on_open=decide)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="1 event or more has to wait, not 0"):
        Audit(print, size=0)
