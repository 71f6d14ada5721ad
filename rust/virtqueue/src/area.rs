// UNSAFETY: the ring lies in guest memory, which the guest changes at will; no Rust reference into it may exist, so it is reached
// through pointers. Each access is atomic and inside of the ring.
#![allow(unsafe_code)]

//! Where the parts of a ring are mapped, and the accesses to them.
//!
//! rust-vmm's `virtio_queue::Queue` finds the region of the ring anew for each access: six times for a request, a quarter of the
//! instructions of a short one. Here it is found once for each table of memory.

use std::sync::atomic::{AtomicU16, AtomicU32, Ordering};

use vm_memory::{Bytes, GuestAddress};

use crate::Memory;
use crate::ring::RingError;

/// One part of a ring in guest memory.
#[derive(Debug)]
pub(crate) struct Area {
    pub(crate) address: u64,
    pub(crate) len: usize,
    align: usize,
    /// The table of memory that was looked at last.
    seen: u64,
    /// Where that has the whole part, aligned as it must be; null where it is not in one piece.
    host: *mut u8,
}

// SAFETY: the pointer is followed only beside a borrow of the memory that it leads into, which belongs to no thread.
unsafe impl Send for Area {}
// SAFETY: as above; through a shared reference there are only atomic accesses.
unsafe impl Sync for Area {}

impl Area {
    /// A part of so many bytes, or `None` where that is no guest memory, or misaligned.
    pub(crate) fn new(memory: &Memory, address: u64, len: usize, align: usize) -> Option<Area> {
        memory.check(address, len).ok()?;
        let mut area = Area { address, len, align, seen: 0, host: std::ptr::null_mut() };
        area.see(memory);
        address.is_multiple_of(align as u64).then_some(area)
    }

    /// Finds the part in `memory`, once for each table of it.
    #[inline]
    pub(crate) fn see(&mut self, memory: &Memory) {
        if self.seen != memory.id() {
            self.find(memory);
        }
    }

    #[cold]
    fn find(&mut self, memory: &Memory) {
        let whole = memory.place(self.address).and_then(|place| place.host(self.address));
        let whole = whole.filter(|(host, len)| *len >= self.len && host.addr().is_multiple_of(self.align));
        self.host = whole.map_or(std::ptr::null_mut(), |(host, _)| host);
        self.seen = memory.id();
    }

    /// Where `len` bytes from `offset` on are mapped, if that is known; then `memory` keeps them mapped.
    #[inline]
    pub(crate) fn host(&self, memory: &Memory, offset: usize, len: usize) -> Option<*mut u8> {
        let known = self.seen == memory.id() && !self.host.is_null() && offset <= self.len && len <= self.len - offset;
        known.then(|| self.host.wrapping_add(offset))
    }

    pub(crate) fn address(&self, offset: usize) -> GuestAddress {
        GuestAddress(self.address.saturating_add(offset as u64))
    }

    #[inline]
    pub(crate) fn load(&self, memory: &Memory, offset: usize, order: Ordering) -> Result<u16, RingError> {
        let value = match self.host(memory, offset, size_of::<u16>()) {
            // SAFETY: `host` answers for two bytes that lie in a mapping of `memory`, which is borrowed: the memory that was looked at has
            // the same id, so the same regions at the same places. They are aligned, since the part and `offset` are, and everybody on this
            // side of the guest accesses them atomically.
            Some(host) => unsafe { AtomicU16::from_ptr(host.cast()) }.load(order),
            None => memory.map().load(self.address(offset), order)?,
        };
        Ok(u16::from_le(value))
    }

    #[inline]
    pub(crate) fn store(&self, memory: &Memory, offset: usize, value: u16, order: Ordering) -> Result<(), RingError> {
        match self.host(memory, offset, size_of::<u16>()) {
            // SAFETY: as in `load`; all guest memory is mapped for writing.
            Some(host) => unsafe { AtomicU16::from_ptr(host.cast()) }.store(value.to_le(), order),
            None => memory.map().store(value.to_le(), self.address(offset), order)?,
        }
        Ok(())
    }

    #[inline]
    pub(crate) fn store_pair(&self, memory: &Memory, offset: usize, pair: [u32; 2]) -> Result<(), RingError> {
        match self.host(memory, offset, size_of_val(&pair)) {
            Some(host) => {
                for (at, value) in pair.into_iter().enumerate() {
                    // SAFETY: as in `load`, for eight bytes that are aligned to four.
                    let place = unsafe { AtomicU32::from_ptr(host.cast::<u32>().wrapping_add(at)) };
                    place.store(value.to_le(), Ordering::Relaxed);
                }
            }
            None => {
                for (at, value) in pair.into_iter().enumerate() {
                    memory.map().store(value.to_le(), self.address(offset + 4 * at), Ordering::Relaxed)?;
                }
            }
        }
        Ok(())
    }
}
