//! A host inode as one guest knows it.
//!
//! A node is a hold on a host inode ([`Pin`]) with a lookup count. While that is an O_PATH descriptor, a number found again by
//! statx(2) is the same inode; a node that has only a file handle proves it by that, one that was only seen by its time of
//! birth. No path is ever kept. A node costs about 200 bytes here; one that was only seen has nothing else.

use std::ffi::CStr;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};

use virtiofs_coherence::Watched;
use virtiofs_fuse::Result;

use crate::config::Effects;
use crate::error::errno;
use crate::pins::{Hold, Pin, PinFd, Pins};
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
    pub(crate) pin: Pin,
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
    /// The node of a host inode, looked up once.
    pub(crate) fn new(id: u64, slot: u64, key: Key, new: NewInode, pins: &Arc<Pins>) -> Inode {
        let NewInode { hold, kind, submount, foreign, effects, .. } = new;
        let kind = kind & libc::S_IFMT as u16;
        pins.made(&hold);
        let (pin, pins) = (Pin::new(hold), Arc::clone(pins));
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

    /// The guest of a session that goes on has so many lookups.
    pub(crate) fn count_as(&self, lookups: u64) {
        self.nlookup.store(lookups, Ordering::Release);
    }

    /// Takes `nlookup` lookups back; true for the one call that ends the node. A guest that takes back more than it got ends its
    /// node early and harms nobody else.
    pub(crate) fn uncount(&self, nlookup: u64) -> bool {
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
        self.pins.gone(&mut self.pin);
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
