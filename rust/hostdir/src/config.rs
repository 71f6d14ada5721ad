//! What a share may do, as plain numbers.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use virtiofs_coherence::{InodeWatcher, Table};
use virtiofs_fuse::wire::{AttrOut, EntryOut};

use crate::xattrmap::NameRule;

/// What holds for an inode. Decided once, when the inode is first entered into the table, and kept with it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Effects {
    /// How long the guest may trust that a name leads to this inode.
    pub entry_ttl: Duration,
    /// How long the guest may trust the attributes.
    pub attr_ttl: Duration,
    /// Of a directory: how long the guest may trust that a name is absent. Zero sends ENOENT, which is not cached.
    pub negative_ttl: Duration,
    /// `FOPEN_*` bits answered to OPEN and CREATE of a file. NOFLUSH is left out where a FLUSH could report something: on handles
    /// that may write, and with locks kept on the host.
    pub open_flags: u32,
    /// `FOPEN_*` bits answered to OPENDIR.
    pub dir_open_flags: u32,
    /// Whatever changes this inode or, of a directory, its entries, answers EROFS.
    pub read_only: bool,
    /// Files of at least so many bytes are announced as to be mapped (`FUSE_ATTR_DAX`), where there is a DAX window; `None`: no file is.
    /// A guest that mounts with `dax=always` does not ask.
    pub dax: Option<u64>,
}

impl Effects {
    pub(crate) fn stamp_entry(&self, entry: &mut EntryOut) {
        (entry.entry_valid, entry.entry_valid_nsec) = (self.entry_ttl.as_secs(), self.entry_ttl.subsec_nanos());
        (entry.attr_valid, entry.attr_valid_nsec) = (self.attr_ttl.as_secs(), self.attr_ttl.subsec_nanos());
    }

    pub(crate) fn stamp_attr(&self, attr: &mut AttrOut) {
        (attr.attr_valid, attr.attr_valid_nsec) = (self.attr_ttl.as_secs(), self.attr_ttl.subsec_nanos());
    }

    pub(crate) fn negative_entry(&self) -> EntryOut {
        let (entry_valid, entry_valid_nsec) = (self.negative_ttl.as_secs(), self.negative_ttl.subsec_nanos());
        EntryOut { entry_valid, entry_valid_nsec, ..EntryOut::default() }
    }
}

/// A share: one directory and what its guest may do with it.
#[derive(Clone, Debug, Default)]
pub struct Config {
    /// The directory. Opened once by [`HostDir::new`](crate::HostDir::new); later renames of it change nothing.
    pub root: PathBuf,
    /// What holds for an inode for which nothing else is decided.
    pub effects: Effects,
    /// The whole share refuses changes with EROFS.
    pub read_only: bool,
    /// The guest keeps dirty pages of its own when it negotiated `WRITEBACK_CACHE`: a file opened for write is opened for
    /// read as well, and appends are the guest's business.
    pub writeback: bool,
    /// Serve extended attributes; EOPNOTSUPP otherwise.
    pub xattr: bool,
    /// What the guest's names of extended attributes are called on the host; of several rules that fit, the first holds. Empty: no name
    /// changes.
    pub xattr_names: Vec<NameRule>,
    /// Serve the extended attributes that hold POSIX ACLs, once the guest negotiated `POSIX_ACL`.
    pub posix_acl: bool,
    /// Pass O_DIRECT on to the host; otherwise it ends at the guest's page cache.
    pub allow_direct_io: bool,
    /// Descriptors that the guest's nodes may have; beyond that, those used longest ago are held by file handles, where the host allows
    /// that. 0 is no limit.
    pub node_descriptors: usize,
    /// Tell the guest where another host file system begins, if it negotiated `SUBMOUNTS`.
    pub announce_submounts: bool,
    /// Counters that move with every change, for whoever remembers what guests were told. Node ids carry their slots then.
    pub versions: Option<Arc<Table>>,
    /// Watches the inodes that guests ask about, where nobody watches whole file systems. Of the same table.
    pub watcher: Option<Arc<InodeWatcher>>,
}
