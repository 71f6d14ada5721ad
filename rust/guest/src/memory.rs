// UNSAFETY: guest memory is a mapping that another process writes at any time, so it can only be reached through raw
// pointers; this is the one file of the crate that holds any.
#![allow(unsafe_code)]
//! Guest memory: memfds, mapped side by side, with guest addresses that have nothing to do with where they are mapped.

use std::ffi::c_void;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::ptr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU16, AtomicUsize, Ordering};

use parking_lot::{Mutex, RwLock};
use rustix::fs::{MemfdFlags, ftruncate, memfd_create};
use rustix::mm::{MapFlags, ProtFlags, mmap, mmap_anonymous, munmap};
use zerocopy::{FromBytes, Immutable, IntoBytes};

use crate::{Error, Result};

/// Size of a page of the guest, in bytes.
pub const PAGE: usize = 4096;
/// Granularity of regions, in bytes.
const REGION_ALIGN: usize = 2 << 20;
/// Guest address of the first region. Not 0, so that an address of 0 is never by chance a good one.
const FIRST_ADDRESS: u64 = 1 << 32;
/// Unused guest addresses between two regions, in bytes.
const HOLE: u64 = 16 << 20;
/// Address space kept free behind the first regions for those added later, in bytes.
const GROWTH: usize = 4 << 30;

/// A piece of guest memory.
#[derive(Clone, Debug)]
pub struct Region {
    /// Guest address of its first byte.
    pub address: u64,
    /// Bytes.
    pub size: u64,
    /// Where it is mapped in this process: vhost-user names rings by these addresses.
    pub host: u64,
    /// The file that holds it.
    pub file: Arc<OwnedFd>,
    /// Where in the file it begins.
    pub file_offset: u64,
    start: usize,
}

impl Region {
    /// The file that holds it, borrowed.
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

/// All memory of one guest.
///
/// Inside this crate a place in it is an offset from the start of the mapping ("offset"); outside, and on the wire, a
/// guest address. Accesses copy; nothing refers into it but atomics of the rings' indices.
#[derive(Debug)]
pub struct Memory {
    base: *mut u8,
    reserved: usize,
    mapped: AtomicUsize,
    regions: RwLock<Vec<Region>>,
    taken: Mutex<usize>,
}

// SAFETY: `base` is a mapping that lives until `drop`; every access through it is a copy or an atomic, within bounds that `pointer`
// checks, of memory without any invariant for the compiler (plain bytes that another process may write as well).
unsafe impl Send for Memory {}
// SAFETY: as for `Send`.
unsafe impl Sync for Memory {}

impl Memory {
    /// Maps `size` bytes (rounded up to 2 MiB) as `regions` regions of one memfd, at guest addresses with holes between them.
    pub fn new(size: usize, regions: usize) -> Result<Memory> {
        let regions = regions.max(1);
        let each = size.div_ceil(regions).next_multiple_of(REGION_ALIGN);
        let reserved = each * regions + GROWTH;
        // SAFETY: a new private mapping without access at an address that the kernel chooses touches no memory of anyone.
        let base = unsafe {
            mmap_anonymous(ptr::null_mut(), reserved, ProtFlags::empty(), MapFlags::PRIVATE | MapFlags::NORESERVE)
        }?;
        let memory = Memory {
            base: base.cast(),
            reserved,
            mapped: AtomicUsize::new(0),
            regions: RwLock::new(Vec::new()),
            taken: Mutex::new(0),
        };
        let file = Arc::new(memfd(each * regions)?);
        for i in 0..regions {
            memory.map(&file, i * each, each)?;
        }
        Ok(memory)
    }

    /// Adds a region of `size` bytes (rounded up to 2 MiB) in a memfd of its own, behind all others.
    pub fn grow(&self, size: usize) -> Result<Region> {
        let size = size.next_multiple_of(REGION_ALIGN);
        self.map(&Arc::new(memfd(size)?), 0, size)
    }

    fn map(&self, file: &Arc<OwnedFd>, file_offset: usize, size: usize) -> Result<Region> {
        let mut regions = self.regions.write();
        let start = self.mapped.load(Ordering::Relaxed);
        if size > self.reserved - start {
            return Err(io::Error::new(io::ErrorKind::OutOfMemory, "no address space left for guest memory").into());
        }
        let address = regions.last().map_or(FIRST_ADDRESS, |last| last.address + last.size + HOLE);
        // SAFETY: start + size <= reserved, so MAP_FIXED replaces only a part of our own reservation that is not in use yet
        // (`mapped` ends before it).
        unsafe {
            mmap(
                self.base.add(start).cast::<c_void>(),
                size,
                ProtFlags::READ | ProtFlags::WRITE,
                MapFlags::SHARED | MapFlags::FIXED,
                file.as_fd(),
                file_offset as u64,
            )
        }?;
        let region = Region {
            address,
            size: size as u64,
            host: self.base as u64 + start as u64,
            file: Arc::clone(file),
            file_offset: file_offset as u64,
            start,
        };
        regions.push(region.clone());
        self.mapped.store(start + size, Ordering::Release);
        Ok(region)
    }

    /// The regions, in the order of their addresses.
    pub fn regions(&self) -> Vec<Region> {
        self.regions.read().clone()
    }

    /// Takes `pages` pages that lie in one region, aligned, zeroed if never used before: their offset.
    pub(crate) fn take(&self, pages: usize) -> Result<usize> {
        let size = pages * PAGE;
        let mut taken = self.taken.lock();
        for region in self.regions.read().iter() {
            let end = region.start + region.size as usize;
            let start = (*taken).max(region.start);
            if start < end && size <= end - start {
                *taken = start + size;
                return Ok(start);
            }
        }
        Err(io::Error::new(io::ErrorKind::OutOfMemory, "guest memory is used up").into())
    }

    /// Guest address of an offset.
    pub(crate) fn address(&self, offset: usize) -> u64 {
        let regions = self.regions.read();
        let found = regions.iter().find(|r| offset >= r.start && offset - r.start < r.size as usize);
        found.map_or(0, |r| r.address + (offset - r.start) as u64)
    }

    /// The offset of `len` bytes at a guest address, if they lie in one region.
    fn offset(&self, address: u64, len: usize) -> Result<usize> {
        let regions = self.regions.read();
        let inside = |r: &&Region| {
            address >= r.address && address - r.address <= r.size && len as u64 <= r.size - (address - r.address)
        };
        let found = regions.iter().find(inside).map(|r| r.start + (address - r.address) as usize);
        found.ok_or_else(|| {
            Error::Io(io::Error::new(
                io::ErrorKind::InvalidInput,
                format!("{len} bytes at {address:#x} are not in guest memory"),
            ))
        })
    }

    /// Copies bytes out of guest memory.
    pub fn read(&self, address: u64, out: &mut [u8]) -> Result<()> {
        self.load(self.offset(address, out.len())?, out);
        Ok(())
    }

    /// Copies bytes into guest memory.
    pub fn write(&self, address: u64, bytes: &[u8]) -> Result<()> {
        self.store(self.offset(address, bytes.len())?, bytes);
        Ok(())
    }

    /// A pointer to `len` bytes. Offsets come from `take` alone, so a wrong one is a bug of this crate.
    #[inline]
    fn pointer(&self, offset: usize, len: usize) -> *mut u8 {
        let mapped = self.mapped.load(Ordering::Acquire);
        assert!(offset <= mapped && len <= mapped - offset, "offset {offset}+{len} beyond guest memory");
        // SAFETY: offset <= mapped <= reserved: inside the reservation that starts at `base`.
        unsafe { self.base.add(offset) }
    }

    #[inline]
    pub(crate) fn load(&self, offset: usize, out: &mut [u8]) {
        let from = self.pointer(offset, out.len());
        // SAFETY: `pointer` checked the source; `out` is ours alone and cannot overlap a mapping that nothing borrows from.
        unsafe { ptr::copy_nonoverlapping(from, out.as_mut_ptr(), out.len()) }
    }

    #[inline]
    pub(crate) fn store(&self, offset: usize, bytes: &[u8]) {
        let to = self.pointer(offset, bytes.len());
        // SAFETY: `pointer` checked the target; `bytes` cannot overlap a mapping that nothing borrows from.
        unsafe { ptr::copy_nonoverlapping(bytes.as_ptr(), to, bytes.len()) }
    }

    #[inline]
    pub(crate) fn load_as<T: FromBytes>(&self, offset: usize) -> T {
        let from = self.pointer(offset, size_of::<T>());
        // SAFETY: `pointer` checked the source; T: FromBytes takes any bytes; the read makes no claim of alignment.
        unsafe { ptr::read_unaligned(from.cast::<T>()) }
    }

    #[inline]
    pub(crate) fn store_as<T: IntoBytes + Immutable>(&self, offset: usize, value: &T) {
        self.store(offset, value.as_bytes());
    }

    /// Sets `len` bytes.
    pub(crate) fn fill(&self, offset: usize, len: usize, byte: u8) {
        let to = self.pointer(offset, len);
        // SAFETY: `pointer` checked the target.
        unsafe { ptr::write_bytes(to, byte, len) }
    }

    /// An index of a ring.
    #[inline]
    pub(crate) fn index(&self, offset: usize) -> &AtomicU16 {
        let at = self.pointer(offset, 2);
        assert!(offset.is_multiple_of(2), "an index at an odd offset");
        // SAFETY: inside the mapping and aligned (the mapping is page-aligned, the offset even); it lives as long as `self`; both this
        // process and the device touch it by atomic accesses only.
        unsafe { &*at.cast::<AtomicU16>() }
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        // SAFETY: the reservation is ours from `new`, and nothing borrows from it: `index` borrows `self`.
        let result = unsafe { munmap(self.base.cast::<c_void>(), self.reserved) };
        debug_assert!(result.is_ok());
    }
}

fn memfd(size: usize) -> Result<OwnedFd> {
    let fd = memfd_create("virtiofs-guest-memory", MemfdFlags::CLOEXEC)?;
    ftruncate(&fd, size as u64)?;
    Ok(fd)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn regions_are_reached_by_guest_address_and_holes_are_not() {
        let memory = Memory::new(5 << 20, 2).unwrap();
        let regions = memory.regions();
        assert_eq!(regions.len(), 2);
        assert_eq!((regions[0].size, regions[1].size), (4 << 20, 4 << 20));
        assert_eq!(regions[1].file_offset, 4 << 20);
        memory.write(regions[1].address + 5, b"hello").unwrap();
        let mut bytes = [0; 5];
        memory.read(regions[1].address + 5, &mut bytes).unwrap();
        assert_eq!(&bytes, b"hello");
        for bad in [0, regions[0].address + regions[0].size - 2, regions[1].address - 1, u64::MAX - 2] {
            assert!(memory.read(bad, &mut bytes).is_err(), "{bad:#x}");
        }
    }

    #[test]
    fn pages_never_cross_regions_and_end_with_an_error() {
        let memory = Memory::new(4 << 20, 2).unwrap();
        let first = memory.take(500).unwrap();
        let second = memory.take(500).unwrap();
        assert_eq!((first, second), (0, 2 << 20), "500 more pages fit into the second region only");
        assert_eq!(memory.address(second), memory.regions()[1].address);
        assert!(memory.take(100).is_err());
        let more = memory.grow(1 << 20).unwrap();
        assert_eq!(memory.address(memory.take(100).unwrap()), more.address);
    }
}
