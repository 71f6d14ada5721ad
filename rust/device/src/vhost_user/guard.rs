//! Mapped files that somebody makes shorter.
//!
//! A VMM that touches a page of its window behind the end of the mapped file gets SIGBUS, and most end by it. Nobody asks us before a file is
//! truncated (leases, F_SETLEASE, cannot be had on files that we have open for writing ourselves), so the guard hears of it
//! afterwards, by inotify(7), and has zeros mapped in place of what is gone. What the guest itself truncates it does not
//! touch any more; to lay that anew would only take away for a moment what it still has.

use std::collections::HashMap;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::{Arc, Weak};
use std::thread::{self, JoinHandle};

use parking_lot::Mutex;
use rustix::event::{PollFd, PollFlags, poll};
use rustix::fs::fstat;
use rustix::fs::inotify::{self, ReadFlags, WatchFlags};
use rustix::io::Errno;
use virtiofs_dax::MappedFile;
use virtiofs_virtqueue::Event;

/// Called with a file's key when it is shorter than it was, and with `None` when any may be.
pub(super) type Shorter = Box<dyn Fn(Option<u64>) + Send>;

/// The files that are mapped, and a thread that hears of what becomes of them.
#[derive(Debug)]
pub(super) struct Guard {
    watched: Arc<Watched>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Debug)]
struct Watched {
    queue: OwnedFd,
    stop: Event,
    files: Mutex<Files>,
}

#[derive(Debug, Default)]
struct Files {
    by_number: HashMap<i32, Vec<Seen>>,
    /// What the guest itself is making of sizes, by key.
    own: HashMap<u64, u64>,
}

#[derive(Debug)]
struct Seen {
    file: Weak<MappedFile>,
    size: u64,
}

impl Guard {
    pub(super) fn new(shorter: Shorter) -> io::Result<Guard> {
        let queue = inotify::init(inotify::CreateFlags::CLOEXEC | inotify::CreateFlags::NONBLOCK)?;
        let watched = Arc::new(Watched { queue, stop: Event::new()?, files: Mutex::default() });
        let theirs = Arc::clone(&watched);
        let thread = thread::Builder::new().name("virtiofs-guard".into()).spawn(move || theirs.run(&*shorter))?;
        Ok(Guard { watched, thread: Some(thread) })
    }

    /// Before a file is mapped.
    pub(super) fn watch(&self, file: &Arc<MappedFile>) -> io::Result<()> {
        let Watched { queue, files, .. } = &*self.watched;
        let mut files = files.lock();
        let known = files.by_number.values().flatten().any(|seen| seen.file.as_ptr() == Arc::as_ptr(file));
        if known {
            return Ok(());
        }
        files.by_number.retain(|number, seen| {
            seen.retain(|seen| seen.file.strong_count() > 0);
            if seen.is_empty() {
                // Gone already if the inode is.
                let _ = inotify::remove_watch(queue, *number);
            }
            !seen.is_empty()
        });
        let path = format!("/proc/self/fd/{}", file.fd().as_raw_fd());
        let number = inotify::add_watch(queue, path, WatchFlags::MODIFY)?;
        let size = fstat(file.fd())?.st_size as u64;
        files.by_number.entry(number).or_default().push(Seen { file: Arc::downgrade(file), size });
        Ok(())
    }

    /// The guest is about to give the file that is known as `key` a size.
    pub(super) fn own(&self, key: u64, size: u64) {
        let files = &mut *self.watched.files.lock();
        if files.by_number.values().flatten().any(|seen| seen.is(key)) {
            files.own.insert(key, size);
        }
    }

    /// Nothing is mapped any more.
    pub(super) fn clear(&self) {
        let files = &mut *self.watched.files.lock();
        files.own.clear();
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        self.watched.stop.signal();
        // The thread itself may be the last to have the window.
        if let Some(thread) = self.thread.take().filter(|thread| thread.thread().id() != thread::current().id()) {
            // It ends by itself or has panicked, and has nothing to tell.
            let _ = thread.join();
        }
    }
}

impl Seen {
    fn is(&self, key: u64) -> bool {
        self.file.upgrade().is_some_and(|file| file.key() == key)
    }
}

impl Watched {
    fn run(&self, shorter: &dyn Fn(Option<u64>)) {
        let mut buffer = vec![MaybeUninit::uninit(); 64 << 10];
        loop {
            let mut fds = [PollFd::new(&self.queue, PollFlags::IN), PollFd::new(&self.stop, PollFlags::IN)];
            match poll(&mut fds, None) {
                Ok(_) if !fds[1].revents().is_empty() => return,
                Ok(_) | Err(Errno::INTR) => {}
                Err(error) => return tracing::error!(%error, "files that become shorter are not seen any more"),
            }
            let mut reader = inotify::Reader::new(&self.queue, &mut buffer);
            while let Ok(event) = reader.next() {
                if event.events().contains(ReadFlags::QUEUE_OVERFLOW) {
                    shorter(None);
                } else {
                    self.look(event.wd()).into_iter().for_each(|key| shorter(Some(key)));
                }
            }
        }
    }

    /// The keys of a file that somebody else than the guest has made shorter.
    fn look(&self, number: i32) -> Vec<u64> {
        let Files { by_number, own } = &mut *self.files.lock();
        let mut keys = Vec::new();
        for seen in by_number.get_mut(&number).into_iter().flatten() {
            let Some(file) = seen.file.upgrade() else { continue };
            let Ok(status) = fstat(file.fd()) else { continue };
            let (before, now) = (seen.size, status.st_size as u64);
            seen.size = now;
            let by_guest = own.get(&file.key()) == Some(&now);
            if now != before && by_guest {
                own.remove(&file.key());
            }
            if now < before && !by_guest && !keys.contains(&file.key()) {
                keys.push(file.key());
            }
        }
        keys
    }
}
