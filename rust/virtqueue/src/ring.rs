//! A split virtqueue in two halves: one takes work, one completes it.
//!
//! Both halves run rust-vmm's `virtio_queue::Queue` over the same ring. The first uses only its available side, the second only
//! its used side, so that the thread that takes requests needs no lock, and completions may come from any thread that holds one
//! on the other half.

use std::num::Wrapping;
use std::sync::Arc;
use std::sync::atomic::{Ordering, fence};

use virtio_queue::{Queue, QueueT};
use vm_memory::{Bytes, GuestAddress};

use crate::descriptors::resolve;
use crate::{Chain, Inflight, Memory};

/// Why a ring cannot be served. The device stays up; the driver must reset the queue.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs)]
pub enum RingError {
    #[error("a ring of {0} entries: the size must be a power of two up to 32768")]
    Size(u16),
    #[error(
        "descriptor table {desc:#x}, available ring {avail:#x}, used ring {used:#x}: outside of guest memory or misaligned"
    )]
    Place { desc: u64, avail: u64, used: u64 },
    #[error("the ring itself is broken: {0}")]
    Broken(#[from] virtio_queue::Error),
}

/// Where a ring lies, by guest physical addresses, and how it is to be run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RingConfig {
    /// Entries; a power of two.
    pub size: u16,
    /// Address of the descriptor table.
    pub desc: u64,
    /// Address of the available ring.
    pub avail: u64,
    /// Address of the used ring.
    pub used: u64,
    /// Index of the next available entry to take.
    pub next_avail: u16,
    /// Whether VIRTIO_F_RING_EVENT_IDX was negotiated.
    pub event_idx: bool,
}

/// Cuts a ring into its halves. The used index is taken from the ring itself, as vhost-user prescribes.
pub fn split(config: RingConfig, memory: &Memory) -> Result<(Available, Used), RingError> {
    let mut halves = [queue(config, memory)?, queue(config, memory)?];
    let [available, used] = &mut halves;
    available.set_next_avail(config.next_avail);
    let next_used = used.used_idx(memory.map(), Ordering::Acquire)?.0;
    used.set_next_used(next_used);
    let [available, used] = halves;
    Ok((
        Available { queue: available, again: Vec::new(), last: None, inflight: None },
        Used { queue: used, avail_flags: GuestAddress(config.avail), inflight: None },
    ))
}

/// The index of a ring behind all that was given back to its driver so far.
pub fn used_index(config: RingConfig, memory: &Memory) -> Result<u16, RingError> {
    Ok(queue(config, memory)?.used_idx(memory.map(), Ordering::Acquire)?.0)
}

fn queue(config: RingConfig, memory: &Memory) -> Result<Queue, RingError> {
    let RingConfig { size, desc, avail, used, .. } = config;
    let mut queue = Queue::new(size).map_err(|_| RingError::Size(size))?;
    let place = RingError::Place { desc, avail, used };
    let set = queue
        .try_set_desc_table_address(GuestAddress(desc))
        .and_then(|()| queue.try_set_avail_ring_address(GuestAddress(avail)))
        .and_then(|()| queue.try_set_used_ring_address(GuestAddress(used)));
    queue.set_event_idx(config.event_idx);
    queue.set_ready(true);
    // virtio-queue takes an available ring at 0 for one that was not set.
    if set.is_err() || avail == 0 || !queue.is_valid(memory.map()) {
        return Err(place);
    }
    Ok(queue)
}

/// What was taken from the ring.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Popped {
    /// There is nothing to take.
    Nothing,
    /// The chain holds the next request, or what can be reached of it ([`Chain::faulted`]).
    Request,
    /// The next chain is not one (a loop, a readable descriptor after a writable one…): to be completed with length 0.
    Malformed {
        /// Index of the chain's first descriptor, as the driver gave it.
        head: u16,
    },
}

/// The half of a ring that takes work; one thread owns it.
#[derive(Debug)]
pub struct Available {
    queue: Queue,
    /// Chains that were taken before and are to be taken once more, the first of them at the end.
    again: Vec<u16>,
    /// What was popped last, and whether that was for the first time.
    last: Option<(u16, bool)>,
    inflight: Option<Inflight>,
}

impl Available {
    /// Takes the next request into `chain`, whose buffers are reused.
    pub fn pop(&mut self, memory: &Arc<Memory>, chain: &mut Chain) -> Result<Popped, RingError> {
        if !self.waits(memory)? {
            return Ok(Popped::Nothing);
        }
        let head = match self.again.pop() {
            Some(head) => {
                self.last = Some((head, false));
                head
            }
            None => {
                let taken = self.queue.pop_descriptor_chain(memory.map());
                let head = taken.ok_or(virtio_queue::Error::InvalidAvailRingIndex)?.head_index();
                if let Some(inflight) = &mut self.inflight {
                    inflight.take(head);
                }
                self.last = Some((head, true));
                head
            }
        };
        chain.restart(head, memory);
        match resolve(memory, self.queue.desc_table(), self.queue.size(), head, chain) {
            true => Ok(Popped::Request),
            false => Ok(Popped::Malformed { head }),
        }
    }

    /// Takes back the last [`Available::pop`]: the request comes again.
    pub fn put_back(&mut self) {
        match self.last.take() {
            Some((head, false)) => self.again.push(head),
            Some((head, true)) => {
                self.queue.set_next_avail(self.queue.next_avail().wrapping_sub(1));
                if let Some(inflight) = &self.inflight {
                    inflight.put_back(head);
                }
            }
            None => {}
        }
    }

    /// Chains that begin at these descriptors come before the next of the ring, in this order: they were taken from it, and never completed.
    pub fn take_again(&mut self, mut heads: Vec<u16>) {
        heads.reverse();
        self.again = heads;
    }

    /// Those of them that did not come yet.
    pub fn into_untaken(self) -> Vec<u16> {
        let mut heads = self.again;
        heads.reverse();
        heads
    }

    /// Notes there from now on what is taken.
    pub fn note_in(&mut self, inflight: Option<Inflight>) {
        self.inflight = inflight;
    }

    /// Whether a request waits. An index that claims more requests than the ring has entries is a broken ring.
    pub fn waits(&self, memory: &Memory) -> Result<bool, RingError> {
        let waiting = self.queue.avail_idx(memory.map(), Ordering::Acquire)? - Wrapping(self.queue.next_avail());
        if waiting.0 > self.queue.size() {
            return Err(virtio_queue::Error::InvalidAvailRingIndex.into());
        }
        Ok(waiting.0 != 0 || !self.again.is_empty())
    }

    /// Asks the driver for a kick at the next request, and answers whether one came in the meantime: then there may be no kick.
    pub fn arm(&mut self, memory: &Memory) -> Result<bool, RingError> {
        let more = self.queue.enable_notification(memory.map())?;
        memory.mark(self.queue.used_ring(), used_ring_size(self.queue.size()));
        Ok(more)
    }

    /// Tells the driver that kicks are not needed.
    pub fn disarm(&mut self, memory: &Memory) -> Result<(), RingError> {
        self.queue.disable_notification(memory.map())?;
        memory.mark(self.queue.used_ring(), used_ring_size(self.queue.size()));
        Ok(())
    }

    /// Entries of the ring.
    pub fn size(&self) -> u16 {
        self.queue.size()
    }

    /// Index of the next available entry: what GET_VRING_BASE answers.
    pub fn next_avail(&self) -> u16 {
        self.queue.next_avail()
    }
}

/// The half of a ring that completes work; whoever completes holds it alone for a moment.
#[derive(Debug)]
pub struct Used {
    queue: Queue,
    avail_flags: GuestAddress,
    inflight: Option<Inflight>,
}

/// `VRING_AVAIL_F_NO_INTERRUPT`.
const NO_INTERRUPT: u16 = 1;

impl Used {
    /// Gives the chain that begins at `head` back to the driver, with `len` bytes written. A head outside of the ring is dropped:
    /// the driver never had such a chain.
    pub fn complete(&mut self, memory: &Arc<Memory>, head: u16, len: u32) -> Result<(), RingError> {
        if memory.tracks() {
            self.mark_reply(memory, head, len);
        }
        if let Some(inflight) = &self.inflight {
            inflight.completing(head);
        }
        match self.queue.add_used(memory.map(), head, len) {
            Ok(()) => {
                if let Some(inflight) = &self.inflight {
                    inflight.completed(head, self.queue.next_used());
                }
                memory.mark(self.queue.used_ring(), used_ring_size(self.queue.size()));
            }
            Err(virtio_queue::Error::InvalidDescriptorIndex) => {}
            Err(error) => return Err(error.into()),
        }
        Ok(())
    }

    /// Notes there from now on what was given back.
    pub fn note_in(&mut self, inflight: Option<Inflight>) {
        if let Some(inflight) = &inflight {
            inflight.stands_at(self.queue.next_used());
        }
        self.inflight = inflight;
    }

    /// Notes where the reply lies that was just written: the descriptors still say it, and are the driver's again in a moment.
    fn mark_reply(&self, memory: &Arc<Memory>, head: u16, len: u32) {
        let mut chain = Chain::default();
        chain.restart(head, memory);
        resolve(memory, self.queue.desc_table(), self.queue.size(), head, &mut chain);
        chain.mark_written(len as usize);
    }

    /// Entries of the ring.
    pub fn size(&self) -> u16 {
        self.queue.size()
    }

    /// Whether the driver wants an interrupt for what was completed since the last call.
    pub fn wants_call(&mut self, memory: &Memory) -> Result<bool, RingError> {
        let wants = self.queue.needs_notification(memory.map())?;
        if self.queue.event_idx_enabled() {
            return Ok(wants);
        }
        // virtio-queue leaves this flag to us. What was completed must be visible before the flag is read.
        fence(Ordering::SeqCst);
        let flags: u16 =
            memory.map().load(self.avail_flags, Ordering::Relaxed).map_err(virtio_queue::Error::GuestMemory)?;
        Ok(u16::from_le(flags) & NO_INTERRUPT == 0)
    }
}

/// Bytes of a used ring (virtio 1.3, 2.7.8): flags, index, entries, and the index at which the device wants to be kicked.
fn used_ring_size(entries: u16) -> usize {
    6 + 8 * usize::from(entries)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::tests::region;
    use virtio_queue::desc::RawDescriptor;
    use virtio_queue::desc::split::Descriptor;
    use virtio_queue::mock::MockSplitQueue;

    const NEXT: u16 = 1;
    const WRITE: u16 = 2;
    const INDIRECT: u16 = 4;

    fn memory() -> Arc<Memory> {
        Arc::new(Memory::new(vec![region(0, 0x10_000)]).unwrap())
    }

    fn descriptor(address: u64, len: u32, flags: u16, next: u16) -> RawDescriptor {
        RawDescriptor::from(Descriptor::new(address, len, flags, next))
    }

    fn ring(memory: &Memory, descriptors: &[RawDescriptor], event_idx: bool) -> (Available, Used) {
        let driver = MockSplitQueue::new(memory.map(), 16);
        for (at, descriptor) in descriptors.iter().enumerate() {
            driver.desc_table().store(at as u16, *descriptor).unwrap();
        }
        driver.avail().ring().ref_at(0).unwrap().store(0);
        driver.avail().idx().store(1);
        let config = RingConfig {
            size: 16,
            desc: driver.desc_table_addr().0,
            avail: driver.avail_addr().0,
            used: driver.used_addr().0,
            next_avail: 0,
            event_idx,
        };
        split(config, memory).unwrap()
    }

    fn pop(descriptors: &[RawDescriptor]) -> (Popped, usize, usize) {
        let memory = memory();
        let (mut available, _) = ring(&memory, descriptors, false);
        let mut chain = Chain::default();
        let popped = available.pop(&memory, &mut chain).unwrap();
        (popped, chain.unread(), chain.room())
    }

    #[test]
    fn an_honest_chain_is_a_request() {
        let chain =
            [descriptor(0x4000, 40, NEXT, 1), descriptor(0x5000, 8, NEXT, 2), descriptor(0x6000, 100, WRITE, 0)];
        assert_eq!(pop(&chain), (Popped::Request, 48, 100));
    }

    #[test]
    fn chains_that_are_none_are_told_apart() {
        let malformed = Popped::Malformed { head: 0 };
        let looping = [descriptor(0x4000, 40, NEXT, 1), descriptor(0x5000, 8, NEXT, 0)];
        assert_eq!(pop(&looping).0, malformed);
        let beyond_the_table = [descriptor(0x4000, 40, NEXT, 16)];
        assert_eq!(pop(&beyond_the_table).0, malformed);
        let readable_after_writable = [descriptor(0x4000, 40, NEXT | WRITE, 1), descriptor(0x5000, 8, 0, 0)];
        assert_eq!(pop(&readable_after_writable).0, malformed);
        let empty_table = [descriptor(0x4000, 0, INDIRECT, 0)];
        assert_eq!(pop(&empty_table).0, malformed);
        let odd_table = [descriptor(0x4000, 17, INDIRECT, 0)];
        assert_eq!(pop(&odd_table).0, malformed);
        let too_long = [descriptor(0x4000, 0x8000, NEXT, 1), descriptor(0x4000, u32::MAX, 0, 0)];
        assert_eq!(pop(&too_long).0, malformed);
    }

    #[test]
    fn each_side_of_a_chain_ends_where_memory_does() {
        let chain = [
            descriptor(0x4000, 40, NEXT, 1),
            descriptor(0xfff0, 17, NEXT, 2),
            descriptor(0x5000, 8, NEXT, 3),
            descriptor(0x6000, 16, NEXT | WRITE, 4),
            descriptor(u64::MAX - 7, 100, NEXT | WRITE, 5),
            descriptor(0x7000, 100, WRITE, 0),
        ];
        assert_eq!(pop(&chain), (Popped::Request, 56, 16));
    }

    #[test]
    fn a_broken_index_is_an_error_and_a_foreign_head_is_dropped() {
        let memory = memory();
        let (mut available, mut used) = ring(&memory, &[descriptor(0x4000, 40, 0, 0)], false);
        let driver_idx = GuestAddress(available.queue.avail_ring() + 2);
        memory.map().write_obj(99u16, driver_idx).unwrap();
        assert!(matches!(available.pop(&memory, &mut Chain::default()), Err(RingError::Broken(_))));
        used.complete(&memory, 16, 0).unwrap();
        used.complete(&memory, 15, 5).unwrap();
        let idx: u16 = memory.map().read_obj(GuestAddress(used.queue.used_ring() + 2)).unwrap();
        assert_eq!(idx, 1);
    }

    #[test]
    fn rings_outside_of_memory_are_refused() {
        let memory = memory();
        let good = RingConfig { size: 16, desc: 0x1000, avail: 0x2000, used: 0x3000, next_avail: 0, event_idx: true };
        assert!(split(good, &memory).is_ok());
        for bad in [
            RingConfig { size: 15, ..good },
            RingConfig { size: 0, ..good },
            RingConfig { desc: 0x10_000, ..good },
            RingConfig { desc: 0x1001, ..good },
            RingConfig { avail: 0xffff_ffff_ffff_fff0, ..good },
            RingConfig { used: 0x3001, ..good },
            RingConfig { avail: 0, ..good },
        ] {
            assert!(split(bad, &memory).is_err(), "{bad:?}");
        }
    }
}
