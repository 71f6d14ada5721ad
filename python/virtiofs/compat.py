"""The command lines of the virtiofsd programs, as far as `virtiofs serve` does not spell its options the same way.

What they ask for and we do is translated. What we do not do is refused if a guest would see or gain something by it, and
accepted with a warning if only the daemon itself would be more confined or tuned.
"""

import argparse
from collections.abc import Iterator
from typing import Final

from .errors import ConfigError, hinted

_BARE: Final = {"--posix-acl": "auto", "--security-label": "auto"}
"""Options whose value may be left out, and what they mean then."""

_LEGACY: Final = {
    "source": "--shared-dir",
    "cache": "--cache",
    "timeout": "--timeout",
    "sandbox": "--sandbox",
    "xattrmap": "--xattrmap",
    "modcaps": "--modcaps",
    "log_level": "--log-level",
}
"""`-o` options of the C virtiofsd that have a value."""

_LEGACY_FLAGS: Final = {
    "debug": ["-d"],
    "xattr": ["--xattr"],
    "no_xattr": ["--no-xattr"],
    "writeback": ["--writeback"],
    "no_writeback": ["--no-writeback"],
    "readdirplus": [],
    "no_readdirplus": ["--no-readdirplus"],
    "allow_direct_io": ["--allow-direct-io"],
    "no_allow_direct_io": ["--no-allow-direct-io"],
    "announce_submounts": ["--announce-submounts"],
    "no_announce_submounts": ["--no-announce-submounts"],
    "posix_acl": ["--posix-acl=auto"],
    "no_posix_acl": ["--posix-acl=never"],
    "security_label": ["--security-label=auto"],
    "no_security_label": ["--security-label=never"],
    "killpriv_v2": ["--killpriv-v2"],
    "no_killpriv_v2": ["--no-killpriv-v2"],
    "flock": ["--flock"],
    "no_flock": ["--no-flock"],
    "posix_lock": ["--posix-lock"],
    "no_posix_lock": ["--no-posix-lock"],
    "allow_root": [],
}
"""`-o` options of the C virtiofsd that have none."""


def expand(arguments: list[str]) -> list[str]:
    """Returns `arguments` with `-o` options and left-out values written as `virtiofs serve` takes them.

    Raises:
        ConfigError: An `-o` option is unknown, or asks for what is not served.
    """
    out: list[str] = []
    rest = iter(arguments)
    for argument in rest:
        if argument == "--":
            return [*out, argument, *rest]
        if argument in _BARE:
            out.append(f"{argument}={_BARE[argument]}")
        elif argument == "-o":
            out += _legacy(next(rest, ""))
        elif argument.startswith("-o") and not argument.startswith("--"):
            out += _legacy(argument[2:])
        else:
            out.append(argument)
    return out


def _legacy(options: str) -> list[str]:
    out: list[str] = []
    for option in _split(options):
        name, equals, value = option.partition("=")
        if equals and name in _LEGACY:
            out.append(f"{_LEGACY[name]}={value}")
        elif not equals and name in _LEGACY_FLAGS:
            out += _LEGACY_FLAGS[name]
        elif name == "max_idle_threads":
            continue
        else:
            raise hinted(ConfigError(f"unknown option -o {option!r}"), "see virtiofs serve --help")
    return out


def _split(options: str) -> Iterator[str]:
    """Yields what commas separate; a comma that belongs to a value has a backslash before it."""
    part, escaped = "", False
    for char in options:
        if escaped or (char not in "\\,"):
            part, escaped = part + char, False
        elif char == "\\":
            escaped = True
        else:
            yield part
            part = ""
    if part:
        yield part


def add_options(parser: argparse.ArgumentParser) -> None:
    """Adds the options that are accepted for the sake of scripts written for virtiofsd."""
    group = parser.add_argument_group("accepted for virtiofsd's sake")
    group.add_argument("--allow-mmap", action="store_true", help="no effect: files can always be mapped")
    for option in ("--preserve-noatime", "--migration-verify-handles", "--migration-confirm-paths", "-f"):
        group.add_argument(option, action="store_true", help=argparse.SUPPRESS)
    group.add_argument("--migration-mode", metavar="VALUE", help=argparse.SUPPRESS)


def check(arguments: argparse.Namespace) -> list[str]:
    """Returns warnings about accepted options that have no effect."""
    if arguments.migration_mode:
        return [
            "--migration-mode has no effect: files are found again by handle where that can be, and by path elsewhere"
        ]
    return []
