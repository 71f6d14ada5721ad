"""How the data of files come here and go there again."""

import asyncio
import errno
import os
from typing import Final

from .blockcache import BlockCache, CachedFile
from .remote import Remote
from .remotenodes import File

_AT_ONCE: Final = 8
"""Blocks of one file that are fetched at a time when all are needed."""


class Transfers:
    """Between a cache and what it caches.

    Args:
        remote: Where the files are.
        blocks: The cache.
        ahead: Blocks that are fetched ahead of a reader, at most.
    """

    def __init__(self, remote: Remote, blocks: BlockCache, ahead: int) -> None:
        self._remote = remote
        self._blocks = blocks
        self._ahead = ahead

    async def part_of(self, node: File, file: CachedFile, block: int, offset: int, end: int) -> bytes | memoryview:
        """Returns what lies in a block of a range."""
        begin, over = file.span(block)
        offset, end = max(offset, begin), min(end, over)
        if block in file.blocks:
            return os.pread(file.fd, end - offset, offset)
        # Whoever asks for it may stop to wait, for a deadline; others may wait for it too.
        data = await asyncio.shield(self.fetch(node, file, block))
        return memoryview(data)[offset - begin : end - begin]

    def fetch(self, node: File, file: CachedFile, block: int) -> "asyncio.Future[bytes]":
        """Begins to fetch a block, or returns what has begun already."""
        if block in file.fetching:
            return file.fetching[block]

        async def fetch() -> bytes:
            begin, end = file.span(block)
            data = await self._remote.fetch(node.path, begin, end)
            if len(data) != end - begin:
                node.asked = 0.0
                raise OSError(errno.ESTALE, f"{node.path} has changed while it was read")
            self._blocks.store(file, block, data)
            return data

        def done(task: "asyncio.Future[bytes]") -> None:
            file.fetching.pop(block, None)
            if not task.cancelled():
                task.exception()  # whoever asked is told; of what was read ahead, nobody

        task = file.fetching[block] = asyncio.ensure_future(fetch())
        task.add_done_callback(done)
        return task

    def read_ahead(self, node: File, file: CachedFile, first: int, last: int) -> None:
        """Fetches what comes next, more each time that it was what was asked for next."""
        follows = file.next - 1 <= first <= file.next + file.window
        file.window = min(max(1, 2 * file.window), self._ahead) if follows else 0
        file.next = last + 1
        for block in range(file.next, min(file.next + file.window, len(file.blocks))):
            if block not in file.blocks:
                self.fetch(node, file, block)

    async def complete(self, node: File, file: CachedFile) -> None:
        """Makes the file one that is written here."""
        async with node.writing:
            if file.blocks.whole:
                return
            self._blocks.pin(file)
            try:
                while missing := file.missing():
                    await asyncio.gather(*(self.fetch(node, file, block) for block in missing[:_AT_ONCE]))
            except BaseException:
                file.pinned = False
                raise
            file.finish(clean=True)

    async def upload(self, node: File) -> None:
        """Uploads the file if it was changed here."""
        async with node.writing:
            file = node.cached
            while file is not None and file.is_dirty and not node.gone:
                if not file.is_settled:
                    await asyncio.sleep(0.005)
                    continue
                content = file.content
                await self._remote.upload(file.fd, node.path)
                file.clean = content
                info = await self._remote.info(node.path)
                if info is not None:
                    node.learn(info)
                    file.version = node.version
            if file is not None:
                self._blocks.settle(file)
