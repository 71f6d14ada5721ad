//! The window in this process: real mappings, truncated files, whoever else wants SIGBUS.

use std::fs::File;
use std::io::{Seek, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;
use std::process::Command;

use virtiofs_dax::{GRANULE, PAGE, Range, Refusal, Reserved, Window};

fn window(granules: u64) -> Window<Reserved> {
    let size = granules * GRANULE;
    Window::new(Reserved::new(size).unwrap(), size, 1024).unwrap()
}

fn map(window: &Window<Reserved>, file: &File, offset: u64, len: u64, file_offset: u64, write: bool) {
    let open = |write: bool| Ok::<(OwnedFd, bool), Refusal>((file.try_clone()?.into(), write));
    let key = std::os::unix::fs::MetadataExt::ino(&file.metadata().unwrap());
    window.map(key, Range { offset, len, file_offset, write }, open).unwrap();
}

fn bytes(window: &Window<Reserved>, offset: u64, len: usize) -> Vec<u8> {
    let mut out = vec![0xee; len];
    window.load(offset, &mut out).unwrap();
    out
}

/// The mappings that the kernel knows in this window: length and permissions of each.
fn kernel_sees(window: &Window<Reserved>) -> Vec<(u64, String)> {
    let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
    let (start, size) = (window.mapper().address(), window.size() as usize);
    let parse = |line: &str| {
        let (range, rest) = line.split_once(' ')?;
        let (from, to) = range.split_once('-')?;
        let (from, to) = (usize::from_str_radix(from, 16).ok()?, usize::from_str_radix(to, 16).ok()?);
        // Neighbours without access may be merged with the window.
        let (from, to) = (from.max(start), to.min(start + size));
        (from < to).then(|| ((to - from) as u64, rest.split(' ').next().unwrap_or("").to_owned()))
    };
    maps.lines().filter_map(parse).collect()
}

#[test]
fn guest_and_host_see_each_others_stores() {
    let window = window(4);
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(b"from the host").unwrap();
    map(&window, &file, GRANULE, GRANULE, 0, true);
    assert_eq!(bytes(&window, GRANULE, 13), b"from the host");
    window.store(GRANULE + 9, b"GUEST").unwrap();
    let mut back = [0; 13];
    file.read_exact_at(&mut back, 0).unwrap();
    assert_eq!(&back, b"from the GUES", "what lies behind the end of the file is nobody's");
    file.write_all_at(b"grown", 100_000).unwrap();
    assert_eq!(bytes(&window, GRANULE + 100_000, 5), b"grown");
    assert!(window.load(0, &mut back).is_err() && window.load(2 * GRANULE - 1, &mut back).is_err());
    assert_eq!(window.mapper().healed(), 0);
}

#[test]
fn the_range_is_reserved_whatever_comes_and_goes() {
    let window = window(4);
    assert_eq!(window.mapper().address() % GRANULE as usize, 0);
    let none = |len| (len, "---p".to_owned());
    assert_eq!(kernel_sees(&window), [none(4 * GRANULE)]);
    let file = tempfile::tempfile().unwrap();
    file.set_len(4 * GRANULE).unwrap();
    map(&window, &file, GRANULE, 2 * GRANULE, 0, false);
    let read = |len| (len, "r--s".to_owned());
    assert_eq!(kernel_sees(&window), [none(GRANULE), read(2 * GRANULE), none(GRANULE)]);
    assert!(window.store(GRANULE, b"x").is_err(), "it is mapped for reading");
    map(&window, &file, GRANULE, GRANULE, 0, true);
    window.store(GRANULE, b"x").unwrap();
    window.unmap(2 * GRANULE, PAGE).unwrap();
    let write = (GRANULE, "rw-s".to_owned());
    assert_eq!(kernel_sees(&window), [none(GRANULE), write, none(PAGE), read(GRANULE - PAGE), none(GRANULE)]);
    window.clear().unwrap();
    assert_eq!(kernel_sees(&window).iter().map(|(len, _)| len).sum::<u64>(), 4 * GRANULE);
    assert!(kernel_sees(&window).iter().all(|(_, access)| access == "---p"));
}

#[test]
fn a_file_that_is_truncated_reads_as_zeros_and_is_mended() {
    let window = window(2);
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(&vec![7; 3 * PAGE as usize]).unwrap();
    map(&window, &file, 0, GRANULE, 0, true);
    assert_eq!(bytes(&window, 2 * PAGE, 1), [7]);
    file.set_len(PAGE + 10).unwrap();
    assert_eq!(bytes(&window, PAGE, 11), [7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 0]);
    assert_eq!(window.mapper().healed(), 0, "the rest of the last page is the kernel's to clear");
    assert_eq!(bytes(&window, 2 * PAGE, 100), [0; 100]);
    window.store(9 * PAGE, b"lost").unwrap();
    assert_eq!(window.mapper().healed(), 2);
    file.seek(std::io::SeekFrom::Start(0)).unwrap();
    file.write_all(&vec![8; 3 * PAGE as usize]).unwrap();
    assert_eq!(bytes(&window, 2 * PAGE, 1), [0], "a page that was replaced stays");
    assert_eq!(window.mend().unwrap(), 1);
    assert_eq!(bytes(&window, 2 * PAGE, 1), [8]);
    assert_eq!(window.mend().unwrap(), 0);
}

#[test]
fn many_faults_take_few_mappings_and_each_is_mended() {
    let window = window(16);
    let file = tempfile::tempfile().unwrap();
    file.set_len(16 * GRANULE).unwrap();
    // Neighbours in one granule, too.
    map(&window, &file, 0, PAGE, 0, true);
    map(&window, &file, PAGE, GRANULE - PAGE, PAGE, true);
    map(&window, &file, GRANULE, 15 * GRANULE, GRANULE, true);
    file.set_len(0).unwrap();
    for page in (0..16 * GRANULE / PAGE).step_by(2) {
        assert_eq!(bytes(&window, page * PAGE, 1), [0]);
    }
    let faults = window.mapper().healed();
    assert!((1024..1100).contains(&faults), "{faults} faults in 4096 pages");
    assert!(kernel_sees(&window).len() < 2200, "{}", kernel_sees(&window).len());
    file.set_len(16 * GRANULE).unwrap();
    file.write_all_at(b"again", 0).unwrap();
    file.write_all_at(b"again", PAGE).unwrap();
    file.write_all_at(b"again", 9 * GRANULE).unwrap();
    assert_eq!(window.mend().unwrap(), 3);
    for offset in [0, PAGE, 9 * GRANULE] {
        assert_eq!(bytes(&window, offset, 5), b"again");
    }
    assert_eq!(kernel_sees(&window).len(), 1);
}

#[test]
fn zeros_that_a_guest_wrote_to_go_with_its_mappings() {
    let window = window(2);
    let file = tempfile::tempfile().unwrap();
    file.set_len(GRANULE).unwrap();
    map(&window, &file, 0, GRANULE, 0, true);
    file.set_len(0).unwrap();
    window.store(0, b"secret").unwrap();
    window.clear().unwrap();
    assert!(kernel_sees(&window).iter().all(|(_, access)| access == "---p"));
    // One that came in the middle of a removal is found by the next session.
    assert!(window.mapper().heal(window.mapper().address() + 5));
    assert!(kernel_sees(&window).iter().any(|(_, access)| access == "rw-p"));
    window.clear().unwrap();
    assert!(kernel_sees(&window).iter().all(|(_, access)| access == "---p"));
    assert!(!window.mapper().heal(window.mapper().address() + 2 * GRANULE as usize));
}

#[test]
fn a_page_is_revived_if_a_file_should_have_given_it() {
    let window = window(4);
    let file = tempfile::tempfile().unwrap();
    file.set_len(2 * PAGE).unwrap();
    map(&window, &file, 0, GRANULE, 0, true);
    map(&window, &file, GRANULE, GRANULE, 0, false);
    let revive = |offset, writable| window.mapper().revive(offset, writable);
    assert!(revive(PAGE + 7, true), "nothing is wrong with it");
    assert!(!revive(GRANULE, false), "it can be read: this was a store");
    assert_eq!(window.mapper().healed(), 0);
    assert!(revive(2 * PAGE, true) && revive(GRANULE + 2 * PAGE, false));
    assert_eq!(window.mapper().healed(), 2);
    assert_eq!(bytes(&window, GRANULE + 2 * PAGE, 3), [0; 3]);
    assert_eq!(window.mapper().healed(), 2, "no fault was left to meet");
}

/// Set for the process in which a fault is to be met.
const FAULT: &str = "VIRTIOFS_DAX_TEST_FAULT";

extern "C" fn embedder(_: i32) {
    std::process::exit(42);
}

/// Touches a page behind the end of a file that is mapped outside of the window.
#[test]
fn faults_elsewhere_are_the_embedders() {
    let Ok(how) = std::env::var(FAULT) else {
        for (how, code) in [("handler", Some(42)), ("default", None)] {
            let me = std::env::current_exe().unwrap();
            let only = ["--exact", "faults_elsewhere_are_the_embedders", "--test-threads=1"];
            let status = Command::new(me).args(only).env(FAULT, how).output().unwrap().status;
            assert_eq!(status.code(), code, "{how}: {status:?}");
            if code.is_none() {
                assert_eq!(std::os::unix::process::ExitStatusExt::signal(&status), Some(libc::SIGBUS));
            }
        }
        return;
    };
    foreign_fault(&how);
}

#[allow(unsafe_code)]
fn foreign_fault(how: &str) {
    let handler = if how == "handler" { embedder as *const () as usize } else { libc::SIG_DFL };
    // SAFETY: a handler with one argument, or the default; this process does nothing but this test.
    unsafe { libc::signal(libc::SIGBUS, handler) };
    let window = window(1);
    let file = tempfile::tempfile().unwrap();
    file.set_len(PAGE).unwrap();
    map(&window, &file, 0, GRANULE, 0, true);
    assert_eq!(bytes(&window, 5 * PAGE, 1), [0]);
    // SAFETY: a new mapping of an empty file; reading it ends the process one way or the other.
    unsafe {
        let (access, flags) = (rustix::mm::ProtFlags::READ, rustix::mm::MapFlags::SHARED);
        file.set_len(0).unwrap();
        let at = rustix::mm::mmap(std::ptr::null_mut(), PAGE as usize, access, flags, &file, 0).unwrap();
        std::ptr::read_volatile(at.cast::<u8>());
    }
    unreachable!("the page was there");
}
