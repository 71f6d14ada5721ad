//! Saved devices, between Rust and Python.

use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use virtiofs_device::mmio::device_of;
use virtiofs_device::{RestoreError, Shape};
use virtiofs_fuse::{Lost, Thing};

use crate::errors;

/// What is lost: kind, node, path in the share, errno.
pub(crate) type LostThing = (&'static str, u64, Vec<u8>, i32);

/// Whether the device goes on, and what is lost.
pub(crate) type Restored = (bool, Vec<LostThing>);

/// Tag, request queues and bytes of the DAX window of a device that was saved, or of the one behind saved registers.
#[pyfunction]
pub(crate) fn saved_shape(saved: &[u8], registers: bool) -> PyResult<(String, u16, u64)> {
    let device = if registers { device_of(saved) } else { Ok(saved) };
    let shape = device.and_then(Shape::of).map_err(|error| PyValueError::new_err(error.to_string()))?;
    Ok((shape.tag, shape.request_queues, shape.window))
}

/// That the device does not go on since too much is lost is for Python to say.
pub(crate) fn restored(py: Python<'_>, result: Result<Vec<Lost>, RestoreError>) -> PyResult<Restored> {
    match result {
        Ok(lost) => Ok((true, lost.into_iter().map(thing).collect())),
        Err(RestoreError::Lost(lost)) => Ok((false, lost.into_iter().map(thing).collect())),
        Err(error) => Err(refused(py, error)),
    }
}

/// A refusal as an exception.
pub(crate) fn refused(py: Python<'_>, error: RestoreError) -> PyErr {
    match error {
        RestoreError::Device(error) => crate::device::refused(py, error),
        RestoreError::Unusable(_) | RestoreError::Lost(_) => errors::named(py, "ConfigError", error.to_string()),
    }
}

fn thing(lost: Lost) -> LostThing {
    let what = match lost.what {
        Thing::Node => "node",
        Thing::File => "file",
        Thing::Directory => "directory",
        Thing::Lock => "lock",
        Thing::Mapping => "mapping",
    };
    (what, lost.node, lost.path, lost.error.to_wire())
}
