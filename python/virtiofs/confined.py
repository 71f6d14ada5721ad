"""Serving in a process that has given up what it does not need.

The process that was started stays outside: it makes the sockets, forks the one that serves, passes signals on, removes the
sockets when that has ended, and ends as it did. Nothing that a guest says ever reaches it. If it is killed, the other one goes
with it.
"""

import contextlib
import importlib
import os
import resource
import signal
import socket as _sockets
import sys
import traceback
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Final, Literal, NoReturn, TypeAlias

from . import _core, sandbox
from .errors import ConfigError, hinted, one_line
from .ids import IdMap
from .passthrough import Passthrough
from .sandbox import Sandbox, Way
from .server import Server
from .signals import until_signal

Serve: TypeAlias = Callable[[Callable[[], None]], int]
"""Starts servers that are open, waits until they end or a signal comes, and returns the exit status; it calls what it is given
once signals are watched."""

_SERVES: Final = b"serves"
_IN_NAMESPACES: Final = b"in namespaces"
_GO_ON: Final = b"go on"
_FAILED: Final = b"failed: "
_IS: Final = b"is "


class _ImpossibleError(Exception):
    """A way to confine the process that cannot be had here; the text says why."""


def run(servers: Sequence[Server], asked: Sandbox, serve: Serve, *, python: bool) -> int:
    """Serves in a confined process until a signal comes or all servers end by themselves.

    Only for the main thread, before there are others.

    Args:
        servers: What is served, not started.
        asked: How the process is confined.
        serve: Called there, with `servers` open.
        python: Whether Python methods serve guests.

    Returns:
        The exit status.

    Raises:
        ConfigError: What was asked for cannot be had on this host.
        OSError: A socket cannot be made, or what is served cannot be opened.
    """
    child: list[_Child] = []

    def begin() -> list[_Child]:
        for server in servers:
            server.bind()
        _core.adopt_orphans()
        child.append(_confined(servers, asked, serve, python))
        for server in servers:
            server.leave()
        return child

    number = until_signal(begin)
    while number is not None:
        child[0].send(number)
        number = until_signal(lambda: child)
    return child[0].status()


def filter_calls(asked: Sandbox, *, python: bool) -> None:
    """Filters the system calls of this process, which serves and is not confined otherwise."""
    filters = asked.filters("none", python=python)
    if filters:
        _core.filter_calls(filters)


def _confined(servers: Sequence[Server], asked: Sandbox, serve: Serve, python: bool) -> "_Child":
    """Returns the first process that could be confined in one of the ways that may be tried."""
    why: list[str] = []
    for way in asked.ways(python=python):
        try:
            child = _Child(_Inside(servers, asked, way, python), serve, asked)
        except _ImpossibleError as error:
            if asked.mode != "auto":
                raise hinted(
                    ConfigError(f"--sandbox={asked.mode} is not possible here: {error}"),
                    "give --sandbox=auto to be confined as far as this host allows, or none",
                ) from None
            why.append(f"{way}: {error}")
            continue
        if why:
            _core.log("warn", f"confined by {sandbox.MEANS[way]}", impossible="; ".join(why))
        return child
    raise hinted(
        ConfigError(f"the server cannot be confined on this host ({'; '.join(why)})"),
        "give --sandbox=none to serve with all that this user may do",
    )


class _Child:
    """The process that serves, as the one outside sees it."""

    def __init__(self, inside: "_Inside", serve: Serve, asked: Sandbox) -> None:
        self._asked = asked
        ours, theirs = _sockets.socketpair(_sockets.AF_UNIX, _sockets.SOCK_SEQPACKET)
        sys.stdout.flush()
        sys.stderr.flush()
        first = os.fork()
        if first == 0:
            ours.close()
            inside.run(theirs, serve)
        theirs.close()
        self._pid = first
        with ours:
            self._pidfd = self._confine(ours, first)

    def _confine(self, line: _sockets.socket, first: int) -> int:
        """Does its part in what `_Inside` does, and returns a descriptor of the process that serves."""
        while True:
            said = line.recv(4096)
            if said == _IN_NAMESPACES:
                try:
                    _map_ids(first, self._asked)
                except _ImpossibleError as error:
                    line.send(_FAILED + str(error).encode())
                else:
                    line.send(_GO_ON)
            elif said.startswith(_IS):
                # The first process was there for the second, which is in the new pid namespace and becomes ours.
                self._pid = int(said.removeprefix(_IS))
                os.waitpid(first, 0)
                line.send(_GO_ON)
            elif said == _SERVES:
                return os.pidfd_open(self._pid)
            else:
                _, status = os.waitpid(self._pid, 0)
                if said.startswith(_FAILED):
                    raise _ImpossibleError(said.removeprefix(_FAILED).decode(errors="replace"))
                raise OSError(f"the process that was to serve ended before it did ({_ended(status)})")

    def fileno(self) -> int:
        """Returns a descriptor that becomes readable when the process has ended."""
        return self._pidfd

    def send(self, number: int) -> None:
        """Passes a signal on."""
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(self._pidfd, number)

    def status(self) -> int:
        """Waits for the end and returns the exit status to end with."""
        _, status = os.waitpid(self._pid, 0)
        code = os.waitstatus_to_exitcode(status)
        if code == -signal.SIGSYS:
            _core.log(
                "error",
                "the server made a system call that is not on its list, and was ended; "
                "if no guest is to blame for it, give --seccomp=log and look at the kernel's audit log",
            )
        elif code < 0:
            _core.log("error", f"the server was ended ({_ended(status)})")
        return code if code >= 0 else 128 - code


class _Inside:
    """The process that serves, as it confines itself."""

    def __init__(self, servers: Sequence[Server], asked: Sandbox, way: Way, python: bool) -> None:
        self._servers = servers
        self._asked = asked
        self._way = way
        self._python = python
        self._line: _sockets.socket

    def run(self, line: _sockets.socket, serve: Serve) -> NoReturn:
        """Confines this process, serves and ends it."""
        self._line = line
        status = 1
        try:
            # The terminal sends its signals to the process outside, which passes them on.
            os.setsid()
            try:
                self._confine()
            except (OSError, _ImpossibleError) as error:
                self._line.send(_FAILED + one_line(error).encode(errors="backslashreplace"))
            else:
                status = serve(self._ready)
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(status)

    def _ready(self) -> None:
        self._line.send(_SERVES)
        self._line.close()

    def _confine(self) -> None:
        rights: dict[str, bool] = {}
        for server in self._servers:
            if isinstance(server.fs, Passthrough):
                directory = server.fs.directory
                rights[directory] = rights.get(directory, False) or not server.fs.read_only
        # In a user namespace with a single id there is nobody to act for, and so nothing to have for it.
        alone = self._way == "namespace" and not sandbox.acts_for_others() and not self._asked.maps
        kept = set() if alone else self._asked.capabilities()
        if self._way == "namespace":
            if self._python:
                # What methods may come to need of Python itself: no module can be found later.
                for name in sandbox.MODULES:
                    importlib.import_module(name)
            self._enter_namespaces()
        _core.die_with_parent()
        if self._way == "namespace" and "/" not in rights:
            _core.replace_root(sandbox.served(rights))
        if self._way != "none" and "dac_read_search" not in kept:
            # What is opened now tries whether handles can be opened, and must not come to rely on it.
            _core.keep_capabilities(sorted({*_core.effective_capabilities()} - {"dac_read_search"}))
        if self._python:
            # Opening begins the threads that run its methods, which give nothing up by themselves.
            self._give_up(rights, kept)
        for server in self._servers:
            server.open()
        if self._way == "chroot":
            rights = {"/": self._change_root(rights)}
        if not self._python:
            self._give_up(rights, kept)
        filters = self._asked.filters(self._way, python=self._python)
        if filters:
            _core.filter_calls(filters)

    def _enter_namespaces(self) -> None:
        privileged = sandbox.is_privileged() and not self._asked.maps
        _core.enter_namespaces(sandbox.NAMESPACES | (0 if privileged else sandbox.CLONE_NEWUSER))
        if not privileged:
            self._line.send(_IN_NAMESPACES)
            self._wait()
            _become_somebody(self._asked)
        second = os.fork()
        if second != 0:
            self._line.send(_IS + str(second).encode())
            os._exit(0)
        self._wait()

    def _wait(self) -> None:
        """Waits until the process outside has done its part. It may be gone as well, and then there is no reason to go on."""
        said = self._line.recv(4096)
        if said != _GO_ON:
            raise _ImpossibleError(
                said.removeprefix(_FAILED).decode(errors="replace") or "the process outside has ended"
            )

    def _change_root(self, rights: Mapping[str, bool]) -> bool:
        if self._python:
            raise _ImpossibleError("Python methods need a root with more in it; --sandbox=namespace has one")
        if len(rights) > 1:
            raise _ImpossibleError("a process has one root, and there are several directories to serve")
        ((directory, change),) = rights.items()
        _core.change_root(directory)
        return change

    def _give_up(self, rights: Mapping[str, bool], kept: Collection[str]) -> None:
        """Gives up all but the capabilities `kept` and the directories in `rights`, which say whether they may be changed."""
        if self._way == "none":
            return
        soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        for which, most in ((resource.RLIMIT_CORE, 0), (resource.RLIMIT_MSGQUEUE, 0), (resource.RLIMIT_NOFILE, soft)):
            resource.setrlimit(which, (most, most))
        _core.keep_capabilities(sorted(kept))
        _core.no_new_privileges()
        _core.undumpable()
        if self._python:
            pass  # its methods may open what is there to be opened
        elif _core.landlock_version() >= sandbox.LANDLOCK:
            _core.restrict_files(list(rights.items()), files="dac_read_search" not in kept)
        elif self._way == "landlock":
            _core.log("warn", "this kernel has no Landlock: other files of this host remain within reach of the server")


def _map_ids(pid: int, asked: Sandbox) -> None:
    """Gives the user namespace of the process `pid` its ids: those asked for, or those of this process."""
    others = sandbox.acts_for_others()
    wanted: tuple[tuple[Literal["uid", "gid"], tuple[IdMap, ...]], ...] = (
        ("uid", asked.uid_map),
        ("gid", asked.gid_map),
    )
    for kind, given in wanted:
        if not others and len(given) == 1 and given[0][1:] == (sandbox.own_id(kind), 1):
            lines = sandbox.id_lines(given)  # a single id, and one's own: needs nobody's leave
        elif given and not others:
            _by_program(kind, pid, given)
            continue
        else:
            lines = sandbox.id_lines(given) if given else sandbox.own_ids(kind)
        try:
            if kind == "gid" and not others:
                # Without privileges, a condition for the map of groups.
                _write(f"/proc/{pid}/setgroups", "deny")
            _write(f"/proc/{pid}/{kind}_map", lines)
        except OSError as error:
            raise _ImpossibleError(one_line(error)) from None


def _write(path: str, text: str) -> None:
    with open(path, "w", encoding="ascii") as file:
        file.write(text)


def _by_program(kind: str, pid: int, given: Sequence[IdMap]) -> None:
    """Has newuidmap(1) or newgidmap(1) map ids that /etc/subuid or /etc/subgid allow this user."""
    program = f"new{kind}map"
    words = [str(number) for line in given for number in line]
    try:
        import subprocess

        done = subprocess.run([program, str(pid), *words], capture_output=True, text=True, check=False)
    except FileNotFoundError:
        raise _ImpossibleError(f"--{kind}-map takes {program}, of the package uidmap, or root") from None
    if done.returncode != 0:
        raise _ImpossibleError(f"{program}: {done.stderr.strip() or _ended(done.returncode << 8)}")


def _become_somebody(asked: Sandbox) -> None:
    """Takes ids that the user namespace has: root's if it has root."""
    if not asked.maps:
        return
    uid, gid = sandbox.inside(asked.uid_map, os.geteuid()), sandbox.inside(asked.gid_map, os.getegid())
    with contextlib.suppress(PermissionError):  # refused where groups are, without privileges
        os.setgroups([])
    os.setresgid(gid, gid, gid)
    os.setresuid(uid, uid, uid)


def _ended(status: int) -> str:
    code = os.waitstatus_to_exitcode(status)
    return f"status {code}" if code >= 0 else signal.Signals(-code).name
