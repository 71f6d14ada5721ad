//! What was saved, and changed by somebody since.

mod common;

use common::*;
use virtiofs_fuse::wire::*;
use virtiofs_fuse::{BACKING, FileSystem, Reader, Saved, Unusable};

/// A session without nodes and locks, whose next numbers are these.
fn saved(node: u64, file: u64, directory: u64) -> Vec<u8> {
    let mut saved = Saved::default();
    saved.numbers([0, node, 0, file, 0, directory, 0, 0]);
    saved.into_bytes()
}

fn restore(share: &Share, saved: &[u8]) -> Result<(), Unusable> {
    share.fs.restore(&mut Reader::new(saved), &mut Vec::new())
}

#[test]
fn numbers_that_would_leave_none_for_what_is_to_come_are_refused() {
    let share = share();
    std::fs::write(share.path("f"), "").unwrap();
    for (node, file, directory) in [
        (u64::MAX, 1, 1),
        (u64::MAX - 31, 1, 1),
        (1 << 63, 1, 1),
        (1, u64::MAX, 1),
        (1, BACKING, 1),
        (1, BACKING - 1, 1),
        (1, 1, u64::MAX),
    ] {
        let refused = restore(&share, &saved(node, file, directory));
        assert!(matches!(refused, Err(Unusable::Broken)), "{node} {file} {directory}");
    }
    let largest = (1 << 63) - 1;
    restore(&share, &saved(largest, BACKING / 2 - 1, 1)).unwrap();
    // Ids and numbers go on behind those, and are nobody else's.
    let node = share.node("f");
    assert!(node > largest && share.attr(node).mode & libc::S_IFMT == libc::S_IFREG);
    let file = share.open(node, libc::O_RDONLY).unwrap();
    assert!(file >= BACKING / 2 - 1 && file & BACKING == 0);
}

#[test]
fn a_node_whose_id_could_be_given_once_more_is_refused() {
    let old = share();
    std::fs::write(old.path("f"), "").unwrap();
    let id = old.node("f");
    let mut saved = Saved::default();
    old.fs.save(&mut saved).unwrap();
    let saved = saved.into_bytes();
    assert_eq!(saved[24..32], id.to_le_bytes());
    for wrong in [u64::MAX, u64::from_le_bytes(saved[8..16].try_into().unwrap())] {
        let mut changed = saved.clone();
        changed[24..32].copy_from_slice(&wrong.to_le_bytes());
        assert!(matches!(restore(&share(), &changed), Err(Unusable::Broken)), "{wrong}");
    }
    old.fs.destroy();
    restore(&old, &saved).unwrap();
    assert_eq!(old.node("f"), id);
    assert!(id > ROOT_ID);
}
