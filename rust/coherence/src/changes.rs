//! Changes as events, for somebody on the host who keeps a cache that cannot look at the table: a mount, a notification queue.

use std::sync::Arc;
use std::sync::atomic::Ordering::SeqCst;
use std::time::Duration;

use rustix::fs::Timespec;
use rustix::thread::futex;

use crate::Table;
use crate::protocol::{ROOT, ROOT_SLOT, Word};
use crate::table::wake;

/// What moved.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Changed {
    /// The counters of these slots. What was remembered of nodes that carry them is stale.
    Slots(Vec<u64>),
    /// The epoch, or more counters than it is worth to name: everything is stale.
    All,
}

/// A subscription: whatever moved in the table since the last call, by whichever daemon. Nothing is queued, so nothing is ever lost; a
/// slot that moved many times in between is told once.
#[derive(Debug)]
pub struct Changes {
    table: Arc<Table>,
    epoch: u64,
    seen: Box<[u64]>,
}

/// From so many slots on it is cheaper to forget everything.
const MANY: usize = 4096;

impl Changes {
    pub(crate) fn new(table: Arc<Table>) -> Changes {
        let map = table.map();
        let epoch = map.epoch().peek();
        let seen = map.counters().iter().map(Word::peek).collect();
        Changes { table, epoch, seen }
    }

    /// What moved since the last call, if anything did. Reads the whole table: some 30 µs for 65,536 slots.
    pub fn take(&mut self) -> Option<Changed> {
        let map = self.table.map();
        let epoch = map.epoch().peek();
        let all = std::mem::replace(&mut self.epoch, epoch) != epoch;
        let mut slots = Vec::new();
        for (slot, (counter, seen)) in map.counters().iter().zip(&mut self.seen).enumerate() {
            let now = counter.peek();
            // A mark is no change.
            if std::mem::replace(seen, now) & !ROOT != now & !ROOT && slots.len() <= MANY {
                slots.push(slot as u64);
            }
        }
        match slots.len() {
            _ if all => Some(Changed::All),
            0 => None,
            1..=MANY => Some(Changed::Slots(slots)),
            _ => Some(Changed::All),
        }
    }

    /// The same, and waits until something moves; `None` after `timeout`, or when [`Changes::waker`] called.
    pub fn wait(&mut self, timeout: Duration) -> Option<Changed> {
        // Announced first, then looked: see `protocol`.
        self.table.map().sleepers().store(1, SeqCst);
        if let Some(changed) = self.take() {
            return Some(changed);
        }
        let timeout = Timespec::try_from(timeout).ok();
        // Also if it was interrupted or woken for nothing: the caller calls again.
        let _ = futex::wait(self.table.map().sleepers(), futex::Flags::empty(), 1, timeout.as_ref());
        self.take()
    }

    /// What ends a wait from another thread.
    pub fn waker(&self) -> impl Fn() + Send + Sync + 'static + use<> {
        let table = Arc::clone(&self.table);
        move || wake(table.map())
    }

    /// Whether a node of this id is among the slots that moved, where node 1 is a root.
    pub fn slot_of_node(&self, node: u64) -> u64 {
        if node == ROOT_SLOT { ROOT_SLOT } else { node & (self.table.slots() - 1) }
    }
}
