//! A request on its way through the lanes: from when a queue has handed it over until it is answered.

use std::time::Instant;

use parking_lot::Mutex;
use pyo3::prelude::*;
use virtiofs_fuse::{Opcode, Ticket};

/// A request on its way through the lanes.
pub(crate) struct Flight {
    pub(crate) number: u64,
    pub(crate) opcode: Opcode,
    pub(crate) node: u64,
    pub(crate) since: Instant,
    /// Taken by whoever answers, and during a turn.
    pub(crate) ticket: Mutex<Option<Ticket>>,
    /// What is awaited.
    pub(crate) task: Mutex<Option<Py<PyAny>>>,
}

impl Flight {
    pub(crate) fn new(number: u64, ticket: Ticket) -> Flight {
        Flight {
            number,
            opcode: ticket.opcode(),
            node: ticket.node(),
            since: Instant::now(),
            ticket: Mutex::new(Some(ticket)),
            task: Mutex::new(None),
        }
    }

    /// Nobody waits for the reply any more.
    pub(crate) fn is_unwanted(&self) -> bool {
        self.ticket.lock().as_ref().is_some_and(Ticket::unwanted)
    }

    /// Nobody has answered it, or is about to.
    pub(crate) fn is_open(&self) -> bool {
        self.ticket.lock().is_some()
    }
}
