"""A cache of blocks on a local disk: files without names, of so many bytes in all."""

import errno
import os
import resource
import tempfile
import time
import weakref
from asyncio import Future
from collections import OrderedDict, deque
from collections.abc import Callable, Collection
from typing import Final

from ._core import Blocks, punch_hole

_TICK: Final = 20_000_000
"""Nanoseconds within which two changes of a file may have one time stamp."""


class CachedFile:
    """One file as far as it is cached. Its descriptor is a backing: what is there is read natively.

    Either the parts of a file that lies elsewhere, which come and go; or, once it is `whole`, a file that is written here.
    """

    def __init__(self, fd: int, size: int, block_size: int, version: tuple[object, ...]) -> None:
        self.fd = fd
        self.block_size = block_size
        self.version = version
        self.blocks = Blocks(-(-size // block_size), block_size)
        self.users = 0
        self.held = 0
        self.pinned = False
        self.evicted: Callable[[], None] = lambda: None
        """Called when nothing of it is cached any more."""
        self.clean: tuple[int, int] | None = None
        """Size and time of the content that the file has elsewhere, once it is whole."""
        self.fetching: dict[int, Future[bytes]] = {}
        self.next = 0
        self.window = 0
        self._size = size
        os.ftruncate(fd, size)

    @property
    def size(self) -> int:
        """Bytes of the file."""
        return os.fstat(self.fd).st_size if self.blocks.whole else self._size

    @property
    def content(self) -> tuple[int, int]:
        """What differs when the content does."""
        now = os.fstat(self.fd)
        return now.st_size, now.st_mtime_ns

    @property
    def is_dirty(self) -> bool:
        """Whether it was changed here, and not written back."""
        return self.blocks.whole and self.content != self.clean

    @property
    def is_settled(self) -> bool:
        """Whether a change from now on has another time stamp than the last one."""
        return not 0 <= time.time_ns() - os.fstat(self.fd).st_mtime_ns < _TICK

    def span(self, block: int) -> tuple[int, int]:
        """Returns where a block begins and ends."""
        begin = block * self.block_size
        return begin, min(begin + self.block_size, self._size)

    def missing(self) -> list[int]:
        """Returns the blocks that are not there."""
        return [block for block in range(len(self.blocks)) if block not in self.blocks]

    def finish(self, *, clean: bool) -> None:
        """Everything is there, or was cut off: from now on the file is written here."""
        self.clean = self.content if clean else None
        self.blocks.finish()


class BlockCache:
    """Cached files, of so many bytes in all. Blocks go in the order they came, but for those that were read in between.

    Args:
        directory: Where they lie, without names; None for the directory of temporary files. It is opened now: a server that
            confines itself has no way to it later.
        size: Bytes. Files that are written stay until they are written back, whatever that comes to.
        block_size: Bytes of a block.
    """

    def __init__(self, directory: str | None, size: int, block_size: int) -> None:
        self.directory = tempfile.gettempdir() if directory is None else directory
        self._there = os.open(self.directory, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        self._leave: Final = weakref.finalize(self, os.close, self._there)
        self.size = size
        self.block_size = block_size
        self.used = 0
        # Each takes a descriptor, and other parts of the process need some.
        self._most = max(16, resource.getrlimit(resource.RLIMIT_NOFILE)[0] // 4)
        self._files: OrderedDict[CachedFile, None] = OrderedDict()
        self._order: deque[tuple[CachedFile, int]] = deque()

    def add(self, size: int, version: tuple[object, ...]) -> CachedFile:
        """Returns a new file of which nothing is there."""
        fd = os.open(".", os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, 0o600, dir_fd=self._there)
        try:
            file = CachedFile(fd, size, self.block_size, version)
        except BaseException:
            os.close(fd)
            raise
        self._files[file] = None
        if len(self._files) > self._most:
            for other in list(self._files):
                if not other.users and not other.pinned:
                    self.drop(other)
                    break
        return file

    def touch(self, file: CachedFile) -> None:
        """Notes that a file is used."""
        self._files.move_to_end(file)

    def store(self, file: CachedFile, block: int, data: bytes) -> None:
        """Keeps a block that was fetched, unless the file is written here meanwhile."""
        if file not in self._files or block in file.blocks:
            return
        self._make_room(len(data))
        _write(file.fd, data, file.span(block)[0])
        file.blocks.add(block)
        self._charge(file, len(data))
        self._order.append((file, block))

    def pin(self, file: CachedFile) -> None:
        """Keeps all blocks of a file from now on.

        Raises:
            OSError: ENOSPC: the file is larger than the cache.
        """
        if file.size > self.size:
            raise OSError(errno.ENOSPC, "the file is larger than the cache")
        file.pinned = True

    def settle(self, file: CachedFile) -> None:
        """Counts what was written to a file."""
        if file in self._files:
            self._charge(file, file.size - file.held)
            self._make_room(0)

    def rest(self, file: CachedFile, version: tuple[object, ...]) -> None:
        """Nobody uses a file that was written, and it was written back: its blocks may go again."""
        if file not in self._files or not file.blocks.whole:
            return
        file._size, file.version, file.pinned = file.size, version, False
        file.blocks = Blocks(-(-file._size // self.block_size), self.block_size)
        for block in range(len(file.blocks)):
            file.blocks.add(block)
            self._order.append((file, block))
        self._charge(file, file._size - file.held)
        self._make_room(0)

    def drop(self, file: CachedFile) -> None:
        """Closes a file that nobody uses."""
        if file in self._files:
            del self._files[file]
            self._charge(file, -file.held)
            for fetch in file.fetching.values():
                fetch.cancel()
            os.close(file.fd)
            file.evicted()

    def forsake(self, known: Collection[CachedFile | None]) -> None:
        """The guest is gone, and with it all files but those with a name. Nobody waits for what is being fetched."""
        for file in list(self._files):
            file.fetching.clear()
            if file not in known:
                self.drop(file)

    def close(self) -> None:
        """Closes all files, and takes no more."""
        for file in list(self._files):
            self.drop(file)
        self._order.clear()
        self._leave()

    def _charge(self, file: CachedFile, size: int) -> None:
        file.held += size
        self.used += size

    def _make_room(self, size: int) -> None:
        # A block that was read since it was looked at last is spared once, so that this ends.
        for _ in range(2 * len(self._order)):
            if self.used + size <= self.size:
                return
            file, block = self._order.popleft()
            if file not in self._files or file.blocks.whole or block not in file.blocks:
                continue
            if file.pinned or file.blocks.was_read(block):
                self._order.append((file, block))
                continue
            begin, end = file.span(block)
            file.blocks.discard(block)
            punch_hole(file.fd, begin, end - begin)
            self._charge(file, begin - end)
            if not file.held and not file.users:
                self.drop(file)


def _write(fd: int, data: bytes, offset: int) -> None:
    view = memoryview(data)
    while view:
        done = os.pwrite(fd, view, offset)
        view, offset = view[done:], offset + done
