//! Files and directories that a guest uses without an OPEN.

mod common;

use common::*;
use virtiofs_fuse::wire::*;
use virtiofs_fuse::{DirBuffer, FileSystem, Opcode, Segments};
use virtiofs_hostdir::Config;

const SILENT: u64 = init::NO_OPEN_SUPPORT | init::NO_OPENDIR_SUPPORT | init::DONT_MASK;

fn silent(config: Config) -> Share {
    Share::with(config, SILENT)
}

fn read(share: &Share, node: u64, len: usize) -> virtiofs_fuse::Result<Vec<u8>> {
    let mut buffer = vec![0xaa; len];
    let (vecs, len) = iovecs(&mut [&mut buffer]);
    let args = ReadIn { fh: 0, size: len as u32, ..ReadIn::default() };
    let count = share.fs.read(&ROOT, node, &args, Segments::new(&vecs, len))?;
    buffer.truncate(count);
    Ok(buffer)
}

fn write(share: &Share, node: u64, offset: u64, data: &[u8], flags: i32) -> virtiofs_fuse::Result<usize> {
    let mut data = data.to_vec();
    let (vecs, len) = iovecs(&mut [&mut data]);
    let args = WriteIn { fh: 0, offset, size: len as u32, flags: flags as u32, ..WriteIn::default() };
    share.fs.write(&ROOT, node, &args, Segments::new(&vecs, len))
}

fn names_in(share: &Share, node: u64) -> Vec<String> {
    let mut out = DirBuffer::default();
    out.restart(4096);
    share.fs.readdir(&ROOT, node, 0, 0, false, &mut out).unwrap();
    let mut bytes = out.as_bytes();
    let mut names = Vec::new();
    while let Ok((head, rest)) = <Dirent as zerocopy::FromBytes>::read_from_prefix(bytes) {
        names.push(String::from_utf8(rest[..head.namelen as usize].to_vec()).unwrap());
        bytes = &bytes[(24 + head.namelen as usize).next_multiple_of(8)..];
    }
    names.retain(|name| !name.starts_with('.'));
    names.sort();
    names
}

#[test]
fn opens_are_lacking_where_they_are_left_out_and_handle_0_is_nobodys_elsewhere() {
    let share = silent(config());
    for op in [Opcode::Open, Opcode::Release, Opcode::Flush, Opcode::Opendir, Opcode::Releasedir] {
        assert!(share.fs.lacks() & (1 << op as u32) != 0, "{op:?}");
    }
    let share = common::share();
    std::fs::write(share.path("f"), "data").unwrap();
    assert_eq!(share.fs.lacks() & (1 << Opcode::Open as u32), 0);
    is(read(&share, share.node("f"), 10), libc::EBADF);
}

#[test]
fn a_file_is_read_written_and_truncated_by_its_node() {
    let share = silent(config());
    std::fs::write(share.path("f"), "first").unwrap();
    let node = share.node("f");
    assert_eq!(read(&share, node, 10).unwrap(), b"first");
    assert_eq!(write(&share, node, 0, b"F", libc::O_WRONLY).unwrap(), 1);
    assert_eq!(write(&share, node, 0, b"!", libc::O_WRONLY | libc::O_APPEND | libc::O_SYNC).unwrap(), 1);
    assert_eq!(std::fs::read(share.path("f")).unwrap(), b"First!");
    let args = SetattrIn { valid: fattr::SIZE | fattr::FH, size: 2, ..SetattrIn::default() };
    assert_eq!(share.fs.setattr(&ROOT, node, &args).unwrap().attr.size, 2);
    assert_eq!(read(&share, node, 10).unwrap(), b"Fi");
    assert_eq!(share.fs.getattr(&ROOT, node, Some(0)).unwrap().attr.size, 2);
    share.fs.fsync(&ROOT, node, 0, false).unwrap();
    assert_eq!(share.fs.lseek(&ROOT, node, 0, 0, libc::SEEK_HOLE as u32).unwrap(), 2);
    // Only regular files: a FIFO would block.
    rustix::fs::mknodat(rustix::fs::CWD, share.path("p"), rustix::fs::FileType::Fifo, 0o600.into(), 0).unwrap();
    is(read(&share, share.node("p"), 10), libc::ENXIO);
}

#[test]
fn what_is_created_has_no_handle_and_lives_on_without_its_name() {
    let share = silent(Config { node_descriptors: 64, ..config() });
    let (entry, open) = share.create(&ROOT, c"new", libc::O_WRONLY, 0o600).unwrap();
    assert_eq!(open.fh, 0);
    write(&share, entry.nodeid, 0, b"kept", libc::O_WRONLY).unwrap();
    share.fs.unlink(&ROOT, ROOT_ID, c"new").unwrap();
    // Others come by, more than there is room for.
    for number in 0..200 {
        std::fs::write(share.path(format!("f{number}")), number.to_string()).unwrap();
        assert_eq!(read(&share, share.node(&format!("f{number}")), 10).unwrap(), number.to_string().as_bytes());
        assert!(share.fs.handles() <= 20, "{}", share.fs.handles());
    }
    assert_eq!(read(&share, entry.nodeid, 10).unwrap(), b"kept", "nobody else has it");
    share.fs.forget(entry.nodeid, 1);
    is(read(&share, entry.nodeid, 10), libc::ESTALE);
    share.fs.destroy();
    assert_eq!(share.fs.handles(), 0);
}

#[test]
fn a_directory_is_listed_by_its_node_and_anew_each_time() {
    let share = silent(config());
    std::fs::write(share.path("a"), "").unwrap();
    assert_eq!(names_in(&share, ROOT_ID), ["a"]);
    std::fs::write(share.path("b"), "").unwrap();
    assert_eq!(names_in(&share, ROOT_ID), ["a", "b"]);
    is(share.fs.readdir(&ROOT, share.node("a"), 0, 0, false, &mut DirBuffer::default()), libc::ENOTDIR);
}

#[test]
fn a_share_that_is_read_only_stays_it() {
    let share = silent(Config { read_only: true, ..config() });
    std::fs::write(share.path("f"), "data").unwrap();
    let node = share.node("f");
    is(write(&share, node, 0, b"x", libc::O_WRONLY), libc::EROFS);
    assert_eq!(read(&share, node, 10).unwrap(), b"data");
}
