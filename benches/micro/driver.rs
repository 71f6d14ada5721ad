//! The driver's side of one ring, which offers the same chains again and again.

use std::fs::File;
use std::sync::Arc;

use virtiofs_virtqueue::{Available, Memory, Region, RingConfig, Used, split};

/// Where a ring lies, and how many entries it has.
#[derive(Clone, Copy, Debug)]
pub struct Place {
    /// Entries.
    pub size: u16,
    /// Address of the descriptor table.
    pub desc: u64,
    /// Address of the available ring.
    pub avail: u64,
    /// Address of the used ring.
    pub used: u64,
}

/// The place of every [`Driver`]'s ring.
pub const PLACE: Place = Place { size: 256, desc: 0, avail: 0x2000, used: 0x4000 };
const TABLE: u64 = 0x6000;
const REQUEST: u64 = 0x8000;
const REPLY: u64 = 0x1_0000;
const SIZE: u64 = 0x40_0000;
const PAGE: u32 = 4096;

const NEXT: u16 = 1;
const WRITE: u16 = 2;
const INDIRECT: u16 = 4;

/// A ring of 256 entries in memory of 4 MiB, and one request in it: an indirect descriptor, as Linux has them.
#[derive(Debug)]
pub struct Driver {
    memory: Arc<Memory>,
    index: u16,
}

impl Driver {
    /// A driver, and the two halves of the device's side.
    ///
    /// # Panics
    ///
    /// Where the host gives no memory.
    pub fn new() -> (Driver, Available, Used) {
        let fd = rustix::fs::memfd_create("ring", rustix::fs::MemfdFlags::CLOEXEC).expect("a memfd");
        rustix::fs::ftruncate(&fd, SIZE).expect("its size");
        let region = Region { guest_address: 0, size: SIZE, user_address: 0, file: File::from(fd), offset: 0 };
        let memory = Arc::new(Memory::new(vec![region]).expect("a region"));
        let Place { size, desc, avail, used } = PLACE;
        let config = RingConfig { size, desc, avail, used, next_avail: 0, event_idx: true };
        let (available, used) = split(config, &memory).expect("a ring");
        (Driver { memory, index: 0 }, available, used)
    }

    /// The guest's memory.
    pub fn memory(&self) -> &Arc<Memory> {
        &self.memory
    }

    /// Lays the request out: `bytes` that the device reads, then `room` bytes for the reply, of which what follows the first page is
    /// in pieces of a page each, with gaps between them.
    ///
    /// # Panics
    ///
    /// Where the chain does not fit into the memory.
    pub fn lay_out(&self, bytes: &[u8], room: u32) {
        self.memory.write(REQUEST, bytes).expect("room for the request");
        let mut pieces = vec![(REQUEST, bytes.len() as u32, 0)];
        let mut left = room;
        for at in 0.. {
            if left == 0 {
                break;
            }
            let len = left.min(PAGE);
            pieces.push((REPLY + at * 2 * u64::from(PAGE), len, WRITE));
            left -= len;
        }
        let last = pieces.len() - 1;
        for (at, (address, len, flags)) in pieces.iter().copied().enumerate() {
            let chained = if at < last { NEXT } else { 0 };
            self.describe(TABLE + at as u64 * 16, address, len, flags | chained, at as u16 + 1);
        }
        self.describe(PLACE.desc, TABLE, pieces.len() as u32 * 16, INDIRECT, 0);
    }

    fn describe(&self, at: u64, address: u64, len: u32, flags: u16, next: u16) {
        let words = [(0, address, 8), (8, u64::from(len), 4), (12, u64::from(flags), 2), (14, u64::from(next), 2)];
        for (offset, value, size) in words {
            self.memory.store(at + offset, value, size).expect("in the memory");
        }
    }

    /// Makes the request available once more.
    ///
    /// # Panics
    ///
    /// Never: the ring lies in the memory.
    pub fn offer(&mut self) {
        self.memory.store(PLACE.avail + 4 + u64::from(self.index % PLACE.size) * 2, 0, 2).expect("in the memory");
        self.index = self.index.wrapping_add(1);
        self.memory.store(PLACE.avail + 2, u64::from(self.index), 2).expect("in the memory");
    }
}
