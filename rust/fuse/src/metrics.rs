//! Counters of a server.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use crate::op::{OPCODES, OPERATIONS, Opcode};

/// What a server has done since it was made. Each counter only grows.
#[derive(Debug)]
pub struct Metrics {
    requests: [AtomicU64; OPCODES],
    errors: [AtomicU64; OPCODES],
    malformed: AtomicU64,
    panics: AtomicU64,
}

impl Default for Metrics {
    fn default() -> Metrics {
        Metrics {
            requests: [const { AtomicU64::new(0) }; OPCODES],
            errors: [const { AtomicU64::new(0) }; OPCODES],
            malformed: AtomicU64::new(0),
            panics: AtomicU64::new(0),
        }
    }
}

impl Metrics {
    pub(crate) fn request(&self, opcode: Opcode, failed: bool) {
        self.requests[opcode as usize].fetch_add(1, Relaxed);
        if failed {
            self.errors[opcode as usize].fetch_add(1, Relaxed);
        }
    }

    pub(crate) fn panic(&self) {
        self.panics.fetch_add(1, Relaxed);
    }

    /// Counts a chain, header or argument that no honest guest sends.
    pub fn malformed_request(&self) {
        self.malformed.fetch_add(1, Relaxed);
    }

    /// Requests that no honest guest sends.
    pub fn malformed(&self) -> u64 {
        self.malformed.load(Relaxed)
    }

    /// Handlers that panicked; each was answered with EIO.
    pub fn panics(&self) -> u64 {
        self.panics.load(Relaxed)
    }

    /// Name, requests and error replies of each operation that was asked for.
    pub fn operations(&self) -> impl Iterator<Item = (&'static str, u64, u64)> + '_ {
        OPERATIONS.iter().filter_map(|row| {
            let at = row.opcode as usize;
            let requests = self.requests[at].load(Relaxed);
            (requests > 0).then(|| (row.name, requests, self.errors[at].load(Relaxed)))
        })
    }
}
