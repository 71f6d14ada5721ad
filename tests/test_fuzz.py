"""What people write, at random and nearly right: only the exceptions that are documented come out."""

import string
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from virtiofs import Config, ConfigError, ids, xattrmap
from virtiofs.config import Config as Settings
from virtiofs.configfile import keys
from virtiofs.dax import files, local, size, window

ANY = st.text(max_size=200)
SEPARATED = st.builds(
    lambda separator, fields: separator.join(fields),
    st.sampled_from(":/|,;!"),
    st.lists(
        st.sampled_from(
            [
                *("", "map", "prefix", "ok", "bad", "unsupported", "all", "client", "server", "user.", "trusted."),
                *("guest", "host", "squash-guest", "squash-host", "forbid-guest"),
                *("0", "1", "1000", "4294967295", "4294967296", "-1", " 7", "\u0663"),
            ]
        )
        | st.text(string.printable, max_size=8),
        max_size=12,
    ),
)
NUMBERS = st.builds(
    lambda number, unit: f"{number}{unit}",
    st.integers(-(2**70), 2**70) | st.sampled_from(["", "0x10", "1_000", "1e3", "\u0663", "inf", "nan", "+5", " 5"]),
    st.sampled_from(["", "K", "M", "G", "T", "k", "KiB", "B", "KK", "s", "ms", " M", "\n"]),
)


def outcome(call: Callable[[], object]) -> object:
    """Returns what a call does, or says, if it may say that."""
    try:
        return call()
    except ConfigError as error:
        said = error
    assert str(said)
    return said


@pytest.mark.parametrize("parse", [size, window, local, files], ids=lambda parse: parse.__name__)
@given(text=ANY | NUMBERS | st.integers(-(2**70), 2**70))
def test_sizes(parse: Callable[[int | str], object], text: int | str) -> None:
    outcome(lambda: parse(text))


def test_numbers_longer_than_python_reads() -> None:
    for text in ("9" * 5000, "9" * 5000 + "K"):
        with pytest.raises(ConfigError):
            size(text)
    for parse in (ids.translation, ids.id_map):
        with pytest.raises(ConfigError):
            parse(f"map:{'9' * 5000}:0:1")
        with pytest.raises(ConfigError):
            parse(f":{'9' * 5000}:0:1:")


@pytest.mark.parametrize("text", ["x = " + "9" * 5000, "x = " + "[" * 5000, "x = " + "{a=" * 5000])
def test_files_that_break_the_parser(tmp_path: Path, text: str) -> None:
    (tmp_path / "fuzz.toml").write_text(text)
    with pytest.raises(ConfigError, match=r"fuzz\.toml:"):
        Config.load(tmp_path / "fuzz.toml")


@given(ANY | SEPARATED | st.lists(SEPARATED).map("\n".join))
def test_xattrmap(text: str) -> None:
    rules = outcome(lambda: xattrmap.parse(text))
    if not isinstance(rules, ConfigError):
        assert xattrmap.parse(str(rules)) == rules


@given(st.lists(ANY | SEPARATED, max_size=4))
def test_translated_ids(rules: list[str]) -> None:
    outcome(lambda: ids.translation(rules))


@given(ANY | SEPARATED)
def test_mapped_ids(text: str) -> None:
    outcome(lambda: ids.id_map(text))


VALUES = st.sampled_from(
    [
        *(
            "true",
            "false",
            "0",
            "-1",
            "1.5",
            "nan",
            "inf",
            '""',
            '"auto"',
            '"never"',
            '"64K"',
            '"/nowhere"',
            "[]",
            "{}",
        ),
        *(
            "[1, 'a']",
            "9" * 30,
            '"\\u0000"',
            '"map:0:1:2"',
            "1979-05-27",
            "{ a = 1 }",
            "[[1]]",
            '["map:0:100000:65536"]',
        ),
    ]
) | st.text(string.printable, max_size=12)
NAMES = st.sampled_from([name for names in keys().values() for name in names]) | st.text(
    string.ascii_lowercase, max_size=6
)
LINES = st.builds(lambda name, value: f"{name} = {value}", NAMES, VALUES)
HEADS = st.sampled_from(
    ["[[share]]", "[[share.policy]]", "[share]", "[cache]", "[[cache]]", "[share.cache]", "[", "[[share"]
)
MINIMAL = '[[share]]\ndirectory = "/tmp"\nsocket = "/tmp/virtiofs-fuzz.sock"'


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=300, deadline=None)
@given(
    st.lists(LINES, max_size=3),
    st.sampled_from(["", MINIMAL]),
    st.lists(LINES | HEADS, max_size=8),
    st.binary(max_size=3),
)
def test_configuration_files(tmp_path: Path, first: list[str], share: str, more: list[str], noise: bytes) -> None:
    path = tmp_path / "fuzz.toml"
    text = "\n".join((*first, share, *more)).encode("utf-8", "replace")
    path.write_bytes(text + noise)
    config = outcome(lambda: Config.load(path))
    if isinstance(config, ConfigError):
        assert str(config).startswith(str(path)), "it does not say which file"
    else:
        assert isinstance(config, Settings)
