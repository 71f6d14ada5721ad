//! The version table, as Python makes it and hands it to shares and guests.

use std::os::fd::AsRawFd;
use std::path::PathBuf;
use std::sync::Arc;

use parking_lot::Mutex;
use pyo3::exceptions::{PyOSError, PyValueError};
use pyo3::prelude::*;
use virtiofs_coherence::protocol::ROOT_SLOT;
use virtiofs_coherence::{DEFAULT_SLOTS, Error, InodeWatcher, Table, View, Watcher};
use virtiofs_device::Notices;

use crate::native::node::Node;
use crate::nodes;

/// Counters in shared memory that move with every change of a file. All shares that are given one table tell of their changes there,
/// and whoever has it sees what changed without asking.
///
/// `slots` is a power of two from 64 to 16,777,216; each takes 8 bytes. Several daemons that name one `directory` share a table: it is
/// made there if there is none. None takes what the directory has, or 65,536.
#[pyclass(frozen, module = "virtiofs._core")]
pub(crate) struct VersionTable {
    pub(crate) table: Arc<Table>,
    watcher: Mutex<Option<Watcher>>,
    inodes: Mutex<Option<Arc<InodeWatcher>>>,
}

fn raised(error: Error) -> PyErr {
    match error {
        Error::Io(error) => error.into(),
        Error::Slots { .. } => PyValueError::new_err(error.to_string()),
        error => PyOSError::new_err((libc::EINVAL, error.to_string())),
    }
}

impl VersionTable {
    /// What watches the inodes that guests ask about, if something does.
    pub(crate) fn inodes(&self) -> Option<Arc<InodeWatcher>> {
        self.inodes.lock().clone()
    }

    /// What tells drivers of changes.
    pub(crate) fn notices(&self) -> PyResult<Arc<Notices>> {
        Notices::new(Arc::clone(&self.table)).map(Arc::new).map_err(raised)
    }

    /// What a guest has of the table.
    pub(crate) fn view(&self) -> PyResult<Arc<View>> {
        View::new(self.table.fd()).map(Arc::new).map_err(raised)
    }
}

#[pymethods]
impl VersionTable {
    #[new]
    #[pyo3(signature = (slots=None, *, directory=None))]
    fn new(slots: Option<u64>, directory: Option<PathBuf>) -> PyResult<VersionTable> {
        let table = match &directory {
            Some(directory) => Table::shared(directory, slots),
            None => Table::anonymous(slots.unwrap_or(DEFAULT_SLOTS)),
        };
        Ok(VersionTable { table: table.map_err(raised)?, watcher: Mutex::new(None), inodes: Mutex::new(None) })
    }

    /// The number of slots.
    #[getter]
    fn slots(&self) -> u64 {
        self.table.slots()
    }

    /// Bytes of the table.
    #[getter]
    fn size(&self) -> usize {
        self.table.size()
    }

    /// The file, or None for a table of this process alone.
    #[getter]
    fn path(&self) -> Option<PathBuf> {
        self.table.path().map(PathBuf::from)
    }

    /// A descriptor of the table that can only be read; it stays open as long as this object lives.
    fn fileno(&self) -> i32 {
        self.table.fd().as_raw_fd()
    }

    /// Says that the inode of these numbers of `os.stat` changed: for who changes files past the share.
    fn changed(&self, device: u64, inode: u64) {
        self.table.bump(self.table.slot(device, inode));
    }

    /// Says that a node of a Python file system changed: its data, its attributes, or a directory's names.
    fn node_changed(&self, node: &Bound<'_, PyAny>) {
        match node.cast::<Node>() {
            Ok(node) => self.table.bump(node.get().id() & (self.table.slots() - 1)),
            Err(_) => nodes::changed(&self.table, node),
        }
    }

    /// Says that the root of a Python file system changed.
    fn root_changed(&self) {
        self.table.bump(ROOT_SLOT);
    }

    /// Also tells of what programs on the host change, on the whole file system that `directory` is on; for as long as this object
    /// lives. Takes CAP_SYS_ADMIN and CAP_DAC_READ_SEARCH (OSError without them, and for file systems without such events).
    fn watch(&self, py: Python<'_>, directory: PathBuf) -> PyResult<()> {
        py.detach(|| {
            let directory = std::fs::File::open(directory)?;
            let mut watcher = self.watcher.lock();
            match &*watcher {
                Some(watcher) => watcher.add(&directory)?,
                None => *watcher = Some(Watcher::start(Arc::clone(&self.table), &directory)?),
            }
            Ok(())
        })
    }

    /// The same without privileges, for shares that begin to be served after this: watches up to `most` of the inodes that guests ask
    /// about. What has no watch is asked for each time.
    fn watch_inodes(&self, py: Python<'_>, most: usize) -> PyResult<()> {
        let watcher = py.detach(|| InodeWatcher::start(Arc::clone(&self.table), most))?;
        *self.inodes.lock() = Some(Arc::new(watcher));
        Ok(())
    }

    /// Says that anything may have changed.
    fn all_changed(&self) {
        self.table.bump_all();
    }

    fn __repr__(&self) -> String {
        match self.table.path() {
            Some(path) => format!("VersionTable({}, directory={:?})", self.slots(), path.parent().unwrap_or(path)),
            None => format!("VersionTable({})", self.slots()),
        }
    }
}
