//! Directories are listed whole, from any position, and what is not delivered is not counted.

mod common;

use std::ffi::CString;
use std::os::unix::fs::MetadataExt;

use common::*;
use virtiofs_fuse::wire::*;
use virtiofs_fuse::{Error, FileSystem};

fn filled(count: usize) -> Share {
    let share = share();
    for i in 0..count {
        std::fs::write(share.path(format!("file-{i:04}")), "").unwrap();
    }
    share
}

#[test]
fn every_entry_is_listed_once_whatever_the_room() {
    let share = filled(700);
    std::fs::create_dir(share.path("dir")).unwrap();
    let mut expected: Vec<String> = (0..700).map(|i| format!("file-{i:04}")).collect();
    expected.extend([".", "..", "dir"].map(String::from));
    expected.sort();
    for plus in [false, true] {
        // Room for one entry, for a few, for all; more than is read ahead at once.
        for limit in [176, 1000, 4096, 1 << 20] {
            assert_eq!(names(&share.list(ROOT_ID, plus, limit)), expected, "plus {plus}, limit {limit}");
        }
    }
    assert_eq!(share.fs.handles(), 0);
}

#[test]
fn types_and_numbers_are_the_hosts() {
    let share = filled(1);
    std::fs::create_dir(share.path("dir")).unwrap();
    std::os::unix::fs::symlink("x", share.path("link")).unwrap();
    for plus in [false, true] {
        for entry in share.list(ROOT_ID, plus, 4096) {
            let name = String::from_utf8(entry.name.clone()).unwrap();
            let kind = match name.as_str() {
                "." | ".." | "dir" => libc::DT_DIR,
                "link" => libc::DT_LNK,
                _ => libc::DT_REG,
            };
            assert_eq!(entry.kind, u32::from(kind), "{name}");
            // Above the root is nothing that a guest may see.
            let host = share.path(if name == ".." { "." } else { &name });
            assert_eq!(entry.ino, std::fs::symlink_metadata(host).unwrap().ino(), "{name}");
        }
    }
    let below = share.node("dir");
    let parent = share.list(below, false, 4096).into_iter().find(|entry| entry.name == b"..").unwrap();
    assert_eq!(parent.ino, std::fs::metadata(share.path("")).unwrap().ino());
}

#[test]
fn plus_counts_one_lookup_for_each_entry_delivered_and_no_other() {
    let share = filled(50);
    let fh = share.opendir(ROOT_ID);
    // Room for three and a half.
    let record = (152 + "file-0000".len()).next_multiple_of(8);
    let (mut offset, mut nodes) = (0, Vec::new());
    loop {
        let some = share.readdir(fh, offset, true, record * 7 / 2).unwrap();
        let Some(last) = some.last() else { break };
        offset = last.off;
        nodes.extend(some.iter().filter(|entry| entry.node != 0).map(|entry| entry.node));
        assert_eq!(share.fs.nodes(), 1 + nodes.len(), "nothing was counted that did not fit");
        assert!(some.iter().all(|entry| (entry.node == 0) == entry.name.starts_with(b".")));
    }
    assert_eq!(nodes.len(), 50);
    // Known from the listing, and once more from a second one.
    assert_eq!(share.node("file-0007"), share.node("file-0007"));
    let again = share.list(ROOT_ID, true, 1 << 16);
    assert!(again.iter().all(|entry| entry.node == 0 || nodes.contains(&entry.node)));
    share.fs.forget(share.node("file-0007"), 3);
    for node in nodes {
        share.fs.forget(node, 2);
    }
    assert_eq!(share.fs.nodes(), 1);
}

#[test]
fn listings_beside_each_other_and_beside_changes_leave_no_node_behind() {
    let share = filled(40);
    std::thread::scope(|scope| {
        for thread in 0..3 {
            let share = &share;
            scope.spawn(move || {
                for turn in 0..100 {
                    for entry in share.list(ROOT_ID, true, 4096).iter().filter(|entry| entry.node != 0) {
                        // Some are used, and get a descriptor, unless their name leads elsewhere by now.
                        match share.fs.getattr(&ROOT, entry.node, None) {
                            Ok(_) if (turn + thread) % 3 == 0 => {}
                            Ok(_) => drop(share.open(entry.node, libc::O_RDONLY).map(|fh| share.release(fh))),
                            Err(error) => assert_eq!(error, Error::Errno(libc::ESTALE)),
                        }
                        share.fs.forget(entry.node, 1);
                    }
                }
            });
        }
        scope.spawn(|| {
            for turn in 0..1000 {
                let name = CString::new(format!("file-{:04}", turn % 40)).unwrap();
                match turn % 3 {
                    // Of this guest, and of somebody else on the host.
                    0 => share.fs.unlink(&ROOT, ROOT_ID, &name).unwrap(),
                    _ => std::fs::remove_file(share.path(name.to_str().unwrap())).unwrap(),
                }
                std::fs::write(share.path(name.to_str().unwrap()), "").unwrap();
            }
        });
    });
    assert_eq!((share.fs.nodes(), share.fs.handles(), share.fs.node_descriptors()), (1, 0, 1));
}

#[test]
fn room_for_no_entry_is_an_error_and_not_the_end() {
    let share = filled(1);
    let fh = share.opendir(ROOT_ID);
    for plus in [false, true] {
        is(share.readdir(fh, 0, plus, 16), libc::EINVAL);
    }
    assert_eq!(share.readdir(fh, 0, false, 4096).unwrap().len(), 3);
    assert_eq!(share.fs.nodes(), 1);
}

#[test]
fn any_cookie_can_be_returned_to_even_after_changes() {
    let share = filled(300);
    let fh = share.opendir(ROOT_ID);
    let all = share.list(ROOT_ID, false, 1 << 16);
    for start in [250, 3, 120, 0, 301] {
        let offset = if start == 0 { 0 } else { all[start - 1].off };
        let rest = share.readdir(fh, offset, false, 1 << 16).unwrap();
        assert_eq!(rest, all[start..], "from {start}");
    }
    // Entries that neither came nor went are each seen once by who was in the middle.
    let middle = all[150].off;
    let gone: Vec<_> = all[10..20].iter().chain(&all[200..210]).map(|entry| entry.name.clone()).collect();
    for name in gone.iter().filter(|name| !name.starts_with(b".")) {
        std::fs::remove_file(share.path(std::str::from_utf8(name).unwrap())).unwrap();
    }
    for i in 0..50 {
        std::fs::write(share.path(format!("new-{i}")), "").unwrap();
    }
    let (mut rest, mut offset) = (Vec::new(), middle);
    loop {
        let some = share.readdir(fh, offset, false, 512).unwrap();
        let Some(last) = some.last() else { break };
        offset = last.off;
        rest.extend(some);
    }
    for stayed in all[151..].iter().filter(|entry| !gone.contains(&entry.name)) {
        assert_eq!(rest.iter().filter(|entry| entry.name == stayed.name).count(), 1, "{stayed:?}");
    }
    let fresh = share.readdir(fh, 0, false, 1 << 16).unwrap();
    assert!(fresh.iter().any(|entry| entry.name == b"new-0"), "rewinding shows what came meanwhile");
}

#[test]
fn an_entry_that_goes_while_it_is_listed_is_listed_without_a_node() {
    let share = filled(3);
    let fh = share.opendir(ROOT_ID);
    let first = share.readdir(fh, 0, true, 176).unwrap();
    assert_eq!(first.len(), 1);
    // The rest was read ahead already.
    for i in 0..3 {
        std::fs::remove_file(share.path(format!("file-{i:04}"))).unwrap();
    }
    let rest = share.readdir(fh, first[0].off, true, 4096).unwrap();
    assert!(rest.iter().all(|entry| entry.node == 0));
    let total = first.iter().chain(&rest).filter(|entry| entry.name.starts_with(b"file")).count();
    assert_eq!(total, 3, "the names stay listed");
}

#[test]
fn long_and_odd_names_pass_unchanged() {
    let share = share();
    let odd = [vec![b'n'; 255], b"\xff\xfe\x01 \n".to_vec(), "ünïcödé".as_bytes().to_vec()];
    for name in &odd {
        let name = CString::new(name.clone()).unwrap();
        share.create(&ROOT, &name, libc::O_RDWR, 0o600).unwrap();
    }
    for plus in [false, true] {
        let listed = share.list(ROOT_ID, plus, 152 + 256 + 8);
        for name in &odd {
            assert!(listed.iter().any(|entry| entry.name == *name));
        }
    }
}

#[test]
fn a_directory_that_was_removed_is_empty_or_gone() {
    let share = share();
    std::fs::create_dir(share.path("d")).unwrap();
    let node = share.node("d");
    let fh = share.opendir(node);
    std::fs::remove_dir(share.path("d")).unwrap();
    match share.readdir(fh, 0, true, 4096) {
        Ok(listed) => assert!(listed.iter().all(|entry| entry.name.starts_with(b"."))),
        result => is(result, libc::ENOENT),
    }
    is(share.lookup(node, c"x"), libc::ENOENT);
    share.fs.fsyncdir(&ROOT, node, fh, false).unwrap();
}
