//! Owners, modes and devices that are kept beside the host's inodes: guests see what they made, the host sees plain files of the daemon's.

mod common;

use std::ffi::CStr;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};

use common::*;
use rustix::fs::XattrFlags;
use virtiofs_fuse::wire::*;
use virtiofs_fuse::{Context, Creation, FileSystem};
use virtiofs_hostdir::Config;

const NAME: &CStr = c"user.virtiofs.stat";

fn kept() -> Share {
    let flags = init::SUBMOUNTS | init::DONT_MASK;
    Share::within(on_disk(), Config { kept: Some(NAME.into()), ..config() }, flags)
}

/// Runs a test on a thread that has no capabilities, as a daemon without privileges would.
fn unprivileged(test: impl FnOnce(Share) + Send + 'static) {
    let run = || {
        use rustix::thread::{CapabilitySet, CapabilitySets, capabilities, set_capabilities};
        let keep = CapabilitySets { effective: CapabilitySet::empty(), ..capabilities(None).unwrap() };
        set_capabilities(None, keep).unwrap();
        test(kept());
    };
    std::thread::spawn(run).join().unwrap();
}

fn on_host(share: &Share, name: &str) -> std::fs::Metadata {
    std::fs::symlink_metadata(share.path(name)).unwrap()
}

fn set(share: &Share, node: u64, args: SetattrIn) -> Attr {
    share.fs.setattr(&ROOT, node, &args).unwrap().attr
}

fn chmod(share: &Share, node: u64, mode: u32) -> Attr {
    set(share, node, SetattrIn { valid: fattr::MODE, mode, ..SetattrIn::default() })
}

fn chown(share: &Share, node: u64, uid: u32, gid: u32) -> Attr {
    set(share, node, SetattrIn { valid: fattr::UID | fattr::GID, uid, gid, ..SetattrIn::default() })
}

#[test]
fn a_guest_sees_all_that_it_made_and_the_host_plain_files() {
    unprivileged(|share| {
        let new = Creation::default();
        let fs = &share.fs;
        let device = 0x0010_0103;
        let made = [
            (c"file", share.create(&USER, c"file", libc::O_RDWR, 0o4751).unwrap().0, libc::S_IFREG | 0o4751),
            (c"mknod", fs.mknod(&USER, ROOT_ID, c"mknod", 0o640, 0, &new).unwrap(), libc::S_IFREG | 0o640),
            (c"dir", fs.mkdir(&USER, ROOT_ID, c"dir", 0o1700, &new).unwrap(), libc::S_IFDIR | 0o1700),
            (c"link", fs.symlink(&USER, ROOT_ID, c"link", c"../there", &new).unwrap(), libc::S_IFLNK | 0o777),
            (c"fifo", fs.mknod(&USER, ROOT_ID, c"fifo", libc::S_IFIFO, 0, &new).unwrap(), libc::S_IFIFO),
            (
                c"socket",
                fs.mknod(&USER, ROOT_ID, c"socket", libc::S_IFSOCK | 0o7, 0, &new).unwrap(),
                libc::S_IFSOCK | 7,
            ),
            (c"char", fs.mknod(&USER, ROOT_ID, c"char", libc::S_IFCHR, device, &new).unwrap(), libc::S_IFCHR),
            (c"block", fs.mknod(&USER, ROOT_ID, c"block", libc::S_IFBLK, device, &new).unwrap(), libc::S_IFBLK),
        ];
        let listed = share.list(ROOT_ID, true, 8192);
        let plain = share.list(ROOT_ID, false, 8192);
        let own = std::fs::metadata(share.path("")).unwrap().uid();
        for (name, entry, mode) in made {
            let is_device = matches!(mode & libc::S_IFMT, libc::S_IFCHR | libc::S_IFBLK);
            let expected = (USER.uid, USER.gid, mode, if is_device { device } else { 0 });
            let is = |attr: Attr| assert_eq!((attr.uid, attr.gid, attr.mode, attr.rdev), expected, "{name:?}");
            is(entry.attr);
            is(share.lookup(ROOT_ID, name).unwrap().attr);
            is(share.attr(entry.nodeid));
            let stat = fs.statx(&ROOT, entry.nodeid, None, 0xfff).unwrap().stat;
            assert_eq!((stat.uid, stat.gid, u32::from(stat.mode)), (USER.uid, USER.gid, mode));
            if is_device {
                assert_eq!((stat.rdev_major, stat.rdev_minor), (1, 0x103));
            }
            let find = |list: &[Listed]| list.iter().find(|found| found.name == name.to_bytes()).unwrap().clone();
            assert_eq!((find(&listed).mode, find(&listed).kind), (mode, mode >> 12));
            let kind = if name == c"dir" { libc::DT_DIR } else { libc::DT_UNKNOWN };
            assert_eq!(find(&plain).kind, u32::from(kind), "{name:?}");

            let host = on_host(&share, name.to_str().unwrap());
            assert!(host.is_file() || name == c"dir" && host.is_dir());
            assert_eq!(host.mode() & 0o7777, if name == c"dir" { 0o700 } else { 0o600 }, "{name:?}");
            assert_eq!(host.uid(), own);
        }
        let link = share.node("link");
        let mut target = Vec::new();
        fs.readlink(&ROOT, link, &mut target).unwrap();
        assert_eq!(target, b"../there");
        assert_eq!(std::fs::read(share.path("link")).unwrap(), b"../there");
        assert_eq!(share.attr(link).size, 8);
        is(share.open(link, libc::O_RDONLY), libc::ELOOP);
        is(share.open(share.node("char"), libc::O_RDONLY), libc::ENXIO);
        let size = SetattrIn { valid: fattr::SIZE, ..SetattrIn::default() };
        assert!(fs.setattr(&ROOT, link, &size).is_err(), "a link is no file to a guest");
        is(fs.symlink(&USER, ROOT_ID, c"link", c"x", &new).map(drop), libc::EEXIST);
        is(share.create(&USER, c"char", libc::O_RDWR | libc::O_EXCL, 0o600).map(drop), libc::EEXIST);
    });
}

#[test]
fn any_owner_and_any_mode_is_kept() {
    unprivileged(|share| {
        let (entry, open) = share.create(&USER, c"f", libc::O_RDWR, 0o600).unwrap();
        share.write(open.fh, 0, b"content").unwrap();
        let node = entry.nodeid;
        let attr = chown(&share, node, 0, 4_000_000_000);
        assert_eq!((attr.uid, attr.gid), (0, 4_000_000_000));
        for mode in [0, 0o7777, 0o4711, 0o200] {
            assert_eq!(chmod(&share, node, mode).mode, libc::S_IFREG | mode);
            let fh = share.open(node, libc::O_RDWR).unwrap();
            assert_eq!(share.read(fh, 0, 9).unwrap(), b"content");
            share.release(fh);
        }
        let link = share.fs.link(&ROOT, node, ROOT_ID, c"hard").unwrap();
        share.fs.rename(&ROOT, ROOT_ID, c"f", ROOT_ID, c"moved", 0).unwrap();
        chown(&share, link.nodeid, 5, 6);
        for name in [c"hard", c"moved"] {
            let attr = share.lookup(ROOT_ID, name).unwrap().attr;
            assert_eq!((attr.uid, attr.gid, attr.mode, attr.nlink), (5, 6, libc::S_IFREG | 0o200, 2));
        }
        let root = chown(&share, ROOT_ID, 7, 8);
        assert_eq!((root.uid, root.gid), (7, 8));
        let dir = share.fs.mkdir(&USER, ROOT_ID, c"d", 0, &Creation::default()).unwrap();
        assert_eq!(dir.attr.mode, libc::S_IFDIR);
        share.fs.mkdir(&USER, dir.nodeid, c"below", 0o755, &Creation::default()).unwrap();
    });
}

#[test]
fn set_id_bits_go_when_a_local_disk_would_take_them() {
    unprivileged(|share| {
        let (entry, open) = share.create(&ROOT, c"f", libc::O_RDWR, 0o600).unwrap();
        let node = entry.nodeid;
        let mode = || share.attr(node).mode & 0o7777;
        for (before, after) in [(0o6777, 0o777), (0o4700, 0o700), (0o2755, 0o755), (0o2745, 0o2745), (0o6745, 0o2745)] {
            chmod(&share, node, before);
            share.write(open.fh, 0, b"x").unwrap();
            assert_eq!(mode(), before, "the caller has CAP_FSETID");
            share.write_with(open.fh, 0, b"x", bits::WRITE_KILL_SUIDGID, 0).unwrap();
            assert_eq!(mode(), after, "write to {before:o}");
            chmod(&share, node, before);
            assert_eq!(chown(&share, node, 9, 9).mode & 0o7777, after, "chown of {before:o}");
        }
        chmod(&share, node, 0o6755);
        let valid = fattr::SIZE | fattr::KILL_SUIDGID;
        assert_eq!(set(&share, node, SetattrIn { valid, size: 2, ..SetattrIn::default() }).mode & 0o7777, 0o755);
        chmod(&share, node, 0o6755);
        share.fs.open(&ROOT, node, (libc::O_WRONLY | libc::O_TRUNC) as u32, true).unwrap();
        assert_eq!(mode(), 0o755);
        chmod(&share, node, 0o6755);
        let args = FallocateIn { fh: open.fh, length: 4096, ..FallocateIn::default() };
        share.fs.fallocate(&USER, node, &args).unwrap();
        assert_eq!(mode(), 0o755);
        let dir = share.fs.mkdir(&ROOT, ROOT_ID, c"d", 0o755, &Creation::default()).unwrap().nodeid;
        chmod(&share, dir, 0o2775);
        assert_eq!(chown(&share, dir, 1, 1).mode & 0o7777, 0o2775, "of a directory they are no privileges");
    });
}

#[test]
fn what_is_made_has_the_callers_umask_and_a_setgid_directorys_group() {
    unprivileged(|share| {
        let dir = share.fs.mkdir(&ROOT, ROOT_ID, c"d", 0o777, &Creation::default()).unwrap().nodeid;
        chown(&share, dir, 0, 4242);
        chmod(&share, dir, 0o2777);
        let make = |cx: &Context, name, group, umask| {
            let new = Creation { supplementary_group: group, umask, ..Creation::default() };
            let attr = share.fs.mknod(cx, dir, name, libc::S_IFREG | 0o2775, 0, &new).unwrap().attr;
            (attr.uid, attr.gid, attr.mode & 0o7777)
        };
        assert_eq!(make(&USER, c"member", Some(4242), 0o002), (USER.uid, 4242, 0o2775));
        assert_eq!(make(&USER, c"stranger", None, 0o027), (USER.uid, 4242, 0o750));
        assert_eq!(make(&ROOT, c"root", None, 0), (0, 4242, 0o2775));
        let new = Creation { umask: 0o077, ..Creation::default() };
        let below = share.fs.mkdir(&USER, dir, c"below", 0o777, &new).unwrap().attr;
        assert_eq!((below.uid, below.gid, below.mode & 0o7777), (USER.uid, 4242, 0o2700));
        let link = share.fs.symlink(&USER, dir, c"link", c"x", &new).unwrap().attr;
        assert_eq!((link.gid, link.mode & 0o7777), (4242, 0o777));
    });
}

#[test]
fn the_attribute_is_nothing_to_guests() {
    unprivileged(|share| {
        let node = share.create(&USER, c"f", libc::O_RDWR, 0o600).unwrap().0.nodeid;
        let mut out = [0; 64];
        assert_eq!(share.fs.listxattr(&ROOT, node, &mut out), Ok(0));
        assert_eq!(share.fs.listxattr(&ROOT, node, &mut []), Ok(0));
        is(share.fs.getxattr(&ROOT, node, NAME, &mut out), libc::ENODATA);
        is(share.fs.setxattr(&ROOT, node, NAME, b"0:0:104755", 0, false), libc::EPERM);
        is(share.fs.removexattr(&ROOT, node, NAME), libc::EPERM);
        let fifo = share.fs.mknod(&USER, ROOT_ID, c"p", libc::S_IFIFO, 0, &Creation::default()).unwrap().nodeid;
        is(share.fs.setxattr(&ROOT, fifo, c"user.x", b"x", 0, false), libc::EPERM);
        share.fs.setxattr(&ROOT, node, c"user.virtiofs.other", b"x", 0, false).unwrap();
        let length = share.fs.listxattr(&ROOT, node, &mut out).unwrap();
        assert_eq!(&out[..length], b"user.virtiofs.other\0");
        assert_eq!(share.attr(node).mode, libc::S_IFREG | 0o600);
    });
}

#[test]
fn what_lacks_the_attribute_is_what_it_is_on_the_host() {
    unprivileged(|share| {
        std::fs::write(share.path("f"), "x").unwrap();
        std::fs::set_permissions(share.path("f"), PermissionsExt::from_mode(0o400)).unwrap();
        std::os::unix::fs::symlink("f", share.path("l")).unwrap();
        rustix::fs::mkfifoat(rustix::fs::CWD, share.path("p"), rustix::fs::Mode::from_raw_mode(0o640)).unwrap();
        let (host, node) = (on_host(&share, "f"), share.node("f"));
        let attr = share.attr(node);
        assert_eq!((attr.uid, attr.gid, attr.mode), (host.uid(), host.gid(), host.mode()));
        // From the first change on it is kept; the daemon's user may write now what it could only read.
        assert_eq!(chown(&share, node, 1, 2).mode, libc::S_IFREG | 0o400);
        share.open(node, libc::O_RDWR).unwrap();
        let host = on_host(&share, "f");
        assert_eq!((host.uid(), host.mode() & 0o7777), (attr.uid, 0o600));
        let mut target = Vec::new();
        share.fs.readlink(&ROOT, share.node("l"), &mut target).unwrap();
        assert_eq!(target, b"f");
        assert_eq!(chmod(&share, share.node("p"), 0o600).mode, libc::S_IFIFO | 0o600);
        assert!(on_host(&share, "p").file_type().is_fifo());
    });
}

#[test]
fn a_spoilt_attribute_closes_the_file_until_root_says_otherwise() {
    unprivileged(|share| {
        let node = share.create(&ROOT, c"f", libc::O_RDWR, 0o666).unwrap().0.nodeid;
        for text in [&b"0:0:nonsense"[..], &[b'7'; 100], b""] {
            rustix::fs::setxattr(share.path("f"), NAME, text, XattrFlags::empty()).unwrap();
            let attr = share.attr(node);
            assert_eq!((attr.uid, attr.gid, attr.mode), (65534, 65534, libc::S_IFREG));
        }
        // Nor does a node change its type, or a file become a directory.
        for text in [b"1:2:20666:1:3", b"1:2:40666\0\0\0\0"] {
            rustix::fs::setxattr(share.path("f"), NAME, text, XattrFlags::empty()).unwrap();
            assert_eq!(share.attr(node).mode & libc::S_IFMT, libc::S_IFREG);
        }
        chown(&share, node, 3, 4);
        let attr = chmod(&share, node, 0o640);
        assert_eq!((attr.uid, attr.gid, attr.mode), (3, 4, libc::S_IFREG | 0o640));
    });
}

#[test]
fn an_existing_file_opens_at_create_only_for_those_who_may() {
    unprivileged(|share| {
        share.create(&ROOT, c"theirs", libc::O_RDWR, 0o604).unwrap();
        share.create(&USER, c"mine", libc::O_RDWR, 0o600).unwrap();
        share.create(&USER, c"mine", libc::O_RDWR | libc::O_TRUNC, 0o600).unwrap();
        share.create(&USER, c"theirs", libc::O_RDONLY, 0o600).unwrap();
        is(share.create(&USER, c"theirs", libc::O_RDWR, 0o600), libc::ESTALE);
        is(share.create(&USER, c"theirs", libc::O_RDONLY | libc::O_TRUNC, 0o600), libc::ESTALE);
        share.create(&ROOT, c"mine", libc::O_RDWR, 0o600).unwrap();
        let may = |mask: i32| share.fs.access(&USER, share.node("theirs"), mask as u32);
        may(libc::R_OK).unwrap();
        is(may(libc::W_OK), libc::EACCES);
        is(may(libc::X_OK), libc::EACCES);
        chmod(&share, share.node("theirs"), 0o705);
        may(libc::X_OK).unwrap();
    });
}

#[test]
fn a_file_that_is_made_to_be_read_is_not_open_for_writing() {
    unprivileged(|share| {
        let (entry, open) = share.create(&USER, c"f", libc::O_RDONLY, 0o400).unwrap();
        is(share.write(open.fh, 0, b"x").map(drop), libc::EBADF);
        assert_eq!(share.read(open.fh, 0, 1).unwrap(), b"");
        assert_eq!(entry.attr.mode, libc::S_IFREG | 0o400);
        for flags in [libc::O_RDWR, libc::O_RDWR | libc::O_EXCL] {
            let new = Creation { umask: 0o077, ..Creation::default() };
            let made = share.fs.tmpfile(&USER, ROOT_ID, flags as u32, 0o4777, &new);
            let (entry, open) = match made {
                Err(virtiofs_fuse::Error::Errno(libc::EOPNOTSUPP)) => return eprintln!("skipped: no O_TMPFILE here"),
                made => made.unwrap(),
            };
            assert_eq!((entry.attr.uid, entry.attr.mode), (USER.uid, libc::S_IFREG | 0o4700));
            share.write(open.fh, 0, b"x").unwrap();
            let named = share.fs.link(&ROOT, entry.nodeid, ROOT_ID, c"named");
            assert_eq!(named.is_ok(), flags & libc::O_EXCL == 0);
        }
    });
}
