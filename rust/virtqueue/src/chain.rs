// UNSAFETY: guest memory is reached through raw pointers, since the guest changes it at will and no reference into it may
// exist. Both copies below go through vm-memory's VolatileSlice; system calls take the pointers as iovecs.
#![allow(unsafe_code)]

//! One request of a virtqueue.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, LazyLock};

use vm_memory::VolatileSlice;

use crate::Memory;
use crate::memory::Place;

/// A descriptor chain: the request as a stream of bytes, and the room for its reply.
///
/// Its descriptors were resolved and checked when it was taken from the ring, each against the regions of the memory that it
/// holds on to; what lies in that memory is the guest's to change until the end. No framing is assumed: bytes count, descriptors
/// do not.
#[derive(Debug)]
pub struct Chain {
    head: u16,
    /// Keeps mapped what the iovecs point to.
    memory: Arc<Memory>,
    /// The region that held the last descriptor: most guests have one or two.
    place: Place,
    readable: Vec<libc::iovec>,
    writable: Vec<libc::iovec>,
    room: usize,
    unread: usize,
    /// Next byte to read: which iovec, and where in it.
    at: (usize, usize),
    /// The part of either side that was last lent to a system call.
    lent: Vec<libc::iovec>,
    /// What stands for remote memory: most chains have none.
    bounces: Vec<Bounce>,
    /// Bytes in them.
    bounced: usize,
    /// Memory that a descriptor names was not to be had. Each side ends before the first such byte.
    fault: bool,
    /// The sides that have ended: the request, the room for the reply.
    cut: [bool; 2],
}

/// A buffer of ours in place of memory that is not mapped.
#[derive(Debug)]
struct Bounce {
    buffer: Vec<u8>,
    address: u64,
    /// Where in the room for the reply it lies; `None` for a part of the request.
    at: Option<usize>,
    /// What it counts for.
    in_all: Arc<AtomicUsize>,
}

impl Drop for Bounce {
    fn drop(&mut self) {
        self.in_all.fetch_sub(self.buffer.len(), Ordering::Relaxed);
    }
}

/// Bytes of remote memory in one chain: more than any request has.
const BOUNCES_MAX: usize = 16 << 20;
/// The same in all chains of a device that are in flight: as many as 64 honest ones of 4 MiB have.
const IN_ALL_MAX: usize = 256 << 20;

// SAFETY: the pointers lead into mappings that `memory` keeps alive, which do not belong to any thread; the chain itself is
// used by one thread at a time (no method that touches memory takes `&self` beside `&mut self` ones).
unsafe impl Send for Chain {}

impl Default for Chain {
    /// A chain of nothing.
    fn default() -> Chain {
        Chain {
            head: 0,
            memory: Arc::default(),
            place: Place::NOWHERE,
            readable: Vec::new(),
            writable: Vec::new(),
            room: 0,
            unread: 0,
            at: (0, 0),
            lent: Vec::new(),
            bounces: Vec::new(),
            bounced: 0,
            fault: false,
            cut: [false; 2],
        }
    }
}

impl Chain {
    /// Empties the chain for the next head; keeps its allocations.
    pub(crate) fn restart(&mut self, head: u16, memory: &Arc<Memory>) {
        self.head = head;
        if !Arc::ptr_eq(&self.memory, memory) {
            self.memory = Arc::clone(memory);
            self.place = Place::NOWHERE;
        }
        self.readable.clear();
        self.writable.clear();
        (self.room, self.unread, self.at) = (0, 0, (0, 0));
        self.bounces.clear();
        self.bounced = 0;
        self.fault = false;
        self.cut = [false; 2];
    }

    /// Lets go of the guest's memory.
    pub fn clear(&mut self) {
        static NONE: LazyLock<Arc<Memory>> = LazyLock::new(Arc::default);
        self.restart(0, &NONE);
        self.lent.clear();
    }

    /// Where `len` bytes at `address` are mapped, if one region holds them.
    pub(crate) fn mapped(&mut self, address: u64, len: usize) -> Option<*mut u8> {
        if self.place.host(address).is_none() {
            self.place = self.memory.place(address)?;
        }
        self.place.host(address).filter(|(_, available)| len <= *available).map(|(host, _)| host)
    }

    /// Appends what one descriptor describes. Pieces that are neighbours on the host become one iovec. From the first byte that is not
    /// guest memory on, its side of the chain has no more, and the chain is a [fault](Chain::faulted): what lies before can still tell who
    /// asked, and take the answer.
    pub(crate) fn push(&mut self, mut address: u64, len: u32, writable: bool) {
        let mut left = len as usize;
        while left > 0 && !self.has_ended(writable) {
            let piece = match self.place.host(address) {
                Some((host, available)) => {
                    let piece = left.min(available);
                    let side = if writable { &mut self.writable } else { &mut self.readable };
                    match side.last_mut() {
                        Some(last) if last.iov_base.cast::<u8>().wrapping_add(last.iov_len) == host => {
                            last.iov_len += piece
                        }
                        _ => side.push(libc::iovec { iov_base: host.cast(), iov_len: piece }),
                    }
                    piece
                }
                None => match self.memory.place(address) {
                    Some(place) => {
                        self.place = place;
                        continue;
                    }
                    None => self.bounce(address, left, writable.then_some(self.room)).unwrap_or(0),
                },
            };
            left -= piece;
            if writable {
                self.room += piece
            } else {
                self.unread += piece
            }
            let next = address.checked_add(piece as u64);
            if piece == 0 || left > 0 && next.is_none() {
                self.fault = true;
                self.cut[usize::from(writable)] = true;
            }
            address = next.unwrap_or(0);
        }
    }

    fn has_ended(&self, writable: bool) -> bool {
        self.cut[usize::from(writable)]
    }

    /// Puts a buffer in place of remote memory at `address`, and answers how many of `len` bytes it holds.
    fn bounce(&mut self, address: u64, len: usize, at: Option<usize>) -> Option<usize> {
        let (remote, offset, available) = self.memory.remote(address)?;
        let len = len.min(available);
        if len > BOUNCES_MAX - self.bounced {
            return None;
        }
        let more = |bytes: usize| bytes.checked_add(len).filter(|bytes| *bytes <= IN_ALL_MAX);
        self.memory.bounced.fetch_update(Ordering::Relaxed, Ordering::Relaxed, more).ok()?;
        self.bounced += len;
        let mut bounce = Bounce { buffer: vec![0; len], address, at, in_all: Arc::clone(&self.memory.bounced) };
        if at.is_none() && !remote.load(offset, &mut bounce.buffer) {
            return None;
        }
        let buffer = &mut bounce.buffer;
        let iovec = libc::iovec { iov_base: buffer.as_mut_ptr().cast(), iov_len: len };
        let side = if at.is_some() { &mut self.writable } else { &mut self.readable };
        side.push(iovec);
        self.bounces.push(bounce);
        Some(len)
    }

    /// Whether a part of the chain lies where there is no memory.
    pub fn faulted(&self) -> bool {
        self.fault
    }

    /// Brings what a reply of `len` bytes holds to remote memory. To be called once, before the chain is completed; false if there was
    /// no memory to take it.
    #[must_use]
    pub fn settle(&mut self, len: usize) -> bool {
        self.bounces.iter().all(|bounce| {
            let Some(filled) = bounce.at.and_then(|at| len.checked_sub(at)) else { return true };
            let Some(bytes) = bounce.buffer.get(..filled.min(bounce.buffer.len())) else { return true };
            let remote = self.memory.remote(bounce.address);
            remote.is_some_and(|(remote, offset, _)| bytes.is_empty() || remote.store(offset, bytes))
        })
    }

    /// Index of the chain's first descriptor, by which it is completed.
    pub fn head(&self) -> u16 {
        self.head
    }

    /// Bytes of the request that were not read yet.
    pub fn unread(&self) -> usize {
        self.unread
    }

    /// Bytes of room for the reply.
    pub fn room(&self) -> usize {
        self.room
    }

    /// Goes back to the first byte of the request.
    pub fn rewind(&mut self) {
        self.at = (0, 0);
        self.unread = self.readable.iter().map(|iovec| iovec.iov_len).sum();
    }

    /// Reads the next `buf.len()` bytes of the request, or answers false and reads none.
    #[must_use]
    pub fn read(&mut self, buf: &mut [u8]) -> bool {
        if buf.len() > self.unread {
            return false;
        }
        let mut rest = buf;
        while !rest.is_empty() {
            let Some(piece) = self.next_piece(rest.len()) else { return false };
            // SAFETY: `piece` is a part of an iovec of this chain, which was checked against the mapping that `self.memory` keeps
            // alive; the slice does not outlive this statement.
            let from = unsafe { VolatileSlice::new(piece.iov_base.cast(), piece.iov_len) };
            let done = from.copy_to(rest);
            self.advance(piece.iov_len);
            rest = rest.get_mut(done..).unwrap_or_default();
        }
        true
    }

    /// Takes the next `len` bytes of the request as iovecs, or answers `None` and takes none.
    pub fn read_iovecs(&mut self, len: usize) -> Option<&[libc::iovec]> {
        if len > self.unread {
            return None;
        }
        self.lent.clear();
        let mut left = len;
        while left > 0 {
            let piece = self.next_piece(left)?;
            self.lent.push(piece);
            self.advance(piece.iov_len);
            left -= piece.iov_len;
        }
        Some(&self.lent)
    }

    fn next_piece(&self, limit: usize) -> Option<libc::iovec> {
        let iovec = self.readable.get(self.at.0)?;
        Some(part(iovec, self.at.1, limit))
    }

    fn advance(&mut self, len: usize) {
        self.unread -= len;
        self.at.1 += len;
        if self.readable.get(self.at.0).is_some_and(|iovec| iovec.iov_len == self.at.1) {
            self.at = (self.at.0 + 1, 0);
        }
    }

    /// Writes `bytes` at `offset` of the room, or answers false and writes none.
    #[must_use]
    pub fn write(&mut self, offset: usize, bytes: &[u8]) -> bool {
        let put = |piece: &libc::iovec, bytes: &[u8]| {
            // SAFETY: as in `read`: the piece lies in a mapping that `self.memory` keeps alive, and was mapped for writing.
            let to = unsafe { VolatileSlice::new(piece.iov_base.cast(), piece.iov_len) };
            to.copy_from(bytes);
        };
        // Most replies have one piece of memory.
        if let Some(first) = self.writable.first()
            && offset.checked_add(bytes.len()).is_some_and(|end| end <= first.iov_len)
        {
            put(&part(first, offset, bytes.len()), bytes);
            return true;
        }
        let Some(pieces) = self.write_iovecs(offset, bytes.len()) else { return false };
        let mut rest = bytes;
        for piece in pieces {
            let Some((now, later)) = rest.split_at_checked(piece.iov_len) else { return false };
            put(piece, now);
            rest = later;
        }
        true
    }

    /// Notes that the first `len` bytes of the room were written.
    pub(crate) fn mark_written(&self, len: usize) {
        let mut left = len;
        for iovec in &self.writable {
            self.memory.mark_host(iovec.iov_base.cast(), iovec.iov_len.min(left));
            left = left.saturating_sub(iovec.iov_len);
        }
    }

    /// The room from `offset` on, `len` bytes, as iovecs, or `None` if there is less.
    pub fn write_iovecs(&mut self, offset: usize, len: usize) -> Option<&[libc::iovec]> {
        if offset.checked_add(len)? > self.room {
            return None;
        }
        self.lent.clear();
        let (mut skip, mut left) = (offset, len);
        for iovec in &self.writable {
            if left == 0 {
                break;
            }
            if skip >= iovec.iov_len {
                skip -= iovec.iov_len;
                continue;
            }
            let piece = part(iovec, skip, left);
            left -= piece.iov_len;
            skip = 0;
            self.lent.push(piece);
        }
        Some(&self.lent)
    }
}

/// The bytes of `iovec` from `offset` on, `limit` at most. `offset` lies within it.
fn part(iovec: &libc::iovec, offset: usize, limit: usize) -> libc::iovec {
    libc::iovec {
        iov_base: iovec.iov_base.cast::<u8>().wrapping_add(offset).cast(),
        iov_len: (iovec.iov_len - offset).min(limit),
    }
}

#[cfg(test)]
#[path = "chain_tests.rs"]
mod tests;
