//! Requests that wait for a lock, and their callers' change of mind.

use std::collections::{HashMap, VecDeque};

use parking_lot::Mutex;
use virtiofs_fuse::Pending;

/// Interrupts of requests that do not wait are remembered, so many of them: one may overtake its request on the way from the kernel,
/// which another thread has read and not parked yet.
const REMEMBERED: usize = 1024;

/// The requests of one connection that wait.
#[derive(Debug, Default)]
pub(crate) struct Waiting(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    parked: HashMap<u64, Pending>,
    interrupted: VecDeque<u64>,
}

impl Waiting {
    /// Request number `unique` begins to wait. Answers whether its caller has changed its mind already.
    pub(crate) fn park(&self, unique: u64, pending: Pending) -> bool {
        let mut state = self.0.lock();
        state.parked.insert(unique, pending);
        match state.interrupted.iter().position(|interrupted| *interrupted == unique) {
            Some(at) => state.interrupted.remove(at).is_some(),
            None => false,
        }
    }

    /// Its wait is over.
    pub(crate) fn settled(&self, unique: u64) {
        self.0.lock().parked.remove(&unique);
    }

    /// Its caller has changed its mind. Answers what to interrupt.
    pub(crate) fn interrupt(&self, unique: u64) -> Option<Pending> {
        let mut state = self.0.lock();
        let pending = state.parked.get(&unique).copied();
        if pending.is_none() {
            if state.interrupted.len() >= REMEMBERED {
                state.interrupted.pop_front();
            }
            state.interrupted.push_back(unique);
        }
        pending
    }
}
