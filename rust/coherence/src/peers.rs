//! Notices that a daemon that shares the table is gone, so that what it may have left undone is made good.
//!
//! Each daemon holds the file open to write for as long as it lives, and the kernel closes it however it dies, after its last system
//! call. inotify(7) tells the others (IN_CLOSE_WRITE): no heartbeat, no wait.

use std::io;
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::thread::JoinHandle;

use rustix::event::{EventfdFlags, PollFd, PollFlags, eventfd, poll};
use rustix::fs::inotify;

/// A thread that looks.
#[derive(Debug)]
pub(crate) struct Peers {
    stop: OwnedFd,
    thread: Option<JoinHandle<()>>,
}

impl Peers {
    /// Calls `gone` whenever a daemon closes the table or dies, from now on.
    pub(crate) fn watch(path: &Path, gone: impl Fn() + Send + 'static) -> io::Result<Peers> {
        let watch = inotify::init(inotify::CreateFlags::CLOEXEC | inotify::CreateFlags::NONBLOCK).map_err(|error| {
            let error = io::Error::from(error);
            let hint = "daemons that share a version table must notice each other: raise fs.inotify.max_user_instances";
            io::Error::new(error.kind(), format!("{error} ({hint})"))
        })?;
        inotify::add_watch(&watch, path, inotify::WatchFlags::CLOSE_WRITE)?;
        let stop = eventfd(0, EventfdFlags::CLOEXEC)?;
        let stopped = rustix::io::fcntl_dupfd_cloexec(&stop, 0)?;
        let work = move || look(&watch, &stopped, gone);
        let thread = std::thread::Builder::new().name("virtiofs-peers".into()).spawn(work)?;
        Ok(Peers { stop, thread: Some(thread) })
    }
}

fn look(watch: &OwnedFd, stopped: &OwnedFd, gone: impl Fn()) {
    let mut buffer = [MaybeUninit::uninit(); 1024];
    loop {
        let mut fds = [PollFd::new(watch, PollFlags::IN), PollFd::new(stopped, PollFlags::IN)];
        match poll(&mut fds, None) {
            Ok(_) if !fds[1].revents().is_empty() => return,
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => {
                tracing::error!(%error, "the version table cannot tell any more which daemons are gone");
                return gone();
            }
        }
        // Whatever the events say, an overflow included: somebody closed it.
        let mut reader = inotify::Reader::new(watch, &mut buffer);
        while reader.next().is_ok() {}
        gone();
    }
}

impl Drop for Peers {
    fn drop(&mut self) {
        // An eventfd takes a first write always.
        let _ = rustix::io::write(&self.stop, &1u64.to_ne_bytes());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}
