//! The device as a part of a VMM that is written in Python.

use std::os::fd::{AsRawFd, RawFd};
use std::sync::Arc;

use parking_lot::Mutex;
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyDict};
use virtiofs_device as device;
use virtiofs_device::{Call, DeviceError, Identity, LocalWindow, QueueSetup, Threads};
use virtiofs_fuse::Limits;
use virtiofs_virtqueue::Event;

use crate::calls::Subscription;
use crate::engine::{Engine, Served};
use crate::memory::GuestMemory;
use crate::versions::VersionTable;
use crate::workers::Workers;
use crate::{errors, fd, saved};

/// A virtio-fs device. Python's `Device` says what is what; here is what it runs on.
#[pyclass(frozen, module = "virtiofs._core")]
pub(crate) struct Device {
    native: Option<Arc<device::Device>>,
    served: Served,
    /// Of the queues that are set up now.
    calls: Mutex<Vec<Subscription>>,
    process: u32,
}

/// A queue as Python hands it over: size, addresses, position, kick, and what interrupts the driver.
type Queue = (u16, u64, u64, u64, u16, Option<RawFd>, Option<Interrupt>);

/// The version table as shared memory: size, address in this process, descriptor, and where the guest sees it.
type TableRegion = (u64, usize, RawFd, Option<u64>);
/// What a queue of a saved device is given anew: kick, and what interrupts the driver.
type Wires = (Option<RawFd>, Option<Interrupt>);

/// Where a queue stands: index, size, addresses, position.
type Standing = (usize, u16, u64, u64, u64, u16);

/// What is to happen when the driver is to be interrupted.
#[derive(FromPyObject)]
pub(crate) enum Interrupt {
    Fd(RawFd),
    Function(Py<PyAny>),
}

impl Interrupt {
    /// The way there, and what keeps it open.
    pub(crate) fn open(self) -> PyResult<(Call, Option<Subscription>)> {
        Ok(match self {
            Interrupt::Fd(number) => (Call::from(Event::from_fd(fd::duplicate(number)?)?), None),
            Interrupt::Function(function) => {
                let subscription = Subscription::new(function)?;
                (Call::Event(Arc::clone(&subscription.event)), Some(subscription))
            }
        })
    }
}

/// Refusals of the device, by whose fault they are.
pub(crate) fn refused(py: Python<'_>, error: DeviceError) -> PyErr {
    let text = error.to_string();
    match error {
        DeviceError::State { .. } => errors::named(py, "StateError", text),
        _ => PyValueError::new_err(text),
    }
}

impl Device {
    /// The device, in the process that made it: a fork has neither its threads nor its guest.
    pub(crate) fn native(&self, py: Python<'_>) -> PyResult<&Arc<device::Device>> {
        match &self.native {
            Some(native) if self.process == std::process::id() => Ok(native),
            _ => Err(errors::named(
                py,
                "StateError",
                "the device belongs to the process that this one was forked from".into(),
            )),
        }
    }

    fn run(
        &self,
        py: Python<'_>,
        work: impl FnOnce(&device::Device) -> Result<(), DeviceError> + Send,
    ) -> PyResult<()> {
        let native = self.native(py)?;
        py.detach(|| work(native)).map_err(|error| refused(py, error))
    }

    fn forget_calls(&self, py: Python<'_>) {
        let calls = std::mem::take(&mut *self.calls.lock());
        // A function that is being called wants the interpreter to return.
        py.detach(|| drop(calls));
    }
}

impl Drop for Device {
    fn drop(&mut self) {
        let (native, calls) = (self.native.take(), std::mem::take(self.calls.get_mut()));
        if self.process != std::process::id() {
            std::mem::forget((native, calls));
            return;
        }
        // Registers before the device may outlive it here.
        self.served.end_after(|| {
            if let Some(native) = &native {
                native.close();
            }
            drop((native, calls));
        });
    }
}

#[pymethods]
impl Device {
    #[new]
    #[pyo3(signature = (fs, memory, *, tag, request_queues, slow_threads, workers, want, window, follow=None))]
    #[allow(clippy::too_many_arguments)]
    fn new(
        py: Python<'_>,
        fs: Engine,
        memory: &GuestMemory,
        tag: &str,
        request_queues: u16,
        slow_threads: usize,
        workers: Option<&Workers>,
        want: u64,
        window: Option<(u64, usize)>,
        follow: Option<PyRef<'_, VersionTable>>,
    ) -> PyResult<Device> {
        let threads = match workers {
            Some(workers) => Threads::Shared(workers.native(py)?),
            None => Threads::Own { slow: slow_threads },
        };
        let identity = Identity::new(tag, request_queues).map_err(|error| PyValueError::new_err(error.to_string()))?;
        let window = window.map(|(size, mappings)| LocalWindow::new(size, mappings)).transpose()?;
        let notices = follow.map(|versions| versions.notices()).transpose()?;
        let served = fs.open(py, Limits { want, ..Limits::default() })?;
        let (server, guest) = (Arc::clone(&served.server), Arc::clone(&memory.shared));
        let native = device::Device::new(identity, server, guest, threads);
        let native = match window {
            Some(window) => native.with_window(window),
            None => native,
        };
        let native = Arc::new(match notices {
            Some(notices) => native.with_notices(notices),
            None => native,
        });
        memory.used_by(&native);
        Ok(Device { native: Some(native), served, calls: Mutex::default(), process: std::process::id() })
    }

    /// `ready`, `running`, `paused` or `closed`.
    #[getter]
    fn state(&self, py: Python<'_>) -> PyResult<String> {
        Ok(self.native(py)?.state().to_string())
    }

    /// Feature bits that are offered.
    #[getter]
    fn features(&self, py: Python<'_>) -> PyResult<u64> {
        Ok(self.native(py)?.features())
    }

    /// Feature bits that the driver accepted.
    #[getter]
    fn accepted(&self, py: Python<'_>) -> PyResult<u64> {
        let native = self.native(py)?;
        Ok(py.detach(|| native.accepted()))
    }

    /// Bytes of the configuration space; zeros behind its end.
    fn read_config<'py>(&self, py: Python<'py>, offset: usize, size: usize) -> PyResult<Bound<'py, PyBytes>> {
        let space = self.native(py)?.identity().config_space();
        PyBytes::new_with(py, size, |out| {
            out.iter_mut().zip(space.get(offset..).unwrap_or_default()).for_each(|(to, from)| *to = *from);
            Ok(())
        })
    }

    /// Starts to serve.
    fn start(&self, py: Python<'_>, features: u64, queues: Vec<Queue>) -> PyResult<()> {
        let native = self.native(py)?;
        let (mut setups, mut calls) = (Vec::new(), Vec::new());
        for (index, (size, desc, avail, used, next, kick, call)) in queues.into_iter().enumerate() {
            let kick = kick.map(|kick| Event::from_fd(fd::duplicate(kick)?)).transpose()?.map(Arc::new);
            let (call, subscription) = call.map(Interrupt::open).transpose()?.unzip();
            calls.extend(subscription.flatten());
            setups.push(QueueSetup { index, size, desc, avail, used, next, kick, call });
        }
        match py.detach(|| native.start(features, setups)) {
            Ok(()) => {
                // Those of an earlier start, if the device was reset by somebody else.
                self.forget_calls(py);
                *self.calls.lock() = calls;
                Ok(())
            }
            Err(error) => {
                py.detach(|| drop(calls));
                Err(refused(py, error))
            }
        }
    }

    /// The driver has put something into a queue.
    fn notify(&self, py: Python<'_>, index: usize) -> PyResult<()> {
        // Nothing waits here.
        self.native(py)?.notify(index).map_err(|error| refused(py, error))
    }

    /// Stops all queues where they are.
    fn pause(&self, py: Python<'_>) -> PyResult<()> {
        self.run(py, device::Device::pause)
    }

    /// Goes on.
    fn resume(&self, py: Python<'_>) -> PyResult<()> {
        self.run(py, device::Device::resume)
    }

    /// The paused device as bytes.
    fn save<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyBytes>> {
        let native = self.native(py)?;
        let bytes = py.detach(|| native.save()).map_err(|error| saved::refused(py, error))?;
        Ok(PyBytes::new(py, &bytes))
    }

    /// Goes on from such bytes, paused at first, with a kick and an interrupt for each queue.
    fn restore(&self, py: Python<'_>, saved: &[u8], wires: Vec<Wires>, may_lose: bool) -> PyResult<saved::Restored> {
        let native = self.native(py)?;
        let (mut theirs, mut calls) = (Vec::new(), Vec::new());
        for (kick, call) in wires {
            let kick = kick.map(|kick| Event::from_fd(fd::duplicate(kick)?)).transpose()?.map(Arc::new);
            let (call, subscription) = call.map(Interrupt::open).transpose()?.unzip();
            calls.extend(subscription.flatten());
            theirs.push((kick, call));
        }
        let result = py.detach(|| native.restore(saved, theirs, may_lose));
        if result.is_ok() {
            self.forget_calls(py);
            *self.calls.lock() = calls;
        } else {
            py.detach(|| drop(calls));
        }
        saved::restored(py, result)
    }

    /// Forgets the driver and its session.
    fn reset(&self, py: Python<'_>) -> PyResult<()> {
        self.run(py, device::Device::reset)?;
        self.forget_calls(py);
        Ok(())
    }

    /// Ends the device. May be called again, and does nothing in a fork.
    fn close(&self, py: Python<'_>) {
        if let Ok(native) = self.native(py) {
            self.served.end_after(|| native.close());
            self.forget_calls(py);
        }
    }

    /// Where each queue stands: index, size, addresses, position of the next request.
    fn queues(&self, py: Python<'_>) -> PyResult<Vec<Standing>> {
        let native = self.native(py)?;
        let queues = py.detach(|| native.queues());
        Ok(queues.iter().map(|q| (q.index, q.size, q.desc, q.avail, q.used, q.next)).collect())
    }

    /// Size and host address of the DAX window, and where the guest sees it.
    #[getter]
    fn window(&self, py: Python<'_>) -> PyResult<Option<(u64, usize, Option<u64>)>> {
        let native = self.native(py)?;
        Ok(py.detach(|| native.window().map(|window| (window.size(), window.host_address(), window.place()))))
    }

    /// The guest sees the window at this address from now on, or nowhere.
    fn place_window(&self, py: Python<'_>, address: Option<u64>) -> PyResult<()> {
        let native = self.native(py)?;
        py.detach(|| native.place_window(address)).map_err(|error| PyValueError::new_err(error.to_string()))
    }

    /// Size and host address of the version table, its descriptor, and where the guest sees it.
    #[getter]
    fn version_table(&self, py: Python<'_>) -> PyResult<Option<TableRegion>> {
        let native = self.native(py)?;
        Ok(native.notices().map(|notices| {
            let (view, table) = (notices.view(), notices.table());
            (view.size(), view.address(), table.fd().as_raw_fd(), native.table_place())
        }))
    }

    /// The guest sees the version table at this address from now on, or nowhere.
    fn place_table(&self, py: Python<'_>, address: Option<u64>) -> PyResult<()> {
        self.native(py)?.place_table(address);
        Ok(())
    }

    /// Whether zeros were put where an access of this process got SIGBUS.
    fn handle_sigbus(&self, py: Python<'_>, address: usize) -> PyResult<bool> {
        Ok(self.native(py)?.window().is_some_and(|window| window.handle_sigbus(address)))
    }

    /// Whether an access of the guest that failed is to be tried again.
    fn handle_efault(&self, py: Python<'_>, address: u64) -> PyResult<bool> {
        let native = self.native(py)?;
        Ok(py.detach(|| native.window().is_some_and(|window| window.handle_efault(address))))
    }

    /// Requests that handlers are at, the oldest first: operation, node id, seconds.
    fn in_flight(&self) -> Vec<(&'static str, u64, f64)> {
        self.served.in_flight()
    }

    /// The counters, by name.
    fn stats<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        let native = self.native(py)?;
        let all = crate::server::counters(py, native.server())?;
        all.set_item("state", native.state().to_string())?;
        let (mappings, zeroed) = native.window().map_or((0, 0), |window| (window.window().len(), window.healed()));
        all.set_item("mappings", mappings)?;
        all.set_item("zeroed", zeroed)?;
        Ok(all)
    }
}
