// UNSAFETY: Python names descriptors by number; there is no safe way from a number to a descriptor.
#![allow(unsafe_code)]
//! Descriptors that Python hands over.

use std::io;
use std::os::fd::{BorrowedFd, OwnedFd, RawFd};

/// A descriptor of our own for what `number` names. The one that Python has stays Python's.
pub(crate) fn duplicate(number: RawFd) -> io::Result<OwnedFd> {
    if number < 0 {
        return Err(io::Error::from_raw_os_error(libc::EBADF));
    }
    // The borrow lasts for one fcntl(F_DUPFD_CLOEXEC), which answers EBADF for a number that is not open and touches nothing else. Were
    // the number closed and taken anew meanwhile by another thread, the duplicate would name the new file, as for any C caller.
    // SAFETY: a borrowed descriptor must not be -1, which was checked, and nobody loses one that is closed during the borrow: see above.
    unsafe { BorrowedFd::borrow_raw(number) }.try_clone_to_owned()
}
