// UNSAFETY: prefetching takes an address, and descriptors are read where guest memory is mapped, through vm-memory's VolatileSlice.
#![allow(unsafe_code)]

//! A look ahead at the requests that wait, so that they are in the processor's cache when it is their turn.
//!
//! What a driver has written lies in the cache of its processor, and each line of it takes a tenth of a microsecond to fetch: descriptors,
//! then the header that they name, then the room for the reply. While one request is served the next one's can be on their way. Nothing is
//! decided by what is seen here: it is read once more, and checked, when the request is taken.

use virtio_queue::desc::split::Descriptor;
use vm_memory::{Bytes, VolatileSlice};

use crate::Memory;
use crate::descriptors::DESCRIPTOR;
use crate::memory::Place;

/// Bytes that are fetched at a time.
const LINE: usize = 64;
/// Descriptors of a table that are followed: a line of them. Header, arguments, and the reply's header and struct, as Linux lays them out.
const FOLLOWED: usize = LINE / DESCRIPTOR;

/// Looks ahead in one ring.
#[derive(Debug)]
pub(crate) struct Ahead {
    /// The region that was seen last, in the table of memory with this number.
    place: Place,
    memory: u64,
}

// SAFETY: the pointer in `place` is followed only beside a borrow of the memory that it leads into, which belongs to no thread.
unsafe impl Send for Ahead {}

impl Default for Ahead {
    fn default() -> Ahead {
        Ahead { place: Place::NOWHERE, memory: 0 }
    }
}

impl Ahead {
    /// Where `len` bytes at `address` are mapped, if one region holds them.
    fn host(&mut self, memory: &Memory, address: u64, len: usize) -> Option<*mut u8> {
        if self.memory != memory.id() || self.place.host(address).is_none() {
            self.place = memory.place(address)?;
            self.memory = memory.id();
        }
        self.place.host(address).filter(|(_, available)| len <= *available).map(|(host, _)| host)
    }

    /// Fetches the table of the chain that begins with the descriptor at `host`, which lies in a mapping of `memory`.
    pub(crate) fn fetch_table(&mut self, memory: &Memory, host: *mut u8) {
        if let Some((table, len)) = self.table(memory, host) {
            fetch(table);
            if len > LINE {
                fetch(table.wrapping_add(LINE));
            }
        }
    }

    /// Fetches what the first descriptors of that table name.
    pub(crate) fn fetch_message(&mut self, memory: &Memory, host: *mut u8) {
        let Some((table, len)) = self.table(memory, host) else { return };
        for at in (0..len / DESCRIPTOR).take(FOLLOWED) {
            let Some(descriptor) = read(table.wrapping_add(at * DESCRIPTOR)) else { return };
            let Some(place) = self.host(memory, descriptor.addr().0, 1) else { return };
            fetch(place);
            // A header that ends where a page does goes on in no other line.
            if descriptor.len() as usize > LINE - place.addr() % LINE {
                fetch(place.wrapping_add(LINE));
            }
        }
    }

    /// The table that the descriptor at `host` names, and its bytes.
    fn table(&mut self, memory: &Memory, host: *mut u8) -> Option<(*mut u8, usize)> {
        let descriptor = read(host).filter(Descriptor::refers_to_indirect_table)?;
        let len = descriptor.len() as usize;
        Some((self.host(memory, descriptor.addr().0, len)?, len))
    }
}

/// The descriptor at `host`, which lies in guest memory with all its bytes.
fn read(host: *mut u8) -> Option<Descriptor> {
    // SAFETY: the callers have found a descriptor's bytes there in a mapping of the memory that they borrow; there is no Rust reference into
    // guest memory.
    unsafe { VolatileSlice::new(host, DESCRIPTOR) }.read_obj(0).ok()
}

/// Brings the line at `host` into the processor's cache. An address that is mapped nowhere does nothing.
#[inline]
fn fetch(host: *mut u8) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: a hint reads nothing that the program could see, and does not fault.
    unsafe {
        std::arch::x86_64::_mm_prefetch::<{ std::arch::x86_64::_MM_HINT_T0 }>(host.cast());
    }
    #[cfg(target_arch = "aarch64")]
    // SAFETY: as above.
    unsafe {
        std::arch::asm!("prfm pldl1keep, [{}]", in(reg) host, options(nostack, readonly, preserves_flags));
    }
    #[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
    let _ = host;
}
