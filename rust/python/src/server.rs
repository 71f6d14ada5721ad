//! A vhost-user server and its threads.

use std::os::fd::{AsFd, AsRawFd, RawFd};
use std::sync::Arc;
use std::time::Duration;

use pyo3::exceptions::{PyRuntimeError, PyValueError};
use pyo3::prelude::*;
use pyo3::types::PyDict;
use virtiofs_device::Identity;
use virtiofs_device::vhost_user::{Config, Daemon as Native, Source, WindowSettings};
use virtiofs_fuse::{Limits, Server};

use crate::engine::{Engine, Served};
use crate::fd;
use crate::versions::VersionTable;

/// How long a VMM has to answer before it is asked no more. QEMU takes milliseconds, and seconds when its host does.
const PATIENCE: Duration = Duration::from_secs(10);

/// A server: what it serves is open, and `start` makes its threads.
#[pyclass(frozen, module = "virtiofs._core")]
pub(crate) struct Daemon {
    native: Option<Native>,
    served: Served,
    /// The process that has its threads.
    process: u32,
}

impl Daemon {
    /// The server, in the process that runs it. A fork has the object but not the threads, which it would wait for in vain.
    fn native(&self) -> PyResult<&Native> {
        match &self.native {
            Some(native) if self.process == std::process::id() => Ok(native),
            _ => Err(PyRuntimeError::new_err("the server runs in the process that this one was forked from")),
        }
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        if self.process != std::process::id() {
            return std::mem::forget(self.native.take());
        }
        let (native, served) = (&mut self.native, &self.served);
        served.end_after(|| drop(native.take()));
    }
}

#[pymethods]
impl Daemon {
    #[new]
    #[pyo3(signature = (fs, fd, *, tag, request_queues, once, reconnect, may_lose, slow_threads, want, dax_window, dax_barrier, follow=None))]
    #[allow(clippy::too_many_arguments)]
    fn new(
        py: Python<'_>,
        fs: Engine,
        fd: RawFd,
        tag: &str,
        request_queues: u16,
        once: bool,
        reconnect: f64,
        may_lose: bool,
        slow_threads: usize,
        want: u64,
        dax_window: u64,
        dax_barrier: bool,
        follow: Option<PyRef<'_, VersionTable>>,
    ) -> PyResult<Daemon> {
        let identity = Identity::new(tag, request_queues).map_err(|error| PyValueError::new_err(error.to_string()))?;
        let fd = fd::duplicate(fd)?;
        let window = match dax_window {
            0 => None,
            size => {
                virtiofs_dax::check_size(size).map_err(|error| PyValueError::new_err(error.to_string()))?;
                // As many as there are granules: a guest that maps no smaller ranges never finds the window full.
                let mappings = (size / virtiofs_dax::GRANULE) as usize;
                Some(WindowSettings { size, mappings, barrier: dax_barrier, patience: PATIENCE })
            }
        };
        let reconnect =
            Duration::try_from_secs_f64(reconnect).map_err(|error| PyValueError::new_err(error.to_string()))?;
        let config = Config { identity, once, slow_threads, window, reconnect, may_lose };
        let notices = follow.map(|versions| versions.notices()).transpose()?;
        let served = fs.open(py, Limits { want, ..Limits::default() })?;
        let made = py.detach(|| Native::new(Arc::clone(&served.server), Source::from_fd(fd)?, config));
        let made = made.map(|native| match notices {
            Some(notices) => native.with_notices(notices),
            None => native,
        });
        match made {
            Ok(native) => Ok(Daemon { native: Some(native), served, process: std::process::id() }),
            Err(error) => {
                served.end_after(|| ());
                Err(error.into())
            }
        }
    }

    /// Begins to serve. Once; the second call does nothing.
    fn start(&self) -> PyResult<()> {
        Ok(self.native()?.begin()?)
    }

    /// Ends the session of a guest, answers what is in flight, and joins all threads. May be called again.
    fn stop(&self) -> PyResult<()> {
        let native = self.native()?;
        self.served.end_after(|| native.stop());
        Ok(())
    }

    /// A descriptor that becomes readable when the server has ended.
    fn fileno(&self) -> PyResult<RawFd> {
        Ok(self.native()?.as_fd().as_raw_fd())
    }

    /// Requests that handlers are at, the oldest first: operation, node id, seconds.
    fn in_flight(&self) -> Vec<(&'static str, u64, f64)> {
        self.served.in_flight()
    }

    /// The counters, by name.
    fn stats<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        let native = self.native()?;
        let all = counters(py, native.server())?;
        all.set_item("connections", native.stats().connections)?;
        all.set_item("connected", native.stats().connected)?;
        Ok(all)
    }
}

/// The counters of a server, by name.
pub(crate) fn counters<'py>(py: Python<'py>, server: &Server) -> PyResult<Bound<'py, PyDict>> {
    let (metrics, held) = (server.metrics(), server.held());
    let (requests, errors) = (PyDict::new(py), PyDict::new(py));
    for (name, asked, failed) in metrics.operations() {
        requests.set_item(name, asked)?;
        if failed > 0 {
            errors.set_item(name, failed)?;
        }
    }
    let all = PyDict::new(py);
    all.set_item("nodes", held.nodes)?;
    all.set_item("handles", held.handles)?;
    all.set_item("requests", requests)?;
    all.set_item("errors", errors)?;
    all.set_item("malformed", metrics.malformed())?;
    all.set_item("panics", metrics.panics())?;
    Ok(all)
}
