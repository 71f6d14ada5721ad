//! What a guest's callers make is theirs, and privileges go when a local disk would take them.

mod common;

use std::os::unix::fs::{MetadataExt, PermissionsExt};

use common::*;
use virtiofs_fuse::wire::*;
use virtiofs_fuse::{Context, Creation, FileSystem, Result};
use virtiofs_hostdir::Config;

/// Not a member of any group that the directory has, and with no right to write to it.
fn closed() -> Share {
    let share = share();
    std::fs::set_permissions(share.path(""), PermissionsExt::from_mode(0o700)).unwrap();
    share
}

fn mode(share: &Share, name: &str) -> u32 {
    std::fs::symlink_metadata(share.path(name)).unwrap().mode() & 0o7777
}

fn set_mode(share: &Share, name: &str, mode: u32) {
    std::fs::set_permissions(share.path(name), PermissionsExt::from_mode(mode)).unwrap();
}

#[test]
fn what_is_made_belongs_to_its_caller() {
    needs_root!();
    let share = closed();
    let new = Creation::default();
    let made = [
        share.create(&USER, c"file", libc::O_RDWR, 0o600).unwrap().0.attr,
        share.fs.mkdir(&USER, ROOT_ID, c"dir", 0o700, &new).unwrap().attr,
        share.fs.symlink(&USER, ROOT_ID, c"link", c"x", &new).unwrap().attr,
        share.fs.mknod(&USER, ROOT_ID, c"fifo", libc::S_IFIFO | 0o600, 0, &new).unwrap().attr,
        share.fs.mknod(&USER, ROOT_ID, c"node", libc::S_IFCHR | 0o600, 0x103, &new).unwrap().attr,
        share.fs.tmpfile(&USER, ROOT_ID, libc::O_RDWR as u32, 0o600, &new).unwrap().0.attr,
    ];
    for attr in made {
        assert_eq!((attr.uid, attr.gid), (USER.uid, USER.gid), "{:o}", attr.mode);
    }
    let group = Context { uid: 0, ..USER };
    let attr = share.create(&group, c"group", libc::O_RDWR, 0o600).unwrap().0.attr;
    assert_eq!((attr.uid, attr.gid), (0, USER.gid));
    // An idmapped mount's ids that mean nothing here.
    let nobody = Context { uid: u32::MAX, gid: u32::MAX, ..USER };
    let attr = share.create(&nobody, c"nobody", libc::O_RDWR, 0o600).unwrap().0.attr;
    assert_eq!((attr.uid, attr.gid), (0, 0));
    let after = share.create(&ROOT, c"after", libc::O_RDWR, 0o600).unwrap().0.attr;
    assert_eq!((after.uid, after.gid), (0, 0), "the worker is itself again");
}

#[test]
fn a_daemon_without_privileges_makes_everything_its_own() {
    if is_root() {
        // The same, on a thread that gave its capabilities away.
        std::thread::spawn(|| {
            use rustix::thread::{CapabilitySet, CapabilitySets, capabilities, set_capabilities};
            let keep = CapabilitySets { effective: CapabilitySet::empty(), ..capabilities(None).unwrap() };
            set_capabilities(None, keep).unwrap();
            own(&share());
        })
        .join()
        .unwrap();
    } else {
        own(&share());
    }
}

fn own(share: &Share) {
    let me = (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw());
    let (entry, open) = share.create(&USER, c"f", libc::O_RDWR, 0o4755).unwrap();
    assert_eq!((entry.attr.uid, entry.attr.gid), me);
    share.write_with(open.fh, 0, b"x", bits::WRITE_KILL_SUIDGID, 0).unwrap();
    assert_eq!(mode(share, "f"), 0o755, "the host clears suid for us");
    let dir = share.fs.mkdir(&USER, ROOT_ID, c"d", 0o755, &Creation::default()).unwrap();
    assert_eq!((dir.attr.uid, dir.attr.gid), me);
    assert_eq!(share.read(share.open(entry.nodeid, libc::O_RDONLY | libc::O_NOATIME).unwrap(), 0, 9).unwrap(), b"x");
}

#[test]
fn the_callers_umask_applies_and_no_other() {
    let share = share();
    for (umask, expected) in [(0o022, 0o755), (0, 0o777), (0o077, 0o700), (0o022, 0o755)] {
        let new = Creation { umask, ..Creation::default() };
        let attr = share.fs.mkdir(&ROOT, ROOT_ID, c"d", 0o777, &new).unwrap().attr;
        assert_eq!(attr.mode & 0o7777, expected, "umask {umask:o}");
        share.fs.rmdir(&ROOT, ROOT_ID, c"d").unwrap();
    }
}

#[test]
fn a_default_acl_replaces_the_umask() {
    let share = Share::with(Config { posix_acl: true, ..config() }, init::POSIX_ACL | init::DONT_MASK);
    // user::rwx group::r-x other::--- in the form of posix_acl_xattr.h: version, then tag, permissions, id.
    let mut acl = 2u32.to_le_bytes().to_vec();
    for (tag, permissions) in [(1u16, 7u16), (4, 5), (0x20, 0)] {
        acl.extend(tag.to_le_bytes());
        acl.extend(permissions.to_le_bytes());
        acl.extend(u32::MAX.to_le_bytes());
    }
    match share.fs.setxattr(&ROOT, ROOT_ID, c"system.posix_acl_default", &acl, 0, false) {
        Err(virtiofs_fuse::Error::Errno(libc::EOPNOTSUPP)) => return eprintln!("skipped: no ACLs here"),
        result => result.unwrap(),
    }
    let new = Creation { umask: 0o077, ..Creation::default() };
    let dir = share.fs.mkdir(&ROOT, ROOT_ID, c"d", 0o777, &new).unwrap();
    assert_eq!(dir.attr.mode & 0o7777, 0o750, "the ACL has the word, not the umask");
    let mut out = [0; 100];
    assert_eq!(share.fs.getxattr(&ROOT, dir.nodeid, c"system.posix_acl_default", &mut out), Ok(acl.len()));
    // Setting an access ACL changes the mode.
    acl[6] = 4;
    share.fs.setxattr(&ROOT, dir.nodeid, c"system.posix_acl_access", &acl, 0, false).unwrap();
    assert_eq!(share.attr(dir.nodeid).mode & 0o777, 0o450);
}

#[test]
fn sgid_goes_with_the_acl_when_the_guest_says_so() {
    let share = Share::with(Config { posix_acl: true, ..config() }, init::POSIX_ACL | init::DONT_MASK);
    std::fs::write(share.path("f"), "").unwrap();
    set_mode(&share, "f", 0o2755);
    let node = share.node("f");
    let mut acl = 2u32.to_le_bytes().to_vec();
    for (tag, permissions) in [(1u16, 7u16), (4, 5), (0x20, 5)] {
        acl.extend(tag.to_le_bytes());
        acl.extend(permissions.to_le_bytes());
        acl.extend(u32::MAX.to_le_bytes());
    }
    match share.fs.setxattr(&ROOT, node, c"system.posix_acl_access", &acl, 0, true) {
        Err(virtiofs_fuse::Error::Errno(libc::EOPNOTSUPP)) => return eprintln!("skipped: no ACLs here"),
        result => result.unwrap(),
    }
    assert_eq!(mode(&share, "f"), 0o755);
}

#[test]
fn suid_and_sgid_go_with_a_flagged_write_and_only_with_one() {
    let share = share();
    let (_, open) = share.create(&ROOT, c"f", libc::O_RDWR, 0o600).unwrap();
    let kill = bits::WRITE_KILL_SUIDGID;
    // Without group execution sgid is no privilege.
    for (before, after) in [(0o6777, 0o777), (0o4700, 0o700), (0o2755, 0o755), (0o2745, 0o2745), (0o6745, 0o2745)] {
        if is_root() {
            set_mode(&share, "f", before);
            share.write(open.fh, 0, b"x").unwrap();
            assert_eq!(mode(&share, "f"), before, "the caller in the guest has CAP_FSETID");
        }
        set_mode(&share, "f", before);
        share.write_with(open.fh, 0, b"x", kill, 0).unwrap();
        assert_eq!(mode(&share, "f"), after, "write to {before:o}");
    }
}

#[test]
fn suid_goes_with_a_flagged_truncation_a_new_owner_and_o_trunc() {
    let share = share();
    let (entry, open) = share.create(&ROOT, c"f", libc::O_RDWR, 0o600).unwrap();
    let set = |args: SetattrIn| share.fs.setattr(&ROOT, entry.nodeid, &args).unwrap().attr.mode & 0o7777;
    for fh in [0, fattr::FH] {
        set_mode(&share, "f", 0o6755);
        share.write(open.fh, 0, b"0123").unwrap();
        set_mode(&share, "f", 0o6755);
        let valid = fattr::SIZE | fattr::KILL_SUIDGID | fh;
        assert_eq!(set(SetattrIn { valid, size: 2, fh: open.fh, ..SetattrIn::default() }), 0o755);
    }
    set_mode(&share, "f", 0o6755);
    let fh = share.fs.open(&ROOT, entry.nodeid, (libc::O_WRONLY | libc::O_TRUNC) as u32, true).unwrap().fh;
    assert_eq!((mode(&share, "f"), share.attr(entry.nodeid).size), (0o755, 0));
    share.release(fh);
    if is_root() {
        set_mode(&share, "f", 0o6755);
        assert_eq!(set(SetattrIn { valid: fattr::SIZE, size: 1, ..SetattrIn::default() }), 0o6755);
        let owner =
            SetattrIn { valid: fattr::UID | fattr::GID | fattr::KILL_SUIDGID, uid: 5, gid: 6, ..SetattrIn::default() };
        assert_eq!(set(owner), 0o755);
        let attr = share.attr(entry.nodeid);
        assert_eq!((attr.uid, attr.gid), (5, 6));
        set_mode(&share, "f", 0o4755);
        let fh = share.fs.open(&ROOT, entry.nodeid, (libc::O_WRONLY | libc::O_TRUNC) as u32, false).unwrap().fh;
        assert_eq!(mode(&share, "f"), 0o4755);
        share.release(fh);
    }
}

#[test]
fn suid_goes_when_a_user_allocates_or_copies() {
    let share = share();
    let (entry, open) = share.create(&ROOT, c"f", libc::O_RDWR, 0o600).unwrap();
    let (_, source) = share.create(&ROOT, c"source", libc::O_RDWR, 0o600).unwrap();
    share.write(source.fh, 0, b"0123456789").unwrap();
    let punch = (libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE) as u32;
    let allocate = |cx: &Context, mode| {
        let args = FallocateIn { fh: open.fh, length: 4096, mode, ..FallocateIn::default() };
        share.fs.fallocate(cx, entry.nodeid, &args)
    };
    let copy = |cx: &Context| {
        let args = CopyFileRangeIn { fh_in: source.fh, fh_out: open.fh, len: 10, ..CopyFileRangeIn::default() };
        share.fs.copy_file_range(cx, 0, &args).map(|count| assert_eq!(count, 10))
    };
    type Change<'a> = &'a dyn Fn(&Context) -> Result<()>;
    let changes: [Change<'_>; 3] = [&|cx| allocate(cx, 0), &|cx| allocate(cx, punch), &copy];
    for change in changes {
        set_mode(&share, "f", 0o6755);
        change(&USER).unwrap();
        assert_eq!(mode(&share, "f"), 0o755);
        if is_root() {
            set_mode(&share, "f", 0o6755);
            change(&ROOT).unwrap();
            assert_eq!(mode(&share, "f"), 0o6755, "the caller in the guest has CAP_FSETID");
        }
    }
}

#[test]
fn a_setgid_directory_gives_its_group_and_sgid_stays_with_members() {
    needs_root!();
    let share = closed();
    std::fs::create_dir(share.path("d")).unwrap();
    std::os::unix::fs::chown(share.path("d"), None, Some(4242)).unwrap();
    set_mode(&share, "d", 0o2777);
    let dir = share.node("d");
    let make = |name, group| {
        let new = Creation { supplementary_group: group, ..Creation::default() };
        let attr = share.fs.mknod(&USER, dir, name, libc::S_IFREG | 0o2775, 0, &new).unwrap().attr;
        (attr.uid, attr.gid, attr.mode & 0o7777)
    };
    assert_eq!(make(c"member", Some(4242)), (USER.uid, 4242, 0o2775));
    assert_eq!(make(c"stranger", None), (USER.uid, 4242, 0o775), "no sgid for a group that the caller is not in");
    let new = Creation::default();
    let below = share.fs.mkdir(&USER, dir, c"below", 0o775, &new).unwrap().attr;
    assert_eq!((below.gid, below.mode & 0o7777), (4242, 0o2775));
}

#[test]
fn an_existing_file_opens_at_create_only_for_those_who_may() {
    needs_root!();
    let share = closed();
    set_mode(&share, "", 0o755);
    std::fs::write(share.path("mine"), "mine").unwrap();
    std::os::unix::fs::chown(share.path("mine"), Some(USER.uid), Some(USER.gid)).unwrap();
    std::fs::write(share.path("theirs"), "theirs").unwrap();
    for name in ["mine", "theirs"] {
        set_mode(&share, name, 0o600);
    }
    let (_, open) = share.create(&USER, c"mine", libc::O_RDWR, 0o600).unwrap();
    assert_eq!(share.read(open.fh, 0, 9).unwrap(), b"mine");
    is(share.create(&USER, c"theirs", libc::O_RDWR | libc::O_TRUNC, 0o600), libc::ESTALE);
    assert_eq!(std::fs::read(share.path("theirs")).unwrap(), b"theirs");
    assert_eq!(share.fs.nodes(), 2, "a refused create counts no lookup");
}

#[test]
fn security_labels_are_there_from_the_start_or_nothing_is() {
    needs_root!();
    let share = closed();
    let label: (&std::ffi::CStr, &[u8]) = (c"security.test", b"label");
    let new = Creation { security: Some(label), ..Creation::default() };
    let node = match share.fs.mkdir(&USER, ROOT_ID, c"d", 0o700, &new) {
        Err(virtiofs_fuse::Error::Errno(libc::EOPNOTSUPP)) => return eprintln!("skipped: no security attributes here"),
        result => result.unwrap().nodeid,
    };
    let link = share.fs.symlink(&USER, ROOT_ID, c"l", c"x", &new).unwrap().nodeid;
    let fifo = share.fs.mknod(&USER, ROOT_ID, c"p", libc::S_IFIFO, 0, &new).unwrap().nodeid;
    let flags = libc::O_RDWR as u32;
    let file = share.fs.create(&USER, ROOT_ID, c"f", flags, 0o600, false, &new).unwrap().0.nodeid;
    for node in [node, link, fifo, file] {
        let mut out = [0; 5];
        assert_eq!(share.fs.getxattr(&ROOT, node, c"security.test", &mut out), Ok(5));
        assert_eq!(&out, b"label");
    }
    let (nodes, handles) = (share.fs.nodes(), share.fs.handles());
    let bad = Creation { security: Some((c"nonsense", b"x")), ..Creation::default() };
    assert!(share.fs.mkdir(&USER, ROOT_ID, c"bad", 0o700, &bad).is_err());
    assert!(share.fs.symlink(&USER, ROOT_ID, c"bad", c"x", &bad).is_err());
    assert!(share.fs.create(&USER, ROOT_ID, c"bad", flags, 0o600, false, &bad).is_err());
    assert!(!std::fs::exists(share.path("bad")).unwrap());
    assert_eq!((share.fs.nodes(), share.fs.handles()), (nodes, handles));
}
