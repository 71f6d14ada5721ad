//! Many nodes with few descriptors: what was used longest ago is held by file handle.

mod common;

use std::ffi::CString;
use std::fs;

use common::*;
use virtiofs_fuse::FileSystem;
use virtiofs_fuse::wire::*;
use virtiofs_hostdir::Config;

const LIMIT: usize = 20;
const FILES: usize = 300;

/// A share whose nodes may have few descriptors, with files 0, 1, 2… that hold their numbers.
fn crowded() -> Option<Share> {
    if !is_root() {
        eprintln!("skipped: opening file handles needs CAP_DAC_READ_SEARCH");
        return None;
    }
    let share = Share::within(on_disk(), Config { node_descriptors: LIMIT, ..config() }, 0);
    for number in 0..FILES {
        fs::write(share.path(number.to_string()), number.to_string()).unwrap();
    }
    Some(share)
}

#[test]
fn every_node_works_whether_it_has_a_descriptor_or_not() {
    let Some(share) = crowded() else { return };
    let nodes: Vec<u64> = (0..FILES).map(|number| share.node(&number.to_string())).collect();
    assert_eq!(share.fs.nodes(), 1 + FILES);
    assert!(share.fs.node_descriptors() <= LIMIT, "{}", share.fs.node_descriptors());
    for round in 0..2 {
        for (number, &node) in nodes.iter().enumerate() {
            assert_eq!(share.attr(node).size, number.to_string().len() as u64, "round {round}");
            let fh = share.open(node, libc::O_RDONLY).unwrap();
            assert_eq!(share.read(fh, 0, 10).unwrap(), number.to_string().as_bytes());
            share.release(fh);
            assert!(share.fs.node_descriptors() <= LIMIT + 1);
        }
    }
    // The same name is still the same node.
    for (number, &node) in nodes.iter().enumerate() {
        assert_eq!(share.node(&number.to_string()), node);
    }
    nodes.iter().for_each(|&node| _ = share.fs.forget(node, 2));
    assert_eq!((share.fs.nodes(), share.fs.node_descriptors()), (1, 1));
}

#[test]
fn a_file_that_is_gone_is_stale_and_its_number_leads_nobody_astray() {
    let Some(share) = crowded() else { return };
    let nodes: Vec<u64> = (0..FILES).map(|number| share.node(&number.to_string())).collect();
    // Behind the guest's back, so that the host may give the inode numbers to other files.
    for number in 0..FILES {
        fs::remove_file(share.path(number.to_string())).unwrap();
        fs::write(share.path(format!("new{number}")), b"another").unwrap();
    }
    let mut stale = 0;
    for number in 0..FILES {
        let new = share.node(&format!("new{number}"));
        assert!(!nodes.contains(&new), "a new file has a node of its own");
        assert_eq!(share.attr(new).size, 7);
    }
    for &node in &nodes {
        match share.fs.getattr(&ROOT, node, None) {
            // Those that still had a descriptor are deleted but there.
            Ok(out) => assert_eq!(out.attr.nlink, 0),
            other => {
                is(other, libc::ESTALE);
                stale += 1;
            }
        }
    }
    assert!(stale >= FILES - LIMIT, "{stale}");
    nodes.iter().for_each(|&node| _ = share.fs.forget(node, 1));
    assert_eq!(share.fs.nodes(), 1 + FILES);
}

#[test]
fn directories_without_a_descriptor_are_walked_renamed_and_linked_in() {
    let Some(share) = crowded() else { return };
    let mut dirs = Vec::new();
    for number in 0..3 * LIMIT {
        fs::create_dir(share.path(format!("d{number}"))).unwrap();
        fs::write(share.path(format!("d{number}/file")), b"x").unwrap();
        dirs.push(share.node(&format!("d{number}")));
    }
    for (number, &dir) in dirs.iter().enumerate() {
        let file = share.lookup(dir, c"file").unwrap().nodeid;
        share.fs.link(&ROOT, file, dir, c"second").unwrap();
        let to = dirs[(number + 7) % dirs.len()];
        let name = CString::new(format!("from{number}")).unwrap();
        share.fs.rename(&ROOT, dir, c"file", to, &name, 0).unwrap();
        assert_eq!(share.lookup(to, &name).unwrap().nodeid, file);
        assert_eq!(share.attr(file).nlink, 2);
    }
    assert!(share.fs.node_descriptors() <= LIMIT + 2);
}

#[test]
fn threads_that_fight_over_few_descriptors_never_meet_a_wrong_file() {
    let Some(share) = crowded() else { return };
    let nodes: Vec<u64> = (0..FILES).map(|number| share.node(&number.to_string())).collect();
    let inos: Vec<u64> = nodes.iter().map(|&node| share.attr(node).ino).collect();
    std::thread::scope(|scope| {
        for thread in 0..4 {
            let (share, nodes, inos) = (&share, &nodes, &inos);
            scope.spawn(move || {
                for step in 0..5_000usize {
                    let at = (step * (2 * thread + 3) * 7919) % FILES;
                    let found = share.lookup(ROOT_ID, &CString::new(at.to_string()).unwrap()).unwrap();
                    assert_eq!((found.nodeid, found.attr.ino), (nodes[at], inos[at]));
                    assert_eq!(share.attr(nodes[(at + 1) % FILES]).ino, inos[(at + 1) % FILES]);
                    share.fs.forget(found.nodeid, 1);
                }
            });
        }
    });
    nodes.iter().for_each(|&node| _ = share.fs.forget(node, 1));
    assert_eq!((share.fs.nodes(), share.fs.node_descriptors()), (1, 1));
}

#[test]
fn a_file_that_was_read_is_opened_again_without_a_descriptor_more() {
    let Some(share) = crowded() else { return };
    let node = share.node("7");
    share.release(share.open(node, libc::O_RDWR).unwrap());
    let before = share.fs.node_descriptors();
    for _ in 0..3 {
        let (first, second) = (share.open(node, libc::O_RDONLY).unwrap(), share.open(node, libc::O_RDONLY).unwrap());
        assert_eq!(share.fs.node_descriptors(), before, "both are in use");
        fs::write(share.path("7"), b"anew").unwrap();
        assert_eq!(share.read(first, 0, 10).unwrap(), b"anew");
        share.release(first);
        share.release(second);
        assert_eq!(share.fs.node_descriptors(), before + 1, "one is kept, the other closed");
    }
    let writes = share.open(node, libc::O_RDWR).unwrap();
    share.release(writes);
    assert_eq!(share.fs.node_descriptors(), before + 1, "what may write is never kept");
    share.fs.forget(node, 1);
    assert_eq!(share.fs.node_descriptors(), before - 1);
}

#[test]
fn spares_go_first_when_descriptors_are_few() {
    let Some(share) = crowded() else { return };
    for number in 0..FILES {
        let fh = share.open(share.node(&number.to_string()), libc::O_RDONLY).unwrap();
        share.release(fh);
        assert!(share.fs.node_descriptors() <= LIMIT, "{}", share.fs.node_descriptors());
    }
}
