"""The nodes of a share whose files lie elsewhere: names, and what is known of them."""

import asyncio
import hashlib
import os
import time
from typing import Any

from .blockcache import CachedFile
from .remote import modified, version


class _Node:
    """A name in a directory."""

    def __init__(self, parent: "Directory | None", name: str) -> None:
        self.parent = parent
        self.name = name
        self.known = False
        self.ino = int.from_bytes(hashlib.blake2b(os.fsencode(self.path), digest_size=8).digest(), "big") or 1

    @property
    def path(self) -> str:
        """The path from the root, which is empty."""
        parts = []
        node: _Node | None = self
        while node is not None and node.parent is not None:
            parts.append(node.name)
            node = node.parent
        return "/".join(reversed(parts))


class Directory(_Node):
    """A directory. Where files alone make directories, one is remembered here while it has none: `made`."""

    def __init__(self, parent: "Directory | None", name: str) -> None:
        super().__init__(parent, name)
        self.children: dict[str, Directory | File] = {}
        self.made = parent is None
        self.mtime_ns = 0

    @property
    def is_idle(self) -> bool:
        """Whether nothing would be lost with it."""
        return not self.known and not self.children and not self.made

    @property
    def is_only_here(self) -> bool:
        """Whether it has to be listed, whatever is listed elsewhere."""
        return self.made

    def join(self, name: str) -> str:
        """Returns the path of a name in it."""
        return f"{self.path}/{name}" if self.parent is not None else name


class File(_Node):
    """A file, and what is cached of it."""

    def __init__(self, parent: Directory, name: str) -> None:
        super().__init__(parent, name)
        self.size = 0
        self.mtime_ns = 0
        self.version: tuple[object, ...] = ()
        self.asked = 0.0
        self.cached: CachedFile | None = None
        self.gone = False
        self.writing = asyncio.Lock()

    @property
    def is_idle(self) -> bool:
        """Whether nothing would be lost with it."""
        return not self.known and self.cached is None

    @property
    def is_here(self) -> bool:
        """Whether what is here counts, and not what is elsewhere: it is being written."""
        return self.cached is not None and self.cached.blocks.whole

    @property
    def is_only_here(self) -> bool:
        """Whether it has to be listed, whatever is listed elsewhere."""
        return self.is_here

    def learn(self, info: dict[str, Any]) -> None:
        """Takes what is known of the file elsewhere."""
        self.size, self.mtime_ns = int(info.get("size") or 0), modified(info)
        self.version, self.asked = version(info), time.monotonic()


class Handle:
    """An open file."""

    def __init__(self, file: CachedFile, *, writes: bool) -> None:
        self.file = file
        self.writes = writes
