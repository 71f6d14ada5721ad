//! Which host inode a node id means.
//!
//! A node is an O_PATH descriptor with a lookup count. The descriptor pins the host inode, so a number found again by statx(2) is
//! the same inode as long as the node lives, and no path is ever kept. A node costs about 130 bytes here, and one
//! descriptor. All costs are flat in the number of nodes.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};

use hashbrown::hash_table::Entry;
use virtiofs_fuse::Result;
use virtiofs_fuse::wire::ROOT_ID;

use crate::config::Effects;
use crate::error::{STALE, errno};
use crate::shards::{Seed, Shards};
use crate::stat::Status;

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
    pub(crate) effects: Arc<Effects>,
    /// Lookups that the guest did not take back. Once 0 it stays 0, and the node is on its way out of the table.
    nlookup: AtomicU64,
    fd: OwnedFd,
    /// The type bits of `st_mode`: an inode never changes its type.
    kind: u16,
    /// The guest is told that another file system begins here.
    pub(crate) submount: bool,
    /// The inode is on another device than what the guest sees around it, so its number may clash. See [`Inode::ino`].
    pub(crate) foreign: bool,
    /// Of a directory: how its last lookups ended. See [`Inode::stat_pays`].
    stat_paid: AtomicU8,
}

impl Inode {
    pub(crate) fn fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
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

    /// Whether to ask for the next name in this directory by statx(2) first. That is all that a known node or an absent name takes;
    /// a new node takes open and statx(2) of the descriptor, and one call more if it was asked for by name before. Two
    /// lookups that went the other way turn the answer.
    pub(crate) fn stat_pays(&self) -> bool {
        self.stat_paid.load(Ordering::Relaxed) >= 2
    }

    /// Notes how a lookup in this directory ended: with a node that was known or an absent name, or with a new node.
    pub(crate) fn note(&self, stat_paid: bool) {
        let seen = self.stat_paid.load(Ordering::Relaxed);
        let next = if stat_paid { (seen + 1).min(3) } else { seen.saturating_sub(1) };
        if next != seen {
            self.stat_paid.store(next, Ordering::Relaxed);
        }
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

/// What a new node is made of, beside its number.
pub(crate) struct NewInode {
    pub(crate) fd: OwnedFd,
    pub(crate) kind: u16,
    pub(crate) submount: bool,
    pub(crate) foreign: bool,
    pub(crate) effects: Arc<Effects>,
}

impl NewInode {
    pub(crate) fn new(fd: OwnedFd, status: &Status, effects: Arc<Effects>, submount: bool, foreign: bool) -> NewInode {
        NewInode { fd, kind: status.mode(), submount, foreign, effects }
    }
}

/// All nodes of one guest, by node id and by host inode.
pub(crate) struct Inodes {
    seed: Seed,
    root: Arc<Inode>,
    by_id: Shards<Arc<Inode>>,
    by_key: Shards<Arc<Inode>>,
    next: AtomicU64,
}

impl Inodes {
    pub(crate) fn new(root: NewInode, status: &Status) -> Inodes {
        let root = Arc::new(make(ROOT_ID, status.key(), root));
        Inodes {
            seed: Seed::new(),
            root,
            by_id: Shards::new(),
            by_key: Shards::new(),
            next: AtomicU64::new(ROOT_ID + 1),
        }
    }

    /// The node of an id; ESTALE if there is none (any more): the guest then looks the name up anew.
    #[inline]
    pub(crate) fn get(&self, id: u64) -> Result<Arc<Inode>> {
        if id == ROOT_ID {
            return Ok(Arc::clone(&self.root));
        }
        let hash = self.seed.hash([id]);
        self.by_id.read(hash).find(hash, |inode| inode.id == id).map(Arc::clone).ok_or(STALE)
    }

    /// The node of a host inode, counted once more, if it is in the table.
    pub(crate) fn find_and_count(&self, key: Key) -> Option<Arc<Inode>> {
        let hash = self.hash_key(key);
        let table = self.by_key.read(hash);
        table.find(hash, |inode| inode.key == key).filter(|inode| inode.count()).map(Arc::clone)
    }

    /// Whether a host inode has a node, for a guess.
    pub(crate) fn contains(&self, key: Key) -> bool {
        let hash = self.hash_key(key);
        self.by_key.read(hash).find(hash, |inode| inode.key == key).is_some()
    }

    /// The node of a host inode, counted once more, made of `new` if there is none. Also tells whether it was there.
    pub(crate) fn enter(&self, key: Key, new: NewInode) -> (Arc<Inode>, bool) {
        let hash = self.hash_key(key);
        let mut table = self.by_key.write(hash);
        match table.entry(hash, |inode| inode.key == key, |inode| self.hash_key(inode.key)) {
            Entry::Occupied(mut entry) => {
                if entry.get().count() {
                    return (Arc::clone(entry.get()), true);
                }
                // Its last lookup was taken back a moment ago; whoever did that leaves the newcomer alone.
                let inode = self.enter_new(key, new);
                *entry.get_mut() = Arc::clone(&inode);
                (inode, false)
            }
            Entry::Vacant(entry) => {
                let inode = self.enter_new(key, new);
                entry.insert(Arc::clone(&inode));
                (inode, false)
            }
        }
    }

    fn enter_new(&self, key: Key, new: NewInode) -> Arc<Inode> {
        let inode = Arc::new(make(self.assign_id(key), key, new));
        let hash = self.seed.hash([inode.id]);
        self.by_id.write(hash).insert_unique(hash, Arc::clone(&inode), |inode| self.seed.hash([inode.id]));
        inode
    }

    /// A node id that was never given before, so that every node is of generation 0 for ever. The one place that decides what a node
    /// id looks like; its low bits may come to carry a slot that follows from the key.
    fn assign_id(&self, _key: Key) -> u64 {
        self.next.fetch_add(1, Ordering::Relaxed)
    }

    /// Takes `nlookup` lookups of a node back. Unknown ids are ignored: FORGET has no answer.
    pub(crate) fn forget(&self, id: u64, nlookup: u64) {
        if id == ROOT_ID {
            return;
        }
        let hash = self.seed.hash([id]);
        let Some(inode) = self.by_id.read(hash).find(hash, |inode| inode.id == id).map(Arc::clone) else { return };
        self.forget_inode(&inode, nlookup);
    }

    /// As [`Inodes::forget`], with the node at hand.
    pub(crate) fn forget_inode(&self, inode: &Arc<Inode>, nlookup: u64) {
        if !inode.uncount(nlookup) {
            return;
        }
        let hash = self.hash_key(inode.key);
        if let Ok(entry) = self.by_key.write(hash).find_entry(hash, |entry| Arc::ptr_eq(entry, inode)) {
            entry.remove();
        }
        let hash = self.seed.hash([inode.id]);
        if let Ok(entry) = self.by_id.write(hash).find_entry(hash, |entry| Arc::ptr_eq(entry, inode)) {
            entry.remove();
        }
    }

    /// Forgets all nodes but the root. Ids go on from where they were.
    pub(crate) fn clear(&self) {
        self.by_key.clear();
        self.by_id.clear();
    }

    /// Nodes in the table, the root included.
    pub(crate) fn len(&self) -> usize {
        1 + self.by_id.len()
    }

    fn hash_key(&self, key: Key) -> u64 {
        self.seed.hash([key.mount ^ key.device.rotate_left(32), key.ino])
    }
}

fn make(id: u64, key: Key, new: NewInode) -> Inode {
    let NewInode { fd, kind, submount, foreign, effects } = new;
    let kind = kind & libc::S_IFMT as u16;
    Inode { id, key, effects, nlookup: AtomicU64::new(1), fd, kind, submount, foreign, stat_paid: AtomicU8::new(0) }
}
