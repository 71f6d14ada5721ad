//! Changes that programs of the host make to single inodes: for daemons that may not watch whole file systems.

use std::collections::{HashMap, VecDeque};
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;

use parking_lot::Mutex;
use rustix::event::{EventfdFlags, PollFd, PollFlags, eventfd, poll};
use rustix::fs::inotify::{self, ReadFlags, WatchFlags};
use rustix::io::Errno;

use crate::Table;

/// Whether an inode is watched: one for each node, kept by whoever has the node.
pub type Watched = Arc<AtomicBool>;

/// Watches on inodes by inotify(7), at most so many at a time. Who answers a question about an inode has it watched first
/// ([`InodeWatcher::see`]); an inode that loses its watch to another counts as changed, so nothing that is trusted goes unwatched. Ends
/// when it is dropped.
#[derive(Debug)]
pub struct InodeWatcher {
    shared: Arc<Shared>,
    stop: OwnedFd,
    thread: Option<JoinHandle<()>>,
}

#[derive(Debug)]
struct Shared {
    queue: OwnedFd,
    table: Arc<Table>,
    most: usize,
    watches: Mutex<Watches>,
}

#[derive(Debug, Default)]
struct Watches {
    by_number: HashMap<i32, Watch>,
    /// Oldest first; some may be gone already.
    order: VecDeque<i32>,
}

#[derive(Debug)]
struct Watch {
    slot: u64,
    /// Of each share that has a node of the inode.
    marks: Vec<Watched>,
}

impl InodeWatcher {
    /// Nothing is watched yet. `most` watches at a time (`fs.inotify.max_user_watches` bounds them for all of the user's processes).
    pub fn start(table: Arc<Table>, most: usize) -> io::Result<InodeWatcher> {
        let queue = inotify::init(inotify::CreateFlags::CLOEXEC | inotify::CreateFlags::NONBLOCK)?;
        let shared = Arc::new(Shared { queue, table, most: most.max(1), watches: Mutex::default() });
        let stop = eventfd(0, EventfdFlags::CLOEXEC)?;
        let stopped = rustix::io::fcntl_dupfd_cloexec(&stop, 0)?;
        let work = {
            let shared = Arc::clone(&shared);
            move || shared.look(&stopped)
        };
        let thread = std::thread::Builder::new().name("virtiofs-watch".into()).spawn(work)?;
        Ok(InodeWatcher { shared, stop, thread: Some(thread) })
    }

    /// Before the answer to a question about an inode; `fd` gives a descriptor of it (O_PATH will do) if it is not watched. Then what was
    /// noted before the question is stale from now on, and the answer is true: the change of a moment ago may have been missed.
    #[inline]
    pub fn see<F: AsFd>(&self, fd: impl FnOnce() -> Option<F>, slot: u64, watched: &Watched) -> bool {
        if watched.load(Ordering::Acquire) {
            return false;
        }
        match fd() {
            Some(fd) => self.shared.add(fd.as_fd(), slot, watched),
            None => self.shared.table.bump(slot),
        }
        true
    }
}

impl Drop for InodeWatcher {
    fn drop(&mut self) {
        // An eventfd takes a first write always.
        let _ = rustix::io::write(&self.stop, &1u64.to_ne_bytes());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

impl Shared {
    fn add(&self, fd: BorrowedFd<'_>, slot: u64, watched: &Watched) {
        let mask = WatchFlags::MODIFY
            | WatchFlags::ATTRIB
            | WatchFlags::CLOSE_WRITE
            | WatchFlags::CREATE
            | WatchFlags::DELETE
            | WatchFlags::MOVED_FROM
            | WatchFlags::MOVED_TO
            | WatchFlags::MOVE_SELF
            | WatchFlags::DELETE_SELF;
        // Events wait for this lock, so none of a new watch finds it unknown.
        let mut watches = self.watches.lock();
        loop {
            if watches.by_number.len() >= self.most {
                self.drop_oldest(&mut watches);
            }
            match inotify::add_watch(&self.queue, format!("/proc/self/fd/{}", fd.as_raw_fd()), mask) {
                Ok(number) => {
                    let Watches { by_number, order } = &mut *watches;
                    let watch = by_number.entry(number).or_insert_with(|| {
                        order.push_back(number);
                        Watch { slot, marks: Vec::new() }
                    });
                    // Of nodes that were forgotten this is the only hold.
                    watch.marks.retain(|mark| Arc::strong_count(mark) > 1);
                    watch.marks.push(Arc::clone(watched));
                    watched.store(true, Ordering::Release);
                    break;
                }
                // The user's other processes have the rest.
                Err(Errno::NOSPC) if !watches.by_number.is_empty() => self.drop_oldest(&mut watches),
                // Unwatched, so never trusted: below, at each question again.
                Err(_) => break,
            }
        }
        self.table.bump(slot);
    }

    fn drop_oldest(&self, watches: &mut Watches) {
        while let Some(number) = watches.order.pop_front() {
            if watches.by_number.contains_key(&number) {
                // Gone already if the inode is.
                let _ = inotify::remove_watch(&self.queue, number);
                return self.lose(watches, number);
            }
        }
    }

    /// An inode is watched no more.
    fn lose(&self, watches: &mut Watches, number: i32) {
        if let Some(watch) = watches.by_number.remove(&number) {
            watch.marks.iter().for_each(|mark| mark.store(false, Ordering::Release));
            self.table.bump(watch.slot);
        }
    }

    fn look(&self, stopped: &OwnedFd) {
        let mut buffer = vec![MaybeUninit::uninit(); 64 << 10];
        loop {
            let mut fds = [PollFd::new(&self.queue, PollFlags::IN), PollFd::new(stopped, PollFlags::IN)];
            match poll(&mut fds, None) {
                Ok(_) if !fds[1].revents().is_empty() => return,
                Ok(_) | Err(Errno::INTR) => {}
                Err(error) => {
                    tracing::error!(%error, "changes on the host are not seen any more: restart the daemon");
                    return self.table.bump_all();
                }
            }
            let mut reader = inotify::Reader::new(&self.queue, &mut buffer);
            while let Ok(event) = reader.next() {
                let of_entry = ReadFlags::MODIFY | ReadFlags::ATTRIB | ReadFlags::CLOSE_WRITE;
                let happened = event.events();
                let mut watches = self.watches.lock();
                if happened.contains(ReadFlags::QUEUE_OVERFLOW) {
                    self.table.bump_all();
                } else if happened.contains(ReadFlags::IGNORED) {
                    self.lose(&mut watches, event.wd());
                } else if event.file_name().is_some() && happened.intersects(of_entry) {
                    // A file in a watched directory changed, not the directory. If anybody knows the file, it has a watch of its own.
                } else if let Some(watch) = watches.by_number.get(&event.wd()) {
                    self.table.bump(watch.slot);
                }
            }
        }
    }
}
