//! What of a Python file system is served without the interpreter: data of backings, forgetting, and opens for which it has no handler.

use std::os::fd::OwnedFd;
use std::sync::Arc;

use virtiofs_fuse::wire::*;
use virtiofs_fuse::{
    BACKING, Backing, Context, Error, FileSystem, Held, Lost, Reader, Result, Saved, Segments, Unusable,
};
use virtiofs_hostdir::Backings;

use crate::nodes::Nodes;
use crate::opened::{Opened, PYTHON};

/// The tables of one guest's session.
pub(crate) struct Kept {
    pub(crate) nodes: Nodes,
    pub(crate) opened: Arc<Opened>,
    pub(crate) backings: Backings,
    pub(crate) read_only: bool,
    /// FOPEN flags of opens.
    pub(crate) open_flags: u32,
    pub(crate) dir_open_flags: u32,
}

impl Kept {
    /// Lets go of a handle; a backing is closed by whoever answers the guest.
    pub(crate) fn close(&self, fh: u64) -> Result<Option<OwnedFd>> {
        self.opened.remove(fh);
        if fh & BACKING != 0 { self.backings.remove(fh) } else { Ok(None) }
    }
}

impl FileSystem for Kept {
    fn read_only(&self) -> bool {
        self.read_only
    }

    fn held(&self) -> Held {
        Held { nodes: self.nodes.len(), handles: self.opened.len() + self.backings.len() }
    }

    fn known(&self, each: &mut dyn FnMut(u64, bool)) {
        self.nodes.known(each);
    }

    // Who has the handlers says what there is: it takes them to say it.
    fn save(&self, _out: &mut Saved) -> Result<(), Unusable> {
        Ok(())
    }

    fn restore(&self, _from: &mut Reader<'_>, _lost: &mut Vec<Lost>) -> Result<(), Unusable> {
        Ok(())
    }

    fn destroy(&self) {
        self.backings.clear();
        self.opened.clear();
        self.nodes.clear();
    }

    fn forget(&self, node: u64, nlookup: u64) -> bool {
        self.nodes.forget(node, nlookup)
    }

    fn open(&self, _cx: &Context, _node: u64, _flags: u32, _kill_suidgid: bool) -> Result<OpenOut> {
        Ok(OpenOut { fh: PYTHON, open_flags: self.open_flags, backing_id: 0 })
    }

    fn read(&self, cx: &Context, _node: u64, args: &ReadIn, out: Segments<'_>) -> Result<usize> {
        self.backings.read(cx, args, out)
    }

    fn write(&self, _cx: &Context, node: u64, args: &WriteIn, data: Segments<'_>) -> Result<usize> {
        let written = self.backings.write(args, data);
        self.nodes.moved(node);
        written
    }

    fn flush(&self, _cx: &Context, _node: u64, args: &FlushIn) -> Result<()> {
        self.backings.flush(args.fh)
    }

    fn release(&self, _cx: &Context, _node: u64, args: &ReleaseIn) -> Result<Option<OwnedFd>> {
        self.close(args.fh)
    }

    fn fsync(&self, _cx: &Context, _node: u64, fh: u64, datasync: bool) -> Result<()> {
        self.backings.fsync(fh, datasync)
    }

    fn opendir(&self, _cx: &Context, _node: u64, _flags: u32) -> Result<OpenOut> {
        Ok(OpenOut { fh: self.opened.number(), open_flags: self.dir_open_flags, backing_id: 0 })
    }

    fn releasedir(&self, _cx: &Context, _node: u64, args: &ReleaseIn) -> Result<Option<OwnedFd>> {
        self.close(args.fh)
    }

    fn statfs(&self, _cx: &Context, _node: u64) -> Result<StatfsOut> {
        Ok(StatfsOut { bsize: 4096, frsize: 4096, namelen: NAME_MAX as u32, ..StatfsOut::default() })
    }

    fn fallocate(&self, _cx: &Context, node: u64, args: &FallocateIn) -> Result<()> {
        let done = self.backings.fallocate(args);
        self.nodes.moved(node);
        done
    }

    fn lseek(&self, _cx: &Context, _node: u64, fh: u64, offset: u64, whence: u32) -> Result<u64> {
        self.backings.lseek(fh, offset, whence)
    }

    fn copy_file_range(&self, _cx: &Context, _node: u64, args: &CopyFileRangeIn) -> Result<u64> {
        if args.fh_in & args.fh_out & BACKING == 0 {
            // The guest copies by itself then.
            return Err(Error::Errno(libc::EXDEV));
        }
        let copied = self.backings.copy_file_range(args);
        self.nodes.moved(args.nodeid_out);
        copied
    }

    fn backing(&self, _cx: &Context, node: u64, write: bool) -> Result<Backing> {
        if write && self.read_only {
            return Err(Error::Errno(libc::EROFS));
        }
        self.backings.to_map(node, write)
    }
}
