//! Every operation of the protocol as a method of [`Client`], with the arguments that the kernel would send.
//!
//! Names are bytes without a NUL. Node ids, handles and counts are the caller's business here; [`Guest`](crate::Guest) keeps them by
//! itself.

use virtiofs_fuse::Opcode;
use virtiofs_fuse::wire::*;
use zerocopy::IntoBytes;

use crate::client::parse;
use crate::dirents::{self, DirEntry};
use crate::slot::REPLY_MAX;
use crate::{Client, Error, Result};

const NUL: &[u8] = &[0];

impl Client {
    /// Looks a name up. Counts the node once unless the answer is a cached "no" (node id 0).
    pub fn lookup(&self, parent: u64, name: &[u8]) -> Result<EntryOut> {
        self.ask(Opcode::Lookup, parent, &[name, NUL])
    }

    /// Takes `nlookup` counts of a node back, on the hiprio queue. Nobody answers.
    pub fn forget(&self, nodeid: u64, nlookup: u64) -> Result<()> {
        self.post(Opcode::Forget, nodeid, &[ForgetIn { nlookup }.as_bytes()], &[])
    }

    /// FORGET of several nodes, (node, count) each, in one message.
    pub fn batch_forget(&self, nodes: &[(u64, u64)]) -> Result<()> {
        let head = BatchForgetIn { count: nodes.len() as u32, dummy: 0 };
        let one = |&(nodeid, nlookup)| ForgetOne { nodeid, nlookup };
        let list: Vec<ForgetOne> = nodes.iter().map(one).collect();
        self.post(Opcode::BatchForget, 0, &[head.as_bytes()], list.as_bytes())
    }

    /// Attributes, of an open handle if one is given.
    pub fn getattr(&self, nodeid: u64, fh: Option<u64>) -> Result<AttrOut> {
        let flags = if fh.is_some() { bits::GETATTR_FH } else { 0 };
        let args = GetattrIn { getattr_flags: flags, dummy: 0, fh: fh.unwrap_or(0) };
        self.ask(Opcode::Getattr, nodeid, &[args.as_bytes()])
    }

    /// Attributes as statx(2) has them; `mask` of `STATX_` bits.
    pub fn statx(&self, nodeid: u64, fh: Option<u64>, mask: u32) -> Result<StatxOut> {
        let flags = if fh.is_some() { bits::GETATTR_FH } else { 0 };
        let args = StatxIn { getattr_flags: flags, reserved: 0, fh: fh.unwrap_or(0), sx_flags: 0, sx_mask: mask };
        self.ask(Opcode::Statx, nodeid, &[args.as_bytes()])
    }

    /// Changes the attributes that `args.valid` names.
    pub fn setattr(&self, nodeid: u64, args: &SetattrIn) -> Result<AttrOut> {
        self.ask(Opcode::Setattr, nodeid, &[args.as_bytes()])
    }

    /// Target of a symlink.
    pub fn readlink(&self, nodeid: u64) -> Result<Vec<u8>> {
        self.call(Opcode::Readlink, nodeid, &[], &[], 0, SYMLINK_MAX)
    }

    /// What a creating request carries behind its names where labels were negotiated: the label that this guest gives to what it makes,
    /// or an empty list.
    fn create<T: zerocopy::FromBytes>(&self, opcode: Opcode, parent: u64, args: &[&[u8]]) -> Result<T> {
        let mut header = self.header(opcode as u32, parent);
        let mut parts = args.to_vec();
        let extension;
        if self.has(init::SECURITY_CTX) {
            extension = contexts(self.label.read().as_ref());
            header.total_extlen = (extension.len() / 8) as u16;
            parts.push(&extension);
        }
        parse(&self.call_with(header, &parts, &[], size_of::<T>(), 0, false)?)
    }

    /// What a security module in the guest gives to all that is made from now on: name and value of an extended attribute. Sent
    /// where `SECURITY_CTX` was negotiated.
    pub fn set_label(&self, label: Option<(&[u8], &[u8])>) {
        *self.label.write() = label.map(|(name, value)| (name.to_vec(), value.to_vec()));
    }

    /// Makes a symlink.
    pub fn symlink(&self, parent: u64, name: &[u8], target: &[u8]) -> Result<EntryOut> {
        self.create(Opcode::Symlink, parent, &[name, NUL, target, NUL])
    }

    /// Makes a node; `mode` with its type.
    pub fn mknod(&self, parent: u64, name: &[u8], mode: u32, rdev: u32, umask: u32) -> Result<EntryOut> {
        let args = MknodIn { mode, rdev, umask, padding: 0 };
        self.create(Opcode::Mknod, parent, &[args.as_bytes(), name, NUL])
    }

    /// Makes a directory.
    pub fn mkdir(&self, parent: u64, name: &[u8], mode: u32, umask: u32) -> Result<EntryOut> {
        self.create(Opcode::Mkdir, parent, &[MkdirIn { mode, umask }.as_bytes(), name, NUL])
    }

    /// Creates and opens a file.
    pub fn create_file(
        &self,
        parent: u64,
        name: &[u8],
        flags: u32,
        mode: u32,
        umask: u32,
    ) -> Result<(EntryOut, OpenOut)> {
        let args = CreateIn { flags, mode, umask, open_flags: 0 };
        let reply: EntryOpen = self.create(Opcode::Create, parent, &[args.as_bytes(), name, NUL])?;
        Ok((reply.entry, reply.open))
    }

    /// Creates and opens a file without a name in the directory `parent`.
    pub fn tmpfile(&self, parent: u64, flags: u32, mode: u32, umask: u32) -> Result<(EntryOut, OpenOut)> {
        let args = CreateIn { flags, mode, umask, open_flags: 0 };
        let reply: EntryOpen = self.create(Opcode::Tmpfile, parent, &[args.as_bytes(), b"/", NUL])?;
        Ok((reply.entry, reply.open))
    }

    /// Removes a name that is no directory.
    pub fn unlink(&self, parent: u64, name: &[u8]) -> Result<()> {
        self.ask::<()>(Opcode::Unlink, parent, &[name, NUL])
    }

    /// Removes an empty directory.
    pub fn rmdir(&self, parent: u64, name: &[u8]) -> Result<()> {
        self.ask::<()>(Opcode::Rmdir, parent, &[name, NUL])
    }

    /// rename(2).
    pub fn rename(&self, parent: u64, name: &[u8], newdir: u64, newname: &[u8]) -> Result<()> {
        self.ask::<()>(Opcode::Rename, parent, &[RenameIn { newdir }.as_bytes(), name, NUL, newname, NUL])
    }

    /// renameat2(2).
    pub fn rename2(&self, parent: u64, name: &[u8], newdir: u64, newname: &[u8], flags: u32) -> Result<()> {
        let args = Rename2In { newdir, flags, padding: 0 };
        self.ask::<()>(Opcode::Rename2, parent, &[args.as_bytes(), name, NUL, newname, NUL])
    }

    /// Gives a node one more name.
    pub fn link(&self, nodeid: u64, newdir: u64, newname: &[u8]) -> Result<EntryOut> {
        self.ask(Opcode::Link, newdir, &[LinkIn { oldnodeid: nodeid }.as_bytes(), newname, NUL])
    }

    /// Opens a file; `flags` of open(2).
    pub fn open(&self, nodeid: u64, flags: u32) -> Result<OpenOut> {
        self.ask(Opcode::Open, nodeid, &[OpenIn { flags, open_flags: 0 }.as_bytes()])
    }

    /// Reads up to `size` bytes, less than that at the end of the file only. `size` is at most `session().max_io`.
    pub fn read(&self, nodeid: u64, fh: u64, offset: u64, size: usize) -> Result<Vec<u8>> {
        let args = ReadIn { fh, offset, size: size as u32, ..ReadIn::default() };
        self.call(Opcode::Read, nodeid, &[args.as_bytes()], &[], 0, size)
    }

    /// Writes at most `session().max_io` bytes; answers how many were.
    pub fn write(&self, nodeid: u64, fh: u64, offset: u64, data: &[u8]) -> Result<usize> {
        self.write_with(nodeid, data, &WriteIn { fh, offset, size: data.len() as u32, ..WriteIn::default() })
    }

    /// Writes with all arguments free: flags, lock owner.
    pub fn write_with(&self, nodeid: u64, data: &[u8], args: &WriteIn) -> Result<usize> {
        let reply = self.call(Opcode::Write, nodeid, &[args.as_bytes()], data, size_of::<WriteOut>(), 0)?;
        let size = parse::<WriteOut>(&reply)?.size as usize;
        if size > data.len() {
            return Err(Error::Protocol(format!("{size} bytes written where {} were given", data.len())));
        }
        Ok(size)
    }

    /// statfs(2).
    pub fn statfs(&self, nodeid: u64) -> Result<StatfsOut> {
        self.ask(Opcode::Statfs, nodeid, &[])
    }

    /// Gives an open file back.
    pub fn release(&self, nodeid: u64, fh: u64, flags: u32) -> Result<()> {
        let args = ReleaseIn { fh, flags, release_flags: 0, lock_owner: 0 };
        self.ask::<()>(Opcode::Release, nodeid, &[args.as_bytes()])
    }

    /// What close(2) sends for each descriptor.
    pub fn flush(&self, nodeid: u64, fh: u64, lock_owner: u64) -> Result<()> {
        let args = FlushIn { fh, unused: 0, padding: 0, lock_owner };
        self.ask::<()>(Opcode::Flush, nodeid, &[args.as_bytes()])
    }

    /// fsync(2), or fdatasync(2).
    pub fn fsync(&self, nodeid: u64, fh: u64, datasync: bool) -> Result<()> {
        self.ask::<()>(Opcode::Fsync, nodeid, &[sync(fh, datasync).as_bytes()])
    }

    /// Opens a directory.
    pub fn opendir(&self, nodeid: u64, flags: u32) -> Result<OpenOut> {
        self.ask(Opcode::Opendir, nodeid, &[OpenIn { flags, open_flags: 0 }.as_bytes()])
    }

    /// A part of a listing, from the cookie `offset` on, in a reply of at most `size` bytes. No entries: the end.
    pub fn readdir(&self, nodeid: u64, fh: u64, offset: u64, size: usize) -> Result<Vec<DirEntry>> {
        self.list(Opcode::Readdir, nodeid, fh, offset, size)
    }

    /// The same with attributes. Each entry but `.`, `..` and those of node id 0 counts its node once.
    pub fn readdirplus(&self, nodeid: u64, fh: u64, offset: u64, size: usize) -> Result<Vec<DirEntry>> {
        self.list(Opcode::Readdirplus, nodeid, fh, offset, size)
    }

    fn list(&self, opcode: Opcode, nodeid: u64, fh: u64, offset: u64, size: usize) -> Result<Vec<DirEntry>> {
        let args = ReadIn { fh, offset, size: size as u32, ..ReadIn::default() };
        let bytes = self.call(opcode, nodeid, &[args.as_bytes()], &[], 0, size)?;
        dirents::parse(&bytes, opcode == Opcode::Readdirplus)
    }

    /// Gives an open directory back.
    pub fn releasedir(&self, nodeid: u64, fh: u64) -> Result<()> {
        let args = ReleaseIn { fh, ..ReleaseIn::default() };
        self.ask::<()>(Opcode::Releasedir, nodeid, &[args.as_bytes()])
    }

    /// fsync(2) of a directory.
    pub fn fsyncdir(&self, nodeid: u64, fh: u64, datasync: bool) -> Result<()> {
        self.ask::<()>(Opcode::Fsyncdir, nodeid, &[sync(fh, datasync).as_bytes()])
    }

    /// syncfs(2).
    pub fn syncfs(&self, nodeid: u64) -> Result<()> {
        self.ask::<()>(Opcode::Syncfs, nodeid, &[SyncfsIn::default().as_bytes()])
    }

    /// Sets an extended attribute; `flags` of setxattr(2).
    pub fn setxattr(&self, nodeid: u64, name: &[u8], value: &[u8], flags: u32) -> Result<()> {
        let args = SetxattrIn { size: value.len() as u32, flags, setxattr_flags: 0, padding: 0 };
        let all = args.as_bytes();
        let args = if self.has(init::SETXATTR_EXT) { all } else { all.get(..8).unwrap_or(all) };
        self.call(Opcode::Setxattr, nodeid, &[args, name, NUL], value, 0, 0).map(drop)
    }

    /// The value of an extended attribute, of up to `size` bytes (ERANGE if it is longer).
    pub fn getxattr(&self, nodeid: u64, name: &[u8], size: usize) -> Result<Vec<u8>> {
        self.xattr(Opcode::Getxattr, nodeid, &[name, NUL], size)
    }

    /// The size of an extended attribute's value, in bytes.
    pub fn getxattr_size(&self, nodeid: u64, name: &[u8]) -> Result<usize> {
        let reply = self.xattr(Opcode::Getxattr, nodeid, &[name, NUL], 0)?;
        Ok(parse::<GetxattrOut>(&reply)?.size as usize)
    }

    /// The names of all extended attributes, each closed by a NUL, in up to `size` bytes.
    pub fn listxattr(&self, nodeid: u64, size: usize) -> Result<Vec<u8>> {
        self.xattr(Opcode::Listxattr, nodeid, &[], size)
    }

    /// Bytes that [`Client::listxattr`] would answer.
    pub fn listxattr_size(&self, nodeid: u64) -> Result<usize> {
        Ok(parse::<GetxattrOut>(&self.xattr(Opcode::Listxattr, nodeid, &[], 0)?)?.size as usize)
    }

    fn xattr(&self, opcode: Opcode, nodeid: u64, names: &[&[u8]], size: usize) -> Result<Vec<u8>> {
        let args = GetxattrIn { size: size as u32, padding: 0 };
        let mut parts = vec![args.as_bytes()];
        parts.extend(names);
        let fixed = if size == 0 { size_of::<GetxattrOut>() } else { 0 };
        self.call_with(self.header(opcode as u32, nodeid), &parts, &[], fixed, size, size == 0)
    }

    /// Removes an extended attribute.
    pub fn removexattr(&self, nodeid: u64, name: &[u8]) -> Result<()> {
        self.ask::<()>(Opcode::Removexattr, nodeid, &[name, NUL])
    }

    /// access(2). Linux never sends this over virtio-fs.
    pub fn access(&self, nodeid: u64, mask: u32) -> Result<()> {
        self.ask::<()>(Opcode::Access, nodeid, &[AccessIn { mask, padding: 0 }.as_bytes()])
    }

    /// The lock that stands in the way of `lock`, or one of kind F_UNLCK.
    pub fn getlk(&self, nodeid: u64, fh: u64, owner: u64, lock: FileLock) -> Result<FileLock> {
        let args = LkIn { fh, owner, lk: lock, lk_flags: 0, padding: 0 };
        Ok(self.ask::<LkOut>(Opcode::Getlk, nodeid, &[args.as_bytes()])?.lk)
    }

    /// Takes or gives back a lock, waiting for it (`wait`) or not; `flock` for flock(2) instead of fcntl(2).
    pub fn setlk(&self, nodeid: u64, fh: u64, owner: u64, lock: FileLock, flock: bool, wait: bool) -> Result<()> {
        let lk_flags = if flock { bits::LK_FLOCK } else { 0 };
        let args = LkIn { fh, owner, lk: lock, lk_flags, padding: 0 };
        self.ask::<()>(if wait { Opcode::Setlkw } else { Opcode::Setlk }, nodeid, &[args.as_bytes()])
    }

    /// fallocate(2).
    pub fn fallocate(&self, nodeid: u64, fh: u64, offset: u64, length: u64, mode: u32) -> Result<()> {
        let args = FallocateIn { fh, offset, length, mode, padding: 0 };
        self.ask::<()>(Opcode::Fallocate, nodeid, &[args.as_bytes()])
    }

    /// lseek(2) with SEEK_DATA or SEEK_HOLE.
    pub fn lseek(&self, nodeid: u64, fh: u64, offset: u64, whence: u32) -> Result<u64> {
        let args = LseekIn { fh, offset, whence, padding: 0 };
        Ok(self.ask::<LseekOut>(Opcode::Lseek, nodeid, &[args.as_bytes()])?.offset)
    }

    /// copy_file_range(2), in its 64-bit form or (`wide` false) in the old one. `nodeid` and `args.fh_in` are the source.
    pub fn copy_file_range(&self, nodeid: u64, args: &CopyFileRangeIn, wide: bool) -> Result<u64> {
        let copied = if wide {
            self.ask::<CopyFileRangeOut>(Opcode::CopyFileRange64, nodeid, &[args.as_bytes()])?.bytes_copied
        } else {
            u64::from(self.ask::<WriteOut>(Opcode::CopyFileRange, nodeid, &[args.as_bytes()])?.size)
        };
        if copied > args.len {
            return Err(Error::Protocol(format!("{copied} bytes copied where {} were asked for", args.len)));
        }
        Ok(copied)
    }

    /// A restricted ioctl(2): `args.in_size` is set from `input`. Answers the result and up to `args.out_size` bytes.
    pub fn ioctl(&self, nodeid: u64, args: &IoctlIn, input: &[u8]) -> Result<(i32, Vec<u8>)> {
        let args = IoctlIn { in_size: input.len() as u32, ..*args };
        let fixed = size_of::<IoctlOut>();
        let room = args.out_size as usize;
        let mut bytes = self.call(Opcode::Ioctl, nodeid, &[args.as_bytes()], input, fixed, room)?;
        let result = parse::<IoctlOut>(&bytes)?.result;
        Ok((result, bytes.split_off(fixed)))
    }

    /// Maps a range of a file into the DAX window.
    pub fn setupmapping(&self, nodeid: u64, args: &SetupmappingIn) -> Result<()> {
        self.ask::<()>(Opcode::Setupmapping, nodeid, &[args.as_bytes()])
    }

    /// Takes ranges out of the DAX window.
    pub fn removemapping(&self, nodeid: u64, ranges: &[RemovemappingOne]) -> Result<()> {
        let head = RemovemappingIn { count: ranges.len() as u32 };
        let all = ranges.as_bytes();
        self.call(Opcode::Removemapping, nodeid, &[head.as_bytes(), all], &[], 0, 0).map(drop)
    }
}

/// Reply of CREATE and TMPFILE.
#[derive(zerocopy::FromBytes)]
#[repr(C)]
struct EntryOpen {
    entry: EntryOut,
    open: OpenOut,
}
const _: () = assert!(size_of::<EntryOpen>() <= REPLY_MAX);

/// The list of security contexts of a request, padded to 8 bytes.
fn contexts(label: Option<&(Vec<u8>, Vec<u8>)>) -> Vec<u8> {
    let mut body = Vec::new();
    if let Some((name, value)) = label {
        body.extend(Secctx { size: value.len() as u32, padding: 0 }.as_bytes());
        body.extend([name, NUL, value].concat());
    }
    body.resize(body.len().next_multiple_of(8), 0);
    let size = size_of::<SecctxHeader>() + body.len();
    let header = SecctxHeader { size: size as u32, nr_secctx: u32::from(label.is_some()) };
    [header.as_bytes(), &body].concat()
}

fn sync(fh: u64, datasync: bool) -> FsyncIn {
    FsyncIn { fh, fsync_flags: if datasync { bits::FSYNC_FDATASYNC } else { 0 }, padding: 0 }
}
