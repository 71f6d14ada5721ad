//! What operations answer beside attributes: frozen values.

use std::ffi::OsString;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStringExt;

use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use virtiofs_fuse::wire::{self, fopen};
use virtiofs_guest as guest;

use crate::attr::Attr;
use crate::blocks::Blocks;
use crate::fd;

/// A name that was looked up: its node, and how long the name and the attributes may be trusted (seconds; None for what the file
/// system says). Of a guest's lookup, `node` is the node id.
#[pyclass(frozen, get_all, module = "virtiofs", skip_from_py_object)]
pub(crate) struct Entry {
    pub(crate) node: Py<PyAny>,
    pub(crate) attr: Py<Attr>,
    pub(crate) entry_timeout: Option<f64>,
    pub(crate) attr_timeout: Option<f64>,
    pub(crate) generation: u64,
}

#[pymethods]
impl Entry {
    #[new]
    #[pyo3(signature = (node, attr, *, entry_timeout=None, attr_timeout=None))]
    fn new(node: Py<PyAny>, attr: Py<Attr>, entry_timeout: Option<f64>, attr_timeout: Option<f64>) -> Entry {
        Entry { node, attr, entry_timeout, attr_timeout, generation: 0 }
    }

    fn __eq__(&self, py: Python<'_>, other: &Entry) -> PyResult<bool> {
        let timeouts = |entry: &Entry| (entry.entry_timeout, entry.attr_timeout, entry.generation);
        Ok(timeouts(self) == timeouts(other)
            && self.attr.get() == other.attr.get()
            && self.node.bind(py).eq(other.node.bind(py))?)
    }

    fn __repr__(&self, py: Python<'_>) -> PyResult<String> {
        let Entry { entry_timeout, attr_timeout, .. } = self;
        let (node, attr) = (self.node.bind(py).repr()?, self.attr.get().__repr__());
        let seconds = |timeout: &Option<f64>| timeout.map_or("None".into(), |timeout| timeout.to_string());
        let (entry_timeout, attr_timeout) = (seconds(entry_timeout), seconds(attr_timeout));
        Ok(format!("Entry({node}, {attr}, entry_timeout={entry_timeout}, attr_timeout={attr_timeout})"))
    }
}

fn seconds(seconds: u64, nanoseconds: u32) -> f64 {
    seconds as f64 + f64::from(nanoseconds) / 1e9
}

impl Entry {
    /// What a lookup answered, with `node` for its node id.
    pub(crate) fn of(py: Python<'_>, entry: &wire::EntryOut, node: Py<PyAny>) -> PyResult<Entry> {
        Ok(Entry {
            node,
            generation: entry.generation,
            entry_timeout: Some(seconds(entry.entry_valid, entry.entry_valid_nsec)),
            attr_timeout: Some(seconds(entry.attr_valid, entry.attr_valid_nsec)),
            attr: Py::new(py, Attr::from(&entry.attr))?,
        })
    }

    /// As a guest sees it: by node id.
    pub(crate) fn of_guest(py: Python<'_>, entry: &wire::EntryOut) -> PyResult<Entry> {
        Entry::of(py, entry, entry.nodeid.into_pyobject(py)?.into_any().unbind())
    }
}

/// One name of a directory. `kind` is the type as in `Attr.mode`, 0 where it is not known; `cookie` is where a guest's listing goes on
/// behind it; `entry` is there if attributes come along.
#[pyclass(frozen, get_all, module = "virtiofs", skip_from_py_object)]
pub(crate) struct DirEntry {
    pub(crate) name: OsString,
    pub(crate) kind: u32,
    pub(crate) ino: u64,
    pub(crate) cookie: u64,
    pub(crate) entry: Option<Py<Entry>>,
}

#[pymethods]
impl DirEntry {
    #[new]
    #[pyo3(signature = (name, kind=0, ino=0, *, entry=None))]
    fn new(name: OsString, kind: u32, ino: u64, entry: Option<Py<Entry>>) -> DirEntry {
        DirEntry { name, kind: kind & libc::S_IFMT, ino, cookie: 0, entry }
    }

    fn __eq__(&self, py: Python<'_>, other: &DirEntry) -> PyResult<bool> {
        let entries = match (&self.entry, &other.entry) {
            (Some(one), Some(two)) => one.get().__eq__(py, two.get())?,
            (one, two) => one.is_none() && two.is_none(),
        };
        Ok(entries && (&self.name, self.kind, self.ino) == (&other.name, other.kind, other.ino))
    }

    fn __repr__(&self) -> String {
        let DirEntry { name, ino, kind, .. } = self;
        format!("DirEntry({name:?}, kind={kind:#o}, ino={ino})")
    }
}

impl DirEntry {
    pub(crate) fn of_guest(py: Python<'_>, entry: guest::DirEntry) -> PyResult<DirEntry> {
        let looked_up = entry.entry.as_ref().filter(|entry| entry.nodeid != 0);
        Ok(DirEntry {
            ino: entry.ino,
            kind: entry.kind << 12, // DT_ values are the type bits of a mode, moved down: dirent(3)
            cookie: entry.off,
            entry: looked_up.map(|entry| Py::new(py, Entry::of_guest(py, entry)?)).transpose()?,
            name: OsString::from_vec(entry.name),
        })
    }
}

/// An open file or directory: the handle, and the FOPEN flags that come with it. Of a guest's open, `handle` is the handle's number.
#[pyclass(frozen, module = "virtiofs", skip_from_py_object)]
pub(crate) struct Open {
    /// What later calls get as `handle`: any object.
    #[pyo3(get)]
    pub(crate) handle: Py<PyAny>,
    /// Descriptor that serves the data, as it was given. It is duplicated at once: who gave it may close it.
    #[pyo3(get)]
    pub(crate) backing: Option<i32>,
    /// The duplicate; None if there was nothing to duplicate.
    pub(crate) kept: Option<OwnedFd>,
    /// Which of the data are there, if not all.
    #[pyo3(get)]
    pub(crate) blocks: Option<Py<Blocks>>,
    #[pyo3(get)]
    pub(crate) flags: u32,
    /// The handle's number, if the native file system has it already.
    #[pyo3(get)]
    pub(crate) native: Option<u64>,
}

#[pymethods]
impl Open {
    #[new]
    #[pyo3(signature = (handle=None, *, backing=None, blocks=None, flags=0, direct_io=false, keep_cache=false,
                        cache_listing=false, nonseekable=false))]
    #[allow(clippy::too_many_arguments)]
    fn new(
        py: Python<'_>,
        handle: Option<Py<PyAny>>,
        backing: Option<&Bound<'_, PyAny>>,
        blocks: Option<Py<Blocks>>,
        flags: u32,
        direct_io: bool,
        keep_cache: bool,
        cache_listing: bool,
        nonseekable: bool,
    ) -> PyResult<Open> {
        let backing = match backing {
            None => None,
            Some(file) => match file.extract::<i32>() {
                Ok(number) => Some(number),
                Err(_) => Some(file.call_method0("fileno")?.extract()?),
            },
        };
        if blocks.is_some() && backing.is_none() {
            return Err(PyValueError::new_err("blocks are those of a backing, and there is none"));
        }
        let mut flags = flags;
        for (on, flag) in [
            (direct_io, fopen::DIRECT_IO),
            (keep_cache, fopen::KEEP_CACHE),
            (cache_listing, fopen::CACHE_DIR | fopen::KEEP_CACHE),
            (nonseekable, fopen::NONSEEKABLE),
        ] {
            flags |= if on { flag } else { 0 };
        }
        let kept = backing.and_then(|number| fd::duplicate(number).ok());
        Ok(Open { handle: handle.unwrap_or_else(|| py.None()), backing, kept, blocks, flags, native: None })
    }

    fn __eq__(&self, py: Python<'_>, other: &Open) -> PyResult<bool> {
        let blocks = |open: &Open| open.blocks.as_ref().map(|blocks| blocks.as_ptr());
        Ok((self.backing, blocks(self), self.flags) == (other.backing, blocks(other), other.flags)
            && self.handle.bind(py).eq(other.handle.bind(py))?)
    }

    fn __repr__(&self, py: Python<'_>) -> PyResult<String> {
        let backing = self.backing.map_or(String::new(), |fd| format!(", backing={fd}"));
        Ok(format!("Open({}{backing}, flags={:#x})", self.handle.bind(py).repr()?, self.flags))
    }
}

impl Open {
    /// A handle that is known by its number: in a guest, or to the native file system.
    pub(crate) fn by_number(py: Python<'_>, open: &wire::OpenOut) -> PyResult<Open> {
        let handle = open.fh.into_pyobject(py)?.into_any().unbind();
        Ok(Open { handle, flags: open.open_flags, backing: None, kept: None, blocks: None, native: Some(open.fh) })
    }
}

/// What statfs(2) says. `blocks`, `bfree` and `bavail` are in units of `frsize` bytes.
#[pyclass(frozen, get_all, eq, hash, module = "virtiofs", skip_from_py_object)]
#[derive(Clone, PartialEq, Eq, Hash)]
pub(crate) struct Statfs {
    pub(crate) blocks: u64,
    pub(crate) bfree: u64,
    pub(crate) bavail: u64,
    pub(crate) files: u64,
    pub(crate) ffree: u64,
    pub(crate) bsize: u32,
    pub(crate) frsize: u32,
    pub(crate) namelen: u32,
}

#[pymethods]
impl Statfs {
    #[new]
    #[pyo3(signature = (*, blocks=0, bfree=0, bavail=None, files=0, ffree=0, bsize=4096, frsize=None, namelen=255))]
    #[allow(clippy::too_many_arguments)]
    fn new(
        blocks: u64,
        bfree: u64,
        bavail: Option<u64>,
        files: u64,
        ffree: u64,
        bsize: u32,
        frsize: Option<u32>,
        namelen: u32,
    ) -> Statfs {
        let (bavail, frsize) = (bavail.unwrap_or(bfree), frsize.unwrap_or(bsize));
        Statfs { blocks, bfree, bavail, files, ffree, bsize, frsize, namelen }
    }

    fn __repr__(&self) -> String {
        let Statfs { blocks, bfree, bavail, frsize, .. } = self;
        format!("Statfs(blocks={blocks}, bfree={bfree}, bavail={bavail}, frsize={frsize})")
    }
}

impl From<&wire::StatfsOut> for Statfs {
    fn from(statfs: &wire::StatfsOut) -> Statfs {
        let &wire::StatfsOut { blocks, bfree, bavail, files, ffree, bsize, namelen, frsize, .. } = statfs;
        Statfs { blocks, bfree, bavail, files, ffree, bsize, frsize, namelen }
    }
}

impl From<&Statfs> for wire::StatfsOut {
    fn from(statfs: &Statfs) -> wire::StatfsOut {
        let &Statfs { blocks, bfree, bavail, files, ffree, bsize, namelen, frsize } = statfs;
        wire::StatfsOut { blocks, bfree, bavail, files, ffree, bsize, namelen, frsize, ..wire::StatfsOut::default() }
    }
}
