"""File systems of fsspec's as shares: s3, gcs, http, zip, tar, github and whatever else it knows.

::

    virtiofs serve virtiofs.fsspecfs:FsspecFS --socket S --fs-option target=s3://bucket/data --fs-option cache_size=20G

or, in Python::

    with serve(FsspecFS("s3://bucket/data", cache_size="20G"), "S"):
        ...

What is read is kept in blocks on a local disk, and read from there natively, as a file of this host is. What is written is
written there and uploaded when the file is closed: `close` and `fsync` wait for that and tell its errors, and others see
the file from then on. Object stores know no permissions, owners or links, so neither do these shares.
"""

import asyncio
import errno
import logging
import os
import stat
import time
from collections.abc import AsyncIterator
from typing import Any, Final

from . import dax
from .blockcache import BlockCache, CachedFile
from .filesystem import FileSystem
from .remote import Remote
from .remotenodes import Directory, File, Handle
from .remotetree import RemoteTree
from .transfers import Transfers
from .types import Attr, Changes, DirEntry, Entry, Open, Request

_NOREPLACE: Final = 1

_log: Final = logging.getLogger("virtiofs.fsspec")


class FsspecFS(FileSystem):
    """A share of a file system of fsspec's.

    Args:
        target: A URL such as ``s3://bucket/data`` or ``zip::https://host/archive.zip``, or a file system of fsspec's.
        root: The directory of it to share, where that is not all of the URL.
        read_only: Refuse every change.
        cache_dir: Where blocks are kept; None for the directory of temporary files. Nothing is left there.
        cache_size: Bytes that they take, as in 10G. Files that are being written stay until they are uploaded.
        block_size: Bytes of a block: what is fetched at a time.
        read_ahead: Bytes that are fetched ahead of whoever reads a file from its beginning to its end.
        uid: Owner of everything; None for the user of this process.
        gid: Group of everything.
        options: Arguments for the file system of the URL: keys, endpoints and the like.

    Raises:
        ConfigError: There is no such kind of file system, or fsspec is not installed.
    """

    def __init__(
        self,
        target: Any,
        root: str = "",
        *,
        read_only: bool = False,
        cache_dir: str | os.PathLike[str] | None = None,
        cache_size: int | str = "1G",
        block_size: int | str = "4M",
        read_ahead: int | str = "32M",
        uid: int | None = None,
        gid: int | None = None,
        **options: Any,
    ) -> None:
        self.read_only = read_only
        self.root = Directory(None, "")
        self.uid, self.gid = os.getuid() if uid is None else uid, os.getgid() if gid is None else gid
        self._remote = Remote(target, root, options)
        directory = None if cache_dir is None else os.fspath(cache_dir)
        self._blocks = BlockCache(directory, dax.size(cache_size), max(1, dax.size(block_size)))
        self._tree = RemoteTree(self._blocks)
        self._transfers = Transfers(self._remote, self._blocks, dax.size(read_ahead) // self._blocks.block_size)

    def __repr__(self) -> str:
        return f"FsspecFS({self._remote!r})"

    def close(self) -> None:
        """Gives the cache back. Call it when no server has the file system any more."""
        self._blocks.close()
        self._remote.close()

    def destroy(self) -> None:
        """Uploads what the guest left behind unsaved. What is cached is of use for the next one."""
        for file in self._tree.files(self.root):
            cached = file.cached
            if cached is not None:
                cached.users = 0
                self._save(file, cached)
        self._blocks.forsake({file.cached for file in self._tree.files(self.root)})
        self._forget_below(self.root)

    def _save(self, node: File, file: CachedFile) -> None:
        try:
            if file.is_dirty:
                self._remote.upload_now(file.fd, node.path)
                # What is known of it now is asked for when somebody looks it up.
                file.clean, node.version = file.content, ()
        except Exception:
            _log.exception("%s is lost: it cannot be uploaded", node.path)
            file.clean = file.content
        self._blocks.rest(file, node.version)

    def _forget_below(self, directory: Directory) -> None:
        for child in list(directory.children.values()):
            if isinstance(child, Directory):
                self._forget_below(child)
            self.forget(child)

    def forget(self, node: Directory | File) -> None:
        """Lets go of a node, unless something of it is cached."""
        node.known = False
        self._tree.prune(node)

    # Names and attributes.

    async def lookup(self, request: Request, parent: Directory, name: str) -> Entry | None:
        """Asks for the name, unless it is being written here."""
        there = parent.children.get(name)
        if isinstance(there, File) and there.is_here:
            return self._entry(there)
        info = await self._remote.info(parent.join(name))
        # Somebody may have made it here meanwhile.
        there = parent.children.get(name)
        if isinstance(there, File) and there.is_here:
            return self._entry(there)
        node = self._tree.learned(parent, name, info)
        return None if node is None else self._entry(node)

    async def getattr(self, request: Request, node: Directory | File, handle: Handle | None) -> Attr:
        """Asks for the attributes of a file, if it was asked too long ago."""
        if isinstance(node, File):
            await self._refresh(node)
        return self._attr(node)

    async def setattr(self, request: Request, node: Directory | File, handle: Handle | None, changes: Changes) -> Attr:
        """Truncates, and takes times for as long as the file is being written; modes and owners stay as they are."""
        now = self._attr(node)
        asked = {"mode": (now.permissions, changes.mode), "uid": (now.uid, changes.uid), "gid": (now.gid, changes.gid)}
        for have, wanted in asked.values():
            if wanted is not None and stat.S_IMODE(wanted) != have and wanted != have:
                raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))
        if isinstance(node, File):
            if changes.size is not None:
                await self._truncate(node, changes.size)
            if changes.mtime_ns is not None and node.is_here and node.cached is not None:
                clean = not node.cached.is_dirty
                os.utime(node.cached.fd, ns=(changes.mtime_ns, changes.mtime_ns))
                if clean:
                    node.cached.clean = node.cached.content
        return self._attr(node)

    async def readdir(self, request: Request, node: Directory, handle: object) -> AsyncIterator[DirEntry]:
        """Lists."""
        for child in await self._list(node):
            yield DirEntry(child.name, self._attr(child).mode, child.ino)

    async def readdirplus(self, request: Request, node: Directory, handle: object) -> AsyncIterator[DirEntry]:
        """Lists, with the attributes that came along."""
        for child in await self._list(node):
            yield DirEntry(child.name, entry=self._entry(child))

    async def mkdir(self, request: Request, parent: Directory, name: str, mode: int) -> Entry:
        """Makes a directory; where files alone make directories, this process remembers it until there is a file."""
        path = parent.join(name)
        if name in parent.children or await self._remote.info(path) is not None:
            raise FileExistsError(name)
        await self._remote.plainly(self._remote.fs.mkdir, self._remote.at(path))
        node = Directory(parent, name)
        node.made, node.mtime_ns = True, time.time_ns()
        parent.children[name] = node
        return self._entry(node)

    async def rmdir(self, request: Request, parent: Directory, name: str) -> None:
        """Removes an empty directory."""
        path = parent.join(name)
        there = parent.children.get(name)
        children = there.children.values() if isinstance(there, Directory) else ()
        if await self._remote.list(path) or any(child.is_only_here for child in children):
            raise OSError(errno.ENOTEMPTY, os.strerror(errno.ENOTEMPTY))
        if await self._remote.info(path) is not None:
            await self._remote.plainly(self._remote.fs.rmdir, self._remote.at(path))
        elif not isinstance(there, Directory):
            raise FileNotFoundError(name)
        parent.children.pop(name, None)
        parent.made = True

    async def unlink(self, request: Request, parent: Directory, name: str) -> None:
        """Removes a file. Who has it open keeps it."""
        there = parent.children.get(name)
        if isinstance(there, File):
            await self._keep(there)
        try:
            await self._remote.plainly(self._remote.fs.rm_file, self._remote.at(parent.join(name)))
        except FileNotFoundError:
            if not isinstance(there, File) or not there.is_here:
                raise
        # A directory that files made stays until it is removed itself.
        parent.made = True
        if isinstance(there, File):
            self._tree.part(there)

    async def rename(
        self, request: Request, parent: Directory, name: str, new_parent: Directory, new_name: str, flags: int
    ) -> None:
        """Renames; object stores copy and remove, which others may see halfway."""
        if flags & ~_NOREPLACE:
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        path, new_path = parent.join(name), new_parent.join(new_name)
        node = parent.children.get(name) or self._tree.learned(parent, name, await self._remote.info(path))
        there = new_parent.children.get(new_name) or self._tree.learned(
            new_parent, new_name, await self._remote.info(new_path)
        )
        if node is None:
            raise FileNotFoundError(name)
        if there is not None and flags & _NOREPLACE:
            raise FileExistsError(new_name)
        if isinstance(node, File):
            if isinstance(there, Directory):
                raise IsADirectoryError(new_name)
            if isinstance(there, File):
                await self._keep(there)
            await self._transfers.upload(node)
        else:
            if isinstance(there, File):
                raise NotADirectoryError(new_name)
            if there is not None:
                await self.rmdir(request, new_parent, new_name)
            for file in self._tree.files(node):
                await self._transfers.upload(file)
        if isinstance(node, File) or await self._remote.info(path) is not None:
            await self._remote.move(path, new_path, directory=isinstance(node, Directory))
        if isinstance(there, File):
            self._tree.part(there)
        parent.children.pop(name, None)
        parent.made = True
        node.parent, node.name = new_parent, new_name
        new_parent.children[new_name] = node
        for file in [node] if isinstance(node, File) else self._tree.files(node):
            # The copy has other times, but what is cached of it is still true.
            info = await self._remote.info(file.path)
            if info is not None:
                file.learn(info)
                if file.cached is not None:
                    file.cached.version = file.version

    # Files.

    async def create(self, request: Request, parent: Directory, name: str, flags: int, mode: int) -> tuple[Entry, Open]:
        """Makes a file, which others see when it is closed."""
        there = await self.lookup(request, parent, name)
        if there is not None:
            if flags & os.O_EXCL or not isinstance(there.node, File):
                raise FileExistsError(name)
            return there, await self.open(request, there.node, flags)
        node = File(parent, name)
        parent.children[name] = node
        node.cached = self._tree.cached(node)
        self._blocks.pin(node.cached)
        node.cached.finish(clean=False)
        return self._entry(node), self._opened(node, node.cached, flags)

    async def open(self, request: Request, node: File, flags: int) -> Open:
        """Opens the file as it is now elsewhere, unless it is being written here."""
        await self._refresh(node)
        if node.cached is None:
            node.cached = self._tree.cached(node)
        return self._opened(node, node.cached, flags)

    async def read(self, request: Request, node: File, handle: Handle, offset: int, size: int) -> bytes:
        """Fetches what is not there. What is there was read natively, without a call."""
        file = handle.file
        end = min(offset + size, file.size)
        if offset >= end:
            return b""
        if file.blocks.whole:
            return os.pread(file.fd, end - offset, offset)
        first, last = offset // file.block_size, (end - 1) // file.block_size
        parts = [self._transfers.part_of(node, file, block, offset, end) for block in range(first, last + 1)]
        self._transfers.read_ahead(node, file, first, last)
        return b"".join(await asyncio.gather(*parts))

    async def write(self, request: Request, node: File, handle: Handle, offset: int, data: bytes) -> int:
        """Fetches all of the file first; from then on it is written natively, without a call."""
        await self._transfers.complete(node, handle.file)
        return os.pwrite(handle.file.fd, data, offset)

    async def flush(self, request: Request, node: File, handle: Handle) -> None:
        """Uploads what was written."""
        if handle.writes:
            await self._transfers.upload(node)

    async def fsync(self, request: Request, node: File, handle: Handle, data_only: bool) -> None:
        """Uploads what was written."""
        await self._transfers.upload(node)

    async def release(self, request: Request, node: File, handle: Handle) -> None:
        """Uploads what was written since, by mappings of a program that has ended for example."""
        file = handle.file
        file.users = max(0, file.users - 1)
        if file is node.cached and file.is_dirty:
            try:
                await self._transfers.upload(node)
            except Exception:
                _log.exception("%s was closed and is not uploaded; it is tried again", node.path)
        if file.users:
            return
        if file is not node.cached or node.gone:
            self._blocks.drop(file)
        elif not file.is_dirty:
            self._blocks.rest(file, node.version)

    # What they are made of.

    def _attr(self, node: Directory | File) -> Attr:
        if isinstance(node, Directory):
            mode, size, mtime_ns = stat.S_IFDIR | (0o555 if self.read_only else 0o755), 0, node.mtime_ns
        else:
            mode = stat.S_IFREG | (0o444 if self.read_only else 0o644)
            size, mtime_ns = node.size, node.mtime_ns
            if node.is_here and node.cached is not None:
                size, mtime_ns = node.cached.content
        nlink = 0 if isinstance(node, File) and node.gone else 1
        return Attr(
            mode,
            size=size,
            ino=node.ino,
            nlink=nlink,
            uid=self.uid,
            gid=self.gid,
            atime_ns=mtime_ns,
            mtime_ns=mtime_ns,
            ctime_ns=mtime_ns,
        )

    def _entry(self, node: Directory | File) -> Entry:
        node.known = True
        return Entry(node, self._attr(node))

    def _is_ours(self, node: File) -> bool:
        """Whether nobody else has anything to say of a file."""
        return node.gone or node.is_here

    async def _refresh(self, node: File) -> None:
        if self._is_ours(node) or time.monotonic() - node.asked <= self.cache.attr_timeout:
            return
        info = await self._remote.info(node.path)
        if self._is_ours(node):
            return
        if info is None or info.get("type") == "directory":
            raise FileNotFoundError(node.path)
        node.learn(info)
        self._tree.check(node)

    async def _list(self, node: Directory) -> list[Directory | File]:
        found = await self._remote.list(node.path)
        if found is None and not node.made:
            raise FileNotFoundError(node.path)
        listed = {name: self._tree.learned(node, name, info) for name, info in found or ()}
        listed |= {name: child for name, child in node.children.items() if child.is_only_here}
        return [child for child in listed.values() if child is not None]

    def _opened(self, node: File, file: CachedFile, flags: int) -> Open:
        writes = flags & os.O_ACCMODE != os.O_RDONLY
        if writes and self.read_only:
            raise OSError(errno.EROFS, os.strerror(errno.EROFS))
        file.users += 1
        self._blocks.touch(file)
        return Open(Handle(file, writes=writes), backing=file.fd, blocks=file.blocks)

    async def _keep(self, node: File) -> None:
        """Fetches what those who have the file open may still read of it, before it is taken away."""
        if node.cached is not None and node.cached.users:
            await self._transfers.complete(node, node.cached)

    async def _truncate(self, node: File, size: int) -> None:
        file = node.cached
        if file is None:
            await self._refresh(node)
            file = node.cached = node.cached or self._tree.cached(node)
        if size > self._blocks.size:
            raise OSError(errno.EFBIG, "the file would be larger than the cache")
        if size == 0 and not file.blocks.whole:
            async with node.writing:
                self._blocks.pin(file)
                file.finish(clean=False)
        else:
            await self._transfers.complete(node, file)
        os.ftruncate(file.fd, size)
        if not file.users:
            await self._transfers.upload(node)
            self._blocks.rest(file, node.version)
