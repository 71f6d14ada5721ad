//! A file system on this host: /dev/fuse and its threads.

use std::ffi::CString;
use std::io;
use std::os::fd::{AsFd, AsRawFd, IntoRawFd, RawFd};
use std::path::PathBuf;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use pyo3::exceptions::{PyRuntimeError, PyValueError};
use pyo3::prelude::*;
use pyo3::types::PyDict;
use virtiofs_coherence::Table;
use virtiofs_device::fusedev::{self, Config, Connection as Native};
use virtiofs_device::{Backlog, News, Tell};
use virtiofs_fuse::Limits;

use crate::engine::{Engine, Served};
use crate::errors::of_errno;
use crate::fd;
use crate::server::counters;
use crate::versions::VersionTable;

/// Mounts /dev/fuse at a directory and answers its descriptor, which is the caller's to close.
#[pyfunction]
pub(crate) fn fuse_mount(
    py: Python<'_>,
    target: PathBuf,
    source: &str,
    subtype: &str,
    flags: u32,
    options: &str,
) -> PyResult<RawFd> {
    let mounted = py.detach(|| fusedev::mount(&target, source, subtype, flags, options));
    Ok(mounted.map_err(|error| of_io(py, &error))?.into_raw_fd())
}

/// Has what was changed in memory written to what is mounted at a directory, and waits until that has been served.
#[pyfunction]
pub(crate) fn fuse_save(py: Python<'_>, target: PathBuf) -> PyResult<()> {
    py.detach(|| fusedev::save(&target)).map_err(|error| of_io(py, &error))
}

/// Unmounts a directory; with `detach` even while it is in use.
#[pyfunction]
#[pyo3(signature = (target, *, detach))]
pub(crate) fn fuse_unmount(py: Python<'_>, target: PathBuf, detach: bool) -> PyResult<()> {
    py.detach(|| fusedev::unmount(&target, detach)).map_err(|error| of_io(py, &error))
}

/// The OSError with its errno, by which Python tells EBUSY from the rest.
fn of_io(py: Python<'_>, error: &io::Error) -> PyErr {
    of_errno(py, error.raw_os_error().unwrap_or(libc::EINVAL))
}

/// A file system that is opened, and then served to the kernel.
#[pyclass(frozen, module = "virtiofs._core")]
pub(crate) struct Connection {
    served: Served,
    config: Config,
    follow: Option<Arc<Table>>,
    native: OnceLock<Native>,
    /// The process that has its threads.
    process: u32,
}

impl Connection {
    /// The connection, in the process that serves it. A fork has the object but not the threads, which it would wait for in vain.
    fn native(&self) -> PyResult<&Native> {
        if self.process != std::process::id() {
            return Err(PyRuntimeError::new_err("the mount is served by the process that this one was forked from"));
        }
        self.native.get().ok_or_else(|| PyRuntimeError::new_err("the mount is not served yet"))
    }

    fn tell(&self, py: Python<'_>, news: News) -> PyResult<()> {
        let native = self.native()?;
        py.detach(|| native.notifier().tell(news)).map_err(|Backlog| of_errno(py, libc::EAGAIN))
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        if self.process != std::process::id() {
            return std::mem::forget(self.native.take());
        }
        let (native, served) = (&mut self.native, &self.served);
        served.end_after(|| drop(native.take()));
    }
}

#[pymethods]
impl Connection {
    #[new]
    #[pyo3(signature = (fs, *, threads, slow_threads, max_write, want, follow=None))]
    fn new(
        py: Python<'_>,
        fs: Engine,
        threads: usize,
        slow_threads: usize,
        max_write: u32,
        want: u64,
        follow: Option<PyRef<'_, VersionTable>>,
    ) -> PyResult<Connection> {
        let follow = follow.map(|versions| Arc::clone(&versions.table));
        let config = Config { threads, slow_threads, max_write: max_write as usize };
        let limits = Limits { want, max_write, ..Limits::default() };
        let served = fs.open(py, limits)?;
        Ok(Connection { served, config, follow, native: OnceLock::new(), process: std::process::id() })
    }

    /// Starts to serve the kernel at the other end of `fd`, once.
    fn serve(&self, py: Python<'_>, fd: RawFd) -> PyResult<()> {
        let fd = fd::duplicate(fd)?;
        let changes = self.follow.as_ref().map(Table::changes);
        let native = py.detach(|| Native::start(Arc::clone(&self.served.server), fd, self.config, changes))?;
        self.native.set(native).map_err(|_| PyRuntimeError::new_err("the mount is served already"))
    }

    /// Waits up to `timeout` seconds for the kernel's agreement, and answers whether there is one.
    fn wait_begun(&self, py: Python<'_>, timeout: f64) -> PyResult<bool> {
        let native = self.native()?;
        let timeout = Duration::try_from_secs_f64(timeout).map_err(|error| PyValueError::new_err(error.to_string()))?;
        Ok(py.detach(|| native.wait_begun(timeout))?)
    }

    /// Answers what is in flight, fails what comes after, and joins all threads. May be called again.
    fn stop(&self) -> PyResult<()> {
        let native = self.native()?;
        self.served.end_after(|| native.stop());
        Ok(())
    }

    /// A descriptor that becomes readable when the mount is served no more.
    fn fileno(&self) -> PyResult<RawFd> {
        Ok(self.native()?.as_fd().as_raw_fd())
    }

    /// The descriptors of /dev/fuse that a fork must close.
    fn descriptors(&self) -> PyResult<Vec<RawFd>> {
        Ok(self.native()?.descriptors().to_vec())
    }

    /// Requests that handlers are at, the oldest first: operation, node id, seconds.
    fn in_flight(&self) -> Vec<(&'static str, u64, f64)> {
        self.served.in_flight()
    }

    /// The counters, by name.
    fn stats<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        let native = self.native()?;
        let all = counters(py, native.server())?;
        all.set_item("connections", 1)?;
        all.set_item("connected", !native.is_over())?;
        Ok(all)
    }

    /// The kernel forgets a node's attributes and its data from `offset` on (none with a negative one), `length` bytes or all.
    #[pyo3(signature = (node, offset = 0, length = 0))]
    fn inval_inode(&self, py: Python<'_>, node: u64, offset: i64, length: i64) -> PyResult<()> {
        self.tell(py, News::Inode { node, offset, len: length })
    }

    /// The kernel forgets what a name in a directory means.
    fn inval_entry(&self, py: Python<'_>, parent: u64, name: &[u8]) -> PyResult<()> {
        let name = CString::new(name)?;
        self.tell(py, News::Entry { parent, name })
    }

    /// The kernel takes a name as removed.
    fn inval_deleted(&self, py: Python<'_>, parent: u64, child: u64, name: &[u8]) -> PyResult<()> {
        let name = CString::new(name)?;
        self.tell(py, News::Delete { parent, child, name })
    }

    /// The kernel asks for each name anew when it is used next.
    fn inval_names(&self, py: Python<'_>) -> PyResult<()> {
        self.tell(py, News::Epoch)
    }

    /// Waits until the kernel was told everything, and answers how much of it ever it refused.
    fn flush_notifications(&self, py: Python<'_>) -> PyResult<u64> {
        let notifier = self.native()?.notifier();
        py.detach(|| notifier.flush());
        Ok(notifier.refused())
    }
}

/// A descriptor that this process has until it dies or the object does. A fork of the process has not got it.
#[pyclass(frozen, module = "virtiofs._core")]
pub(crate) struct Tether {
    _native: fusedev::Tether,
}

#[pymethods]
impl Tether {
    /// Takes a duplicate of `fd`.
    #[new]
    fn new(py: Python<'_>, fd: RawFd) -> PyResult<Tether> {
        let fd = fd::duplicate(fd)?;
        Ok(Tether { _native: py.detach(|| fusedev::Tether::new(fd)).map_err(|error| of_io(py, &error))? })
    }
}
