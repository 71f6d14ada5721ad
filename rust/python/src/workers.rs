//! Threads that devices inside a VMM share.

use std::sync::Arc;

use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use virtiofs_device as device;

use crate::errors;

/// Threads that serve any number of devices, for a process that has many of them with little to do. There is no thread before a device
/// that uses them is started, and none after the last one is reset or closed; `threads` is the most there are for queues, and
/// `slow_threads` the most for requests that wait for a disk.
#[pyclass(frozen, module = "virtiofs")]
pub(crate) struct Workers {
    native: Option<Arc<device::Workers>>,
    process: u32,
}

impl Workers {
    /// The threads, in the process that made them: a fork has none.
    pub(crate) fn native(&self, py: Python<'_>) -> PyResult<Arc<device::Workers>> {
        match &self.native {
            Some(native) if self.process == std::process::id() => Ok(Arc::clone(native)),
            _ => {
                let text = "the workers belong to the process that this one was forked from";
                Err(errors::named(py, "StateError", text.into()))
            }
        }
    }
}

impl Drop for Workers {
    fn drop(&mut self) {
        let native = self.native.take();
        if self.process != std::process::id() {
            // Whoever waits for its threads here waits for ever.
            std::mem::forget(native);
        }
    }
}

#[pymethods]
impl Workers {
    #[new]
    #[pyo3(signature = (threads=1, *, slow_threads=16))]
    fn new(threads: usize, slow_threads: usize) -> PyResult<Workers> {
        if !(1..=1024).contains(&threads) || !(1..=1024).contains(&slow_threads) {
            return Err(PyValueError::new_err(format!("threads are 1 to 1024, not {threads} and {slow_threads}")));
        }
        let native = Arc::new(device::Workers::new(threads, slow_threads));
        Ok(Workers { native: Some(native), process: std::process::id() })
    }

    /// The most threads for queues.
    #[getter]
    fn threads(&self) -> usize {
        self.native.as_ref().map_or(0, |native| native.threads())
    }
}
