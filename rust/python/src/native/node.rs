//! A node of a host directory as an object of Python's.

use std::hash::{Hash, Hasher};
use std::os::fd::{IntoRawFd, RawFd};
use std::path::PathBuf;
use std::sync::Arc;

use pyo3::prelude::*;
use virtiofs_fuse::{Error, FileSystem, Result};
use virtiofs_hostdir::HostDir;

use super::raise;

/// A node of a host directory. One that an operation answered holds its inode for as long as the object lives; one that a handler was
/// given is held by the guest. Nodes are equal if they are the same inode of the same share, and good as keys.
#[pyclass(frozen, module = "virtiofs")]
pub(crate) struct Node {
    native: Arc<HostDir>,
    pub(super) id: u64,
    held: bool,
}

impl Node {
    /// A node that the guest holds.
    pub(crate) fn of_guest(native: &Arc<HostDir>, id: u64) -> Node {
        Node { native: Arc::clone(native), id, held: false }
    }

    /// A node that was counted for the object.
    pub(super) fn held(native: &Arc<HostDir>, id: u64) -> Node {
        Node { native: Arc::clone(native), id, held: true }
    }

    /// Counts the node once more, for the guest, and answers its id.
    pub(crate) fn hold(&self, native: &Arc<HostDir>) -> Result<u64> {
        if !Arc::ptr_eq(native, &self.native) {
            return Err(Error::Errno(libc::EXDEV));
        }
        self.native.hold(self.id).map(|()| self.id)
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        if self.held {
            self.native.forget(self.id, 1);
        }
    }
}

#[pymethods]
impl Node {
    /// Number of the node: unique among all that one guest has ever seen.
    #[getter]
    pub(crate) fn id(&self) -> u64 {
        self.id
    }

    /// Where the inode is on the host at present; one of its names if it has several. For telling, not for opening: names change.
    #[getter]
    fn path(&self, py: Python<'_>) -> PyResult<PathBuf> {
        py.detach(|| self.native.path(self.id)).map_err(|error| raise(py, error))
    }

    /// Opens an O_PATH descriptor of the inode; close it.
    fn descriptor(&self, py: Python<'_>) -> PyResult<RawFd> {
        let fd = py.detach(|| self.native.descriptor(self.id)).map_err(|error| raise(py, error))?;
        Ok(fd.into_raw_fd())
    }

    fn __eq__(&self, other: &Node) -> bool {
        self.id == other.id && Arc::ptr_eq(&self.native, &other.native)
    }

    fn __hash__(&self) -> u64 {
        let mut hasher = std::hash::DefaultHasher::new();
        (self.id, Arc::as_ptr(&self.native) as usize).hash(&mut hasher);
        hasher.finish()
    }

    fn __repr__(&self) -> String {
        format!("Node({})", self.id)
    }
}
