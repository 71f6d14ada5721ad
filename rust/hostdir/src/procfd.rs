//! /proc/self/fd: the way from an O_PATH descriptor to an open file.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{CWD, Mode, OFlags};
use rustix::path::DecInt;
use virtiofs_fuse::Result;

use crate::error::Lift;
use crate::stat::Status;

const PROC_SUPER_MAGIC: i64 = 0x9fa0;

/// Whether a descriptor is of a file that is about processes.
pub(crate) fn is_procfs(fd: impl AsFd) -> rustix::io::Result<bool> {
    rustix::fs::fstatfs(fd).map(|of| of.f_type == PROC_SUPER_MAGIC)
}

/// The directory of this process's descriptors, opened once. It belongs to the process that opened it: not for use after a fork.
pub(crate) struct ProcFd(OwnedFd);

impl ProcFd {
    /// Opens it and proves that it is what it seems: on procfs, and showing our own descriptors.
    pub(crate) fn open(proof: impl AsFd) -> io::Result<ProcFd> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let unusable = |why: &str| io::Error::other(format!("/proc/self/fd {why}; mount procfs at /proc"));
        let dir = rustix::fs::openat(CWD, c"/proc/self/fd", flags, Mode::empty())
            .map_err(|error| unusable(&format!("cannot be opened ({error})")))?;
        if !is_procfs(&dir)? {
            return Err(unusable("is not procfs"));
        }
        let proc = ProcFd(dir);
        let ours = Status::of(&proof).map(|status| status.key());
        let seen = proc.reopen(&proof, OFlags::PATH).and_then(|fd| Status::of(&fd)).map(|status| status.key());
        match (ours, seen) {
            (Ok(ours), Ok(seen)) if ours == seen => Ok(proc),
            _ => Err(unusable("does not show the descriptors of this process")),
        }
    }

    /// The inode of `fd`, opened anew. It must be of a type that open(2) cannot block on or act upon.
    pub(crate) fn reopen(&self, fd: impl AsFd, flags: OFlags) -> Result<OwnedFd> {
        let path = DecInt::from_fd(&fd);
        rustix::io::retry_on_intr(|| {
            rustix::fs::openat(&self.0, path.as_c_str(), flags | OFlags::CLOEXEC, Mode::empty())
        })
        .lift()
    }

    /// The directory; with [`DecInt::from_fd`] as name, links followed, *at calls reach the inode of any descriptor: a magic link
    /// ends at it even if it is a symlink.
    pub(crate) fn dir(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}
