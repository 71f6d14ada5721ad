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
mod tests {
    use super::*;
    use crate::Remote;
    use crate::memory::tests::region;

    /// A chain over two regions that are neighbours for the guest, cut into pieces of odd sizes.
    fn chain(readable: &[u32], writable: &[u32]) -> Chain {
        let memory = Arc::new(Memory::new(vec![region(0x1000, 0x1000), region(0x2000, 0x1000)]).unwrap());
        let mut chain = Chain::default();
        chain.restart(7, &memory);
        let mut address = 0x1f80;
        for (sizes, is_writable) in [(readable, false), (writable, true)] {
            for &size in sizes {
                chain.push(address, size, is_writable);
                address += u64::from(size) + 3;
            }
        }
        assert!(!chain.faulted());
        chain
    }

    #[test]
    fn bytes_count_and_descriptors_do_not() {
        let sizes = [1, 39, 0, 100, 5];
        let mut writer = chain(&[], &sizes);
        let bytes: Vec<u8> = (0..145).map(|i| i as u8).collect();
        assert!(writer.write(0, &bytes));
        assert!(!writer.write(1, &bytes), "one byte too many");
        // The same memory, read: an honest round trip through other pieces.
        let mut reader = Chain::default();
        reader.restart(0, &writer.memory.clone());
        let mut address = 0x1f80;
        for size in sizes {
            reader.push(address, size, false);
            address += u64::from(size) + 3;
        }
        let mut head = [0; 40];
        assert!(reader.read(&mut head));
        assert_eq!(head[..], bytes[..40]);
        let mut rest = vec![0; 106];
        assert!(!reader.read(&mut rest), "there are 105 left");
        assert_eq!(reader.unread(), 105);
        assert!(reader.read(&mut rest[..105]));
        assert_eq!(rest[..105], bytes[40..]);
        reader.rewind();
        assert_eq!(reader.unread(), 145);
        let iovecs = reader.read_iovecs(145).unwrap();
        assert_eq!(iovecs.iter().map(|iovec| iovec.iov_len).sum::<usize>(), 145);
        assert!(
            iovecs.len() >= 3,
            "the piece across both regions has two iovecs unless they are neighbours on the host"
        );
    }

    #[test]
    fn neighbours_become_one_iovec_and_offsets_cut_it() {
        let memory = Arc::new(Memory::new(vec![region(0, 0x4000)]).unwrap());
        let mut chain = Chain::default();
        chain.restart(0, &memory);
        for page in 0..4 {
            chain.push(page * 0x1000, 0x1000, true);
        }
        assert_eq!(chain.write_iovecs(0, 0x4000).unwrap().len(), 1);
        let cut = chain.write_iovecs(16, 100).unwrap();
        assert_eq!((cut.len(), cut[0].iov_len), (1, 100));
        assert!(chain.write_iovecs(0x3fff, 2).is_none());
        assert!(chain.write_iovecs(usize::MAX, 2).is_none());
        assert_eq!(chain.write_iovecs(0x4000, 0).unwrap().len(), 0);
    }

    /// Remote memory of ten bytes that may be written but for the last two.
    #[derive(Debug)]
    struct Ten(parking_lot::Mutex<Vec<u8>>);

    impl Remote for Ten {
        fn load(&self, offset: u64, out: &mut [u8]) -> bool {
            let bytes = self.0.lock();
            let from = bytes.get(offset as usize..).and_then(|bytes| bytes.get(..out.len()));
            from.map(|from| out.copy_from_slice(from)).is_some()
        }

        fn store(&self, offset: u64, from: &[u8]) -> bool {
            let mut bytes = self.0.lock();
            let to = bytes[..8].get_mut(offset as usize..).and_then(|to| to.get_mut(..from.len()));
            to.map(|to| to.copy_from_slice(from)).is_some()
        }
    }

    #[test]
    fn memory_elsewhere_is_read_before_and_written_after() {
        let ten = Arc::new(Ten(parking_lot::Mutex::new((0..10).collect())));
        let memory = Memory::new(vec![region(0x1000, 0x1000)]).unwrap();
        let memory = Arc::new(memory.with_remote(0x8000, 20, ten.clone()));
        let mut chain = Chain::default();
        chain.restart(0, &memory);
        for (address, len, writable) in
            [(0x1000, 4, false), (0x8002, 3, false), (0x1100, 16, true), (0x8004, 6, true), (0x1200, 4, true)]
        {
            chain.push(address, len, writable);
        }
        assert!(!chain.faulted());
        let mut request = [9; 7];
        assert!(chain.read(&mut request));
        assert_eq!(request, [0, 0, 0, 0, 2, 3, 4]);
        assert!(chain.write(0, &[7; 26]));
        assert_eq!(ten.0.lock()[4], 4, "not before the end");
        assert!(chain.settle(20), "four of the six bytes fit");
        assert_eq!(ten.0.lock()[..], [0, 1, 2, 3, 7, 7, 7, 7, 8, 9]);
        assert!(!chain.settle(21));
        for (address, len, fault) in [(0x8000, 10, false), (0x8000, 11, true), (0x800a, 1, true)] {
            chain.restart(0, &memory);
            chain.push(address, len, false);
            assert_eq!(chain.faulted(), fault);
        }
        for (address, len, writable) in [(0x8010, 5, false), (0x7fff, 2, true)] {
            chain.restart(0, &memory);
            chain.push(address, len, writable);
            assert!(chain.faulted(), "there is less than that");
        }
        chain.restart(0, &memory);
        (0..BOUNCES_MAX).for_each(|_| chain.push(0x8000, 20, true));
        assert!(chain.faulted(), "more than any request has");
        assert!(chain.room() <= BOUNCES_MAX);
    }

    #[test]
    fn several_windows_are_told_apart() {
        let ten = |first| Arc::new(Ten(parking_lot::Mutex::new((first..first + 10).collect()))) as Arc<dyn Remote>;
        let (one, two) = (ten(0), ten(100));
        let memory = Memory::new(vec![region(0x1000, 0x1000)]).unwrap();
        let memory = memory.with_remote(0x8000, 10, one.clone()).with_remote(0x9000, 10, two.clone());
        let first = |memory: &Memory, address| {
            let mut chain = Chain::default();
            chain.restart(0, &Arc::new(memory.clone()));
            chain.push(address, 1, false);
            let mut byte = [0];
            chain.read(&mut byte).then_some(byte[0])
        };
        assert_eq!((first(&memory, 0x8001), first(&memory, 0x9001)), (Some(1), Some(101)));
        for (start, size) in [(0x1fff, 1), (0, 0x1001), (0x8009, 1), (0x7000, 0x3000), (u64::MAX, 2)] {
            assert!(memory.check_free(start, size).is_err(), "{start:#x}");
        }
        assert!(memory.check_free(0x2000, 0x6000).is_ok());
        let moved = memory.with_remote(0xa000, 10, one.clone()).without_remote(&two);
        assert_eq!((moved.remote_start(&one), moved.remote_start(&two)), (Some(0xa000), None));
        assert_eq!((first(&moved, 0x8001), first(&moved, 0x9001), first(&moved, 0xa001)), (None, None, Some(1)));
    }

    #[test]
    fn addresses_outside_of_guest_memory_are_faults() {
        let memory = Arc::new(Memory::new(vec![region(0x1000, 0x1000)]).unwrap());
        for (address, len) in
            [(0, 1), (0xfff, 2), (0x1fff, 2), (0x1000, 0x1001), (u64::MAX, 1), (u64::MAX, 2), (0x1000, u32::MAX)]
        {
            let mut chain = Chain::default();
            chain.restart(0, &memory);
            chain.push(address, len, true);
            assert!(chain.faulted(), "{address:#x} {len:#x}");
            let room = chain.room();
            chain.push(0x1000, 8, true);
            assert_eq!(chain.room(), room, "nothing comes behind what is not there: {address:#x} {len:#x}");
            chain.push(0x1000, 8, false);
            assert_eq!(chain.unread(), 8, "the other side is as it was: {address:#x} {len:#x}");
        }
    }

    #[test]
    fn what_stands_for_remote_memory_is_bounded_in_all_chains_together() {
        #[derive(Debug)]
        struct Vast;
        impl Remote for Vast {
            fn load(&self, _: u64, _: &mut [u8]) -> bool {
                true
            }

            fn store(&self, _: u64, _: &[u8]) -> bool {
                true
            }
        }
        let memory = Arc::new(Memory::default().with_remote(0, 1 << 40, Arc::new(Vast)));
        let whole = |chain: &mut Chain| {
            chain.restart(0, &memory);
            chain.push(0, BOUNCES_MAX as u32, true);
            !chain.faulted()
        };
        let mut chains: Vec<Chain> = (0..40).map(|_| Chain::default()).collect();
        let count = chains.iter_mut().filter_map(|chain| whole(chain).then_some(())).count();
        assert_eq!(count, IN_ALL_MAX / BOUNCES_MAX);
        chains[0].clear();
        assert!(whole(&mut chains[39]));
        assert!(!whole(&mut chains[0]), "it has gone to another");
        drop(chains);
        assert!(whole(&mut Chain::default()));
    }
}
