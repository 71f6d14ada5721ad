//! Attributes, space, renames, and what a read-only share refuses.

mod common;

use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::time::Duration;

use common::*;
use virtiofs_fuse::wire::*;
use virtiofs_fuse::{Creation, Error, FileSystem};
use virtiofs_hostdir::{Config, Effects};

#[test]
fn renames_exchange_spare_and_leave_whiteouts() {
    let share = share();
    std::fs::write(share.path("a"), "a").unwrap();
    std::fs::write(share.path("b"), "b").unwrap();
    std::fs::create_dir(share.path("d")).unwrap();
    let (a, b, d) = (share.node("a"), share.node("b"), share.node("d"));
    let rename = |from, to, flags| share.fs.rename(&ROOT, ROOT_ID, from, ROOT_ID, to, flags);
    is(rename(c"a", c"b", libc::RENAME_NOREPLACE), libc::EEXIST);
    rename(c"a", c"b", libc::RENAME_EXCHANGE).unwrap();
    assert_eq!((share.node("a"), share.node("b")), (b, a));
    share.fs.rename(&ROOT, ROOT_ID, c"a", d, c"moved", 0).unwrap();
    assert_eq!(share.lookup(d, c"moved").unwrap().nodeid, b);
    is(rename(c"a", c"x", 0), libc::ENOENT);
    is(rename(c"b", c"x", 1 << 7), libc::EINVAL);
    is(rename(c"d", c"b", 0), libc::ENOTDIR);
    rename(c"d", c"e", 0).unwrap();
    assert_eq!(share.lookup(d, c"moved").unwrap().nodeid, b, "a node is no path");
    if is_root() {
        match rename(c"b", c"c", libc::RENAME_WHITEOUT) {
            Err(Error::Errno(libc::EINVAL)) => eprintln!("without whiteouts: not on this file system"),
            result => {
                result.unwrap();
                let white = share.lookup(ROOT_ID, c"b").unwrap().attr;
                assert_eq!((white.mode & libc::S_IFMT, white.rdev), (libc::S_IFCHR, 0));
            }
        }
    }
}

#[test]
fn attributes_are_set_one_by_one_and_all_come_back() {
    let share = share();
    std::fs::write(share.path("f"), "0123456789").unwrap();
    let node = share.node("f");
    let set = |args: SetattrIn| share.fs.setattr(&ROOT, node, &args).map(|out| out.attr);
    assert_eq!(
        set(SetattrIn { valid: fattr::MODE, mode: 0o100_751, ..SetattrIn::default() }).unwrap().mode & 0o7777,
        0o751
    );
    let shrunk = set(SetattrIn { valid: fattr::SIZE, size: 4, ..SetattrIn::default() }).unwrap();
    assert_eq!((shrunk.size, shrunk.mode & 0o7777), (4, 0o751));
    is(set(SetattrIn { valid: fattr::SIZE, size: u64::MAX, ..SetattrIn::default() }), libc::EFBIG);
    let times = SetattrIn {
        valid: fattr::ATIME | fattr::MTIME | fattr::CTIME,
        atime: 1_000_000_000,
        atimensec: 123_456_000,
        mtime: (-5i64) as u64,
        ctime: 7,
        ..SetattrIn::default()
    };
    let out = set(times).unwrap();
    assert_eq!((out.atime, out.atimensec, out.mtime as i64), (1_000_000_000, 123_456_000, -5));
    assert!(out.ctime > 1_000_000_000, "the host keeps ctime");
    let now = fattr::MTIME | fattr::MTIME_NOW;
    let out = set(SetattrIn { valid: now, ..SetattrIn::default() }).unwrap();
    assert!(out.mtime > 1_500_000_000 && out.atime == 1_000_000_000);
    is(set(SetattrIn { valid: fattr::UID, uid: u32::MAX, ..SetattrIn::default() }), libc::EINVAL);
    assert_eq!(set(SetattrIn::default()).unwrap().size, 4);

    std::os::unix::fs::symlink("f", share.path("l")).unwrap();
    let link = share.node("l");
    share.fs.setattr(&ROOT, link, &times).unwrap();
    assert_eq!(std::fs::symlink_metadata(share.path("l")).unwrap().atime(), 1_000_000_000);
    assert!(std::fs::metadata(share.path("f")).unwrap().mtime() > 1_500_000_000, "the link's target is left alone");
    is(
        share.fs.setattr(&ROOT, link, &SetattrIn { valid: fattr::MODE, mode: 0, ..SetattrIn::default() }),
        libc::EOPNOTSUPP,
    );
    let size = SetattrIn { valid: fattr::SIZE, ..SetattrIn::default() };
    is(share.fs.setattr(&ROOT, link, &size), libc::ELOOP);
    is(share.fs.setattr(&ROOT, ROOT_ID, &size), libc::EISDIR);
}

#[test]
fn statx_tells_the_birth_and_claims_no_more_than_it_fills() {
    let share = share();
    std::fs::write(share.path("f"), "abc").unwrap();
    let node = share.node("f");
    let out = share.fs.statx(&ROOT, node, None, u32::MAX).unwrap();
    let host = std::fs::metadata(share.path("f")).unwrap();
    assert_eq!((out.stat.ino, out.stat.size, u32::from(out.stat.mode)), (host.ino(), 3, host.mode()));
    assert_eq!(out.attr_valid, 2);
    assert_eq!(out.stat.mask & !0xfff, 0);
    if let Ok(birth) = host.created() {
        let since = birth.duration_since(std::time::UNIX_EPOCH).unwrap();
        assert_eq!(out.stat.btime.tv_sec as u64, since.as_secs());
        assert_ne!(out.stat.mask & 0x800, 0);
    }
}

#[test]
fn holes_space_and_copies() {
    let share = share();
    let (from, open) = share.create(&ROOT, c"f", libc::O_RDWR, 0o600).unwrap();
    share.write(open.fh, 1 << 20, b"data").unwrap();
    let seek = |offset, whence: i32| share.fs.lseek(&ROOT, from.nodeid, open.fh, offset, whence as u32);
    assert_eq!(seek(0, libc::SEEK_HOLE).unwrap(), 0);
    assert_eq!(seek(0, libc::SEEK_DATA).unwrap(), 1 << 20);
    is(seek(2 << 20, libc::SEEK_DATA), libc::ENXIO);
    is(seek(u64::MAX, libc::SEEK_HOLE), libc::ENXIO);
    is(seek(0, libc::SEEK_SET), libc::EINVAL);

    let allocate = |mode, offset, length| {
        let args = FallocateIn { fh: open.fh, offset, length, mode, padding: 0 };
        share.fs.fallocate(&ROOT, from.nodeid, &args)
    };
    allocate(0, 0, 2 << 20).unwrap();
    assert_eq!(share.attr(from.nodeid).size, 2 << 20);
    allocate((libc::FALLOC_FL_KEEP_SIZE) as u32, 2 << 20, 4096).unwrap();
    assert_eq!(share.attr(from.nodeid).size, 2 << 20);
    allocate((libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE) as u32, 0, 2 << 20).unwrap();
    assert_eq!(share.read(open.fh, 1 << 20, 4).unwrap(), [0; 4]);
    is(allocate(0, 0, 0), libc::EINVAL);

    share.write(open.fh, 0, b"0123456789").unwrap();
    let (to, target) = share.create(&ROOT, c"g", libc::O_RDWR, 0o600).unwrap();
    let mut args = CopyFileRangeIn {
        fh_in: open.fh,
        off_in: 2,
        nodeid_out: to.nodeid,
        fh_out: target.fh,
        off_out: 1,
        len: 5,
        flags: 0,
    };
    assert_eq!(share.fs.copy_file_range(&ROOT, from.nodeid, &args), Ok(5));
    assert_eq!(std::fs::read(share.path("g")).unwrap(), b"\x0023456");
    args.flags = 1;
    is(share.fs.copy_file_range(&ROOT, from.nodeid, &args), libc::EINVAL);
    for datasync in [false, true] {
        share.fs.fsync(&ROOT, from.nodeid, open.fh, datasync).unwrap();
    }
    share.fs.flush(&ROOT, from.nodeid, &FlushIn { fh: open.fh, ..FlushIn::default() }).unwrap();
    assert_eq!(share.fs.handles(), 2);
}

#[test]
fn a_read_only_share_refuses_every_change() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("f"), "abc").unwrap();
    std::fs::create_dir(dir.path().join("d")).unwrap();
    let share = Share::within(dir, Config { read_only: true, ..config() }, 0);
    assert!(share.fs.read_only());
    let (node, new) = (share.node("f"), Creation::default());
    for flags in [libc::O_WRONLY, libc::O_RDWR, libc::O_RDONLY | libc::O_TRUNC] {
        is(share.open(node, flags), libc::EROFS);
    }
    is(share.create(&ROOT, c"f", libc::O_RDONLY, 0o600), libc::EROFS);
    is(share.fs.tmpfile(&ROOT, ROOT_ID, libc::O_RDWR as u32, 0o600, &new), libc::EROFS);
    is(share.fs.mkdir(&ROOT, ROOT_ID, c"x", 0o700, &new), libc::EROFS);
    is(share.fs.mknod(&ROOT, ROOT_ID, c"x", libc::S_IFREG, 0, &new), libc::EROFS);
    is(share.fs.symlink(&ROOT, ROOT_ID, c"x", c"y", &new), libc::EROFS);
    is(share.fs.unlink(&ROOT, ROOT_ID, c"f"), libc::EROFS);
    is(share.fs.rmdir(&ROOT, ROOT_ID, c"d"), libc::EROFS);
    is(share.fs.rename(&ROOT, ROOT_ID, c"f", ROOT_ID, c"g", 0), libc::EROFS);
    is(share.fs.link(&ROOT, node, ROOT_ID, c"g"), libc::EROFS);
    is(share.fs.setattr(&ROOT, node, &SetattrIn::default()), libc::EROFS);
    is(share.fs.setxattr(&ROOT, node, c"user.x", b"", 0, false), libc::EROFS);
    is(share.fs.removexattr(&ROOT, node, c"user.x"), libc::EROFS);
    let fh = share.open(node, libc::O_RDONLY).unwrap();
    is(share.write(fh, 0, b"x"), libc::EBADF);
    assert_eq!(share.read(fh, 0, 10).unwrap(), b"abc");
    let dir = share.opendir(ROOT_ID);
    let set = IoctlIn { fh: dir, flags: bits::IOCTL_DIR, cmd: 0x4008_6602, ..IoctlIn::default() };
    is(share.fs.ioctl(&ROOT, ROOT_ID, &set, &[0; 8], &mut Vec::new()), libc::EROFS);
}

#[test]
fn a_file_that_only_grows_can_be_appended_to() {
    needs_root!();
    let dir = on_disk();
    let share = Share::within(dir, config(), 0);
    let (entry, open) = share.create(&ROOT, c"log", libc::O_RDWR, 0o600).unwrap();
    let ioctl = |cmd, input: &[u8]| {
        let args = IoctlIn { fh: open.fh, cmd, out_size: 4, ..IoctlIn::default() };
        let mut out = Vec::new();
        share.fs.ioctl(&ROOT, entry.nodeid, &args, input, &mut out).map(|result| (result, out))
    };
    let (get, set) = (0x8008_6601, 0x4008_6602);
    let flags = match ioctl(get, &[]) {
        Err(Error::Errno(libc::ENOTTY | libc::EOPNOTSUPP)) => return eprintln!("skipped: no file attributes here"),
        result => result.unwrap().1,
    };
    assert_eq!(flags.len(), 4);
    let flags = u32::from_le_bytes(flags.try_into().unwrap());
    const APPEND: u32 = 0x20;
    ioctl(set, &(flags | APPEND).to_le_bytes()).unwrap();
    is(share.open(entry.nodeid, libc::O_WRONLY), libc::EPERM);
    let fh = share.open(entry.nodeid, libc::O_WRONLY | libc::O_APPEND).unwrap();
    share.write_with(fh, 0, b"line", 0, libc::O_APPEND).unwrap();
    ioctl(set, &flags.to_le_bytes()).unwrap();
    assert_eq!(std::fs::read(share.path("log")).unwrap(), b"line");
    is(ioctl(set, b""), libc::EINVAL);
    // FIONREAD and TIOCSTI stand for all the others.
    for cmd in [0x541b, 0x5412, 0] {
        is(ioctl(cmd, &[0; 8]), libc::ENOTTY);
    }
}

#[test]
fn the_share_tells_its_space() {
    let share = share();
    let told = share.fs.statfs(&ROOT, ROOT_ID).unwrap();
    let host = rustix::fs::statvfs(share.path("").as_path()).unwrap();
    assert_eq!((told.blocks, u64::from(told.frsize)), (host.f_blocks, host.f_frsize));
    assert_eq!(u64::from(told.namelen), host.f_namemax);
    share.fs.syncfs(&ROOT, ROOT_ID).unwrap();
}

#[test]
fn access_asks_the_host_for_this_caller() {
    needs_root!();
    let share = share();
    std::fs::set_permissions(share.path(""), PermissionsExt::from_mode(0o755)).unwrap();
    std::fs::write(share.path("f"), "").unwrap();
    std::fs::set_permissions(share.path("f"), PermissionsExt::from_mode(0o640)).unwrap();
    let node = share.node("f");
    share.fs.access(&ROOT, node, (libc::R_OK | libc::W_OK) as u32).unwrap();
    is(share.fs.access(&USER, node, libc::R_OK as u32), libc::EACCES);
    is(share.fs.access(&ROOT, node, libc::X_OK as u32), libc::EACCES);
    share.fs.access(&USER, node, libc::F_OK as u32).unwrap();
    is(share.fs.access(&ROOT, node, 0x100), libc::EINVAL);
}

#[test]
fn attribute_times_of_the_share_are_in_every_answer() {
    let effects = Effects { attr_ttl: Duration::from_millis(750), ..Effects::default() };
    let share = Share::with(Config { effects, ..config() }, 0);
    let out = share.fs.getattr(&ROOT, ROOT_ID, None).unwrap();
    assert_eq!((out.attr_valid, out.attr_valid_nsec), (0, 750_000_000));
    let out = share.fs.setattr(&ROOT, ROOT_ID, &SetattrIn::default()).unwrap();
    assert_eq!((out.attr_valid, out.attr_valid_nsec), (0, 750_000_000));
}
