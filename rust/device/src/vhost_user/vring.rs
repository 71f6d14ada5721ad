//! One queue, as the VMM sets it up piece by piece.

use std::io;
use std::sync::Arc;

use virtiofs_virtqueue::{Area, Event, Memory, RingConfig, used_index};

use crate::Call;
use crate::identity::{EVENT_IDX, QUEUE_SIZE_MAX};
use crate::queue::Queue;
use crate::running::Surroundings;

/// Where a ring lies, by addresses of the VMM's own address space.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Addresses {
    pub(super) desc: u64,
    pub(super) avail: u64,
    pub(super) used: u64,
}

/// One queue. It runs while it has a kick, is enabled, and is described.
#[derive(Debug, Default)]
pub(super) struct Vring {
    size: u16,
    addresses: Option<Addresses>,
    base: u16,
    enabled: bool,
    queue: Queue,
    past: Past,
}

/// What is known of a queue that was served before, when it starts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Past {
    /// What the VMM says.
    #[default]
    Told,
    /// The VMM was away; the queue stands here, and knows which of its requests it has not given back.
    Kept(u16),
    /// Another device served it, which left behind what it had in flight.
    LeftBehind,
}

impl Vring {
    /// The VMM is gone and may come back: the queue stops, and keeps what it knows.
    pub(super) fn keep(&mut self) {
        let running = self.queue.is_running();
        self.set_kick(None);
        self.queue.set_call(None);
        if running {
            self.past = Past::Kept(self.base);
        }
    }

    /// Goes on with what another one kept.
    pub(super) fn inherit(&mut self, kept: Vring) {
        self.queue.inherit(kept.queue);
        (self.base, self.past) = (kept.base, kept.past);
    }

    /// Another device served this queue before, if the memory of what was in flight says so.
    pub(super) fn expect_left_behind(&mut self) {
        self.past = Past::LeftBehind;
    }

    /// Which requests of it are not answered yet; it must not run. (Where it stands is told by GET_VRING_BASE.)
    pub(super) fn unanswered(&self) -> Vec<u16> {
        self.queue.unanswered()
    }

    /// Another device has left these requests unanswered.
    pub(super) fn take_again(&mut self, heads: Vec<u16>) {
        self.queue.take_again(heads);
    }

    /// Whether it is served.
    pub(super) fn is_running(&self) -> bool {
        self.queue.is_running()
    }

    /// Whether requests may be in flight.
    pub(super) fn is_in_use(&self) -> bool {
        self.queue.is_running() || matches!(self.past, Past::Kept(_))
    }

    /// Whether all is there that it takes to start.
    pub(super) fn is_complete(&self) -> bool {
        self.addresses.is_some() && self.enabled && self.size != 0 && self.queue.kick().is_some()
    }

    pub(super) fn set_size(&mut self, size: u32) -> bool {
        match u16::try_from(size) {
            Ok(size) if size.is_power_of_two() && size <= QUEUE_SIZE_MAX && !self.queue.is_running() => {
                self.size = size;
                true
            }
            _ => false,
        }
    }

    pub(super) fn set_addresses(&mut self, addresses: Addresses) -> bool {
        // QEMU repeats the addresses of a running ring when it starts to log; they do not change.
        if self.queue.is_running() && self.addresses != Some(addresses) {
            return false;
        }
        self.addresses = Some(addresses);
        true
    }

    pub(super) fn set_base(&mut self, base: u32) -> bool {
        match u16::try_from(base) {
            Ok(base) if !self.queue.is_running() => {
                self.base = base;
                true
            }
            _ => false,
        }
    }

    pub(super) fn set_enabled(&mut self, enabled: bool) {
        self.enabled = enabled;
        if !enabled {
            self.halt();
        }
    }

    pub(super) fn set_kick(&mut self, kick: Option<Event>) {
        self.halt();
        self.queue.set_kick(kick.map(Arc::new));
    }

    pub(super) fn set_call(&mut self, call: Option<Event>) {
        self.queue.set_call(call.map(Call::from));
    }

    /// Starts the queue if all is there that it needs.
    pub(super) fn start(
        &mut self,
        index: usize,
        features: u64,
        area: Option<&Arc<Area>>,
        with: &Surroundings,
    ) -> io::Result<()> {
        let Some(addresses) = self.addresses.filter(|_| self.is_complete() && !self.queue.is_running()) else {
            return Ok(());
        };
        let memory = with.memory.load();
        let mut ring = self.ring(addresses, features, &memory)?;
        let inflight = area.and_then(|area| area.queue(index));
        if let Some(entries) = inflight.as_ref().map(|inflight| inflight.size()).filter(|entries| *entries < self.size)
        {
            let text = format!("{} entries, and what is in flight is noted for {entries}", self.size);
            return Err(io::Error::other(text));
        }
        let used = || used_index(ring, &memory).map_err(io::Error::other);
        let past = self.past;
        match (past, &inflight) {
            // The VMM may have looked at the ring while we were at it, and says where it saw us.
            (Past::Kept(position), _) if self.queue.accounts_for(position, used()?) => ring.next_avail = position,
            (Past::LeftBehind, Some(inflight)) => {
                let used = used()?;
                let heads = inflight.left_behind(used);
                tracing::info!(index, requests = heads.len(), "a device before us left requests behind");
                ring.next_avail = used.wrapping_add(heads.len() as u16);
                self.queue.take_again(heads);
            }
            _ => {}
        }
        self.queue.start(index, ring, features, inflight, with)?;
        self.past = Past::Told;
        if past != Past::Told {
            self.queue.interrupt();
        }
        Ok(())
    }

    fn ring(&self, addresses: Addresses, features: u64, memory: &Memory) -> io::Result<RingConfig> {
        let place = |address| {
            memory.translate(address).ok_or_else(|| {
                io::Error::other(format!("the ring address {address:#x} lies in no region of the memory table"))
            })
        };
        Ok(RingConfig {
            size: self.size,
            desc: place(addresses.desc)?,
            avail: place(addresses.avail)?,
            used: place(addresses.used)?,
            next_avail: self.base,
            event_idx: features & EVENT_IDX != 0,
        })
    }

    /// The driver is gone: what waits for a disk and was not begun need not be done.
    pub(super) fn abandon(&self) {
        self.queue.abandon();
    }

    /// Stops the queue where it is, so that it can start again from there.
    pub(super) fn halt(&mut self) {
        if let Some(position) = self.queue.halt() {
            self.base = position;
        }
    }

    /// Stops the queue, and answers the index of the next request.
    pub(super) fn get_base(&mut self) -> u16 {
        self.set_kick(None);
        self.base
    }

    /// The memory table has changed.
    pub(super) fn refresh(&self) {
        self.queue.refresh();
    }
}
