//! What those get who decide about single nodes and handles from outside: holds on nodes, their descriptors, files of their own.

use std::ffi::OsString;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStringExt;
use std::path::PathBuf;

use rustix::fs::OFlags;
use rustix::path::DecInt;
use virtiofs_fuse::wire::ROOT_ID;
use virtiofs_fuse::{BACKING, Result};

use crate::HostDir;
use crate::backings::may_write;
use crate::bounds::Counted;
use crate::error::{Lift, STALE};
use crate::handles::FileHandle;

impl HostDir {
    /// Counts a node once more; [`forget`](virtiofs_fuse::FileSystem::forget) takes that back.
    pub fn hold(&self, node: u64) -> Result<()> {
        if node == ROOT_ID || self.inodes.get(node)?.count() { Ok(()) } else { Err(STALE) }
    }

    /// An O_PATH descriptor of the node's inode.
    pub fn descriptor(&self, node: u64) -> Result<OwnedFd> {
        self.proc.reopen(self.inodes.get(node)?.fd()?, OFlags::PATH)
    }

    /// Where the node's inode is on the host at present: one of its names, or what proc(5) says of an inode without one.
    pub fn path(&self, node: u64) -> Result<PathBuf> {
        let inode = self.inodes.get(node)?;
        self.path_of_fd(inode.fd()?)
    }

    pub(crate) fn path_of_fd(&self, fd: impl AsFd) -> Result<PathBuf> {
        let target = rustix::fs::readlinkat(self.proc.dir(), DecInt::from_fd(&fd).as_c_str(), Vec::new()).lift()?;
        Ok(OsString::from_vec(target.into_bytes()).into())
    }

    /// Serves the open file `fd` as a handle of `node`, and answers the handle.
    pub fn adopt(&self, node: u64, fd: OwnedFd) -> Result<u64> {
        Ok(self.files.insert_marked(self.adopted_as(node, fd)?, BACKING))
    }

    /// As [`HostDir::adopt`], of a session that goes on, in which the handle was `fh`.
    pub fn adopt_again(&self, fh: u64, node: u64, fd: OwnedFd) -> Result<()> {
        self.files.insert_again(fh, self.adopted_as(node, fd)?);
        Ok(())
    }

    /// The handles of files that were handed over, each with its node.
    pub fn adopted(&self) -> Vec<(u64, u64)> {
        let files = self.files.all().into_iter().filter(|(number, _)| number & BACKING != 0);
        files.map(|(number, file)| (number, file.inode.id)).collect()
    }

    fn adopted_as(&self, node: u64, fd: OwnedFd) -> Result<FileHandle> {
        let flags = if may_write(&fd)? { libc::O_RDWR } else { libc::O_RDONLY };
        self.bounds.room()?;
        let mut handle = FileHandle::new(self.inodes.get(node)?, Counted::new(fd, &self.bounds), flags);
        // It is not the node's file, so no later open may have its descriptor.
        handle.plain = false;
        Ok(handle)
    }

    /// The handle, if it is of the node's own file. One that stands for its data has attributes of its own, which are not the node's.
    pub(crate) fn own(&self, fh: Option<u64>) -> Result<Option<u64>> {
        match fh {
            Some(fh) if fh & BACKING != 0 => self.files.get(fh).map(|_| None),
            fh => Ok(fh),
        }
    }
}
