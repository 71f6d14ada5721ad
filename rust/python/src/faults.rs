//! From what a handler raised to what the guest gets.

use pyo3::exceptions::{
    PyBlockingIOError, PyBrokenPipeError, PyFileExistsError, PyFileNotFoundError, PyIsADirectoryError,
    PyNotADirectoryError, PyNotImplementedError, PyOSError, PyPermissionError, PyTimeoutError,
};
use pyo3::prelude::*;
use virtiofs_fuse::Error;

/// The errno of an exception, or `None` if it has none and somebody should be told.
pub(crate) fn errno(py: Python<'_>, error: &PyErr) -> Option<i32> {
    if error.is_instance_of::<PyNotImplementedError>(py) {
        // ENOSYS would switch the operation off for the whole mount.
        return Some(libc::EOPNOTSUPP);
    }
    if !error.is_instance_of::<PyOSError>(py) {
        return None;
    }
    let given = error.value(py).getattr(pyo3::intern!(py, "errno")).and_then(|errno| errno.extract::<Option<i32>>());
    match given {
        Ok(Some(errno)) if errno > 0 => Some(errno),
        _ => by_class(py, error),
    }
}

/// `raise FileNotFoundError(name)` sets no errno, and leaves no doubt.
fn by_class(py: Python<'_>, error: &PyErr) -> Option<i32> {
    macro_rules! first {
        ($($class:ty => $errno:expr),*) => {
            $(if error.is_instance_of::<$class>(py) { return Some($errno); })*
        };
    }
    first!(
        PyFileNotFoundError => libc::ENOENT,
        PyFileExistsError => libc::EEXIST,
        PyPermissionError => libc::EACCES,
        PyNotADirectoryError => libc::ENOTDIR,
        PyIsADirectoryError => libc::EISDIR,
        PyBlockingIOError => libc::EAGAIN,
        PyBrokenPipeError => libc::EPIPE,
        PyTimeoutError => libc::ETIMEDOUT
    );
    None
}

/// What the guest gets for what the handler called `name` raised. Where that is no answer but a fault, `virtiofs.faults` tells of it.
pub(crate) fn answer(py: Python<'_>, name: &str, error: PyErr) -> Error {
    if let Some(errno) = errno(py, &error) {
        return Error::Errno(errno);
    }
    let told = py
        .import(pyo3::intern!(py, "virtiofs.faults"))
        // With its traceback.
        .and_then(|faults| faults.call_method1(pyo3::intern!(py, "report"), (name, error.into_value(py))));
    if let Err(error) = told {
        error.write_unraisable(py, None);
    }
    Error::Errno(libc::EIO)
}
