//! A ring and the memory around it, all of the guest's making: descriptors, available ring, tables, requests.

#![no_main]

use std::os::fd::OwnedFd;
use std::sync::Arc;

use libfuzzer_sys::fuzz_target;
use virtiofs_virtqueue::{Chain, Memory, Popped, Region, RingConfig, split};

const SIZE: u64 = 0x8000;
const RING: u16 = 16;

fn region(guest_address: u64, content: &[u8]) -> Region {
    let fd: OwnedFd = rustix::fs::memfd_create("fuzz", rustix::fs::MemfdFlags::CLOEXEC).unwrap();
    rustix::fs::ftruncate(&fd, SIZE).unwrap();
    rustix::io::pwrite(&fd, content.get(..SIZE as usize).unwrap_or(content), 0).unwrap();
    Region { guest_address, size: SIZE, user_address: guest_address, file: fd.into(), offset: 0 }
}

fuzz_target!(|data: &[u8]| {
    let Some((event_idx, data)) = data.split_first() else { return };
    // Two regions side by side, and a third beyond a hole.
    let regions = vec![region(0, data), region(SIZE, &[]), region(4 * SIZE, &[0x55; 4096])];
    let memory = Arc::new(Memory::new(regions).unwrap());
    let config =
        RingConfig { size: RING, desc: 0, avail: 0x200, used: 0x300, next_avail: 0, event_idx: event_idx & 1 != 0 };
    let (mut available, mut used) = split(config, &memory).unwrap();
    let (mut chain, mut header) = (Chain::default(), [0; 40]);
    let _ = available.disarm(&memory);
    for _ in 0..2 * RING {
        match available.pop(&memory, &mut chain) {
            Err(_) | Ok(Popped::Nothing) => break,
            Ok(Popped::Malformed { head }) => _ = used.complete(&memory, head, 0),
            Ok(Popped::Request) => {
                let (unread, room) = (chain.unread(), chain.room());
                let took = chain.read(&mut header);
                assert_eq!(took, unread >= 40);
                let part = chain.unread() / 2;
                let pieces = chain.read_iovecs(part).unwrap();
                assert_eq!(pieces.iter().map(|piece| piece.iov_len).sum::<usize>(), part);
                chain.rewind();
                assert_eq!(chain.unread(), unread);
                for offset in [0, 16, room / 2, room, usize::MAX] {
                    let rest = room.saturating_sub(offset);
                    let pieces = chain.write_iovecs(offset, rest);
                    assert_eq!(pieces.is_some(), offset <= room);
                    let sum: usize = pieces.unwrap_or(&[]).iter().map(|piece| piece.iov_len).sum();
                    assert_eq!(sum, if offset <= room { rest } else { 0 });
                }
                assert_eq!(chain.write(0, &header[..16]), room >= 16);
                assert!(!chain.write(room, &header[..1]));
                let len = if chain.settle(16) { 16 } else { 0 };
                let _ = used.complete(&memory, chain.head(), len);
            }
        }
    }
    let _ = used.wants_call(&memory);
    let _ = available.arm(&memory);
});
