//! An open file of the embedded guest.

use parking_lot::Mutex;
use pyo3::buffer::PyBuffer;
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use pyo3::types::PyBytes;
use virtiofs_guest::{self as guest, Result};

use crate::attr::Attr;
use crate::client::bytes;
use crate::detached::Detached;
use crate::errors;

/// A file that a `Guest` has open. Offsets and sizes are in bytes.
#[pyclass(frozen, module = "virtiofs._core")]
pub(crate) struct File {
    native: Detached<Mutex<Option<guest::File>>>,
}

impl File {
    pub(crate) fn of(file: guest::File) -> File {
        File { native: Detached::new(Mutex::new(Some(file))) }
    }

    fn run<T: Send>(&self, py: Python<'_>, work: impl Send + FnOnce(&guest::File) -> Result<T>) -> PyResult<T> {
        let done = py.detach(|| self.native.lock().as_ref().map(work));
        match done {
            Some(result) => result.map_err(|error| errors::of_guest(py, error)),
            None => Err(PyValueError::new_err("the file is closed")),
        }
    }
}

#[pymethods]
impl File {
    /// The server's handle.
    #[getter]
    fn handle(&self, py: Python<'_>) -> PyResult<u64> {
        self.run(py, |native| Ok(native.fh()))
    }

    /// The node id.
    #[getter]
    fn node(&self, py: Python<'_>) -> PyResult<u64> {
        self.run(py, |native| Ok(native.nodeid()))
    }

    /// FOPEN flags of the server's answer.
    #[getter]
    fn open_flags(&self, py: Python<'_>) -> PyResult<u32> {
        self.run(py, |native| Ok(native.open_flags()))
    }

    /// Reads up to `size` bytes at `offset`; less only at the end of the file.
    fn read_at<'py>(&self, py: Python<'py>, offset: u64, size: usize) -> PyResult<Bound<'py, PyBytes>> {
        Ok(bytes(py, &self.run(py, |native| native.read_at(offset, size))?))
    }

    /// Reads the whole file.
    fn read<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyBytes>> {
        Ok(bytes(py, &self.run(py, guest::File::read_to_end)?))
    }

    /// Writes all of `data` at `offset`; with O_APPEND at the end of the file, wherever that is.
    fn write_at(&self, py: Python<'_>, offset: u64, data: PyBuffer<u8>) -> PyResult<()> {
        let data = data.to_vec(py)?;
        self.run(py, |native| native.write_at(offset, &data))
    }

    /// Attributes by the handle: works after the file lost its last name.
    fn stat(&self, py: Python<'_>) -> PyResult<Attr> {
        Ok((&self.run(py, guest::File::stat)?).into())
    }

    /// Sets the size.
    fn truncate(&self, py: Python<'_>, size: u64) -> PyResult<()> {
        self.run(py, |native| native.truncate(size))
    }

    /// Writes the file out to the host's disk.
    #[pyo3(signature = (data_only=false))]
    fn sync(&self, py: Python<'_>, data_only: bool) -> PyResult<()> {
        self.run(py, |native| native.sync(data_only))
    }

    /// Reserves or punches room; `mode` of fallocate(2).
    #[pyo3(signature = (offset, size, mode=0))]
    fn allocate(&self, py: Python<'_>, offset: u64, size: u64, mode: u32) -> PyResult<()> {
        self.run(py, |native| native.allocate(mode, offset, size))
    }

    /// The next data or hole from `offset` on: `whence` is `os.SEEK_DATA` or `os.SEEK_HOLE`.
    fn seek(&self, py: Python<'_>, offset: u64, whence: i32) -> PyResult<u64> {
        self.run(py, |native| native.seek(offset, whence))
    }

    /// Copies on the host, without the data passing through the guest; answers how many bytes were.
    fn copy_to(&self, py: Python<'_>, offset: u64, to: &File, to_offset: u64, size: u64) -> PyResult<u64> {
        if std::ptr::eq(self, to) {
            return self.run(py, |native| native.copy_to(offset, native, to_offset, size));
        }
        let copied = py.detach(|| {
            // In the order of their addresses, so that two copies in opposite directions do not wait for each other.
            let (mine, theirs);
            if std::ptr::from_ref(self) < std::ptr::from_ref(to) {
                mine = self.native.lock();
                theirs = to.native.lock();
            } else {
                theirs = to.native.lock();
                mine = self.native.lock();
            }
            Some(mine.as_ref()?.copy_to(offset, theirs.as_ref()?, to_offset, size))
        });
        match copied {
            Some(result) => result.map_err(|error| errors::of_guest(py, error)),
            None => Err(PyValueError::new_err("the file is closed")),
        }
    }

    /// Closes the file. May be called again.
    fn close(&self, py: Python<'_>) -> PyResult<()> {
        let closed = py.detach(|| self.native.lock().take().map_or(Ok(()), guest::File::close));
        closed.map_err(|error| errors::of_guest(py, error))
    }

    fn __enter__(this: Py<Self>) -> Py<Self> {
        this
    }

    #[pyo3(signature = (*_args))]
    fn __exit__(&self, py: Python<'_>, _args: &Bound<'_, PyAny>) -> PyResult<()> {
        self.close(py)
    }
}
