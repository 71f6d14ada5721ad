//! The embedded guest: a share that is mounted in this process, by path.

use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use pyo3::buffer::PyBuffer;
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use pyo3::types::PyBytes;
use rustix::net::{Shutdown, shutdown};
use virtiofs_guest::{self as guest, Options, Result};

use crate::attr::Attr;
use crate::client::{Client, Name, bytes};
use crate::detached::Detached;
use crate::device::Device;
use crate::embedded::{Direct, Vmm};
use crate::errors;
use crate::file::File;
use crate::mmio::Mmio;
use crate::types::{DirEntry, Statfs};
use crate::versions::VersionTable;

/// A share that is mounted in this process.
#[pyclass(frozen, subclass, module = "virtiofs._core")]
pub(crate) struct Guest {
    native: Detached<guest::Guest>,
}

impl Guest {
    fn window(&self) -> PyResult<&guest::Mapped> {
        let window = self.native.client().window();
        window.map(|window| &**window).ok_or_else(|| PyValueError::new_err("this guest has no DAX window"))
    }

    fn run<T: Send>(&self, py: Python<'_>, work: impl Send + FnOnce(&guest::Guest) -> Result<T>) -> PyResult<T> {
        py.detach(|| work(&self.native)).map_err(|error| errors::of_guest(py, error))
    }
}

/// Where a guest finds its device.
#[derive(FromPyObject)]
enum Target {
    /// Behind a vhost-user socket.
    Socket(PathBuf),
    /// In this process, by the addresses of its queues.
    Device(Py<Device>),
    /// In this process, by registers.
    Registers(Py<Mmio>),
}

/// Where a guest finds its version table.
#[derive(FromPyObject)]
enum Versions<'py> {
    /// The share's own.
    Table(PyRef<'py, VersionTable>),
    /// Shown by the device as shared memory.
    OfDevice(bool),
}

fn not_mapped(_: virtiofs_dax::Refusal) -> PyErr {
    PyValueError::new_err("nothing is mapped there, or not for writing")
}

fn seconds(name: &str, value: f64) -> PyResult<Duration> {
    Duration::try_from_secs_f64(value).map_err(|_| PyValueError::new_err(format!("{name} is in seconds, not {value}")))
}

#[pymethods]
impl Guest {
    #[new]
    #[pyo3(signature = (target, *, timeout=20.0, connect_timeout=0.0, request_queues=1, queue_size=1024, max_pages=256,
                        uid=None, gid=None, init_flags=None, dax=false, whole_pages=false, versions=None,
                        notifications=false))]
    #[allow(clippy::too_many_arguments)]
    fn new(
        py: Python<'_>,
        target: Target,
        timeout: f64,
        connect_timeout: f64,
        request_queues: u16,
        queue_size: u16,
        max_pages: u16,
        uid: Option<u32>,
        gid: Option<u32>,
        init_flags: Option<u64>,
        dax: bool,
        whole_pages: bool,
        versions: Option<Versions<'_>>,
        notifications: bool,
    ) -> PyResult<Guest> {
        let defaults = Options::default();
        let options = Options {
            timeout: seconds("timeout", timeout)?,
            connect_timeout: seconds("connect_timeout", connect_timeout)?,
            request_queues,
            queue_size,
            max_pages,
            uid: uid.unwrap_or(defaults.uid),
            gid: gid.unwrap_or(defaults.gid),
            init_flags: init_flags.unwrap_or(defaults.init_flags),
            dax,
            whole_pages,
            find_versions: matches!(versions, Some(Versions::OfDevice(true))),
            versions: match versions {
                Some(Versions::Table(table)) => Some(table.view()?),
                _ => None,
            },
            notifications,
            ..defaults
        };
        let native = match target {
            Target::Socket(path) => py.detach(|| guest::Guest::connect(&path, options)),
            Target::Device(device) => {
                let device = Arc::clone(device.get().native(py)?);
                py.detach(|| guest::Guest::over(Box::new(Direct::new(device)), options))
            }
            Target::Registers(mmio) => {
                let vmm = Arc::new(Vmm::new(Arc::clone(mmio.get().native())));
                py.detach(|| guest::Guest::over(Box::new(guest::Mmio::new(vmm)?), options))
            }
        };
        let native = native.map_err(|error| errors::of_guest(py, error))?;
        Ok(Guest { native: Detached::new(native) })
    }

    /// Gives all nodes back, ends the session and hangs up. Open files do not work any more.
    fn unmount(&self, py: Python<'_>) -> PyResult<()> {
        self.run(py, |native| {
            let result = native.unmount();
            // The socket itself closes when the last file that is still referred to is gone; the server need not wait for that.
            native.client().with_connection(|connection| shutdown(connection, Shutdown::Both));
            result
        })
    }

    /// Bytes of the DAX window; 0 if there is none.
    #[getter]
    fn window_size(&self) -> u64 {
        self.native.client().window().map_or(0, |window| window.size())
    }

    /// Mappings that the window holds.
    #[getter]
    fn mappings(&self) -> usize {
        self.native.client().window().map_or(0, |window| window.len())
    }

    /// Copies bytes out of the window.
    fn window_read<'py>(&self, py: Python<'py>, offset: u64, size: usize) -> PyResult<Bound<'py, PyBytes>> {
        let window = self.window()?;
        let mut out = vec![0; size];
        py.detach(|| window.load(offset, &mut out)).map_err(not_mapped)?;
        Ok(bytes(py, &out))
    }

    /// Copies bytes into the window.
    fn window_write(&self, py: Python<'_>, offset: u64, data: PyBuffer<u8>) -> PyResult<()> {
        let (window, data) = (self.window()?, data.to_vec(py)?);
        py.detach(|| window.store(offset, &data)).map_err(not_mapped)
    }

    /// Notifications that came so far; None where the device has no queue for them or this guest takes none.
    #[getter]
    fn notified(&self) -> Option<u64> {
        self.native.client().noticed()
    }

    /// The operations beneath, by node id.
    #[getter]
    fn client(&self) -> Client {
        Client { guest: Detached::new(self.native.clone()) }
    }

    /// Forgets cached names and nodes, and waits until the server has taken that.
    fn drop_caches(&self, py: Python<'_>) -> PyResult<()> {
        self.run(py, guest::Guest::drop_caches)
    }

    /// Nodes held at present, the root not counted.
    fn nodes_held(&self) -> usize {
        self.native.nodes_held()
    }

    /// Reads a whole file.
    fn read_file<'py>(&self, py: Python<'py>, path: PathBuf) -> PyResult<Bound<'py, PyBytes>> {
        Ok(bytes(py, &self.run(py, |native| native.read_file(path))?))
    }

    /// Makes a file, or replaces the content of one.
    fn write_file(&self, py: Python<'_>, path: PathBuf, data: PyBuffer<u8>) -> PyResult<()> {
        let data = data.to_vec(py)?;
        self.run(py, |native| native.write_file(path, &data))
    }

    /// Opens a file with the `flags` of `os.open`; `mode` is for O_CREAT, less a umask of 022.
    #[pyo3(signature = (path, flags=0, mode=0o666))]
    fn open(&self, py: Python<'_>, path: PathBuf, flags: i32, mode: u32) -> PyResult<File> {
        let file = self.run(py, |native| native.open(path, flags, mode))?;
        Ok(File::of(file))
    }

    /// The names of a directory, without `.` and `..`, as the server orders them.
    #[pyo3(signature = (path=PathBuf::new()))]
    fn listdir(&self, py: Python<'_>, path: PathBuf) -> PyResult<Vec<OsString>> {
        let names = self.run(py, |native| native.listdir(path))?;
        Ok(names.into_iter().map(OsString::from_vec).collect())
    }

    /// The entries of a directory, without `.` and `..`, with attributes where the server gives them along.
    #[pyo3(signature = (path=PathBuf::new()))]
    fn scandir(&self, py: Python<'_>, path: PathBuf) -> PyResult<Vec<DirEntry>> {
        self.run(py, |native| native.scandir(path))?.into_iter().map(|entry| DirEntry::of_guest(py, entry)).collect()
    }

    /// All paths below `top` with their attributes, directories before what is in them; symlinks are not followed.
    #[pyo3(signature = (top=PathBuf::new()))]
    fn walk(&self, py: Python<'_>, top: PathBuf) -> PyResult<Vec<(OsString, Attr)>> {
        let found = self.run(py, |native| native.walk(top))?;
        Ok(found.into_iter().map(|(path, attr)| (path.into_os_string(), Attr::from(&attr))).collect())
    }

    /// Attributes of what a path means, symlinks followed.
    #[pyo3(signature = (path=PathBuf::new()))]
    fn stat(&self, py: Python<'_>, path: PathBuf) -> PyResult<Attr> {
        Ok((&self.run(py, |native| native.stat(path))?).into())
    }

    /// Attributes, of a symlink itself.
    fn lstat(&self, py: Python<'_>, path: PathBuf) -> PyResult<Attr> {
        Ok((&self.run(py, |native| native.lstat(path))?).into())
    }

    /// Whether a path leads anywhere.
    fn exists(&self, py: Python<'_>, path: PathBuf) -> PyResult<bool> {
        self.run(py, |native| native.exists(path))
    }

    /// Makes a directory, less a umask of 022.
    #[pyo3(signature = (path, mode=0o777))]
    fn mkdir(&self, py: Python<'_>, path: PathBuf, mode: u32) -> PyResult<()> {
        self.run(py, |native| native.mkdir(path, mode))
    }

    /// Makes a directory and all that lead to it; those that are there already are fine.
    fn makedirs(&self, py: Python<'_>, path: PathBuf) -> PyResult<()> {
        self.run(py, |native| native.makedirs(path))
    }

    /// Makes a file, FIFO, socket or device node; `mode` has its type, `rdev` is in the kernel's 32-bit encoding.
    #[pyo3(signature = (path, mode, rdev=0))]
    fn mknod(&self, py: Python<'_>, path: PathBuf, mode: u32, rdev: u32) -> PyResult<()> {
        self.run(py, |native| native.mknod(path, mode, rdev))
    }

    /// Removes a name that is no directory.
    fn unlink(&self, py: Python<'_>, path: PathBuf) -> PyResult<()> {
        self.run(py, |native| native.unlink(path))
    }

    /// Removes an empty directory.
    fn rmdir(&self, py: Python<'_>, path: PathBuf) -> PyResult<()> {
        self.run(py, |native| native.rmdir(path))
    }

    /// Removes a directory with all that is in it.
    fn remove_tree(&self, py: Python<'_>, path: PathBuf) -> PyResult<()> {
        self.run(py, |native| native.remove_tree(path))
    }

    /// Renames; `flags` of renameat2(2).
    #[pyo3(signature = (old, new, flags=0))]
    fn rename(&self, py: Python<'_>, old: PathBuf, new: PathBuf, flags: u32) -> PyResult<()> {
        self.run(py, |native| native.rename(old, new, flags))
    }

    /// Gives the file at `path` one more name.
    fn link(&self, py: Python<'_>, path: PathBuf, new: PathBuf) -> PyResult<()> {
        self.run(py, |native| native.link(path, new))
    }

    /// Makes a symlink at `path`.
    fn symlink(&self, py: Python<'_>, target: PathBuf, path: PathBuf) -> PyResult<()> {
        self.run(py, |native| native.symlink(target, path))
    }

    /// Target of a symlink.
    fn readlink(&self, py: Python<'_>, path: PathBuf) -> PyResult<OsString> {
        Ok(OsString::from_vec(self.run(py, |native| native.readlink(path))?))
    }

    /// Changes the mode.
    fn chmod(&self, py: Python<'_>, path: PathBuf, mode: u32) -> PyResult<()> {
        self.run(py, |native| native.chmod(path, mode))
    }

    /// Changes owner and group.
    fn chown(&self, py: Python<'_>, path: PathBuf, uid: u32, gid: u32) -> PyResult<()> {
        self.run(py, |native| native.chown(path, uid, gid))
    }

    /// Sets the size in bytes.
    fn truncate(&self, py: Python<'_>, path: PathBuf, size: u64) -> PyResult<()> {
        self.run(py, |native| native.truncate(path, size))
    }

    /// Sets access and modification time, in nanoseconds since the epoch.
    fn utime(&self, py: Python<'_>, path: PathBuf, atime_ns: i64, mtime_ns: i64) -> PyResult<()> {
        self.run(py, |native| native.utime(path, atime_ns, mtime_ns))
    }

    /// What statfs(2) says.
    #[pyo3(signature = (path=PathBuf::new()))]
    fn statfs(&self, py: Python<'_>, path: PathBuf) -> PyResult<Statfs> {
        Ok((&self.run(py, |native| native.statfs(path))?).into())
    }

    /// Writes all of the share out to the host's disk.
    fn sync(&self, py: Python<'_>) -> PyResult<()> {
        self.run(py, guest::Guest::sync)
    }

    /// The value of an extended attribute.
    fn getxattr<'py>(&self, py: Python<'py>, path: PathBuf, name: Name) -> PyResult<Bound<'py, PyBytes>> {
        Ok(bytes(py, &self.run(py, |native| native.getxattr(path, &name.0))?))
    }

    /// Sets an extended attribute; `flags` of setxattr(2).
    #[pyo3(signature = (path, name, value, flags=0))]
    fn setxattr(&self, py: Python<'_>, path: PathBuf, name: Name, value: PyBuffer<u8>, flags: u32) -> PyResult<()> {
        let value = value.to_vec(py)?;
        self.run(py, |native| native.setxattr(path, &name.0, &value, flags))
    }

    /// The names of the extended attributes.
    fn listxattr(&self, py: Python<'_>, path: PathBuf) -> PyResult<Vec<OsString>> {
        Ok(self.run(py, |native| native.listxattr(path))?.into_iter().map(OsString::from_vec).collect())
    }

    /// Removes an extended attribute.
    fn removexattr(&self, py: Python<'_>, path: PathBuf, name: Name) -> PyResult<()> {
        self.run(py, |native| native.removexattr(path, &name.0))
    }

    /// Node id of a path, for `client`: good until the caches are dropped or the name goes.
    #[pyo3(signature = (path=PathBuf::new()))]
    fn node(&self, py: Python<'_>, path: PathBuf) -> PyResult<u64> {
        self.run(py, |native| native.nodeid(path))
    }
}
