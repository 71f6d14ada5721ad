//! Which host inode a node id means.
//!
//! All costs are flat in the number of nodes. A node that is on its way out of the table is found no more, or found to have no lookups; a
//! new one may take its place at once.

use std::ffi::CStr;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use virtiofs_coherence::Table;
use virtiofs_fuse::wire::ROOT_ID;
use virtiofs_fuse::{Error, Result};

use crate::bounds::Bounds;
use crate::config::Effects;
use crate::error::STALE;
use crate::inode::{Inode, Key, NewInode};
use crate::parts::{Entering, Parts};
use crate::pins::{Hold, Matched, Mount, Pins};
use crate::seen::Seen;
use crate::stat::{Born, Status};

/// All nodes of one guest, by node id and by host inode.
pub(crate) struct Inodes {
    pins: Arc<Pins>,
    root: Arc<Inode>,
    nodes: Parts,
    versions: Option<Arc<Table>>,
}

impl Inodes {
    /// A table with the root alone. Nodes get `descriptors` of them at most, as far as the host allows; 0 is no limit.
    pub(crate) fn new(
        root: NewInode,
        status: &Status,
        descriptors: usize,
        bounds: Arc<Bounds>,
        versions: Option<Arc<Table>>,
    ) -> Inodes {
        let pins = Arc::new(Pins::new(descriptors, bounds));
        let slot = slot(versions.as_deref(), status.key());
        if let Some(table) = &versions {
            table.mark_root(slot);
        }
        let root = Arc::new(Inode::new(ROOT_ID, slot, status.key(), root, &pins));
        pins.meet(root.key.mount, &root.pin);
        Inodes { pins, root, nodes: Parts::new(slots(versions.as_deref()).trailing_zeros()), versions }
    }

    /// The node of an id; ESTALE if there is none (any more): the guest then looks the name up anew.
    #[inline]
    pub(crate) fn get(&self, id: u64) -> Result<Arc<Inode>> {
        let inode = self.known(id)?;
        self.hold(&inode)?;
        Ok(inode)
    }

    /// The node of an id and the attributes of its inode, by name if it was never used.
    pub(crate) fn status(&self, id: u64, status: &mut Status) -> Result<Arc<Inode>> {
        let inode = self.known(id)?;
        match inode.pin.fd() {
            Some(fd) => status.read_basic(fd)?,
            None if inode.pin.seen_status(inode.key, status, false)? => {}
            None => match self.hold(&inode) {
                Ok(()) => status.read_basic(inode.fd()?)?,
                // No descriptor is left: by name, however often.
                Err(Error::Errno(libc::ENFILE)) if inode.pin.seen_status(inode.key, status, true)? => {}
                Err(error) => return Err(error),
            },
        }
        Ok(inode)
    }

    fn known(&self, id: u64) -> Result<Arc<Inode>> {
        if id == ROOT_ID { Ok(Arc::clone(&self.root)) } else { self.nodes.by_id(id).ok_or(STALE) }
    }

    /// Sees to it that the node has its descriptor.
    fn hold(&self, inode: &Inode) -> Result<()> {
        if !inode.pin.holds_fd() {
            drop(inode.fd()?);
            self.shrink();
        }
        Ok(())
    }

    /// The share's own directory.
    pub(crate) fn root(&self) -> &Inode {
        &self.root
    }

    /// Whether nodes of files that have no name any more keep their descriptors.
    pub(crate) fn keep_removed(&self, keep: bool) {
        self.pins.keep_removed.store(keep, Ordering::Relaxed);
    }

    /// Keeps the descriptors of nodes below their limit. Not to be called with a part of the table locked.
    fn shrink(&self) {
        self.pins.shrink(|id| self.nodes.by_id(id).map(|inode| (inode.key.mount, inode)));
    }

    /// Leaves `fd`, the node's inode open for reading, to the next OPEN. Answers it if it is not needed.
    pub(crate) fn keep_spare(&self, inode: &Inode, fd: OwnedFd) -> Option<OwnedFd> {
        let unneeded = inode.pin.keep_spare(fd, &self.pins);
        if unneeded.is_none() {
            self.shrink();
        }
        unneeded
    }

    /// Descriptors that nodes have, spares included.
    pub(crate) fn descriptors(&self) -> usize {
        self.pins.held()
    }

    /// The node of a host inode, counted once more, if it is in the table. Waits while the node is being opened, and with nothing locked: others
    /// whose nodes are in the same part do not wait along.
    pub(crate) fn find_and_count(&self, status: &Status) -> Option<Arc<Inode>> {
        self.find(status.key()).filter(|inode| inode.pin.is_proven(status.born()) && inode.count())
    }

    /// The node of an inode that was just seen as `name` in `dir`, on the same mount and device, counted once more: the one in the table, or
    /// a new one that is held by this. `None` where the node in the table is proven by more than a time of birth, or is being opened.
    ///
    /// What most lookups and listings end in: one look at the table, under one lock, and no wait.
    pub(crate) fn enter_seen(
        &self,
        dir: &Arc<Inode>,
        name: &CStr,
        born: Born,
        status: &Status,
        effects: &Arc<Effects>,
    ) -> Result<Option<Arc<Inode>>> {
        let mut entering = self.nodes.enter(status.key());
        let Some(there) = entering.there() else {
            self.room()?;
            let hold = Hold::Seen(Seen::new(dir, name, born));
            let new = NewInode::new(hold, status, Arc::clone(effects), false, dir.foreign);
            return Ok(Some(self.put(&mut entering, status.key(), new)));
        };
        let Some(in_place) = there.pin.is_proven_at(dir, name, born).filter(|_| there.count()) else {
            return Ok(None);
        };
        let there = Arc::clone(there);
        drop(entering);
        if !in_place {
            there.seen_at(dir, name);
        }
        Ok(Some(there))
    }

    /// The node of a key, which may be another inode's that had the number before.
    pub(crate) fn find(&self, key: Key) -> Option<Arc<Inode>> {
        self.nodes.by_key(key)
    }

    /// Refuses a node more than the guest may have. Before something is made that will be one.
    pub(crate) fn room(&self) -> Result<()> {
        self.pins.bounds.room_for_node(self.nodes.count())
    }

    /// The node of a host inode, counted once more, made of `new` if there is none.
    pub(crate) fn enter(&self, key: Key, new: NewInode) -> Result<Arc<Inode>> {
        self.room()?;
        if let Hold::Fd(_) = new.hold {
            self.pins.bounds.room()?;
        }
        let (inode, more) = self.enter_or_match(key, new);
        if more && inode.pin.holds_fd() {
            self.pins.enqueue(inode.id);
            if inode.is_directory() {
                self.pins.meet(key.mount, &inode.pin);
            }
            self.shrink();
        }
        Ok(inode)
    }

    /// As [`Inodes::enter`]; tells also whether a descriptor more may be held now.
    ///
    /// A node that is there already is compared with `new` while nothing is locked, since that asks the host. Only who finds the same node there
    /// again puts another in its place, so that an inode never has two.
    fn enter_or_match(&self, key: Key, mut new: NewInode) -> (Arc<Inode>, bool) {
        let mut other: Option<Arc<Inode>> = None;
        loop {
            let mut entering = self.nodes.enter(key);
            if let Some(there) = entering.there().map(Arc::clone) {
                let is_other = other.as_ref().is_some_and(|other| Arc::ptr_eq(other, &there));
                if !is_other && there.count() {
                    drop(entering);
                    match there.pin.matches(new.hold, new.born, &self.pins, key) {
                        Matched::Yes => return (there, false),
                        Matched::YesWithIt => return (there, true),
                        // The host gave the number of a file that is gone to a new one.
                        Matched::No(hold) => new.hold = hold,
                    }
                    self.forget_inode(&there, 1);
                    other = Some(there);
                    continue;
                }
                // Or its last lookup was taken back a moment ago; whoever did that leaves the newcomer alone.
                entering.take_key(&there);
            }
            return (self.put(&mut entering, key, new), true);
        }
    }

    /// A new node, with an id that was never given before, so that every node is of generation 0 for ever. With a version table its slot is in
    /// the low bits. The one place that decides what a node id looks like.
    fn put(&self, entering: &mut Entering<'_>, key: Key, new: NewInode) -> Arc<Inode> {
        let versions = self.versions.as_deref();
        let slot = slot(versions, key);
        entering.put(|number| Inode::new(number * slots(versions) + slot, slot, key, new, &self.pins))
    }

    /// The node `id` of a session that goes on. ESTALE if it cannot have that id.
    pub(crate) fn enter_again(&self, id: u64, lookups: u64, key: Key, new: NewInode) -> Result<Arc<Inode>> {
        let slot = slot(self.versions.as_deref(), key);
        let slots = slots(self.versions.as_deref());
        self.room()?;
        if id <= ROOT_ID || lookups == 0 || id % slots != slot {
            return Err(STALE);
        }
        let inode = Arc::new(Inode::new(id, slot, key, new, &self.pins));
        inode.count_as(lookups);
        if !self.nodes.enter_again(&inode) {
            return Err(STALE);
        }
        if inode.pin.holds_fd() {
            self.pins.enqueue(id);
            self.shrink();
        }
        Ok(inode)
    }

    /// What the next id is made of.
    pub(crate) fn next(&self) -> u64 {
        self.nodes.next()
    }

    /// Ids are made of no number below `next` any more. False if too few would be left: half of all ids, which nobody uses up, are enough.
    pub(crate) fn go_on_from(&self, next: u64) -> bool {
        let enough = next <= u64::MAX / 2 / slots(self.versions.as_deref());
        if enough {
            self.nodes.go_on_from(next);
        }
        enough
    }

    /// The descriptor by which file handles of the root's mount are opened, if they can be.
    pub(crate) fn mount_of_root(&self) -> Option<Mount> {
        self.pins.mount(self.root.key.mount, &self.root.pin)
    }

    /// All nodes but the root.
    pub(crate) fn all(&self) -> Vec<Arc<Inode>> {
        let mut all = Vec::new();
        self.nodes.each(|inode| all.push(Arc::clone(inode)));
        all
    }

    /// Takes `nlookup` lookups of a node back, and answers whether that ended it. Unknown ids are ignored: FORGET has no answer.
    pub(crate) fn forget(&self, id: u64, nlookup: u64) -> bool {
        if id == ROOT_ID {
            return false;
        }
        self.nodes.take(id, |inode| inode.uncount(nlookup)).is_some()
    }

    /// As [`Inodes::forget`], with the node at hand.
    pub(crate) fn forget_inode(&self, inode: &Inode, nlookup: u64) -> bool {
        // After an end of the session its id may be another node's, of the session that goes on here.
        inode.uncount(nlookup) && self.nodes.take(inode.id, |there| std::ptr::eq(there, inode)).is_some()
    }

    /// Forgets all nodes but the root. Ids go on from where they were.
    pub(crate) fn clear(&self) {
        self.nodes.clear();
        self.pins.clear();
        self.pins.bounds.forget();
    }

    /// All nodes in the table, the root included.
    pub(crate) fn each(&self, mut look: impl FnMut(&Inode)) {
        look(&self.root);
        self.nodes.each(|inode| look(inode));
    }

    /// Nodes in the table, the root included.
    pub(crate) fn len(&self) -> usize {
        1 + self.nodes.count()
    }
}

/// Slots of the version table; 1 without one.
fn slots(versions: Option<&Table>) -> u64 {
    versions.map_or(1, Table::slots)
}

fn slot(versions: Option<&Table>, key: Key) -> u64 {
    versions.map_or(0, |table| table.slot(key.device, key.ino))
}

#[cfg(test)]
#[path = "inodes_tests.rs"]
mod tests;
