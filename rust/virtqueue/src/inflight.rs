//! Which requests are in flight, noted in memory that a VMM keeps for us (vhost-user, "Inflight I/O tracking", split virtqueues).
//!
//! The VMM cannot know whether a request that it saw taken was completed before a device died. The device that comes after it can: here
//! is each descriptor at which a request begins that was taken and not given back, with the order in which they were taken. For each queue
//! 16 bytes (features, version, number of descriptors, the last one given back, the used index that this led to) and then 16 bytes
//! for each descriptor.
//!
//! The memory is sealed against shrinking, so that touching it is never a SIGBUS; other memory is refused.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::MetadataExt;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, fcntl_get_seals, memfd_create};
use vm_memory::mmap::{MmapRegion, MmapRegionBuilder};
use vm_memory::{Bytes, FileOffset, VolatileMemory};

const VERSION: u16 = 1;
/// Offsets in the part of one queue.
const VERSION_AT: usize = 8;
const COUNT_AT: usize = 10;
const LAST_AT: usize = 12;
const USED_AT: usize = 14;
const ENTRIES_AT: usize = 16;
/// Bytes of one entry, and where in it the counter lies; the first byte says whether the request is in flight.
const ENTRY: usize = 16;
const COUNTER_AT: usize = 8;
/// Each queue's part begins at a multiple of this many bytes, as that of libvhost-user does.
const ALIGNMENT: usize = 64;

/// The memory of all queues of a device.
#[derive(Debug)]
pub struct Area {
    region: MmapRegion<()>,
    file: File,
    identity: (u64, u64),
    queues: u16,
    queue_size: u16,
}

/// The part of one queue.
#[derive(Clone, Debug)]
pub struct Inflight {
    area: Arc<Area>,
    start: usize,
    /// What the next request that is taken is numbered.
    counter: u64,
}

fn part(queue_size: u16) -> usize {
    (ENTRIES_AT + ENTRY * usize::from(queue_size)).next_multiple_of(ALIGNMENT)
}

fn identity(file: &File) -> io::Result<(u64, u64)> {
    file.metadata().map(|metadata| (metadata.dev(), metadata.ino()))
}

impl Area {
    /// New memory for so many queues of so many descriptors, in which nothing is in flight.
    pub fn new(queues: u16, queue_size: u16) -> io::Result<Area> {
        let len = usize::from(queues) * part(queue_size);
        let file = File::from(memfd_create("virtiofs-inflight", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING)?);
        file.set_len(len as u64)?;
        fcntl_add_seals(&file, SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL)?;
        let area = Area::map(file, 0, len, queues, queue_size)?;
        for queue in 0..usize::from(queues) {
            area.store(queue * part(queue_size) + VERSION_AT, VERSION);
            area.store(queue * part(queue_size) + COUNT_AT, queue_size);
        }
        Ok(area)
    }

    /// Memory that a VMM had from a device before us.
    pub fn of(file: File, offset: u64, len: u64, queues: u16, queue_size: u16) -> io::Result<Area> {
        let broken = |what: &str| io::Error::new(io::ErrorKind::InvalidData, what.to_owned());
        let seals = fcntl_get_seals(&file).map_err(|_| broken("it is no memory file"))?;
        if !seals.contains(SealFlags::SHRINK) {
            return Err(broken("it may be shrunk, which a seal must forbid"));
        }
        let needed = usize::from(queues) * part(queue_size);
        let end = offset.checked_add(len);
        if usize::try_from(len).is_ok_and(|len| len < needed)
            || end.is_none_or(|end| end > file.metadata().map_or(0, |m| m.len()))
        {
            return Err(broken("it is shorter than what it is said to hold"));
        }
        let area = Area::map(file, offset, needed, queues, queue_size)?;
        for queue in 0..usize::from(queues) {
            let start = queue * part(queue_size);
            if area.load::<u16>(start + VERSION_AT) != VERSION || area.load::<u16>(start + COUNT_AT) != queue_size {
                return Err(broken("it is of another version, or of other queues"));
            }
        }
        Ok(area)
    }

    fn map(file: File, offset: u64, len: usize, queues: u16, queue_size: u16) -> io::Result<Area> {
        let identity = identity(&file)?;
        let region = MmapRegionBuilder::<()>::new(len)
            .with_mmap_prot(libc::PROT_READ | libc::PROT_WRITE)
            .with_mmap_flags(libc::MAP_SHARED)
            .with_file_offset(FileOffset::new(file.try_clone()?, offset))
            .build()
            .map_err(io::Error::other)?;
        Ok(Area { region, file, identity, queues, queue_size })
    }

    /// Bytes.
    pub fn size(&self) -> u64 {
        self.region.size() as u64
    }

    /// Whether this is the memory behind a descriptor.
    pub fn is(&self, file: &File) -> bool {
        identity(file).is_ok_and(|identity| identity == self.identity)
    }

    /// The part of a queue, if there is one for it.
    pub fn queue(self: &Arc<Area>, index: usize) -> Option<Inflight> {
        if index >= usize::from(self.queues) {
            return None;
        }
        let mut part = Inflight { area: Arc::clone(self), start: index * part(self.queue_size), counter: 1 };
        part.counter = part.taken().map(|(_, counter)| counter).max().unwrap_or(0).wrapping_add(1);
        Some(part)
    }

    /// Nothing is in flight.
    pub fn clear(self: &Arc<Area>) {
        (0..usize::from(self.queues)).filter_map(|index| self.queue(index)).for_each(|part| part.clear());
    }

    fn store<T: vm_memory::AtomicAccess>(&self, at: usize, value: T) {
        // All offsets lie in the region; where one did not, nothing would be noted, and nothing breaks.
        let _ = self.region.as_volatile_slice().store(value, at, Ordering::Release);
    }

    fn load<T: vm_memory::AtomicAccess + Default>(&self, at: usize) -> T {
        self.region.as_volatile_slice().load(at, Ordering::Acquire).unwrap_or_default()
    }
}

impl AsFd for Area {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

impl Inflight {
    /// Descriptors for which it has entries.
    pub fn size(&self) -> u16 {
        self.area.queue_size
    }

    fn entry(&self, head: u16) -> Option<usize> {
        (head < self.size()).then(|| self.start + ENTRIES_AT + ENTRY * usize::from(head))
    }

    fn taken(&self) -> impl Iterator<Item = (u16, u64)> + '_ {
        (0..self.size()).filter_map(|head| {
            let at = self.entry(head)?;
            (self.area.load::<u8>(at) == 1).then(|| (head, self.area.load::<u64>(at + COUNTER_AT)))
        })
    }

    /// The request that begins at `head` is taken from the ring.
    pub(crate) fn take(&mut self, head: u16) {
        let Some(at) = self.entry(head) else { return };
        self.area.store(at + COUNTER_AT, self.counter);
        self.counter = self.counter.wrapping_add(1);
        self.area.store(at, 1u8);
    }

    /// It was put back.
    pub(crate) fn put_back(&self, head: u16) {
        if let Some(at) = self.entry(head) {
            self.area.store(at, 0u8);
        }
    }

    /// It is about to be given back to the driver.
    pub(crate) fn completing(&self, head: u16) {
        if head < self.size() {
            self.area.store(self.start + LAST_AT, head);
        }
    }

    /// The driver has it, by this used index.
    pub(crate) fn completed(&self, head: u16, used: u16) {
        self.put_back(head);
        self.stands_at(used);
    }

    /// The ring stands there, and all of that is noted.
    pub(crate) fn stands_at(&self, used: u16) {
        self.area.store(self.start + USED_AT, used);
    }

    /// Nothing is in flight.
    pub fn clear(&self) {
        (0..self.size()).for_each(|head| self.put_back(head));
    }

    /// What a device that died left behind: the requests in flight, in the order in which they were taken. `used` is the ring's index. The one that was
    /// about to be given back is not among them, if the driver has it.
    pub fn left_behind(&self, used: u16) -> Vec<u16> {
        if self.area.load::<u16>(self.start + USED_AT) != used {
            self.completed(self.area.load(self.start + LAST_AT), used);
        }
        let mut taken: Vec<_> = self.taken().collect();
        taken.sort_by_key(|(_, counter)| *counter);
        taken.into_iter().map(|(head, _)| head).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn again(area: &Area, queues: u16, queue_size: u16) -> io::Result<Area> {
        Area::of(area.file.try_clone().unwrap(), 0, area.size(), queues, queue_size)
    }

    #[test]
    fn what_was_taken_and_not_given_back_is_left_behind_in_order() {
        let area = Arc::new(Area::new(3, 8).unwrap());
        let mut part = area.queue(1).unwrap();
        [5, 2, 7, 0].into_iter().for_each(|head| part.take(head));
        part.completing(2);
        part.completed(2, 1);
        let later = Arc::new(again(&area, 3, 8).unwrap());
        assert!(later.is(&area.file));
        assert_eq!(later.queue(1).unwrap().left_behind(1), [5, 7, 0]);
        assert_eq!(later.queue(0).unwrap().left_behind(0), [0u16; 0]);
        // Died between the used index and the note: the driver has it.
        part.completing(7);
        assert_eq!(later.queue(1).unwrap().left_behind(2), [5, 0]);
        // Died before the used index: the driver has not got it.
        part.completing(5);
        assert_eq!(later.queue(1).unwrap().left_behind(2), [5, 0]);
        let mut part = later.queue(1).unwrap();
        part.take(1);
        part.take(8);
        assert_eq!(part.left_behind(2), [5, 0, 1], "numbers go on from what was there");
        later.clear();
        assert_eq!(part.left_behind(2), [0u16; 0]);
        assert!(later.queue(3).is_none());
    }

    #[test]
    fn memory_that_lies_is_refused() {
        let area = Area::new(2, 128).unwrap();
        assert!(again(&area, 2, 128).is_ok());
        assert!(again(&area, 3, 128).is_err(), "too short");
        assert!(again(&area, 2, 64).is_err(), "of other queues");
        let file = || area.file.try_clone().unwrap();
        assert!(Area::of(file(), 4096, area.size(), 2, 128).is_err(), "beyond the end");
        assert!(Area::of(file(), u64::MAX, area.size(), 2, 128).is_err(), "wraps around");
        assert!(Area::of(crate::memory::tests::memfd(1 << 20), 0, 1 << 20, 2, 128).is_err(), "not sealed");
        assert!(Area::of(File::open("/dev/null").unwrap(), 0, 1 << 20, 2, 128).is_err(), "no memory");
    }
}
