//! One queue, as the VMM sets it up piece by piece.

use std::io;
use std::sync::Arc;

use virtiofs_virtqueue::{Event, Memory, RingConfig, split};

use crate::completer::Completer;
use crate::identity::{EVENT_IDX, QUEUE_SIZE_MAX};
use crate::parking::Parking;
use crate::worker::{Running, Surroundings};

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
    kick: Option<Event>,
    /// The call while the queue does not run; then the completer has it.
    call: Option<Event>,
    running: Option<Running>,
    parking: Arc<Parking>,
    /// Where the queue stood when it was stopped: going on from there, it still knows the requests that wait.
    stopped_at: Option<u16>,
}

impl Vring {
    pub(super) fn set_size(&mut self, size: u32) -> bool {
        match u16::try_from(size) {
            Ok(size) if size.is_power_of_two() && size <= QUEUE_SIZE_MAX && self.running.is_none() => {
                self.size = size;
                true
            }
            _ => false,
        }
    }

    pub(super) fn set_addresses(&mut self, addresses: Addresses) -> bool {
        // QEMU repeats the addresses of a running ring when it starts to log; they do not change.
        if self.running.is_some() && self.addresses != Some(addresses) {
            return false;
        }
        self.addresses = Some(addresses);
        true
    }

    pub(super) fn set_base(&mut self, base: u32) -> bool {
        match u16::try_from(base) {
            Ok(base) if self.running.is_none() => {
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
        self.kick = kick;
    }

    pub(super) fn set_call(&mut self, call: Option<Event>) {
        match &self.running {
            Some(running) => running.completer().set_call(call),
            None => self.call = call,
        }
    }

    /// Starts the queue if all is there that it needs.
    pub(super) fn start(&mut self, index: usize, features: u64, with: &Surroundings) -> io::Result<()> {
        let Some(addresses) = self.addresses else { return Ok(()) };
        if self.running.is_some() || !self.enabled || self.size == 0 || self.kick.is_none() {
            return Ok(());
        }
        let memory = with.memory.load();
        let config = self.config(addresses, features, &memory)?;
        let (available, used) = split(config, &memory).map_err(io::Error::other)?;
        let Some(kick) = self.kick.take() else { return Ok(()) };
        let completer = Arc::new(Completer::new(&with.memory, used, self.call.take()));
        self.parking.open(Arc::clone(&completer), self.stopped_at == Some(self.base));
        tracing::debug!(index, size = self.size, next = self.base, "queue starts");
        self.running = Some(Running::start(index, available, completer, kick, &self.parking, with)?);
        Ok(())
    }

    fn config(&self, addresses: Addresses, features: u64, memory: &Memory) -> io::Result<RingConfig> {
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
    pub(crate) fn abandon(&self) {
        if let Some(running) = &self.running {
            running.abandon();
        }
    }

    /// Stops the queue where it is, so that it can start again from there.
    pub(super) fn halt(&mut self) {
        self.parking.close();
        if let Some(stopped) = self.running.take().and_then(Running::stop) {
            (self.base, self.kick, self.call) = (stopped.next_avail, Some(stopped.kick), stopped.call);
            self.stopped_at = Some(stopped.next_avail);
        }
    }

    /// Stops the queue, and answers the index of the next request.
    pub(super) fn get_base(&mut self) -> u16 {
        self.halt();
        self.kick = None;
        self.base
    }

    /// The memory table has changed.
    pub(super) fn refresh(&self) {
        if let Some(running) = &self.running {
            running.refresh();
        }
    }
}
