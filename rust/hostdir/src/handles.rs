//! Open files and directories by the number that the guest has for them.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};

use parking_lot::Mutex;
use virtiofs_fuse::{BACKING, Result};

use crate::bounds::Counted;
use crate::directory::Position;
use crate::error::BAD_HANDLE;
use crate::inode::Inode;
use crate::shards::{Seed, Shards};

/// An open regular file.
pub(crate) struct FileHandle {
    pub(crate) inode: Arc<Inode>,
    fd: Counted,
    /// The descriptor bypasses the host's page cache.
    pub(crate) direct: bool,
    /// The descriptor reads and has no flag that another open(2) might not want.
    pub(crate) plain: bool,
    /// The descriptor may read.
    pub(crate) reads: bool,
    /// The descriptor may write.
    pub(crate) writes: bool,
    /// A lock was asked for through it.
    pub(crate) locked: AtomicBool,
    /// RWF_NOWAIT is not for this file: reads run inline at once.
    pub(crate) no_nowait: AtomicBool,
    /// For pages that the guest writes back while `fd` bypasses the page cache; opened when first needed.
    pub(crate) buffered: OnceLock<Counted>,
}

impl FileHandle {
    pub(crate) fn new(inode: Arc<Inode>, fd: Counted, flags: i32) -> FileHandle {
        let direct = flags & libc::O_DIRECT != 0;
        let reads = flags & libc::O_ACCMODE != libc::O_WRONLY;
        let writes = flags & libc::O_ACCMODE != libc::O_RDONLY;
        let plain = flags == libc::O_RDONLY;
        FileHandle {
            inode,
            fd,
            direct,
            plain,
            reads,
            writes,
            locked: AtomicBool::new(false),
            no_nowait: AtomicBool::new(false),
            buffered: OnceLock::new(),
        }
    }

    pub(crate) fn fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }

    pub(crate) fn into_parts(self) -> (Arc<Inode>, OwnedFd) {
        (self.inode, self.fd.into_fd())
    }
}

/// An open directory.
pub(crate) struct DirHandle {
    pub(crate) inode: Arc<Inode>,
    fd: Counted,
    /// Where reading stands. READDIRs of one handle take turns, as getdents64(2) does.
    pub(crate) position: Mutex<Position>,
}

impl DirHandle {
    pub(crate) fn new(inode: Arc<Inode>, fd: Counted) -> DirHandle {
        DirHandle { inode, fd, position: Mutex::new(Position::default()) }
    }

    pub(crate) fn fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }

    pub(crate) fn into_fd(self) -> OwnedFd {
        self.fd.into_fd()
    }
}

/// Handles of one kind. Their numbers are never given twice.
pub(crate) struct Handles<H> {
    seed: Seed,
    table: Shards<(u64, Arc<H>)>,
    next: AtomicU64,
}

impl<H> Handles<H> {
    pub(crate) fn new() -> Handles<H> {
        Handles { seed: Seed::new(), table: Shards::new(), next: AtomicU64::new(1) }
    }

    pub(crate) fn insert(&self, handle: H) -> u64 {
        self.insert_marked(handle, 0)
    }

    /// As [`Handles::insert`], with the bits `mark` set in the number.
    pub(crate) fn insert_marked(&self, handle: H, mark: u64) -> u64 {
        let number = self.next.fetch_add(1, Ordering::Relaxed) | mark;
        let hash = self.seed.hash([number]);
        let entry = (number, Arc::new(handle));
        self.table.write(hash).insert_unique(hash, entry, |entry| self.seed.hash([entry.0]));
        number
    }

    /// The handle `number` of a session that goes on.
    pub(crate) fn insert_again(&self, number: u64, handle: H) {
        let hash = self.seed.hash([number]);
        let entry = (number, Arc::new(handle));
        self.table.write(hash).insert_unique(hash, entry, |entry| self.seed.hash([entry.0]));
        self.go_on_from((number & !BACKING).saturating_add(1));
    }

    /// What the next number is made of.
    pub(crate) fn next(&self) -> u64 {
        self.next.load(Ordering::Relaxed)
    }

    /// No number below `next` is given any more.
    pub(crate) fn go_on_from(&self, next: u64) {
        self.next.fetch_max(next, Ordering::Relaxed);
    }

    /// All handles, by their numbers.
    pub(crate) fn all(&self) -> Vec<(u64, Arc<H>)> {
        let mut all = Vec::new();
        self.table.each(|(number, handle)| all.push((*number, Arc::clone(handle))));
        all.sort_by_key(|(number, _)| *number);
        all
    }

    #[inline]
    pub(crate) fn get(&self, number: u64) -> Result<Arc<H>> {
        let hash = self.seed.hash([number]);
        let table = self.table.read(hash);
        table.find(hash, |entry| entry.0 == number).map(|entry| Arc::clone(&entry.1)).ok_or(BAD_HANDLE)
    }

    /// The one that was inserted last among those for which `fits` holds.
    pub(crate) fn newest(&self, fits: impl Fn(&H) -> bool) -> Option<Arc<H>> {
        let mut newest: Option<(u64, Arc<H>)> = None;
        self.table.each(|(number, handle)| {
            if newest.as_ref().is_none_or(|(other, _)| other < number) && fits(handle) {
                newest = Some((*number, Arc::clone(handle)));
            }
        });
        newest.map(|(_, handle)| handle)
    }

    /// Takes a handle out. It closes when its last user is done.
    pub(crate) fn remove(&self, number: u64) -> Result<Arc<H>> {
        let hash = self.seed.hash([number]);
        let mut table = self.table.write(hash);
        let entry = table.find_entry(hash, |entry| entry.0 == number).map_err(|_| BAD_HANDLE)?;
        Ok(entry.remove().0.1)
    }

    pub(crate) fn clear(&self) {
        self.table.clear();
    }

    pub(crate) fn len(&self) -> usize {
        self.table.len()
    }
}
