//! What the guest shares with the device.

use std::fs::File;
use std::os::unix::fs::MetadataExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicPtr, AtomicU64, AtomicUsize, Ordering};

use arc_swap::ArcSwap;
use parking_lot::Mutex;
use vm_memory::guest_memory::GuestMemoryBackend;
use vm_memory::mmap::MmapRegionBuilder;
use vm_memory::{FileOffset, GuestAddress, GuestMemoryMmap, GuestMemoryRegion, GuestRegionMmap};

use virtiofs_guard::Guard;

use crate::DirtyLog;
use crate::access::{Hold, Keep};

/// Why memory was refused.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs)]
pub enum MemoryError {
    #[error("region at {guest_address:#x} of {size:#x} bytes cannot be mapped: {reason}")]
    Map { guest_address: u64, size: u64, reason: String },
    #[error("region at {guest_address:#x} of {size:#x} bytes overlaps another or wraps around")]
    Overlap { guest_address: u64, size: u64 },
    #[error("there is no region at {guest_address:#x} of {size:#x} bytes")]
    Unknown { guest_address: u64, size: u64 },
    #[error("{len} bytes at {address:#x} are not in guest memory, whose regions are: {regions}")]
    Outside { address: u64, len: usize, regions: String },
    #[error("{address:#x} is no multiple of {size}, which a number of {size} bytes needs")]
    Misaligned { address: u64, size: usize },
    #[error("a number has 1, 2, 4 or 8 bytes, not {size}")]
    Width { size: usize },
}

/// One region of guest memory, as a front end describes it.
#[derive(Debug)]
pub struct Region {
    /// Guest physical address of the first byte.
    pub guest_address: u64,
    /// Length in bytes.
    pub size: u64,
    /// Address of the first byte in the front end's own address space: rings are described by such addresses.
    pub user_address: u64,
    /// The memory itself.
    pub file: File,
    /// Where in `file` the region begins, in bytes.
    pub offset: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Span {
    guest_address: u64,
    size: u64,
    user_address: u64,
    /// Device and inode number of the file, where there is one, and where in it the region begins.
    file: Option<(u64, u64, u64)>,
}

/// Memory of a guest that is not mapped in this process: a DAX window, most of all. Bytes go in and out by calls.
pub trait Remote: std::fmt::Debug + Send + Sync {
    /// Copies bytes from `offset` on, or answers false where there is no memory.
    fn load(&self, offset: u64, out: &mut [u8]) -> bool;

    /// Copies bytes to `offset` and on, or answers false where there is no memory that may be written.
    fn store(&self, offset: u64, bytes: &[u8]) -> bool;
}

/// Where remote memory lies.
#[derive(Clone, Debug)]
struct Elsewhere {
    start: u64,
    size: u64,
    remote: Arc<dyn Remote>,
}

impl Elsewhere {
    fn is(&self, remote: &Arc<dyn Remote>) -> bool {
        std::ptr::addr_eq(Arc::as_ptr(&self.remote), Arc::as_ptr(remote))
    }
}

/// All memory of a guest at one moment. A change makes a new value, so that a request in flight keeps what it points to.
#[derive(Clone, Debug, Default)]
pub struct Memory {
    /// Before the map: regions are guarded for as long as they are mapped, and no longer.
    pub(crate) holds: Vec<Hold>,
    map: GuestMemoryMmap<()>,
    /// Of all with the same id the map is the same; 0 has no regions.
    id: u64,
    spans: Vec<Span>,
    /// New regions note which of their pages are written.
    pub(crate) track: bool,
    /// Where a VMM wants to find what is written, if it does.
    pub(crate) log: Option<Arc<DirtyLog>>,
    elsewhere: Vec<Elsewhere>,
    /// Bytes of ours that stand for remote memory at present, in all chains of the device.
    pub(crate) bounced: Arc<AtomicUsize>,
}

impl Memory {
    /// Maps `regions`.
    pub fn new(regions: Vec<Region>) -> Result<Memory, MemoryError> {
        regions.into_iter().try_fold(Memory::default(), |memory, region| memory.with(region))
    }

    /// This memory and one region more.
    pub fn with(&self, region: Region) -> Result<Memory, MemoryError> {
        let Region { guest_address, size, user_address, file, offset } = region;
        let refuse = |reason: String| MemoryError::Map { guest_address, size, reason };
        let len = usize::try_from(size).map_err(|_| refuse("it is larger than the address space".into()))?;
        if user_address.checked_add(size).is_none() {
            return Err(MemoryError::Overlap { guest_address, size });
        }
        // Touching pages past the end of a file is a SIGBUS, for which there is the guard: no honest VMM gives such memory. (What is no file
        // with a size, a device say, maps what it has.)
        let metadata = file.metadata().map_err(|error| refuse(error.to_string()))?;
        if metadata.is_file() && offset.checked_add(size).is_none_or(|end| end > metadata.len()) {
            return Err(refuse(format!("its file has {} bytes", metadata.len())));
        }
        let mapping = MmapRegionBuilder::<()>::new(len)
            .with_mmap_prot(libc::PROT_READ | libc::PROT_WRITE)
            .with_mmap_flags(libc::MAP_SHARED | libc::MAP_NORESERVE)
            .with_file_offset(FileOffset::new(file, offset))
            .build()
            .map_err(|error| refuse(error.to_string()))?;
        let overlap = || MemoryError::Overlap { guest_address, size };
        let region = GuestRegionMmap::new(mapping, GuestAddress(guest_address)).ok_or_else(overlap)?;
        let guard = Guard::new(region.as_ptr().addr(), len).map_err(|error| refuse(error.to_string()))?;
        let file = Some((metadata.dev(), metadata.ino(), offset));
        let region = Arc::new(region);
        let hold = Hold::new(&region, None, self.track).guarded(Some(Arc::new(guard)));
        self.with_hold(region, Span { guest_address, size, user_address, file }, hold)
    }

    pub(crate) fn with_region(
        &self,
        region: Arc<GuestRegionMmap<()>>,
        user_address: u64,
        keep: Option<Keep>,
    ) -> Result<Memory, MemoryError> {
        let (guest_address, size) = (region.start_addr().0, region.len());
        let hold = Hold::new(&region, keep, self.track);
        self.with_hold(region, Span { guest_address, size, user_address, file: None }, hold)
    }

    fn with_hold(&self, region: Arc<GuestRegionMmap<()>>, span: Span, hold: Hold) -> Result<Memory, MemoryError> {
        let Span { guest_address, size, .. } = span;
        let map = self.map.insert_region(region).map_err(|_| MemoryError::Overlap { guest_address, size })?;
        let mut next = Memory { map, id: next_id(), ..self.clone() };
        next.spans.push(span);
        next.holds.push(hold);
        Ok(next)
    }

    /// Memory of these regions instead, or `None` if it is the same. Regions that are there already stay mapped as they are: a
    /// front end may send its whole table for every small change.
    pub fn replaced_by(&self, regions: Vec<Region>) -> Result<Option<Memory>, MemoryError> {
        let mut memory = Memory {
            elsewhere: self.elsewhere.clone(),
            track: self.track,
            log: self.log.clone(),
            bounced: Arc::clone(&self.bounced),
            ..Memory::default()
        };
        for region in regions {
            memory = match self.mapped(&region) {
                Some((mapped, span)) => {
                    let known = self.holds.iter().find(|hold| hold.start() == span.guest_address);
                    let guard = known.and_then(Hold::guard).cloned();
                    let hold = Hold::new(&mapped, None, self.track).guarded(guard);
                    memory.with_hold(mapped, span, hold)?
                }
                None => memory.with(region)?,
            };
        }
        Ok((memory.spans != self.spans).then_some(memory))
    }

    /// The same memory, with what is written to it from now on noted in `log`, or no longer.
    pub fn logged_in(&self, log: Option<Arc<DirtyLog>>) -> Memory {
        Memory { log, ..self.clone() }
    }

    /// This memory, with `size` bytes of remote memory from the guest address `start` on, and nowhere else.
    pub fn with_remote(self, start: u64, size: u64, remote: Arc<dyn Remote>) -> Memory {
        let mut next = self.without_remote(&remote);
        next.elsewhere.push(Elsewhere { start, size, remote });
        next
    }

    /// This memory without `remote`.
    pub fn without_remote(mut self, remote: &Arc<dyn Remote>) -> Memory {
        self.elsewhere.retain(|elsewhere| !elsewhere.is(remote));
        self
    }

    /// Where `remote` begins, if it is a part of this memory.
    pub fn remote_start(&self, remote: &Arc<dyn Remote>) -> Option<u64> {
        self.elsewhere.iter().find(|elsewhere| elsewhere.is(remote)).map(|elsewhere| elsewhere.start)
    }

    /// Refuses `size` bytes from `start` on if there is memory of the guest already, or if they wrap around.
    pub fn check_free(&self, start: u64, size: u64) -> Result<(), MemoryError> {
        let taken = self.spans.iter().map(|span| (span.guest_address, span.size));
        let elsewhere = self.elsewhere.iter().map(|elsewhere| (elsewhere.start, elsewhere.size));
        let end = start.checked_add(size);
        let apart = |(other, len): (u64, u64)| end.is_some_and(|end| end <= other) || other + len <= start;
        match end.is_some() && taken.chain(elsewhere).all(apart) {
            true => Ok(()),
            false => Err(MemoryError::Overlap { guest_address: start, size }),
        }
    }

    /// The remote memory at an address, the offset in it, and how many bytes of it follow.
    pub(crate) fn remote(&self, address: u64) -> Option<(&dyn Remote, u64, usize)> {
        self.elsewhere.iter().find_map(|elsewhere| {
            let offset = address.checked_sub(elsewhere.start).filter(|offset| *offset < elsewhere.size)?;
            Some((&*elsewhere.remote, offset, usize::try_from(elsewhere.size - offset).unwrap_or(usize::MAX)))
        })
    }

    /// The mapping of exactly this region, if there is one.
    fn mapped(&self, region: &Region) -> Option<(Arc<GuestRegionMmap<()>>, Span)> {
        let metadata = region.file.metadata().ok()?;
        let Region { guest_address, size, user_address, offset, .. } = *region;
        let span = Span { guest_address, size, user_address, file: Some((metadata.dev(), metadata.ino(), offset)) };
        self.spans.contains(&span).then_some(())?;
        let (_, mapped) = self.map.remove_region(GuestAddress(guest_address), size).ok()?;
        Some((mapped, span))
    }

    /// This memory without the region that begins at `guest_address` and has `size` bytes.
    pub fn without(&self, guest_address: u64, size: u64) -> Result<Memory, MemoryError> {
        let unknown = |_| MemoryError::Unknown { guest_address, size };
        let (map, _) = self.map.remove_region(GuestAddress(guest_address), size).map_err(unknown)?;
        let mut next = Memory { map, id: next_id(), ..self.clone() };
        next.spans.retain(|span| span.guest_address != guest_address);
        next.holds.retain(|hold| hold.start() != guest_address);
        Ok(next)
    }

    /// The guest physical address of an address of the front end.
    pub fn translate(&self, user_address: u64) -> Option<u64> {
        self.spans.iter().find_map(|span| {
            let offset = user_address.checked_sub(span.user_address)?;
            (offset < span.size).then_some(span.guest_address + offset)
        })
    }

    /// Bytes in all regions.
    pub fn size(&self) -> u64 {
        self.spans.iter().map(|span| span.size).sum()
    }

    /// Number of regions.
    pub fn regions(&self) -> usize {
        self.spans.len()
    }

    /// What changes with the regions: who has found something in memory of the same id finds it in the same place of this.
    #[inline]
    pub(crate) fn id(&self) -> u64 {
        self.id
    }

    pub(crate) fn map(&self) -> &GuestMemoryMmap<()> {
        &self.map
    }

    /// The region that holds `address`.
    pub(crate) fn place(&self, address: u64) -> Option<Place> {
        let region = self.map.find_region(GuestAddress(address))?;
        Some(Place { start: region.start_addr().0, size: region.len(), host: region.as_ptr() })
    }
}

fn next_id() -> u64 {
    static NEXT: AtomicU64 = AtomicU64::new(1);
    NEXT.fetch_add(1, Ordering::Relaxed)
}

/// Where a region of guest memory is mapped.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Place {
    start: u64,
    size: u64,
    host: *mut u8,
}

impl Place {
    /// No memory at all.
    pub(crate) const NOWHERE: Place = Place { start: 0, size: 0, host: std::ptr::null_mut() };

    /// Where `address` is mapped, and how many bytes of the region follow it; `None` if it lies elsewhere.
    pub(crate) fn host(&self, address: u64) -> Option<(*mut u8, usize)> {
        let offset = address.checked_sub(self.start).filter(|offset| *offset < self.size)?;
        Some((self.host.wrapping_add(offset as usize), (self.size - offset) as usize))
    }
}

/// Guest memory that may change while the device runs: regions come and go with memory hotplug.
#[derive(Debug)]
pub struct SharedMemory {
    now: ArcSwap<Memory>,
    /// Where that lies, by which those tell that nothing has changed who have it already.
    place: AtomicPtr<Memory>,
    changing: Mutex<()>,
}

impl Default for SharedMemory {
    fn default() -> SharedMemory {
        let now = Arc::<Memory>::default();
        let place = AtomicPtr::new(Arc::as_ptr(&now).cast_mut());
        SharedMemory { now: ArcSwap::new(now), place, changing: Mutex::default() }
    }
}

impl SharedMemory {
    /// Memory as it is now.
    pub fn load(&self) -> Arc<Memory> {
        self.now.load_full()
    }

    /// Memory from now on.
    pub fn store(&self, memory: Memory) {
        let _one = self.changing.lock();
        self.put(memory);
    }

    /// Makes `memory` that of now; whoever calls holds the lock.
    fn put(&self, memory: Memory) {
        let memory = Arc::new(memory);
        let place = Arc::as_ptr(&memory).cast_mut();
        self.now.store(memory);
        self.place.store(place, Ordering::Release);
    }

    /// Makes other memory of what there is. Of changes by several threads none is lost.
    pub fn change<E>(&self, change: impl FnOnce(&Memory) -> Result<Memory, E>) -> Result<(), E> {
        let _one = self.changing.lock();
        self.put(change(&self.load())?);
        Ok(())
    }

    /// Brings `seen` up to date, at the price of one atomic load when nothing changed: as long as `seen` is held, nothing else lies
    /// where it does.
    #[inline]
    pub fn refresh(&self, seen: &mut Arc<Memory>) {
        if !std::ptr::eq(self.place.load(Ordering::Acquire), Arc::as_ptr(seen)) {
            *seen = self.load();
        }
    }
}

#[cfg(test)]
#[path = "memory_tests.rs"]
pub(crate) mod tests;
