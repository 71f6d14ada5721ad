// UNSAFETY: mmap(2) of a table, and words of the mapping as references. The words are atomics, so that others (processes, guests) may change
// them at any time, and a mapping to read has no method that writes.
#![allow(unsafe_code)]
//! A table in this process's memory.

use std::os::fd::AsFd;
use std::ptr::{NonNull, null_mut};
use std::sync::atomic::{AtomicU32, AtomicU64};

use rustix::mm::{MapFlags, ProtFlags, mmap, munmap};

use crate::layout::{COUNTERS, EPOCH_AT, MAGIC_AT, SHAPE_AT, SLEEPERS_AT, size};

/// The mapping of a table of a known number of slots.
#[derive(Debug)]
pub(crate) struct Map {
    start: NonNull<u8>,
    slots: usize,
}

// SAFETY: the mapping belongs to no thread, and all of it is reached by atomic words alone.
unsafe impl Send for Map {}
// SAFETY: as above.
unsafe impl Sync for Map {}

impl Map {
    /// Maps the first `size(slots)` bytes of `fd`. The caller has looked that the file is that long, and keeps others from making it
    /// shorter: an access past its end would end the process (SIGBUS).
    pub(crate) fn new(fd: impl AsFd, slots: u64, writable: bool) -> rustix::io::Result<Map> {
        let access = if writable { ProtFlags::READ | ProtFlags::WRITE } else { ProtFlags::READ };
        // SAFETY: a new mapping at an address that the kernel chooses covers nothing of ours.
        let start = unsafe { mmap(null_mut(), size(slots), access, MapFlags::SHARED, fd, 0)? };
        let start = NonNull::new(start.cast()).ok_or(rustix::io::Errno::NOMEM)?;
        Ok(Map { start, slots: slots as usize })
    }

    /// Where it begins in this process.
    pub(crate) fn address(&self) -> usize {
        self.start.as_ptr() as usize
    }

    fn word(&self, at: usize) -> &AtomicU64 {
        assert!(at < COUNTERS && at.is_multiple_of(8));
        // SAFETY: the mapping is longer than COUNTERS, page-aligned, and lives as long as `self`; `at` keeps the alignment.
        unsafe { self.start.add(at).cast::<AtomicU64>().as_ref() }
    }

    pub(crate) fn magic(&self) -> &AtomicU64 {
        self.word(MAGIC_AT)
    }

    pub(crate) fn shape(&self) -> &AtomicU64 {
        self.word(SHAPE_AT)
    }

    #[inline]
    pub(crate) fn epoch(&self) -> &AtomicU64 {
        self.word(EPOCH_AT)
    }

    #[inline]
    pub(crate) fn sleepers(&self) -> &AtomicU32 {
        // SAFETY: as in `word`.
        unsafe { self.start.add(SLEEPERS_AT).cast::<AtomicU32>().as_ref() }
    }

    /// All counters; their number is a power of two.
    #[inline]
    pub(crate) fn counters(&self) -> &[AtomicU64] {
        // SAFETY: the mapping has `slots` words from COUNTERS on (`size`), aligned, for as long as `self` lives.
        unsafe { std::slice::from_raw_parts(self.start.add(COUNTERS).cast::<AtomicU64>().as_ptr(), self.slots) }
    }

    /// The counter of a slot, or of the slot that a node id carries: what lies above the slots is cut off.
    #[inline]
    pub(crate) fn counter(&self, slot: u64) -> &AtomicU64 {
        let counters = self.counters();
        &counters[slot as usize & (counters.len() - 1)]
    }
}

impl Drop for Map {
    fn drop(&mut self) {
        // SAFETY: the range was mapped by `new`, and no reference into it outlives `self`.
        // An error would mean that the range is no mapping, which it is.
        let _ = unsafe { munmap(self.start.as_ptr().cast(), size(self.slots as u64)) };
    }
}
