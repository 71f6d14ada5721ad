//! Load on a share: fixed kinds of work at a fixed number of requests in flight, and what they cost whom.
//!
//! The requests come straight from the rings, one thread per request queue, without an allocation or a copy of data per request, so that
//! the figures are those of the device and not of this client.

mod data;
mod driver;
mod files;
mod histogram;
mod listing;
mod mixed;
mod names;
mod native;
mod process;
mod rows;
mod wakeup;

use std::time::Duration;

pub use data::{FILES, LISTED, hold, prepare};
pub use histogram::Histogram;
pub use native::run_native;
pub use process::{Memory, Processes};
pub use rows::{ROWS, RowKind};
pub use wakeup::{WakeUp, wake_up};

use crate::{Guest, Result};
use driver::Tally;

/// What to run.
#[derive(Clone, Copy, Debug)]
pub struct Plan {
    /// Kind of work.
    pub row: RowKind,
    /// Operations in flight on each request queue.
    pub depth: usize,
    /// Request queues to use, one thread each.
    pub queues: usize,
    /// Time before measuring starts.
    pub warm: Duration,
    /// Time measured.
    pub time: Duration,
}

/// What came out.
#[derive(Clone, Debug, Default)]
pub struct Report {
    /// Operations that were completed in the time measured.
    pub ops: u64,
    /// The time measured.
    pub time: Duration,
    /// File data read or written by one operation, in bytes.
    pub bytes_per_op: u64,
    /// How long single operations took, in ns.
    pub latency: Histogram,
    /// CPU time of the daemon and its children.
    pub daemon_cpu: Duration,
    /// CPU time of this process.
    pub driver_cpu: Duration,
    /// Times that the device was kicked, by FORGETs too.
    pub kicks: u64,
    /// Times that the driver slept until the device called about a request. Where FORGETs wait for room in their queue it sleeps as well,
    /// which is not counted.
    pub calls: u64,
}

impl Report {
    /// Operations per second.
    pub fn rate(&self) -> f64 {
        self.ops as f64 / self.time.as_secs_f64()
    }

    /// MiB of file data per second.
    pub fn throughput(&self) -> f64 {
        self.rate() * self.bytes_per_op as f64 / f64::from(1 << 20)
    }

    fn add(&mut self, tally: Tally) {
        self.ops += tally.ops;
        self.latency.merge(&tally.latency);
        self.kicks += tally.kicks;
        self.calls += tally.calls;
    }

    /// CPU time of the daemon for one operation, in µs.
    pub fn daemon_cpu_per_op(&self) -> f64 {
        self.daemon_cpu.as_secs_f64() * 1e6 / self.ops.max(1) as f64
    }

    /// CPU time of this process for one operation, in µs.
    pub fn driver_cpu_per_op(&self) -> f64 {
        self.driver_cpu.as_secs_f64() * 1e6 / self.ops.max(1) as f64
    }
}

/// Runs `plan` on a share that [`prepare`] has filled; `daemon` are the processes whose CPU time counts.
///
/// # Errors
/// Any reply that is not what the work expects ends the run.
pub fn run(guest: &Guest, plan: &Plan, daemon: &Processes) -> Result<Report> {
    driver::run(guest, plan, daemon)
}
