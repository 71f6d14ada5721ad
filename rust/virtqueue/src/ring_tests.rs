//! Rings that are honest, broken, and in memory that changes.

use super::*;
use vm_memory::{Bytes, GuestAddress};

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
    let chain = [descriptor(0x4000, 40, NEXT, 1), descriptor(0x5000, 8, NEXT, 2), descriptor(0x6000, 100, WRITE, 0)];
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
    let driver_idx = available.ring.avail.address(INDEX);
    memory.map().write_obj(99u16, driver_idx).unwrap();
    assert!(matches!(available.pop(&memory, &mut Chain::default()), Err(RingError::Index { waiting: 99, size: 16 })));
    used.complete(&memory, 16, 0).unwrap();
    used.complete(&memory, 15, 5).unwrap();
    let idx: u16 = memory.map().read_obj(used.ring.used.address(INDEX)).unwrap();
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

/// A guest whose memory is described anew while its rings run, in one region or cut in two: what the device has seen is what the
/// table of memory has that it is given, then and later.
#[test]
fn the_ring_is_found_where_memory_has_it_now() {
    let one = memory();
    let (mut available, mut used) = ring(&one, &[descriptor(0x4000, 40, 0, 0)], true);
    let avail = available.ring.avail.address(0).0;
    // The border lies within the available ring, behind its index.
    let border = avail + 4;
    let two = [region(0, border), region(border, 0x10_000 - border)].into_iter();
    let two = two.fold(one.without(0, 0x10_000).unwrap(), |memory, region| memory.with(region).unwrap());
    let two = Arc::new(two);
    let mut bytes = vec![0; 0x10_000];
    one.read(0, &mut bytes).unwrap();
    two.write(0, &bytes).unwrap();
    two.store(avail + 2, 2, 2).unwrap();
    two.store(avail + 4, 3, 2).unwrap();
    assert_eq!(available.waiting(&one).unwrap(), 1);
    assert_eq!(available.waiting(&two).unwrap(), 2);
    let mut chain = Chain::default();
    assert!(matches!(available.pop(&two, &mut chain), Ok(Popped::Malformed { head: 3 } | Popped::Request)));
    assert_eq!(chain.head(), 3);
    used.complete(&two, 3, 7).unwrap();
    let index = |memory: &Memory| memory.load(used.ring.used.address(INDEX).0, 2).unwrap();
    assert_eq!((index(&one), index(&two)), (0, 1));
    // No memory at all: an error, and nothing else.
    let none = Arc::new(one.without(0, 0x10_000).unwrap());
    assert!(matches!(available.pop(&none, &mut chain), Err(RingError::Memory(_))));
    assert!(matches!(used.complete(&none, 3, 7), Err(RingError::Memory(_))));
    assert!(matches!(used.wants_call(&none), Err(RingError::Memory(_))));
    assert_eq!(available.waiting(&one).unwrap(), 0, "and back");
}

#[test]
fn with_event_idx_the_driver_is_told_when_the_index_passes_its_wish() {
    let memory = memory();
    let place = RingConfig { size: 16, desc: 0x1000, avail: 0x2000, used: 0x3000, next_avail: 0, event_idx: true };
    let (_, mut used) = split(place, &memory).unwrap();
    let event = used.ring.avail.address(used.ring.event(AVAIL_ENTRY)).0;
    let mut wants = |at: u16, completed: u16| {
        memory.store(event, at.into(), 2).unwrap();
        (0..completed).for_each(|_| used.complete(&memory, 0, 0).unwrap());
        used.wants_call(&memory).unwrap()
    };
    assert!(!wants(0, 0));
    assert!(wants(0, 1), "index 1 is behind event 0");
    assert!(!wants(0, 1));
    assert!(wants(4, 3), "2, 3, 4 and 5 at once");
    assert!(!wants(20, 4));
    assert!(wants(u16::MAX, u16::MAX - 8), "and around the end");
}

#[test]
fn a_driver_that_was_hushed_does_not_kick_until_the_queue_is_armed() {
    for event_idx in [true, false] {
        let memory = memory();
        let config = RingConfig { size: 16, desc: 0x1000, avail: 0x2000, used: 0x3000, next_avail: 0, event_idx };
        let (mut available, _) = split(config, &memory).unwrap();
        let [flags, event] = [0x3000, available.ring.used.address(available.ring.event(USED_ENTRY)).0];
        let load = |address: u64| memory.load(address, 2).unwrap() as u16;
        // What a driver does that has made `new` entries available since it last asked (virtio 1.3, 2.7.10).
        let kicks = |old: u16, new: u16| match event_idx {
            true => new.wrapping_sub(load(event)).wrapping_sub(1) < new.wrapping_sub(old),
            false => load(flags) & NO_NOTIFY == 0,
        };
        let mut index = 0;
        for _ in 0..3 {
            assert!(!available.arm(&memory).unwrap());
            assert!(kicks(index, index + 1));
            available.hush(&memory).unwrap();
            for _ in 0..5 {
                assert!(!kicks(index, index + 1), "hushed, at {index}");
                index += 1;
                memory.store(0x2002, index.into(), 2).unwrap();
                let popped = available.pop(&memory, &mut Chain::default()).unwrap();
                assert_ne!(popped, Popped::Nothing);
            }
        }
    }
}

#[test]
fn what_lies_ahead_decides_nothing() {
    let memory = memory();
    // Tables at 0x8000 and the end of memory; one that is none, one outside, one that names what is outside.
    let indirect = |address, len| descriptor(address, len, INDIRECT, 0);
    let heads = [
        indirect(0x8000, 32),
        indirect(0xfff0, 16),
        indirect(0xfff8, 16),
        indirect(u64::MAX - 7, 16),
        indirect(0x8000, u32::MAX),
        descriptor(0x4000, 40, 0, 0),
        indirect(0x8010, 16),
    ];
    let (mut available, _) = ring(&memory, &heads, true);
    for (at, place) in [(0x8000, 0x4000u64), (0x8010, u64::MAX - 1), (0xfff0, 0x10_000)] {
        memory
            .map()
            .write_obj(descriptor(place, 40, if at == 0x8000 { NEXT } else { 0 }, 1), GuestAddress(at))
            .unwrap();
    }
    // Each of them after each other one, and descriptors that no table has.
    let order: Vec<u16> = (0..7).flat_map(|one| (0..7).flat_map(move |other| [one, other, 99, other])).collect();
    let alone = |head: u16| {
        let (mut available, _) = ring(&memory, &heads, true);
        memory.store(available.ring.avail.address(ENTRIES).0, head.into(), 2).unwrap();
        let mut chain = Chain::default();
        (available.pop(&memory, &mut chain).unwrap(), chain.unread(), chain.faulted())
    };
    for few in order.chunks(14) {
        let entries = available.ring.avail.address(ENTRIES).0;
        for (at, head) in few.iter().enumerate() {
            let place = usize::from(available.next) + at;
            memory.store(entries + 2 * (place % 16) as u64, (*head).into(), 2).unwrap();
        }
        let index = available.next.wrapping_add(few.len() as u16);
        memory.store(available.ring.avail.address(INDEX).0, index.into(), 2).unwrap();
        let seen: Vec<_> = few
            .iter()
            .map(|_| {
                let mut chain = Chain::default();
                (available.pop(&memory, &mut chain).unwrap(), chain.unread(), chain.faulted())
            })
            .collect();
        let next = available.next;
        assert_eq!(seen, few.iter().map(|head| alone(*head)).collect::<Vec<_>>());
        // `alone` has laid the ring out anew.
        memory.store(available.ring.avail.address(INDEX).0, next.into(), 2).unwrap();
    }
}
