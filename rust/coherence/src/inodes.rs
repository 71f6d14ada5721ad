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

/// Entries of the order beyond twice the watches that there are; then those that are gone are cleared away.
const SPARE: usize = 64;

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
                    // Inodes that are removed take their watches along: otherwise a guest that makes files and removes them would fill it.
                    if order.len() > 2 * by_number.len() + SPARE {
                        order.retain(|number| by_number.contains_key(number));
                    }
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

#[cfg(test)]
mod tests {
    use std::fs::{self, File};
    use std::path::Path;

    use super::*;
    use crate::View;
    use crate::protocol::Word;
    use crate::waiting::becomes;

    /// A file that is watched, with its slot and its mark.
    fn watched(watcher: &InodeWatcher, path: &Path, slot: u64) -> (File, Watched) {
        let (file, mark) = (File::create_new(path).unwrap(), Watched::default());
        assert!(watcher.see(|| Some(&file), slot, &mark));
        assert!(mark.load(Ordering::Acquire));
        (file, mark)
    }

    /// The watcher is held up until the kernel has dropped events; what they were about counts as changed.
    #[test]
    fn events_that_were_dropped_make_everything_stale() {
        let dir = tempfile::tempdir().unwrap();
        let table = Table::anonymous(64).unwrap();
        let watcher = InodeWatcher::start(Arc::clone(&table), 100).unwrap();
        let view = View::new(table.fd()).unwrap();
        let files = [7, 8, 9].map(|slot| watched(&watcher, &dir.path().join(slot.to_string()), slot).0);
        files[0].set_len(1).unwrap();
        let epoch = table.map().epoch().peek();

        let most = fs::read_to_string("/proc/sys/fs/inotify/max_queued_events").unwrap();
        let most: u64 = most.trim().parse().unwrap();
        let held = watcher.shared.watches.lock();
        // Equal events that follow each other are one, so two files take turns. What the thread has read already has left the queue.
        for turn in 0..most + 8192 {
            files[(turn % 2) as usize].set_len(turn).unwrap();
        }
        let noted = view.note(9);
        files[2].set_len(9).unwrap();
        assert!(view.stands(9, noted), "nobody has said anything yet");
        assert_eq!(table.map().epoch().peek(), epoch);
        drop(held);
        becomes("events were dropped and nothing was said", || table.map().epoch().peek() != epoch);
        assert!(!view.stands(9, noted));

        // And it goes on.
        let noted = view.note(9);
        files[2].set_len(10).unwrap();
        becomes("the watcher is blind", || !view.stands(9, noted));
    }

    #[test]
    fn an_inode_that_loses_its_watch_counts_as_changed() {
        let dir = tempfile::tempdir().unwrap();
        let table = Table::anonymous(64).unwrap();
        let watcher = InodeWatcher::start(Arc::clone(&table), 2).unwrap();
        let view = View::new(table.fd()).unwrap();
        let first = watched(&watcher, &dir.path().join("1"), 1);
        let second = watched(&watcher, &dir.path().join("2"), 2);
        let noted = [view.note(1), view.note(2)];
        let _third = watched(&watcher, &dir.path().join("3"), 3);
        assert!(!first.1.load(Ordering::Acquire), "the next question would trust it");
        assert!(!view.stands(1, noted[0]));
        assert!(second.1.load(Ordering::Acquire) && view.stands(2, noted[1]));
    }

    /// What is remembered is bounded by the watches that there are, however many there were.
    #[test]
    fn files_that_come_and_go_leave_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let table = Table::anonymous(64).unwrap();
        let watcher = InodeWatcher::start(Arc::clone(&table), 100_000).unwrap();
        let path = dir.path().join("file");
        for _ in 0..4 * SPARE {
            drop(watched(&watcher, &path, 5));
            fs::remove_file(&path).unwrap();
            becomes("the watch outlived its file", || watcher.shared.watches.lock().by_number.is_empty());
        }
        let left = watcher.shared.watches.lock().order.len();
        assert!(left <= SPARE + 2, "{left} numbers of watches that are gone");
    }
}
