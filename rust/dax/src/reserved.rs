// UNSAFETY: mappings at addresses of our own choice, inside of a range that was reserved for them, and copies from and to them.
#![allow(unsafe_code)]
//! A window in this process: a range of addresses that nothing else is ever mapped into.

use std::ffi::c_void;
use std::io;
use std::ptr;

use rustix::mm::{MapFlags, ProtFlags, mmap, mmap_anonymous, munmap};

use virtiofs_guard::Guard;

use crate::mapping::{Mapper, Mapping, Refusal};
use crate::window::{GRANULE, PAGE, Window};

/// Addresses that are reserved for a window. A virtual machine monitor gives them to its guest as one piece of memory, once: whatever
/// is mapped there later, the guest sees.
///
/// What is not mapped can not be accessed; there is never a hole that something else might be mapped into. Files that are truncated
/// while they are mapped read as zeros behind their end.
pub struct Reserved {
    base: *mut u8,
    size: u64,
    guard: Guard,
}

// SAFETY: the range belongs to this value and to no thread; its methods only change mappings, each by one system call, and copy bytes,
// for which no reference into the range is made.
unsafe impl Send for Reserved {}
// SAFETY: as for `Send`.
unsafe impl Sync for Reserved {}

impl std::fmt::Debug for Reserved {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Reserved").field("base", &self.base).field("size", &self.size).finish_non_exhaustive()
    }
}

impl Reserved {
    /// Reserves `size` bytes, aligned to 2 MiB so that large pages can be mapped as such.
    pub fn new(size: u64) -> io::Result<Reserved> {
        let granule = GRANULE as usize;
        let whole = usize::try_from(size).ok().filter(|size| size.is_multiple_of(granule) && *size > 0);
        let wide = whole.and_then(|size| size.checked_add(granule));
        let (Some(size), Some(wide)) = (whole, wide) else { return Err(io::ErrorKind::InvalidInput.into()) };
        let flags = MapFlags::PRIVATE | MapFlags::NORESERVE;
        // SAFETY: a new mapping without access, at an address that the kernel chooses, touches no memory of anyone.
        let start = unsafe { mmap_anonymous(ptr::null_mut(), wide, ProtFlags::empty(), flags) }?;
        let before = start.addr().next_multiple_of(granule) - start.addr();
        let base = start.wrapping_byte_add(before);
        // SAFETY: both ends lie in the mapping just made, which nobody knows of, outside of the part that is kept.
        unsafe {
            if before > 0 {
                munmap(start, before)?;
            }
            munmap(base.wrapping_byte_add(size), granule - before)?;
        }
        let guard = Guard::new(base.addr(), size).inspect_err(|_| {
            // SAFETY: what is left of the same mapping. It fails for no address of our own.
            let _ = unsafe { munmap(base, size) };
        })?;
        Ok(Reserved { base: base.cast(), size: size as u64, guard })
    }

    /// Where it begins.
    pub fn address(&self) -> usize {
        self.base.addr()
    }

    /// Its size in bytes.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// How often somebody touched what a file did not give, and found zeros.
    pub fn healed(&self) -> u64 {
        self.guard.count()
    }

    /// Puts zeros where an access at `address` got SIGBUS. False if that is not in the window. Safe to be
    /// called by a signal handler.
    pub fn heal(&self, address: usize) -> bool {
        self.guard.heal(address)
    }

    /// Sees to it that a mapped page can be accessed, for writing too if it is `writable`: zeros take its place if its file does not give
    /// it. False if an access could only have failed because it was a store to a page that is not for writing. (Linux 5.14.)
    pub fn revive(&self, offset: u64, writable: bool) -> bool {
        let Ok((at, len)) = self.at(offset - offset % PAGE, PAGE) else { return false };
        // SAFETY: `at` checked that the page is ours. Populating maps what the range is made of already, as an access would, and no reference
        // into it exists.
        let can = |advice| unsafe { libc::madvise(at, len, advice) } == 0;
        if can(libc::MADV_POPULATE_WRITE) {
            return true;
        }
        if !writable && can(libc::MADV_POPULATE_READ) {
            return false;
        }
        self.guard.heal(at.addr())
    }

    fn at(&self, offset: u64, len: u64) -> Result<(*mut c_void, usize), Refusal> {
        let end = offset.checked_add(len).ok_or(Refusal::Invalid)?;
        let whole = offset.is_multiple_of(PAGE) && len.is_multiple_of(PAGE) && len > 0;
        match end <= self.size && whole {
            true => Ok((self.base.wrapping_add(offset as usize).cast(), len as usize)),
            false => Err(Refusal::Invalid),
        }
    }
}

impl Mapper for Reserved {
    fn overlays(&self) -> bool {
        true
    }

    fn map(&self, mapping: &Mapping) -> Result<(), Refusal> {
        let (at, len) = self.at(mapping.offset, mapping.len)?;
        let access = if mapping.writable { ProtFlags::READ | ProtFlags::WRITE } else { ProtFlags::READ };
        let flags = MapFlags::SHARED | MapFlags::FIXED;
        // SAFETY: `at` checked that the range lies in our reservation, where nothing is that anybody refers to.
        unsafe { mmap(at, len, access, flags, mapping.file.to_map(), mapping.file_offset) }.map_err(io::Error::from)?;
        Ok(())
    }

    fn unmap(&self, offset: u64, len: u64) -> Result<(), Refusal> {
        let (at, len) = self.at(offset, len)?;
        let flags = MapFlags::PRIVATE | MapFlags::NORESERVE | MapFlags::FIXED;
        // SAFETY: as for `map`. The addresses stay reserved.
        unsafe { mmap_anonymous(at, len, ProtFlags::empty(), flags) }.map_err(io::Error::from)?;
        Ok(())
    }
}

impl Drop for Reserved {
    fn drop(&mut self) {
        // Whoever touches the range from now on is in the wrong, and gets the signal.
        self.guard.close();
        // SAFETY: the reservation is ours alone, and nothing refers into it.
        let result = unsafe { munmap(self.base.cast(), self.size as usize) };
        debug_assert!(result.is_ok());
    }
}

impl Window<Reserved> {
    /// Copies out of the window, as a guest's processor would. [`Refusal::Invalid`] where nothing is mapped.
    pub fn load(&self, offset: u64, out: &mut [u8]) -> Result<(), Refusal> {
        self.touch(offset, out.len(), false, |at| {
            // SAFETY: `touch` holds the table, by which these bytes are mapped and stay so; a file that becomes shorter is the guard's
            // business. `out` is ours and does not lie in the window.
            unsafe { ptr::copy_nonoverlapping(at, out.as_mut_ptr(), out.len()) }
        })
    }

    /// Copies into the window. [`Refusal::Invalid`] where nothing is mapped for writing.
    pub fn store(&self, offset: u64, bytes: &[u8]) -> Result<(), Refusal> {
        self.touch(offset, bytes.len(), true, |at| {
            // SAFETY: as for `load`, and the bytes are mapped for writing.
            unsafe { ptr::copy_nonoverlapping(bytes.as_ptr(), at, bytes.len()) }
        })
    }

    fn touch(&self, offset: u64, len: usize, write: bool, with: impl FnOnce(*mut u8)) -> Result<(), Refusal> {
        self.covered(offset, len as u64, write, || with(self.mapper().base.wrapping_add(offset as usize)))
    }

    /// Maps anew what was replaced by zeros: files may have grown again. Answers how many mappings that were. Where nothing was replaced,
    /// that costs next to nothing.
    pub fn mend(&self) -> Result<usize, Refusal> {
        let healed = self.mapper().guard.take();
        if healed.is_empty() {
            return Ok(0);
        }
        self.map_again(|mapping| {
            let from = healed.partition_point(|offset| offset + GRANULE <= mapping.offset);
            healed.get(from).is_some_and(|offset| *offset < mapping.end())
        })
    }
}
