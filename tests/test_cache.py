"""Modes are values, and become numbers."""

import math
from pathlib import Path

import pytest

from virtiofs import ALWAYS, AUTO, METADATA, NONE, Cache, ConfigError, Passthrough, _core, cache
from virtiofs.testing import Guest


def test_names() -> None:
    assert cache.mode("never") is cache.mode("none") is NONE
    assert [cache.mode(name) for name in ("metadata", "auto", "always")] == [METADATA, AUTO, ALWAYS]
    with pytest.raises(ConfigError, match="unknown cache mode 'allways'"):
        cache.mode("allways")


@pytest.mark.parametrize(
    ("mode", "timeout", "flags", "dir_flags"),
    [
        (NONE, 0.0, {"DIRECT_IO", "PARALLEL_DIRECT_WRITES"}, set()),
        (METADATA, 86400.0, {"DIRECT_IO", "PARALLEL_DIRECT_WRITES"}, {"CACHE_DIR", "KEEP_CACHE"}),
        (AUTO, 1.0, set(), set()),
        (ALWAYS, math.inf, {"KEEP_CACHE"}, {"CACHE_DIR", "KEEP_CACHE"}),
    ],
)
def test_numbers(mode: Cache, timeout: float, flags: set[str], dir_flags: set[str]) -> None:
    assert mode.attr_timeout == mode.entry_timeout == mode.negative_timeout == timeout
    assert mode.open_flags == sum(_core.FOPEN[name] for name in flags)
    assert mode.dir_open_flags == sum(_core.FOPEN[name] for name in dir_flags)


def test_files_can_be_mapped_in_every_mode() -> None:
    for mode in cache.MODES.values():
        assert "DIRECT_IO_ALLOW_MMAP" in mode.features, mode.name


def test_a_mode_of_ones_own() -> None:
    mine = AUTO.replace(name="mine", attr_timeout=0.25)
    assert (mine.name, mine.attr_timeout, mine.entry_timeout) == ("mine", 0.25, 1.0)
    assert AUTO.attr_timeout == 1.0
    with pytest.raises(AttributeError):
        mine.attr_timeout = 3.0  # type: ignore[misc]


@pytest.mark.parametrize("changes", [{"attr_timeout": -1.0}, {"entry_timeout": math.nan}, {"keep_cache": True}])
def test_values_that_cannot_be(changes: dict[str, float]) -> None:
    with pytest.raises(ConfigError):
        NONE.replace(**changes)


def features(share: Passthrough) -> set[str]:
    return {name for name, bit in _core.INIT.items() if share.init_flags & bit}


def test_features_follow_the_settings(tmp_path: Path) -> None:
    plain = features(Passthrough(tmp_path))
    assert {
        "HANDLE_KILLPRIV_V2",
        "SUBMOUNTS",
        "DO_READDIRPLUS",
        "AUTO_INVAL_DATA",
        "ATOMIC_O_TRUNC",
        "POSIX_LOCKS",
        "FLOCK_LOCKS",
    } <= plain
    assert not plain & {"WRITEBACK_CACHE", "POSIX_ACL", "CACHE_SYMLINKS"}
    assert features(Passthrough(tmp_path, writeback=True)) - plain == {"WRITEBACK_CACHE"}
    assert features(Passthrough(tmp_path, posix_acl=True)) - plain == {"POSIX_ACL"}
    assert features(Passthrough(tmp_path, ALWAYS)) - plain == {"CACHE_SYMLINKS", "NO_OPENDIR_SUPPORT"}
    assert plain - features(Passthrough(tmp_path, posix_lock=False, flock=False)) == {"POSIX_LOCKS", "FLOCK_LOCKS"}
    less = Passthrough(tmp_path, readdirplus=False, killpriv_v2=False, announce_submounts=False)
    assert plain - features(less) == {"DO_READDIRPLUS", "READDIRPLUS_AUTO", "HANDLE_KILLPRIV_V2", "SUBMOUNTS"}


def test_quiet_files_are_trusted_for_longer(tmp_path: Path) -> None:
    mode = Cache.adaptive(30.0)
    assert (mode.attr_timeout, mode.negative_timeout, mode.growth, mode.restless) == (30.0, 0.0, 0.1, 2.0)
    with pytest.raises(ConfigError, match="growth is a number, from 0 on, not -1"):
        Cache.adaptive(30.0, growth=-1)
    (tmp_path / "file").write_text("")
    for restless, valid in [(0.0, 1e6), (1e6, 0.0)]:
        # A microsecond ago is long ago, or nothing is: what the guest is told then.
        share = Passthrough(tmp_path, Cache.adaptive(1e6, growth=1e18, restless=restless))
        with Guest(share) as guest:
            entry = guest.client.lookup(guest.node(), b"file")
            assert (entry.entry_timeout, entry.attr_timeout) == (valid, valid)
