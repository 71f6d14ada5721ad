//! STATFS and SYNCFS: the host file system that holds a node.

use std::os::fd::AsFd;

use rustix::fs::OFlags;
use virtiofs_fuse::Result;
use virtiofs_fuse::wire::StatfsOut;

use crate::HostDir;
use crate::error::Lift;
use crate::open::open_directory;

/// `f_type` of file systems whose files are this host's alone (`include/uapi/linux/magic.h`): ext2 to ext4, XFS, Btrfs, F2FS, tmpfs, ramfs,
/// bcachefs, ZFS.
const LOCAL: [i64; 8] =
    [0xef53, 0x5846_5342, 0x9123_683e, 0xf2f5_2010, 0x0102_1994, 0x8584_58f6, 0xca45_1a4e, 0x2fc1_2fc1];

/// Whether nobody but this host changes the files of this file system: known for the usual ones, not assumed of others.
pub(crate) fn is_local(fd: impl AsFd) -> rustix::io::Result<bool> {
    Ok(LOCAL.contains(&rustix::fs::fstatfs(fd)?.f_type))
}

impl HostDir {
    pub(crate) fn op_statfs(&self, node: u64) -> Result<StatfsOut> {
        let inode = self.inodes.get(node)?;
        let status = rustix::fs::fstatfs(inode.fd()?).lift()?;
        Ok(StatfsOut {
            blocks: status.f_blocks,
            bfree: status.f_bfree,
            bavail: status.f_bavail,
            files: status.f_files,
            ffree: status.f_ffree,
            bsize: status.f_bsize as u32,
            namelen: status.f_namelen as u32,
            frsize: status.f_frsize as u32,
            ..StatfsOut::default()
        })
    }

    /// syncfs(2) wants an open file, not a place. The guest names the root of a mount or of a submount.
    pub(crate) fn op_syncfs(&self, node: u64) -> Result<()> {
        let inode = self.inodes.get(node)?;
        let fd = if inode.is_directory() {
            open_directory(&inode)?
        } else {
            inode.must_be_regular()?;
            self.proc.reopen(inode.fd()?, OFlags::RDONLY)?
        };
        rustix::io::retry_on_intr(|| rustix::fs::syncfs(&fd)).lift()
    }
}
