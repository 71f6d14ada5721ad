//! The nodes of one guest, by id and by host inode, in parts that have a lock each.
//!
//! In which part a new node is goes into its id, so it is in the same by both: to enter it and to take it out is one lock each, and most of what
//! either costs are locks. A session that goes on has ids from another process, whose parts were others: such a node may be in one
//! part by its id, and in another by its inode. No two parts are locked together.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use hashbrown::HashTable;
use parking_lot::{RwLock, RwLockWriteGuard};

use crate::inode::{Inode, Key};
use crate::shards::Seed;

const PARTS: u64 = 32;

/// A part of the table.
struct Part {
    by_id: HashTable<Arc<Inode>>,
    by_key: HashTable<Arc<Inode>>,
    /// Nodes that were made here, and more where a session goes on: what the next number is made of.
    next: u64,
}

/// One lock per cache line, so that two threads in two parts share none.
#[repr(align(64))]
struct Locked(RwLock<Part>);

/// All parts.
pub(crate) struct Parts {
    seed: Seed,
    /// An id is a number, and so many bits below it that are not of interest here.
    shift: u32,
    parts: Box<[Locked]>,
    /// Nodes, by id.
    count: AtomicUsize,
}

/// The part of a key, locked for a node to be entered.
pub(crate) struct Entering<'a> {
    parts: &'a Parts,
    key: Key,
    hash: u64,
    part: RwLockWriteGuard<'a, Part>,
}

impl Parts {
    /// No nodes. Ids have `shift` bits below their numbers.
    pub(crate) fn new(shift: u32) -> Parts {
        let part = || Part { by_id: HashTable::new(), by_key: HashTable::new(), next: 1 };
        let parts = (0..PARTS).map(|_| Locked(RwLock::new(part()))).collect();
        Parts { seed: Seed::new(), shift, parts, count: AtomicUsize::new(0) }
    }

    fn hash_key(&self, key: Key) -> u64 {
        self.seed.hash([key.mount ^ key.device.rotate_left(32), key.ino])
    }

    /// By the hash of a key. hashbrown takes its tags from the topmost bits and its buckets from the lowest; these lie in between.
    fn place(hash: u64) -> u64 {
        (hash >> 40) % PARTS
    }

    #[inline]
    fn part(&self, place: u64) -> &RwLock<Part> {
        &self.parts[(place % PARTS) as usize].0
    }

    #[inline]
    fn of_id(&self, id: u64) -> &RwLock<Part> {
        self.part(id >> self.shift)
    }

    /// Nodes, by id.
    pub(crate) fn count(&self) -> usize {
        self.count.load(Ordering::Relaxed)
    }

    pub(crate) fn by_id(&self, id: u64) -> Option<Arc<Inode>> {
        let hash = self.seed.hash([id]);
        self.of_id(id).read().by_id.find(hash, |inode| inode.id == id).map(Arc::clone)
    }

    pub(crate) fn by_key(&self, key: Key) -> Option<Arc<Inode>> {
        let hash = self.hash_key(key);
        let part = self.part(Parts::place(hash)).read();
        part.by_key.find(hash, |inode| inode.key == key).map(Arc::clone)
    }

    pub(crate) fn enter(&self, key: Key) -> Entering<'_> {
        let hash = self.hash_key(key);
        Entering { parts: self, key, hash, part: self.part(Parts::place(hash)).write() }
    }

    /// Enters a node of a session that goes on. False if there is one of its id or its inode.
    pub(crate) fn enter_again(&self, inode: &Arc<Inode>) -> bool {
        let (by_id, by_key) = (self.seed.hash([inode.id]), self.hash_key(inode.key));
        {
            let mut part = self.part(Parts::place(by_key)).write();
            if part.by_key.find(by_key, |other| other.key == inode.key).is_some() {
                return false;
            }
            part.by_key.insert_unique(by_key, Arc::clone(inode), |inode| self.hash_key(inode.key));
        }
        let mut part = self.of_id(inode.id).write();
        if part.by_id.find(by_id, |other| other.id == inode.id).is_some() {
            drop(part);
            self.take_key(inode);
            return false;
        }
        part.by_id.insert_unique(by_id, Arc::clone(inode), |inode| self.seed.hash([inode.id]));
        // Only this part makes such a number.
        part.next = part.next.max((inode.id >> self.shift) / PARTS + 1);
        self.count.fetch_add(1, Ordering::Relaxed);
        true
    }

    /// Takes the node of an id out if it `ends`, which is asked under the lock.
    pub(crate) fn take(&self, id: u64, ends: impl FnOnce(&Inode) -> bool) -> Option<Arc<Inode>> {
        let (hash, place) = (self.seed.hash([id]), (id >> self.shift) % PARTS);
        let mut part = self.part(place).write();
        let inode = match part.by_id.find_entry(hash, |inode| inode.id == id) {
            Ok(entry) if ends(entry.get()) => entry.remove().0,
            _ => return None,
        };
        let hash = self.hash_key(inode.key);
        if Parts::place(hash) == place {
            part.take_key(&inode, hash);
            drop(part);
        } else {
            drop(part);
            self.take_key(&inode);
        }
        self.count.fetch_sub(1, Ordering::Relaxed);
        Some(inode)
    }

    /// Takes a node out that is found by its inode, or was replaced there.
    pub(crate) fn take_key(&self, inode: &Arc<Inode>) {
        let hash = self.hash_key(inode.key);
        self.part(Parts::place(hash)).write().take_key(inode, hash);
    }

    /// All nodes, each under the lock of its part.
    pub(crate) fn each(&self, mut look: impl FnMut(&Arc<Inode>)) {
        for part in &self.parts {
            part.0.read().by_id.iter().for_each(&mut look);
        }
    }

    /// Takes all nodes out and gives their memory back. What is dropped is dropped outside of the locks. Numbers go on from where they were.
    pub(crate) fn clear(&self) {
        for part in &self.parts {
            let (by_id, by_key) = {
                let mut part = part.0.write();
                (std::mem::take(&mut part.by_id), std::mem::take(&mut part.by_key))
            };
            self.count.fetch_sub(by_id.len(), Ordering::Relaxed);
            drop((by_id, by_key));
        }
    }

    /// No number was given that is as large as this.
    pub(crate) fn next(&self) -> u64 {
        self.parts.iter().map(|part| part.0.read().next).max().unwrap_or(0) * PARTS
    }

    /// No number below `next` is given any more.
    pub(crate) fn go_on_from(&self, next: u64) {
        for part in &self.parts {
            let mut part = part.0.write();
            part.next = part.next.max(next.div_ceil(PARTS));
        }
    }
}

impl Part {
    /// Unless another node has its place by now.
    fn take_key(&mut self, inode: &Arc<Inode>, hash: u64) {
        if let Ok(entry) = self.by_key.find_entry(hash, |other| Arc::ptr_eq(other, inode)) {
            entry.remove();
        }
    }
}

impl Entering<'_> {
    /// The node of the key.
    pub(crate) fn there(&self) -> Option<&Arc<Inode>> {
        self.part.by_key.find(self.hash, |inode| inode.key == self.key)
    }

    /// Makes room for another node of the same key.
    pub(crate) fn take_key(&mut self, inode: &Arc<Inode>) {
        self.part.take_key(inode, self.hash);
    }

    /// Enters the only node of the key, made with a number that no node had before.
    pub(crate) fn put(&mut self, make: impl FnOnce(u64) -> Inode) -> Arc<Inode> {
        let Part { by_id, by_key, next } = &mut *self.part;
        let number = *next * PARTS + Parts::place(self.hash);
        *next += 1;
        let (parts, inode) = (self.parts, Arc::new(make(number)));
        by_key.insert_unique(self.hash, Arc::clone(&inode), |inode| parts.hash_key(inode.key));
        let hash = parts.seed.hash([inode.id]);
        by_id.insert_unique(hash, Arc::clone(&inode), |inode| parts.seed.hash([inode.id]));
        parts.count.fetch_add(1, Ordering::Relaxed);
        inode
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bounds::Bounds;
    use crate::config::Effects;
    use crate::inode::NewInode;
    use crate::pins::{Hold, Pins};
    use crate::stat::Status;

    fn node(id: u64, ino: u64) -> Inode {
        let fd = std::fs::File::open("/").unwrap();
        let effects = Arc::new(Effects::default());
        let new = NewInode::new(Hold::Fd(fd.into()), &Status::none(), effects, false, false);
        Inode::new(id, 0, Key { mount: 1, device: 2, ino }, new, &Arc::new(Pins::new(0, Arc::new(Bounds::default()))))
    }

    #[test]
    fn a_new_node_is_in_one_part_and_no_number_is_given_twice() {
        let parts = Parts::new(4);
        let key = |ino| Key { mount: 1, device: 2, ino };
        let made: Vec<_> =
            (0..1000).map(|ino| parts.enter(key(ino)).put(|number| node(number << 4 | 3, ino))).collect();
        let mut ids: Vec<u64> = made.iter().map(|inode| inode.id).collect();
        ids.sort_unstable();
        ids.dedup();
        assert_eq!((ids.len(), parts.count()), (1000, 1000));
        assert!(ids.iter().all(|id| (32..parts.next()).contains(&(id >> 4))));
        for inode in &made {
            assert_eq!((inode.id >> 4) % PARTS, Parts::place(parts.hash_key(inode.key)));
            assert!(parts.take(inode.id, |_| false).is_none());
            assert!(Arc::ptr_eq(&parts.take(inode.id, |_| true).unwrap(), inode));
            assert!(parts.by_key(inode.key).is_none());
        }
        assert_eq!(parts.count(), 0);
    }

    #[test]
    fn nodes_of_a_session_that_goes_on_may_be_in_two_parts() {
        let parts = Parts::new(0);
        // Whatever the seed of the hash, most of these are.
        for id in 100..200 {
            assert!(parts.enter_again(&Arc::new(node(id, id))));
            assert!(!parts.enter_again(&Arc::new(node(id, id + 1000))), "the id is taken");
            assert!(!parts.enter_again(&Arc::new(node(id + 1000, id))), "the inode is taken");
        }
        assert_eq!(parts.count(), 100);
        parts.go_on_from(170);
        for ino in 5000..5100 {
            let new = parts.enter(Key { mount: 1, device: 2, ino }).put(|number| node(number, ino));
            assert!(new.id >= 170 && parts.by_id(new.id).is_some());
            assert!(!(100..200).contains(&new.id));
        }
        for id in 100..200 {
            let inode = parts.take(id, |_| true).unwrap();
            assert!(parts.by_id(id).is_none() && parts.by_key(inode.key).is_none());
        }
        assert_eq!(parts.count(), 100);
        parts.clear();
        assert_eq!(parts.count(), 0);
    }
}
