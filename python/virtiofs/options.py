"""What the words of the command line mean: the options of `serve` and `mount`, and what they set."""

import argparse
import os
import tomllib
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Final, Never

from . import cache, compat, xattrmap
from .classes import names_class
from .config import Config, Share, inherited_fd
from .errors import ConfigError, hinted
from .mounts import FLAGS
from .server import default_request_queues

USAGE: Final = 2
"""Exit status when nothing was served because of what was asked for."""


class Parser(argparse.ArgumentParser):
    """A parser that says what is wrong on one line."""

    def error(self, message: str) -> Never:
        """Says what is wrong and ends the program."""
        self.exit(USAGE, f"{self.prog}: error: {message}; see {self.prog} --help\n")


def add_serve(parser: argparse.ArgumentParser) -> None:
    """Adds the options of `virtiofs serve`."""
    parser.add_argument("directory", nargs="?", metavar="DIR|MODULE:CLASS", help="directory or file system to share")
    parser.add_argument("--shared-dir", metavar="DIR", help="the same, as an option")
    parser.add_argument(
        "--config", metavar="FILE", help="serve the shares in this file (TOML), options taking precedence over it"
    )
    parser.add_argument("--check", action="store_true", help="say what would be served, or what is wrong, and exit")

    group = parser.add_argument_group("socket")
    group.add_argument("--socket", "--socket-path", metavar="PATH", help="vhost-user socket to make")
    group.add_argument("--fd", metavar="N", type=int, help="inherited socket to serve at instead")
    group.add_argument("--socket-mode", metavar="MODE", type=_octal, default=0o600, help="its permissions (0600)")
    group.add_argument("--socket-group", metavar="GROUP", help="its group, by name or number")
    group.add_argument("--once", action="store_true", help="end with the first guest")
    group.add_argument(
        "--reconnect-timeout",
        metavar="SECONDS",
        type=float,
        default=30.0,
        help="keep what a guest has while its VMM is away, if that can come back (30); 0: do not",
    )
    group.add_argument(
        "--migration-on-error",
        metavar="WHAT",
        default="abort",
        help="abort, or guest-error: take a guest that migrates here though files of it are missing (abort)",
    )

    group = parser.add_argument_group("device")
    group.add_argument("--tag", default="virtiofs", help="name by which guests mount it (virtiofs)")
    group.add_argument(
        "--request-queues", metavar="N", type=int, default=default_request_queues(), help="(one per CPU, up to 4)"
    )

    group.add_argument(
        "--dax-window",
        metavar="SIZE",
        default="0",
        help="let guests map files, SIZE (1G) at a time; 0 is not at all (0)",
    )
    group.add_argument(
        "--dax",
        metavar="WHICH",
        default="64K",
        help="which files they map: never, always, inode, or from a size on (64K)",
    )

    _add_share(parser)

    _add_confinement(parser.add_argument_group("confinement"))

    group = parser.add_argument_group("daemon")
    _add_log(group)
    group.add_argument("--print-capabilities", action="store_true", help="print what libvirt asks for and exit")
    compat.add_options(parser)


def add_mount(parser: argparse.ArgumentParser) -> None:
    """Adds the options of `virtiofs mount`."""
    parser.add_argument("directory", metavar="DIR|MODULE:CLASS", help="directory or file system to serve")
    parser.add_argument("mountpoint", metavar="MOUNTPOINT", help="directory where it is to appear")
    group = parser.add_argument_group("mount")
    group.add_argument(
        "-o", dest="options", metavar="OPTIONS", default="", help=f"of {', '.join(FLAGS)}, separated by commas"
    )
    group.add_argument(
        "--allow-other",
        action=argparse.BooleanOptionalAction,
        help="let all users in (yes for root, who may; no for others)",
    )
    group.add_argument("--threads", metavar="N", type=int, help="threads that take requests (one per CPU, up to 4)")
    _add_share(parser)
    _add_log(parser.add_argument_group("process"))


def _add_share(parser: argparse.ArgumentParser) -> None:
    """Adds what holds for a directory, wherever it is served."""
    switch = argparse.BooleanOptionalAction
    group = parser.add_argument_group("caching")
    group.add_argument(
        "--cache", metavar="MODE", default="auto", help="none, metadata, auto (the default), adaptive or always"
    )
    for name in ("attr", "entry", "negative"):
        group.add_argument(f"--{name}-timeout", metavar="SECONDS", type=float, help=f"{_TIMEOUTS[name]}; by mode")
    group.add_argument("--timeout", metavar="SECONDS", type=float, help="all three at once")
    group.add_argument(
        "--opens",
        action=switch,
        help="each open of a file is a message. Without, which takes --cache=always: the guest alone checks who may, its locks "
        "hold inside it alone, what the host refuses shows at the first read or write (by mode: none for directories, nor for "
        "files of read-only shares without locks)",
    )
    group.add_argument("--writeback", action=switch, default=False, help="let the guest collect writes (no)")

    group.add_argument(
        "--version-slots",
        metavar="N",
        type=int,
        help="slots of the version table, a power of two (65536 if there is one)",
    )
    group.add_argument(
        "--coherence-dir", metavar="DIR", help="share the version table with all daemons that name this directory"
    )

    group = parser.add_argument_group("file system in Python")
    group.add_argument(
        "--fs", metavar="MODULE:CLASS", help="subclass of Passthrough that serves the directory; PYTHONPATH leads to it"
    )
    group.add_argument(
        "--fs-option",
        dest="arguments",
        metavar="NAME=VALUE",
        type=_argument,
        action="append",
        default=[],
        help="argument for the class; a value that is TOML (5, true, [1, 2]) is taken as such, any other as text",
    )

    group = parser.add_argument_group("directory")
    group.add_argument(
        "--thread-pool-size", metavar="N", type=int, default=0, help="threads for requests that wait for a disk (16)"
    )
    group.add_argument("--readonly", action="store_true", help="refuse changes")
    group.add_argument("--xattr", action=switch, default=False, help="serve extended attributes (no)")
    group.add_argument("--xattrmap", metavar="RULES", help="rename them on the host, as in :map::user.virtiofs.:")
    group.add_argument(
        "--posix-acl", metavar="WHEN", default="never", help="never, auto or always: serve POSIX ACLs (never)"
    )
    group.add_argument(
        "--security-label", metavar="WHEN", default="never", help="the same: give new files the guest's labels (never)"
    )
    group.add_argument("--allow-direct-io", action=switch, default=False, help="honour O_DIRECT on the host (no)")
    group.add_argument("--announce-submounts", action=switch, default=True, help="tell where mounts begin (yes)")
    group.add_argument("--readdirplus", action=switch, default=True, help="listings bring attributes along (yes)")
    group.add_argument("--killpriv-v2", action=switch, default=True, help="clear setuid at writes (yes)")
    group.add_argument("--idmap", action=switch, default=False, help="let the guest make idmapped mounts (no)")
    group.add_argument("--posix-lock", action=switch, default=True, help="take fcntl locks on the host (yes)")
    group.add_argument("--flock", action=switch, default=True, help="take flock locks on the host (yes)")
    group.add_argument(
        "--inode-file-handles",
        metavar="WHEN",
        choices=("never", "prefer", "fallback"),
        help="prefer: hold what a guest used long ago by file handle once descriptors run short (never, in a sandbox)",
    )
    group.add_argument(
        "--ownership",
        choices=("auto", "caller", "xattr"),
        default="auto",
        help="who owns files: caller insists on the user in the guest, auto takes this one if unprivileged, xattr keeps "
        "owners, modes and devices in an extended attribute, which takes no privileges (auto)",
    )
    for kind, what in (("uid", "users"), ("gid", "groups")):
        group.add_argument(
            f"--translate-{kind}",
            metavar="RULE",
            action="append",
            default=[],
            help=f"give {what} of the guest other ids on the host, as in map:0:100000:65536 (GUEST:HOST:COUNT); also guest, "
            "host, squash-guest, squash-host, forbid-guest",
        )


def _add_confinement(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--sandbox",
        metavar="MODE",
        default="auto",
        help="auto, namespace, chroot or none: how other files are kept out of reach; auto is the best possible (auto)",
    )
    group.add_argument(
        "--seccomp",
        metavar="ACTION",
        help="kill, trap, log or none: at system calls that serving does not take (kill; with Python methods, EPERM)",
    )
    group.add_argument("--modcaps", metavar="LIST", help="capabilities to keep or give up, as in +sys_admin:-mknod")
    for kind, what in (("uid", "users"), ("gid", "groups")):
        group.add_argument(
            f"--{kind}-map",
            metavar=":INSIDE:OUTSIDE:COUNT:",
            action="append",
            default=[],
            help=f"serve in a user namespace with these {what}; several times for several ranges",
        )


def _add_log(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--log-level", metavar="LEVEL", default="info", help="off, error, warn, info, debug or trace")
    group.add_argument("-d", dest="log_level", action="store_const", const="debug", help="--log-level=debug")
    group.add_argument("--syslog", action="store_true", help="log to syslog instead of standard error")
    group.add_argument("--rlimit-nofile", metavar="N", type=int, help="limit of open files; 0 leaves it as it is")


_TIMEOUTS: Final = {
    "attr": "how long a guest trusts attributes",
    "entry": "how long it trusts names",
    "negative": "how long it trusts that a name does not exist",
}


def config(arguments: argparse.Namespace) -> Config:
    """Returns what the options of `serve` say, and the file that they name."""
    if arguments.config is not None:
        config = Config.load(arguments.config)
        return _overriding(config, arguments, _given(arguments.argv))
    sources = [name for name in (arguments.directory, arguments.shared_dir) if name is not None]
    if len(sources) != 1:
        wrong = "which one of two directories is to be shared?" if sources else "which directory is to be shared?"
        raise hinted(ConfigError(wrong), "virtiofs serve DIR --socket PATH")
    socket, fd = arguments.socket, arguments.fd
    if socket is None and fd is None:
        fd = inherited_fd()
    if (socket is None) == (fd is None):
        wrong = "no socket to serve at" if socket is None else "both --socket and --fd are given"
        raise hinted(ConfigError(wrong), "give --socket PATH, or --fd N for an inherited one")
    share = Share(**_source(arguments, sources[0]), **_share(arguments), **_device(arguments), socket=socket, fd=fd)
    return Config(shares=(share,), **_process(arguments), **_confinement(arguments))


_FIELDS: Final = {
    "thread_pool_size": "slow_threads",
    "readonly": "read_only",
    "inode_file_handles": "node_descriptors",
}
"""Options that are not called as what they set."""


def _overriding(config: Config, arguments: argparse.Namespace, given: set[str]) -> Config:
    """Returns `config` with the options that were given in place of what it says."""
    of_one = ("directory", "shared_dir", "fd", "fs", "arguments")
    spellings = {"directory": "DIR", "arguments": "--fs-option"}
    for option in (*of_one, "socket", "tag"):
        if option in given and (len(config.shares) > 1 or option in of_one):
            spelling = spellings.get(option, "--" + option.replace("_", "-"))
            raise hinted(ConfigError(f"{spelling} cannot be given beside --config"), f"say it in {arguments.config}")
    mode_given = given & {"cache", "timeout", "attr_timeout", "entry_timeout", "negative_timeout", "opens"}
    named = {_FIELDS.get(option, option) for option in given}
    device = _device(arguments) | {"socket": arguments.socket}
    shares = []
    for share in config.shares:
        settings = _share(arguments) | device
        changes = {name: value for name, value in settings.items() if name in named}
        if mode_given:
            base = cache.mode(arguments.cache) if "cache" in given else share.cache
            changes["cache"] = _timed(base, arguments)
        shares.append(replace(share, **changes))
    settings = _process(arguments) | _confinement(arguments)
    process = {name: value for name, value in settings.items() if name in named}
    return replace(config, shares=tuple(shares), **process)


def _given(argv: Sequence[str]) -> set[str]:
    """Returns the options of `serve` that `argv` names."""
    parser = Parser(allow_abbrev=False, argument_default=argparse.SUPPRESS)
    add_serve(parser)
    for action in parser._actions:
        action.default = argparse.SUPPRESS
    return set(vars(parser.parse_args(argv[1:])))


def _source(arguments: argparse.Namespace, name: str) -> dict[str, Any]:
    """Returns what a directory, or a class as module:Class, is by the names of `Share`, with what the options say of it."""
    if not names_class(name) or os.path.exists(name):
        given = {"directory": name, "fs": arguments.fs}
    elif arguments.fs is None:
        given = {"fs": name}
    else:
        raise hinted(ConfigError(f"which class is it, {name} or {arguments.fs}?"), "name a directory beside --fs")
    if arguments.arguments and given["fs"] is None:
        raise hinted(ConfigError("--fs-option: a directory takes no arguments"), "name a class with --fs")
    return given | {"arguments": dict(arguments.arguments)}


def _argument(text: str) -> tuple[str, Any]:
    """Returns name and value of an argument."""
    name, equals, value = text.partition("=")
    if not equals or not name.isidentifier():
        raise argparse.ArgumentTypeError(f"not NAME=VALUE: {text!r}")
    try:
        return name, tomllib.loads(f"value = {value}")["value"]
    except tomllib.TOMLDecodeError:
        return name, value


def _device(arguments: argparse.Namespace) -> dict[str, Any]:
    """Returns what the options of the device and its socket say, by the names of `Share`."""
    socket = ("once", "reconnect_timeout", "migration_on_error", "socket_mode", "socket_group")
    names = ("tag", "request_queues", *socket, "dax_window", "dax")
    return {name: getattr(arguments, name) for name in names}


def _process(arguments: argparse.Namespace) -> dict[str, Any]:
    """Returns what the options of `_add_log` say, by the names of `Config`."""
    return {name: getattr(arguments, name) for name in ("log_level", "syslog", "rlimit_nofile")}


def _confinement(arguments: argparse.Namespace) -> dict[str, Any]:
    """Returns what the options of `_add_confinement` say, by the names of `Config`."""
    return {
        "sandbox": arguments.sandbox,
        "seccomp": arguments.seccomp,
        "modcaps": arguments.modcaps,
        "uid_map": tuple(arguments.uid_map),
        "gid_map": tuple(arguments.gid_map),
        "file_handles": arguments.inode_file_handles in ("prefer", "fallback"),
    }


def _timed(mode: cache.Cache, arguments: argparse.Namespace) -> cache.Cache:
    """Returns `mode` with the timeouts that the options ask for, and the opens."""
    changes: dict[str, float | bool] = {}
    for name in ("attr_timeout", "entry_timeout", "negative_timeout"):
        value = getattr(arguments, name)
        if value is None:
            value = arguments.timeout
        if value is not None:
            changes[name] = value
    if arguments.opens is not None:
        changes["opens"] = arguments.opens
    return mode.replace(**changes) if changes else mode


def _share(arguments: argparse.Namespace) -> dict[str, Any]:
    """Returns what the options of `_add_share` say, by the names of `Share`."""
    for option in ("posix_acl", "security_label"):
        value = getattr(arguments, option)
        if value not in ("never", "auto", "always"):
            spelling = "--" + option.replace("_", "-")
            raise ConfigError(f"{spelling}: unknown value {value!r}: choose one of never, auto, always")
    return {
        "slow_threads": arguments.thread_pool_size or 16,
        "cache": _timed(cache.mode(arguments.cache), arguments),
        "version_slots": arguments.version_slots,
        "coherence_dir": arguments.coherence_dir,
        "read_only": arguments.readonly,
        "writeback": arguments.writeback,
        "xattr": arguments.xattr,
        "xattrmap": None if arguments.xattrmap is None else xattrmap.parse(arguments.xattrmap),
        "posix_acl": arguments.posix_acl != "never",
        "security_label": arguments.security_label != "never",
        "posix_lock": arguments.posix_lock,
        "flock": arguments.flock,
        "node_descriptors": 0 if arguments.inode_file_handles == "never" else None,
        "allow_direct_io": arguments.allow_direct_io,
        "announce_submounts": arguments.announce_submounts,
        "readdirplus": arguments.readdirplus,
        "killpriv_v2": arguments.killpriv_v2,
        "ownership": arguments.ownership,
        "idmap": arguments.idmap,
        "translate_uid": tuple(arguments.translate_uid),
        "translate_gid": tuple(arguments.translate_gid),
    }


def mounted(arguments: argparse.Namespace) -> tuple[Share, Config]:
    """Returns what the options of `mount` say: the share, and the process that serves it."""
    share = Share(**_source(arguments, arguments.directory), **_share(arguments))
    return share, Config(shares=(share,), **_process(arguments))


def _octal(text: str) -> int:
    """Returns permission bits from their usual spelling."""
    try:
        return int(text, 8)
    except ValueError:
        raise argparse.ArgumentTypeError(f"not an octal number: {text!r}") from None
