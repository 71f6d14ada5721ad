//! What waits for the lanes.

use std::collections::{HashMap, VecDeque};
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use parking_lot::{Condvar, Mutex};
use rustix::event::{EventfdFlags, eventfd};
use virtiofs_fuse::Opcode;

use crate::flight::Flight;

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
    /// How much waits, and whether it is closed, for those who only look.
    waiting: AtomicUsize,
    ready: Condvar,
    /// What wakes the lanes that run event loops, if they do.
    bells: Vec<OwnedFd>,
    next_bell: AtomicUsize,
}

#[derive(Default)]
struct State {
    work: VecDeque<Work>,
    /// Requests that a lane has taken.
    flights: HashMap<u64, Arc<Flight>>,
    closed: bool,
}

/// Something to do, and the request that waits behind it, if one does.
pub(crate) type Next = (Work, Option<Opcode>);

/// Added to what waits when nothing comes any more.
const CLOSED: usize = 1 << 32;

impl Backlog {
    /// For lanes that wait in [`Backlog::wait`], or for so many that wait for their bells.
    pub(crate) fn new(bells: usize) -> std::io::Result<Backlog> {
        let bell = || eventfd(0, EventfdFlags::NONBLOCK | EventfdFlags::CLOEXEC);
        let bells = (0..bells).map(|_| bell()).collect::<Result<_, _>>()?;
        Ok(Backlog {
            state: Mutex::default(),
            waiting: AtomicUsize::new(0),
            ready: Condvar::new(),
            bells,
            next_bell: AtomicUsize::new(0),
        })
    }

    /// Adds work. Nothing is added once it is closed.
    pub(crate) fn push(&self, work: Work) {
        self.push_unless(work, |_| false);
    }

    /// Adds work unless `not` says something else, and answers whether. What `not` looks at was there before a later [`Backlog::requests`].
    pub(crate) fn push_unless(&self, work: Work, not: impl FnOnce(&Work) -> bool) -> bool {
        let mut state = self.state.lock();
        if not(&work) {
            return false;
        }
        if state.closed {
            return true;
        }
        state.work.push_back(work);
        self.waiting.fetch_add(1, Ordering::Release);
        drop(state);
        if self.bells.is_empty() {
            self.ready.notify_one();
        } else if let Some(bell) = self.bells.get(self.next_bell.fetch_add(1, Ordering::Relaxed) % self.bells.len()) {
            ring(bell);
        }
        true
    }

    /// A node is gone: told to the handler that wants to know, or to a lane that idles, so that it drops the object.
    pub(crate) fn forgotten(&self, node: u64, wanted: bool) {
        if wanted {
            self.push(Work::Forgotten(node));
        } else if self.waiting.load(Ordering::Relaxed) == 0 {
            self.push(Work::Tidy);
        }
    }

    /// What is next, if something waits. A request counts as in flight from now on.
    pub(crate) fn pop(&self) -> Option<Next> {
        self.take(&mut self.state.lock())
    }

    fn take(&self, state: &mut State) -> Option<Next> {
        let work = state.work.pop_front()?;
        self.waiting.fetch_sub(1, Ordering::Relaxed);
        if let Work::Serve(flight) = &work {
            state.flights.insert(flight.number, Arc::clone(flight));
        }
        let behind = match state.work.front() {
            Some(Work::Serve(flight)) => Some(flight.opcode),
            _ => None,
        };
        Some((work, behind))
    }

    /// Whether [`Backlog::wait`] would return at once.
    pub(crate) fn waits(&self) -> bool {
        self.waiting.load(Ordering::Acquire) > 0
    }

    /// What is next; waits for it, and is `None` once the backlog is closed and empty.
    pub(crate) fn wait(&self) -> Option<Next> {
        let mut state = self.state.lock();
        loop {
            if let Some(next) = self.take(&mut state) {
                return Some(next);
            }
            if state.closed {
                return None;
            }
            self.ready.wait(&mut state);
        }
    }

    /// A request is in flight no more. Answers whether none is, and none waits.
    pub(crate) fn land(&self, number: u64) -> bool {
        let mut state = self.state.lock();
        let landed = state.flights.remove(&number);
        let none = state.flights.is_empty() && self.waiting.load(Ordering::Relaxed) == 0;
        drop(state);
        drop(landed);
        none
    }

    /// All requests that wait or are in flight.
    pub(crate) fn requests(&self) -> Vec<Arc<Flight>> {
        let state = self.state.lock();
        let waiting =
            state.work.iter().filter_map(|work| if let Work::Serve(flight) = work { Some(flight) } else { None });
        state.flights.values().chain(waiting).map(Arc::clone).collect()
    }

    /// Whether a request is in flight, or waits and was not answered meanwhile.
    pub(crate) fn is_busy(&self) -> bool {
        let state = self.state.lock();
        let open = |work: &Work| matches!(work, Work::Serve(flight) if flight.is_open());
        !state.flights.is_empty() || state.work.iter().any(open)
    }

    /// Whether nothing comes any more.
    pub(crate) fn is_closed(&self) -> bool {
        let state = self.state.lock();
        state.closed && state.work.is_empty()
    }

    /// Nothing comes any more; what waits is still done.
    pub(crate) fn close(&self) {
        if !std::mem::replace(&mut self.state.lock().closed, true) {
            self.waiting.fetch_add(CLOSED, Ordering::Release);
        }
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
