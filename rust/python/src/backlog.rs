//! What waits for the lanes.

use std::collections::VecDeque;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use parking_lot::{Condvar, Mutex};
use rustix::event::{EventfdFlags, eventfd};

use crate::lane::Flight;

/// Something for a lane to do.
pub(crate) enum Work {
    /// A request.
    Serve(Arc<Flight>),
    /// A request was answered without its handler: what awaits may stop.
    Cancel(Arc<Flight>),
    /// A node is gone.
    Forgotten(u64),
    /// Objects were let go of by threads that may not drop them.
    Tidy,
    /// A session begins.
    Begin,
    /// A session is over.
    End,
}

/// A queue that any thread may push to without waiting for the interpreter.
pub(crate) struct Backlog {
    state: Mutex<State>,
    ready: Condvar,
    /// What wakes the lanes that run event loops, if they do.
    bells: Vec<OwnedFd>,
    next_bell: AtomicUsize,
}

#[derive(Default)]
struct State {
    work: VecDeque<Work>,
    closed: bool,
}

impl Backlog {
    /// For lanes that wait in [`Backlog::wait`], or for so many that wait for their bells.
    pub(crate) fn new(bells: usize) -> std::io::Result<Backlog> {
        let bell = || eventfd(0, EventfdFlags::NONBLOCK | EventfdFlags::CLOEXEC);
        let bells = (0..bells).map(|_| bell()).collect::<Result<_, _>>()?;
        Ok(Backlog { state: Mutex::default(), ready: Condvar::new(), bells, next_bell: AtomicUsize::new(0) })
    }

    /// Adds work. Nothing is added once it is closed.
    pub(crate) fn push(&self, work: Work) {
        let mut state = self.state.lock();
        if state.closed {
            return;
        }
        state.work.push_back(work);
        drop(state);
        if self.bells.is_empty() {
            self.ready.notify_one();
        } else if let Some(bell) = self.bells.get(self.next_bell.fetch_add(1, Ordering::Relaxed) % self.bells.len()) {
            ring(bell);
        }
    }

    /// A node is gone: told to the handler that wants to know, or to a lane that idles, so that it drops the object.
    pub(crate) fn forgotten(&self, node: u64, wanted: bool) {
        if wanted {
            self.push(Work::Forgotten(node));
        } else if self.state.lock().work.is_empty() {
            self.push(Work::Tidy);
        }
    }

    /// What is next, if something waits.
    pub(crate) fn pop(&self) -> Option<Work> {
        self.state.lock().work.pop_front()
    }

    /// What is next; waits for it, and is `None` once the backlog is closed and empty.
    pub(crate) fn wait(&self) -> Option<Work> {
        let mut state = self.state.lock();
        loop {
            if let Some(work) = state.work.pop_front() {
                return Some(work);
            }
            if state.closed {
                return None;
            }
            self.ready.wait(&mut state);
        }
    }

    /// Whether nothing comes any more.
    pub(crate) fn is_closed(&self) -> bool {
        let state = self.state.lock();
        state.closed && state.work.is_empty()
    }

    /// Nothing comes any more; what waits is still done.
    pub(crate) fn close(&self) {
        self.state.lock().closed = true;
        self.ready.notify_all();
        self.bells.iter().for_each(ring);
    }

    /// The descriptor of a lane's bell.
    pub(crate) fn bell(&self, lane: usize) -> Option<RawFd> {
        self.bells.get(lane).map(AsRawFd::as_raw_fd)
    }

    /// Silences a lane's bell until it is rung again.
    pub(crate) fn silence(&self, lane: usize) {
        if let Some(bell) = self.bells.get(lane) {
            let mut count = [0; 8];
            let _ = rustix::io::read(bell, &mut count);
        }
    }
}

fn ring(bell: &OwnedFd) {
    // The one error there can be is that the counter is full, and then it rings.
    let _ = rustix::io::write(bell, &1u64.to_ne_bytes());
}
