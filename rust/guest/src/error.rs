//! What can go wrong between a guest and the device it drives.

use std::io;
use std::time::Duration;

/// The result of a call of this crate.
pub type Result<T> = std::result::Result<T, Error>;

/// Why a call failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The server answered this errno.
    #[error("{}", io::Error::from_raw_os_error(*.0))]
    Errno(i32),
    /// The device, or the server behind it, broke the protocol: says how.
    #[error("protocol broken: {0}")]
    Protocol(String),
    /// No answer came in time: what was waited for, and how long.
    #[error("no answer to {what} within {after:?}")]
    Timeout {
        /// What was waited for.
        what: String,
        /// How long.
        after: Duration,
    },
    /// A system call of our own failed, or the process behind the device went away (`ConnectionReset`).
    #[error("{0}")]
    Io(#[from] io::Error),
}

impl Error {
    /// The errno that the server answered, if that is what happened.
    pub fn errno(&self) -> Option<i32> {
        match self {
            Error::Errno(errno) => Some(*errno),
            _ => None,
        }
    }

    pub(crate) fn gone(what: &str) -> Error {
        Error::Io(io::Error::new(io::ErrorKind::ConnectionReset, format!("the device went away during {what}")))
    }
}

impl From<rustix::io::Errno> for Error {
    fn from(errno: rustix::io::Errno) -> Error {
        Error::Io(errno.into())
    }
}
