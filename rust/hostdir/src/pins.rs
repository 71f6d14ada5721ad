//! How nodes hold on to their host inodes with a bounded number of descriptors.
//!
//! A node that was used lately has an O_PATH descriptor; one that was only looked up has none yet (`seen.rs`). When there are more of those than allowed, the ones used longest ago are
//! exchanged for file handles (name_to_handle_at(2)), which cost no descriptor; the next use opens the handle again. A handle
//! carries the generation of its inode, so it never leads to another file that got the same number: a file that is gone
//! meanwhile is ESTALE. Where the host allows no handles (they need CAP_DAC_READ_SEARCH, and a file system that has them), nodes
//! keep their descriptors.
//!
//! A file that was read and closed leaves its descriptor with its node as a spare: the next OPEN takes it, which saves open(2) by way
//! of /proc and close(2). Spares count as descriptors of nodes and go first.

use std::collections::{HashMap, VecDeque};
use std::ffi::CStr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use parking_lot::{MappedRwLockReadGuard, Mutex, RwLock, RwLockReadGuard};
use rustix::fs::{Mode, OFlags};
use virtiofs_fuse::Result;

use crate::bounds::Bounds;
use crate::error::Lift;
use crate::inode::{Inode, Key};
use crate::seen::Seen;
use crate::stat::{Born, Status};
use crate::sys::{self, FileHandle};

/// A mount on which handles can be opened: any descriptor of it that is not O_PATH.
pub(crate) type Mount = Arc<OwnedFd>;

/// A node's hold on its host inode.
pub(crate) struct Pin {
    hold: RwLock<Hold>,
    /// Used since the hand of the clock passed by.
    used: AtomicBool,
    /// The inode opened for reading, by nobody at the moment.
    spare: Mutex<Option<OwnedFd>>,
}

/// What a node has of its host inode.
pub(crate) enum Hold {
    Fd(OwnedFd),
    Handle(Box<(Mount, FileHandle)>),
    Seen(Seen),
}

/// The descriptor of a node; while it is borrowed the node keeps it. One thread may borrow it several times.
pub(crate) struct PinFd<'a>(MappedRwLockReadGuard<'a, OwnedFd>);

impl AsFd for PinFd<'_> {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// All pins of one guest.
pub(crate) struct Pins {
    /// Descriptors that nodes may have; 0 for as many as they like.
    limit: usize,
    held: AtomicUsize,
    /// Those of them that are spares.
    spares: AtomicUsize,
    pub(crate) bounds: Arc<Bounds>,
    /// Ids of nodes in the order in which they got their descriptors; some are gone, or have theirs no more.
    clock: Mutex<VecDeque<u64>>,
    /// What has no name any more is not exchanged for a handle, which would let go of it.
    pub(crate) keep_removed: AtomicBool,
    /// By mount id: where handles are opened, or `None` where they cannot be.
    mounts: Mutex<HashMap<u64, Option<Mount>>>,
}

impl Pin {
    pub(crate) fn new(hold: Hold) -> Pin {
        Pin { hold: RwLock::new(hold), used: AtomicBool::new(false), spare: Mutex::default() }
    }

    /// Takes the spare, if there is one.
    pub(crate) fn take_spare(&self, pins: &Pins) -> Option<OwnedFd> {
        let spare = self.spare.lock().take()?;
        pins.spares.fetch_sub(1, Ordering::Relaxed);
        pins.less();
        Some(spare)
    }

    /// Keeps `fd` as the spare, or answers it if there is one already.
    pub(crate) fn keep_spare(&self, fd: OwnedFd, pins: &Pins) -> Option<OwnedFd> {
        let mut spare = self.spare.lock();
        if spare.is_some() || pins.spares.load(Ordering::Relaxed) >= pins.bounds.idle() {
            return Some(fd);
        }
        *spare = Some(fd);
        pins.spares.fetch_add(1, Ordering::Relaxed);
        pins.more();
        None
    }

    /// Whether the node has its descriptor, so that its device and inode number are nobody else's.
    pub(crate) fn holds_fd(&self) -> bool {
        matches!(*self.hold.read_recursive(), Hold::Fd(_))
    }

    /// Whether an inode of the node's device and number is the node's, when only its time of birth is known of it. Waits for whoever opens it.
    pub(crate) fn is_proven(&self, born: Option<Born>) -> bool {
        match &*self.hold.read_recursive() {
            Hold::Fd(_) => true,
            Hold::Seen(seen) => born == Some(seen.born()),
            Hold::Handle(_) => false,
        }
    }

    /// As [`Pin::is_proven`], for an inode that was found as `name` in `parent`; tells also whether it was last seen there, if it
    /// matters. Never waits: while the inode is being opened, nothing is proven.
    pub(crate) fn is_proven_at(&self, parent: &Arc<Inode>, name: &CStr, born: Born) -> Option<bool> {
        match &*self.hold.try_read_recursive()? {
            Hold::Fd(_) => Some(true),
            Hold::Seen(seen) => (born == seen.born()).then(|| seen.is_at(parent, name)),
            Hold::Handle(_) => None,
        }
    }

    /// The inode was seen as `name` in `parent` just now: the place to look for it.
    pub(crate) fn seen_at(&self, parent: &Arc<Inode>, name: &CStr) {
        let moved = |hold: &Hold| matches!(hold, Hold::Seen(seen) if !seen.is_at(parent, name));
        if moved(&self.hold.read_recursive())
            && let Some(mut hold) = self.hold.try_write()
            && let Hold::Seen(seen) = &*hold
        {
            *hold = Hold::Seen(Seen::new(parent, name, seen.born()));
        }
    }

    /// The descriptor, if the node has it.
    pub(crate) fn fd(&self) -> Option<PinFd<'_>> {
        if !self.used.load(Ordering::Relaxed) {
            self.used.store(true, Ordering::Relaxed);
        }
        let fd = RwLockReadGuard::try_map(self.hold.read_recursive(), |hold| match hold {
            Hold::Fd(fd) => Some(fd),
            Hold::Handle(_) | Hold::Seen(_) => None,
        });
        fd.ok().map(PinFd)
    }

    /// The attributes of an inode that was only seen, the first time or `again`; ESTALE if it is not there any more.
    pub(crate) fn seen_status(&self, key: Key, status: &mut Status, again: bool) -> Result<bool> {
        match &*self.hold.read_recursive() {
            Hold::Seen(seen) => seen.status(key, status, again),
            _ => Ok(false),
        }
    }

    /// A descriptor of the node's inode for somebody else, whatever the node itself has.
    pub(crate) fn borrow(&self, key: Key) -> Result<OwnedFd> {
        match &*self.hold.read_recursive() {
            Hold::Fd(fd) => rustix::io::fcntl_dupfd_cloexec(fd, 0).lift(),
            Hold::Handle(handle) => sys::open_by_handle_at(handle.0.as_fd(), &handle.1, libc::O_PATH).lift(),
            Hold::Seen(seen) => seen.open(key),
        }
    }

    /// The directory in which the inode was only seen, and its name there.
    pub(crate) fn seen_in(&self) -> Option<(u64, Vec<u8>)> {
        match &*self.hold.read_recursive() {
            Hold::Seen(seen) => Some(seen.place()),
            _ => None,
        }
    }

    /// Opens the node's inode, whose key this is; true if that took a descriptor. ESTALE if the inode is no more.
    pub(crate) fn open(&self, pins: &Pins, key: Key) -> Result<bool> {
        let mut hold = self.hold.write();
        if !matches!(*hold, Hold::Fd(_)) {
            pins.bounds.room()?;
        }
        let fd = match &*hold {
            Hold::Fd(_) => return Ok(false),
            Hold::Handle(handle) => sys::open_by_handle_at(handle.0.as_fd(), &handle.1, libc::O_PATH).lift()?,
            Hold::Seen(seen) => seen.open(key)?,
        };
        *hold = Hold::Fd(fd);
        pins.more();
        Ok(true)
    }

    /// Whether `new` is of the node's inode, whose key it shares. A node that has no descriptor keeps the one of `new`. Waits for the host, so
    /// not to be called with a part of the table locked.
    pub(crate) fn matches(&self, new: Hold, born: Option<Born>, pins: &Pins, key: Key) -> Matched {
        // Never waits for whoever borrows the descriptor: that may take long, and the node has it then.
        let mut hold = loop {
            if self.holds_fd() {
                return Matched::Yes;
            }
            match self.hold.try_write() {
                Some(hold) => break hold,
                None => std::thread::yield_now(),
            }
        };
        let same = |fd: &OwnedFd| match &*hold {
            Hold::Fd(_) => true,
            Hold::Handle(handle) => sys::name_to_handle_at(fd.as_fd()).is_ok_and(|theirs| theirs == handle.1),
            Hold::Seen(seen) => born == Some(seen.born()),
        };
        let fd = match (new, &*hold) {
            (Hold::Seen(new), Hold::Seen(seen)) if new.born() == seen.born() => return Matched::Yes,
            (Hold::Seen(new), Hold::Handle(_)) => match new.open(key) {
                Ok(fd) => fd,
                Err(_) => return Matched::No(Hold::Seen(new)),
            },
            (Hold::Fd(fd), _) => fd,
            (new, _) => return Matched::No(new),
        };
        if !same(&fd) {
            return Matched::No(Hold::Fd(fd));
        }
        *hold = Hold::Fd(fd);
        pins.more();
        Matched::YesWithIt
    }

    /// Somebody opens the inode, until what is answered is dropped.
    #[cfg(test)]
    pub(crate) fn busy(&self) -> impl Drop + '_ {
        self.hold.write()
    }

    /// Gives the descriptor up for a handle, if that can be done now.
    fn give_up(&self, mount: &Mount, keep_removed: bool) -> bool {
        // Somebody uses it at this moment.
        let Some(mut hold) = self.hold.try_write() else { return false };
        let Hold::Fd(fd) = &*hold else { return false };
        if keep_removed && rustix::fs::fstat(fd).is_ok_and(|status| status.st_nlink == 0) {
            return false;
        }
        let Ok(handle) = sys::name_to_handle_at(fd.as_fd()) else { return false };
        *hold = Hold::Handle(Box::new((Arc::clone(mount), handle)));
        true
    }
}

/// What came of comparing a descriptor with a node.
pub(crate) enum Matched {
    /// It is the node's inode; the node has a descriptor already.
    Yes,
    /// It is the node's inode, and the node's descriptor from now on.
    YesWithIt,
    /// It is another inode that got the number of the node's, which is gone.
    No(Hold),
}

impl Pins {
    pub(crate) fn new(limit: usize, bounds: Arc<Bounds>) -> Pins {
        Pins {
            limit,
            held: AtomicUsize::new(0),
            spares: AtomicUsize::new(0),
            bounds,
            clock: Mutex::default(),
            keep_removed: AtomicBool::new(false),
            mounts: Mutex::default(),
        }
    }

    fn more(&self) {
        self.held.fetch_add(1, Ordering::Relaxed);
        self.bounds.more();
    }

    fn less(&self) {
        self.held.fetch_sub(1, Ordering::Relaxed);
        self.bounds.less();
    }

    /// Descriptors that nodes have, spares included.
    pub(crate) fn held(&self) -> usize {
        self.held.load(Ordering::Relaxed)
    }

    /// A node is made with this.
    pub(crate) fn made(&self, hold: &Hold) {
        if let Hold::Fd(_) = hold {
            self.more();
        }
    }

    /// A node is gone: nobody else has it, so no lock is needed.
    pub(crate) fn gone(&self, pin: &mut Pin) {
        if let Hold::Fd(_) = pin.hold.get_mut() {
            self.less();
        }
        if pin.spare.get_mut().take().is_some() {
            self.spares.fetch_sub(1, Ordering::Relaxed);
            self.less();
        }
    }

    /// Lines `id`, which just got a descriptor, up for giving it back.
    pub(crate) fn enqueue(&self, id: u64) {
        if self.limit > 0 {
            self.clock.lock().push_back(id);
        }
    }

    /// Exchanges descriptors for handles until there are no more of them than allowed. `find` finds a node and the id of its
    /// mount. Nodes in use are passed over, and nodes that were used since the last time get a second chance.
    pub(crate) fn shrink<N: AsRef<Pin>>(&self, find: impl Fn(u64) -> Option<(u64, Arc<N>)>) {
        if self.limit == 0 {
            return;
        }
        self.sweep(&find);
        if self.held() <= self.limit {
            return;
        }
        // Each node at most twice: some cannot give theirs up.
        let mut rounds = 2 * self.clock.lock().len();
        while self.held() > self.limit && rounds > 0 {
            rounds -= 1;
            let Some(id) = self.clock.lock().pop_front() else { return };
            let Some((mount, node)) = find(id) else { continue };
            let pin = (*node).as_ref();
            if pin.used.swap(false, Ordering::Relaxed) {
                self.clock.lock().push_back(id);
                continue;
            }
            drop(pin.take_spare(self));
            let Some(mount) = self.mount(mount, pin) else { continue };
            if pin.give_up(&mount, self.keep_removed.load(Ordering::Relaxed)) {
                self.less();
            } else if pin.holds_fd() {
                self.clock.lock().push_back(id);
            }
        }
    }

    /// Drops ids of nodes that are gone, once they are more than the others. They are looked for while the clock is not locked: who has the table
    /// locked may have to line an id up.
    fn sweep<N: AsRef<Pin>>(&self, find: impl Fn(u64) -> Option<(u64, Arc<N>)>) {
        let mut ids = {
            let mut clock = self.clock.lock();
            if clock.len() <= 2 * self.held() + 1024 {
                return;
            }
            std::mem::take(&mut *clock)
        };
        ids.retain(|id| find(*id).is_some_and(|(_, node)| (*node).as_ref().holds_fd()));
        let mut clock = self.clock.lock();
        let later = std::mem::replace(&mut *clock, ids);
        clock.extend(later);
    }

    /// The descriptor by which handles of a mount are opened. Found out once for each mount, with a node on it: directories can be opened
    /// for reading without side effects, so a mount is asked again until a directory came by.
    pub(crate) fn mount(&self, id: u64, pin: &Pin) -> Option<Mount> {
        let mut mounts = self.mounts.lock();
        if let Some(known) = mounts.get(&id) {
            return known.clone();
        }
        let fd = pin.fd()?;
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let mount = Arc::new(rustix::fs::openat(fd.as_fd(), c".", flags, Mode::empty()).ok()?);
        let opens = sys::name_to_handle_at(fd.as_fd())
            .and_then(|handle| sys::open_by_handle_at(mount.as_fd(), &handle, libc::O_PATH));
        if let Err(rustix::io::Errno::PERM) = &opens {
            tracing::debug!("no CAP_DAC_READ_SEARCH: each file that the guest uses and remembers takes a descriptor");
        } else if let Err(error) = &opens {
            tracing::warn!(%error, "file handles cannot be used on this file system: each file that the guest \
                remembers takes a descriptor; raise the limit of open files");
        }
        let mount = opens.is_ok().then_some(mount);
        mounts.insert(id, mount.clone());
        mount
    }

    /// Makes a mount known by a directory on it, so that files on it can be given up before a directory comes by.
    pub(crate) fn meet(&self, id: u64, directory: &Pin) {
        if self.limit > 0 {
            self.mount(id, directory);
        }
    }

    /// No node but the root is left. What is known of mounts stays known, the root's among them.
    pub(crate) fn clear(&self) {
        self.clock.lock().clear();
    }
}
