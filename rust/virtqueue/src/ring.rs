//! A split virtqueue in two halves: one takes work, one completes it.
//!
//! Both halves lie over the same ring. The first has only its available side, the second only its used side, so that the thread that
//! takes requests needs no lock, and completions may come from any thread that holds one on the other half.
//!
//! Where its parts lie is found once for each table of memory (`area.rs`).

use std::sync::Arc;
use std::sync::atomic::{Ordering, fence};

use vm_memory::GuestMemoryError;

use crate::ahead::Ahead;
use crate::area::Area;
use crate::descriptors::{DESCRIPTOR, resolve};
use crate::{Chain, Inflight, Memory};

/// Why a ring cannot be served. The device stays up; the driver must reset the queue.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs)]
pub enum RingError {
    #[error("a ring of {0} entries: the size must be a power of two up to 32768")]
    Size(u16),
    #[error(
        "descriptor table {desc:#x}, available ring {avail:#x}, used ring {used:#x}: outside of guest memory or misaligned"
    )]
    Place { desc: u64, avail: u64, used: u64 },
    #[error("the ring itself is broken: {waiting} requests wait in {size} entries")]
    Index { waiting: u16, size: u16 },
    #[error("the ring itself is broken: {0}")]
    Memory(#[from] GuestMemoryError),
}

/// Where a ring lies, by guest physical addresses, and how it is to be run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RingConfig {
    /// Entries; a power of two.
    pub size: u16,
    /// Address of the descriptor table.
    pub desc: u64,
    /// Address of the available ring.
    pub avail: u64,
    /// Address of the used ring.
    pub used: u64,
    /// Index of the next available entry to take.
    pub next_avail: u16,
    /// Whether VIRTIO_F_RING_EVENT_IDX was negotiated.
    pub event_idx: bool,
}

/// `VIRTQ_AVAIL_F_NO_INTERRUPT`.
const NO_INTERRUPT: u16 = 1;
/// `VIRTQ_USED_F_NO_NOTIFY`.
const NO_NOTIFY: u16 = 1;
/// Of both rings: flags, then the index, then the entries.
const FLAGS: usize = 0;
const INDEX: usize = 2;
const ENTRIES: usize = 4;
/// Bytes of an entry of the available ring, and of the used ring.
const AVAIL_ENTRY: usize = 2;
const USED_ENTRY: usize = 8;

/// What both halves know of the ring.
#[derive(Debug)]
struct Ring {
    size: u16,
    event_idx: bool,
    desc: Area,
    avail: Area,
    used: Area,
}

impl Ring {
    fn new(config: RingConfig, memory: &Memory) -> Result<Ring, RingError> {
        let RingConfig { size, desc, avail, used, event_idx, .. } = config;
        if !size.is_power_of_two() {
            return Err(RingError::Size(size));
        }
        let place = RingError::Place { desc, avail, used };
        let entries = usize::from(size);
        let area = |address, len, align| Area::new(memory, address, len, align);
        // An available ring at 0 is one that nobody has set.
        let (Some(desc), Some(avail), Some(used), true) = (
            area(desc, entries * DESCRIPTOR, 16),
            area(avail, ENTRIES + entries * AVAIL_ENTRY + size_of::<u16>(), 2),
            area(used, ENTRIES + entries * USED_ENTRY + size_of::<u16>(), 4),
            avail != 0,
        ) else {
            return Err(place);
        };
        Ok(Ring { size, event_idx, desc, avail, used })
    }

    /// Finds the ring in `memory`, if that is another than before.
    #[inline]
    fn see(&mut self, memory: &Memory) {
        self.desc.see(memory);
        self.avail.see(memory);
        self.used.see(memory);
    }

    /// Fills `chain` with what the descriptors from `head` on name; false if they are no chain.
    fn resolve(&self, memory: &Memory, head: u16, chain: &mut Chain) -> bool {
        let host = self.desc.host(memory, 0, self.desc.len);
        resolve(memory, host, self.desc.address, self.size, head, chain)
    }

    fn at(&self, index: u16) -> usize {
        usize::from(index & (self.size - 1))
    }

    /// Where the other side says at which index it wants to be told: behind the entries.
    fn event(&self, entry: usize) -> usize {
        ENTRIES + usize::from(self.size) * entry
    }

    /// Notes that the used ring was written.
    fn mark(&self, memory: &Memory) {
        memory.mark(self.used.address, self.used.len);
    }
}

/// Cuts a ring into its halves. The used index is taken from the ring itself, as vhost-user prescribes.
pub fn split(config: RingConfig, memory: &Memory) -> Result<(Available, Used), RingError> {
    let (available, used) = (Ring::new(config, memory)?, Ring::new(config, memory)?);
    let next_used = used.used.load(memory, INDEX, Ordering::Acquire)?;
    Ok((
        Available {
            ring: available,
            next: config.next_avail,
            again: Vec::new(),
            last: None,
            inflight: None,
            ahead: Ahead::default(),
        },
        Used { ring: used, next: next_used, told: next_used, inflight: None },
    ))
}

/// The index of a ring behind all that was given back to its driver so far.
pub fn used_index(config: RingConfig, memory: &Memory) -> Result<u16, RingError> {
    Ring::new(config, memory)?.used.load(memory, INDEX, Ordering::Acquire)
}

/// What was taken from the ring.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Popped {
    /// There is nothing to take.
    Nothing,
    /// The chain holds the next request, or what can be reached of it ([`Chain::faulted`]).
    Request,
    /// The next chain is not one (a loop, a readable descriptor after a writable one…): to be completed with length 0.
    Malformed {
        /// Index of the chain's first descriptor, as the driver gave it.
        head: u16,
    },
}

/// The half of a ring that takes work; one thread owns it.
#[derive(Debug)]
pub struct Available {
    ring: Ring,
    /// Index of the next entry to take.
    next: u16,
    /// Chains that were taken before and are to be taken once more, the first of them at the end.
    again: Vec<u16>,
    /// What was popped last, and whether that was for the first time.
    last: Option<(u16, bool)>,
    inflight: Option<Inflight>,
    ahead: Ahead,
}

impl Available {
    /// Takes the next request into `chain`, whose buffers are reused.
    pub fn pop(&mut self, memory: &Arc<Memory>, chain: &mut Chain) -> Result<Popped, RingError> {
        self.ring.see(memory);
        let waiting = self.waiting(memory)?;
        if waiting == 0 {
            return Ok(Popped::Nothing);
        }
        let head = match self.again.pop() {
            Some(head) => {
                self.last = Some((head, false));
                head
            }
            None => {
                let at = ENTRIES + self.ring.at(self.next) * AVAIL_ENTRY;
                // Behind the index, which was loaded with Acquire.
                let head = self.ring.avail.load(memory, at, Ordering::Relaxed)?;
                self.next = self.next.wrapping_add(1);
                if let Some(inflight) = &mut self.inflight {
                    inflight.take(head);
                }
                self.last = Some((head, true));
                head
            }
        };
        self.look_ahead(memory, waiting - 1);
        chain.restart(head, memory);
        match self.ring.resolve(memory, head, chain) {
            true => Ok(Popped::Request),
            false => Ok(Popped::Malformed { head }),
        }
    }

    /// Fetches what the next request will take, and the descriptors of the one after it.
    fn look_ahead(&mut self, memory: &Memory, waiting: usize) {
        let ring = &self.ring;
        let place = |next: u16| {
            let at = ENTRIES + ring.at(next) * AVAIL_ENTRY;
            let head = ring.avail.load(memory, at, Ordering::Relaxed).ok()?;
            ring.desc.host(memory, usize::from(head) * DESCRIPTOR, DESCRIPTOR)
        };
        if waiting > 0
            && let Some(host) = place(self.next)
        {
            self.ahead.fetch_message(memory, host);
        }
        if waiting > 1
            && let Some(host) = place(self.next.wrapping_add(1))
        {
            self.ahead.fetch_table(memory, host);
        }
    }

    /// Takes back the last [`Available::pop`]: the request comes again.
    pub fn put_back(&mut self) {
        match self.last.take() {
            Some((head, false)) => self.again.push(head),
            Some((head, true)) => {
                self.next = self.next.wrapping_sub(1);
                if let Some(inflight) = &self.inflight {
                    inflight.put_back(head);
                }
            }
            None => {}
        }
    }

    /// Chains that begin at these descriptors come before the next of the ring, in this order: they were taken from it, and never completed.
    pub fn take_again(&mut self, mut heads: Vec<u16>) {
        heads.reverse();
        self.again = heads;
    }

    /// Those of them that did not come yet.
    pub fn into_untaken(self) -> Vec<u16> {
        let mut heads = self.again;
        heads.reverse();
        heads
    }

    /// Notes there from now on what is taken.
    pub fn note_in(&mut self, inflight: Option<Inflight>) {
        self.inflight = inflight;
    }

    /// Whether a request waits.
    pub fn waits(&self, memory: &Memory) -> Result<bool, RingError> {
        Ok(self.waiting(memory)? != 0)
    }

    /// How many requests wait. An index that claims more than the ring has entries is a broken ring.
    pub fn waiting(&self, memory: &Memory) -> Result<usize, RingError> {
        let size = self.ring.size;
        let waiting = self.ring.avail.load(memory, INDEX, Ordering::Acquire)?.wrapping_sub(self.next);
        if waiting > size {
            return Err(RingError::Index { waiting, size });
        }
        Ok(usize::from(waiting) + self.again.len())
    }

    /// Asks the driver for a kick at the next request, and answers whether one came in the meantime: then there may be no kick.
    pub fn arm(&mut self, memory: &Memory) -> Result<bool, RingError> {
        self.ring.see(memory);
        let used = &self.ring.used;
        match self.ring.event_idx {
            true => used.store(memory, self.ring.event(USED_ENTRY), self.next, Ordering::Relaxed)?,
            false => used.store(memory, FLAGS, 0, Ordering::Relaxed)?,
        }
        self.ring.mark(memory);
        // The driver must see that it is to kick before the index is looked at for the last time.
        fence(Ordering::SeqCst);
        Ok(self.ring.avail.load(memory, INDEX, Ordering::Relaxed)? != self.next)
    }

    /// Tells the driver that kicks are not needed. With EVENT_IDX it kicks once at the index that it was asked for, and then no more.
    pub fn disarm(&mut self, memory: &Memory) -> Result<(), RingError> {
        self.ring.see(memory);
        if !self.ring.event_idx {
            self.ring.used.store(memory, FLAGS, NO_NOTIFY, Ordering::Relaxed)?;
            self.ring.mark(memory);
        }
        Ok(())
    }

    /// As [`Available::disarm`], so that the driver does not kick even once, until the next [`Available::arm`].
    pub fn hush(&mut self, memory: &Memory) -> Result<(), RingError> {
        self.disarm(memory)?;
        if self.ring.event_idx {
            // An index that the driver passed before; it comes there again after 65,535 more, and then one kick too many harms nobody.
            let passed = self.next.wrapping_sub(1);
            self.ring.used.store(memory, self.ring.event(USED_ENTRY), passed, Ordering::Relaxed)?;
            self.ring.mark(memory);
        }
        Ok(())
    }

    /// Entries of the ring.
    pub fn size(&self) -> u16 {
        self.ring.size
    }

    /// Index of the next available entry: what GET_VRING_BASE answers.
    pub fn next_avail(&self) -> u16 {
        self.next
    }
}

/// The half of a ring that completes work; whoever completes holds it alone for a moment.
#[derive(Debug)]
pub struct Used {
    ring: Ring,
    /// Index of the next entry to fill.
    next: u16,
    /// What it was when somebody last asked whether the driver is to be interrupted.
    told: u16,
    inflight: Option<Inflight>,
}

impl Used {
    /// Gives the chain that begins at `head` back to the driver, with `len` bytes written. A head outside of the ring is dropped:
    /// the driver never had such a chain.
    pub fn complete(&mut self, memory: &Arc<Memory>, head: u16, len: u32) -> Result<(), RingError> {
        if head >= self.ring.size {
            return Ok(());
        }
        self.ring.see(memory);
        if memory.tracks() {
            self.mark_reply(memory, head, len);
        }
        if let Some(inflight) = &self.inflight {
            inflight.completing(head);
        }
        let at = ENTRIES + self.ring.at(self.next) * USED_ENTRY;
        self.ring.used.store_pair(memory, at, [head.into(), len])?;
        self.next = self.next.wrapping_add(1);
        // The entry, and the reply, are there before the index says so.
        self.ring.used.store(memory, INDEX, self.next, Ordering::Release)?;
        if let Some(inflight) = &self.inflight {
            inflight.completed(head, self.next);
        }
        self.ring.mark(memory);
        Ok(())
    }

    /// Notes there from now on what was given back.
    pub fn note_in(&mut self, inflight: Option<Inflight>) {
        if let Some(inflight) = &inflight {
            inflight.stands_at(self.next);
        }
        self.inflight = inflight;
    }

    /// Notes where the reply lies that was just written: the descriptors still say it, and are the driver's again in a moment.
    fn mark_reply(&self, memory: &Arc<Memory>, head: u16, len: u32) {
        let mut chain = Chain::default();
        chain.restart(head, memory);
        self.ring.resolve(memory, head, &mut chain);
        chain.mark_written(len as usize);
    }

    /// Entries of the ring.
    pub fn size(&self) -> u16 {
        self.ring.size
    }

    /// Whether the driver wants an interrupt for what was completed since the last call.
    pub fn wants_call(&mut self, memory: &Memory) -> Result<bool, RingError> {
        self.ring.see(memory);
        // What was completed must be visible before the driver's wish is read.
        fence(Ordering::SeqCst);
        if !self.ring.event_idx {
            let flags = self.ring.avail.load(memory, FLAGS, Ordering::Relaxed)?;
            return Ok(flags & NO_INTERRUPT == 0);
        }
        // It wants one when this index is passed (`vring_need_event` of virtio_ring.h).
        let event = self.ring.avail.load(memory, self.ring.event(AVAIL_ENTRY), Ordering::Relaxed)?;
        let told = std::mem::replace(&mut self.told, self.next);
        Ok(self.next.wrapping_sub(event).wrapping_sub(1) < self.next.wrapping_sub(told))
    }
}

#[cfg(test)]
#[path = "ring_tests.rs"]
mod tests;
