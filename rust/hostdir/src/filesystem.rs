//! The operations of [`FileSystem`], each one line into the file of its family.

use std::ffi::CStr;
use std::os::fd::OwnedFd;

use rustix::fs::AtFlags;
use virtiofs_fuse::wire::*;
use virtiofs_fuse::{
    Backing, Context, Creation, DirBuffer, FileSystem, Held, Lost, Negotiated, Opcode, Reader, Result, Saved, Segments,
    Settle, Unusable, Wait,
};

use crate::HostDir;

impl FileSystem for HostDir {
    /// LSEEK while the guest holds dirty pages back: it asks without writing them first (`fuse_lseek`, `fs/fuse/file.c`), so
    /// the host would take fresh data for a hole, and who copies by SEEK_DATA would lose it. On its own it takes all of a file for data.
    ///
    /// OPEN and what ends it, where the guest can do without: it asks once, and opens by itself from then on (`fuse_file_open`,
    /// `fs/fuse/file.c`). FLUSH with it, which nobody could answer for one open file among several.
    ///
    /// Extended attributes where none are served: it asks for `security.capability` before it changes a file, twice for each new one
    /// that tar(1) unpacks, unless it knows that there are none at all.
    fn lacks(&self) -> u64 {
        const fn all<const N: usize>(operations: [Opcode; N]) -> u64 {
            let (mut bits, mut at) = (0, 0);
            while at < N {
                bits |= 1 << operations[at] as u32;
                at += 1;
            }
            bits
        }
        // Asked at each request.
        const DATA: u64 = all([Opcode::Lseek]);
        const OPENS: u64 = all([Opcode::Open, Opcode::Release, Opcode::Flush]);
        const OPENDIRS: u64 = all([Opcode::Opendir, Opcode::Releasedir]);
        const XATTRS: u64 = all([Opcode::Setxattr, Opcode::Getxattr, Opcode::Listxattr, Opcode::Removexattr]);
        let lacking = |lacks: bool, operations: u64| if lacks { operations } else { 0 };
        lacking(self.writeback(), DATA)
            | lacking(self.no_open(), OPENS)
            | lacking(self.no_opendir(), OPENDIRS)
            | lacking(!self.config.xattr, XATTRS)
    }

    fn read_only(&self) -> bool {
        self.config.read_only
    }

    fn held(&self) -> Held {
        Held { nodes: self.nodes(), handles: self.handles() }
    }

    fn known(&self, each: &mut dyn FnMut(u64, bool)) {
        self.inodes.each(|inode| each(inode.id, inode.kind() == libc::S_IFDIR));
    }

    fn init(&self, negotiated: &Negotiated) {
        self.begin(negotiated);
    }

    fn save(&self, out: &mut Saved) -> Result<(), Unusable> {
        self.op_save(out);
        Ok(())
    }

    fn restore(&self, from: &mut Reader<'_>, lost: &mut Vec<Lost>) -> Result<(), Unusable> {
        self.op_restore(from, lost)
    }

    fn destroy(&self) {
        self.end();
    }

    fn lookup(&self, cx: &Context, parent: u64, name: &CStr) -> Result<EntryOut> {
        self.op_lookup(cx, parent, name)
    }

    fn forget(&self, node: u64, nlookup: u64) -> bool {
        let gone = self.inodes.forget(node, nlookup);
        if gone {
            self.forget_standing(node);
        }
        gone
    }

    fn getattr(&self, _cx: &Context, node: u64, fh: Option<u64>) -> Result<AttrOut> {
        self.op_getattr(node, self.own(fh)?)
    }

    fn statx(&self, _cx: &Context, node: u64, fh: Option<u64>, mask: u32) -> Result<StatxOut> {
        self.op_statx(node, self.own(fh)?, mask)
    }

    fn setattr(&self, _cx: &Context, node: u64, args: &SetattrIn) -> Result<AttrOut> {
        self.op_setattr(node, args)
    }

    fn readlink(&self, _cx: &Context, node: u64, out: &mut Vec<u8>) -> Result<()> {
        self.op_readlink(node, out)
    }

    fn symlink(&self, cx: &Context, parent: u64, name: &CStr, target: &CStr, new: &Creation<'_>) -> Result<EntryOut> {
        self.op_symlink(cx, parent, name, target, new)
    }

    fn mknod(
        &self,
        cx: &Context,
        parent: u64,
        name: &CStr,
        mode: u32,
        rdev: u32,
        new: &Creation<'_>,
    ) -> Result<EntryOut> {
        self.op_mknod(cx, parent, name, mode, rdev, new)
    }

    fn mkdir(&self, cx: &Context, parent: u64, name: &CStr, mode: u32, new: &Creation<'_>) -> Result<EntryOut> {
        self.op_mkdir(cx, parent, name, mode, new)
    }

    fn unlink(&self, cx: &Context, parent: u64, name: &CStr) -> Result<()> {
        self.op_remove(cx, parent, name, AtFlags::empty())
    }

    fn rmdir(&self, cx: &Context, parent: u64, name: &CStr) -> Result<()> {
        self.op_remove(cx, parent, name, AtFlags::REMOVEDIR)
    }

    fn rename(&self, cx: &Context, parent: u64, name: &CStr, newparent: u64, newname: &CStr, flags: u32) -> Result<()> {
        self.op_rename(cx, parent, name, newparent, newname, flags)
    }

    fn link(&self, cx: &Context, node: u64, newparent: u64, newname: &CStr) -> Result<EntryOut> {
        self.op_link(cx, node, newparent, newname)
    }

    fn open(&self, _cx: &Context, node: u64, flags: u32, kill_suidgid: bool) -> Result<OpenOut> {
        self.op_open(node, flags, kill_suidgid)
    }

    fn create(
        &self,
        cx: &Context,
        parent: u64,
        name: &CStr,
        flags: u32,
        mode: u32,
        kill_suidgid: bool,
        new: &Creation<'_>,
    ) -> Result<(EntryOut, OpenOut)> {
        self.op_create(cx, parent, name, flags, mode, kill_suidgid, new)
    }

    fn tmpfile(
        &self,
        cx: &Context,
        parent: u64,
        flags: u32,
        mode: u32,
        new: &Creation<'_>,
    ) -> Result<(EntryOut, OpenOut)> {
        self.op_tmpfile(cx, parent, flags, mode, new)
    }

    fn read(&self, cx: &Context, node: u64, args: &ReadIn, out: Segments<'_>) -> Result<usize> {
        self.op_read(cx, node, args, out)
    }

    fn write(&self, _cx: &Context, node: u64, args: &WriteIn, data: Segments<'_>) -> Result<usize> {
        self.op_write(node, args, data)
    }

    fn flush(&self, _cx: &Context, _node: u64, args: &FlushIn) -> Result<()> {
        self.op_flush(args)
    }

    fn release(&self, _cx: &Context, _node: u64, args: &ReleaseIn) -> Result<Option<OwnedFd>> {
        self.op_release(args)
    }

    fn fsync(&self, _cx: &Context, node: u64, fh: u64, datasync: bool) -> Result<()> {
        self.op_fsync(node, fh, datasync)
    }

    fn opendir(&self, _cx: &Context, node: u64, _flags: u32) -> Result<OpenOut> {
        self.op_opendir(node)
    }

    fn readdir(&self, cx: &Context, node: u64, fh: u64, offset: u64, plus: bool, out: &mut DirBuffer) -> Result<()> {
        if plus || self.hides() {
            self.may_ask(cx)?;
        }
        self.op_readdir(node, fh, offset, plus, out)
    }

    fn releasedir(&self, _cx: &Context, _node: u64, args: &ReleaseIn) -> Result<Option<OwnedFd>> {
        self.op_releasedir(args.fh)
    }

    fn fsyncdir(&self, _cx: &Context, node: u64, fh: u64, datasync: bool) -> Result<()> {
        self.op_fsyncdir(node, fh, datasync)
    }

    fn statfs(&self, _cx: &Context, node: u64) -> Result<StatfsOut> {
        self.op_statfs(node)
    }

    fn syncfs(&self, _cx: &Context, node: u64) -> Result<()> {
        self.op_syncfs(node)
    }

    fn setxattr(&self, _cx: &Context, node: u64, name: &CStr, value: &[u8], flags: u32, kill_sgid: bool) -> Result<()> {
        self.op_setxattr(node, name, value, flags, kill_sgid)
    }

    fn getxattr(&self, _cx: &Context, node: u64, name: &CStr, out: &mut [u8]) -> Result<usize> {
        self.op_getxattr(node, name, out)
    }

    fn listxattr(&self, _cx: &Context, node: u64, out: &mut [u8]) -> Result<usize> {
        self.op_listxattr(node, out)
    }

    fn removexattr(&self, _cx: &Context, node: u64, name: &CStr) -> Result<()> {
        self.op_removexattr(node, name)
    }

    fn access(&self, cx: &Context, node: u64, mask: u32) -> Result<()> {
        self.op_access(cx, node, mask)
    }

    fn fallocate(&self, cx: &Context, node: u64, args: &FallocateIn) -> Result<()> {
        self.op_fallocate(cx, node, args)
    }

    fn lseek(&self, _cx: &Context, node: u64, fh: u64, offset: u64, whence: u32) -> Result<u64> {
        self.op_lseek(node, fh, offset, whence)
    }

    fn copy_file_range(&self, cx: &Context, node: u64, args: &CopyFileRangeIn) -> Result<u64> {
        self.op_copy_file_range(cx, node, args)
    }

    fn backing(&self, _cx: &Context, node: u64, write: bool) -> Result<Backing> {
        self.op_backing(node, write)
    }

    fn getlk(&self, _cx: &Context, _node: u64, args: &LkIn) -> Result<FileLock> {
        self.op_getlk(args)
    }

    fn setlk(&self, _cx: &Context, _node: u64, args: &LkIn) -> Result<()> {
        self.op_setlk(args, false).map(|_| ())
    }

    fn setlkw(&self, _cx: &Context, _node: u64, args: &LkIn) -> Result<Option<Wait>> {
        self.op_setlk(args, true)
    }

    fn settle(&self, wait: Wait, then: Settle) {
        self.locks.settle(wait, then);
    }

    fn interrupt(&self, wait: Wait) {
        self.locks.interrupt(wait);
    }

    fn ioctl(&self, _cx: &Context, node: u64, args: &IoctlIn, input: &[u8], out: &mut Vec<u8>) -> Result<i32> {
        self.op_ioctl(node, args, input, out)
    }
}
