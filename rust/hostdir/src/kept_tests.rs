//! What is kept, as text and as a file.

use std::ffi::CString;
use std::os::unix::fs::MetadataExt;

use super::*;
use crate::Config;

#[test]
fn what_is_kept_is_read_as_it_was_written() {
    let file = Kept { uid: 0, gid: u32::MAX - 1, mode: libc::S_IFREG | 0o4755, rdev: 0 };
    assert_eq!(file.to_text(), "0:4294967294:104755");
    let device = Kept { mode: libc::S_IFBLK | 0o660, rdev: encode_device(259, 65_537), ..file };
    assert_eq!(device.to_text(), "0:4294967294:60660:259:65537");
    for kept in [file, device] {
        assert_eq!(Kept::parse(kept.to_text().as_bytes()), Some(kept));
    }
}

#[test]
fn what_is_not_understood_is_nothing() {
    let wrong: [&[u8]; 11] = [
        b"",
        b"0",
        b"0:0",
        b"0:0:",
        b"0:0:8",
        b"0:0:100644:1",
        b"-1:0:100644",
        b"+1:0:100644",
        b"0:0:20644",
        b"0:0:20644:4096:0",
        b"0:0:7777777",
    ];
    for text in wrong {
        assert_eq!(Kept::parse(text), None, "{:?}", text.escape_ascii().to_string());
    }
}

#[test]
fn a_directory_is_one_in_any_case_and_nothing_else_is() {
    let kept = |mode| Kept { uid: 0, gid: 0, mode, rdev: 0 };
    assert_eq!(kept(libc::S_IFLNK).kind(libc::S_IFREG), libc::S_IFLNK);
    assert_eq!(kept(libc::S_IFDIR).kind(libc::S_IFREG), libc::S_IFREG);
    assert_eq!(kept(libc::S_IFCHR).kind(libc::S_IFDIR), libc::S_IFDIR);
    assert_eq!(kept(libc::S_IFLNK).kind(libc::S_IFIFO), libc::S_IFIFO);
    assert_eq!(kept(0).kind(libc::S_IFREG), libc::S_IFREG);
}

/// What a file system without O_TMPFILE makes us do gives the same.
#[test]
fn the_way_in_place_makes_the_same_file() {
    let folder = tempfile::tempdir_in(env!("CARGO_MANIFEST_DIR")).unwrap();
    let config =
        Config { root: folder.path().into(), kept: Some(CString::from(c"user.virtiofs.stat")), ..Config::default() };
    let share = HostDir::new(config).unwrap();
    let root = share.inodes.get(virtiofs_fuse::wire::ROOT_ID).unwrap();
    let kept = Kept { uid: 7, gid: 8, mode: libc::S_IFLNK | 0o777, rdev: 0 };
    share.make_file(&root, c"a", OFlags::WRONLY, b"target", kept).unwrap();
    share.make_in_place(&root, c"b", OFlags::WRONLY, b"target", kept).unwrap();
    for name in [c"a", c"b"] {
        let path = folder.path().join(name.to_str().unwrap());
        assert_eq!(std::fs::read(&path).unwrap(), b"target");
        assert_eq!(std::fs::metadata(&path).unwrap().mode(), libc::S_IFREG | FILE);
        let status = share.status_at(&root, name).unwrap();
        assert_eq!(Kept::of(&status), kept);
        let again = share.make_in_place(&root, name, OFlags::WRONLY, b"", kept).map(drop);
        assert_eq!(again, share.make_file(&root, name, OFlags::WRONLY, b"", kept).map(drop));
        assert_eq!(again, Err(Error::Errno(libc::EEXIST)));
    }
}
