//! Chains as readers and writers: cut in pieces, ended early, and over memory that is not there.

use super::*;
use crate::Remote;
use crate::memory::tests::region;

/// A chain over two regions that are neighbours for the guest, cut into pieces of odd sizes.
fn chain(readable: &[u32], writable: &[u32]) -> Chain {
    let memory = Arc::new(Memory::new(vec![region(0x1000, 0x1000), region(0x2000, 0x1000)]).unwrap());
    let mut chain = Chain::default();
    chain.restart(7, &memory);
    let mut address = 0x1f80;
    for (sizes, is_writable) in [(readable, false), (writable, true)] {
        for &size in sizes {
            chain.push(address, size, is_writable);
            address += u64::from(size) + 3;
        }
    }
    assert!(!chain.faulted());
    chain
}

#[test]
fn bytes_count_and_descriptors_do_not() {
    let sizes = [1, 39, 0, 100, 5];
    let mut writer = chain(&[], &sizes);
    let bytes: Vec<u8> = (0..145).map(|i| i as u8).collect();
    assert!(writer.write(0, &bytes));
    assert!(!writer.write(1, &bytes), "one byte too many");
    // The same memory, read: an honest round trip through other pieces.
    let mut reader = Chain::default();
    reader.restart(0, &writer.memory.clone());
    let mut address = 0x1f80;
    for size in sizes {
        reader.push(address, size, false);
        address += u64::from(size) + 3;
    }
    let mut head = [0; 40];
    assert!(reader.read(&mut head));
    assert_eq!(head[..], bytes[..40]);
    let mut rest = vec![0; 106];
    assert!(!reader.read(&mut rest), "there are 105 left");
    assert_eq!(reader.unread(), 105);
    assert!(reader.read(&mut rest[..105]));
    assert_eq!(rest[..105], bytes[40..]);
    reader.rewind();
    assert_eq!(reader.unread(), 145);
    let iovecs = reader.read_iovecs(145).unwrap();
    assert_eq!(iovecs.iter().map(|iovec| iovec.iov_len).sum::<usize>(), 145);
    assert!(iovecs.len() >= 3, "the piece across both regions has two iovecs unless they are neighbours on the host");
}

#[test]
fn neighbours_become_one_iovec_and_offsets_cut_it() {
    let memory = Arc::new(Memory::new(vec![region(0, 0x4000)]).unwrap());
    let mut chain = Chain::default();
    chain.restart(0, &memory);
    for page in 0..4 {
        chain.push(page * 0x1000, 0x1000, true);
    }
    assert_eq!(chain.write_iovecs(0, 0x4000).unwrap().len(), 1);
    let cut = chain.write_iovecs(16, 100).unwrap();
    assert_eq!((cut.len(), cut[0].iov_len), (1, 100));
    assert!(chain.write_iovecs(0x3fff, 2).is_none());
    assert!(chain.write_iovecs(usize::MAX, 2).is_none());
    assert_eq!(chain.write_iovecs(0x4000, 0).unwrap().len(), 0);
}

/// Remote memory of ten bytes that may be written but for the last two.
#[derive(Debug)]
struct Ten(parking_lot::Mutex<Vec<u8>>);

impl Remote for Ten {
    fn load(&self, offset: u64, out: &mut [u8]) -> bool {
        let bytes = self.0.lock();
        let from = bytes.get(offset as usize..).and_then(|bytes| bytes.get(..out.len()));
        from.map(|from| out.copy_from_slice(from)).is_some()
    }

    fn store(&self, offset: u64, from: &[u8]) -> bool {
        let mut bytes = self.0.lock();
        let to = bytes[..8].get_mut(offset as usize..).and_then(|to| to.get_mut(..from.len()));
        to.map(|to| to.copy_from_slice(from)).is_some()
    }
}

#[test]
fn memory_elsewhere_is_read_before_and_written_after() {
    let ten = Arc::new(Ten(parking_lot::Mutex::new((0..10).collect())));
    let memory = Memory::new(vec![region(0x1000, 0x1000)]).unwrap();
    let memory = Arc::new(memory.with_remote(0x8000, 20, ten.clone()));
    let mut chain = Chain::default();
    chain.restart(0, &memory);
    for (address, len, writable) in
        [(0x1000, 4, false), (0x8002, 3, false), (0x1100, 16, true), (0x8004, 6, true), (0x1200, 4, true)]
    {
        chain.push(address, len, writable);
    }
    assert!(!chain.faulted());
    let mut request = [9; 7];
    assert!(chain.read(&mut request));
    assert_eq!(request, [0, 0, 0, 0, 2, 3, 4]);
    assert!(chain.write(0, &[7; 26]));
    assert_eq!(ten.0.lock()[4], 4, "not before the end");
    assert!(chain.settle(20), "four of the six bytes fit");
    assert_eq!(ten.0.lock()[..], [0, 1, 2, 3, 7, 7, 7, 7, 8, 9]);
    assert!(!chain.settle(21));
    for (address, len, fault) in [(0x8000, 10, false), (0x8000, 11, true), (0x800a, 1, true)] {
        chain.restart(0, &memory);
        chain.push(address, len, false);
        assert_eq!(chain.faulted(), fault);
    }
    for (address, len, writable) in [(0x8010, 5, false), (0x7fff, 2, true)] {
        chain.restart(0, &memory);
        chain.push(address, len, writable);
        assert!(chain.faulted(), "there is less than that");
    }
    chain.restart(0, &memory);
    (0..BOUNCES_MAX).for_each(|_| chain.push(0x8000, 20, true));
    assert!(chain.faulted(), "more than any request has");
    assert!(chain.room() <= BOUNCES_MAX);
}

#[test]
fn several_windows_are_told_apart() {
    let ten = |first| Arc::new(Ten(parking_lot::Mutex::new((first..first + 10).collect()))) as Arc<dyn Remote>;
    let (one, two) = (ten(0), ten(100));
    let memory = Memory::new(vec![region(0x1000, 0x1000)]).unwrap();
    let memory = memory.with_remote(0x8000, 10, one.clone()).with_remote(0x9000, 10, two.clone());
    let first = |memory: &Memory, address| {
        let mut chain = Chain::default();
        chain.restart(0, &Arc::new(memory.clone()));
        chain.push(address, 1, false);
        let mut byte = [0];
        chain.read(&mut byte).then_some(byte[0])
    };
    assert_eq!((first(&memory, 0x8001), first(&memory, 0x9001)), (Some(1), Some(101)));
    for (start, size) in [(0x1fff, 1), (0, 0x1001), (0x8009, 1), (0x7000, 0x3000), (u64::MAX, 2)] {
        assert!(memory.check_free(start, size).is_err(), "{start:#x}");
    }
    assert!(memory.check_free(0x2000, 0x6000).is_ok());
    let moved = memory.with_remote(0xa000, 10, one.clone()).without_remote(&two);
    assert_eq!((moved.remote_start(&one), moved.remote_start(&two)), (Some(0xa000), None));
    assert_eq!((first(&moved, 0x8001), first(&moved, 0x9001), first(&moved, 0xa001)), (None, None, Some(1)));
}

#[test]
fn addresses_outside_of_guest_memory_are_faults() {
    let memory = Arc::new(Memory::new(vec![region(0x1000, 0x1000)]).unwrap());
    for (address, len) in
        [(0, 1), (0xfff, 2), (0x1fff, 2), (0x1000, 0x1001), (u64::MAX, 1), (u64::MAX, 2), (0x1000, u32::MAX)]
    {
        let mut chain = Chain::default();
        chain.restart(0, &memory);
        chain.push(address, len, true);
        assert!(chain.faulted(), "{address:#x} {len:#x}");
        let room = chain.room();
        chain.push(0x1000, 8, true);
        assert_eq!(chain.room(), room, "nothing comes behind what is not there: {address:#x} {len:#x}");
        chain.push(0x1000, 8, false);
        assert_eq!(chain.unread(), 8, "the other side is as it was: {address:#x} {len:#x}");
    }
}

#[test]
fn what_stands_for_remote_memory_is_bounded_in_all_chains_together() {
    #[derive(Debug)]
    struct Vast;
    impl Remote for Vast {
        fn load(&self, _: u64, _: &mut [u8]) -> bool {
            true
        }

        fn store(&self, _: u64, _: &[u8]) -> bool {
            true
        }
    }
    let memory = Arc::new(Memory::default().with_remote(0, 1 << 40, Arc::new(Vast)));
    let whole = |chain: &mut Chain| {
        chain.restart(0, &memory);
        chain.push(0, BOUNCES_MAX as u32, true);
        !chain.faulted()
    };
    let mut chains: Vec<Chain> = (0..40).map(|_| Chain::default()).collect();
    let count = chains.iter_mut().filter_map(|chain| whole(chain).then_some(())).count();
    assert_eq!(count, IN_ALL_MAX / BOUNCES_MAX);
    chains[0].clear();
    assert!(whole(&mut chains[39]));
    assert!(!whole(&mut chains[0]), "it has gone to another");
    drop(chains);
    assert!(whole(&mut Chain::default()));
}
