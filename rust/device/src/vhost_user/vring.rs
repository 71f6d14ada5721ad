//! One queue, as the VMM sets it up piece by piece.

use std::io;
use std::sync::Arc;

use virtiofs_virtqueue::{Event, Memory, RingConfig};

use crate::Call;
use crate::identity::{EVENT_IDX, QUEUE_SIZE_MAX};
use crate::queue::Queue;
use crate::worker::Surroundings;

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
}

impl Vring {
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
    pub(super) fn start(&mut self, index: usize, features: u64, with: &Surroundings) -> io::Result<()> {
        let Some(addresses) = self.addresses else { return Ok(()) };
        if self.queue.is_running() || !self.enabled || self.size == 0 || self.queue.kick().is_none() {
            return Ok(());
        }
        let ring = self.ring(addresses, features, &with.memory.load())?;
        self.queue.start(index, ring, features, with)
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
