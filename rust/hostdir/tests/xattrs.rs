//! Extended attributes of inodes of all types.

mod common;

use common::*;
use virtiofs_fuse::wire::*;
use virtiofs_fuse::{FileSystem, Opcode};
use virtiofs_hostdir::{Config, HostDir, NameRule};

fn get(share: &Share, node: u64, name: &std::ffi::CStr) -> virtiofs_fuse::Result<Vec<u8>> {
    let mut value = vec![0; 70_000];
    let length = share.fs.getxattr(&ROOT, node, name, &mut value)?;
    value.truncate(length);
    Ok(value)
}

fn list(share: &Share, node: u64) -> Vec<u8> {
    let mut names = vec![0; 70_000];
    let length = share.fs.listxattr(&ROOT, node, &mut names).unwrap();
    assert_eq!(share.fs.listxattr(&ROOT, node, &mut []), Ok(length), "the size alone");
    names.truncate(length);
    names
}

#[test]
fn values_are_set_read_listed_and_removed() {
    let share = share();
    std::fs::write(share.path("f"), "").unwrap();
    std::fs::create_dir(share.path("d")).unwrap();
    for node in [share.node("f"), share.node("d"), ROOT_ID] {
        is(get(&share, node, c"user.a"), libc::ENODATA);
        match share.fs.setxattr(&ROOT, node, c"user.a", b"value", libc::XATTR_CREATE as u32, false) {
            Err(virtiofs_fuse::Error::Errno(libc::EOPNOTSUPP)) => return eprintln!("skipped: no user attributes here"),
            result => result.unwrap(),
        }
        is(share.fs.setxattr(&ROOT, node, c"user.a", b"", libc::XATTR_CREATE as u32, false), libc::EEXIST);
        is(share.fs.setxattr(&ROOT, node, c"user.b", b"", libc::XATTR_REPLACE as u32, false), libc::ENODATA);
        assert_eq!(share.fs.getxattr(&ROOT, node, c"user.a", &mut []), Ok(5), "the size alone");
        is(share.fs.getxattr(&ROOT, node, c"user.a", &mut [0; 4]), libc::ERANGE);
        assert_eq!(get(&share, node, c"user.a").unwrap(), b"value");
        share.fs.setxattr(&ROOT, node, c"user.empty", b"", 0, false).unwrap();
        assert_eq!(get(&share, node, c"user.empty").unwrap(), b"");
        let names = list(&share, node);
        let mut names: Vec<_> = names.split(|&byte| byte == 0).filter(|name| name.starts_with(b"user.")).collect();
        names.sort();
        assert_eq!(names, [&b"user.a"[..], b"user.empty"]);
        is(share.fs.listxattr(&ROOT, node, &mut [0; 3]), libc::ERANGE);
        share.fs.removexattr(&ROOT, node, c"user.a").unwrap();
        is(share.fs.removexattr(&ROOT, node, c"user.a"), libc::ENODATA);
        share.fs.removexattr(&ROOT, node, c"user.empty").unwrap();
    }
}

#[test]
fn symlinks_and_special_files_have_their_own() {
    needs_root!();
    let share = share();
    std::fs::write(share.path("f"), "").unwrap();
    std::os::unix::fs::symlink("f", share.path("l")).unwrap();
    let new = virtiofs_fuse::Creation::default();
    let fifo = share.fs.mknod(&ROOT, ROOT_ID, c"p", libc::S_IFIFO, 0, &new).unwrap().nodeid;
    for node in [share.node("l"), fifo] {
        match share.fs.setxattr(&ROOT, node, c"trusted.x", b"own", 0, false) {
            Err(virtiofs_fuse::Error::Errno(libc::EOPNOTSUPP)) => {
                return eprintln!("skipped: no trusted attributes here");
            }
            result => result.unwrap(),
        }
        assert_eq!(get(&share, node, c"trusted.x").unwrap(), b"own");
        assert_eq!(list(&share, node), b"trusted.x\0");
        is(share.fs.setxattr(&ROOT, node, c"user.x", b"", 0, false), libc::EPERM);
        share.fs.removexattr(&ROOT, node, c"trusted.x").unwrap();
    }
    is(get(&share, share.node("f"), c"trusted.x"), libc::ENODATA);
}

#[test]
fn what_the_share_does_not_serve_is_not_supported_and_not_listed() {
    let share = Share::with(Config { xattr: false, ..config() }, 0);
    std::fs::write(share.path("f"), "").unwrap();
    let node = share.node("f");
    is(get(&share, node, c"user.a"), libc::EOPNOTSUPP);
    is(share.fs.setxattr(&ROOT, node, c"user.a", b"", 0, false), libc::EOPNOTSUPP);
    is(share.fs.removexattr(&ROOT, node, c"user.a"), libc::EOPNOTSUPP);
    is(share.fs.listxattr(&ROOT, node, &mut []), libc::EOPNOTSUPP);
    let all = [Opcode::Setxattr, Opcode::Getxattr, Opcode::Listxattr, Opcode::Removexattr];
    assert!(all.iter().all(|&op| share.fs.lacks() & 1 << op as u32 != 0), "the guest would ask again");
    let serves = Share::with(config(), 0);
    assert!(all.iter().all(|&op| serves.fs.lacks() & 1 << op as u32 == 0));

    // ACLs that a guest has not negotiated are nothing that it may see, let alone set.
    let acl: Vec<u8> = {
        let mut acl = 2u32.to_le_bytes().to_vec();
        for (tag, permissions, id) in
            [(1u16, 6u16, u32::MAX), (2, 4, 77), (4, 4, u32::MAX), (0x10, 4, u32::MAX), (0x20, 0, u32::MAX)]
        {
            acl.extend(tag.to_le_bytes());
            acl.extend(permissions.to_le_bytes());
            acl.extend(id.to_le_bytes());
        }
        acl
    };
    let knows = Share::with(Config { posix_acl: true, ..config() }, init::POSIX_ACL);
    std::fs::write(knows.path("f"), "").unwrap();
    let node = knows.node("f");
    match knows.fs.setxattr(&ROOT, node, c"system.posix_acl_access", &acl, 0, false) {
        Err(virtiofs_fuse::Error::Errno(libc::EOPNOTSUPP)) => return eprintln!("skipped: no ACLs here"),
        result => result.unwrap(),
    }
    assert_eq!(list(&knows, node), b"system.posix_acl_access\0");
    knows.fs.init(&virtiofs_fuse::Negotiated::default());
    is(get(&knows, node, c"system.posix_acl_access"), libc::EOPNOTSUPP);
    is(knows.fs.setxattr(&ROOT, node, c"system.posix_acl_access", &acl, 0, false), libc::EOPNOTSUPP);
    assert_eq!(list(&knows, node), b"");
}

/// Everything of the guest's lies below `user.v.`; what else the host has is hidden and out of reach.
fn moved() -> Config {
    let all = NameRule {
        guest: Some(Vec::new()),
        host: Some(b"user.v.".to_vec()),
        prefix: b"user.v.".to_vec(),
        ..NameRule::default()
    };
    let none = NameRule { guest: Some(Vec::new()), host: Some(Vec::new()), errno: libc::EPERM, ..NameRule::default() };
    Config { xattr_names: vec![all, none], ..config() }
}

#[test]
fn names_of_the_guest_are_others_on_the_host() {
    let share = Share::with(moved(), 0);
    std::fs::write(share.path("f"), "").unwrap();
    let plain = HostDir::new(Config { root: share.path(""), ..config() }).unwrap();
    let node = share.node("f");
    let real = plain.lookup(&ROOT, ROOT_ID, c"f").unwrap().nodeid;
    match plain.setxattr(&ROOT, real, c"user.host", b"1", 0, false) {
        Err(virtiofs_fuse::Error::Errno(libc::EOPNOTSUPP)) => return eprintln!("skipped: no user attributes here"),
        result => result.unwrap(),
    }
    share.fs.setxattr(&ROOT, node, c"trusted.overlay.opaque", b"y", 0, false).unwrap();
    let mut out = [0; 64];
    assert_eq!(plain.getxattr(&ROOT, real, c"user.v.trusted.overlay.opaque", &mut out), Ok(1));
    assert_eq!(get(&share, node, c"trusted.overlay.opaque").unwrap(), b"y");
    assert_eq!(list(&share, node), b"trusted.overlay.opaque\0");
    is(get(&share, node, c"user.host"), libc::ENODATA);
    // A list that is too long for the room as the host has it, and not as the guest sees it.
    assert_eq!(share.fs.listxattr(&ROOT, node, &mut out[..23]), Ok(23));
    assert_eq!(&out[..23], b"trusted.overlay.opaque\0");
    is(share.fs.listxattr(&ROOT, node, &mut out[..22]), libc::ERANGE);
    share.fs.removexattr(&ROOT, node, c"trusted.overlay.opaque").unwrap();
    is(share.fs.removexattr(&ROOT, node, c"user.host"), libc::ENODATA);
    assert_eq!(list(&share, node), b"");
}

#[test]
fn capabilities_under_another_name_go_when_the_file_changes() {
    let share = Share::with(moved(), 0);
    std::fs::write(share.path("f"), "content").unwrap();
    let node = share.node("f");
    let give = || match share.fs.setxattr(&ROOT, node, c"security.capability", b"all", 0, false) {
        Err(virtiofs_fuse::Error::Errno(libc::EOPNOTSUPP)) => false,
        result => {
            result.unwrap();
            assert_eq!(get(&share, node, c"security.capability").unwrap(), b"all");
            true
        }
    };
    if !give() {
        return eprintln!("skipped: no user attributes here");
    }
    let lost = |after: &str| {
        assert!(get(&share, node, c"security.capability").is_err(), "kept after {after}");
        give();
    };
    let fh = share.open(node, libc::O_RDWR).unwrap();
    assert_eq!(share.read(fh, 0, 7).unwrap(), b"content");
    assert!(get(&share, node, c"security.capability").is_ok(), "reading changes nothing");
    share.write(fh, 0, b"C").unwrap();
    lost("a write");
    let allocate = FallocateIn { fh, length: 100, ..FallocateIn::default() };
    share.fs.fallocate(&ROOT, node, &allocate).unwrap();
    lost("an allocation");
    let copy = CopyFileRangeIn { fh_in: fh, fh_out: fh, off_out: 50, nodeid_out: node, len: 7, ..Default::default() };
    share.fs.copy_file_range(&ROOT, node, &copy).unwrap();
    lost("a copy");
    let set = |valid, size| SetattrIn {
        valid,
        size,
        uid: rustix::process::geteuid().as_raw(),
        gid: u32::MAX,
        ..SetattrIn::default()
    };
    share.fs.setattr(&ROOT, node, &set(fattr::SIZE, 3)).unwrap();
    lost("a truncation");
    share.fs.setattr(&ROOT, node, &set(fattr::UID, 0)).unwrap();
    lost("a change of owner");
    share.release(share.open(node, libc::O_WRONLY | libc::O_TRUNC).unwrap());
    lost("an open that truncates");
    share.release(fh);
}

#[test]
fn a_label_goes_by_the_same_rules() {
    let share = Share::with(moved(), 0);
    let new = virtiofs_fuse::Creation { security: Some((c"security.selinux", b"u:o:r")), ..Default::default() };
    match share.fs.mkdir(&ROOT, ROOT_ID, c"d", 0o755, &new) {
        Err(virtiofs_fuse::Error::Errno(libc::EOPNOTSUPP)) => return eprintln!("skipped: no user attributes here"),
        result => {
            result.unwrap();
        }
    }
    let (_, open) = share.fs.create(&ROOT, ROOT_ID, c"f", libc::O_RDWR as u32, 0o644, false, &new).unwrap();
    share.release(open.fh);
    let plain = HostDir::new(Config { root: share.path(""), ..config() }).unwrap();
    for name in [c"d", c"f"] {
        let real = plain.lookup(&ROOT, ROOT_ID, name).unwrap().nodeid;
        let mut out = [0; 16];
        assert_eq!(plain.getxattr(&ROOT, real, c"user.v.security.selinux", &mut out), Ok(5));
    }
    // A label that cannot be given leaves nothing behind: user attributes are for files and directories.
    is(share.fs.symlink(&ROOT, ROOT_ID, c"l", c"f", &new).map(drop), libc::EPERM);
    assert!(std::fs::symlink_metadata(share.path("l")).is_err());
    assert_eq!(share.fs.nodes(), 3);
}
