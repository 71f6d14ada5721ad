//! The driver's half of a split virtqueue (virtio 1.3, section 2.7), with a fixed place in guest memory for every request.
//!
//! A ring has as many *slots* as it may have requests in flight. Each owns, from the start, a table of descriptors, a page for
//! headers and reply structs, room for arguments, and pages for data. A request of the same shape as the one before
//! in its slot changes no descriptor at all; nothing is allocated per request.

use std::sync::Arc;
use std::sync::atomic::{Ordering, fence};

use virtiofs_fuse::wire::{InHeader, OutHeader};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::check::{Expect, OUT_HEADER};
use crate::memory::{Memory, PAGE};
use crate::signal::Bell;
use crate::{Error, Framing, Result};

pub(crate) const NEXT: u16 = 1;
pub(crate) const WRITE: u16 = 2;
pub(crate) const INDIRECT: u16 = 4;
const NO_INTERRUPT: u16 = 1;
const NO_NOTIFY: u16 = 1;

/// Bytes of a request header.
pub(crate) const IN_HEADER: usize = size_of::<InHeader>();
// Where things are in a slot's area. Headers lie right before what follows them, so that both can be one buffer.
const REPLY: usize = 128;
const REPLY_HEADER: usize = REPLY - OUT_HEADER;
/// Room for the fixed part of a reply, in bytes. Larger replies go to data pages.
pub(crate) const REPLY_MAX: usize = 512;
const ARGS: usize = PAGE;
const HEADER: usize = ARGS - IN_HEADER;
/// Room for arguments and names, in bytes: a symlink of the longest name and target fits.
pub(crate) const ARGS_MAX: usize = 2 * PAGE;
const AREA_PAGES: usize = 3;

/// A descriptor as it lies in memory.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Descriptor {
    /// Guest address of the buffer.
    pub address: u64,
    /// Its bytes.
    pub len: u32,
    /// 1 next, 2 device-writable, 4 indirect.
    pub flags: u16,
    /// Index of the next descriptor.
    pub next: u16,
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
    fn table(&self) -> usize {
        if self.indirect { 2 * self.pages + 64 } else { usize::from(self.size / self.slots) }
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

/// The sizes of a request's parts, in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Shape {
    /// Arguments and names behind the header.
    pub args: usize,
    /// Data behind them, in pages.
    pub data_in: usize,
    /// Room for the reply's struct. With `wants_reply` false there is not even a reply header.
    pub reply: usize,
    /// Room for data behind it, in pages.
    pub data_out: usize,
    pub wants_reply: bool,
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

#[derive(Debug)]
struct Slot {
    /// Offsets of the descriptor table, of the area, and the guest address of the table.
    table: usize,
    table_address: u64,
    area: usize,
    /// The first data page of this slot in `Ring::pages`; the next ones are `Ring::stride` further each.
    shape: Option<Shape>,
    state: State,
    expect: Expect,
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
    slots: Vec<Slot>,
    free: Vec<u16>,
    pages: Vec<usize>,
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

    fn slot(&mut self, slot: u16) -> &mut Slot {
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

    /// Writes a request into its slot. `header.len` is set here; `args` are laid one behind the other, `ARGS_MAX` bytes
    /// at most; data has its own pages, see [`Ring::put_data`].
    pub(crate) fn fill(&mut self, slot: u16, mut header: InHeader, args: &[&[u8]], shape: Shape) -> Result<()> {
        debug_assert_eq!(args.iter().map(|part| part.len()).sum::<usize>(), shape.args);
        header.len = (IN_HEADER + shape.args + shape.data_in) as u32;
        if self.slot(slot).shape != Some(shape) {
            self.describe(slot, shape)?;
        }
        let memory = &self.memory;
        let at = &mut self.slots[usize::from(slot)];
        memory.store_as(at.area + HEADER, &header);
        let mut offset = at.area + ARGS;
        for part in args {
            memory.store(offset, part);
            offset += part.len();
        }
        let room = if shape.wants_reply { OUT_HEADER + shape.reply + shape.data_out } else { 0 };
        at.expect = Expect { opcode: header.opcode, unique: header.unique, room: room as u32, size_only: false };
        at.state = State::Filled;
        Ok(())
    }

    pub(crate) fn expect(&mut self, slot: u16) -> &mut Expect {
        &mut self.slot(slot).expect
    }

    /// Builds the descriptors of a slot anew.
    fn describe(&mut self, slot: u16, shape: Shape) -> Result<()> {
        if shape.args > ARGS_MAX || shape.reply > REPLY_MAX || shape.data_in + shape.data_out > self.layout.pages * PAGE
        {
            return Err(Error::Protocol(format!("a request of {shape:?} does not fit into its slot")));
        }
        self.slot(slot).shape = None;
        let at = &self.slots[usize::from(slot)];
        let mut table = Table::new(self, at);
        table.pair(at.area + HEADER, IN_HEADER, shape.args, 0);
        table.data(slot, 0, shape.data_in, 0);
        if shape.wants_reply {
            table.pair(at.area + REPLY_HEADER, OUT_HEADER, shape.reply, WRITE);
            table.data(slot, shape.data_in.div_ceil(PAGE), shape.data_out, WRITE);
        }
        let count = table.finish()?;
        if self.layout.indirect {
            let head = Descriptor { address: at.table_address, len: 16 * count as u32, flags: INDIRECT, next: 0 };
            self.memory.store_as(self.descriptors + 16 * usize::from(slot), &head);
        }
        self.slot(slot).shape = Some(shape);
        Ok(())
    }

    /// The next use of this slot builds its descriptors anew.
    pub(crate) fn spoil(&mut self, slot: u16) {
        self.slot(slot).shape = None;
    }

    pub(crate) fn table(&self, slot: u16) -> (usize, u64) {
        self.slots.get(usize::from(slot)).map_or((0, 0), |at| (at.table, at.table_address))
    }

    /// Index of the first descriptor of a slot in the ring's table.
    pub(crate) fn head(&self, slot: u16) -> u16 {
        if self.layout.indirect { slot } else { slot * (self.layout.size / self.layout.slots) }
    }

    fn page(&self, slot: u16, k: usize) -> usize {
        self.pages.get(usize::from(slot) * self.layout.pages + k).copied().unwrap_or(0)
    }

    fn each_page(&self, slot: u16, first: usize, len: usize, mut with: impl FnMut(usize, usize, usize)) {
        let mut done = 0;
        while done < len {
            let piece = PAGE.min(len - done);
            with(self.page(slot, first + done / PAGE), done, piece);
            done += piece;
        }
    }

    /// Copies the data that follows the arguments into its pages.
    pub(crate) fn put_data(&self, slot: u16, data: &[u8]) {
        self.each_page(slot, 0, data.len(), |page, at, len| {
            self.memory.store(page, data.get(at..at + len).unwrap_or(&[]));
        });
    }

    /// Fills the first `len` bytes of a slot's pages with a byte.
    pub(crate) fn fill_data(&self, slot: u16, len: usize, byte: u8) {
        self.each_page(slot, 0, len, |page, _, len| self.memory.fill(page, len, byte));
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

    /// The reply header of a slot that is `Done`, checked; with `strict` off only as far as needed to read on. Answers the bytes behind
    /// the header, or the errno.
    #[inline]
    pub(crate) fn outcome(&self, slot: u16) -> Result<usize> {
        let at = &self.slots[usize::from(slot)];
        let State::Done(used) = at.state else {
            return Err(Error::Protocol("a reply was asked for before the device was done".into()));
        };
        let header: OutHeader = self.memory.load_as(at.area + REPLY_HEADER);
        if self.strict {
            at.expect.verify(used, &header)?;
        } else if (used as usize) < OUT_HEADER {
            return Ok(0);
        }
        if at.expect.room == 0 {
            return Ok(0);
        }
        match header.error {
            0 => Ok((used.min(at.expect.room) as usize).saturating_sub(OUT_HEADER)),
            error => Err(Error::Errno(error.wrapping_neg())),
        }
    }

    /// A struct at `offset` of what follows the reply header in the struct's own room.
    #[inline]
    pub(crate) fn reply_as<T: FromBytes>(&self, slot: u16, offset: usize) -> T {
        debug_assert!(offset + size_of::<T>() <= REPLY_MAX);
        self.memory.load_as(self.slots[usize::from(slot)].area + REPLY + offset)
    }

    /// Appends the first `len` bytes behind the reply header to `out`.
    pub(crate) fn reply_bytes(&self, slot: u16, len: usize, out: &mut Vec<u8>) {
        let at = &self.slots[usize::from(slot)];
        let Some(shape) = at.shape else { return };
        let start = out.len();
        out.resize(start + len.min(shape.reply + shape.data_out), 0);
        let Some(new) = out.get_mut(start..) else { return };
        let (fixed, data) = new.split_at_mut(shape.reply.min(new.len()));
        self.memory.load(at.area + REPLY, fixed);
        self.each_page(slot, shape.data_in.div_ceil(PAGE), data.len(), |page, at, len| {
            if let Some(piece) = data.get_mut(at..at + len) {
                self.memory.load(page, piece);
            }
        });
    }

    /// The reply header as it lies there, for raw requests.
    pub(crate) fn reply_header(&self, slot: u16) -> [u8; OUT_HEADER] {
        self.memory.load_as(self.slots[usize::from(slot)].area + REPLY_HEADER)
    }

    /// Clears what an earlier reply left, so that a raw request sees what this one's reply wrote.
    pub(crate) fn wipe(&self, slot: u16) {
        self.memory.fill(self.slots[usize::from(slot)].area + REPLY_HEADER, REPLY + REPLY_MAX - REPLY_HEADER, 0);
    }
}

/// The descriptors of one request while they are written.
struct Table<'a> {
    ring: &'a Ring,
    table: usize,
    /// What `next` counts from: 0 in an indirect table.
    first: u16,
    room: usize,
    count: usize,
    last: Descriptor,
    full: bool,
}

impl<'a> Table<'a> {
    fn new(ring: &'a Ring, slot: &Slot) -> Table<'a> {
        let first = if ring.layout.indirect { 0 } else { ((slot.table - ring.descriptors) / 16) as u16 };
        let last = Descriptor::default();
        Table { ring, table: slot.table, first, room: ring.layout.table(), count: 0, last, full: false }
    }

    /// Describes `len` bytes at `offset`, in as many pieces as the framing wants.
    fn buffer(&mut self, offset: usize, len: usize, flags: u16) {
        let mut done = 0;
        while done < len {
            let piece = match self.ring.layout.framing {
                Framing::Pieces(size) => (len - done).min(size.max(1)),
                _ => len - done,
            };
            let address = self.ring.memory.address(offset + done);
            self.push(Descriptor { address, len: piece as u32, flags, next: 0 });
            done += piece;
        }
    }

    /// Describes a header and what lies right behind it.
    fn pair(&mut self, offset: usize, header: usize, rest: usize, flags: u16) {
        if self.ring.layout.framing == Framing::Linux {
            self.buffer(offset, header, flags);
            self.buffer(offset + header, rest, flags);
        } else {
            self.buffer(offset, header + rest, flags);
        }
    }

    fn data(&mut self, slot: u16, first: usize, len: usize, flags: u16) {
        if self.ring.layout.contiguous {
            return self.buffer(self.ring.page(slot, first), len, flags);
        }
        let ring = self.ring;
        ring.each_page(slot, first, len, |page, _, len| self.buffer(page, len, flags));
    }

    fn push(&mut self, new: Descriptor) {
        if self.count == self.room {
            self.full = true;
            return;
        }
        if self.count > 0 {
            self.last.flags |= NEXT;
            self.last.next = self.first + self.count as u16;
            self.ring.memory.store_as(self.table + 16 * (self.count - 1), &self.last);
        }
        self.last = new;
        self.count += 1;
    }

    fn finish(self) -> Result<usize> {
        if self.full || self.count == 0 {
            return Err(Error::Protocol(format!(
                "a request needs more than the {} descriptors of its slot",
                self.room
            )));
        }
        self.ring.memory.store_as(self.table + 16 * (self.count - 1), &self.last);
        Ok(self.count)
    }
}
