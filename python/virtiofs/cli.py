"""The command `virtiofs`."""

import argparse
import json
import os
import shlex
import signal
import sys
from collections.abc import Callable, Sequence

from . import _core, compat, confined, options, qemu, sandbox
from .classes import find, names_class
from .config import Config, level
from .errors import ConfigError, hinted, one_line
from .filesystem import FileSystem
from .host import raise_open_files
from .mountpoint import procfs_within
from .mounts import Mount
from .passthrough import Passthrough
from .plan import explain
from .server import Server
from .signals import until_signal


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command with `arguments` (those of the process by default) and returns its exit status."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    # Programs that start virtiofsd give options alone; the same ones start a server here.
    if given and given[0].startswith("-") and given[0] not in ("-h", "--help", "-V", "--version"):
        given.insert(0, "serve")
    try:
        if given[:1] == ["serve"]:
            given = compat.expand(given)
        parsed = _parser(given[0] if given else None).parse_args(given, argparse.Namespace(argv=given))
        return int(parsed.command(parsed))
    except (ConfigError, OSError) as error:
        print(f"virtiofs: error: {one_line(error)}", file=sys.stderr)
        return options.USAGE
    except KeyboardInterrupt:
        return 130


def _parser(word: str | None = None) -> argparse.ArgumentParser:
    parser = options.Parser(
        prog="virtiofs",
        description="Share a directory of this host with virtual machines over virtio-fs.",
        allow_abbrev=False,
    )
    parser.add_argument("-V", "--version", action="version", version=f"virtiofs {_core.__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    serve = commands.add_parser("serve", help="serve a directory at a vhost-user socket", allow_abbrev=False)
    options.add_serve(serve)
    serve.set_defaults(command=_serve)
    mounted = commands.add_parser("mount", help="serve a directory at another one of this host", allow_abbrev=False)
    options.add_mount(mounted)
    mounted.set_defaults(command=_mount)
    explained = commands.add_parser(
        "explain", help="tell who serves each operation of a file system", allow_abbrev=False
    )
    explained.add_argument("source", metavar="DIR|MODULE:CLASS", help="directory, or class of a file system")
    explained.set_defaults(command=_explain)
    demo = commands.add_parser("demo", help="serve a directory to the embedded guest and show what it does")
    demo.add_argument("directory", nargs="?", metavar="DIR", help="directory to show; a new one by default")
    demo.set_defaults(command=_demo)
    bench = commands.add_parser("bench", help="measure daemons side by side", allow_abbrev=False)
    if word == "bench":
        # What it imports would only make a daemon larger.
        from .bench.command import options as add_bench

        add_bench(bench)
    doctor = commands.add_parser("doctor", help="tell what this host can do")
    doctor.add_argument("--json", action="store_true", help="as JSON")
    doctor.set_defaults(command=_doctor)
    return parser


def _serve(arguments: argparse.Namespace) -> int:
    if arguments.print_capabilities:
        # docs/interop/vhost-user.json of QEMU: VHostUserBackendCapabilities
        print(json.dumps({"type": "fs", "features": ["separate-options"]}, indent=2))
        return 0
    warnings = compat.check(arguments)
    config = options.config(arguments)
    needs = config.needs()
    python = needs is not None
    asked = config.confinement()
    if asked.forks(python=python):
        config = config.confinable()
    servers = config.servers()
    if arguments.check:
        for share, server in zip(config.shares, servers, strict=True):
            print(f"{share.origin or 'share'}: {server.fs!r} as {server.tag!r} at {server.path or f'fd {share.fd}'}")
        return 0
    _log_to(config)
    raise_open_files(config.rlimit_nofile)
    if any(server.dax_window for server in servers) and (problem := qemu.window_problem()) is not None:
        warnings.append(problem)
    for directory in {os.path.abspath(share.directory) for share in config.shares if share.directory is not None}:
        if (point := procfs_within(directory)) is not None:
            warnings.append(f"{point} is a procfs, where guests would find this process: it is not shared")
    for warning in warnings:
        _core.log("warn", warning)
    if needs is not None and asked.ways(python=python) == ("none",) and asked.filters("none", python=python):
        _core.log("info", f"not confined but for system calls: {needs}", see="docs/security.md")

    def begin(ready: Callable[[], None]) -> list[Server]:
        ready()
        for share, server in zip(config.shares, servers, strict=True):
            server.start()
            what = {"fs": share.fs} if share.fs else {"directory": os.path.abspath(share.directory or "")}
            _core.log("info", "serving", **what, tag=server.tag, socket=server.path or f"fd {share.fd}")
            _core.log("info", f"start a guest with: {server.qemu_line()}")
            _core.log("info", f"in the guest: mount -t virtiofs {shlex.quote(server.tag)} /mnt")
        return servers

    def serve(ready: Callable[[], None] = lambda: None) -> int:
        number = until_signal(lambda: begin(ready))
        if number is not None:
            _core.log("info", "ending", signal=signal.Signals(number).name)
        for server in servers:
            server.close()
        return 0

    try:
        if asked.forks(python=python):
            return confined.run(servers, asked, serve, python=python)
        confined.filter_calls(asked, python=python)
        return serve()
    finally:
        for server in servers:
            server.close()


def _explain(arguments: argparse.Namespace) -> int:
    name = arguments.source
    if not names_class(name) or os.path.exists(name):
        print(explain(Passthrough(name)), sandbox.told(python=False), sep="\n\n")
        return 0
    kind = find(name)
    if not isinstance(kind, type) or not issubclass(kind, FileSystem):
        raise hinted(ConfigError(f"{name} is not a class of file systems"), "name a subclass of virtiofs.FileSystem")
    print(explain(kind), sandbox.told(python=True), sep="\n\n")
    return 0


def _mount(arguments: argparse.Namespace) -> int:
    share, config = options.mounted(arguments)
    served = Mount(
        share.filesystem(),
        arguments.mountpoint,
        options=[option for option in arguments.options.split(",") if option],
        allow_other=arguments.allow_other,
        threads=arguments.threads,
        slow_threads=share.slow_threads,
    )
    _log_to(config)
    raise_open_files(config.rlimit_nofile)

    def started() -> None:
        what = {"directory": share.directory} if share.fs is None else {"fs": share.fs}
        _core.log("info", "mounted", **what, path=served.path)

    try:
        number = served.run(started)
        if number is not None:
            _core.log("info", "ending", signal=signal.Signals(number).name)
        else:
            _core.log("info", "unmounted", path=served.path)
    finally:
        served.close()
    return 0


def _log_to(config: Config) -> None:
    least = level(config.log_level)
    if config.syslog:
        try:
            _core.log_to_syslog(least)
        except OSError as error:
            raise hinted(ConfigError(f"there is no syslog to log to ({error})"), "leave --syslog out") from None
    else:
        _core.log_to_stderr(least)


def _demo(arguments: argparse.Namespace) -> int:
    from . import demo

    return demo.run(arguments.directory)


def _doctor(arguments: argparse.Namespace) -> int:
    from . import doctor

    return doctor.run(as_json=arguments.json)
