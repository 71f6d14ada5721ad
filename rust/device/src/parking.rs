//! Requests that wait for another guest or a process of the host: a lock that somebody else holds.
//!
//! Such a wait may last for ever, so it costs its descriptors and no thread. It outlives a pause of the queue: what is settled while
//! the queue stands still is completed when it goes on. When the queue starts from another place instead, the guest was
//! reset and has no such requests any more.

use std::sync::Arc;

use parking_lot::Mutex;
use virtiofs_fuse::{Pending, Result, Server};

use crate::completer::Completer;
use crate::request::Request;

/// The requests of one queue that wait.
#[derive(Debug, Default)]
pub(crate) struct Parking(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    /// Counts resets of the queue.
    era: u64,
    completer: Option<Arc<Completer>>,
    /// Where the chains of all of these requests begin.
    heads: Vec<u16>,
    /// Settled while the queue stood still.
    settled: Vec<Settled>,
}

#[derive(Debug)]
struct Settled {
    server: Arc<Server>,
    request: Request,
    pending: Pending,
    result: Result<()>,
}

/// Keeps `request` until its wait is over, and completes it then.
pub(crate) fn park(parking: &Arc<Parking>, server: &Arc<Server>, request: Request, pending: Pending) {
    let era = {
        let mut state = parking.0.lock();
        state.heads.push(request.0.head());
        state.era
    };
    let (mut place, theirs) =
        (Place { parking: Some(Arc::clone(parking)), era, head: request.0.head() }, Arc::clone(server));
    server.settle(
        pending,
        Box::new(move |result| {
            if let Some(parking) = place.parking.take() {
                parking.settle(era, Settled { server: theirs, request, pending, result });
            }
        }),
    );
}

/// A request's place. Where the wait is dropped with its session instead of settled, nothing is left of it.
struct Place {
    parking: Option<Arc<Parking>>,
    era: u64,
    head: u16,
}

impl Drop for Place {
    fn drop(&mut self) {
        let Some(parking) = &self.parking else { return };
        let mut state = parking.0.lock();
        if state.era == self.era {
            state.heads.retain(|head| *head != self.head);
        }
    }
}

impl Parking {
    /// The queue runs, either on from where it stopped or anew.
    pub(crate) fn open(&self, completer: Arc<Completer>, goes_on: bool) {
        let mut state = self.0.lock();
        if !goes_on {
            state.era += 1;
            state.settled.clear();
            state.heads.clear();
        }
        for settled in std::mem::take(&mut state.settled) {
            state.complete(settled, &completer);
        }
        state.completer = Some(completer);
    }

    /// The queue stands still.
    pub(crate) fn close(&self) {
        self.0.lock().completer = None;
    }

    /// Where the chains of the requests begin that have no reply yet.
    pub(crate) fn heads(&self) -> Vec<u16> {
        self.0.lock().heads.clone()
    }

    fn settle(&self, era: u64, settled: Settled) {
        let mut state = self.0.lock();
        if state.era != era {
            return;
        }
        match state.completer.clone() {
            // Under the lock: the queue cannot stop in between.
            Some(completer) => state.complete(settled, &completer),
            None => state.settled.push(settled),
        }
    }
}

impl State {
    fn complete(&mut self, settled: Settled, completer: &Completer) {
        self.heads.retain(|head| *head != settled.request.0.head());
        settled.complete(completer);
    }
}

impl Settled {
    fn complete(mut self, completer: &Completer) {
        let len = self.server.answer(&mut self.request, self.pending, self.result);
        let len = self.request.finish(&self.server, len);
        completer.complete(self.request.0.head(), len);
    }
}
