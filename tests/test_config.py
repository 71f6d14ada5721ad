"""A configuration is served as it says, and what is wrong with it is said with its line."""

import argparse
import dataclasses
import os
import re
import textwrap
import tomllib
from pathlib import Path
from typing import get_type_hints

import pytest

from tests.daemon import Start, virtiofs
from virtiofs import ALWAYS, AUTO, NONE, Config, ConfigError, Passthrough, Share, cli, options
from virtiofs.configfile import HOOKS, OF_CACHE, keys
from virtiofs.testing import Guest
from virtiofs.xattrmap import parse

DOCS = Path(__file__).parents[1] / "docs" / "configuration.md"


def write(directory: Path, text: str) -> Path:
    path = directory / "v.toml"
    path.write_text(textwrap.dedent(text))
    return path


def test_every_key(tmp_path: Path) -> None:
    path = write(
        tmp_path,
        """
        log_level = "warning"
        syslog = true
        rlimit_nofile = 4096
        sandbox = "auto"
        seccomp = "none"
        modcaps = "+sys_admin"
        file_handles = true

        [[share]]
        directory = "data"
        socket = "/run/s"
        tag = "t"
        request_queues = 3
        once = true
        socket_mode = 0o660
        socket_group = "kvm"
        slow_threads = 5
        dax_window = "64M"
        cache = "always"
        version_slots = 128
        coherence_dir = "c"
        attr_timeout = 7
        negative_timeout = 0.5
        read_only = true
        writeback = true
        xattr = true
        xattrmap = ":map::user.v.:"
        posix_acl = true
        security_label = true
        posix_lock = false
        flock = false
        node_descriptors = 9
        allow_direct_io = true
        announce_submounts = false
        readdirplus = false
        killpriv_v2 = false
        ownership = "caller"
        idmap = true
        translate_uid = ["map:0:1:2"]
        translate_gid = ["forbid-guest:1:2"]
        dax = "1M"

        [[share]]
        fs = "a.b:C.make"
        socket = "s"
        socket_mode = "640"
        entry_timeout = inf
        [share.arguments]
        bucket = "b"
        """,
    )
    config = Config.load(path)
    assert (config.log_level, config.syslog, config.rlimit_nofile) == ("warn", True, 4096)
    assert (config.sandbox, config.seccomp, config.modcaps, config.file_handles) == (
        "auto",
        "none",
        "+sys_admin",
        True,
    )
    assert config.shares == (
        Share(
            directory=str(tmp_path / "data"),
            socket="/run/s",
            tag="t",
            request_queues=3,
            once=True,
            socket_mode=0o660,
            socket_group="kvm",
            slow_threads=5,
            dax_window="64M",
            cache=ALWAYS.replace(attr_timeout=7.0, negative_timeout=0.5),
            version_slots=128,
            coherence_dir=str(tmp_path / "c"),
            read_only=True,
            writeback=True,
            xattr=True,
            xattrmap=parse(":map::user.v.:"),
            posix_acl=True,
            security_label=True,
            posix_lock=False,
            flock=False,
            node_descriptors=9,
            allow_direct_io=True,
            announce_submounts=False,
            readdirplus=False,
            killpriv_v2=False,
            ownership="caller",
            idmap=True,
            translate_uid=("map:0:1:2",),
            translate_gid=("forbid-guest:1:2",),
            dax="1M",
        ),
        Share(
            fs="a.b:C.make",
            socket=str(tmp_path / "s"),
            socket_mode=0o640,
            cache=AUTO.replace(entry_timeout=float("inf")),
            arguments={"bucket": "b"},
        ),
    )
    assert config.shares[0].origin == f"{path}:10"


SHARE = '[[share]]\ndirectory = "."\nsocket = "s"\n'


@pytest.mark.parametrize(
    ("text", "line", "message"),
    [
        ("log_levl = 'info'\n", 1, "unknown key 'log_levl'; did you mean 'log_level'?"),
        (SHARE + "read-only = true\n", 4, "unknown key 'read-only'; did you mean 'read_only'?"),
        (SHARE + "\n# x = 1\nreadonly = true\n", 6, "unknown key 'readonly'; did you mean 'read_only'?"),
        (SHARE + "zzz = 1\n", 4, "unknown key 'zzz'; there are: directory, fs,"),
        (SHARE + "fd = 3\n", 4, "unknown key 'fd'"),
        (SHARE + "tag = 5\n", 4, "tag: expected a string, not a whole number (5)"),
        (SHARE + "once = 'yes'\n", 4, "once: expected true or false, not a string ('yes')"),
        (SHARE + "request_queues = true\n", 4, "request_queues: expected a whole number, not true or false (True)"),
        (SHARE + "request_queues = 1.0\n", 4, "request_queues: expected a whole number, not a number (1.0)"),
        (SHARE + "attr_timeout = '1'\n", 4, "attr_timeout: expected a number, not a string ('1')"),
        (SHARE + "attr_timeout = -1\n", 4, "attr_timeout is in seconds, from 0 on, not -1.0"),
        (SHARE + "attr_timeout = nan\n", 4, "attr_timeout is in seconds, from 0 on, not nan"),
        (SHARE + "tag = ['a',\n 'b']\n", 4, "tag: expected a string, not an array"),
        (SHARE + "tag = 1979-05-27\n", 4, "tag: expected a string, not a date"),
        (SHARE + "arguments = 1\n", 4, "arguments: expected a table, not a whole number (1)"),
        (SHARE + "cache = 'all'\n", 4, "cache: unknown cache mode 'all': choose one of none, never, metadata"),
        (SHARE + "cache = 1\n", 4, "cache: expected a string, not a whole number (1)"),
        (SHARE + "ownership = 'me'\n", 4, "ownership: unknown value 'me'; choose one of auto, caller"),
        (SHARE + "socket_mode = 'rw'\n", 4, "socket_mode: not an octal number: 'rw'"),
        (SHARE + "xattrmap = 'nonsense'\n", 4, "xattrmap: "),
        (SHARE + "translate_uid = 'map:0:1:1'\n", 4, "translate_uid: expected an array of strings, not a string"),
        (SHARE + "translate_gid = ['all']\n", 4, "translate_gid: 'all': unknown kind 'all'"),
        (SHARE + SHARE, 6, "socket: "),
        ("log_level = 'loud'\n" + SHARE, 1, "log_level: unknown log level 'loud': choose one of off, error"),
        ("share = 1\n", 1, "share: expected tables; write [[share]] before each"),
        ("[share]\ndirectory = '.'\n", 1, "share: expected tables; write [[share]] before each"),
        ("\n\n[[share]]\nsocket = 's'\n", 3, 'which directory is to be shared?; give directory = "DIR", or fs'),
        ("[[share]]\ndirectory = '.'\n", 1, 'no socket to serve at; give socket = "PATH"'),
        ("a = 1\na = 2\n", 2, "Cannot overwrite a value"),
        ("[[share]\n", 1, "Expected ']]' at the end of an array declaration"),
        ("a = 0660\n", 1, "Expected newline or end of document after a statement"),
        ("a = '''\nnever closed\n", 2, "Expected"),
        ("a = '\x00'\n", 1, "character"),
    ],
)
def test_what_is_wrong_and_where(tmp_path: Path, text: str, line: int, message: str) -> None:
    path = write(tmp_path, text)
    done = virtiofs("serve", "--config", path, "--check")
    assert done.returncode == 2
    assert done.stderr.startswith(f"virtiofs: error: {path}:{line}: "), done.stderr
    assert message in done.stderr
    assert done.stderr.count("\n") == 1


def test_a_key_is_found_wherever_it_stands(tmp_path: Path) -> None:
    """Quoted, dotted, below an array of tables, behind strings and arrays of many lines that look like keys."""
    path = write(
        tmp_path,
        '''
        [[share]]
        directory = """
        tag = 1
        """
        socket = "a"
        [share.arguments]
        list = [
          "tag = 1", # tag = 1
          "]",
        ]
        deep.er."quo ted" = { a = 1 }

        [[share]] # the second
        directory = "b"
        socket = "b"
        "tag" = 5
        ''',
    )
    with pytest.raises(ConfigError, match=re.escape(f"{path}:17: tag: expected a string")):
        Config.load(path)


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    done = virtiofs("serve", "--config", tmp_path / "none", "--check")
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert "no such file or directory" in done.stderr
    path = tmp_path / "v.toml"
    path.write_bytes(b"a = 1\nb = '\xff'\n")
    with pytest.raises(ConfigError, match=":2: not UTF-8"):
        Config.load(path)
    path.write_bytes(b"")
    with pytest.raises(ConfigError, match="there is no share in it") as caught:
        Config.load(path)
    assert caught.value.__notes__ == ["begin one with [[share]]"]


def test_check_looks_at_what_shares_name(tmp_path: Path, share: Path) -> None:
    path = write(
        tmp_path,
        f"""
        [[share]]
        directory = "{share}"
        socket = "a"
        tag = "first"

        [[share]]
        directory = "missing"
        socket = "b"
        """,
    )
    done = virtiofs("serve", "--config", path, "--check")
    assert done.returncode == 2
    assert done.stderr.startswith(f"virtiofs: error: {path}:7: {tmp_path}/missing: no such file or directory")
    (tmp_path / "missing").mkdir()
    done = virtiofs("serve", "--config", path, "--check")
    assert (done.returncode, done.stderr) == (0, "")
    first, second = done.stdout.splitlines()
    assert first == f"{path}:2: Passthrough({str(share)!r}, cache=auto) as 'first' at {tmp_path}/a"
    assert second.endswith(f"at {tmp_path}/b")
    assert not (tmp_path / "a").exists()


def test_shares_of_one_daemon(tmp_path: Path, share: Path, start: Start) -> None:
    """Each has its own socket, tag and rules, and locks hold between them."""
    path = write(
        tmp_path,
        f"""
        [[share]]
        directory = "{share}"
        socket = "a"
        tag = "a"
        [[share]]
        directory = "{share}"
        socket = "b"
        tag = "b"
        read_only = true
        """,
    )
    daemon = start("--config", path)
    daemon.wait_for("tag=b")
    with Guest(tmp_path / "a") as a, Guest(tmp_path / "b") as b:
        assert (a.client.session["tag"], b.client.session["tag"]) == ("a", "b")
        a.write_file("new", b"1")
        assert b.read_file("new") == b"1"
        with pytest.raises(OSError, match="Read-only"):
            b.write_file("new", b"2")
        assert daemon.threads() < 20
    assert daemon.end() == 0
    assert not (tmp_path / "a").exists()
    assert not (tmp_path / "b").exists()


def test_a_share_that_fails_to_start_ends_all(tmp_path: Path, share: Path) -> None:
    path = write(
        tmp_path,
        f"""
        [[share]]
        directory = "{share}"
        socket = "a"
        [[share]]
        directory = "{share}"
        socket = "none/b"
        """,
    )
    done = virtiofs("serve", "--config", path)
    assert done.returncode == 2
    assert "none/b" in done.stderr
    assert not (tmp_path / "a").exists()


MODULE = """
import os
from virtiofs import Passthrough

class Mine(Passthrough):
    def __init__(self, *arguments, colour="red", **keywords):
        super().__init__(*arguments, **keywords)
        self.colour = colour
    def __repr__(self):
        return f"Mine({self.directory!r}, {self.colour!r}, {self.read_only})"

def make(path, xattr=False):
    return Mine(path, colour="blue", xattr=xattr)

nothing = 5
def wrong():
    return 5

def decide(request, node, flags):
    if node.path.name == "hello":
        raise PermissionError(node.path)

def note(event):
    with open(os.environ["NOTED"], "a") as file:
        print(event.path, event.errno, file=file)

async def later(request, node, flags):
    pass
"""


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "configured.py").write_text(MODULE)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))


@pytest.mark.usefixtures("module")
def test_classes(share: Path, tmp_path: Path) -> None:
    made = Share(fs="configured:Mine", directory=str(share), read_only=True, arguments={"colour": "green"}).filesystem()
    assert repr(made) == f"Mine({str(share)!r}, 'green', True)"
    made = Share(fs="configured:make", arguments={"path": str(share), "xattr": True}).filesystem()
    assert isinstance(made, Passthrough)
    assert made.xattr
    for fs, arguments, message in (
        ("configured", {}, "'configured' names no class"),
        ("nomodule:X", {}, "nomodule:X: No module named 'nomodule'"),
        ("configured:Other", {}, "configured:Other: configured has no 'Other'"),
        ("configured:nothing", {}, "configured:nothing is not a class"),
        ("configured:wrong", {}, "configured:wrong makes no file system, but int"),
        ("configured:make", {"colour": 1}, "configured:make: make.. got an unexpected keyword argument 'colour'"),
    ):
        with pytest.raises(ConfigError, match=message):
            Share(fs=fs, arguments=arguments).filesystem()
    with pytest.raises(ConfigError, match="configured:make shares no directory of this host and takes no read_only"):
        Share(fs="configured:make", read_only=True).filesystem()
    with pytest.raises(ConfigError, match="which directory is to be shared"):
        Share(fs="configured:Mine").filesystem()
    path = write(tmp_path, f'[[share]]\nfs = "configured:Mine"\ndirectory = "{share}"\nsocket = "s"\n')
    said = virtiofs("serve", "--config", path, "--check").stdout
    assert said == f"{path}:1: Mine({str(share)!r}, 'red', False) as 'virtiofs' at {tmp_path}/s\n"


@pytest.mark.usefixtures("module")
def test_hooks(share: Path, tmp_path: Path, start: Start) -> None:
    """Functions that are asked and told of opens, beside rules for single files."""
    text = f"""
        [[share]]
        directory = "{share}"
        socket = "s"
        on_open = "configured:decide"
        audit = "configured:note"
        [[share.policy]]
        name = "sub"
        hidden = true
        """
    path = write(tmp_path, text)
    (loaded,) = Config.load(path).shares
    assert loaded.policy is not None
    assert len(loaded.policy.rules) == 1
    noted = tmp_path / "noted"
    daemon = start("--config", path, env={"NOTED": str(noted)})
    with Guest(tmp_path / "s") as guest:
        assert guest.listdir() == ["hello"]
        with pytest.raises(PermissionError):
            guest.read_file("hello")
        guest.write_file("new", b"")
        guest.read_file("new")
    assert daemon.end() == 0
    assert set(noted.read_text().splitlines()) >= {f"{share}/hello 13", f"{share}/new 0"}
    for wrong, message in (
        (text.replace(":decide", ":later"), "v.toml:5: on_open: on_open may not be async"),
        (text.replace(":note", ":nothing"), "v.toml:6: audit: configured:nothing is not a class"),
        (text.replace('"configured:note"', "5"), "v.toml:6: audit: expected a string, not a whole number"),
        (text.replace("hidden = true", 'uid = "root"'), "v.toml:9: uid: expected a whole number, not a string"),
    ):
        with pytest.raises(ConfigError, match=message):
            Config.load(write(tmp_path, wrong))


def overridden(path: Path, *arguments: str) -> Config:
    given = ["serve", "--config", str(path), *arguments]
    return options.config(cli._parser().parse_args(given, argparse.Namespace(argv=given)))


def test_options_take_precedence(tmp_path: Path) -> None:
    one = '[[share]]\ndirectory = "/d"\nsocket = "/s"\ncache = "none"\nattr_timeout = 3\nreaddirplus = false\n'
    path = write(tmp_path, 'log_level = "debug"\n' + one)
    assert overridden(path) == Config.load(path)
    config = overridden(path, "--socket=/o", "--readonly", "--readdirplus", "--tag", "o", "--thread-pool-size", "2")
    (share,) = config.shares
    before = Config.load(path).shares[0]
    assert share == dataclasses.replace(before, socket="/o", read_only=True, readdirplus=True, tag="o", slow_threads=2)
    assert config.log_level == "debug"
    assert overridden(path, "--log-level", "info").log_level == "info"
    assert overridden(path, "--entry-timeout=5").shares[0].cache == NONE.replace(attr_timeout=3.0, entry_timeout=5.0)
    assert overridden(path, "--cache=auto").shares[0].cache == AUTO
    write(tmp_path, one + one.replace("/s", "/t"))
    assert [share.cache.name for share in overridden(path, "--cache=always").shares] == ["always", "always"]
    for argument in ("--socket=/o", "--tag=o", "--fd=3", "/dir", "--shared-dir=/dir"):
        with pytest.raises(ConfigError, match="cannot be given beside --config"):
            overridden(path, argument)


def test_the_documentation_has_every_key() -> None:
    text = DOCS.read_text()
    rows = re.findall(r"^\| `(\w+)` \| ([^|]+) \|([^|]*)\| ([^|]+) \|$", text, re.MULTILINE)
    known = keys()
    assert [key for key, *_ in rows] == known[""] + known["share"]
    kinds = {str: "string", bool: "true or false", int: "whole number", float: "number"}
    for row, owner in [*((row, Config) for row in rows[:9]), *((row, Share) for row in rows[10:])]:
        key, kind, default, _ = row
        if key in OF_CACHE:
            assert kind == kinds[OF_CACHE[key]]
            continue
        if key in HOOKS:
            assert kind == "string"
            continue
        hint = get_type_hints(owner)[key]
        field = next(field for field in dataclasses.fields(owner) if field.name == key)
        for each, called in kinds.items():
            if hint in (each, each | None):
                assert kind.startswith(called), key
        if isinstance(field.default, bool):
            assert default.strip() == f"`{str(field.default).lower()}`", key
        elif isinstance(field.default, str):
            assert default.strip() == f'`"{field.default}"`', key
        elif isinstance(field.default, int):
            assert default.strip() in (f"`{field.default}`", f"`{field.default:#o}`"), key


def test_the_documented_example_is_valid(tmp_path: Path) -> None:
    example = re.search(r"```toml\n(.*?)```", DOCS.read_text(), re.DOTALL)
    assert example is not None
    assert tomllib.loads(example[1])
    config = Config.load(write(tmp_path, example[1]))
    assert [share.tag for share in config.shares] == ["data", "photos", "audited"]
    assert os.path.isabs(config.shares[0].socket or "")
