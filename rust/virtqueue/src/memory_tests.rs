//! Guest memory that comes and goes, and what cannot be mapped.

use super::*;

pub(crate) fn memfd(size: u64) -> File {
    let file = File::from(rustix::fs::memfd_create("guest", rustix::fs::MemfdFlags::CLOEXEC).unwrap());
    file.set_len(size).unwrap();
    file
}

pub(crate) fn region(guest_address: u64, size: u64) -> Region {
    Region { guest_address, size, user_address: guest_address.wrapping_add(1 << 40), file: memfd(size), offset: 0 }
}

#[test]
fn regions_come_and_go() {
    let memory = Memory::new(vec![region(0, 0x1000), region(0x10_000, 0x2000)]).unwrap();
    assert_eq!((memory.regions(), memory.size()), (2, 0x3000));
    assert_eq!(memory.translate((1 << 40) + 0x10_fff), Some(0x10_fff));
    assert_eq!(memory.translate((1 << 40) + 0x1000), None);
    let memory = memory.with(region(0x1000, 0x1000)).unwrap().without(0x10_000, 0x2000).unwrap();
    assert_eq!(memory.size(), 0x2000);
    assert!(memory.place(0x10_000).is_none());
    assert_eq!(memory.place(0x1ff0).unwrap().host(0x1ff0).unwrap().1, 16);
    assert!(memory.place(0x1ff0).unwrap().host(0x2000).is_none());
}

#[test]
fn what_stays_in_a_new_table_stays_mapped() {
    let (one, two) = (region(0x1000, 0x1000), region(0x4000, 0x2000));
    let again = |region: &Region| Region { file: region.file.try_clone().unwrap(), ..*region };
    let (one_again, both_again) = (again(&one), vec![again(&one), again(&two)]);
    let memory = Memory::new(vec![one, two]).unwrap();
    assert!(memory.replaced_by(both_again).unwrap().is_none());
    let place = |memory: &Memory| memory.place(0x1000).unwrap().host(0x1000);
    let less = memory.replaced_by(vec![one_again]).unwrap().unwrap();
    assert_eq!((less.regions(), place(&less)), (1, place(&memory)));
    let other = memory.replaced_by(vec![region(0x1000, 0x1000)]).unwrap().unwrap();
    assert_ne!(place(&other), place(&memory), "another file at the same address");
}

#[test]
fn what_cannot_be_mapped_is_refused_with_its_address() {
    let memory = Memory::new(vec![region(0x1000, 0x1000)]).unwrap();
    assert!(matches!(memory.with(region(0x1800, 0x1000)), Err(MemoryError::Overlap { .. })));
    assert!(matches!(memory.with(region(u64::MAX - 0xfff - 4096, 0x2000)), Err(MemoryError::Overlap { .. })));
    let short = Region { size: 0x4000, ..region(0x8000, 0x1000) };
    let error = memory.with(short).unwrap_err().to_string();
    assert!(error.contains("0x8000"), "{error}");
    assert!(matches!(memory.without(0x1000, 0x800), Err(MemoryError::Unknown { .. })));
}

#[test]
fn whoever_asks_again_has_memory_as_it_is_now() {
    let shared = SharedMemory::default();
    let mut seen = shared.load();
    for regions in 1..4 {
        shared.refresh(&mut seen);
        let before = Arc::clone(&seen);
        shared.refresh(&mut seen);
        assert!(Arc::ptr_eq(&before, &seen), "nothing has changed");
        shared.change(|memory| memory.with(region(regions << 16, 0x1000))).unwrap();
        shared.refresh(&mut seen);
        assert_eq!((seen.regions(), before.regions()), (regions as usize, regions as usize - 1));
    }
    assert!(shared.change(|memory| memory.with(region(1 << 16, 0x1000))).is_err());
    shared.store(Memory::default());
    shared.refresh(&mut seen);
    assert_eq!(seen.regions(), 0);
}
