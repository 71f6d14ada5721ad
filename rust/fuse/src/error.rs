//! What an operation answers instead of a result.

use std::io;

/// The result of an operation.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Why an operation gives no result.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Error {
    /// The guest's caller gets this errno.
    Errno(i32),
    /// Nothing was done, since it would have had to wait and [`Context::may_block`](crate::Context) was false. The
    /// same request is to be handled again on a thread that may wait.
    WouldBlock,
    /// The device is being stopped, and what the operation needs is not to be had before it goes on. The request counts as not
    /// taken from its ring yet. Only where [`Context::may_block`](crate::Context) is false; elsewhere it is EIO.
    Halted,
    /// Nothing was done, since only the [lane](crate::Lane) may do it.
    Elsewhere,
}

impl Error {
    /// The errno as it may go on the wire: 1..=511, since Linux refuses a reply outside of it.
    ///
    /// ENOSYS becomes EOPNOTSUPP: in an answer, ENOSYS switches an operation off for the whole mount, which no single
    /// failure may do. [`Server`](crate::Server) alone answers ENOSYS, for operations that a file system lacks as a whole.
    ///
    /// EINTR becomes EIO: Linux takes it for the answer to a signal of the caller's own, and lets an errno of its inside out where there was
    /// none (`fuse_setlk` makes it ERESTARTSYS, `fs/fuse/file.c`). Only [`Server::answer`](crate::Server::answer) knows of such a signal.
    pub fn to_wire(self) -> i32 {
        match self {
            Error::WouldBlock | Error::Halted | Error::Elsewhere => libc::EIO,
            Error::Errno(libc::ENOSYS) => libc::EOPNOTSUPP,
            Error::Errno(libc::EINTR) => libc::EIO,
            Error::Errno(errno @ 1..512) => errno,
            Error::Errno(errno) => match errno {
                ENOTSUPP => libc::EOPNOTSUPP,
                ESTALE_HANDLE => libc::ESTALE,
                EJUKEBOX => libc::EAGAIN,
                ETOOSMALL | EBADTYPE => libc::EINVAL,
                _ => libc::EIO,
            },
        }
    }
}

// Errnos of the kernel's inside that some host file systems (NFS first of all) let out: include/linux/errno.h.
const ESTALE_HANDLE: i32 = 521; // EBADHANDLE
const ENOTSUPP: i32 = 524;
const ETOOSMALL: i32 = 525;
const EBADTYPE: i32 = 527;
const EJUKEBOX: i32 = 528;

impl From<io::Error> for Error {
    fn from(error: io::Error) -> Error {
        Error::Errno(error.raw_os_error().unwrap_or(libc::EIO))
    }
}

#[cfg(test)]
mod tests {
    use super::Error;

    #[test]
    fn no_errno_leaves_the_range_that_the_kernel_accepts() {
        for errno in -5000..5000 {
            let wire = Error::Errno(errno).to_wire();
            assert!((1..512).contains(&wire), "{errno} became {wire}");
            assert_ne!(wire, libc::ENOSYS, "{errno} would switch the operation off for the mount");
            assert_ne!(wire, libc::EINTR, "{errno} would be a signal that nobody sent");
        }
        assert_eq!(Error::Errno(libc::ENOENT).to_wire(), libc::ENOENT);
        assert_eq!(Error::Errno(521).to_wire(), libc::ESTALE);
        assert_eq!(Error::Errno(524).to_wire(), libc::EOPNOTSUPP);
    }
}
