//! The driver's half of a split virtqueue (virtio 1.3, section 2.7), with a fixed place in guest memory for every request.
//!
//! A ring has as many *slots* as it may have requests in flight. Each owns, from the start, a table of descriptors, a page for
//! headers and reply structs, room for arguments, and pages for data. A request of the same shape as the one before
//! in its slot changes no descriptor at all; nothing is allocated per request. Here is the ring, in `slot.rs` what is in the slots.

use std::sync::Arc;
use std::sync::atomic::{Ordering, fence};

use virtiofs_fuse::wire::OutHeader;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::check::Expect;
use crate::memory::{Memory, PAGE};
use crate::signal::Bell;
use crate::slot::{AREA_PAGES, ARGS_MAX, Slot};
use crate::{Error, Framing, Result};

const NO_INTERRUPT: u16 = 1;
const NO_NOTIFY: u16 = 1;

/// A descriptor as it lies in memory.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Descriptor {
    /// Guest address of the buffer.
    pub address: u64,
    /// Its bytes.
    pub len: u32,
    /// [`Descriptor::NEXT`], [`Descriptor::WRITE`], [`Descriptor::INDIRECT`].
    pub flags: u16,
    /// Index of the next descriptor.
    pub next: u16,
}

impl Descriptor {
    /// `next` is valid.
    pub const NEXT: u16 = 1;
    /// The device may write the buffer, and only write.
    pub const WRITE: u16 = 2;
    /// The buffer is a table of descriptors.
    pub const INDIRECT: u16 = 4;
}

#[derive(Clone, Copy, Debug, FromBytes, Immutable, KnownLayout)]
#[repr(C)]
struct Used {
    id: u32,
    len: u32,
}

/// How a ring is laid out.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Layout {
    /// Descriptors, a power of two.
    pub size: u16,
    /// Requests in flight at most.
    pub slots: u16,
    /// Data pages of each slot.
    pub pages: usize,
    pub indirect: bool,
    pub event_idx: bool,
    pub contiguous: bool,
    pub framing: Framing,
}

impl Layout {
    /// Descriptors that each slot has.
    pub(crate) fn table(&self) -> usize {
        if !self.indirect {
            return usize::from(self.size / self.slots);
        }
        let pieces = match self.framing {
            Framing::Pieces(size) => (self.pages * PAGE + ARGS_MAX) / size.max(1),
            _ => self.pages,
        };
        // No chain may be longer than its ring (virtio 1.3, 2.7.5.3.1).
        (pieces + self.pages + 64).min(usize::from(self.size))
    }

    /// Guest memory that a ring takes, in pages.
    pub(crate) fn memory(&self) -> usize {
        let ring = (16 * usize::from(self.size)).div_ceil(PAGE)
            + (6 + 2 * usize::from(self.size)).div_ceil(PAGE)
            + (6 + 8 * usize::from(self.size)).div_ceil(PAGE);
        let table = if self.indirect { (16 * self.table()).div_ceil(PAGE) } else { 0 };
        ring + usize::from(self.slots) * (table + AREA_PAGES + self.pages)
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum State {
    Free,
    Filled,
    Busy,
    /// The device is done, and reported this length.
    Done(u32),
    /// Nobody waits any more, but the device still has it.
    Abandoned,
}

/// A ring seen by its driver. One thread at a time.
#[derive(Debug)]
pub(crate) struct Ring {
    pub(crate) memory: Arc<Memory>,
    pub(crate) layout: Layout,
    pub(crate) descriptors: usize,
    pub(crate) avail: usize,
    pub(crate) used: usize,
    bell: Bell,
    next_avail: u16,
    /// What the device was last shown of `next_avail`.
    shown: u16,
    next_used: u16,
    pub(crate) slots: Vec<Slot>,
    free: Vec<u16>,
    pub(crate) pages: Vec<usize>,
    pub(crate) in_flight: usize,
    /// Calls and kicks, for statistics.
    pub(crate) kicks: u64,
    pub(crate) strict: bool,
    /// Counts resets, so that who waits for a request notices that it was forgotten.
    pub(crate) epoch: u64,
}

impl Ring {
    pub(crate) fn new(memory: &Arc<Memory>, layout: Layout, strict: bool) -> Result<Ring> {
        let size = usize::from(layout.size);
        let descriptors = memory.take((16 * size).div_ceil(PAGE))?;
        let avail = memory.take((6 + 2 * size).div_ceil(PAGE))?;
        let used = memory.take((6 + 8 * size).div_ceil(PAGE))?;
        let count = usize::from(layout.slots);
        let mut slots = Vec::with_capacity(count);
        for i in 0..count {
            let table = match layout.indirect {
                true => memory.take((16 * layout.table()).div_ceil(PAGE))?,
                false => descriptors + 16 * i * layout.table(),
            };
            slots.push(Slot {
                table,
                table_address: memory.address(table),
                area: memory.take(AREA_PAGES)?,
                shape: None,
                state: State::Free,
                expect: Expect::default(),
            });
        }
        let mut pages = vec![0; count * layout.pages];
        if layout.contiguous && layout.pages > 0 {
            for of_slot in pages.chunks_mut(layout.pages) {
                let start = memory.take(layout.pages)?;
                of_slot.iter_mut().enumerate().for_each(|(k, page)| *page = start + k * PAGE);
            }
        } else {
            // Neighbours in memory go to different slots, so that a request's pages are scattered as a real guest's are.
            for k in 0..layout.pages {
                for slot in 0..count {
                    if let Some(page) = pages.get_mut(slot * layout.pages + k) {
                        *page = memory.take(1)?;
                    }
                }
            }
        }
        Ok(Ring {
            memory: Arc::clone(memory),
            layout,
            descriptors,
            avail,
            used,
            bell: Bell::Call(Box::new(|| Ok(()))),
            next_avail: 0,
            shown: 0,
            next_used: 0,
            slots,
            free: (0..layout.slots).rev().collect(),
            pages,
            in_flight: 0,
            kicks: 0,
            strict,
            epoch: 0,
        })
    }

    /// Sets how the device is told of new buffers.
    pub(crate) fn connect(&mut self, bell: Bell) {
        self.bell = bell;
    }

    /// Forgets all that is in flight and starts over with empty rings, as after a reset of the device.
    pub(crate) fn reset(&mut self) {
        for offset in [self.avail, self.avail + 2, self.used, self.used + 2] {
            self.memory.index(offset).store(0, Ordering::Release);
        }
        (self.next_avail, self.shown, self.next_used, self.in_flight) = (0, 0, 0, 0);
        self.epoch += 1;
        self.free = (0..self.layout.slots).rev().collect();
        self.slots.iter_mut().for_each(|slot| slot.state = State::Free);
    }

    /// Position in the available ring that the device has to begin with.
    pub(crate) fn base(&self) -> u16 {
        self.next_used
    }

    pub(crate) fn slot(&mut self, slot: u16) -> &mut Slot {
        &mut self.slots[usize::from(slot)]
    }

    /// A slot for a request, if one is free.
    #[inline]
    pub(crate) fn acquire(&mut self) -> Option<u16> {
        self.free.pop()
    }

    pub(crate) fn release(&mut self, slot: u16) {
        self.slot(slot).state = State::Free;
        self.free.push(slot);
    }

    /// Gives up on a request: its slot becomes free when the device is done with it.
    pub(crate) fn abandon(&mut self, slot: u16) {
        match self.slot(slot).state {
            State::Busy => self.slot(slot).state = State::Abandoned,
            _ => self.release(slot),
        }
    }

    /// After somebody else has written the rings: descriptors are built anew at their next use, and what is in flight is what slots
    /// say.
    pub(crate) fn take_back(&mut self) {
        self.slots.iter_mut().for_each(|slot| slot.shape = None);
        let busy = |slot: &&Slot| matches!(slot.state, State::Busy | State::Abandoned);
        self.in_flight = self.slots.iter().filter(busy).count();
        self.shown = self.next_avail;
    }

    /// Index of the first descriptor of a slot in the ring's table.
    pub(crate) fn head(&self, slot: u16) -> u16 {
        if self.layout.indirect { slot } else { slot * (self.layout.size / self.layout.slots) }
    }

    /// Makes a filled slot available. [`Ring::kick`] tells the device.
    #[inline]
    pub(crate) fn submit(&mut self, slot: u16) {
        self.slot(slot).state = State::Busy;
        self.offer(self.head(slot));
    }

    /// Puts a descriptor index into the available ring, whatever it is.
    #[inline]
    pub(crate) fn offer(&mut self, head: u16) {
        let position = usize::from(self.next_avail & (self.layout.size - 1));
        self.memory.index(self.avail + 4 + 2 * position).store(head, Ordering::Relaxed);
        self.next_avail = self.next_avail.wrapping_add(1);
        self.in_flight += 1;
        self.memory.index(self.avail + 2).store(self.next_avail, Ordering::Release);
    }

    /// Wakes the device if it wants to be woken for what was submitted since the last kick.
    #[inline]
    pub(crate) fn kick(&mut self) -> Result<()> {
        if self.next_avail == self.shown {
            return Ok(());
        }
        // The index must be visible before the device's wish is read (virtio 1.3, 2.7.13.4.1).
        fence(Ordering::SeqCst);
        let old = std::mem::replace(&mut self.shown, self.next_avail);
        let wanted = if self.layout.event_idx {
            let event = self.memory.index(self.used + 4 + 8 * usize::from(self.layout.size)).load(Ordering::Relaxed);
            self.next_avail.wrapping_sub(event).wrapping_sub(1) < self.next_avail.wrapping_sub(old)
        } else {
            self.memory.index(self.used).load(Ordering::Relaxed) & NO_NOTIFY == 0
        };
        if wanted { self.kick_always() } else { Ok(()) }
    }

    pub(crate) fn kick_always(&mut self) -> Result<()> {
        self.kicks += 1;
        self.bell.ring()
    }

    /// Takes the next completion: the slot, now `Done`, or free again if it was abandoned.
    #[inline]
    pub(crate) fn reap(&mut self) -> Result<Option<u16>> {
        loop {
            let Some((id, len)) = self.take_used()? else { return Ok(None) };
            let stride = if self.layout.indirect { 1 } else { u32::from(self.layout.size / self.layout.slots) };
            let slot = u16::try_from(id / stride).ok().filter(|_| id.is_multiple_of(stride));
            let slot = slot.filter(|slot| usize::from(*slot) < self.slots.len());
            let Some(slot) = slot else {
                return Err(Error::Protocol(format!("the device used descriptor {id}, which is no request's head")));
            };
            match self.slot(slot).state {
                State::Busy => {
                    self.slot(slot).state = State::Done(len);
                    return Ok(Some(slot));
                }
                State::Abandoned => {
                    let expect = self.slot(slot).expect;
                    self.release(slot);
                    if self.strict && expect.room == 0 {
                        expect.verify(len, &OutHeader::default())?;
                    }
                }
                state => return Err(Error::Protocol(format!("the device used descriptor {id}, which is {state:?}"))),
            }
        }
    }

    /// Takes all completions that are there: how many.
    pub(crate) fn reap_all(&mut self) -> Result<usize> {
        let mut count = 0;
        while self.has_used() {
            self.reap()?;
            count += 1;
        }
        Ok(count)
    }

    /// Whether the device has returned something that was not taken yet.
    #[inline]
    pub(crate) fn has_used(&self) -> bool {
        self.memory.index(self.used + 2).load(Ordering::Acquire) != self.next_used
    }

    /// The next entry of the used ring: descriptor index and length.
    #[inline]
    pub(crate) fn take_used(&mut self) -> Result<Option<(u32, u32)>> {
        if !self.has_used() {
            return Ok(None);
        }
        let position = usize::from(self.next_used & (self.layout.size - 1));
        let entry: Used = self.memory.load_as(self.used + 4 + 8 * position);
        self.next_used = self.next_used.wrapping_add(1);
        self.in_flight = self
            .in_flight
            .checked_sub(1)
            .ok_or_else(|| Error::Protocol(format!("the device used descriptor {} though it had none", entry.id)))?;
        Ok(Some((entry.id, entry.len)))
    }

    /// Asks for a call at the next completion. True if one is there already, so that waiting would be wrong.
    pub(crate) fn arm(&self) -> bool {
        if self.layout.event_idx {
            self.memory
                .index(self.avail + 4 + 2 * usize::from(self.layout.size))
                .store(self.next_used, Ordering::Relaxed);
        } else {
            self.memory.index(self.avail).store(0, Ordering::Relaxed);
        }
        fence(Ordering::SeqCst);
        self.has_used()
    }

    /// Asks for no calls for the time being. With EVENT_IDX one may still come, once in 65,536 completions.
    pub(crate) fn disarm(&self) {
        if self.layout.event_idx {
            let past = self.next_used.wrapping_sub(1);
            self.memory.index(self.avail + 4 + 2 * usize::from(self.layout.size)).store(past, Ordering::Relaxed);
        } else {
            self.memory.index(self.avail).store(NO_INTERRUPT, Ordering::Relaxed);
        }
    }

    pub(crate) fn state(&self, slot: u16) -> State {
        self.slots.get(usize::from(slot)).map_or(State::Free, |at| at.state)
    }
}
