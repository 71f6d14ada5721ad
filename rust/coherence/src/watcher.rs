//! Changes that programs of the host make past the daemon.

use std::collections::HashMap;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::thread::JoinHandle;

use parking_lot::Mutex;
use rustix::event::{EventfdFlags, PollFd, PollFlags, eventfd, poll};
use rustix::fs::{AtFlags, Mode, OFlags, StatxFlags};
use rustix::io::Errno;

use crate::Table;
use crate::fanotify::{self, ENTRIES, OVERFLOW};

/// Handles whose slots are remembered; then it begins anew.
const REMEMBERED: usize = 1 << 16;

/// A thread that moves the counters of what changes on whole file systems, by fanotify(7). Whatever it cannot tell, it takes for a change
/// of everything. Ends when it is dropped.
///
/// It sees the daemon's own changes too, and moves their counters once more.
#[derive(Debug)]
pub struct Watcher {
    queue: Arc<OwnedFd>,
    mounts: Arc<Mutex<Vec<Mount>>>,
    stop: OwnedFd,
    thread: Option<JoinHandle<()>>,
}

/// A file system that is watched.
#[derive(Debug)]
struct Mount {
    device: u64,
    fd: OwnedFd,
}

impl Watcher {
    /// Watches the file system of the directory `at`.
    ///
    /// # Errors
    /// EPERM without CAP_SYS_ADMIN and CAP_DAC_READ_SEARCH; ENODEV, EXDEV or EOPNOTSUPP for a file system that cannot be watched.
    pub fn start(table: Arc<Table>, at: impl AsFd) -> io::Result<Watcher> {
        let queue = Arc::new(fanotify::init()?);
        let mounts = Arc::new(Mutex::new(Vec::new()));
        let stop = eventfd(0, EventfdFlags::CLOEXEC)?;
        let stopped = rustix::io::fcntl_dupfd_cloexec(&stop, 0)?;
        let mut watcher = Watcher { queue: Arc::clone(&queue), mounts: Arc::clone(&mounts), stop, thread: None };
        watcher.add(at)?;
        let mut eyes = Eyes { table, queue, mounts, slots: HashMap::new() };
        let work = move || eyes.look(&stopped);
        watcher.thread = Some(std::thread::Builder::new().name("virtiofs-watch".into()).spawn(work)?);
        Ok(watcher)
    }

    /// Watches one more file system, that of the directory `at`; does nothing if it is watched already.
    pub fn add(&self, at: impl AsFd) -> io::Result<()> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let fd = rustix::fs::openat(&at, c".", flags, Mode::empty())?;
        let device = device_and_ino(&fd)?.0;
        let mut mounts = self.mounts.lock();
        if mounts.iter().all(|mount| mount.device != device) {
            fanotify::mark(self.queue.as_fd(), fd.as_fd())?;
            // Also proves that handles can be opened: without that no event could be told.
            probe(&fd)?;
            mounts.push(Mount { device, fd });
        }
        Ok(())
    }
}

impl Drop for Watcher {
    fn drop(&mut self) {
        // An eventfd takes a first write always.
        let _ = rustix::io::write(&self.stop, &1u64.to_ne_bytes());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// An impossible handle: ESTALE or EINVAL from who may open handles, EPERM from the others.
fn probe(mount: &OwnedFd) -> io::Result<()> {
    let handle = [8u32.to_ne_bytes(), 1u32.to_ne_bytes(), [0xff; 4], [0xff; 4]].concat();
    match fanotify::open(mount.as_fd(), &handle) {
        Err(Errno::PERM) => Err(Errno::PERM.into()),
        _ => Ok(()),
    }
}

fn device_and_ino(fd: impl AsFd) -> rustix::io::Result<(u64, u64)> {
    let status = rustix::fs::statx(fd, c"", AtFlags::EMPTY_PATH, StatxFlags::INO)?;
    Ok((rustix::fs::makedev(status.stx_dev_major, status.stx_dev_minor), status.stx_ino))
}

/// The thread's part.
struct Eyes {
    table: Arc<Table>,
    queue: Arc<OwnedFd>,
    mounts: Arc<Mutex<Vec<Mount>>>,
    /// An inode's handle means the same slot for as long as anybody can have it.
    slots: HashMap<Box<[u8]>, u64>,
}

impl Eyes {
    fn look(&mut self, stopped: &OwnedFd) {
        let mut buffer = vec![0; 256 << 10];
        loop {
            let mut fds = [PollFd::new(&self.queue, PollFlags::IN), PollFd::new(stopped, PollFlags::IN)];
            match poll(&mut fds, None) {
                Ok(_) if !fds[1].revents().is_empty() => return,
                Ok(_) | Err(Errno::INTR) => {}
                Err(error) => return self.blind(error),
            }
            match rustix::io::read(&self.queue, &mut buffer) {
                Ok(length) => self.see(buffer.get(..length).unwrap_or(&[])),
                Err(Errno::INTR | Errno::AGAIN) => {}
                Err(error) => return self.blind(error),
            }
        }
    }

    fn blind(&self, error: Errno) {
        tracing::error!(%error, "changes on the host are not seen any more: restart the daemon");
        self.table.bump_all();
    }

    fn see(&mut self, bytes: &[u8]) {
        let mut unknown = false;
        let mut last: (&[u8], u64) = (&[], 0);
        for event in fanotify::events(bytes) {
            let Some(handle) = event.handle.filter(|_| event.mask & OVERFLOW == 0) else {
                unknown = true;
                continue;
            };
            if handle == last.0 {
                continue;
            }
            match self.slot(handle) {
                Ok(slot) => {
                    self.table.bump(slot);
                    last = (handle, slot);
                }
                // The inode is gone, and with it whoever could use what was remembered of it: who has it open keeps it alive. But the
                // entries of a directory can be remembered for longer.
                Err(Errno::STALE) if event.mask & ENTRIES == 0 => {}
                Err(_) => unknown = true,
            }
        }
        if unknown {
            self.table.bump_all();
        }
    }

    fn slot(&mut self, handle: &[u8]) -> rustix::io::Result<u64> {
        if let Some(slot) = self.slots.get(handle) {
            return Ok(*slot);
        }
        let mut result = Err(Errno::STALE);
        for mount in &*self.mounts.lock() {
            match fanotify::open(mount.fd.as_fd(), handle).and_then(device_and_ino) {
                Ok((device, ino)) => {
                    // A handle does not say of which file system it is. On another one it may mean something else there: both move.
                    let slot = self.table.slot(device, ino);
                    if let Ok(other) = result {
                        self.table.bump(other);
                    }
                    result = Ok(slot);
                }
                Err(error) if result.is_err() && error != Errno::STALE => result = Err(error),
                Err(_) => {}
            }
        }
        let slot = result?;
        if self.slots.len() >= REMEMBERED {
            self.slots.clear();
        }
        if self.mounts.lock().len() == 1 {
            self.slots.insert(handle.into(), slot);
        }
        Ok(slot)
    }
}

#[cfg(test)]
mod tests {
    use std::fs::{self, File};
    use std::os::fd::AsRawFd;
    use std::os::unix::fs::MetadataExt;
    use std::path::PathBuf;

    use rustix::mount::{FsMountFlags, FsOpenFlags, MountAttrFlags, fsconfig_create, fsmount, fsopen};

    use super::*;
    use crate::View;
    use crate::protocol::Word;
    use crate::waiting::becomes;

    /// A file system that nobody else knows: on others programs come and go whose events would do for what is looked for here.
    fn private() -> io::Result<OwnedFd> {
        let context = fsopen(c"tmpfs", FsOpenFlags::FSOPEN_CLOEXEC)?;
        fsconfig_create(&context)?;
        Ok(fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, MountAttrFlags::empty())?)
    }

    /// The watcher is held up until the kernel has dropped events; what they were about counts as changed.
    #[test]
    fn events_that_were_dropped_make_everything_stale() {
        let table = Table::anonymous(1 << 20).unwrap();
        let started = private().and_then(|root| Ok((Watcher::start(Arc::clone(&table), &root)?, root)));
        let (watcher, root) = match started {
            Ok(started) => started,
            Err(error) => return eprintln!("skipped: no file system can be watched here: {error}"),
        };
        let dir = PathBuf::from(format!("/proc/self/fd/{}", root.as_raw_fd()));
        let view = View::new(table.fd()).unwrap();
        let last = File::create_new(dir.join("last")).unwrap();
        let status = last.metadata().unwrap();
        let slot = table.slot(status.dev(), status.ino());
        let most = fs::read_to_string("/proc/sys/fs/fanotify/max_queued_events").unwrap();
        let most: u64 = most.trim().parse().unwrap();

        // Which file a handle means is looked up with this; what the thread has read before has left the queue. Events about the same
        // inode are one, so each has its own.
        let held = watcher.mounts.lock();
        let epoch = table.map().epoch().peek();
        for number in 0..most + 8192 {
            File::create_new(dir.join(number.to_string())).unwrap();
        }
        let noted = view.note(slot);
        last.set_len(1).unwrap();
        assert!(view.stands(slot, noted), "nobody has said anything yet");
        assert_eq!(table.map().epoch().peek(), epoch);
        drop(held);
        becomes("events were dropped and nothing was said", || table.map().epoch().peek() != epoch);
        assert!(!view.stands(slot, noted));

        // And it goes on.
        let noted = view.note(slot);
        last.set_len(2).unwrap();
        becomes("the watcher is blind", || !view.stands(slot, noted));
    }
}
