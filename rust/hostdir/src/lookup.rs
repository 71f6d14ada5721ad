//! LOOKUP and FORGET: from a name to a node.

use std::ffi::CStr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use rustix::fs::{Mode, OFlags};
use virtiofs_fuse::wire::{AttrOut, EntryOut, bits};
use virtiofs_fuse::{Error, Result};

use crate::HostDir;
use crate::error::{Lift, errno};
use crate::hostdir::component;
use crate::inodes::{Inode, Key, NewInode};
use crate::stat::Status;

impl HostDir {
    pub(crate) fn op_lookup(&self, parent: u64, name: &CStr) -> Result<EntryOut> {
        let dir = self.inodes.get(parent)?;
        let name = component(name)?;
        match self.enter(&dir, name, dir.stat_pays()) {
            Ok((inode, status, known)) => {
                dir.note(known);
                Ok(self.entry(&inode, &status))
            }
            Err(Error::Errno(libc::ENOENT)) => {
                dir.note(true);
                match dir.effects.negative_ttl.is_zero() {
                    true => errno(libc::ENOENT),
                    false => Ok(dir.effects.negative_entry()),
                }
            }
            Err(error) => Err(error),
        }
    }

    /// The node that a name leads to, counted once more, its attributes, and whether it was known before.
    ///
    /// One statx(2) by name if it is known and `stat_first`; open, statx(2), and close if it was known after all; one call
    /// if there is no such name. The name is a single component and is never followed, so whatever somebody puts in its place
    /// meanwhile, the node is an entry of this directory.
    pub(crate) fn enter(&self, dir: &Inode, name: &CStr, stat_first: bool) -> Result<(Arc<Inode>, Status, bool)> {
        if stat_first {
            let status = Status::by_name(dir.fd()?, name)?;
            if let Some(inode) = self.inodes.find_and_count(status.key()) {
                return Ok((inode, status, true));
            }
        }
        let fd = open_path(dir.fd()?.as_fd(), name)?;
        let status = Status::of(&fd)?;
        let (inode, known) = self.enter_fd(dir, name, fd, &status);
        Ok((inode, status, known))
    }

    /// The node of an O_PATH descriptor that was opened as `name` in `dir`. What holds for a new one is decided outside of all locks.
    pub(crate) fn enter_fd(&self, dir: &Inode, name: &CStr, fd: OwnedFd, status: &Status) -> (Arc<Inode>, bool) {
        let key = status.key();
        if let Some(inode) = self.inodes.find_and_count(key) {
            return (inode, true);
        }
        let other_file_system = (key.mount, key.device) != (dir.key.mount, dir.key.device);
        let is_directory = u32::from(status.mode()) & libc::S_IFMT == libc::S_IFDIR;
        let submount = other_file_system && is_directory && self.submounts();
        let foreign = !submount && (dir.foreign || key.device != dir.key.device);
        let effects = self.effects_for(dir, name, status);
        self.inodes.enter(key, NewInode::new(fd, status, effects, submount, foreign))
    }

    /// A node as the guest enters it. The lookup must have been counted.
    pub(crate) fn entry(&self, inode: &Inode, status: &Status) -> EntryOut {
        let mut entry = EntryOut { nodeid: inode.id, attr: status.attr(inode.ino()), ..EntryOut::default() };
        if inode.submount {
            entry.attr.flags |= bits::ATTR_SUBMOUNT;
        }
        inode.effects.stamp_entry(&mut entry);
        entry
    }

    pub(crate) fn attributes(&self, inode: &Inode, status: &Status) -> AttrOut {
        let mut out = AttrOut { attr: status.attr(inode.ino()), ..AttrOut::default() };
        if inode.submount {
            out.attr.flags |= bits::ATTR_SUBMOUNT;
        }
        inode.effects.stamp_attr(&mut out);
        out
    }

    /// Whether a directory entry with this inode number is probably a node already.
    pub(crate) fn likely_known(&self, dir: &Inode, ino: u64) -> bool {
        self.inodes.contains(Key { ino, ..dir.key })
    }
}

/// The descriptor that pins an inode.
pub(crate) fn open_path(dir: BorrowedFd<'_>, name: &CStr) -> Result<OwnedFd> {
    rustix::fs::openat(dir, name, OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty()).lift()
}
