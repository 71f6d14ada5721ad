// UNSAFETY: memory that somebody else mapped can only be named by its address; whoever names it promises that it is there.
#![allow(unsafe_code)]
//! Guest memory for those who own it: bytes in and out, pieces of it to hold on to, memory of the VMM's own mapping, and which pages the
//! device has written.

use std::any::Any;
use std::num::NonZeroUsize;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use vm_memory::bitmap::AtomicBitmap;
use vm_memory::guest_memory::GuestMemoryBackend;
use vm_memory::mmap::MmapRegionBuilder;
use vm_memory::{Bytes, GuestAddress, GuestMemoryRegion, GuestRegionMmap};

use virtiofs_guard::Guard;

use crate::{Memory, MemoryError};

/// Bytes for which the device notes whether it has written them.
pub const PAGE: usize = 4096;

/// Whatever keeps memory mapped that is not ours.
pub type Keep = Arc<dyn Any + Send + Sync>;

/// One region, as those hold on to it that are not concerned with the others.
#[derive(Clone)]
pub(crate) struct Hold {
    /// Before the region: what is unmapped is guarded no more.
    guard: Option<Arc<Guard>>,
    region: Arc<GuestRegionMmap<()>>,
    _keep: Option<Keep>,
    dirty: Option<Arc<AtomicBitmap>>,
}

impl std::fmt::Debug for Hold {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Hold").field("start", &self.start()).field("len", &self.len()).finish_non_exhaustive()
    }
}

impl Hold {
    pub(crate) fn new(region: &Arc<GuestRegionMmap<()>>, keep: Option<Keep>, track: bool) -> Hold {
        let page = NonZeroUsize::new(PAGE).unwrap_or(NonZeroUsize::MIN);
        let dirty = track.then(|| Arc::new(AtomicBitmap::new(region.size(), page)));
        Hold { guard: None, region: Arc::clone(region), _keep: keep, dirty }
    }

    /// The same, with zeros for what the file behind it turns out not to have.
    pub(crate) fn guarded(self, guard: Option<Arc<Guard>>) -> Hold {
        Hold { guard, ..self }
    }

    pub(crate) fn guard(&self) -> Option<&Arc<Guard>> {
        self.guard.as_ref()
    }

    pub(crate) fn start(&self) -> u64 {
        self.region.start_addr().0
    }

    fn len(&self) -> usize {
        self.region.size()
    }

    fn host(&self) -> usize {
        self.region.as_ptr().addr()
    }

    /// The host addresses of what of `len` bytes lies in this region: none, where they do not ascend.
    fn overlap(&self, host: usize, len: usize) -> (usize, usize) {
        (host.max(self.host()), host.saturating_add(len).min(self.host() + self.len()))
    }

    /// Marks what of `len` bytes at a host address lies in this region.
    fn mark_host(&self, host: usize, len: usize) {
        let (from, to) = self.overlap(host, len);
        if let (Some(dirty), true) = (&self.dirty, from < to) {
            dirty.set_addr_range(from - self.host(), to - from);
        }
    }

    /// The pages that were written, neighbours together: guest address and bytes.
    fn dirty(&self, clear: bool, ranges: &mut Vec<(u64, u64)>) {
        let Some(dirty) = &self.dirty else { return };
        let taken = if clear { Some(dirty.get_and_reset()) } else { None };
        let is_set = |page: usize| match &taken {
            Some(words) => words.get(page / 64).is_some_and(|word| word >> (page % 64) & 1 != 0),
            None => dirty.is_bit_set(page),
        };
        for page in (0..self.len().div_ceil(PAGE)).filter(|page| is_set(*page)) {
            let start = self.start() + (page * PAGE) as u64;
            let len = PAGE.min(self.len() - page * PAGE) as u64;
            match ranges.last_mut() {
                Some((last, size)) if *last + *size == start => *size += len,
                _ => ranges.push((start, len)),
            }
        }
    }
}

/// A part of guest memory that stays mapped for as long as this lives, whatever becomes of the rest.
#[derive(Clone, Debug)]
pub struct Piece {
    hold: Hold,
    offset: usize,
    len: usize,
}

impl Piece {
    /// Where it is mapped. The guest and its device read and write it at any time.
    pub fn as_ptr(&self) -> *mut u8 {
        self.hold.region.as_ptr().wrapping_add(self.offset)
    }

    /// Bytes.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether it has no bytes.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }
}

impl Memory {
    /// Memory without regions that notes which pages the device writes, in all regions to come.
    pub fn tracking() -> Memory {
        let mut memory = Memory::default();
        memory.track = true;
        memory
    }

    /// This memory, and `size` bytes more that are mapped at `host` already.
    ///
    /// # Safety
    ///
    /// The bytes are mapped for reading and writing, and stay so until `keep` is dropped; nobody has a Rust reference into them.
    pub unsafe fn with_mapped(
        &self,
        guest_address: u64,
        size: u64,
        host: *mut u8,
        keep: Keep,
    ) -> Result<Memory, MemoryError> {
        let refuse = |reason: String| MemoryError::Map { guest_address, size, reason };
        let overlap = || MemoryError::Overlap { guest_address, size };
        let len = usize::try_from(size).ok().filter(|len| *len > 0 && host.addr().checked_add(*len).is_some());
        let len = len.ok_or_else(|| refuse("it has no bytes, or more than there are addresses".into()))?;
        // SAFETY: the caller promises that the bytes are there; `Hold` keeps what keeps them for as long as the region is known.
        let builder = unsafe { MmapRegionBuilder::<()>::new(len).with_raw_mmap_pointer(host) };
        let builder = builder.with_mmap_prot(libc::PROT_READ | libc::PROT_WRITE).with_mmap_flags(libc::MAP_SHARED);
        let mapping = builder.build().map_err(|_| {
            refuse(format!("it lies at {:#x}, which is no multiple of {PAGE}: use memory from mmap", host.addr()))
        })?;
        let region = GuestRegionMmap::new(mapping, GuestAddress(guest_address)).ok_or_else(overlap)?;
        self.with_region(Arc::new(region), host.addr() as u64, Some(keep))
    }

    fn outside(&self, address: u64, len: usize) -> MemoryError {
        let mut regions: Vec<_> = self.holds.iter().map(|hold| (hold.start(), hold.len())).collect();
        regions.sort_unstable();
        let each = regions.iter().map(|(start, len)| format!("{start:#x} to {:#x}", start + *len as u64 - 1));
        let each: Vec<_> = each.collect();
        let regions = if each.is_empty() { "none".into() } else { each.join(", ") };
        MemoryError::Outside { address, len, regions }
    }

    /// Whether so many bytes are in guest memory.
    pub fn check(&self, address: u64, len: usize) -> Result<(), MemoryError> {
        match len == 0 || self.map().check_range(GuestAddress(address), len) {
            true => Ok(()),
            false => Err(self.outside(address, len)),
        }
    }

    /// How often something of it was touched that its file has no longer: whoever gave it has shortened that.
    pub fn lost(&self) -> u64 {
        self.holds.iter().filter_map(|hold| hold.guard()).map(|guard| guard.count()).sum()
    }

    /// The regions: guest address and bytes, in order of addresses.
    pub fn layout(&self) -> Vec<(u64, u64)> {
        let mut layout: Vec<_> = self.holds.iter().map(|hold| (hold.start(), hold.len() as u64)).collect();
        layout.sort_unstable();
        layout
    }

    /// Copies out of guest memory, across regions that are neighbours.
    pub fn read(&self, address: u64, out: &mut [u8]) -> Result<(), MemoryError> {
        self.check(address, out.len())?;
        let len = out.len();
        self.map().read_slice(out, GuestAddress(address)).map_err(|_| self.outside(address, len))
    }

    /// Copies into guest memory, across regions that are neighbours.
    pub fn write(&self, address: u64, bytes: &[u8]) -> Result<(), MemoryError> {
        self.check(address, bytes.len())?;
        self.map().write_slice(bytes, GuestAddress(address)).map_err(|_| self.outside(address, bytes.len()))?;
        self.mark(address, bytes.len());
        Ok(())
    }

    /// Reads a little-endian number of 1, 2, 4 or 8 bytes in one access, which is ordered before all later ones.
    pub fn load(&self, address: u64, size: usize) -> Result<u64, MemoryError> {
        self.check_number(address, size)?;
        let (map, at) = (self.map(), GuestAddress(address));
        let loaded = match size {
            1 => map.load::<u8>(at, Ordering::Acquire).map(u64::from),
            2 => map.load::<u16>(at, Ordering::Acquire).map(|value| u16::from_le(value).into()),
            4 => map.load::<u32>(at, Ordering::Acquire).map(|value| u32::from_le(value).into()),
            _ => map.load::<u64>(at, Ordering::Acquire).map(u64::from_le),
        };
        loaded.map_err(|_| self.outside(address, size))
    }

    /// Writes a little-endian number of 1, 2, 4 or 8 bytes in one access, which is ordered behind all earlier ones. Upper bits of
    /// `value` that do not fit are left out.
    pub fn store(&self, address: u64, value: u64, size: usize) -> Result<(), MemoryError> {
        self.check_number(address, size)?;
        let (map, at) = (self.map(), GuestAddress(address));
        let stored = match size {
            1 => map.store(value as u8, at, Ordering::Release),
            2 => map.store((value as u16).to_le(), at, Ordering::Release),
            4 => map.store((value as u32).to_le(), at, Ordering::Release),
            _ => map.store(value.to_le(), at, Ordering::Release),
        };
        stored.map_err(|_| self.outside(address, size))?;
        self.mark(address, size);
        Ok(())
    }

    fn check_number(&self, address: u64, size: usize) -> Result<(), MemoryError> {
        if !matches!(size, 1 | 2 | 4 | 8) {
            return Err(MemoryError::Width { size });
        }
        self.check(address, size)?;
        match address.is_multiple_of(size as u64) {
            true => Ok(()),
            false => Err(MemoryError::Misaligned { address, size }),
        }
    }

    /// A piece of one region, to hold on to.
    pub fn piece(&self, address: u64, len: usize) -> Result<Piece, MemoryError> {
        let inside = |hold: &&Hold| {
            let offset = address.checked_sub(hold.start()).and_then(|offset| usize::try_from(offset).ok());
            offset.is_some_and(|offset| offset <= hold.len() && len <= hold.len() - offset)
        };
        let hold = self.holds.iter().find(inside).ok_or_else(|| self.outside(address, len))?;
        Ok(Piece { hold: hold.clone(), offset: (address - hold.start()) as usize, len })
    }

    /// Whether it is noted which pages are written.
    #[inline]
    pub(crate) fn tracks(&self) -> bool {
        self.track || self.log.is_some()
    }

    /// Notes that the device has written these bytes.
    pub(crate) fn mark(&self, address: u64, len: usize) {
        if let Some(log) = &self.log {
            log.mark(address, len);
        }
        if !self.track {
            return;
        }
        for hold in &self.holds {
            let (start, end) = (hold.start(), hold.start() + hold.len() as u64);
            let (from, to) = (address.max(start), address.saturating_add(len as u64).min(end));
            if from < to {
                hold.mark_host(hold.host() + (from - start) as usize, (to - from) as usize);
            }
        }
    }

    /// Notes that the device has written bytes that are mapped at `host`.
    pub(crate) fn mark_host(&self, host: *const u8, len: usize) {
        self.holds.iter().for_each(|hold| hold.mark_host(host.addr(), len));
        let Some(log) = &self.log else { return };
        for hold in &self.holds {
            let (from, to) = hold.overlap(host.addr(), len);
            if from < to {
                log.mark(hold.start() + (from - hold.host()) as u64, to - from);
            }
        }
    }

    /// Pages that were written by the device or by [`Memory::write`] and [`Memory::store`] since they were last cleared: guest addresses
    /// and bytes of runs of pages. What is written through a [`Piece`] is not noted.
    pub fn dirty(&self, clear: bool) -> Vec<(u64, u64)> {
        let mut ranges = Vec::new();
        self.holds.iter().for_each(|hold| hold.dirty(clear, &mut ranges));
        ranges.sort_unstable();
        ranges
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::tests::region;

    fn two() -> Memory {
        Memory::new(vec![region(0x1000, 0x1000), region(0x2000, 0x1000), region(0x8000, 0x1000)]).unwrap()
    }

    #[test]
    fn bytes_go_in_and_out_across_neighbours_and_not_beyond() {
        let memory = two();
        memory.write(0x1ffe, b"abcd").unwrap();
        let mut out = [0; 4];
        memory.read(0x1ffe, &mut out).unwrap();
        assert_eq!(&out, b"abcd");
        assert_eq!(memory.load(0x2000, 2).unwrap(), u64::from(u16::from_le_bytes(*b"cd")));
        memory.store(0x1ff8, 0x1122_3344_5566_7788, 8).unwrap();
        assert_eq!(memory.load(0x1ff8, 1).unwrap(), 0x88);
        memory.read(u64::MAX, &mut []).unwrap();
        for (address, len) in [(0xfff, 1), (0x2fff, 2), (0x3000, 1), (u64::MAX, 1), (0x8000, 0x1001)] {
            let error = memory.write(address, &vec![0; len]).unwrap_err().to_string();
            assert!(error.contains(&format!("{address:#x}")) && error.contains("0x1000 to 0x1fff"), "{error}");
        }
        assert!(matches!(memory.load(0x1001, 2), Err(MemoryError::Misaligned { .. })));
        assert!(matches!(memory.load(0x1000, 3), Err(MemoryError::Width { .. })));
        assert!(matches!(memory.load(0x2ffc, 8), Err(MemoryError::Outside { .. })));
    }

    #[test]
    fn a_piece_outlives_its_region_and_lies_in_one() {
        let memory = two();
        memory.write(0x8010, b"kept").unwrap();
        let piece = memory.piece(0x8010, 4).unwrap();
        assert!(memory.piece(0x1fff, 2).is_err());
        assert!(memory.piece(0x9001, 0).is_err());
        let without = memory.without(0x8000, 0x1000).unwrap();
        drop(memory);
        assert!(without.piece(0x8010, 4).is_err());
        // SAFETY: the piece keeps four bytes mapped, and nobody writes them here.
        assert_eq!(unsafe { std::slice::from_raw_parts(piece.as_ptr(), piece.len()) }, b"kept");
    }

    #[test]
    fn memory_of_somebody_else_is_kept_until_the_last_use_of_it() {
        let owner: Keep = Arc::new(Memory::new(vec![region(0, 0x2000)]).unwrap());
        let host = owner.downcast_ref::<Memory>().unwrap().piece(0, 0x2000).unwrap().as_ptr();
        // SAFETY: the mapping belongs to `owner`, which is kept.
        let memory = unsafe { Memory::default().with_mapped(0x4000, 0x2000, host, Arc::clone(&owner)) }.unwrap();
        memory.write(0x4ffe, b"1234").unwrap();
        let mut out = [0; 4];
        owner.downcast_ref::<Memory>().unwrap().read(0xffe, &mut out).unwrap();
        assert_eq!(&out, b"1234");
        assert_eq!(memory.translate(host.addr() as u64 + 0x10), Some(0x4010));
        let piece = memory.piece(0x4000, 1).unwrap();
        drop(memory.without(0x4000, 0x2000).unwrap());
        drop(memory);
        assert_eq!(Arc::strong_count(&owner), 2);
        drop(piece);
        assert_eq!(Arc::strong_count(&owner), 1);
        // SAFETY: as above; both are refused before anything is looked at.
        unsafe {
            assert!(Memory::default().with_mapped(0, 0x1000, host.wrapping_add(1), Arc::clone(&owner)).is_err());
            assert!(Memory::default().with_mapped(0, 0, host, Arc::clone(&owner)).is_err());
        }
    }

    #[test]
    fn written_pages_are_told_once() {
        let memory = Memory::tracking().with(region(0x1000, 0x4000)).unwrap().with(region(0x10_000, 0x1800)).unwrap();
        assert_eq!(memory.dirty(true), []);
        memory.write(0x1fff, &[1, 2]).unwrap();
        memory.store(0x4000, 1, 4).unwrap();
        memory.write(0x11_7ff, &[1]).unwrap();
        let all = [(0x1000, 0x2000), (0x4000, 0x1000), (0x11_000, 0x800)];
        assert_eq!(memory.dirty(false), all);
        assert_eq!(memory.dirty(true), all);
        assert_eq!(memory.dirty(true), []);
        let piece = memory.piece(0x2800, 0x1000).unwrap();
        memory.mark_host(piece.as_ptr(), piece.len());
        assert_eq!(memory.dirty(true), [(0x2000, 0x2000)]);
        assert_eq!(two().dirty(true), []);
    }
}
