// UNSAFETY: memory that Python names by its address, and a buffer of ours that Python gets: both are raw pointers in CPython's API.
#![allow(unsafe_code)]
//! Guest memory of a VMM that is written in Python.

use std::ffi::c_int;
use std::fs::File;
use std::os::fd::RawFd;
use std::ptr;
use std::sync::{Arc, Weak};

use parking_lot::Mutex;
use pyo3::buffer::PyBuffer;
use pyo3::exceptions::{PyBufferError, PyValueError};
use pyo3::ffi;
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyMemoryView};
use virtiofs_device::Device;
use virtiofs_virtqueue::{Keep, Memory, MemoryError, Piece, Region, SharedMemory};

use crate::{errors, fd};

/// The memory of a guest: regions by guest physical address, for any number of devices.
///
/// With `track_dirty` it notes which pages the devices write. Regions may come and go while devices run; rings and requests in flight
/// must not lie in a region that goes. All numbers are in bytes.
#[pyclass(frozen, module = "virtiofs")]
pub(crate) struct GuestMemory {
    pub(crate) shared: Arc<SharedMemory>,
    /// Changes one after the other, and the devices that are to hear of them.
    devices: Mutex<Vec<Weak<Device>>>,
}

impl GuestMemory {
    /// `device` uses this memory from now on.
    pub(crate) fn used_by(&self, device: &Arc<Device>) {
        let mut devices = self.devices.lock();
        devices.retain(|device| device.strong_count() > 0);
        devices.push(Arc::downgrade(device));
    }

    fn change(
        &self,
        py: Python<'_>,
        change: impl FnOnce(&Memory) -> Result<Memory, MemoryError> + Send,
    ) -> PyResult<()> {
        let changed = py.detach(|| {
            let devices = self.devices.lock();
            self.shared.change(change)?;
            devices.iter().filter_map(Weak::upgrade).for_each(|device| device.refresh());
            Ok(())
        });
        changed.map_err(|error| refused(py, error))
    }
}

fn refused(py: Python<'_>, error: MemoryError) -> PyErr {
    match error {
        MemoryError::Outside { .. } | MemoryError::Unknown { .. } => {
            errors::named(py, "BoundsError", error.to_string())
        }
        error => PyValueError::new_err(error.to_string()),
    }
}

#[pymethods]
impl GuestMemory {
    #[new]
    #[pyo3(signature = (*, track_dirty=false))]
    fn new(track_dirty: bool) -> GuestMemory {
        let shared = SharedMemory::default();
        if track_dirty {
            shared.store(Memory::tracking());
        }
        GuestMemory { shared: Arc::new(shared), devices: Mutex::default() }
    }

    /// Maps `size` bytes of a file (a memfd, say) from `offset` on as the region at the guest address `address`. The descriptor stays
    /// the caller's. Raises ValueError for a region that overlaps another or does not lie in its file.
    #[pyo3(signature = (address, fd, size, offset=0))]
    fn add_fd(&self, py: Python<'_>, address: u64, fd: RawFd, size: u64, offset: u64) -> PyResult<()> {
        let file = File::from(fd::duplicate(fd)?);
        let region = Region { guest_address: address, size, user_address: address, file, offset };
        self.change(py, |memory| memory.with(region))
    }

    /// Takes a writable buffer (an mmap.mmap, say, which begins at a page) as a region, and keeps it until its last use.
    fn add_buffer(&self, py: Python<'_>, address: u64, buffer: &Bound<'_, PyAny>) -> PyResult<()> {
        // The memoryview keeps the buffer where it is, and can be let go by any thread.
        let view = PyMemoryView::from(buffer)?;
        let (host, size) = {
            let exported = PyBuffer::<u8>::get(&view)?;
            if exported.readonly() || !exported.is_c_contiguous() {
                return Err(PyValueError::new_err("guest memory is a buffer that can be written, in one piece"));
            }
            (Address(exported.buf_ptr().cast()), exported.len_bytes() as u64)
        };
        let keep: Keep = Arc::new(view.unbind());
        // SAFETY: `keep` holds an export of the buffer, which must neither move nor go meanwhile (PEP 3118). Python has no
        // references into buffers as Rust has them.
        self.change(py, move |memory| unsafe { memory.with_mapped(address, size, { host }.0, keep) })
    }

    /// Takes memory that is mapped at the address `host` of this process as a region. It must stay mapped until all devices that use this
    /// memory are reset or closed and all views of it are gone, even if the region is removed before; nothing can check that.
    fn add_mapped(&self, py: Python<'_>, address: u64, host: usize, size: u64) -> PyResult<()> {
        let host = Address(ptr::with_exposed_provenance_mut(host));
        // SAFETY: the caller says so in the documented contract of this method, as with ctypes: the bytes are mapped, and stay so until
        // every device that uses this memory is reset or closed and every view is gone.
        self.change(py, move |memory| unsafe { memory.with_mapped(address, size, { host }.0, Arc::new(())) })
    }

    /// Takes the region away that begins at `address` and has `size` bytes. Requests in flight and views keep it mapped as long as they
    /// need it. Raises BoundsError if there is none.
    fn remove(&self, py: Python<'_>, address: u64, size: u64) -> PyResult<()> {
        self.change(py, |memory| memory.without(address, size))
    }

    /// Guest address and size of each region.
    #[getter]
    fn regions(&self) -> Vec<(u64, u64)> {
        self.shared.load().layout()
    }

    /// Returns `size` bytes from `address` on, across regions that are neighbours. Raises BoundsError if one of them is not there.
    fn read<'py>(&self, py: Python<'py>, address: u64, size: usize) -> PyResult<Bound<'py, PyBytes>> {
        let memory = self.shared.load();
        // Before room for them is made.
        memory.check(address, size).map_err(|error| refused(py, error))?;
        PyBytes::new_with(py, size, |out| memory.read(address, out).map_err(|error| refused(py, error)))
    }

    /// Writes `data` at `address`. Raises BoundsError, and writes nothing, if it does not fit.
    fn write(&self, py: Python<'_>, address: u64, data: PyBuffer<u8>) -> PyResult<()> {
        let data = data.to_vec(py)?;
        self.shared.load().write(address, &data).map_err(|error| refused(py, error))
    }

    /// Returns a memoryview of `size` bytes of one region, without a copy. It keeps the region mapped. The guest and its devices may change
    /// the bytes at any time; what is written through it does not count as dirty. Raises BoundsError.
    fn view<'py>(&self, py: Python<'py>, address: u64, size: usize) -> PyResult<Bound<'py, PyMemoryView>> {
        let piece = self.shared.load().piece(address, size).map_err(|error| refused(py, error))?;
        let view = Bound::new(py, View { piece })?;
        PyMemoryView::from(view.as_any())
    }

    /// Returns the little-endian number of 1, 2, 4 or 8 bytes at `address`, read in one access, before all later ones. Raises BoundsError, or
    /// ValueError for another size and for an address that is no multiple of it.
    fn load(&self, py: Python<'_>, address: u64, size: usize) -> PyResult<u64> {
        self.shared.load().load(address, size).map_err(|error| refused(py, error))
    }

    /// Writes a little-endian number of 1, 2, 4 or 8 bytes in one access, after all earlier ones. Raises as `load` does.
    fn store(&self, py: Python<'_>, address: u64, value: u64, size: usize) -> PyResult<()> {
        if size < 8 && value >> (8 * size) != 0 {
            return Err(PyValueError::new_err(format!("{value:#x} does not fit into {size} bytes")));
        }
        self.shared.load().store(address, value, size).map_err(|error| refused(py, error))
    }

    /// Returns guest address and size of each run of pages that were written, by devices or by `write` and `store`, since this was last
    /// asked with `clear`; nothing without `track_dirty`. The whole truth of a moment while all devices are paused.
    #[pyo3(signature = (*, clear=true))]
    fn dirty(&self, clear: bool) -> Vec<(u64, u64)> {
        self.shared.load().dirty(clear)
    }
}

/// An address on its way through a closure.
#[derive(Clone, Copy)]
struct Address(*mut u8);

// SAFETY: a number; what it points to is no thread's own.
unsafe impl Send for Address {}

/// What a memoryview of guest memory holds on to.
#[pyclass(frozen, module = "virtiofs._core")]
struct View {
    piece: Piece,
}

#[pymethods]
impl View {
    // SAFETY: CPython calls it with a `Py_buffer` to fill in, as PEP 3118 says.
    unsafe fn __getbuffer__(slf: Bound<'_, Self>, view: *mut ffi::Py_buffer, flags: c_int) -> PyResult<()> {
        if view.is_null() {
            return Err(PyBufferError::new_err("there is no buffer to fill in"));
        }
        let piece = &slf.get().piece;
        let Ok(len) = ffi::Py_ssize_t::try_from(piece.len()) else {
            return Err(PyBufferError::new_err("the view is too long"));
        };
        // SAFETY: `view` is CPython's to be filled in; the bytes stay mapped while the piece lives, which the reference to `slf` that
        // the buffer takes keeps. PyBuffer_FillInfo sets all fields.
        let result = unsafe { ffi::PyBuffer_FillInfo(view, slf.as_ptr(), piece.as_ptr().cast(), len, 0, flags) };
        if result == 0 { Ok(()) } else { Err(PyErr::fetch(slf.py())) }
    }
}
