//! What an operation changed, for the version table: counters move after the change and before the reply.
//!
//! The rule for an operation: before it changes an inode, or the entries of a directory, it takes a [`Change`] of it. Nothing of this
//! happens without a table. `tests/versions.rs` holds every operation of the protocol to it.

use std::ffi::CStr;

use virtiofs_coherence::{NamesLock, Table, Watched};
use virtiofs_fuse::{Error, Result};

use crate::HostDir;
use crate::inode::Inode;
use crate::stat::Status;

/// Moves the counter of an inode on when it is dropped: also after an error or a panic, when nobody knows how far the change came.
pub(crate) struct Change<'a> {
    table: Option<&'a Table>,
    slot: u64,
}

impl Drop for Change<'_> {
    #[inline]
    fn drop(&mut self) {
        if let Some(table) = self.table {
            table.bump(self.slot);
        }
    }
}

impl Change<'_> {
    /// Passes a result on; nothing is said to have changed if it is an error that the host gives before it changes anything.
    pub(crate) fn of<T>(&mut self, result: Result<T>) -> Result<T> {
        if refused(&result) {
            self.table = None;
        }
        result
    }
}

fn refused<T>(result: &Result<T>) -> bool {
    matches!(result, Err(Error::Errno(libc::EEXIST | libc::ENOENT | libc::ENOTEMPTY | libc::EROFS) | Error::WouldBlock))
}

/// Names that are about to lead elsewhere or nowhere, and the inodes that they lead to: those change as well (link count, ctime). While
/// this lives, no other UNLINK, RMDIR or RENAME of this table's daemons touches the same directories, so what was found stays
/// true until the change.
pub(crate) struct Renaming<'a>(Option<(&'a Table, Names<'a>)>);

struct Names<'a> {
    directories: [u64; 2],
    /// The slots behind the names; `None` for a name that was absent.
    inodes: [Option<u64>; 2],
    _lock: NamesLock<'a>,
}

impl Renaming<'_> {
    /// Says what changed, by how it went.
    pub(crate) fn of<T>(self, result: Result<T>) -> Result<T> {
        let Some((table, names)) = self.0 else { return result };
        if refused(&result) {
            return result;
        }
        let [first, _] = names.inodes;
        if first.is_none() {
            // Somebody on the host made the name after the look at it. Which inode that was nobody knows any more.
            table.bump_all();
        }
        for slot in names.inodes.into_iter().flatten().chain(names.directories) {
            table.bump(slot);
        }
        result
    }
}

impl HostDir {
    /// Somebody asks about an inode, or a directory's entries, and may remember the answer. Answers whether the inode is watched only since
    /// now.
    #[inline]
    pub(crate) fn asked(&self, inode: &Inode) -> bool {
        self.config.watcher.as_deref().is_some_and(|watcher| {
            watcher.see(|| inode.fd().ok(), inode.slot, inode.watched.get_or_init(Watched::default))
        })
    }

    /// An inode, or a directory's entries, are about to change.
    #[inline]
    pub(crate) fn changing(&self, inode: &Inode) -> Change<'_> {
        Change { table: self.config.versions.as_deref(), slot: inode.slot }
    }

    /// Names that are about to lead elsewhere or nowhere; the second may be absent.
    pub(crate) fn renaming(&self, names: [(&Inode, &CStr); 2]) -> Result<Renaming<'_>> {
        let Some(table) = self.config.versions.as_deref() else { return Ok(Renaming(None)) };
        let directories = names.map(|(dir, _)| dir.slot);
        let _lock = table.names_lock(directories);
        let slot = |(dir, name): (&Inode, &CStr)| match Status::by_name(dir.fd()?, name) {
            Ok(status) => Ok(Some(table.slot(status.key().device, status.key().ino))),
            Err(Error::Errno(libc::ENOENT)) => Ok(None),
            Err(error) => Err(error),
        };
        let inodes = [slot(names[0])?, slot(names[1])?];
        Ok(Renaming(Some((table, Names { directories, inodes, _lock }))))
    }
}
