"""A file system of fsspec's as coroutines: its own where it has them, and else its plain methods on a thread."""

import asyncio
import importlib
import inspect
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from datetime import datetime
from functools import cached_property, partial
from typing import Any, Final

from .errors import ConfigError, hinted

_VERSIONS: Final = ("ETag", "etag", "generation", "VersionId", "version", "sha", "crc", "CRC", "md5", "checksum", "ino")
_TIMES: Final = (
    "mtime",
    "LastModified",
    "last_modified",
    "modified",
    "updated",
    "timeModified",
    "created",
    "date_time",
)


class Remote:
    """What is asked of a file system somewhere else. Paths are those below the root, without a slash in front.

    Args:
        target: A URL as fsspec knows them, or a file system of fsspec's.
        root: The directory of it that is the root; with a URL, below what that names.
        options: Arguments for the file system of a URL.

    Raises:
        ConfigError: There is no such kind of file system here, or it runs in somebody else's event loop.
    """

    def __init__(self, target: Any, root: str, options: dict[str, Any]) -> None:
        try:
            import fsspec
        except ImportError:
            raise hinted(ConfigError("fsspec is not installed"), "pip install virtiofs[fsspec]") from None
        self._target, self._root, self._options = target, root, options
        # One thread: file systems that know no coroutines seldom know threads.
        self._thread = ThreadPoolExecutor(1, "virtiofs-remote")
        try:
            if isinstance(target, str):
                # Made when it is first used: a process that forks to confine itself would lose its threads and connections.
                # Imported now, since one that is confined finds no modules.
                parts = target.split("::")
                known = fsspec.available_protocols() if len(parts) > 1 else ()
                for part in parts:
                    named = fsspec.core.split_protocol(part)[0] or (part if part in known else "file")
                    fsspec.get_filesystem_class(named)
                with suppress(ImportError):
                    importlib.import_module("fsspec.implementations.chained")
            elif options:
                raise ConfigError(f"options are for file systems that are named by a URL: {', '.join(options)}")
            elif getattr(target, "asynchronous", False):
                raise hinted(
                    ConfigError("the file system is bound to an event loop"), "make it with asynchronous=False"
                )
        except (ImportError, ValueError) as error:
            raise error if isinstance(error, ConfigError) else ConfigError(f"{target}: {error}") from None

    @cached_property
    def _found(self) -> tuple[Any, str]:
        if not isinstance(self._target, str):
            return self._target, self._target._strip_protocol(self._root)
        import fsspec

        fs, path = fsspec.core.url_to_fs(self._target, **self._options)
        return fs, "/".join(part for part in (path.rstrip("/"), self._root.strip("/")) if part)

    @property
    def fs(self) -> Any:
        """The file system."""
        return self._found[0]

    def at(self, path: str) -> str:
        """Returns a path as the file system knows it."""
        root = self._found[1]
        if not path:
            return root
        return f"{root.rstrip('/')}/{path}" if root else path

    def _started(self, name: str, *arguments: Any, **options: Any) -> "Future[Any]":
        awaits = getattr(self.fs, f"_{name}", None) if getattr(self.fs, "async_impl", False) else None
        if awaits is not None and inspect.iscoroutinefunction(awaits):
            return asyncio.run_coroutine_threadsafe(awaits(*arguments, **options), self.fs.loop)
        return self._thread.submit(partial(getattr(self.fs, name), *arguments, **options))

    async def call(self, name: str, *arguments: Any, **options: Any) -> Any:
        """Calls a method, beside others where it is a coroutine."""
        return await asyncio.wrap_future(self._started(name, *arguments, **options))

    async def plainly(self, method: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
        """Calls something that waits, on the thread."""
        return await asyncio.wrap_future(self._thread.submit(partial(method, *arguments, **options)))

    async def info(self, path: str) -> dict[str, Any] | None:
        """Returns what is known of a name, freshly asked; None if there is none."""
        where = self.at(path)
        self.fs.invalidate_cache(self.fs._parent(where))
        try:
            found: dict[str, Any] = await self.call("info", where)
        except (FileNotFoundError, NotADirectoryError):
            return None
        return found

    async def list(self, path: str) -> list[tuple[str, dict[str, Any]]] | None:
        """Returns the names in a directory and what is known of each; None if there is no such directory."""
        where = self.at(path)
        self.fs.invalidate_cache(where)
        try:
            found = await self.call("ls", where, detail=True)
        except FileNotFoundError:
            return None
        named = ((info["name"].rstrip("/").rpartition("/")[2], info) for info in found)
        own = where.strip("/")
        return [(name, info) for name, info in named if name and info["name"].strip("/") != own]

    async def fetch(self, path: str, begin: int, end: int) -> bytes:
        """Returns a part of a file."""
        data: bytes = await self.call("cat_file", self.at(path), start=begin, end=end)
        return data

    async def upload(self, fd: int, path: str) -> None:
        """Makes a file of what a descriptor has."""
        await self.call("put_file", f"/proc/self/fd/{fd}", self.at(path))

    def upload_now(self, fd: int, path: str) -> None:
        """The same, and waits for it."""
        self._started("put_file", f"/proc/self/fd/{fd}", self.at(path)).result()

    async def move(self, path: str, to: str, *, directory: bool) -> None:
        """Renames a file, or a directory with all that is in it."""
        await self.plainly(self._move, self.at(path), self.at(to), directory)

    def _move(self, path: str, to: str, directory: bool) -> None:
        import fsspec

        if type(self.fs).mv is not fsspec.AbstractFileSystem.mv:
            # It can do better than to copy.
            self.fs.mv(path, to, recursive=directory)
        elif directory:
            self.fs.invalidate_cache()
            path = self.fs._strip_protocol(path)
            self.fs.makedirs(to, exist_ok=True)
            for name, info in sorted(self.fs.find(path, withdirs=True, detail=True).items()):
                new = to + name[len(path) :]
                if info["type"] == "directory":
                    self.fs.makedirs(new, exist_ok=True)
                else:
                    self.fs.cp_file(name, new)
            self.fs.rm(path, recursive=True)
        else:
            self.fs.cp_file(path, to)
            self.fs.rm_file(path)

    def close(self) -> None:
        """Ends the thread."""
        self._thread.shutdown(wait=False, cancel_futures=True)

    def __repr__(self) -> str:
        return repr(self._target)


def version(info: dict[str, Any]) -> tuple[object, ...]:
    """Returns what differs when a file has changed, as far as its file system tells."""
    return (info.get("size"), *(str(info[name]) for name in (*_VERSIONS, *_TIMES) if info.get(name)))


def modified(info: dict[str, Any]) -> int:
    """Returns when a file was changed last, in nanoseconds; 0 if its file system does not tell."""
    for name in _TIMES:
        when = info.get(name)
        if isinstance(when, str):
            try:
                when = datetime.fromisoformat(when)
            except ValueError:
                continue
        if isinstance(when, datetime):
            return int(when.timestamp() * 1_000_000_000)
        if isinstance(when, (int, float)):
            return int(when * 1_000_000_000)
        if isinstance(when, tuple):  # of a zip archive
            return int(datetime(*when).timestamp() * 1_000_000_000)
    return 0
