//! A guest that looks up, opens and locks without end: it gets an errno, and the host keeps its descriptors and its memory.

mod common;

use std::ffi::CString;
use std::fs;

use common::*;
use virtiofs_fuse::wire::*;
use virtiofs_fuse::{Error, FileSystem, Result, Segments};
use virtiofs_hostdir::Config;

const DESCRIPTORS: usize = 40;
const FILES: usize = 200;

fn bounded(descriptors: usize, nodes: usize) -> Share {
    let share = Share::with(Config { descriptors, nodes, ..config() }, 0);
    for number in 0..FILES {
        fs::write(share.path(format!("f{number}")), b"content").unwrap();
    }
    share
}

/// What there is before `refused`, which comes sooner or later and then always.
fn until_refused<T: std::fmt::Debug>(errno: i32, mut ask: impl FnMut(usize) -> Result<T>) -> Vec<T> {
    let mut had = Vec::new();
    for number in 0..10_000 {
        match ask(number) {
            Ok(one) => had.push(one),
            refused => {
                is(refused, errno);
                is(ask(number + 1), errno);
                return had;
            }
        }
    }
    panic!("{} of them, and no end", had.len());
}

/// Open descriptors of this process that lead below the share.
fn really_open(share: &Share) -> usize {
    let below = fs::canonicalize(share.path("")).unwrap();
    let fds = fs::read_dir("/proc/self/fd").unwrap();
    fds.filter(|fd| fd.as_ref().is_ok_and(|fd| fs::read_link(fd.path()).is_ok_and(|to| to.starts_with(&below)))).count()
}

#[test]
fn files_that_are_open_are_bounded_and_come_back() {
    let share = bounded(DESCRIPTORS, 0);
    let node = share.node("f0");
    for _ in 0..3 {
        let open = until_refused(libc::ENFILE, |_| share.open(node, libc::O_RDWR));
        assert!(open.len() > DESCRIPTORS / 2, "{}", open.len());
        assert!(share.fs.descriptors() <= DESCRIPTORS);
        assert!(really_open(&share) <= DESCRIPTORS + 2);
        // What it has still serves.
        assert_eq!(share.read(open[0], 0, 7).unwrap(), b"content");
        is(share.fs.opendir(&ROOT, ROOT_ID, 0), libc::ENFILE);
        is(share.create(&ROOT, c"new", libc::O_RDWR, 0o644).map(|_| ()), libc::ENFILE);
        is(share.fs.mkdir(&ROOT, ROOT_ID, c"new", 0o755, &Default::default()).map(|_| ()), libc::ENFILE);
        assert!(!share.path("new").exists(), "made, and not told");
        open.into_iter().for_each(|fh| share.release(fh));
    }
    let directories = until_refused(libc::ENFILE, |_| share.fs.opendir(&ROOT, ROOT_ID, 0));
    directories.iter().for_each(|open| share.releasedir(open.fh));
    share.fs.forget(node, 1);
    assert_eq!(share.fs.descriptors(), 1, "the root");
}

#[test]
fn files_that_were_used_are_bounded_and_forgetting_helps() {
    let share = bounded(DESCRIPTORS, 0);
    let nodes: Vec<u64> = (0..FILES).map(|number| share.node(&format!("f{number}"))).collect();
    // To change something takes hold of the inode, for as long as it is remembered.
    let touch =
        |node: u64| share.fs.setattr(&ROOT, node, &SetattrIn { valid: fattr::MODE, mode: 0o600, ..Default::default() });
    let had = until_refused(libc::ENFILE, |number| touch(nodes[number]));
    assert!(share.fs.descriptors() <= DESCRIPTORS && had.len() < DESCRIPTORS);
    // What needs no descriptor is answered without, however often.
    for _ in 0..3 {
        let attributes = share.fs.getattr(&ROOT, nodes[FILES - 1], None).unwrap();
        assert_eq!(attributes.attr.size, 7);
    }
    assert!(share.fs.descriptors() <= DESCRIPTORS);
    fs::remove_file(share.path(format!("f{}", FILES - 1))).unwrap();
    is(share.fs.getattr(&ROOT, nodes[FILES - 1], None).map(|_| ()), libc::ESTALE);
    nodes[..had.len()].iter().for_each(|node| _ = share.fs.forget(*node, 1));
    assert!(touch(nodes[had.len()]).is_ok());
}

#[test]
fn files_left_open_for_the_next_reader_never_are_all_there_is() {
    needs_root!();
    let share = Share::within(on_disk(), Config { descriptors: DESCRIPTORS, ..config() }, 0);
    for number in 0..FILES {
        fs::write(share.path(format!("f{number}")), b"content").unwrap();
    }
    let mut held = 0;
    for number in 0..FILES {
        let node = share.node(&format!("f{number}"));
        match share.open(node, libc::O_RDONLY) {
            Ok(fh) => share.release(fh),
            refused => is(refused, libc::ENFILE),
        }
        held = held.max(share.fs.descriptors());
    }
    assert!(held <= DESCRIPTORS, "{held}");
}

#[test]
fn nodes_are_bounded_and_a_listing_goes_on_without_them() {
    let share = bounded(0, 50);
    let name = |number: usize| CString::new(format!("f{number}")).unwrap();
    let had = until_refused(libc::ENFILE, |number| share.lookup(ROOT_ID, &name(number)));
    assert_eq!(had.len(), 50);
    // Those that it has it may look up again.
    assert_eq!(share.lookup(ROOT_ID, &name(7)).unwrap().nodeid, had[7].nodeid);
    is(share.create(&ROOT, c"new", libc::O_RDWR, 0o644).map(|_| ()), libc::ENFILE);
    assert!(!share.path("new").exists());
    let listed = share.list(ROOT_ID, true, 4096);
    assert!(listed.len() >= FILES, "{}", listed.len());
    assert!(listed.iter().filter(|entry| entry.node != 0).count() <= 50);
    share.fs.forget(had[3].nodeid, 100);
    assert!(share.lookup(ROOT_ID, &name(60)).is_ok());
    share.fs.destroy();
    assert_eq!((share.fs.nodes(), share.fs.descriptors()), (1, 1));
}

#[test]
fn locks_are_bounded_by_descriptors_too() {
    let share = bounded(DESCRIPTORS, 0);
    let node = share.node("f0");
    let fh = share.open(node, libc::O_RDWR).unwrap();
    let lock = |owner: u64, kind: i32, start: u64| {
        let lk = FileLock { start, end: start, kind: kind as u32, pid: 1 };
        share.fs.setlk(&ROOT, node, &LkIn { fh, owner, lk, ..LkIn::default() })
    };
    let had = until_refused(libc::ENFILE, |owner| lock(owner as u64, libc::F_RDLCK, 0));
    assert!(share.fs.descriptors() <= DESCRIPTORS && had.len() > DESCRIPTORS / 2);
    // An owner that has one needs no other.
    assert!(lock(0, libc::F_RDLCK, 2).is_ok());
    let many = until_refused(libc::ENOLCK, |number| lock(0, libc::F_RDLCK, 4 + 2 * number as u64));
    assert!(many.len() < 5000);
    (0..had.len() as u64).for_each(|owner| {
        let all = FileLock { start: 0, end: u64::MAX, kind: libc::F_UNLCK as u32, pid: 1 };
        share.fs.setlk(&ROOT, node, &LkIn { fh, owner, lk: all, ..LkIn::default() }).unwrap();
    });
    assert!(lock(99, libc::F_WRLCK, 0).is_ok());
}

#[test]
fn a_thousand_open_directories_read_on_from_where_they_were() {
    let share = bounded(0, 0);
    let open: Vec<u64> = (0..1000).map(|_| share.opendir(ROOT_ID)).collect();
    for (number, fh) in open.iter().enumerate() {
        // In small steps, so that most of what was read ahead is left.
        let (mut found, mut offset) = (0, 0);
        while found < 30 {
            let some = share.readdir(*fh, offset, false, 200).unwrap();
            offset = some.last().map(|entry| entry.off).unwrap_or_else(|| panic!("directory {number} ends at {found}"));
            found += some.len();
        }
        let rest = share.readdir(*fh, offset, false, 1 << 20).unwrap();
        assert_eq!(found + rest.len(), FILES + 2, "directory {number}");
    }
    open.into_iter().for_each(|fh| share.releasedir(fh));
}

#[test]
fn errors_are_not_kept() {
    let share = bounded(2, 0);
    let node = share.node("f0");
    let open = share.open(node, libc::O_RDONLY);
    assert_eq!(open, Err(Error::Errno(libc::ENFILE)), "the root and the node are two already");
    share.fs.destroy();
    assert_eq!(share.fs.descriptors(), 1);
}

#[test]
fn what_is_used_without_an_open_counts_as_well() {
    let share = Share::with(
        Config { descriptors: DESCRIPTORS, ..config() },
        init::NO_OPEN_SUPPORT | init::NO_OPENDIR_SUPPORT | init::DONT_MASK,
    );
    for number in 0..FILES {
        fs::write(share.path(format!("f{number}")), b"content").unwrap();
    }
    let read = |node: u64| {
        let mut buffer = vec![0; 7];
        let (vecs, len) = iovecs(&mut [&mut buffer]);
        let args = ReadIn { size: len as u32, ..ReadIn::default() };
        share.fs.read(&ROOT, node, &args, Segments::new(&vecs, len))
    };
    // A guest that forgets what it has read reads on for ever.
    for number in 0..FILES {
        let node = share.node(&format!("f{number}"));
        assert_eq!(read(node).unwrap(), 7);
        share.fs.forget(node, 1);
    }
    // One that removes what it has open, and forgets nothing, does not: nobody could open those again.
    let nodes: Vec<u64> = (0..FILES).map(|number| share.node(&format!("f{number}"))).collect();
    let had = until_refused(libc::ENFILE, |number| {
        let read = read(nodes[number])?;
        share.fs.unlink(&ROOT, ROOT_ID, &CString::new(format!("f{number}")).unwrap())?;
        Ok(read)
    });
    assert!(share.fs.descriptors() <= DESCRIPTORS && had.len() >= DESCRIPTORS / 4, "{}", had.len());
    assert!(really_open(&share) <= DESCRIPTORS + 2);
    nodes[..=had.len()].iter().for_each(|node| _ = share.fs.forget(*node, 1));
    assert_eq!(read(nodes[had.len() + 1]).unwrap(), 7);
}
