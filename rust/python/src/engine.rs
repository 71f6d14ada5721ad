//! What a server is started with: a native file system, or one whose operations are routed to Python in part or as a whole.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use virtiofs_coherence::Table;
use virtiofs_fuse::op::{OPCODES, OPERATIONS};
use virtiofs_fuse::{FileSystem, Lane, Limits, Opcode, Route, Routes, Server};
use virtiofs_hostdir::{Backings, Bounds};

use crate::backlog::Backlog;
use crate::handlers::{Base, Defaults, Handlers, Method};
use crate::kept::Kept;
use crate::lane::{Lanes, Moments};
use crate::nodes::Nodes;
use crate::objects::Keepers;
use crate::opened::Opened;
use crate::passthrough::{HostDir, timeout};
use crate::versions::VersionTable;

/// Either.
#[derive(FromPyObject)]
pub(crate) enum Engine {
    Native(Py<HostDir>),
    Routed(Py<Routed>),
}

/// A file system that serves one guest after the other.
pub(crate) struct Served {
    pub(crate) server: Arc<Server>,
    pub(crate) lanes: Option<Arc<Lanes>>,
}

impl Served {
    /// Requests that handlers are at, the oldest first: operation, node id, seconds.
    pub(crate) fn in_flight(&self) -> Vec<(&'static str, u64, f64)> {
        let flights = self.lanes.as_ref().map(|lanes| lanes.in_flight()).unwrap_or_default();
        flights.into_iter().map(|(operation, node, age)| (operation, node, age.as_secs_f64())).collect()
    }

    /// Ends a transport by `stop` and then the lanes, which have little time for what is in flight. Waits without the interpreter, which
    /// handlers need. May be called again.
    pub(crate) fn end_after(&self, stop: impl FnOnce() + Send) {
        let end = || {
            if let Some(lanes) = &self.lanes {
                lanes.hurry();
            }
            stop();
            if let Some(lanes) = &self.lanes {
                lanes.end();
            }
        };
        let mut end = Some(end);
        // None where the interpreter is going away, and with it the handlers.
        Python::try_attach(|py| py.detach(|| end.take().map(|end| end())));
        if let Some(end) = end {
            end();
        }
    }
}

impl Engine {
    /// A server for one transport, with lanes that run if it has any.
    pub(crate) fn open(&self, py: Python<'_>, limits: Limits) -> PyResult<Served> {
        match self {
            Engine::Native(fs) => {
                let fs = fs.bind(py).get();
                let server = py.detach(|| Ok::<_, PyErr>(Server::new(fs.open()?, limits)))?;
                Ok(Served { server: Arc::new(server), lanes: None })
            }
            Engine::Routed(routed) => routed.bind(py).get().open(py, limits),
        }
    }
}

/// Routes and handlers, as `virtiofs.plan` makes them of a class.
#[pyclass(frozen, module = "virtiofs._core")]
pub(crate) struct Routed {
    name: String,
    native: Option<Py<HostDir>>,
    root: Py<PyAny>,
    routes: Routes,
    handlers: HashMap<String, (Py<PyAny>, bool)>,
    lanes: usize,
    deadlines: [Option<Duration>; OPCODES],
    read_only: bool,
    defaults: Defaults,
    versions: Option<Arc<Table>>,
    /// What a guest may have at most: see `Bounds`.
    most_nodes: usize,
    most_handles: usize,
    /// Methods of the file system: see `Keepers`.
    keepers: [Py<PyAny>; 4],
}

#[pymethods]
impl Routed {
    /// `routes` has, by operation, 0 for those of handlers and an errno for those that there are not; `handlers` what is called, and
    /// whether what that returns is to be awaited.
    #[new]
    #[pyo3(signature = (name, *, native, root, routes, handlers, lanes, deadlines, read_only, attr_timeout, entry_timeout,
                        negative_timeout, open_flags, dir_open_flags, most_nodes, most_handles, keepers, versions=None))]
    #[allow(clippy::too_many_arguments)]
    fn new(
        name: String,
        native: Option<Py<HostDir>>,
        root: Py<PyAny>,
        routes: HashMap<String, i32>,
        handlers: HashMap<String, (Py<PyAny>, bool)>,
        lanes: usize,
        deadlines: HashMap<String, f64>,
        read_only: bool,
        attr_timeout: f64,
        entry_timeout: f64,
        negative_timeout: f64,
        open_flags: u32,
        dir_open_flags: u32,
        most_nodes: usize,
        most_handles: usize,
        keepers: [Py<PyAny>; 4],
        versions: Option<PyRef<'_, VersionTable>>,
    ) -> PyResult<Routed> {
        let mut table = [Route::Here; OPCODES];
        for (operation, route) in routes {
            for opcode in opcodes(&operation)? {
                table[opcode as usize] = if route == 0 { Route::Lane } else { Route::Errno(route) };
            }
        }
        let mut times = [None; OPCODES];
        for (operation, seconds) in deadlines {
            for opcode in opcodes(&operation)? {
                times[opcode as usize] = Some(timeout(seconds)?);
            }
        }
        let defaults = Defaults {
            entry_ttl: timeout(entry_timeout)?,
            attr_ttl: timeout(attr_timeout)?,
            negative_ttl: timeout(negative_timeout)?,
            open_flags,
            dir_open_flags,
        };
        let versions = versions.map(|versions| Arc::clone(&versions.table));
        Ok(Routed {
            name,
            native,
            root,
            routes: table,
            handlers,
            lanes,
            deadlines: times,
            read_only,
            defaults,
            versions,
            most_nodes,
            most_handles,
            keepers,
        })
    }
}

impl Routed {
    fn open(&self, py: Python<'_>, limits: Limits) -> PyResult<Served> {
        let mut methods = [const { None }; OPCODES];
        let mut moments = Moments::default();
        for (operation, (callable, awaits)) in &self.handlers {
            let method = Some(Method { callable: callable.clone_ref(py), awaits: *awaits });
            match operation.as_str() {
                "init" => moments.begin = method,
                "destroy" => moments.end = method,
                // The last of its numbers is the one that stands for all.
                operation => {
                    let number = opcodes(operation)?.into_iter().last();
                    if let Some(slot) = number.and_then(|opcode| methods.get_mut(opcode as usize)) {
                        *slot = method;
                    }
                }
            }
        }
        let awaits = self.handlers.values().any(|(_, awaits)| *awaits);
        let backlog = Arc::new(Backlog::new(if awaits { self.lanes } else { 0 })?);
        let opened = Arc::new(Opened::default());
        let bounds = Arc::new(Bounds::new(self.most_handles, self.most_nodes));
        let (base, fs): (Base, Arc<dyn FileSystem>) = match &self.native {
            Some(native) => {
                let native = py.detach({
                    let native = native.bind(py).get();
                    || native.open()
                })?;
                (Base::Host(Arc::clone(&native)), native)
            }
            None => {
                let keeps_gone = self.handlers.contains_key("forget");
                let kept = Arc::new(Kept {
                    nodes: Nodes::new(self.root.clone_ref(py), keeps_gone, self.versions.clone(), Arc::clone(&bounds)),
                    opened: Arc::clone(&opened),
                    backings: Backings::default(),
                    read_only: self.read_only,
                    open_flags: self.defaults.open_flags,
                    dir_open_flags: self.defaults.dir_open_flags,
                });
                (Base::Own(Arc::clone(&kept)), kept)
            }
        };
        let [save_node, restore_node, save_handle, restore_handle] =
            self.keepers.each_ref().map(|one| one.clone_ref(py));
        let handlers = Handlers {
            class: self.name.clone(),
            methods,
            base,
            opened,
            defaults: self.defaults,
            backlog,
            keepers: Keepers { save_node, restore_node, save_handle, restore_handle },
            bounds,
        };
        let lanes = Arc::new(Lanes::new(handlers, moments, self.deadlines));
        let server = Server::new(fs, limits).routed(self.routes, Some(Arc::clone(&lanes) as Arc<dyn Lane>));
        let served = Served { server: Arc::new(server), lanes: Some(Arc::clone(&lanes)) };
        if let Err(error) = lanes.start(self.lanes, awaits) {
            served.end_after(|| ());
            return Err(error.into());
        }
        Ok(served)
    }
}

/// The wire's numbers of an operation as it is called in Python.
fn opcodes(operation: &str) -> PyResult<Vec<Opcode>> {
    let found: Vec<_> = match operation {
        "rename" => vec![Opcode::Rename, Opcode::Rename2],
        "copy_file_range" => vec![Opcode::CopyFileRange, Opcode::CopyFileRange64],
        name => OPERATIONS.iter().filter(|row| row.name.eq_ignore_ascii_case(name)).map(|row| row.opcode).collect(),
    };
    if found.is_empty() {
        return Err(PyValueError::new_err(format!("there is no operation {operation:?}")));
    }
    Ok(found)
}
