//! Host errors as the guest gets them.

use rustix::io::Errno;
use virtiofs_fuse::{Error, Result};

/// Turns a host result into an answer.
pub(crate) trait Lift<T> {
    fn lift(self) -> Result<T>;
}

impl<T> Lift<T> for rustix::io::Result<T> {
    fn lift(self) -> Result<T> {
        self.map_err(answer)
    }
}

/// The guest's caller has no share in the daemon's descriptor table: EMFILE would send it looking at its own limits.
pub(crate) fn answer(errno: Errno) -> Error {
    match errno {
        Errno::MFILE => Error::Errno(libc::ENFILE),
        errno => Error::Errno(errno.raw_os_error()),
    }
}

pub(crate) const fn errno<T>(errno: i32) -> Result<T> {
    Err(Error::Errno(errno))
}

/// No node, or one that was forgotten: the guest looks the name up again.
pub(crate) const STALE: Error = Error::Errno(libc::ESTALE);
/// No such handle.
pub(crate) const BAD_HANDLE: Error = Error::Errno(libc::EBADF);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn our_own_limits_are_the_systems_to_the_guest() {
        assert_eq!(answer(Errno::MFILE), Error::Errno(libc::ENFILE));
        assert_eq!(answer(Errno::NOENT), Error::Errno(libc::ENOENT));
    }
}
