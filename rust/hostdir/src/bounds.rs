//! What one guest may hold of the host.
//!
//! Whatever a guest looks up, opens or locks costs descriptors and memory of a process that serves others too. Past a bound the answer is
//! ENFILE, one line in the log says which it was, and what the guest gives back it may have again.

use std::ops::Deref;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use virtiofs_fuse::Result;

use crate::error::errno;

/// The bounds of one guest, and how far it is from them. 0 is no bound.
#[derive(Debug, Default)]
pub struct Bounds {
    descriptors: usize,
    nodes: usize,
    /// Descriptors of nodes, of open files and directories, and of locks.
    held: AtomicUsize,
    told: [AtomicBool; 2],
}

/// A descriptor that counts for a guest for as long as it is open.
#[derive(Debug)]
pub(crate) struct Counted {
    fd: OwnedFd,
    _count: Count,
}

#[derive(Debug)]
struct Count(Arc<Bounds>);

impl Drop for Count {
    fn drop(&mut self) {
        self.0.less();
    }
}

impl Bounds {
    /// So many descriptors, or other things behind handles, and so many nodes.
    pub fn new(descriptors: usize, nodes: usize) -> Bounds {
        Bounds { descriptors, nodes, ..Bounds::default() }
    }

    /// Descriptors that the guest may leave open without using them: a part of what it may have, so that it can never be all.
    pub(crate) fn idle(&self) -> usize {
        if self.descriptors == 0 { usize::MAX } else { self.descriptors / 4 }
    }

    /// Refuses a descriptor more than the guest may have.
    pub(crate) fn room(&self) -> Result<()> {
        self.room_beside(self.held())
    }

    /// As `room`, where somebody else counts, and the guest has `held`.
    pub fn room_beside(&self, held: usize) -> Result<()> {
        if self.descriptors == 0 || held < self.descriptors {
            return Ok(());
        }
        if !self.told[0].swap(true, Ordering::Relaxed) {
            tracing::warn!(
                descriptors = self.descriptors,
                "the guest holds as many files as it may: it gets ENFILE for more until it lets go of some"
            );
        }
        errno(libc::ENFILE)
    }

    /// Refuses a node more than the guest may have, which has `nodes`.
    pub fn room_for_node(&self, nodes: usize) -> Result<()> {
        if self.nodes == 0 || nodes < self.nodes {
            return Ok(());
        }
        if !self.told[1].swap(true, Ordering::Relaxed) {
            tracing::warn!(
                nodes = self.nodes,
                "the guest remembers as many files as it may: it gets ENFILE for more until it forgets some"
            );
        }
        errno(libc::ENFILE)
    }

    /// A descriptor was opened.
    pub(crate) fn more(&self) {
        self.held.fetch_add(1, Ordering::Relaxed);
    }

    /// One was closed.
    pub(crate) fn less(&self) {
        self.held.fetch_sub(1, Ordering::Relaxed);
    }

    /// Descriptors that the guest has.
    pub(crate) fn held(&self) -> usize {
        self.held.load(Ordering::Relaxed)
    }

    /// The next guest is told of anew.
    pub fn forget(&self) {
        self.told.iter().for_each(|told| told.store(false, Ordering::Relaxed));
    }
}

impl Counted {
    pub(crate) fn new(fd: OwnedFd, bounds: &Arc<Bounds>) -> Counted {
        bounds.more();
        Counted { fd, _count: Count(Arc::clone(bounds)) }
    }

    /// The descriptor, which counts no more.
    pub(crate) fn into_fd(self) -> OwnedFd {
        self.fd
    }
}

impl Deref for Counted {
    type Target = OwnedFd;

    fn deref(&self) -> &OwnedFd {
        &self.fd
    }
}
