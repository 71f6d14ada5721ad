//! Registers before a device, for a VMM that only forwards its guest's accesses.

use std::os::fd::{AsFd, AsRawFd, RawFd};
use std::sync::Arc;

use parking_lot::Mutex;
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use pyo3::types::PyBytes;
use virtiofs_device as device;

use crate::calls::Subscription;
use crate::device::{Device, Interrupt};
use crate::saved;

/// Registers before a device.
#[pyclass(frozen, subclass, module = "virtiofs._core")]
pub(crate) struct Mmio {
    native: Arc<device::mmio::Mmio>,
    calls: Mutex<Option<Subscription>>,
}

impl Mmio {
    pub(crate) fn native(&self) -> &Arc<device::mmio::Mmio> {
        &self.native
    }

    fn forget_call(&self, py: Python<'_>) {
        let call = self.calls.lock().take();
        py.detach(|| drop(call));
    }
}

impl Drop for Mmio {
    fn drop(&mut self) {
        let call = self.calls.get_mut().take();
        if call.is_some() {
            Python::attach(|py| py.detach(|| drop(call)));
        }
    }
}

#[pymethods]
impl Mmio {
    #[new]
    #[pyo3(signature = (device, interrupt))]
    fn new(py: Python<'_>, device: &Device, interrupt: Option<Interrupt>) -> PyResult<Mmio> {
        let native = device::mmio::Mmio::new(Arc::clone(device.native(py)?))?;
        let (call, subscription) = interrupt.map(Interrupt::open).transpose()?.unzip();
        native.set_line(call);
        Ok(Mmio { native: Arc::new(native), calls: Mutex::new(subscription.flatten()) })
    }

    /// Returns what the guest reads: `size` bytes at `offset` of the registers, in the guest's byte order.
    fn read<'py>(&self, py: Python<'py>, offset: u64, size: usize) -> PyResult<Bound<'py, PyBytes>> {
        if size > 8 {
            return Err(PyValueError::new_err(format!("an access has 8 bytes at the most, not {size}")));
        }
        // The registers may be in the hands of somebody who waits for requests in flight.
        let word = py.detach(|| {
            let mut word = [0; 8];
            self.native.read(offset, word.get_mut(..size).unwrap_or_default());
            word
        });
        Ok(PyBytes::new(py, word.get(..size).unwrap_or_default()))
    }

    /// Takes what the guest writes at `offset`. Returns when it has taken effect: a reset waits for the requests in flight.
    fn write(&self, py: Python<'_>, offset: u64, data: &[u8]) {
        if offset == device::mmio::register::QUEUE_NOTIFY {
            return self.native.write(offset, data);
        }
        py.detach(|| self.native.write(offset, data));
    }

    /// The causes of interrupts that the driver has not acknowledged: 1 a used buffer, 2 a change of the configuration. Not 0 is an
    /// interrupt that is pending.
    #[getter]
    fn interrupt_status(&self) -> u32 {
        self.native.interrupt_status()
    }

    /// Returns the eventfd by which queue `index` is kicked: to write it is what a write of `index` to QueueNotify is, for KVM_IOEVENTFD. It
    /// stays ours, and the same one over resets.
    fn kick_fd(&self, index: usize) -> PyResult<RawFd> {
        let kick = self.native.kick(index).ok_or_else(|| {
            let queues = self.native.device().identity().most_queues();
            PyValueError::new_err(format!("queue {index} is none of this device, which has {queues}"))
        })?;
        Ok(kick.as_fd().as_raw_fd())
    }

    /// The registers and the paused device behind them as bytes.
    fn save<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyBytes>> {
        let bytes = py.detach(|| self.native.save()).map_err(|error| saved::refused(py, error))?;
        Ok(PyBytes::new(py, &bytes))
    }

    /// Goes on from such bytes; the device is paused then.
    #[pyo3(name = "_resume")]
    fn resume_from(&self, py: Python<'_>, saved: &[u8], may_lose: bool) -> PyResult<saved::Restored> {
        let result = py.detach(|| self.native.restore(saved, may_lose));
        saved::restored(py, result)
    }

    /// Interrupts nobody any more. The device stays as it is.
    fn close(&self, py: Python<'_>) {
        self.native.set_line(None);
        self.forget_call(py);
    }
}
