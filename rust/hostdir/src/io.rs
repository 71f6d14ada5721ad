//! READ, WRITE, FLUSH, FSYNC, FALLOCATE, LSEEK, COPY_FILE_RANGE: the data of open files.
//!
//! READ is preadv2(2) into the request's own memory. On a queue's thread it asks for RWF_NOWAIT first, so that only data in the page
//! cache are read there. WRITE runs inline: page cache writes with RWF_NOWAIT are refused whenever a time stamp must be
//! written (xfs) or at all (ext4), so that asking would cost a call and a thread change for most writes.

use std::os::fd::{AsFd, BorrowedFd};
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::fs::{FallocateFlags, OFlags, SeekFrom};
use rustix::io::Errno;
use virtiofs_fuse::wire::{CopyFileRangeIn, FallocateIn, FlushIn, ReadIn, WriteIn, bits};
use virtiofs_fuse::{Context, Error, Result, Segments};

use crate::HostDir;
use crate::bounds::Counted;
use crate::error::{Lift, answer, errno};
use crate::handles::FileHandle;
use crate::sys::{self, Piece};

/// No device asks for a coarser alignment of O_DIRECT than its logical block, and none has a smaller one.
const DIRECT_UNIT: usize = 512;

impl HostDir {
    pub(crate) fn op_read(&self, cx: &Context, node: u64, args: &ReadIn, out: Segments<'_>) -> Result<usize> {
        let handle = self.file(node, args.fh)?;
        self.asked(&handle.inode);
        read(handle.fd(), handle.direct, &handle.no_nowait, cx, args.offset, out)
    }

    pub(crate) fn op_write(&self, node: u64, args: &WriteIn, data: Segments<'_>) -> Result<usize> {
        let handle = self.file_to_write(node, args.fh)?;
        let _change = self.changing(&handle.inode);
        let from_cache = args.write_flags & bits::WRITE_CACHE != 0;
        let fd = if from_cache && handle.direct { self.buffered(&handle)? } else { handle.fd() };
        self.drop_capability(&handle.inode)?;
        let _guard =
            if args.write_flags & bits::WRITE_KILL_SUIDGID != 0 { self.losing_suid(&handle.inode)? } else { None };
        // The guest's offset for an append is its idea of the size; the host knows whether another guest appended meanwhile.
        let appends = args.flags as i32 & libc::O_APPEND != 0 && !from_cache && !self.writeback();
        let mut flags = if appends { libc::RWF_APPEND } else { 0 };
        if self.no_open() {
            // The descriptor is everybody's, so it has none of one opener's flags.
            flags |= match args.flags as i32 & libc::O_SYNC {
                libc::O_SYNC => libc::RWF_SYNC,
                libc::O_DSYNC => libc::RWF_DSYNC,
                _ => 0,
            };
        }
        write(fd, flags, args.offset, data)
    }

    /// A descriptor of the same file that goes through the page cache. Pages that the guest writes back must: they may be unaligned at the
    /// file's end, and data written past the host's page cache would be lost to whoever maps the file there.
    fn buffered<'a>(&self, handle: &'a FileHandle) -> Result<BorrowedFd<'a>> {
        if let Some(fd) = handle.buffered.get() {
            return Ok(fd.as_fd());
        }
        self.bounds.room()?;
        let fd = Counted::new(self.proc.reopen(handle.inode.fd()?, OFlags::WRONLY)?, &self.bounds);
        Ok(handle.buffered.get_or_init(|| fd).as_fd())
    }

    /// Closes a duplicate of the descriptor if it may write: network file systems write back and report errors then; local ones do
    /// nothing. What only reads has nothing to report.
    pub(crate) fn op_flush(&self, args: &FlushIn) -> Result<()> {
        let handle = self.files.get(args.fh)?;
        self.drop_posix_locks(&handle.inode, args);
        if !handle.writes {
            return Ok(());
        }
        flush(handle.fd())
    }

    pub(crate) fn op_fsync(&self, node: u64, fh: u64, datasync: bool) -> Result<()> {
        fsync(self.file(node, fh)?.fd(), datasync)
    }

    pub(crate) fn op_fsyncdir(&self, node: u64, fh: u64, datasync: bool) -> Result<()> {
        fsync(self.directory(node, fh)?.fd(), datasync)
    }

    pub(crate) fn op_fallocate(&self, cx: &Context, node: u64, args: &FallocateIn) -> Result<()> {
        let handle = self.file_to_write(node, args.fh)?;
        let _change = self.changing(&handle.inode);
        let _guard = if is_privileged(cx) { None } else { self.losing_suid(&handle.inode)? };
        self.drop_capability(&handle.inode)?;
        fallocate(handle.fd(), args)
    }

    pub(crate) fn op_lseek(&self, node: u64, fh: u64, offset: u64, whence: u32) -> Result<u64> {
        lseek(self.file(node, fh)?.fd(), offset, whence)
    }

    pub(crate) fn op_copy_file_range(&self, cx: &Context, node: u64, args: &CopyFileRangeIn) -> Result<u64> {
        let (from, to) = (self.file(node, args.fh_in)?, self.file_to_write(args.nodeid_out, args.fh_out)?);
        let _change = self.changing(&to.inode);
        self.drop_capability(&to.inode)?;
        let _guard = if is_privileged(cx) { None } else { self.losing_suid(&to.inode)? };
        copy_file_range(from.fd(), to.fd(), args)
    }
}

/// Whether the caller is taken to have CAP_FSETID, which keeps suid and sgid through a change. WRITE, SETATTR and OPEN tell;
/// FALLOCATE and COPY_FILE_RANGE do not, and leave clearing to the server all the same (`fuse_setattr`, `fs/fuse/dir.c`). Who allows idmapped
/// mounts is not told who asks (`fuse_fill_creds`, `fs/fuse/dev.c`): that could be anybody.
fn is_privileged(cx: &Context) -> bool {
    cx.uid == 0
}

/// Reads until the end of the file or of the room: to the guest, less means end of file and may shrink its idea of the size.
pub(crate) fn read(
    fd: BorrowedFd<'_>,
    direct: bool,
    no_nowait: &AtomicBool,
    cx: &Context,
    offset: u64,
    out: Segments<'_>,
) -> Result<usize> {
    let mut nowait = !cx.may_block && !no_nowait.load(Ordering::Relaxed);
    let mut done = 0;
    while let Some(piece) = Piece::at(out, done) {
        let flags = if nowait { libc::RWF_NOWAIT } else { 0 };
        match sys::preadv2(fd, &piece, offset.wrapping_add(done as u64), flags) {
            Ok(0) => break,
            Ok(count) => done += count,
            Err(Errno::INTR) => continue,
            Err(Errno::AGAIN) if nowait => return Err(Error::WouldBlock),
            Err(Errno::OPNOTSUPP) if nowait => {
                no_nowait.store(true, Ordering::Relaxed);
                nowait = false;
            }
            // Whatever came before the error: a short answer would say that the file ends there.
            Err(error) => return Err(answer(error)),
        }
        if direct && done % DIRECT_UNIT != 0 {
            // Without the page cache only the end of the file is off the grid, and no call may start there.
            break;
        }
    }
    Ok(done)
}

/// Writes all of `data`, or as much as there is room for.
pub(crate) fn write(fd: BorrowedFd<'_>, flags: i32, offset: u64, data: Segments<'_>) -> Result<usize> {
    let mut done = 0;
    while let Some(piece) = Piece::at(data, done) {
        match sys::pwritev2(fd, &piece, offset.wrapping_add(done as u64), flags) {
            Ok(0) => break,
            Ok(count) => done += count,
            Err(Errno::INTR) => continue,
            // The disk filled up on the way: what was written counts, and the next write gets the error.
            Err(_) if done > 0 => break,
            Err(error) => return Err(answer(error)),
        }
    }
    Ok(done)
}

/// Lets the file system of `fd` report what it has to at a close.
pub(crate) fn flush(fd: BorrowedFd<'_>) -> Result<()> {
    let duplicate = rustix::io::fcntl_dupfd_cloexec(fd, 0).lift()?;
    match sys::close(duplicate) {
        // The descriptor is gone in any case (man 2 close), and nothing was left unsaid.
        Err(Errno::INTR) => Ok(()),
        result => result.lift(),
    }
}

pub(crate) fn fallocate(fd: BorrowedFd<'_>, args: &FallocateIn) -> Result<()> {
    let mode = FallocateFlags::from_bits_retain(args.mode);
    rustix::io::retry_on_intr(|| rustix::fs::fallocate(fd, mode, args.offset, args.length)).lift()
}

pub(crate) fn lseek(fd: BorrowedFd<'_>, offset: u64, whence: u32) -> Result<u64> {
    let Ok(start) = i64::try_from(offset) else { return errno(libc::ENXIO) };
    let position = match whence as i32 {
        libc::SEEK_DATA => SeekFrom::Data(start as u64),
        libc::SEEK_HOLE => SeekFrom::Hole(start as u64),
        _ => return errno(libc::EINVAL),
    };
    rustix::fs::seek(fd, position).lift()
}

pub(crate) fn copy_file_range(from: BorrowedFd<'_>, to: BorrowedFd<'_>, args: &CopyFileRangeIn) -> Result<u64> {
    if args.flags != 0 {
        return errno(libc::EINVAL);
    }
    let (mut off_in, mut off_out) = (args.off_in, args.off_out);
    let len = usize::try_from(args.len).unwrap_or(usize::MAX);
    let copied =
        rustix::io::retry_on_intr(|| rustix::fs::copy_file_range(from, Some(&mut off_in), to, Some(&mut off_out), len));
    copied.map(|count| count as u64).lift()
}

pub(crate) fn fsync(fd: BorrowedFd<'_>, datasync: bool) -> Result<()> {
    rustix::io::retry_on_intr(|| if datasync { rustix::fs::fdatasync(fd) } else { rustix::fs::fsync(fd) }).lift()
}
