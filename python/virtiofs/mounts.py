"""A file system on this host, without a virtual machine: the kernel's /dev/fuse in place of a guest."""

import errno
import os
import stat
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Final, Self

from . import _core, running
from .errors import ConfigError, hinted
from .filesystem import FileSystem
from .host import has_capability
from .mountpoint import Guard, Mounted, dead, fusermount, inside, mounted_at, unmounting
from .signals import Waitable, ended, until_signal
from .types import InFlight, Stats

FLAGS: Final = {"ro": 1, "nosuid": 2, "nodev": 4, "noexec": 8, "noatime": 1024}
"""Mount options that any file system takes, with their bits of mount(2)."""

_MAX_WRITE: Final = (
    1 << 20
)  # bytes: fs.fuse.max_pages_limit, which is 256 pages unless the administrator says otherwise
_BEGIN_SECONDS: Final = 20.0
_DEV_FUSE: Final = os.makedev(10, 229)  # FUSE_MINOR among the miscellaneous devices


class Mount:
    """Serves a file system at a directory of this host.

    The threads that do it are native, as in `Server`. Nothing is mounted before `start`, and nothing is left after `close`; a
    ``with`` block does both::

        with Mount(Passthrough("/srv/data"), "/mnt"):
            os.listdir("/mnt")

    The mount ends with its process, however that ends: what is asked of it fails from then on, and a small guardian (sh)
    unmounts it. Only where the guardian was killed as well, a dead mount point stays (ENOTCONN); mounting
    there again replaces it.

    Takes root (CAP_SYS_ADMIN), or the program fusermount3 of the package fuse3.

    Args:
        fs: What is served.
        path: The directory to mount it at. It must not lie in the directory that is served: the server would wait for itself.
        options: Of `FLAGS`: "ro", "nosuid", "nodev", "noexec", "noatime". fusermount3 adds nosuid and nodev by itself.
        allow_other: Let all users in, not only the one who mounts. None for what that user may do: root may.
        threads: Threads that take requests; None for one per processor, up to 4.
        slow_threads: Threads, at most, for requests that have to wait for a disk.
        guard: Have the guardian.

    Raises:
        ConfigError: A setting cannot be served.
    """

    def __init__(
        self,
        fs: FileSystem,
        path: str | os.PathLike[str],
        *,
        options: Sequence[str] = (),
        allow_other: bool | None = None,
        threads: int | None = None,
        slow_threads: int = 16,
        guard: bool = True,
    ) -> None:
        for option in options:
            if option not in FLAGS:
                raise ConfigError(f"unknown mount option {option!r}: choose of {', '.join(FLAGS)}")
        if threads is None:
            threads = min(4, len(os.sched_getaffinity(0)))
        for name, value in (("threads", threads), ("slow_threads", slow_threads)):
            if not 1 <= value <= 1024:
                raise ConfigError(f"{name}: 1 to 1024, not {value}")
        self.fs: Final = fs
        self.path: Final = os.path.realpath(os.fspath(path))
        self.options: Final = tuple(options)
        self.allow_other: Final = allow_other
        self.threads: Final = threads
        self.slow_threads: Final = slow_threads
        self._guard_wanted = guard
        self._guard: Guard | None = None
        self._native: _core.Connection | None = None
        self._mounted: Mounted | None = None
        self._by_helper = False
        self._descriptors: list[int] = []
        self._process: int | None = None

    def start(self) -> Self:
        """Mounts. Returns when the file system is there.

        Raises:
            OSError: It cannot be mounted here, or not by this user.
            RuntimeError: It was started before.
        """
        if self._native is not None:
            raise RuntimeError("a mount is started once")
        self._check_target()
        self._process = os.getpid()
        # Opened before it is mounted: the mount may hide the directory that it serves.
        native = _core.Connection(
            self.fs.engine(),
            threads=self.threads,
            slow_threads=self.slow_threads,
            max_write=_MAX_WRITE,
            want=self.fs.init_flags,
            follow=self.fs.version_table,
        )
        fd = self._mount()
        try:
            self._mounted = mounted_at(self.path)
            if self._guard_wanted and self._mounted is not None:
                self._guard = Guard(self._mounted, by_helper=self._by_helper)
            running.log_to_python()
            native.serve(fd)
            self._native = native
            self._descriptors = native.descriptors()
            running.add(self, self._forked)
        except BaseException:
            self._unmount(detach=True)
            self.close()
            raise
        finally:
            os.close(fd)  # the native side has one of its own
        if not self._native.wait_begun(_BEGIN_SECONDS):
            self.close()
            raise hinted(OSError(errno.EPROTO, "the kernel and this server do not agree", self.path), "see the log")
        return self

    def wait(self, timeout: float | None = None) -> bool:
        """Waits until the mount ends: by `close`, or unmounted by anybody. Signals are handled meanwhile.

        Args:
            timeout: Seconds to wait; None for as long as it takes.

        Returns:
            Whether it has ended. True as well when it never started.
        """
        return True if self._native is None else ended(self._native, timeout)

    def fileno(self) -> int:
        """Returns a descriptor that becomes readable when the mount has ended, for poll(2) and event loops.

        Raises:
            ValueError: The mount was not started.
        """
        if self._native is None:
            raise ValueError("the mount was not started")
        return self._native.fileno()

    def run(self, started: Callable[[], None] = lambda: None) -> int | None:
        """Serves until SIGTERM, SIGINT or SIGHUP comes or somebody unmounts it. Only for the main thread.

        Args:
            started: Called once it is mounted, which it is if it was not yet.

        Returns:
            The number of the signal, or None.
        """

        def begin() -> list[Waitable]:
            if self._native is None:
                self.start()
            started()
            return [self]

        return until_signal(begin)

    def unmount(self) -> None:
        """Unmounts, unless somebody uses it, and ends what served it.

        Raises:
            OSError: EBUSY: a file of it is open, or some process is in it. It goes on being served.
        """
        if self._process not in (None, os.getpid()):
            return
        if self._is_mounted():
            try:
                self._unmount(detach=False)
            except OSError as error:
                if error.errno == errno.EBUSY:
                    raise hinted(
                        error, "close what is open in it (lsof), or close() the mount to end it all the same"
                    ) from None
                raise
        self.close()

    def close(self) -> None:
        """Unmounts, and ends what served it. May be called again.

        Where files of it are still open, what was written is saved and the mount goes from sight; those who have them open get
        errors (ECONNABORTED, ENOTCONN) from then on. In a fork of the process that serves it, this does nothing.
        """
        if self._process not in (None, os.getpid()):
            return  # a fork of the process that serves: the threads are not here
        if self._is_mounted():
            try:
                self._unmount(detach=False)
            except OSError as error:
                if error.errno == errno.EBUSY:
                    _core.log("warn", "unmounted while in use", path=self.path)
                self._unmount(detach=True)
        if self._native is not None:
            self._native.stop()
        if self._guard is not None:
            self._guard.dismiss()
            self._guard = None
        running.discard(self)

    def stats(self) -> Stats:
        """Returns the counters: `connections` is 1, `connected` tells whether it is mounted.

        Raises:
            ValueError: The mount was never started.
        """
        if self._native is None:
            raise ValueError("the mount was not started")
        return Stats(**self._native.stats())

    def in_flight(self) -> list[InFlight]:
        """Returns the requests that Python methods are at or that wait for one, the oldest first."""
        return [] if self._native is None else [InFlight(*flight) for flight in self._native.in_flight()]

    def __enter__(self) -> Self:
        return self if self._native is not None else self.start()

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"Mount({self.fs!r}, {self.path!r})"

    def _check_target(self) -> None:
        """Checks that the path can be mounted at, and clears away what is left there of a server that died."""
        if (left := dead(self.path)) is not None:
            if not left.kind.startswith("fuse.virtiofs"):
                raise hinted(
                    OSError(errno.ENOTCONN, f"a dead mount of another kind ({left.kind}) is there", self.path),
                    f"unmount it: umount -l {self.path}",
                )
            self._by_helper = not has_capability("SYS_ADMIN")
            self._unmount(detach=True)
            self._by_helper = False
            _core.log("warn", "replaced a mount whose server had died", path=self.path)
        try:
            found = os.stat(self.path)
        except FileNotFoundError as error:
            raise hinted(error, "name an existing directory, or make it: mkdir -p") from None
        if not stat.S_ISDIR(found.st_mode):
            raise hinted(NotADirectoryError(errno.ENOTDIR, "not a directory", self.path), "mount at a directory")
        source = getattr(self.fs, "directory", None)
        if isinstance(source, str) and inside(self.path, source):
            raise hinted(
                ConfigError(
                    f"{self.path} lies in the directory that is served, {source}: the server would wait for itself"
                ),
                "mount it elsewhere",
            )

    def _mount(self) -> int:
        source = getattr(self.fs, "directory", None) or type(self.fs).__name__
        options = {*self.options, *(("ro",) if self.fs.read_only else ())}
        allow_other = self.allow_other
        if not has_capability("SYS_ADMIN"):
            self._by_helper = True
            ours = ["default_permissions", *(["allow_other"] if allow_other else [])]
            return fusermount(self.path, source, "virtiofs", [*ours, *sorted(options)])
        data = ["default_permissions", *(["allow_other"] if allow_other is not False else [])]
        flags = sum(FLAGS[option] for option in options)
        try:
            return _core.fuse_mount(self.path, source, "virtiofs", flags, ",".join(data))
        except OSError as error:
            if error.errno in (errno.ENOENT, errno.ENODEV, errno.ENXIO):
                raise hinted(OSError(errno.ENODEV, "this host has no /dev/fuse"), "modprobe fuse") from None
            raise OSError(error.errno, error.strerror, self.path) from None

    def _is_mounted(self) -> bool:
        """Whether what is mounted at the path now is ours."""
        return self._mounted is not None and mounted_at(self.path) == self._mounted

    def _unmount(self, *, detach: bool) -> None:
        if detach:
            # A dead mount cannot be opened, and has nothing that could still be written.
            with suppress(OSError):
                _core.fuse_save(self.path)
        if self._by_helper:
            unmounting(self.path, detach=detach)
        else:
            try:
                _core.fuse_unmount(self.path, detach=detach)
            except OSError as error:
                raise OSError(error.errno, error.strerror, self.path) from None

    def _forked(self) -> None:
        """Closes what would keep the mount alive in a fork when the process that serves it is gone."""
        for fd in self._descriptors:
            # A connection that is over has closed it, and the number may be somebody else's.
            with suppress(OSError):
                if os.fstat(fd).st_rdev == _DEV_FUSE:
                    os.close(fd)
        if self._guard is not None:
            self._guard.forked()


def mount(
    fs: FileSystem,
    path: str | os.PathLike[str],
    *,
    options: Sequence[str] = (),
    allow_other: bool | None = None,
) -> Mount:
    """Mounts `fs` at `path` and returns the `Mount`; close it, or use it in a ``with`` block."""
    return Mount(fs, path, options=options, allow_other=allow_other).start()
