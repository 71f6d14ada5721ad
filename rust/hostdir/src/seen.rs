//! A node that nobody has used yet: where its inode was seen, and what proves that it is the same one when it is needed.
//!
//! A guest looks up far more files than it opens. Until a node is used it has no descriptor, only a directory and a name there; the
//! inode found under that name later is the same if its number and its time of birth are. Before this guest takes the name
//! away the node gets its descriptor; where somebody else did, it is ESTALE, and the guest looks the name up anew.

use std::ffi::CStr;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use virtiofs_fuse::{Error, Result};

use crate::error::STALE;
use crate::inode::{Inode, Key};
use crate::lookup::open_path;
use crate::stat::{Born, Status};

/// Bytes of a name, its NUL included, that need no allocation of their own: most names.
const SHORT: usize = 24;

/// A name that is kept.
enum Name {
    /// It ends with the first NUL.
    Short([u8; SHORT]),
    Long(Box<CStr>),
}

impl Name {
    fn new(name: &CStr) -> Name {
        let (mut short, bytes) = ([0; SHORT], name.to_bytes());
        match short.get_mut(..bytes.len()) {
            Some(room) if bytes.len() < SHORT => {
                room.copy_from_slice(bytes);
                Name::Short(short)
            }
            _ => Name::Long(name.into()),
        }
    }

    fn as_c_str(&self) -> &CStr {
        match self {
            // It was made with room for the NUL.
            Name::Short(bytes) => CStr::from_bytes_until_nul(bytes).unwrap_or_default(),
            Name::Long(name) => name,
        }
    }
}

/// An entry of a directory, as it was seen.
pub(crate) struct Seen {
    parent: Arc<Inode>,
    name: Name,
    /// When the inode was made: seconds and nanoseconds, side by side with the flag so that all of them take two words.
    seconds: i64,
    nanoseconds: u32,
    /// The guest has asked for attributes once.
    asked: AtomicBool,
}

impl Seen {
    pub(crate) fn new(parent: &Arc<Inode>, name: &CStr, born: Born) -> Seen {
        parent.names_children(true);
        let ((seconds, nanoseconds), asked) = (born, AtomicBool::new(false));
        Seen { parent: Arc::clone(parent), name: Name::new(name), seconds, nanoseconds, asked }
    }

    /// When the inode was made.
    #[inline]
    pub(crate) fn born(&self) -> Born {
        (self.seconds, self.nanoseconds)
    }

    /// Whether this is the place where the inode was seen.
    pub(crate) fn is_at(&self, parent: &Arc<Inode>, name: &CStr) -> bool {
        Arc::ptr_eq(&self.parent, parent) && self.name.as_c_str() == name
    }

    /// The directory's node, and the name there.
    pub(crate) fn place(&self) -> (u64, Vec<u8>) {
        (self.parent.id, self.name.as_c_str().to_bytes().to_vec())
    }

    /// Opens the inode if it is still there.
    pub(crate) fn open(&self, key: Key) -> Result<OwnedFd> {
        let fd = open_path(self.parent.fd()?.as_fd(), self.name.as_c_str()).map_err(gone)?;
        self.prove(&Status::of(&fd)?, key)?;
        Ok(fd)
    }

    /// The inode's attributes if it is still there. False, and none, the second time: whose attributes are asked for again and again is
    /// worth a descriptor, if there is one (otherwise `again`).
    pub(crate) fn status(&self, key: Key, status: &mut Status, again: bool) -> Result<bool> {
        if self.asked.swap(true, Ordering::Relaxed) && !again {
            return Ok(false);
        }
        status.read_name(self.parent.fd()?, self.name.as_c_str()).map_err(gone)?;
        self.prove(status, key)?;
        Ok(true)
    }

    fn prove(&self, status: &Status, key: Key) -> Result<()> {
        if (status.key(), status.born()) == (key, Some(self.born())) { Ok(()) } else { Err(STALE) }
    }
}

/// What it means that a name cannot be opened: mostly that something else has it, or nothing. What this process lacks says nothing of the name.
fn gone(error: Error) -> Error {
    match error {
        Error::Errno(libc::ENFILE | libc::ENOMEM | libc::EIO) => error,
        _ => STALE,
    }
}

impl Drop for Seen {
    fn drop(&mut self) {
        self.parent.names_children(false);
    }
}

#[cfg(test)]
mod tests {
    use std::ffi::CString;

    use super::*;

    #[test]
    fn names_of_all_lengths_are_kept() {
        for length in [1, SHORT - 2, SHORT - 1, SHORT, SHORT + 1, 255] {
            let name = CString::new(vec![b'n'; length]).unwrap();
            assert_eq!(Name::new(&name).as_c_str(), &*name);
        }
    }
}
