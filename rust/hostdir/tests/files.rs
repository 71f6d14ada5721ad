//! Files are created, opened, read and written as a local disk would have it.

mod common;

use common::*;
use virtiofs_fuse::wire::*;
use virtiofs_fuse::{Context, Creation, Error, FileSystem, Opcode, Segments};
use virtiofs_hostdir::{Config, Effects};

#[test]
fn what_is_written_is_read_whatever_the_pieces() {
    let share = share();
    let (_, open) = share.create(&ROOT, c"f", libc::O_RDWR, 0o600).unwrap();
    let mut data: Vec<u8> = (0..100_000u32).flat_map(u32::to_le_bytes).collect();
    // Pieces of odd sizes, empty ones among them, more than one call takes.
    let mut parts: Vec<&mut [u8]> = Vec::new();
    let (mut rest, mut size) = (&mut data[..], 0);
    while !rest.is_empty() {
        let (part, tail) = rest.split_at_mut(size.min(rest.len()));
        parts.push(part);
        (rest, size) = (tail, (size + 1) % 300);
    }
    let (vecs, len) = iovecs(&mut parts);
    assert!(vecs.len() > 2 * libc::UIO_MAXIOV as usize);
    let args = WriteIn { fh: open.fh, offset: 5, size: len as u32, ..WriteIn::default() };
    assert_eq!(share.fs.write(&ROOT, 0, &args, Segments::new(&vecs, len)), Ok(len));
    assert_eq!(std::fs::read(share.path("f")).unwrap()[5..], data);

    let mut back = vec![0u8; data.len() + 1000];
    let mut parts: Vec<&mut [u8]> = back.chunks_mut(97).collect();
    let (vecs, room) = iovecs(&mut parts);
    let args = ReadIn { fh: open.fh, offset: 5, size: room as u32, ..ReadIn::default() };
    assert_eq!(share.fs.read(&ROOT, 0, &args, Segments::new(&vecs, room)), Ok(len), "short at the end of the file");
    assert_eq!(back[..len], data);
    assert_eq!(share.read(open.fh, 10 << 20, 10).unwrap(), b"");
    assert_eq!(share.read(open.fh, 0, 0).unwrap(), b"");
    assert_eq!(share.write(open.fh, 0, b"").unwrap(), 0);
    is(share.read(open.fh, u64::MAX, 10), libc::EINVAL);
    is(share.write(open.fh, u64::MAX - 3, b"0123456789"), libc::EINVAL);
}

#[test]
fn a_read_that_may_not_block_answers_from_the_page_cache_or_not_at_all() {
    let share = share();
    let data = vec![7; 1 << 20];
    std::fs::write(share.path("f"), &data).unwrap();
    let fh = share.open(share.node("f"), libc::O_RDONLY).unwrap();
    let quick = Context { may_block: false, ..ROOT };
    assert_eq!(share.read_with(&quick, fh, 4096, 8192).unwrap(), data[..8192]);
    assert_eq!(share.read_with(&quick, fh, (1 << 20) - 10, 100).unwrap(), data[..10]);
    let file = std::fs::File::open(share.path("f")).unwrap();
    file.sync_all().unwrap();
    rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::DontNeed).unwrap();
    match share.read_with(&quick, fh, 0, 1 << 20) {
        Err(Error::WouldBlock) => {}
        // tmpfs has nothing but its page cache, and other threads may have read.
        result => assert_eq!(result.unwrap(), data),
    }
    assert_eq!(share.read_with(&ROOT, fh, 0, 1 << 20).unwrap(), data);
}

#[test]
fn create_makes_opens_truncates_or_refuses() {
    let share = share();
    let (entry, open) = share.create(&ROOT, c"f", libc::O_RDWR | libc::O_EXCL, 0o640).unwrap();
    assert_eq!(entry.attr.mode, libc::S_IFREG | 0o640);
    share.write(open.fh, 0, b"0123456789").unwrap();
    is(share.create(&ROOT, c"f", libc::O_RDWR | libc::O_EXCL, 0o600), libc::EEXIST);
    let (again, second) = share.create(&ROOT, c"f", libc::O_RDONLY, 0o600).unwrap();
    assert_eq!((again.nodeid, again.attr.size, again.attr.mode & 0o777), (entry.nodeid, 10, 0o640));
    assert_eq!(share.read(second.fh, 0, 100).unwrap(), b"0123456789");
    is(share.write(second.fh, 0, b"x"), libc::EBADF);
    let (emptied, third) = share.create(&ROOT, c"f", libc::O_WRONLY | libc::O_TRUNC, 0o600).unwrap();
    assert_eq!((emptied.nodeid, emptied.attr.size), (entry.nodeid, 0));
    for fh in [open.fh, second.fh, third.fh] {
        share.release(fh);
    }
    share.fs.forget(entry.nodeid, 3);
    assert_eq!((share.fs.nodes(), share.fs.handles()), (1, 0));
    is(share.create(&ROOT, c"g", libc::O_ACCMODE, 0o600), libc::EINVAL);
}

/// The guest looks again when it hears ESTALE, and then sees what is there. Nothing blocks, nothing is followed.
#[test]
fn create_on_what_is_no_file_makes_the_guest_look_again() {
    let share = share();
    let outside = tempfile::tempdir().unwrap();
    std::os::unix::fs::symlink(outside.path().join("new"), share.path("link")).unwrap();
    std::fs::create_dir(share.path("dir")).unwrap();
    rustix::fs::mknodat(
        rustix::fs::CWD,
        share.path("fifo"),
        rustix::fs::FileType::Fifo,
        rustix::fs::Mode::from_raw_mode(0o600),
        0,
    )
    .unwrap();
    for name in [c"link", c"dir", c"fifo"] {
        is(share.create(&ROOT, name, libc::O_WRONLY, 0o600), libc::ESTALE);
        is(share.create(&ROOT, name, libc::O_WRONLY | libc::O_EXCL, 0o600), libc::EEXIST);
    }
    let fifo = share.node("fifo");
    is(share.open(fifo, libc::O_RDONLY), libc::ENXIO);
    is(share.open(share.node("dir"), libc::O_RDONLY), libc::EISDIR);
    share.fs.forget(fifo, 1);
    assert_eq!(std::fs::read_dir(outside.path()).unwrap().count(), 0);
    assert_eq!(share.fs.nodes(), 2, "the directory, looked up just now");
}

#[test]
fn open_flags_of_the_share_reach_the_guest_and_noflush_only_readers() {
    let effects = Effects {
        open_flags: fopen::KEEP_CACHE | fopen::NOFLUSH,
        dir_open_flags: fopen::CACHE_DIR,
        ..Effects::default()
    };
    let share = Share::with(Config { effects, ..config() }, 0);
    let (entry, open) = share.create(&ROOT, c"f", libc::O_RDWR, 0o600).unwrap();
    assert_eq!(open.open_flags, fopen::KEEP_CACHE);
    let open = share.fs.open(&ROOT, entry.nodeid, libc::O_RDONLY as u32, false).unwrap();
    assert_eq!(open.open_flags, fopen::KEEP_CACHE | fopen::NOFLUSH);
    assert_eq!(share.fs.opendir(&ROOT, ROOT_ID, 0).unwrap().open_flags, fopen::CACHE_DIR);
    is(share.fs.opendir(&ROOT, entry.nodeid, 0), libc::ENOTDIR);
}

#[test]
fn appends_go_to_the_end_that_the_host_sees() {
    let share = share();
    let (entry, open) = share.create(&ROOT, c"f", libc::O_WRONLY | libc::O_APPEND, 0o600).unwrap();
    share.write_with(open.fh, 0, b"one,", 0, libc::O_APPEND).unwrap();
    // Another guest appends; this one still believes in its own size.
    let other = share.open(entry.nodeid, libc::O_WRONLY | libc::O_APPEND).unwrap();
    share.write_with(other, 4, b"two,", 0, libc::O_APPEND).unwrap();
    share.write_with(open.fh, 4, b"three", 0, libc::O_APPEND).unwrap();
    assert_eq!(std::fs::read(share.path("f")).unwrap(), b"one,two,three");
    // Pages that are written back have a place, whatever the file was opened with.
    share.write_with(open.fh, 0, b"ONE", bits::WRITE_CACHE, libc::O_APPEND).unwrap();
    assert_eq!(std::fs::read(share.path("f")).unwrap(), b"ONE,two,three");
}

#[test]
fn a_guest_that_holds_dirty_pages_can_read_what_it_opened_for_writing() {
    let share = Share::with(Config { writeback: true, ..config() }, init::WRITEBACK_CACHE);
    let (entry, open) = share.create(&ROOT, c"f", libc::O_WRONLY | libc::O_APPEND, 0o600).unwrap();
    share.write_with(open.fh, 3, b"abc", bits::WRITE_CACHE, 0).unwrap();
    assert_eq!(share.read(open.fh, 0, 10).unwrap(), b"\0\0\0abc");
    share.write_with(open.fh, 0, b"xyz", 0, libc::O_APPEND).unwrap();
    assert_eq!(share.read(open.fh, 0, 10).unwrap(), b"xyzabc", "the offset is the guest's");
    let fh = share.open(entry.nodeid, libc::O_WRONLY).unwrap();
    assert_eq!(share.read(fh, 0, 3).unwrap(), b"xyz");

    let without = Share::with(Config { writeback: true, ..config() }, 0);
    let (_, open) = without.create(&ROOT, c"f", libc::O_WRONLY, 0o600).unwrap();
    is(without.read(open.fh, 0, 1), libc::EBADF);
    // Nor is the host asked where data are, as long as it has not got all of them.
    assert_eq!((share.fs.lacks(), without.fs.lacks()), (1 << Opcode::Lseek as u32, 0));
}

#[test]
fn o_direct_ends_at_the_guest_unless_the_share_lets_it_pass() {
    let share = share();
    let (_, open) = share.create(&ROOT, c"f", libc::O_RDWR | libc::O_DIRECT, 0o600).unwrap();
    assert_eq!(share.write(open.fh, 1, b"unaligned").unwrap(), 9);

    let dir = on_disk();
    let share = Share::within(dir, Config { allow_direct_io: true, ..config() }, 0);
    let (_, open) = match share.create(&ROOT, c"f", libc::O_RDWR | libc::O_DIRECT, 0o600) {
        Err(Error::Errno(libc::EINVAL)) => return eprintln!("skipped: no O_DIRECT here"),
        result => result.unwrap(),
    };
    share.write_with(open.fh, 1, b"from the guest's cache", bits::WRITE_CACHE, 0).unwrap();
    share.write_with(open.fh, 0, b"F", bits::WRITE_CACHE, 0).unwrap();
    assert_eq!(std::fs::read(share.path("f")).unwrap(), b"Ffrom the guest's cache");
    let mut memory = vec![0u8; 3 * 4096];
    let skip = memory.as_ptr().align_offset(4096);
    let (vecs, len) = iovecs(&mut [&mut memory[skip..skip + 8192]]);
    let args = ReadIn { fh: open.fh, offset: 0, size: len as u32, ..ReadIn::default() };
    assert_eq!(share.fs.read(&ROOT, 0, &args, Segments::new(&vecs, len)), Ok(23), "the end of the file is unaligned");
    assert_eq!(memory[skip..skip + 23], *b"Ffrom the guest's cache");
}

#[test]
fn a_file_without_a_name_can_be_given_one() {
    let share = share();
    let new = Creation::default();
    let made = share.fs.tmpfile(&ROOT, ROOT_ID, libc::O_RDWR as u32, 0o600, &new);
    let (entry, open) = match made {
        Err(Error::Errno(libc::EOPNOTSUPP)) => return eprintln!("skipped: no O_TMPFILE here"),
        result => result.unwrap(),
    };
    assert_eq!((entry.attr.nlink, entry.attr.mode), (0, libc::S_IFREG | 0o600));
    share.write(open.fh, 0, b"data").unwrap();
    assert_eq!(names(&share.list(ROOT_ID, false, 4096)), [".", ".."]);
    assert_eq!(share.fs.link(&ROOT, entry.nodeid, ROOT_ID, c"named").unwrap().attr.nlink, 1);
    assert_eq!(std::fs::read(share.path("named")).unwrap(), b"data");
    let never = (libc::O_RDWR | libc::O_EXCL) as u32;
    let (entry, _) = share.fs.tmpfile(&ROOT, ROOT_ID, never, 0o600, &new).unwrap();
    is(share.fs.link(&ROOT, entry.nodeid, ROOT_ID, c"other"), libc::ENOENT);
    is(share.fs.tmpfile(&ROOT, ROOT_ID, libc::O_RDONLY as u32, 0o600, &new), libc::EINVAL);
}

#[test]
fn all_kinds_of_nodes_are_made() {
    let share = share();
    let new = Creation { umask: 0o027, ..Creation::default() };
    let dir = share.fs.mkdir(&ROOT, ROOT_ID, c"d", 0o777, &new).unwrap();
    assert_eq!(dir.attr.mode, libc::S_IFDIR | 0o750);
    let link = share.fs.symlink(&ROOT, dir.nodeid, c"l", c"some/where", &new).unwrap();
    assert_eq!((link.attr.mode & libc::S_IFMT, link.attr.size), (libc::S_IFLNK, 10));
    let mut kinds = vec![libc::S_IFREG, libc::S_IFIFO, libc::S_IFSOCK];
    if is_root() {
        kinds.extend([libc::S_IFCHR, libc::S_IFBLK]);
    } else {
        eprintln!("without devices: needs root");
    }
    for kind in kinds {
        let made = share.fs.mknod(&ROOT, dir.nodeid, c"n", kind | 0o666, 0x0010_0203, &new).unwrap();
        assert_eq!(made.attr.mode, kind | 0o640);
        if kind == libc::S_IFCHR || kind == libc::S_IFBLK {
            assert_eq!(made.attr.rdev, 0x0010_0203);
        }
        is(share.fs.mknod(&ROOT, dir.nodeid, c"n", kind, 0, &new), libc::EEXIST);
        share.fs.unlink(&ROOT, dir.nodeid, c"n").unwrap();
    }
    is(share.fs.mknod(&ROOT, dir.nodeid, c"n", libc::S_IFDIR, 0, &new), libc::EINVAL);
    is(share.fs.rmdir(&ROOT, ROOT_ID, c"d"), libc::ENOTEMPTY);
    is(share.fs.unlink(&ROOT, ROOT_ID, c"d"), libc::EISDIR);
    share.fs.unlink(&ROOT, dir.nodeid, c"l").unwrap();
    share.fs.rmdir(&ROOT, ROOT_ID, c"d").unwrap();
    is(share.fs.mkdir(&ROOT, dir.nodeid, c"late", 0o777, &new), libc::ENOENT);
}

/// Open-file-description locks: the guest's kernel tells neither that they are such nor that they end.
#[test]
fn a_lock_ends_with_the_open_file_that_it_was_got_by() {
    let share = Share::with(config(), init::POSIX_LOCKS);
    let (entry, open) = share.create(&ROOT, c"f", libc::O_RDWR, 0o600).unwrap();
    let other = share.open(entry.nodeid, libc::O_RDWR).unwrap();
    let lock = |fh, owner| {
        let lk = FileLock { start: 0, end: 9, kind: libc::F_WRLCK as u32, pid: 1 };
        share.fs.setlk(&ROOT, entry.nodeid, &LkIn { fh, owner, lk, ..LkIn::default() })
    };
    assert_eq!(lock(open.fh, 5), Ok(()));
    is(lock(other, 6), libc::EAGAIN);
    share.release(open.fh);
    assert_eq!(lock(other, 6), Ok(()));
}

#[test]
fn an_append_only_file_is_not_cached_for_writing() {
    let share = Share::within(on_disk(), Config { writeback: true, ..config() }, init::WRITEBACK_CACHE);
    std::fs::write(share.path("f"), "old,").unwrap();
    let file = std::fs::File::open(share.path("f")).unwrap();
    let append_only = |on| {
        use rustix::fs::IFlags;
        let flags = rustix::fs::ioctl_getflags(&file)?;
        rustix::fs::ioctl_setflags(&file, if on { flags | IFlags::APPEND } else { flags - IFlags::APPEND })
    };
    if let Err(error) = append_only(true) {
        return eprintln!("skipped: no append-only files: {error}");
    }
    let flags = (libc::O_WRONLY | libc::O_APPEND) as u32;
    let open = share.fs.open(&ROOT, share.node("f"), flags, false);
    let written = open.and_then(|open| Ok((open, share.write_with(open.fh, 4, b"new", 0, libc::O_APPEND)?)));
    append_only(false).unwrap();
    let (open, count) = written.unwrap();
    assert_eq!((open.open_flags & (fopen::DIRECT_IO | fopen::KEEP_CACHE), count), (fopen::DIRECT_IO, 3));
    assert_eq!(std::fs::read(share.path("f")).unwrap(), b"old,new");
}
