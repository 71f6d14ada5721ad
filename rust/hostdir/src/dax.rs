//! Which files are mapped into a DAX window, and the descriptors for it.

use std::os::fd::AsFd;
use std::sync::atomic::Ordering;

use rustix::fs::OFlags;
use virtiofs_fuse::wire::{Attr, bits, init};
use virtiofs_fuse::{Backing, Result};

use crate::HostDir;
use crate::inode::Inode;
use crate::sys;

/// Write permission, in the sense of access(2).
const W_OK: u32 = libc::W_OK as u32;

impl HostDir {
    /// Tells the guest to map a file, if it is to.
    pub(crate) fn stamp_dax(&self, inode: &Inode, attr: &mut Attr) {
        if inode.effects.dax.is_some() && self.maps(inode, attr.size) {
            attr.flags |= bits::ATTR_DAX;
            inode.announced.store(true, Ordering::Relaxed);
        }
    }

    /// Whether the guest may have this file mapped. It drops whatever it has cached of a file that it opens, unless told not to; of one
    /// that is mapped it has nothing cached, and must not drop it.
    pub(crate) fn may_be_mapped(&self, inode: &Inode) -> bool {
        self.negotiated(init::MAP_ALIGNMENT)
            && (inode.announced.load(Ordering::Relaxed) || !self.negotiated(init::HAS_INODE_DAX))
    }

    /// Whether the guest is told to map this file, which has `size` bytes now.
    fn maps(&self, inode: &Inode, size: u64) -> bool {
        inode.effects.dax.is_some_and(|least| size >= least)
            && inode.kind() == libc::S_IFREG
            && self.negotiated(init::HAS_INODE_DAX)
            && (self.maps_read_only.load(Ordering::Relaxed) || self.can_write(inode))
    }

    /// Some VMMs map nothing that is not open for writing. Asked once for each file: what the host changes later is found out when the
    /// file is to be mapped.
    fn can_write(&self, inode: &Inode) -> bool {
        let ask = || inode.fd().is_ok_and(|fd| sys::access(fd.as_fd(), W_OK).is_ok());
        !inode.effects.read_only && *inode.can_write.get_or_init(ask)
    }

    /// Never for writing where the guest may not write: its kernel could then change the file, whatever we refuse.
    pub(crate) fn op_backing(&self, node: u64, write: bool) -> Result<Backing> {
        let inode = self.inodes.get(node)?;
        inode.must_be_regular()?;
        if write {
            inode.must_be_writable()?;
        }
        let flags = if write { OFlags::RDWR } else { OFlags::RDONLY };
        Ok(Backing { fd: self.proc.reopen(inode.fd()?, flags)?, writable: write })
    }
}
