"""The tree of a share whose files lie elsewhere: which nodes there are, and what is cached of each."""

from typing import Any

from .blockcache import BlockCache, CachedFile
from .remote import modified
from .remotenodes import Directory, File


class RemoteTree:
    """Nodes come with what is learned of a name, and go when nothing would be lost with them.

    Args:
        blocks: What is cached of files.
    """

    def __init__(self, blocks: BlockCache) -> None:
        self._blocks = blocks

    def learned(self, parent: Directory, name: str, info: dict[str, Any] | None) -> Directory | File | None:
        """Returns the node of a name by what is known of it elsewhere."""
        there = parent.children.get(name)
        if info is None:
            if isinstance(there, Directory) and there.made:
                return there
            if isinstance(there, File):
                self.part(there)
            return None
        if info.get("type") == "directory":
            if not isinstance(there, Directory):
                there = parent.children[name] = Directory(parent, name)
            there.mtime_ns = modified(info) or there.mtime_ns
            return there
        if not isinstance(there, File):
            there = parent.children[name] = File(parent, name)
        if not there.is_here:
            there.learn(info)
            self.check(there)
        return there

    def check(self, node: File) -> None:
        """Lets go of what is cached of another version. Who has that one open keeps it."""
        file = node.cached
        if file is not None and file.version != node.version:
            node.cached = None
            file.evicted = lambda: None
            if not file.users:
                self._blocks.drop(file)

    def files(self, directory: Directory) -> list[File]:
        """Returns all files below a directory."""
        found: list[File] = []
        for child in directory.children.values():
            found += [child] if isinstance(child, File) else self.files(child)
        return found

    def prune(self, node: Directory | File | None) -> None:
        """Forgets a node, and the directories above it, with which nothing would be lost."""
        while node is not None and node.is_idle and node.parent is not None:
            parent = node.parent
            if parent.children.get(node.name) is node:
                del parent.children[node.name]
            node = parent

    def part(self, node: File) -> None:
        """Takes the name from a file that has lost it. Who has it open keeps what is cached."""
        node.gone = True
        if node.parent is not None and node.parent.children.get(node.name) is node:
            del node.parent.children[node.name]
        if node.cached is not None and not node.cached.users:
            self._blocks.drop(node.cached)

    def cached(self, node: File) -> CachedFile:
        """Begins to cache a file as it is now elsewhere."""
        file = self._blocks.add(node.size, node.version)

        def evicted() -> None:
            if node.cached is file:
                node.cached = None
                self.prune(node)

        file.evicted = evicted
        return file
