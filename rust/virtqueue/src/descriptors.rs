// UNSAFETY: tables lie in guest memory, which is read through vm-memory's VolatileSlice at the address where it is mapped.
#![allow(unsafe_code)]

//! From a chain's first descriptor to its memory.
//!
//! The walk is ours: `virtio_queue::DescriptorChain` finds the table's region anew for each descriptor, which for a request of 1 MiB in
//! scattered pages (257 descriptors) cost more than a tenth of the whole request; and it ends a broken chain as it ends a
//! good one. Here a table is resolved once, and what is not a chain is told apart.

use virtio_queue::desc::split::Descriptor;
use vm_memory::{Bytes, GuestAddress, VolatileSlice};

use crate::{Chain, Memory};

/// Descriptors in a table of its own that a driver may use with the smallest of rings.
const LONGEST: u16 = 1024;
pub(crate) const DESCRIPTOR: usize = size_of::<Descriptor>();

/// Descriptors, in the ring or in the memory that an indirect descriptor names.
struct Table<'a> {
    memory: &'a Memory,
    address: u64,
    length: u16,
    /// The whole table, if one region holds it.
    slice: Option<VolatileSlice<'a>>,
}

impl<'a> Table<'a> {
    /// A table that lies at `host`, in a mapping of `memory`, if that is known.
    fn new(memory: &'a Memory, host: Option<*mut u8>, address: u64, length: u16) -> Table<'a> {
        let bytes = usize::from(length) * DESCRIPTOR;
        // SAFETY: the callers have found `bytes` bytes at `host` in a region of `memory`, which is borrowed for as long as the slice lives;
        // there is no Rust reference into guest memory.
        let slice = host.map(|host| unsafe { VolatileSlice::new(host, bytes) });
        Table { memory, address, length, slice }
    }

    fn get(&self, index: u16) -> Option<Descriptor> {
        if index >= self.length {
            return None;
        }
        let offset = usize::from(index) * DESCRIPTOR;
        match &self.slice {
            Some(slice) => slice.read_obj(offset).ok(),
            None => self.memory.map().read_obj(GuestAddress(self.address.checked_add(offset as u64)?)).ok(),
        }
    }
}

/// Fills `chain` with the memory that the descriptors from `head` on name, in the table of `length` of them at `address`, which is mapped
/// at `host` if it is in one piece. False for what is no chain: a loop, an index outside of its table, a readable descriptor after a
/// writable one, more than 4 GiB, a table within a table (virtio 1.3, 2.7.5 and 2.7.5.3).
pub(crate) fn resolve(
    memory: &Memory,
    host: Option<*mut u8>,
    address: u64,
    length: u16,
    head: u16,
    chain: &mut Chain,
) -> bool {
    fill(Table::new(memory, host, address, length), head, chain).is_some()
}

fn fill(mut table: Table<'_>, head: u16, chain: &mut Chain) -> Option<()> {
    // A chain is no longer than its ring (2.7.5.3.1); a little more than that harms nobody, 65,535 pieces would.
    let longest = table.length.max(LONGEST);
    let (mut index, mut left, mut bytes) = (head, table.length, 0u32);
    let (mut indirect, mut writing) = (false, false);
    loop {
        let descriptor = table.get(index)?;
        if descriptor.refers_to_indirect_table() {
            let length = u16::try_from(descriptor.len() as usize / DESCRIPTOR).ok()?;
            if indirect || !(descriptor.len() as usize).is_multiple_of(DESCRIPTOR) {
                return None;
            }
            let address = descriptor.addr().0;
            let host = chain.mapped(address, descriptor.len() as usize);
            table = Table::new(table.memory, host, address, length);
            (index, left, indirect) = (0, length.min(longest), true);
            continue;
        }
        let writable = descriptor.is_write_only();
        bytes = bytes.checked_add(descriptor.len())?;
        if writing && !writable {
            return None;
        }
        chain.push(descriptor.addr().0, descriptor.len(), writable);
        writing = writable;
        if !descriptor.has_next() {
            return Some(());
        }
        left = left.checked_sub(1).filter(|left| *left > 0)?;
        index = descriptor.next();
    }
}
