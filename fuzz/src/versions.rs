//! A version table of somebody else's making: whoever reads it finds a number or refuses the file, and reads nothing beyond.

#![no_main]

use libfuzzer_sys::fuzz_target;
use virtiofs_coherence::{Table, View};

fuzz_target!(|data: &[u8]| {
    let Some((traits, data)) = data.split_first() else { return };
    let fd = match traits & 1 {
        // A good one with bytes of it changed: most headers of chance are refused at the first look.
        0 => {
            let table = Table::anonymous(64).unwrap();
            let fd = rustix::io::fcntl_dupfd_cloexec(table.fd(), 0).unwrap();
            for change in data.chunks_exact(3) {
                let at = u64::from(u16::from_le_bytes([change[0], change[1]]));
                let _ = rustix::io::pwrite(&fd, &change[2..], at % 8192);
            }
            fd
        }
        _ => {
            let fd = rustix::fs::memfd_create("fuzz", rustix::fs::MemfdFlags::CLOEXEC).unwrap();
            rustix::io::pwrite(&fd, data, 0).unwrap();
            fd
        }
    };
    let Ok(view) = View::new(&fd) else { return };
    assert!(view.slots().is_power_of_two());
    for node in [0, 1, 63, 64, view.slots(), u64::from(u32::MAX), u64::MAX] {
        let noted = view.note(node);
        let _ = view.stands(node, noted);
    }
});
