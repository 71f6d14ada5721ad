//! Names become nodes, nodes are counted, and no name leads out of the directory.

mod common;

use std::ffi::CString;
use std::os::unix::fs::MetadataExt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use common::*;
use virtiofs_fuse::wire::*;
use virtiofs_fuse::{Creation, Error, FileSystem};
use virtiofs_hostdir::{Config, Effects, HostDir};

#[test]
fn a_name_leads_to_one_node_however_often_it_is_looked_up() {
    let share = share();
    std::fs::write(share.path("f"), "12345").unwrap();
    let first = share.lookup(ROOT_ID, c"f").unwrap();
    assert_eq!((first.attr.size, first.attr.mode & libc::S_IFMT), (5, libc::S_IFREG));
    assert_eq!(first.attr.ino, std::fs::metadata(share.path("f")).unwrap().ino());
    assert_eq!((first.entry_valid, first.entry_valid_nsec), (1, 500_000_000));
    assert_eq!((first.attr_valid, first.attr_valid_nsec), (2, 0));
    for _ in 0..5 {
        assert_eq!(share.lookup(ROOT_ID, c"f").unwrap().nodeid, first.nodeid);
    }
    assert_eq!(share.fs.nodes(), 2);
    share.fs.forget(first.nodeid, 5);
    assert_eq!(share.fs.nodes(), 2, "one lookup is not taken back");
    share.fs.forget(first.nodeid, 1);
    assert_eq!(share.fs.nodes(), 1);
    is(share.fs.getattr(&ROOT, first.nodeid, None), libc::ESTALE);
    let again = share.lookup(ROOT_ID, c"f").unwrap();
    assert_ne!(again.nodeid, first.nodeid, "an id is never given twice");
    share.fs.forget(again.nodeid, u64::MAX);
    assert_eq!(share.fs.nodes(), 1);
}

#[test]
fn hard_links_are_one_node() {
    let share = share();
    std::fs::write(share.path("a"), "").unwrap();
    let a = share.node("a");
    let linked = share.fs.link(&ROOT, a, ROOT_ID, c"b").unwrap();
    assert_eq!((linked.nodeid, linked.attr.nlink), (a, 2));
    assert_eq!(share.node("b"), a);
    std::fs::remove_file(share.path("a")).unwrap();
    assert_eq!(share.attr(a).nlink, 1);
    share.fs.forget(a, 3);
    assert_eq!(share.fs.nodes(), 1);
    is(share.fs.link(&ROOT, a, ROOT_ID, c"c"), libc::ESTALE);
}

#[test]
fn a_link_to_a_symlink_is_a_link_to_the_symlink() {
    let share = share();
    std::os::unix::fs::symlink("nowhere", share.path("s")).unwrap();
    let node = share.node("s");
    share.fs.link(&ROOT, node, ROOT_ID, c"t").unwrap();
    assert_eq!(std::fs::read_link(share.path("t")).unwrap().to_str(), Some("nowhere"));
}

#[test]
fn an_absent_name_is_cached_only_where_the_share_says_so() {
    let share = share();
    is(share.lookup(ROOT_ID, c"none"), libc::ENOENT);
    let effects = Effects { negative_ttl: Duration::from_millis(250), ..Effects::default() };
    let share = Share::with(Config { effects, ..config() }, 0);
    let negative = share.lookup(ROOT_ID, c"none").unwrap();
    assert_eq!((negative.nodeid, negative.entry_valid, negative.entry_valid_nsec), (0, 0, 250_000_000));
    assert_eq!(share.fs.nodes(), 1);
    let long = CString::new([b'x'; 256]).unwrap();
    is(share.lookup(ROOT_ID, &long), libc::ENAMETOOLONG);
}

#[test]
fn names_that_are_no_components_are_refused_by_every_operation() {
    let share = share();
    std::fs::create_dir(share.path("d")).unwrap();
    std::fs::write(share.path("f"), "").unwrap();
    let (dir, file) = (share.node("d"), share.node("f"));
    let new = Creation::default();
    for name in [c"", c".", c"..", c"/", c"a/b", c"../f", c"/etc/passwd"] {
        is(share.lookup(dir, name), libc::EINVAL);
        is(share.create(&ROOT, name, libc::O_RDWR, 0o600), libc::EINVAL);
        is(share.fs.mkdir(&ROOT, dir, name, 0o700, &new), libc::EINVAL);
        is(share.fs.mknod(&ROOT, dir, name, libc::S_IFREG | 0o600, 0, &new), libc::EINVAL);
        is(share.fs.symlink(&ROOT, dir, name, c"target", &new), libc::EINVAL);
        is(share.fs.unlink(&ROOT, dir, name), libc::EINVAL);
        is(share.fs.rmdir(&ROOT, dir, name), libc::EINVAL);
        is(share.fs.link(&ROOT, file, dir, name), libc::EINVAL);
        is(share.fs.rename(&ROOT, dir, name, dir, c"x", 0), libc::EINVAL);
        is(share.fs.rename(&ROOT, ROOT_ID, c"f", dir, name, 0), libc::EINVAL);
    }
    assert!(std::fs::exists(share.path("f")).unwrap());
    let odd = CString::new(b"\xff\xfe not utf-8 \n".to_vec()).unwrap();
    let node = share.fs.mknod(&ROOT, ROOT_ID, &odd, libc::S_IFREG | 0o600, 0, &new).unwrap().nodeid;
    assert_eq!(share.lookup(ROOT_ID, &odd).unwrap().nodeid, node);
    let longest = CString::new([b'x'; 255]).unwrap();
    share.fs.mkdir(&ROOT, ROOT_ID, &longest, 0o700, &new).unwrap();
}

#[test]
fn links_are_nodes_and_are_never_followed() {
    let share = share();
    let outside = tempfile::tempdir().unwrap();
    std::fs::write(outside.path().join("secret"), "secret").unwrap();
    std::os::unix::fs::symlink(outside.path(), share.path("out")).unwrap();
    let link = share.lookup(ROOT_ID, c"out").unwrap();
    assert_eq!(link.attr.mode & libc::S_IFMT, libc::S_IFLNK);
    is(share.lookup(link.nodeid, c"secret"), libc::ENOTDIR);
    is(share.open(link.nodeid, libc::O_RDONLY), libc::ELOOP);
    is(share.fs.opendir(&ROOT, link.nodeid, 0), libc::ENOTDIR);
    is(share.fs.unlink(&ROOT, link.nodeid, c"secret"), libc::ENOTDIR);
    is(share.fs.create(&ROOT, link.nodeid, c"new", 2, 0o600, false, &Creation::default()), libc::ENOTDIR);
    let mut target = Vec::new();
    share.fs.readlink(&ROOT, link.nodeid, &mut target).unwrap();
    assert_eq!(target, outside.path().as_os_str().as_encoded_bytes());
    is(share.fs.readlink(&ROOT, ROOT_ID, &mut target), libc::EINVAL);
}

/// Somebody exchanges a directory for a symlink that leads outside, all the time, while the guest looks up, creates and lists below
/// that name. Nothing outside may ever be seen or touched.
#[test]
fn a_race_of_symlinks_does_not_lead_outside() {
    let share = share();
    let outside = tempfile::tempdir().unwrap();
    std::fs::write(outside.path().join("f"), "outside").unwrap();
    std::fs::create_dir(share.path("d")).unwrap();
    std::fs::write(share.path("d/f"), "in").unwrap();
    std::os::unix::fs::symlink(outside.path(), share.path("s")).unwrap();
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let root = std::fs::File::open(share.path("")).unwrap();
            while !stop.load(Ordering::Relaxed) {
                rustix::fs::renameat_with(&root, c"d", &root, c"s", rustix::fs::RenameFlags::EXCHANGE).unwrap();
            }
        });
        let (mut directories, mut links) = (0, 0);
        while directories < 200 || links < 200 {
            let entry = share.lookup(ROOT_ID, c"d").unwrap();
            if entry.attr.mode & libc::S_IFMT == libc::S_IFDIR {
                directories += 1;
                let file = share.lookup(entry.nodeid, c"f").unwrap();
                assert_eq!(file.attr.size, 2);
                let new = share.fs.mknod(&ROOT, entry.nodeid, c"new", libc::S_IFREG, 0, &Creation::default()).unwrap();
                share.fs.unlink(&ROOT, entry.nodeid, c"new").unwrap();
                share.fs.forget(file.nodeid, 1);
                share.fs.forget(new.nodeid, 1);
            } else {
                links += 1;
                // Nobody had used the link before: by now its name may lead to the directory.
                let error = share.lookup(entry.nodeid, c"f").unwrap_err();
                assert!(matches!(error, Error::Errno(libc::ENOTDIR | libc::ESTALE)), "{error:?}");
            }
            share.fs.forget(entry.nodeid, 1);
        }
        stop.store(true, Ordering::Relaxed);
    });
    assert_eq!(names(&share.list(ROOT_ID, false, 4096)), [".", "..", "d", "s"]);
    assert_eq!(std::fs::read_dir(outside.path()).unwrap().count(), 1);
    assert_eq!(share.fs.nodes(), 1);
}

#[test]
fn unknown_nodes_are_stale_and_unknown_handles_bad() {
    let share = share();
    for node in [0, 2, 77, u64::MAX] {
        is(share.lookup(node, c"x"), libc::ESTALE);
        is(share.fs.getattr(&ROOT, node, None), libc::ESTALE);
        is(share.fs.setattr(&ROOT, node, &SetattrIn::default()), libc::ESTALE);
        is(share.open(node, libc::O_RDONLY), libc::ESTALE);
        is(share.fs.opendir(&ROOT, node, 0), libc::ESTALE);
        is(share.fs.statfs(&ROOT, node), libc::ESTALE);
        is(share.fs.unlink(&ROOT, node, c"x"), libc::ESTALE);
        is(share.fs.rename(&ROOT, ROOT_ID, c"x", node, c"y", 0), libc::ESTALE);
        is(share.fs.getxattr(&ROOT, node, c"user.x", &mut []), libc::ESTALE);
        share.fs.forget(node, 1);
    }
    for fh in [0, 1, u64::MAX] {
        is(share.read(fh, 0, 1), libc::EBADF);
        is(share.write(fh, 0, b"x"), libc::EBADF);
        is(share.fs.flush(&ROOT, 1, &FlushIn { fh, ..FlushIn::default() }), libc::EBADF);
        is(share.fs.release(&ROOT, 1, &ReleaseIn { fh, ..ReleaseIn::default() }), libc::EBADF);
        is(share.fs.releasedir(&ROOT, 1, &ReleaseIn { fh, ..ReleaseIn::default() }), libc::EBADF);
        is(share.fs.fsync(&ROOT, 1, fh, true), libc::EBADF);
        is(share.fs.lseek(&ROOT, 1, fh, 0, libc::SEEK_DATA as u32), libc::EBADF);
        is(share.readdir(fh, 0, false, 4096), libc::EBADF);
        is(share.fs.getattr(&ROOT, ROOT_ID, Some(fh)), libc::EBADF);
    }
    let dir = share.opendir(ROOT_ID);
    is(share.read(dir, 0, 1), libc::EBADF);
}

#[test]
fn the_root_stays_and_the_end_of_a_session_drops_the_rest() {
    let share = share();
    std::fs::write(share.path("f"), "").unwrap();
    share.fs.forget(ROOT_ID, u64::MAX);
    let node = share.node("f");
    let (file, dir) = (share.open(node, libc::O_RDONLY).unwrap(), share.opendir(ROOT_ID));
    assert_eq!((share.fs.nodes(), share.fs.handles()), (2, 2));
    share.fs.destroy();
    share.fs.destroy();
    assert_eq!((share.fs.nodes(), share.fs.handles()), (1, 0));
    is(share.fs.getattr(&ROOT, node, None), libc::ESTALE);
    is(share.read(file, 0, 1), libc::EBADF);
    is(share.readdir(dir, 0, false, 4096), libc::EBADF);
    assert_eq!(share.attr(ROOT_ID).mode & libc::S_IFMT, libc::S_IFDIR);
    assert_ne!(share.node("f"), node, "what the old session knew means nothing in the new one");
}

#[test]
fn a_removed_file_lives_on_in_its_node_and_its_handle() {
    let share = share();
    let (entry, open) = share.create(&ROOT, c"f", libc::O_RDWR, 0o600).unwrap();
    share.write(open.fh, 0, b"still here").unwrap();
    share.fs.unlink(&ROOT, ROOT_ID, c"f").unwrap();
    is(share.lookup(ROOT_ID, c"f"), libc::ENOENT);
    assert_eq!((share.attr(entry.nodeid).nlink, share.attr(entry.nodeid).size), (0, 10));
    let again = share.open(entry.nodeid, libc::O_RDWR).unwrap();
    assert_eq!(share.read(again, 6, 100).unwrap(), b"here");
    let args = SetattrIn { valid: fattr::SIZE | fattr::FH, fh: open.fh, size: 3, ..SetattrIn::default() };
    assert_eq!(share.fs.setattr(&ROOT, entry.nodeid, &args).unwrap().attr.size, 3);
    std::fs::write(share.path("f"), "another").unwrap();
    assert_ne!(share.node("f"), entry.nodeid);
    share.release(open.fh);
    share.release(again);
    assert_eq!(share.fs.handles(), 0);
}

#[test]
fn many_threads_that_look_up_and_forget_one_name_leave_nothing_behind() {
    let share = share();
    for i in 0..4 {
        std::fs::write(share.path(format!("f{i}")), "").unwrap();
    }
    std::thread::scope(|scope| {
        for thread in 0..4u64 {
            let share = &share;
            scope.spawn(move || {
                for i in 0..3000 {
                    let name = [c"f0", c"f1", c"f2", c"f3"][(i / 3) % 4];
                    let entry = share.lookup(ROOT_ID, name).unwrap();
                    assert_eq!(share.attr(entry.nodeid).ino, entry.attr.ino);
                    let linked = (i as u64 % 7 == thread).then(|| share.lookup(ROOT_ID, name).unwrap());
                    share.fs.forget(entry.nodeid, 1);
                    if let Some(linked) = linked {
                        share.fs.forget(linked.nodeid, 1);
                    }
                }
            });
        }
    });
    assert_eq!(share.fs.nodes(), 1);
}

#[test]
fn a_root_that_is_no_directory_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("f");
    std::fs::write(&file, "").unwrap();
    let open = |root| HostDir::new(Config { root, ..Config::default() }).map(drop).unwrap_err().raw_os_error();
    assert_eq!(open(file), Some(libc::ENOTDIR));
    assert_eq!(open(dir.path().join("none")), Some(libc::ENOENT));
}

#[test]
fn another_file_system_is_a_submount_or_has_numbers_of_its_own() {
    needs_root!();
    // In a mount namespace of this one thread, so that nothing stays behind.
    std::thread::spawn(|| {
        if !common::private_mounts() {
            eprintln!("skipped: no mount namespaces here");
            return;
        }
        let announced = share();
        std::fs::create_dir(announced.path("m")).unwrap();
        common::mount_tmpfs(&announced.path("m"));
        std::fs::create_dir(announced.path("m/d")).unwrap();
        let mount = announced.lookup(ROOT_ID, c"m").unwrap();
        assert_eq!(mount.attr.flags & bits::ATTR_SUBMOUNT, bits::ATTR_SUBMOUNT);
        assert_eq!(announced.attr(mount.nodeid).flags & bits::ATTR_SUBMOUNT, bits::ATTR_SUBMOUNT);
        let below = announced.lookup(mount.nodeid, c"d").unwrap();
        assert_eq!(below.attr.flags, 0, "only where it begins");
        assert_eq!(below.attr.ino, std::fs::metadata(announced.path("m/d")).unwrap().ino());
        announced.fs.syncfs(&ROOT, mount.nodeid).unwrap();
        assert_ne!(
            announced.fs.statfs(&ROOT, mount.nodeid).unwrap().blocks,
            announced.fs.statfs(&ROOT, ROOT_ID).unwrap().blocks
        );

        let silent = Share::with(Config { announce_submounts: false, ..config() }, init::SUBMOUNTS);
        std::fs::create_dir(silent.path("m")).unwrap();
        common::mount_tmpfs(&silent.path("m"));
        std::fs::write(silent.path("m/f"), "").unwrap();
        let mount = silent.lookup(ROOT_ID, c"m").unwrap();
        assert_eq!(mount.attr.flags, 0);
        let file = silent.lookup(mount.nodeid, c"f").unwrap();
        let host = std::fs::metadata(silent.path("m/f")).unwrap().ino();
        assert_ne!(file.attr.ino, host, "the number could be taken on the root's own file system");
        let listed = silent.list(mount.nodeid, true, 4096).into_iter().find(|entry| entry.name == b"f").unwrap();
        assert_eq!((listed.ino, listed.node), (file.attr.ino, file.nodeid));
        common::unmount(&announced.path("m"));
        common::unmount(&silent.path("m"));
    })
    .join()
    .unwrap();
}

#[test]
fn a_node_that_was_only_seen_finds_its_inode_when_it_is_used_and_no_other() {
    let share = share();
    let before = share.fs.node_descriptors();
    for name in ["stays", "goes", "moves", "exchanged", "linked"] {
        std::fs::write(share.path(name), name).unwrap();
    }
    let [stays, goes, moves, exchanged, linked] =
        ["stays", "goes", "moves", "exchanged", "linked"].map(|name| share.node(name));
    assert_eq!(share.fs.node_descriptors(), before, "nothing was used yet");
    // The guest's own doing: all of them are still what they were.
    share.fs.unlink(&ROOT, ROOT_ID, c"goes").unwrap();
    share.fs.rename(&ROOT, ROOT_ID, c"moves", ROOT_ID, c"moved", 0).unwrap();
    share.fs.rename(&ROOT, ROOT_ID, c"exchanged", ROOT_ID, c"stays", 2).unwrap();
    assert_eq!(share.attr(goes).nlink, 0);
    for (node, name) in [(stays, "stays"), (moves, "moves"), (exchanged, "exchanged")] {
        assert_eq!(share.attr(node).size, name.len() as u64);
    }
    let now = share.fs.node_descriptors();
    assert_eq!(share.attr(linked).size, 6);
    assert_eq!(share.fs.node_descriptors(), now, "to ask once is no use");
    // Others' doing: what cannot be found is stale, and what took its name is another node.
    std::fs::hard_link(share.path("linked"), share.path("other")).unwrap();
    std::fs::remove_file(share.path("linked")).unwrap();
    std::fs::write(share.path("linked"), "another").unwrap();
    is(share.fs.getattr(&ROOT, linked, None), libc::ESTALE);
    let another = share.node("linked");
    assert_ne!(another, linked);
    assert_eq!(share.node("other"), linked, "one inode, one node");
    assert_eq!((share.attr(linked).size, share.attr(another).size), (6, 7));
    for (node, count) in [(stays, 1), (goes, 1), (moves, 1), (exchanged, 1), (linked, 2), (another, 1)] {
        share.fs.forget(node, count);
    }
    assert_eq!((share.fs.nodes(), share.fs.node_descriptors()), (1, before));
}
