//! A lane whose handlers are awaited: what the event loop of `virtiofs.lane` sees of it.

use std::sync::Arc;

use parking_lot::Mutex;
use pyo3::prelude::*;
use virtiofs_fuse::{Opcode, Scratch};

use super::Lanes;
use crate::flight::Flight;

/// One lane as its event loop sees it.
#[pyclass(frozen, module = "virtiofs._core", name = "Lane")]
pub(crate) struct EventLoop {
    lanes: Arc<Lanes>,
    index: usize,
    scratch: Mutex<Scratch>,
}

impl EventLoop {
    pub(super) fn new(lanes: Arc<Lanes>, index: usize) -> EventLoop {
        EventLoop { lanes, index, scratch: Mutex::default() }
    }

    fn scratch(&self) -> Scratch {
        std::mem::take(&mut *self.scratch.lock())
    }
}

#[pymethods]
impl EventLoop {
    /// What becomes readable when there is work.
    fn fileno(&self) -> PyResult<i32> {
        let bell = self.lanes.backlog.bell(self.index);
        bell.ok_or_else(|| pyo3::exceptions::PyValueError::new_err("this lane has no event loop"))
    }

    /// Begins what waits; `spawn` makes a task of a coroutine. False once there is nothing more to come.
    fn drain(this: &Bound<'_, Self>, spawn: &Bound<'_, PyAny>) -> bool {
        let lane = this.get();
        lane.lanes.backlog.silence(lane.index);
        let mut scratch = lane.scratch();
        let owned = this.clone().unbind();
        let eventual = Eventual { spawn, lane: &owned };
        while let Some(next) = lane.lanes.backlog.pop() {
            lane.lanes.perform(this.py(), next, &mut scratch, Some(&eventual));
        }
        *lane.scratch.lock() = scratch;
        !lane.lanes.backlog.is_closed()
    }
}

/// How coroutines become tasks.
pub(super) struct Eventual<'a, 'py> {
    pub(super) spawn: &'a Bound<'py, PyAny>,
    lane: &'a Py<EventLoop>,
}

impl Eventual<'_, '_> {
    pub(super) fn begin(
        &self,
        py: Python<'_>,
        coroutine: Py<PyAny>,
        flight: &Arc<Flight>,
        opcode: Opcode,
    ) -> PyResult<()> {
        let task = self.spawn.call1((coroutine,))?;
        let done = Py::new(py, Done { lane: self.lane.clone_ref(py), flight: Arc::clone(flight), opcode })?;
        *flight.task.lock() = Some(task.clone().unbind());
        if task.call_method0(pyo3::intern!(py, "done"))?.is_truthy()? {
            return done.bind(py).get().__call__(py, &task);
        }
        task.call_method1(pyo3::intern!(py, "add_done_callback"), (done,)).map(drop)
    }
}

/// Called when a task is done.
#[pyclass(frozen, module = "virtiofs._core")]
struct Done {
    lane: Py<EventLoop>,
    flight: Arc<Flight>,
    opcode: Opcode,
}

#[pymethods]
impl Done {
    fn __call__(&self, py: Python<'_>, task: &Bound<'_, PyAny>) -> PyResult<()> {
        let result = task.call_method0(pyo3::intern!(py, "result")).map(Bound::unbind);
        let lane = self.lane.bind(py).get();
        *self.flight.task.lock() = None;
        let mut scratch = lane.scratch();
        lane.lanes.finish(&self.flight, self.opcode, result, None, &mut scratch);
        *lane.scratch.lock() = scratch;
        Ok(())
    }
}
