//! Nodes that are being opened, that take another's place, and that outlive their session.

use std::thread;

use super::*;

/// An empty table over a folder with some files.
fn table(files: u32) -> (Inodes, tempfile::TempDir) {
    let dir = tempfile::tempdir().unwrap();
    for file in 0..files {
        std::fs::write(dir.path().join(file.to_string()), "").unwrap();
    }
    let fd = OwnedFd::from(std::fs::File::open(dir.path()).unwrap());
    let status = Status::of(&fd).unwrap();
    let new = NewInode::new(Hold::Fd(fd), &status, Arc::default(), false, false);
    (Inodes::new(new, &status, 0, Arc::default(), None), dir)
}

fn status(inodes: &Inodes, name: &CStr) -> Status {
    Status::by_name(inodes.root().fd().unwrap(), name).unwrap()
}

/// What is seen as `0`, by somebody who says when it was made.
fn enter_seen(inodes: &Inodes, born: Born) -> Option<Arc<Inode>> {
    inodes.enter_seen(&inodes.root, c"0", born, &status(inodes, c"0"), &Arc::default()).unwrap()
}

fn seen(inodes: &Inodes, born: Born) -> NewInode {
    let hold = Hold::Seen(Seen::new(&inodes.root, c"0", born));
    let new = NewInode::new(hold, &status(inodes, c"0"), Arc::default(), false, false);
    NewInode { born: Some(born), ..new }
}

#[test]
fn while_a_node_is_opened_nobody_waits_but_who_wants_it() {
    let (inodes, _dir) = table(200);
    let status_of_0 = status(&inodes, c"0");
    let Some(born) = status_of_0.born() else {
        eprintln!("skipped: no times of birth here");
        return;
    };
    let node = enter_seen(&inodes, born).unwrap();
    let others: Vec<_> = (1..200)
        .map(|file| {
            let name = std::ffi::CString::new(file.to_string()).unwrap();
            let status = status(&inodes, &name);
            inodes.enter_seen(&inodes.root, &name, born, &status, &Arc::default()).unwrap().unwrap().id
        })
        .collect();
    thread::scope(|scope| {
        let busy = node.pin.busy();
        assert!(enter_seen(&inodes, born).is_none(), "nothing is proven, and nothing waits");
        let found = scope.spawn(|| inodes.find_and_count(&status_of_0).unwrap().id);
        let entered = scope.spawn(|| inodes.enter(node.key, seen(&inodes, born)).unwrap().id);
        // Both wait now, or soon. All parts can be used all the same.
        for id in others {
            thread::yield_now();
            assert!(inodes.known(id).is_ok());
            assert!(inodes.forget(id, 1));
        }
        drop(busy);
        assert_eq!((found.join().unwrap(), entered.join().unwrap()), (node.id, node.id));
    });
    assert_eq!((inodes.len(), node.lookups()), (2, 3));
    assert!(inodes.forget(node.id, 3));
}

#[test]
fn an_inode_that_got_the_number_of_another_has_one_node_whoever_enters_it_first() {
    let (inodes, _dir) = table(1);
    for turn in 0..200 {
        let old = inodes.enter(status(&inodes, c"0").key(), seen(&inodes, (turn, 1))).unwrap();
        // In every second turn the guest takes the old one back meanwhile.
        let ids = thread::scope(|scope| {
            let enter = || inodes.enter(old.key, seen(&inodes, (turn, 2))).unwrap().id;
            let entering: Vec<_> = (0..3).map(|_| scope.spawn(enter)).collect();
            if turn % 2 == 0 {
                inodes.forget(old.id, 1);
            }
            entering.into_iter().map(|entering| entering.join().unwrap()).collect::<Vec<_>>()
        });
        assert!(ids[0] != old.id && ids.iter().all(|id| *id == ids[0]), "{ids:?}");
        let new = inodes.find(old.key).unwrap();
        assert_eq!((new.id, new.lookups()), (ids[0], 3));
        inodes.forget(old.id, 1);
        assert!(Arc::ptr_eq(&inodes.find(old.key).unwrap(), &new), "the old one takes nothing with it");
        assert!(inodes.forget(new.id, 3));
        assert_eq!(inodes.len(), 1);
        assert!(inodes.find(old.key).is_none());
    }
}

#[test]
fn a_node_of_a_session_that_ended_takes_none_of_the_next_one_out() {
    let (inodes, _dir) = table(1);
    let key = status(&inodes, c"0").key();
    let old = inodes.enter(key, seen(&inodes, (1, 1))).unwrap();
    inodes.clear();
    let new = inodes.enter_again(old.id, 1, key, seen(&inodes, (1, 1))).unwrap();
    assert!(!inodes.forget_inode(&old, 1));
    assert!(Arc::ptr_eq(&inodes.known(new.id).unwrap(), &new));
    assert!(Arc::ptr_eq(&inodes.find(key).unwrap(), &new));
    assert!(inodes.forget_inode(&new, 1));
    assert_eq!(inodes.len(), 1);
}
