//! STATFS and SYNCFS: the host file system that holds a node.

use rustix::fs::OFlags;
use virtiofs_fuse::Result;
use virtiofs_fuse::wire::StatfsOut;

use crate::HostDir;
use crate::error::Lift;
use crate::open::open_directory;

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
