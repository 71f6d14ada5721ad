//! The writer's side: a daemon's table.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering::{Relaxed, SeqCst};

use rustix::fs::{AtFlags, CWD, MemfdFlags, Mode, OFlags, SealFlags};
use rustix::thread::futex;

use crate::Error;
use crate::changes::Changes;
use crate::layout;
use crate::map::Map;
use crate::names::{NameLocks, NamesLock};
use crate::peers::Peers;
use crate::protocol::{self, ROOT, ROOT_SLOT, Word};
use crate::view::checked;

/// The name of the table in a directory that daemons share.
const NAME: &str = "version-table";

/// A table that this process writes. Clones of the `Arc` are the same mapping; all methods may be called from several threads at once.
#[derive(Debug)]
pub struct Table {
    map: Arc<Map>,
    /// A descriptor that can only be read, to hand on.
    readable: OwnedFd,
    path: Option<PathBuf>,
    /// Held open for as long as the process lives: others see it close when it dies.
    writable: OwnedFd,
    names: NameLocks,
    _peers: Option<Peers>,
}

impl Table {
    /// A table of this process alone, and of those to whom it hands [`Table::fd`].
    ///
    /// # Errors
    /// [`Error::Slots`] for an impossible number; what memfd_create(2) and mmap(2) say.
    pub fn anonymous(slots: u64) -> Result<Arc<Table>, Error> {
        possible(slots)?;
        let table = || -> rustix::io::Result<Table> {
            let writable = rustix::fs::memfd_create(NAME, MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING)?;
            let map = fill(&writable, slots)?;
            // Whoever gets a descriptor can neither cut the file short under our feet nor map it to write.
            let seals = SealFlags::SHRINK | SealFlags::GROW | SealFlags::FUTURE_WRITE | SealFlags::SEAL;
            rustix::fs::fcntl_add_seals(&writable, seals)?;
            let readable = read_only(&writable)?;
            Ok(Table { map: Arc::new(map), readable, path: None, writable, names: NameLocks::new(), _peers: None })
        };
        Ok(Arc::new(table().map_err(io::Error::from)?))
    }

    /// The table of all daemons that name `directory`, which should lie in memory (below `/run` or `/dev/shm`) and be writable to their
    /// user alone. Made if there is none, of `slots` slots ([`DEFAULT_SLOTS`](crate::DEFAULT_SLOTS) if `None`).
    ///
    /// A daemon that dies may have changed something without moving its counter. The others notice that it is gone, and take
    /// everything for stale.
    ///
    /// # Errors
    /// [`Error::Size`] if there is one of another number of slots than asked for, [`Error::Foreign`] if the file is damaged, somebody
    /// else's, or open to others; what the host says.
    pub fn shared(directory: &Path, slots: Option<u64>) -> Result<Arc<Table>, Error> {
        possible(slots.unwrap_or(layout::DEFAULT_SLOTS))?;
        let path = directory.join(NAME);
        let named = |error: rustix::io::Errno| explained(&path, error);
        let writable = loop {
            match open(&path) {
                Err(rustix::io::Errno::NOENT) => {
                    publish(directory, &path, slots.unwrap_or(layout::DEFAULT_SLOTS)).map_err(named)?;
                }
                result => break result.map_err(named)?,
            }
        };
        let foreign = |why| Error::Foreign { path: path.clone(), why };
        let status = rustix::fs::fstat(&writable).map_err(named)?;
        if status.st_mode & 0o170_000 != 0o100_000 {
            return Err(foreign("it is no regular file"));
        }
        if status.st_uid != rustix::process::geteuid().as_raw() && !rustix::process::geteuid().is_root() {
            return Err(foreign("it is another user's"));
        }
        if status.st_mode & 0o022 != 0 {
            return Err(foreign("others may write to it"));
        }
        let map = checked(&writable, &path, true)?;
        let found = map.counters().len() as u64;
        if let Some(asked) = slots.filter(|slots| *slots != found) {
            return Err(Error::Size { path, asked, found });
        }
        let readable = read_only(&writable).map_err(named)?;
        let map = Arc::new(map);
        let peers = {
            let map = Arc::clone(&map);
            Peers::watch(&path, move || all_stale(&map))?
        };
        // Whoever died before the watch may have left a change without its bump.
        all_stale(&map);
        Ok(Arc::new(Table { map, readable, path: Some(path), writable, names: NameLocks::new(), _peers: Some(peers) }))
    }

    /// A descriptor of the table that can only be read.
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.readable.as_fd()
    }

    /// The file, if daemons share it.
    pub fn path(&self) -> Option<&Path> {
        self.path.as_deref()
    }

    /// The number of slots, a power of two.
    pub fn slots(&self) -> u64 {
        self.map.counters().len() as u64
    }

    /// Bytes of the table.
    pub fn size(&self) -> usize {
        layout::size(self.slots())
    }

    /// The slot of a host inode, in this table.
    #[inline]
    pub fn slot(&self, device: u64, ino: u64) -> u64 {
        layout::slot_of(device, ino) & (self.slots() - 1)
    }

    /// Says that the inode of this slot is the root of a share, where guests know it as node 1. Before the share answers anything.
    pub fn mark_root(&self, slot: u64) {
        self.map.counter(slot).mark(ROOT);
    }

    /// After a change of an inode or a directory's entries, and before the reply.
    #[inline]
    pub fn bump(&self, slot: u64) {
        protocol::bump(self.map.counter(slot), self.map.counter(ROOT_SLOT));
        wake(&self.map);
    }

    /// After something happened of which nobody can tell what it was.
    pub fn bump_all(&self) {
        all_stale(&self.map);
    }

    /// Before the inodes are looked up that are about to lose names in the directories of these slots; held until they did.
    pub fn names_lock(&self, directories: [u64; 2]) -> NamesLock<'_> {
        self.names.lock(directories, self.path.is_some().then(|| self.writable.as_fd()))
    }

    /// What moves from now on, for somebody on the host who wants to be told.
    pub fn changes(self: &Arc<Table>) -> Changes {
        Changes::new(Arc::clone(self))
    }

    pub(crate) fn map(&self) -> &Map {
        &self.map
    }
}

fn all_stale(map: &Map) {
    map.epoch().advance();
    wake(map);
}

/// Wakes who sleeps, if anybody does. Sequentially consistent, see [`protocol`].
#[inline]
pub(crate) fn wake(map: &Map) {
    if map.sleepers().load(SeqCst) != 0 && map.sleepers().swap(0, SeqCst) != 0 {
        // Fails for a bad address alone.
        let _ = futex::wake(map.sleepers(), futex::Flags::empty(), i32::MAX as u32);
    }
}

fn possible(slots: u64) -> Result<(), Error> {
    let (least, most) = (layout::LEAST_SLOTS, layout::MOST_SLOTS);
    if layout::can_have(slots) { Ok(()) } else { Err(Error::Slots { asked: slots, least, most }) }
}

fn explained(path: &Path, error: rustix::io::Errno) -> io::Error {
    let error = io::Error::from(error);
    io::Error::new(error.kind(), format!("version table {}: {error}", path.display()))
}

/// Gives a new file the size and the header of a table.
fn fill(fd: &OwnedFd, slots: u64) -> rustix::io::Result<Map> {
    rustix::fs::ftruncate(fd, layout::size(slots) as u64)?;
    // On a full tmpfs this fails here and not by a signal at the first bump.
    match rustix::fs::fallocate(fd, rustix::fs::FallocateFlags::empty(), 0, layout::size(slots) as u64) {
        Ok(()) | Err(rustix::io::Errno::OPNOTSUPP) => {}
        Err(error) => return Err(error),
    }
    let map = Map::new(fd, slots, true)?;
    map.shape().store(layout::shape(slots), Relaxed);
    map.magic().store(layout::MAGIC, Relaxed);
    Ok(map)
}

fn read_only(fd: &OwnedFd) -> rustix::io::Result<OwnedFd> {
    let path = format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(fd));
    rustix::fs::openat(CWD, path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())
}

fn open(path: &Path) -> rustix::io::Result<OwnedFd> {
    let flags = OFlags::RDWR | OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::NONBLOCK;
    rustix::fs::openat(CWD, path, flags, Mode::empty())
}

/// Makes the file whole and then gives it its name, so that nobody ever opens half a table. Of several daemons that do so at once one
/// gives the name; the others find it taken, which is as good.
fn publish(directory: &Path, path: &Path, slots: u64) -> rustix::io::Result<()> {
    let mode = Mode::RUSR | Mode::WUSR;
    let fd = rustix::fs::openat(CWD, directory, OFlags::TMPFILE | OFlags::RDWR | OFlags::CLOEXEC, mode)?;
    fill(&fd, slots)?;
    let proc = format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&fd));
    match rustix::fs::linkat(CWD, proc, CWD, path, AtFlags::SYMLINK_FOLLOW) {
        Err(rustix::io::Errno::EXIST) => Ok(()),
        result => result,
    }
}
