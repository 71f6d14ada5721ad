// UNSAFETY: fcntl(2) with open-file-description locks has no safe wrapper among our dependencies.
#![allow(unsafe_code)]

//! Locks on an open file of the host.
//!
//! POSIX locks become open-file-description locks (fcntl_locking(2), F_OFD_SETLK), flock(2) stays what it is. Each owner in each guest
//! has a descriptor of its own, so the host's kernel keeps owners apart: among guests, among daemons, and from processes of the
//! host.

use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use rustix::fs::FlockOperation;

use super::ranges::{Mode, Range};

fn flock_of(range: Range, mode: Option<Mode>) -> libc::flock {
    let kind = match mode {
        Some(Mode::Shared) => libc::F_RDLCK,
        Some(Mode::Exclusive) => libc::F_WRLCK,
        None => libc::F_UNLCK,
    };
    libc::flock {
        l_type: kind as libc::c_short,
        l_whence: libc::SEEK_SET as libc::c_short,
        l_start: range.start as libc::off_t,
        // 0 means up to the end, wherever that will be.
        l_len: if range.end >= Range::ALL.end { 0 } else { (range.end - range.start + 1) as libc::off_t },
        l_pid: 0,
    }
}

fn fcntl(fd: &OwnedFd, command: libc::c_int, lock: &mut libc::flock) -> io::Result<()> {
    // SAFETY: `lock` is a struct flock that lives across the call, which is what these commands read and write; the descriptor is
    // open, since we borrow its owner.
    match unsafe { libc::fcntl(fd.as_raw_fd(), command, std::ptr::from_mut(lock)) } {
        -1 => Err(io::Error::last_os_error()),
        _ => Ok(()),
    }
}

/// Sets or clears a byte-range lock without waiting; EAGAIN where another is in the way.
pub(super) fn set_range(fd: &OwnedFd, range: Range, mode: Option<Mode>) -> io::Result<()> {
    fcntl(fd, libc::F_OFD_SETLK, &mut flock_of(range, mode)).map_err(|error| match error.raw_os_error() {
        Some(libc::EACCES) => io::Error::from_raw_os_error(libc::EAGAIN),
        _ => error,
    })
}

/// The lock of somebody else that is in the way of `range` in `mode`.
pub(super) fn blocking_range(fd: &OwnedFd, range: Range, mode: Mode) -> io::Result<Option<(Range, Mode)>> {
    let mut lock = flock_of(range, Some(mode));
    fcntl(fd, libc::F_OFD_GETLK, &mut lock)?;
    let mode = match i32::from(lock.l_type) {
        libc::F_UNLCK => return Ok(None),
        libc::F_RDLCK => Mode::Shared,
        _ => Mode::Exclusive,
    };
    let start = lock.l_start as u64;
    let end = if lock.l_len == 0 { Range::ALL.end } else { start + lock.l_len as u64 - 1 };
    Ok(Some((Range { start, end }, mode)))
}

/// Sets or clears a flock(2) without waiting; EAGAIN where another is in the way.
pub(super) fn set_whole(fd: &OwnedFd, mode: Option<Mode>) -> io::Result<()> {
    let operation = match mode {
        Some(Mode::Shared) => FlockOperation::NonBlockingLockShared,
        Some(Mode::Exclusive) => FlockOperation::NonBlockingLockExclusive,
        None => FlockOperation::NonBlockingUnlock,
    };
    Ok(rustix::fs::flock(fd.as_fd(), operation)?)
}
