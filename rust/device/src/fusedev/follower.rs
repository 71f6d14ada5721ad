//! The version table, for a kernel that cannot look at it: whatever moves there is told as an invalidation.
//!
//! Names cannot be told one by one: the table says which directory changed, and nobody knows what the kernel remembers of it. So all names
//! are asked for anew when they are used next (INC_EPOCH, Linux 6.16), while attributes, data and listings go node by node. An answer
//! that was given before the change and arrives after the news is not remembered: `fuse_change_attributes` and `fuse_lookup` of Linux
//! compare counters of their own (see also [`Notifier::moved`]).

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;
use std::{fmt, io};

use virtiofs_coherence::{Changed, Changes};
use virtiofs_fuse::Server;

use super::notifier::{Backlog, Notifier};

/// What moves within this time is told at once, which bounds the work of a busy directory.
const PAUSE: Duration = Duration::from_millis(1);
/// Only bounds the wait for a wake-up that nobody sends.
const NAP: Duration = Duration::from_secs(10);

/// The thread that tells. Ends when it is dropped.
pub(crate) struct Follower {
    ends: Arc<AtomicBool>,
    wake: Box<dyn Fn() + Send + Sync>,
    thread: Option<JoinHandle<()>>,
}

impl Follower {
    /// Follows what moves since `changes` were subscribed to, which is before the kernel was told anything to remember.
    pub(crate) fn start(changes: Changes, server: Arc<Server>, notifier: Arc<Notifier>) -> io::Result<Follower> {
        let ends = Arc::new(AtomicBool::new(false));
        let wake = Box::new(changes.waker());
        let work = {
            let ends = Arc::clone(&ends);
            move || follow(changes, &server, &notifier, &ends)
        };
        let thread = thread::Builder::new().name("virtiofs-follow".into()).spawn(work)?;
        Ok(Follower { ends, wake, thread: Some(thread) })
    }
}

impl fmt::Debug for Follower {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Follower").finish_non_exhaustive()
    }
}

impl Drop for Follower {
    fn drop(&mut self) {
        self.ends.store(true, Ordering::Release);
        if let Some(thread) = self.thread.take() {
            // A wake-up that comes before the thread sleeps is lost.
            while !thread.is_finished() {
                (self.wake)();
                thread::sleep(PAUSE);
            }
            let _ = thread.join();
        }
    }
}

fn follow(mut changes: Changes, server: &Server, notifier: &Notifier, ends: &AtomicBool) {
    while !ends.load(Ordering::Acquire) {
        let Some(changed) = changes.wait(NAP) else { continue };
        let mut nodes = Vec::new();
        let mut names = matches!(changed, Changed::All);
        server.known(&mut |node, directory| {
            let moved = match &changed {
                Changed::All => true,
                Changed::Slots(slots) => slots.binary_search(&changes.slot_of_node(node)).is_ok(),
            };
            if moved {
                nodes.push(node);
                names |= directory;
            }
        });
        if names {
            told(notifier, Notifier::inc_epoch);
        }
        for node in nodes {
            told(notifier, |notifier| notifier.moved(node));
        }
        thread::sleep(PAUSE);
    }
}

/// Nothing is dropped: while too much waits for the kernel, this does.
fn told(notifier: &Notifier, news: impl Fn(&Notifier) -> Result<(), Backlog>) {
    while news(notifier).is_err() {
        notifier.flush();
    }
}
