//! Files and directories that are used without an OPEN: of each node one descriptor, opened when it is first needed.
//!
//! A guest that negotiated `NO_OPEN_SUPPORT`, or `NO_OPENDIR_SUPPORT`, and was told ENOSYS once opens by itself from then on, and names handle 0
//! in whatever it asks. So which file is meant is the node's to say, and when it is closed nobody says at all: descriptors stay until
//! the guest forgets the node, or until there are too many. Those used longest ago go first; the next use opens them again. One of a
//! file without a name is never closed for want of room: nobody could open that again once its node had let go as well.

use std::collections::VecDeque;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use parking_lot::Mutex;
use virtiofs_fuse::Result;
use virtiofs_fuse::wire::init;

use crate::HostDir;
use crate::bounds::Counted;
use crate::handles::{DirHandle, FileHandle};
use crate::inode::Inode;
use crate::open::open_directory;
use crate::shards::{Seed, Shards};

/// The handle of whoever opened without a message.
const NOBODY: u64 = 0;

/// Descriptors of one kind that stand for their nodes.
pub(crate) struct Standing<H> {
    limit: usize,
    seed: Seed,
    table: Shards<Stands<H>>,
    /// Nodes in the order in which they got theirs; some have none any more.
    clock: Mutex<VecDeque<u64>>,
}

struct Stands<H> {
    node: u64,
    handle: Arc<H>,
    /// Used since the hand of the clock passed by.
    used: AtomicBool,
}

/// What can stand for a node.
pub(crate) trait Stand {
    fn fd(&self) -> BorrowedFd<'_>;
}

impl Stand for FileHandle {
    fn fd(&self) -> BorrowedFd<'_> {
        self.fd()
    }
}

impl Stand for DirHandle {
    fn fd(&self) -> BorrowedFd<'_> {
        self.fd()
    }
}

impl<H: Stand> Standing<H> {
    /// Room for `limit` descriptors.
    pub(crate) fn new(limit: usize) -> Standing<H> {
        Standing { limit, seed: Seed::new(), table: Shards::new(), clock: Mutex::default() }
    }

    pub(crate) fn get(&self, node: u64) -> Option<Arc<H>> {
        let hash = self.seed.hash([node]);
        let table = self.table.read(hash);
        let found = table.find(hash, |stands| stands.node == node)?;
        if !found.used.load(Ordering::Relaxed) {
            found.used.store(true, Ordering::Relaxed);
        }
        Some(Arc::clone(&found.handle))
    }

    /// Lets `handle` stand for `node`, in place of what did.
    pub(crate) fn put(&self, node: u64, handle: Arc<H>) {
        let hash = self.seed.hash([node]);
        let mut table = self.table.write(hash);
        let old = table
            .find_mut(hash, |stands| stands.node == node)
            .map(|stands| std::mem::replace(&mut stands.handle, Arc::clone(&handle)));
        if old.is_none() {
            let stands = Stands { node, handle, used: AtomicBool::new(true) };
            table.insert_unique(hash, stands, |stands| self.seed.hash([stands.node]));
            self.clock.lock().push_back(node);
        }
        drop(table);
        // Closed by its last user.
        drop(old);
        self.shrink();
    }

    pub(crate) fn remove(&self, node: u64) {
        let hash = self.seed.hash([node]);
        let gone = match self.table.write(hash).find_entry(hash, |stands| stands.node == node) {
            Ok(entry) => entry.remove().0,
            Err(_) => return,
        };
        drop(gone);
    }

    pub(crate) fn clear(&self) {
        self.clock.lock().clear();
        self.table.clear();
    }

    pub(crate) fn len(&self) -> usize {
        self.table.len()
    }

    /// Closes what was used longest ago until there are no more than allowed, as far as that can be.
    fn shrink(&self) {
        // Each node at most twice: some cannot give theirs up.
        let mut rounds = 2 * self.clock.lock().len();
        while rounds > 0 {
            let mut clock = self.clock.lock();
            if clock.len() <= self.limit {
                return;
            }
            rounds -= 1;
            let Some(node) = clock.pop_front() else { return };
            drop(clock);
            if self.stays(node) {
                self.clock.lock().push_back(node);
            } else {
                self.remove(node);
            }
        }
    }

    /// Whether the node's descriptor was used since it was last looked at, or is the last way to its file.
    fn stays(&self, node: u64) -> bool {
        let hash = self.seed.hash([node]);
        let table = self.table.read(hash);
        let Some(found) = table.find(hash, |stands| stands.node == node) else { return false };
        found.used.swap(false, Ordering::Relaxed)
            || rustix::fs::fstat(found.handle.fd()).is_ok_and(|status| status.st_nlink == 0)
    }
}

impl HostDir {
    /// Files are used without an OPEN in this session.
    pub(crate) fn no_open(&self) -> bool {
        self.negotiated(init::NO_OPEN_SUPPORT)
    }

    /// The same for directories.
    pub(crate) fn no_opendir(&self) -> bool {
        self.negotiated(init::NO_OPENDIR_SUPPORT)
    }

    /// The open file that a request names, for reading and for whatever any descriptor does.
    #[inline]
    pub(crate) fn file(&self, node: u64, fh: u64) -> Result<Arc<FileHandle>> {
        if fh == NOBODY && self.no_open() { self.standing_file(node, false) } else { self.files.get(fh) }
    }

    /// The same for writing.
    #[inline]
    pub(crate) fn file_to_write(&self, node: u64, fh: u64) -> Result<Arc<FileHandle>> {
        if fh == NOBODY && self.no_open() { self.standing_file(node, true) } else { self.files.get(fh) }
    }

    /// The open file that a request names if it was opened by a message, or the one that happens to stand for its node.
    pub(crate) fn file_at_hand(&self, node: u64, fh: u64) -> Result<Option<Arc<FileHandle>>> {
        if fh == NOBODY && self.no_open() { Ok(self.standing_files.get(node)) } else { self.files.get(fh).map(Some) }
    }

    pub(crate) fn directory(&self, node: u64, fh: u64) -> Result<Arc<DirHandle>> {
        if fh != NOBODY || !self.no_opendir() {
            return self.directories.get(fh);
        }
        if let Some(directory) = self.standing_directories.get(node) {
            return Ok(directory);
        }
        let inode = self.inodes.get(node)?;
        inode.must_be_directory()?;
        self.bounds.room()?;
        let fd = Counted::new(open_directory(&inode)?, &self.bounds);
        let directory = Arc::new(DirHandle::new(inode, fd));
        self.standing_directories.put(node, Arc::clone(&directory));
        Ok(directory)
    }

    fn standing_file(&self, node: u64, writes: bool) -> Result<Arc<FileHandle>> {
        if let Some(file) = self.standing_files.get(node)
            && if writes { file.writes } else { file.reads }
        {
            return Ok(file);
        }
        let inode = self.inodes.get(node)?;
        inode.must_be_regular()?;
        // For reading too, since whoever reads next gets the same one; unless the host lets us write alone.
        let (flags, least) = if writes { (libc::O_RDWR, libc::O_WRONLY) } else { (libc::O_RDONLY, libc::O_RDONLY) };
        if writes {
            inode.must_be_writable()?;
        }
        self.bounds.room()?;
        let (fd, flags) = self.open_inode(&inode, flags, least as u32)?;
        Ok(self.stand(inode, fd, flags))
    }

    /// Lets a file that was just opened stand for its node.
    pub(crate) fn stand(&self, inode: Arc<Inode>, fd: OwnedFd, flags: i32) -> Arc<FileHandle> {
        let node = inode.id;
        let file = Arc::new(FileHandle::new(inode, Counted::new(fd, &self.bounds), flags));
        // One that is open for appending alone writes wherever its end is: good for nobody else.
        if flags & libc::O_APPEND == 0 {
            self.standing_files.put(node, Arc::clone(&file));
        }
        file
    }

    /// The node is gone, and what stood for it.
    pub(crate) fn forget_standing(&self, node: u64) {
        if self.no_open() {
            self.standing_files.remove(node);
        }
        if self.no_opendir() {
            self.standing_directories.remove(node);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::os::fd::AsFd;

    use super::*;

    impl Stand for OwnedFd {
        fn fd(&self) -> BorrowedFd<'_> {
            self.as_fd()
        }
    }

    #[test]
    fn those_used_longest_ago_go_first_and_files_without_a_name_stay() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("named"), "").unwrap();
        let named = || Arc::new(OwnedFd::from(File::open(dir.path().join("named")).unwrap()));
        let standing = Standing::new(3);
        standing.put(1, Arc::new(tempfile::tempfile_in(dir.path()).unwrap().into()));
        for node in 2..=40 {
            standing.put(node, named());
            assert!(standing.len() <= 4, "{node}");
        }
        assert!(standing.get(1).is_some(), "the one without a name");
        assert!(standing.get(40).is_some() && standing.get(2).is_none());
        standing.put(40, named());
        standing.remove(40);
        assert!(standing.get(40).is_none());
        standing.clear();
        assert_eq!(standing.len(), 0);
    }
}
