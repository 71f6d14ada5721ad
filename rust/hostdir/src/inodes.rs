//! Which host inode a node id means.
//!
//! A node is a hold on a host inode ([`Pin`]) with a lookup count. While that is an O_PATH descriptor, a number found again by
//! statx(2) is the same inode; a node that has only a file handle proves it by that, one that was only seen by its time of
//! birth. No path is ever kept. A node costs about 150 bytes here, and what it holds. All costs are flat in the number of nodes.

use std::ffi::CStr;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};

use hashbrown::hash_table::Entry;
use virtiofs_coherence::{Table, Watched};
use virtiofs_fuse::wire::ROOT_ID;
use virtiofs_fuse::{Error, Result};

use crate::bounds::Bounds;
use crate::config::Effects;
use crate::error::{STALE, errno};
use crate::pins::{Hold, Matched, Mount, Pin, PinFd, Pins};
use crate::shards::{Seed, Shards};
use crate::stat::{Born, Status};

/// What makes two host names one node: the mount (two mounts of one file system are two trees), the device (btrfs subvolumes have
/// several in one mount) and the inode number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Key {
    pub(crate) mount: u64,
    pub(crate) device: u64,
    pub(crate) ino: u64,
}

/// A host inode as one guest knows it.
pub(crate) struct Inode {
    pub(crate) id: u64,
    pub(crate) key: Key,
    /// Of the version table; 0 without one.
    pub(crate) slot: u64,
    /// Whether an `InodeWatcher` has it.
    pub(crate) watched: OnceLock<Watched>,
    pub(crate) effects: Arc<Effects>,
    /// Lookups that the guest did not take back. Once 0 it stays 0, and the node is on its way out of the table.
    nlookup: AtomicU64,
    pin: Pin,
    pins: Arc<Pins>,
    /// The type bits of `st_mode`: an inode never changes its type.
    kind: u16,
    /// The guest is told that another file system begins here.
    pub(crate) submount: bool,
    /// The inode is on another device than what the guest sees around it, so its number may clash. See [`Inode::ino`].
    pub(crate) foreign: bool,
    /// Of a directory: nodes that are held by their name in it alone.
    named_children: AtomicU32,
    /// Of a file: whether it can be opened for writing, once that was asked. See `dax.rs`.
    pub(crate) can_write: OnceLock<bool>,
    /// Of a file: the guest was told to map it.
    pub(crate) announced: AtomicBool,
}

impl Inode {
    /// The descriptor of the host inode. ESTALE if the node had to let it go, and the inode is no more.
    pub(crate) fn fd(&self) -> Result<PinFd<'_>> {
        loop {
            if let Some(fd) = self.pin.fd() {
                return Ok(fd);
            }
            if self.pin.open(&self.pins, self.key)? {
                self.pins.enqueue(self.id);
            }
        }
    }

    /// A descriptor of the host inode for somebody else; the node itself need not have one.
    pub(crate) fn borrow(&self) -> Result<OwnedFd> {
        self.pin.borrow(self.key)
    }

    /// The directory in which it was only seen, and its name there.
    pub(crate) fn seen_in(&self) -> Option<(u64, Vec<u8>)> {
        self.pin.seen_in()
    }

    /// Lookups that the guest did not take back.
    pub(crate) fn lookups(&self) -> u64 {
        self.nlookup.load(Ordering::Acquire)
    }

    /// The inode open for reading, left over from an earlier OPEN.
    pub(crate) fn take_spare(&self) -> Option<OwnedFd> {
        self.pin.take_spare(&self.pins)
    }

    pub(crate) fn kind(&self) -> u32 {
        u32::from(self.kind)
    }

    pub(crate) fn is_directory(&self) -> bool {
        self.kind() == libc::S_IFDIR
    }

    /// The inode number that the guest sees.
    pub(crate) fn ino(&self) -> u64 {
        self.ino_of(self.key.ino)
    }

    /// The number that the guest sees for `ino` on this inode's device. Where the guest cannot tell devices apart, the device goes into
    /// the upper bits, which host file systems of a sane size leave alone.
    pub(crate) fn ino_of(&self, ino: u64) -> u64 {
        if !self.foreign {
            return ino;
        }
        let device = self.key.device.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 49;
        ino ^ (device | 1) << 48
    }

    /// Refuses all but regular files. FIFOs would block, devices act, and links lead elsewhere.
    pub(crate) fn must_be_regular(&self) -> Result<()> {
        match self.kind() {
            libc::S_IFREG => Ok(()),
            libc::S_IFDIR => errno(libc::EISDIR),
            libc::S_IFLNK => errno(libc::ELOOP),
            _ => errno(libc::ENXIO),
        }
    }

    pub(crate) fn must_be_directory(&self) -> Result<()> {
        if self.is_directory() { Ok(()) } else { errno(libc::ENOTDIR) }
    }

    pub(crate) fn must_be_writable(&self) -> Result<()> {
        if self.effects.read_only { errno(libc::EROFS) } else { Ok(()) }
    }

    /// Whether nodes are held by their name in this directory alone.
    pub(crate) fn has_named_children(&self) -> bool {
        self.named_children.load(Ordering::Relaxed) > 0
    }

    /// One such node more, or less.
    pub(crate) fn names_children(&self, more: bool) {
        match more {
            true => self.named_children.fetch_add(1, Ordering::Relaxed),
            false => self.named_children.fetch_sub(1, Ordering::Relaxed),
        };
    }

    /// The inode was seen as `name` in `parent` just now.
    pub(crate) fn seen_at(&self, parent: &Arc<Inode>, name: &CStr) {
        self.pin.seen_at(parent, name);
    }

    /// Counts one more lookup, unless the node is on its way out.
    pub(crate) fn count(&self) -> bool {
        let more = |count: u64| (count > 0).then(|| count.saturating_add(1));
        self.nlookup.fetch_update(Ordering::AcqRel, Ordering::Relaxed, more).is_ok()
    }

    /// Takes `nlookup` lookups back; true for the one call that ends the node. A guest that takes back more than it got ends its
    /// node early and harms nobody else.
    fn uncount(&self, nlookup: u64) -> bool {
        let less = |count: u64| (count > 0).then(|| count.saturating_sub(nlookup));
        let before = self.nlookup.fetch_update(Ordering::AcqRel, Ordering::Relaxed, less);
        before.is_ok_and(|before| before <= nlookup)
    }
}

impl AsRef<Pin> for Inode {
    fn as_ref(&self) -> &Pin {
        &self.pin
    }
}

impl Drop for Inode {
    fn drop(&mut self) {
        self.pins.gone(&self.pin);
    }
}

/// What a new node is made of, beside its number.
pub(crate) struct NewInode {
    pub(crate) hold: Hold,
    pub(crate) born: Option<Born>,
    pub(crate) kind: u16,
    pub(crate) submount: bool,
    pub(crate) foreign: bool,
    pub(crate) effects: Arc<Effects>,
}

impl NewInode {
    pub(crate) fn new(hold: Hold, status: &Status, effects: Arc<Effects>, submount: bool, foreign: bool) -> NewInode {
        NewInode { hold, born: status.born(), kind: status.mode(), submount, foreign, effects }
    }
}

/// All nodes of one guest, by node id and by host inode.
pub(crate) struct Inodes {
    seed: Seed,
    pins: Arc<Pins>,
    root: Arc<Inode>,
    by_id: Shards<Arc<Inode>>,
    /// Nodes in `by_id`.
    count: AtomicUsize,
    by_key: Shards<Arc<Inode>>,
    next: AtomicU64,
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
        let root = Arc::new(make(ROOT_ID, slot, status.key(), root, &pins));
        pins.meet(root.key.mount, &root.pin);
        Inodes {
            seed: Seed::new(),
            pins,
            root,
            by_id: Shards::new(),
            count: AtomicUsize::new(0),
            by_key: Shards::new(),
            next: AtomicU64::new(ROOT_ID + 1),
            versions,
        }
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
        if id == ROOT_ID { Ok(Arc::clone(&self.root)) } else { self.by_id(id).ok_or(STALE) }
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

    fn by_id(&self, id: u64) -> Option<Arc<Inode>> {
        let hash = self.seed.hash([id]);
        self.by_id.read(hash).find(hash, |inode| inode.id == id).map(Arc::clone)
    }

    /// Whether nodes of files that have no name any more keep their descriptors.
    pub(crate) fn keep_removed(&self, keep: bool) {
        self.pins.keep_removed.store(keep, Ordering::Relaxed);
    }

    /// Keeps the descriptors of nodes below their limit. Not to be called with a shard locked.
    fn shrink(&self) {
        self.pins.shrink(|id| self.by_id(id).map(|inode| (inode.key.mount, inode)));
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

    /// The node of a host inode, counted once more, if it is in the table.
    pub(crate) fn find_and_count(&self, status: &Status) -> Option<Arc<Inode>> {
        let key = status.key();
        let hash = self.hash_key(key);
        let table = self.by_key.read(hash);
        let proven = |inode: &&Arc<Inode>| inode.pin.is_proven(status.born()) && inode.count();
        table.find(hash, |inode| inode.key == key).filter(proven).map(Arc::clone)
    }

    /// The node of a key, which may be another inode's that had the number before.
    pub(crate) fn find(&self, key: Key) -> Option<Arc<Inode>> {
        let hash = self.hash_key(key);
        self.by_key.read(hash).find(hash, |inode| inode.key == key).map(Arc::clone)
    }

    /// Refuses a node more than the guest may have. Before something is made that will be one.
    pub(crate) fn room(&self) -> Result<()> {
        self.pins.bounds.room_for_node(self.count.load(Ordering::Relaxed))
    }

    /// The node of a host inode, counted once more, made of `new` if there is none.
    pub(crate) fn enter(&self, key: Key, new: NewInode) -> Result<Arc<Inode>> {
        self.room()?;
        if let Hold::Fd(_) = new.hold {
            self.pins.bounds.room()?;
        }
        let (inode, more) = self.enter_locked(key, new);
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
    fn enter_locked(&self, key: Key, mut new: NewInode) -> (Arc<Inode>, bool) {
        let hash = self.hash_key(key);
        let mut table = self.by_key.write(hash);
        match table.entry(hash, |inode| inode.key == key, |inode| self.hash_key(inode.key)) {
            Entry::Occupied(mut entry) => {
                let there = Arc::clone(entry.get());
                if there.count() {
                    match there.pin.matches(new.hold, new.born, &self.pins, key) {
                        Matched::Yes => return (there, false),
                        Matched::YesWithIt => return (there, true),
                        // The host gave the number of a file that is gone to a new one.
                        Matched::No(hold) => new.hold = hold,
                    }
                    if there.uncount(1) {
                        self.remove_id(&there);
                    }
                }
                // Or its last lookup was taken back a moment ago; whoever did that leaves the newcomer alone.
                let inode = self.enter_new(key, new);
                *entry.get_mut() = Arc::clone(&inode);
                (inode, true)
            }
            Entry::Vacant(entry) => {
                let inode = self.enter_new(key, new);
                entry.insert(Arc::clone(&inode));
                (inode, true)
            }
        }
    }

    fn enter_new(&self, key: Key, new: NewInode) -> Arc<Inode> {
        let (id, slot) = self.assign_id(key);
        let inode = Arc::new(make(id, slot, key, new, &self.pins));
        let hash = self.seed.hash([inode.id]);
        self.by_id.write(hash).insert_unique(hash, Arc::clone(&inode), |inode| self.seed.hash([inode.id]));
        self.count.fetch_add(1, Ordering::Relaxed);
        inode
    }

    /// A node id that was never given before, so that every node is of generation 0 for ever, and its slot: the low bits, with a
    /// version table. The one place that decides what a node id looks like.
    fn assign_id(&self, key: Key) -> (u64, u64) {
        let next = self.next.fetch_add(1, Ordering::Relaxed);
        let slot = slot(self.versions.as_deref(), key);
        (next * self.versions.as_ref().map_or(1, |table| table.slots()) + slot, slot)
    }

    /// The node `id` of a session that goes on. ESTALE if it cannot have that id.
    pub(crate) fn enter_again(&self, id: u64, lookups: u64, key: Key, new: NewInode) -> Result<Arc<Inode>> {
        let slot = slot(self.versions.as_deref(), key);
        let slots = self.versions.as_ref().map_or(1, |table| table.slots());
        self.room()?;
        if id <= ROOT_ID || lookups == 0 || id % slots != slot || self.by_id(id).is_some() {
            return Err(STALE);
        }
        let inode = Arc::new(make(id, slot, key, new, &self.pins));
        inode.nlookup.store(lookups, Ordering::Release);
        let (by_key, by_id) = (self.hash_key(key), self.seed.hash([id]));
        match self.by_key.write(by_key).entry(by_key, |inode| inode.key == key, |inode| self.hash_key(inode.key)) {
            Entry::Occupied(_) => return Err(STALE),
            Entry::Vacant(entry) => drop(entry.insert(Arc::clone(&inode))),
        }
        self.by_id.write(by_id).insert_unique(by_id, Arc::clone(&inode), |inode| self.seed.hash([inode.id]));
        self.count.fetch_add(1, Ordering::Relaxed);
        if inode.pin.holds_fd() {
            self.pins.enqueue(id);
            self.shrink();
        }
        self.go_on_from(id / slots + 1);
        Ok(inode)
    }

    /// What the next id is made of.
    pub(crate) fn next(&self) -> u64 {
        self.next.load(Ordering::Relaxed)
    }

    /// Ids are made of no number below `next` any more.
    pub(crate) fn go_on_from(&self, next: u64) {
        self.next.fetch_max(next, Ordering::Relaxed);
    }

    /// The descriptor by which file handles of the root's mount are opened, if they can be.
    pub(crate) fn mount_of_root(&self) -> Option<Mount> {
        self.pins.mount(self.root.key.mount, &self.root.pin)
    }

    /// All nodes but the root.
    pub(crate) fn all(&self) -> Vec<Arc<Inode>> {
        let mut all = Vec::new();
        self.by_id.each(|inode| all.push(Arc::clone(inode)));
        all
    }

    /// Takes `nlookup` lookups of a node back, and answers whether that ended it. Unknown ids are ignored: FORGET has no answer.
    pub(crate) fn forget(&self, id: u64, nlookup: u64) -> bool {
        if id == ROOT_ID {
            return false;
        }
        self.by_id(id).is_some_and(|inode| self.forget_inode(&inode, nlookup))
    }

    /// As [`Inodes::forget`], with the node at hand.
    pub(crate) fn forget_inode(&self, inode: &Arc<Inode>, nlookup: u64) -> bool {
        if !inode.uncount(nlookup) {
            return false;
        }
        let hash = self.hash_key(inode.key);
        if let Ok(entry) = self.by_key.write(hash).find_entry(hash, |entry| Arc::ptr_eq(entry, inode)) {
            entry.remove();
        }
        self.remove_id(inode);
        true
    }

    fn remove_id(&self, inode: &Arc<Inode>) {
        let hash = self.seed.hash([inode.id]);
        if let Ok(entry) = self.by_id.write(hash).find_entry(hash, |entry| Arc::ptr_eq(entry, inode)) {
            entry.remove();
            self.count.fetch_sub(1, Ordering::Relaxed);
        }
    }

    /// Forgets all nodes but the root. Ids go on from where they were.
    pub(crate) fn clear(&self) {
        self.by_key.clear();
        self.count.fetch_sub(self.by_id.clear(), Ordering::Relaxed);
        self.pins.clear();
        self.pins.bounds.forget();
    }

    /// All nodes in the table, the root included.
    pub(crate) fn each(&self, mut look: impl FnMut(&Inode)) {
        look(&self.root);
        self.by_id.each(|inode| look(inode));
    }

    /// Nodes in the table, the root included.
    pub(crate) fn len(&self) -> usize {
        1 + self.by_id.len()
    }

    fn hash_key(&self, key: Key) -> u64 {
        self.seed.hash([key.mount ^ key.device.rotate_left(32), key.ino])
    }
}

fn slot(versions: Option<&Table>, key: Key) -> u64 {
    versions.map_or(0, |table| table.slot(key.device, key.ino))
}

fn make(id: u64, slot: u64, key: Key, new: NewInode, pins: &Arc<Pins>) -> Inode {
    let NewInode { hold, kind, submount, foreign, effects, .. } = new;
    let kind = kind & libc::S_IFMT as u16;
    let (pin, pins) = (Pin::new(hold), Arc::clone(pins));
    pins.made(&pin);
    Inode {
        id,
        key,
        slot,
        watched: OnceLock::new(),
        effects,
        nlookup: AtomicU64::new(1),
        pin,
        pins,
        kind,
        submount,
        foreign,
        named_children: AtomicU32::new(0),
        can_write: OnceLock::new(),
        announced: AtomicBool::new(false),
    }
}
