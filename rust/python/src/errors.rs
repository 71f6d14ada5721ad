//! From the errors of the crates to exceptions.

use std::io::ErrorKind;

use pyo3::exceptions::{PyOSError, PyTimeoutError};
use pyo3::prelude::*;
use virtiofs_guest::Error;

/// An errno becomes the OSError that Python has for it, a broken protocol `virtiofs.ProtocolError`.
pub(crate) fn of_guest(py: Python<'_>, error: Error) -> PyErr {
    match error {
        Error::Errno(errno) => of_errno(py, errno),
        Error::Io(error) => match (error.raw_os_error(), number(error.kind())) {
            (None, Some(errno)) => PyOSError::new_err((errno, error.to_string())),
            _ => error.into(),
        },
        Error::Timeout { .. } => PyTimeoutError::new_err(error.to_string()),
        Error::Protocol(what) => named(py, "ProtocolError", what),
    }
}

/// An exception of `virtiofs.errors`.
pub(crate) fn named(py: Python<'_>, class: &str, what: String) -> PyErr {
    let class = py.import("virtiofs.errors").and_then(|module| module.getattr(class));
    class.and_then(|class| class.call1((what,))).map_or_else(|error| error, PyErr::from_value)
}

/// The errno that an error of our own words stands for.
fn number(kind: ErrorKind) -> Option<i32> {
    Some(match kind {
        ErrorKind::NotFound => libc::ENOENT,
        ErrorKind::PermissionDenied => libc::EACCES,
        ErrorKind::ConnectionRefused => libc::ECONNREFUSED,
        ErrorKind::ConnectionReset => libc::ECONNRESET,
        ErrorKind::InvalidInput => libc::EINVAL,
        _ => return None,
    })
}

/// `OSError(errno, strerror(errno))`, which Python makes a FileNotFoundError and so on.
pub(crate) fn of_errno(py: Python<'_>, errno: i32) -> PyErr {
    let text = py.import("os").and_then(|os| os.call_method1("strerror", (errno,)));
    match text.and_then(|text| text.extract::<String>()) {
        Ok(text) => PyOSError::new_err((errno, text)),
        Err(error) => error,
    }
}
