"""What `benches/python/promises.py` serves, each in a process of its own."""

import os
import stat
import time
from typing import Any

from virtiofs import Attr, Entry, Node, Open, Passthrough, Request


class Same(Passthrough):
    """Overrides nothing."""


class Sleepy(Passthrough):
    """Its lookups take 10 ms."""

    def lookup(self, request: Request, parent: Node, name: str) -> Entry | None:
        time.sleep(0.01)
        return super().lookup(request, parent, name)


class Trivial(Passthrough):
    """A getattr that does nothing but answer."""

    file = Attr(stat.S_IFREG | 0o644)

    def getattr(self, request: Request, node: Node, handle: Any) -> Attr:
        return self.file


class Buffers(Passthrough):
    """Reads answer a part of one buffer."""

    data = memoryview(bytes(2 << 20))

    def read(self, request: Request, node: Node, handle: Any, offset: int, size: int) -> Any:
        return self.data[:size]


class Copies(Passthrough):
    """Each open answers a file in memory with what the file has."""

    def open(self, request: Request, node: Node, flags: int) -> Open:
        copy = os.memfd_create("copy")
        with open(os.path.join(self.directory, node.path), "rb") as file:
            while os.sendfile(copy, file.fileno(), None, 1 << 30):
                pass
        # The server has a duplicate.
        opened = Open(backing=copy)
        os.close(copy)
        return opened
