// UNSAFETY: system calls for which rustix has no safe call: reads and writes over guest memory (which must never become a Rust
// reference), credentials of a single thread, calls newer than rustix, and two ioctls. Each wrapper is as thin as
// the call; what it takes proves what the kernel needs, and nothing outside of this file is unsafe.
#![allow(unsafe_code)]
//! Raw system calls as safe functions.

use std::ffi::{CStr, c_int, c_long, c_void};
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, IntoRawFd, OwnedFd};

use rustix::fs::{AtFlags, Statx, StatxFlags};
use rustix::io::{Errno, Result};
use virtiofs_fuse::Segments;

/// Calls above 424 have one number on all architectures (`arch/*/kernel/syscalls/syscall*.tbl`).
const SYS_FCHMODAT2: c_long = 452;
const SYS_SETXATTRAT: c_long = 463;
const SYS_GETXATTRAT: c_long = 464;
const SYS_LISTXATTRAT: c_long = 465;
const SYS_REMOVEXATTRAT: c_long = 466;

fn check(result: c_long) -> Result<usize> {
    usize::try_from(result).map_err(|_| last_errno())
}

fn last_errno() -> Errno {
    // SAFETY: __errno_location() is the address of this thread's errno, valid for the thread's life (errno(3)).
    Errno::from_raw_os_error(unsafe { *libc::__errno_location() })
}

/// A part of `Segments` that one system call takes: whole iovecs from `first` on, or the rest of one iovec.
#[derive(Clone, Copy)]
pub(crate) struct Piece<'a> {
    segments: Segments<'a>,
    first: usize,
    count: usize,
    skip: usize,
    /// Bytes in this piece.
    pub(crate) len: usize,
}

impl<'a> Piece<'a> {
    /// The piece that begins `done` bytes into `segments`: all iovecs up to the kernel's limit if that is a border of two, the
    /// rest of the one iovec otherwise. `None` at the end.
    pub(crate) fn at(segments: Segments<'a>, done: usize) -> Option<Piece<'a>> {
        let iovecs = segments.iovecs();
        if done == 0 && iovecs.len() <= libc::UIO_MAXIOV as usize {
            let piece = Piece { segments, first: 0, count: iovecs.len(), skip: 0, len: segments.len() };
            return (piece.len > 0).then_some(piece);
        }
        let (mut first, mut skip) = (0, done);
        while skip >= iovecs.get(first)?.iov_len {
            skip -= iovecs.get(first)?.iov_len;
            first += 1;
        }
        if skip > 0 {
            return Some(Piece { segments, first, count: 1, skip, len: iovecs.get(first)?.iov_len - skip });
        }
        let count = (iovecs.len() - first).min(libc::UIO_MAXIOV as usize);
        let len = iovecs.iter().skip(first).take(count).map(|iovec| iovec.iov_len).sum();
        Some(Piece { segments, first, count, skip: 0, len })
    }

    /// Calls `call` with the address and the count of the iovecs of this piece.
    fn with<R>(&self, call: impl FnOnce(*const libc::iovec, c_int) -> R) -> R {
        let rest = self.segments.iovecs().get(self.first..).unwrap_or(&[]);
        match (self.skip, rest.first()) {
            (0, _) | (_, None) => call(rest.as_ptr(), self.count.min(rest.len()) as c_int),
            (skip, Some(iovec)) => {
                let base = iovec.iov_base.wrapping_byte_add(skip);
                call(&libc::iovec { iov_base: base, iov_len: iovec.iov_len.saturating_sub(skip) }, 1)
            }
        }
    }
}

/// An offset as the kernel takes it. It takes -1 for "where the descriptor stands", which no request means.
fn position(offset: u64) -> Result<i64> {
    i64::try_from(offset).map_err(|_| Errno::INVAL)
}

/// preadv2(2) into guest memory; EINVAL for an offset beyond `i64::MAX`.
pub(crate) fn preadv2(fd: BorrowedFd<'_>, piece: &Piece<'_>, offset: u64, flags: c_int) -> Result<usize> {
    let offset = position(offset)?;
    piece.with(|iovecs, count| {
        // SAFETY: `Segments` promises that its iovecs are mapped and writable for as long as it is borrowed, which `piece` is, and that
        // only the kernel touches what they point to; the array itself is a live slice. A 64-bit kernel takes the offset
        // in one register and shifts the next one out (man 2 preadv2, "C library/kernel differences").
        check(unsafe { libc::syscall(libc::SYS_preadv2, fd.as_raw_fd(), iovecs, count, offset, 0_i64, flags) })
    })
}

/// pwritev2(2) from guest memory.
pub(crate) fn pwritev2(fd: BorrowedFd<'_>, piece: &Piece<'_>, offset: u64, flags: c_int) -> Result<usize> {
    let offset = position(offset)?;
    piece.with(|iovecs, count| {
        // SAFETY: as for `preadv2`; the kernel only reads what the iovecs point to.
        check(unsafe { libc::syscall(libc::SYS_pwritev2, fd.as_raw_fd(), iovecs, count, offset, 0_i64, flags) })
    })
}

/// statx(2) into `out`, which is copied nowhere else: it has 256 bytes, and most requests ask.
#[inline]
pub(crate) fn statx(dir: BorrowedFd<'_>, path: &CStr, flags: AtFlags, mask: StatxFlags, out: &mut Statx) -> Result<()> {
    const { assert!(size_of::<Statx>() == 256, "struct statx of include/uapi/linux/stat.h") };
    let (path, flags, mask) = (path.as_ptr(), flags.bits(), mask.bits());
    let out: *mut Statx = out;
    // SAFETY: `path` ends with NUL, and `out` is exclusively ours and has the layout of the kernel's struct, all of whose fields are numbers.
    check(unsafe { libc::syscall(libc::SYS_statx, dir.as_raw_fd(), path, flags, mask, out) }).map(drop)
}

/// What statx(2) has told nothing about yet.
#[inline]
pub(crate) fn no_statx() -> Statx {
    // SAFETY: all fields are numbers, for which zeros are a value.
    unsafe { std::mem::zeroed() }
}

/// getdents64(2): fills `buffer` with `linux_dirent64` records, 0 at the end.
pub(crate) fn getdents64(fd: BorrowedFd<'_>, buffer: &mut [u8]) -> Result<usize> {
    // SAFETY: `buffer` is exclusively ours and the kernel writes at most `buffer.len()` bytes into it.
    check(unsafe { libc::syscall(libc::SYS_getdents64, fd.as_raw_fd(), buffer.as_mut_ptr(), buffer.len()) })
}

/// close(2) with its result, which tells of writes that failed. The descriptor is gone in any case.
pub(crate) fn close(fd: OwnedFd) -> Result<()> {
    // SAFETY: `into_raw_fd` gives the descriptor up to this one close.
    if unsafe { libc::close(fd.into_raw_fd()) } < 0 { Err(last_errno()) } else { Ok(()) }
}

/// setfsuid(2) of this thread; answers the one before. `u32::MAX` only asks.
pub(crate) fn setfsuid(uid: u32) -> u32 {
    // SAFETY: takes a number, touches no memory of ours; the raw call changes this thread alone.
    unsafe { libc::syscall(libc::SYS_setfsuid, uid) as u32 }
}

/// setfsgid(2) of this thread; answers the one before. `u32::MAX` only asks.
pub(crate) fn setfsgid(gid: u32) -> u32 {
    // SAFETY: as for `setfsuid`.
    unsafe { libc::syscall(libc::SYS_setfsgid, gid) as u32 }
}

/// Gives this thread a umask, working directory and root of its own (`unshare(CLONE_FS)`), with the values they have.
pub(crate) fn unshare_fs() -> Result<()> {
    // SAFETY: CLONE_FS splits the fs_struct alone; no memory and no descriptor that Rust knows of is affected (unshare(2)).
    unsafe { rustix::thread::unshare_unsafe(rustix::thread::UnshareFlags::FS) }
}

/// fchmodat2(2) on the descriptor itself, O_PATH included. ENOSYS before Linux 6.6.
pub(crate) fn fchmod_path(fd: BorrowedFd<'_>, mode: u32) -> Result<()> {
    // SAFETY: the path is a NUL-terminated constant; the rest are numbers.
    check(unsafe { libc::syscall(SYS_FCHMODAT2, fd.as_raw_fd(), c"".as_ptr(), mode, libc::AT_EMPTY_PATH) }).map(drop)
}

/// faccessat2(2) with the ids and capabilities that file access goes by, on the descriptor itself, O_PATH included (Linux 5.8).
pub(crate) fn access(fd: BorrowedFd<'_>, mask: u32) -> Result<()> {
    const FLAGS: c_int = libc::AT_EMPTY_PATH | libc::AT_EACCESS;
    // SAFETY: the path is a NUL-terminated constant; the rest are numbers.
    check(unsafe { libc::syscall(libc::SYS_faccessat2, fd.as_raw_fd(), c"".as_ptr(), mask, FLAGS) }).map(drop)
}

/// `struct xattr_args` of `include/uapi/linux/xattr.h`.
#[repr(C)]
struct XattrArgs {
    value: u64,
    size: u32,
    flags: u32,
}

/// setxattrat(2), following links at the end of `path`. ENOSYS before Linux 6.13, as the three below.
pub(crate) fn setxattrat(dir: BorrowedFd<'_>, path: &CStr, name: &CStr, value: &[u8], flags: u32) -> Result<()> {
    let args = XattrArgs { value: value.as_ptr() as u64, size: value.len() as u32, flags };
    // SAFETY: both strings end with NUL, `args` is a live `struct xattr_args` of the size given, and it names `value.len()` readable bytes.
    check(unsafe {
        let args: *const XattrArgs = &args;
        libc::syscall(SYS_SETXATTRAT, dir.as_raw_fd(), path.as_ptr(), 0, name.as_ptr(), args, size_of::<XattrArgs>())
    })
    .map(drop)
}

/// getxattrat(2): the value into `out`, or its size alone if `out` is empty.
pub(crate) fn getxattrat(dir: BorrowedFd<'_>, path: &CStr, name: &CStr, out: &mut [u8]) -> Result<usize> {
    let mut args = XattrArgs { value: out.as_mut_ptr() as u64, size: out.len() as u32, flags: 0 };
    // SAFETY: as for `setxattrat`; the kernel writes at most `out.len()` bytes to `out`, which is exclusively ours, none if that is 0.
    check(unsafe {
        let args: *mut XattrArgs = &mut args;
        libc::syscall(SYS_GETXATTRAT, dir.as_raw_fd(), path.as_ptr(), 0, name.as_ptr(), args, size_of::<XattrArgs>())
    })
}

/// listxattrat(2): the names into `out`, or their size alone if `out` is empty.
pub(crate) fn listxattrat(dir: BorrowedFd<'_>, path: &CStr, out: &mut [u8]) -> Result<usize> {
    // SAFETY: `path` ends with NUL; the kernel writes at most `out.len()` bytes to `out`, none if that is 0.
    check(unsafe { libc::syscall(SYS_LISTXATTRAT, dir.as_raw_fd(), path.as_ptr(), 0, out.as_mut_ptr(), out.len()) })
}

/// removexattrat(2).
pub(crate) fn removexattrat(dir: BorrowedFd<'_>, path: &CStr, name: &CStr) -> Result<()> {
    // SAFETY: both strings end with NUL.
    check(unsafe { libc::syscall(SYS_REMOVEXATTRAT, dir.as_raw_fd(), path.as_ptr(), 0, name.as_ptr()) }).map(drop)
}

/// A file handle: `struct file_handle` of open_by_handle_at(2), header included, as words so that it is aligned.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct FileHandle(Box<[u32]>);

impl FileHandle {
    /// As bytes of this machine.
    pub(crate) fn to_bytes(&self) -> Vec<u8> {
        self.0.iter().flat_map(|word| word.to_ne_bytes()).collect()
    }

    /// From such bytes, if they are those of a handle: as many as the header says.
    pub(crate) fn from_bytes(bytes: &[u8]) -> Option<FileHandle> {
        let (words, rest) = bytes.as_chunks();
        let words: Box<[u32]> = words.iter().map(|word| u32::from_ne_bytes(*word)).collect();
        let length = (*words.first()? as usize).div_ceil(4);
        let whole = rest.is_empty() && length <= HANDLE_MAX && words.len() == HANDLE_HEADER + length;
        whole.then_some(FileHandle(words))
    }
}

/// Words of the header: `handle_bytes` and `handle_type`.
const HANDLE_HEADER: usize = 2;
/// `MAX_HANDLE_SZ` in words.
const HANDLE_MAX: usize = 128 / 4;

/// The handle of the inode of `fd`.
pub(crate) fn name_to_handle_at(fd: BorrowedFd<'_>) -> Result<FileHandle> {
    let mut words = [0u32; HANDLE_HEADER + HANDLE_MAX];
    words[0] = (HANDLE_MAX * 4) as u32;
    let mut mount_id: c_int = 0;
    // SAFETY: `words` has the header and as many bytes behind it as the header says, `mount_id` is an int; both are ours
    // until the call returns, and the path is an empty string that ends with NUL.
    check(unsafe {
        let (handle, mount_id): (*mut u32, *mut c_int) = (words.as_mut_ptr(), &mut mount_id);
        libc::syscall(libc::SYS_name_to_handle_at, fd.as_raw_fd(), c"".as_ptr(), handle, mount_id, libc::AT_EMPTY_PATH)
    })?;
    let length = (words[0] as usize).div_ceil(4).min(HANDLE_MAX);
    Ok(FileHandle(words.iter().copied().take(HANDLE_HEADER + length).collect()))
}

/// Opens the inode of a handle; `mount` is any open file on its mount, and not an O_PATH descriptor.
pub(crate) fn open_by_handle_at(mount: BorrowedFd<'_>, handle: &FileHandle, flags: c_int) -> Result<OwnedFd> {
    // SAFETY: the handle is as the kernel gave it, with as many bytes as its header says; the kernel only reads it.
    let fd = check(unsafe {
        libc::syscall(libc::SYS_open_by_handle_at, mount.as_raw_fd(), handle.0.as_ptr(), flags | libc::O_CLOEXEC)
    })?;
    // SAFETY: the kernel just made this descriptor for us; nobody else knows it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as c_int) })
}

/// An ioctl(2) whose argument is a block of at most `buffer.len()` bytes that the kernel reads, writes or both.
pub(crate) fn ioctl(fd: BorrowedFd<'_>, request: BlockIoctl, buffer: &mut [u8; BlockIoctl::ROOM]) -> Result<i32> {
    // SAFETY: every `BlockIoctl` reads and writes at most `BlockIoctl::ROOM` bytes at its argument and keeps no pointer; `buffer` is
    // exclusively ours and has as many.
    let result = unsafe { libc::ioctl(fd.as_raw_fd(), request.number() as _, buffer.as_mut_ptr().cast::<c_void>()) };
    if result < 0 { Err(last_errno()) } else { Ok(result) }
}

/// The ioctls that a guest may have (`include/uapi/linux/fs.h`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum BlockIoctl {
    GetFlags,
    SetFlags,
    GetXattr,
    SetXattr,
}

impl BlockIoctl {
    /// Enough for a long (the encoded size of the flags; the kernel moves an int) and for `struct fsxattr`, 28 bytes.
    pub(crate) const ROOM: usize = 32;

    /// By the request number of the wire.
    pub(crate) fn by_number(number: u32) -> Option<BlockIoctl> {
        [BlockIoctl::GetFlags, BlockIoctl::SetFlags, BlockIoctl::GetXattr, BlockIoctl::SetXattr]
            .into_iter()
            .find(|request| request.number() == number)
    }

    fn number(self) -> u32 {
        match self {
            BlockIoctl::GetFlags => 0x8008_6601,
            BlockIoctl::SetFlags => 0x4008_6602,
            BlockIoctl::GetXattr => 0x801c_581f,
            BlockIoctl::SetXattr => 0x401c_5820,
        }
    }
}
