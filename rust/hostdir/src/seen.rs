//! A node that nobody has used yet: where its inode was seen, and what proves that it is the same one when it is needed.
//!
//! A guest looks up far more files than it opens. Until a node is used it has no descriptor, only a directory and a name there; the
//! inode found under that name later is the same if its number and its time of birth are. Before this guest takes the name
//! away the node gets its descriptor; where somebody else did, it is ESTALE, and the guest looks the name up anew.

use std::ffi::CStr;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use virtiofs_fuse::Result;

use crate::error::STALE;
use crate::inodes::{Inode, Key};
use crate::lookup::open_path;
use crate::stat::{Born, Status};

/// An entry of a directory, as it was seen.
pub(crate) struct Seen {
    parent: Arc<Inode>,
    name: Box<CStr>,
    /// When the inode was made.
    pub(crate) born: Born,
    /// The guest has asked for attributes once.
    asked: AtomicBool,
}

impl Seen {
    pub(crate) fn new(parent: &Arc<Inode>, name: &CStr, born: Born) -> Seen {
        parent.names_children(true);
        Seen { parent: Arc::clone(parent), name: name.into(), born, asked: AtomicBool::new(false) }
    }

    /// Whether this is the place where the inode was seen.
    pub(crate) fn is_at(&self, parent: &Arc<Inode>, name: &CStr) -> bool {
        Arc::ptr_eq(&self.parent, parent) && *self.name == *name
    }

    /// The directory's node, and the name there.
    pub(crate) fn place(&self) -> (u64, Vec<u8>) {
        (self.parent.id, self.name.to_bytes().to_vec())
    }

    /// Opens the inode if it is still there.
    pub(crate) fn open(&self, key: Key) -> Result<OwnedFd> {
        let fd = open_path(self.parent.fd()?.as_fd(), &self.name).map_err(|_| STALE)?;
        self.prove(&Status::of(&fd)?, key)?;
        Ok(fd)
    }

    /// The inode's attributes if it is still there. `None` the second time: whose attributes are asked for again and again is worth
    /// a descriptor.
    pub(crate) fn status(&self, key: Key) -> Result<Option<Status>> {
        if self.asked.swap(true, Ordering::Relaxed) {
            return Ok(None);
        }
        let status = Status::by_name(self.parent.fd()?, &self.name).map_err(|_| STALE)?;
        self.prove(&status, key)?;
        Ok(Some(status))
    }

    fn prove(&self, status: &Status, key: Key) -> Result<()> {
        if (status.key(), status.born()) == (key, Some(self.born)) { Ok(()) } else { Err(STALE) }
    }
}

impl Drop for Seen {
    fn drop(&mut self) {
        self.parent.names_children(false);
    }
}
