// UNSAFETY: fcntl(2) with locks of open file descriptions, for which rustix has no call.
#![allow(unsafe_code)]
//! One removal of names at a time in each directory.
//!
//! Who removes a name wants to say which inode lost it, and can only look before: between the look and the change the name must
//! stay what it is. Threads of one daemon take a mutex, several daemons also a lock on a byte of the table's file, which the
//! kernel gives back however a daemon ends.

use std::os::fd::{AsRawFd, BorrowedFd};

use parking_lot::{Mutex, MutexGuard};
use rustix::io::Errno;

const STRIPES: usize = 64;

/// The locks of one table.
#[derive(Debug)]
pub(crate) struct NameLocks(Box<[Mutex<()>]>);

/// While it lives, no other daemon or thread removes names from the same directories.
#[derive(Debug)]
pub struct NamesLock<'a> {
    _first: Stripe<'a>,
    _second: Option<Stripe<'a>>,
}

#[derive(Debug)]
struct Stripe<'a> {
    /// Unlocked in the order of declaration: the byte while no other thread can have it.
    _byte: Option<Byte<'a>>,
    _mutex: MutexGuard<'a, ()>,
}

#[derive(Debug)]
struct Byte<'a> {
    fd: BorrowedFd<'a>,
    at: i64,
}

impl NameLocks {
    pub(crate) fn new() -> NameLocks {
        NameLocks((0..STRIPES).map(|_| Mutex::new(())).collect())
    }

    /// Locks the directories of two slots, which may be the same, in one order for all; with other daemons by way of `file`.
    pub(crate) fn lock<'a>(&'a self, slots: [u64; 2], file: Option<BorrowedFd<'a>>) -> NamesLock<'a> {
        let [one, two] = slots.map(|slot| slot as usize % STRIPES);
        let stripe = |at: usize| {
            let _mutex = self.0[at].lock();
            Stripe { _byte: file.and_then(|fd| Byte::lock(fd, at as i64)), _mutex }
        };
        NamesLock { _first: stripe(one.min(two)), _second: (one != two).then(|| stripe(one.max(two))) }
    }
}

impl<'a> Byte<'a> {
    /// `None` where the host has no such locks; then daemons of one table may mistake which inode lost a name that two of them
    /// removed at once.
    fn lock(fd: BorrowedFd<'a>, at: i64) -> Option<Byte<'a>> {
        loop {
            match set(fd, libc::F_OFD_SETLKW, libc::F_WRLCK, at) {
                Ok(()) => return Some(Byte { fd, at }),
                Err(Errno::INTR) => {}
                Err(_) => return None,
            }
        }
    }
}

impl Drop for Byte<'_> {
    fn drop(&mut self) {
        // Giving back what is held cannot fail but for want of memory, when closing the file does it.
        let _ = set(self.fd, libc::F_OFD_SETLK, libc::F_UNLCK, self.at);
    }
}

fn set(fd: BorrowedFd<'_>, command: i32, kind: i32, at: i64) -> rustix::io::Result<()> {
    let lock = libc::flock {
        l_type: kind as i16,
        l_whence: libc::SEEK_SET as i16,
        l_start: at,
        l_len: 1,
        // Must be 0 for locks of open file descriptions (fcntl_locking(2)).
        l_pid: 0,
    };
    // SAFETY: the command takes a pointer to a `struct flock`, which lives over the call and is not kept.
    let result = unsafe { libc::fcntl(fd.as_raw_fd(), command, &raw const lock) };
    match result {
        0 => Ok(()),
        _ => Err(Errno::from_io_error(&std::io::Error::last_os_error()).unwrap_or(Errno::IO)),
    }
}
