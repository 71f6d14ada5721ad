//! Which pages of guest memory were written, told to a VMM that moves its guest to another host (vhost-user, "Migration"): a bit for each page of
//! 4 KiB, by guest physical address, in memory that the VMM gives and clears.

use std::fs::File;
use std::io;
use std::sync::atomic::Ordering;

use parking_lot::Mutex;
use virtiofs_guard::Guard;
use vm_memory::mmap::{MmapRegion, MmapRegionBuilder};
use vm_memory::{Bytes, FileOffset, VolatileMemory};

use crate::PAGE;

/// The VMM's memory for it.
#[derive(Debug)]
pub struct DirtyLog {
    /// Before the region: what is unmapped is guarded no more.
    _guard: Guard,
    region: MmapRegion<()>,
    /// One of ours at a time. A VMM that clears a bit meanwhile may find it set again, which costs one page.
    writing: Mutex<()>,
}

impl DirtyLog {
    /// In `size` bytes of `file` from `offset` on.
    pub fn new(file: File, offset: u64, size: u64) -> io::Result<DirtyLog> {
        let metadata = file.metadata()?;
        if metadata.is_file() && offset.checked_add(size).is_none_or(|end| end > metadata.len()) {
            return Err(io::Error::other(format!("the log's file has {} bytes", metadata.len())));
        }
        let region = MmapRegionBuilder::<()>::new(usize::try_from(size).map_err(io::Error::other)?)
            .with_mmap_prot(libc::PROT_READ | libc::PROT_WRITE)
            .with_mmap_flags(libc::MAP_SHARED)
            .with_file_offset(FileOffset::new(file, offset))
            .build()
            .map_err(io::Error::other)?;
        let guard = Guard::new(region.as_ptr().addr(), region.size())?;
        Ok(DirtyLog { _guard: guard, region, writing: Mutex::new(()) })
    }

    /// These bytes were written. What lies behind the end of the log is none of the VMM's concern.
    pub(crate) fn mark(&self, address: u64, len: usize) {
        let Some(last) = address.checked_add((len as u64).max(1) - 1) else { return };
        let (log, _one) = (self.region.as_volatile_slice(), self.writing.lock());
        for page in address / PAGE as u64..=last / PAGE as u64 {
            let at = (page / 8) as usize;
            let Ok(byte) = log.load::<u8>(at, Ordering::Acquire) else { return };
            if log.store(byte | 1 << (page % 8), at, Ordering::Release).is_err() {
                return;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::FileExt;
    use std::sync::Arc;

    use super::*;
    use crate::Memory;
    use crate::memory::tests::{memfd, region};

    #[test]
    fn what_is_written_is_noted_by_page_while_it_is_logged() {
        let file = memfd(0x1000);
        let log = Arc::new(DirtyLog::new(file.try_clone().unwrap(), 0, 4).unwrap());
        let memory = Memory::new(vec![region(0x1000, 0x4000), region(0x1e000, 0x4000)]).unwrap();
        let noted = || {
            let mut bytes = [0; 5];
            file.read_exact_at(&mut bytes, 0).unwrap();
            file.write_all_at(&[0; 5], 0).unwrap();
            bytes
        };
        memory.write(0x1000, b"before").unwrap();
        let logged = memory.logged_in(Some(Arc::clone(&log)));
        logged.write(0x1fff, b"ab").unwrap();
        logged.store(0x1f000, 1, 4).unwrap();
        assert_eq!(noted(), [0b110, 0, 0, 0b1000_0000, 0]);
        let piece = logged.piece(0x3000, 8).unwrap();
        logged.mark_host(piece.as_ptr(), 0x1001);
        assert_eq!(noted(), [0b1_1000, 0, 0, 0, 0]);
        logged.write(0x20000, b"behind the end of the log").unwrap();
        logged.logged_in(None).write(0x1000, b"after").unwrap();
        assert_eq!(noted(), [0; 5]);
        assert!(DirtyLog::new(file, 0x1000, 1).is_err());
    }
}
