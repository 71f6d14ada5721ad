//! Requests and replies in the places that a ring has for them.

use virtiofs_fuse::wire::{InHeader, OutHeader};
use zerocopy::FromBytes;

use crate::check::{Expect, OUT_HEADER};
use crate::memory::PAGE;
use crate::ring::{Descriptor, Ring, State};
use crate::{Error, Framing, Result};

const NEXT: u16 = Descriptor::NEXT;
const WRITE: u16 = Descriptor::WRITE;

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
/// Pages of a slot's area.
pub(crate) const AREA_PAGES: usize = 3;

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

#[derive(Debug)]
pub(crate) struct Slot {
    /// Offsets of the descriptor table, of the area, and the guest address of the table.
    pub(crate) table: usize,
    pub(crate) table_address: u64,
    pub(crate) area: usize,
    /// What the descriptors say at present.
    pub(crate) shape: Option<Shape>,
    pub(crate) state: State,
    pub(crate) expect: Expect,
}

impl Ring {
    /// Writes a request into its slot. `header.len` 0 is replaced by the true length; `args` are laid one behind the other, `ARGS_MAX` bytes
    /// at most; data has its own pages, see [`Ring::put_data`].
    pub(crate) fn fill(&mut self, slot: u16, mut header: InHeader, args: &[&[u8]], shape: Shape) -> Result<()> {
        debug_assert_eq!(args.iter().map(|part| part.len()).sum::<usize>(), shape.args);
        if header.len == 0 {
            header.len = (IN_HEADER + shape.args + shape.data_in) as u32;
        }
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
            let head =
                Descriptor { address: at.table_address, len: 16 * count as u32, flags: Descriptor::INDIRECT, next: 0 };
            self.memory.store_as(self.descriptors + 16 * usize::from(slot), &head);
        }
        self.slot(slot).shape = Some(shape);
        Ok(())
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
