//! The version table, for a kernel that cannot look at it: whatever moves there is told as an invalidation.
//!
//! Names cannot be told one by one: the table says which directory changed, and nobody knows what the kernel remembers of it. So all names
//! are asked for anew when they are used next (INC_EPOCH, Linux 6.16), while attributes, data and listings go node by node. An answer
//! that was given before the change and arrives after the news is not remembered: `fuse_change_attributes` and `fuse_lookup` of Linux
//! compare counters of their own (see also [`News::Moved`]).

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;
use std::{fmt, io};

use virtiofs_coherence::{Changed, Changes};
use virtiofs_fuse::Server;

use crate::news::{News, Tell};
use crate::signals::leave_to_others;

/// What moves within this time is told at once, which bounds the work of a busy directory.
const PAUSE: Duration = Duration::from_millis(1);
/// Only bounds the wait for a wake-up that nobody sends.
const NAP: Duration = Duration::from_secs(10);
/// Until it is tried again where too much waits to be told already.
const PATIENCE: Duration = Duration::from_millis(10);

/// The thread that tells. Ends when it is dropped.
pub(crate) struct Follower {
    ends: Arc<AtomicBool>,
    wake: Box<dyn Fn() + Send + Sync>,
    thread: Option<JoinHandle<()>>,
}

impl Follower {
    /// Follows what moves since `changes` were subscribed to, which is before the other side was told anything to remember; or, with
    /// `anew`, was told anything but what `server` knows of: all of that is told to be old first.
    pub(crate) fn start(
        changes: Changes,
        server: Arc<Server>,
        listener: Arc<dyn Tell>,
        anew: bool,
    ) -> io::Result<Follower> {
        let ends = Arc::new(AtomicBool::new(false));
        let wake = Box::new(changes.waker());
        let work = {
            let ends = Arc::clone(&ends);
            move || {
                leave_to_others();
                follow(changes, &server, &*listener, anew, &ends);
            }
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

fn follow(mut changes: Changes, server: &Server, listener: &dyn Tell, anew: bool, ends: &AtomicBool) {
    let mut first = anew.then_some(Changed::All);
    while !ends.load(Ordering::Acquire) {
        let Some(changed) = first.take().or_else(|| changes.wait(NAP)) else { continue };
        let mut nodes = Vec::new();
        let mut names = matches!(changed, Changed::All);
        if server.negotiated().is_none() {
            // Outside of a session nothing is remembered.
            thread::sleep(PAUSE);
            continue;
        }
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
        let news = names.then_some(News::Epoch).into_iter();
        for news in news.chain(nodes.into_iter().map(|node| News::Moved { node })) {
            // Nothing is dropped: while too much waits to be told, this does.
            while listener.tell(news.clone()).is_err() && !ends.load(Ordering::Acquire) {
                thread::sleep(PATIENCE);
            }
        }
        thread::sleep(PAUSE);
    }
}
