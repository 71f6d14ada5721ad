//! A VMM that went away and may come back: what its guest has, kept for a while.
//!
//! The FUSE session stays in the server, with its nodes, handles and locks: a guest's kernel sends no second INIT when its VMM connects
//! again. Here are its queues, which stand still. The requests that were in flight were completed when they were stopped, so each was done
//! once, and none is in doubt; what waits for a lock waits on. Who may go on with it has the memory that we made for the VMM
//! (GET_INFLIGHT_FD), of which there is no other.

use std::sync::Arc;
use std::time::Instant;

use virtiofs_fuse::Server;
use virtiofs_virtqueue::Area;

use super::vring::Vring;

/// What is kept.
#[derive(Debug)]
pub(super) struct Away {
    area: Arc<Area>,
    vrings: Vec<Vring>,
    until: Instant,
}

impl Away {
    pub(super) fn new(area: Arc<Area>, vrings: Vec<Vring>, until: Instant) -> Away {
        Away { area, vrings, until }
    }

    /// By what its VMM is known again.
    pub(super) fn area(&self) -> &Area {
        &self.area
    }

    /// When it is given up.
    pub(super) fn until(&self) -> Instant {
        self.until
    }

    /// What it goes on with.
    pub(super) fn into_parts(self) -> (Arc<Area>, Vec<Vring>) {
        (self.area, self.vrings)
    }

    /// It will not come back.
    pub(super) fn end(self, server: &Server, why: &str) {
        tracing::info!(why, "the session of the VMM that went away is over");
        drop(self.vrings);
        server.reset();
    }
}
