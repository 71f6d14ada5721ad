//! What handlers get: who asks, what is to be changed, which lock is meant.

use std::ffi::CString;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyDict};
use virtiofs_fuse::wire::{LkIn, SetattrIn, bits, fattr};
use virtiofs_fuse::{Context, Creation, Opcode};
use virtiofs_hostdir::HostDir;

use crate::attr::{Attr, nanoseconds};

/// Who asks for an operation. User and group are 0 for what the guest's kernel does by itself: good for ownership, never for permission.
#[pyclass(frozen, module = "virtiofs")]
pub(crate) struct Request {
    pub(crate) cx: Context,
    opcode: Opcode,
    umask: u32,
    group: Option<u32>,
    label: Option<(CString, Vec<u8>)>,
    /// The native file system beneath, if there is one.
    pub(crate) native: Option<Arc<HostDir>>,
}

impl Request {
    pub(crate) fn new(
        cx: &Context,
        opcode: Opcode,
        new: Option<&Creation<'_>>,
        native: Option<Arc<HostDir>>,
    ) -> Request {
        let new = new.copied().unwrap_or_default();
        let label = new.security.map(|(name, value)| (name.to_owned(), value.to_vec()));
        Request { cx: *cx, opcode, umask: new.umask, group: new.supplementary_group, label, native }
    }

    /// The circumstances of a creation, as they came.
    pub(crate) fn creation(&self) -> Creation<'_> {
        Creation {
            umask: self.umask,
            supplementary_group: self.group,
            security: self.label.as_ref().map(|(name, value)| (name.as_c_str(), value.as_slice())),
        }
    }
}

#[pymethods]
impl Request {
    /// User in the guest.
    #[getter]
    fn uid(&self) -> u32 {
        self.cx.uid
    }

    /// Group in the guest.
    #[getter]
    fn gid(&self) -> u32 {
        self.cx.gid
    }

    /// Thread in the guest.
    #[getter]
    fn pid(&self) -> u32 {
        self.cx.pid
    }

    /// The request's number, unique among those in flight.
    #[getter]
    fn unique(&self) -> u64 {
        self.cx.unique
    }

    /// Name of the operation on the wire, in lower case.
    #[getter]
    fn operation(&self) -> String {
        self.opcode.name().to_lowercase()
    }

    /// Umask that a creation is still to be subjected to: 0 unless the file system asked for `DONT_MASK`.
    #[getter]
    fn umask(&self) -> u32 {
        self.umask
    }

    /// Of a creation: the parent's group, where the caller is a member of it.
    #[getter]
    fn group(&self) -> Option<u32> {
        self.group
    }

    /// Of a creation: name and value of the security label that the new inode is to have from the start.
    #[getter]
    fn label<'py>(&self, py: Python<'py>) -> Option<(String, Bound<'py, PyBytes>)> {
        let (name, value) = self.label.as_ref()?;
        Some((name.to_string_lossy().into_owned(), PyBytes::new(py, value)))
    }

    fn __repr__(&self) -> String {
        let Context { unique, uid, gid, pid, .. } = self.cx;
        format!("Request({}, uid={uid}, gid={gid}, pid={pid}, unique={unique})", self.opcode.name().to_lowercase())
    }
}

/// What a SETATTR changes; None is left as it is. Times are nanoseconds since the epoch.
#[pyclass(frozen, module = "virtiofs")]
pub(crate) struct Changes {
    pub(crate) args: SetattrIn,
    /// What "now" is, for times that are to be set to it.
    now: i128,
}

impl Changes {
    pub(crate) fn new(args: &SetattrIn) -> Changes {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_nanos() as i128;
        Changes { args: *args, now }
    }

    fn set<T>(&self, bit: u32, value: T) -> Option<T> {
        (self.args.valid & bit != 0).then_some(value)
    }
}

#[pymethods]
impl Changes {
    /// Permission bits, without the type.
    #[getter]
    fn mode(&self) -> Option<u32> {
        self.set(fattr::MODE, self.args.mode & 0o7777)
    }

    /// Owner.
    #[getter]
    fn uid(&self) -> Option<u32> {
        self.set(fattr::UID, self.args.uid)
    }

    /// Group.
    #[getter]
    fn gid(&self) -> Option<u32> {
        self.set(fattr::GID, self.args.gid)
    }

    /// Bytes.
    #[getter]
    fn size(&self) -> Option<u64> {
        self.set(fattr::SIZE, self.args.size)
    }

    /// Last access.
    #[getter]
    fn atime_ns(&self) -> Option<i128> {
        let given = self.set(fattr::ATIME, nanoseconds(self.args.atime, self.args.atimensec));
        self.set(fattr::ATIME_NOW, self.now).or(given)
    }

    /// Last modification of the data.
    #[getter]
    fn mtime_ns(&self) -> Option<i128> {
        let given = self.set(fattr::MTIME, nanoseconds(self.args.mtime, self.args.mtimensec));
        self.set(fattr::MTIME_NOW, self.now).or(given)
    }

    /// Last change of the inode.
    #[getter]
    fn ctime_ns(&self) -> Option<i128> {
        self.set(fattr::CTIME, nanoseconds(self.args.ctime, self.args.ctimensec))
    }

    /// Whether setuid, and setgid of what its group may execute, are to be cleared along.
    #[getter]
    fn kill_suidgid(&self) -> bool {
        self.args.valid & fattr::KILL_SUIDGID != 0
    }

    /// `attr` with these changes.
    fn apply(&self, attr: &Attr) -> Attr {
        let mut new = attr.clone();
        new.mode = self.mode().map_or(new.mode, |mode| new.mode & libc::S_IFMT | mode);
        new.uid = self.uid().unwrap_or(new.uid);
        new.gid = self.gid().unwrap_or(new.gid);
        if let Some(size) = self.size() {
            new.resize(size);
            new.mtime_ns = self.now;
        }
        new.atime_ns = self.atime_ns().unwrap_or(new.atime_ns);
        new.mtime_ns = self.mtime_ns().unwrap_or(new.mtime_ns);
        new.ctime_ns = self.ctime_ns().unwrap_or(self.now);
        new
    }

    /// The changes by name, without those that are None.
    fn as_dict<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        let all = PyDict::new(py);
        macro_rules! put {
            ($($name:ident)*) => { $(if let Some(value) = self.$name() { all.set_item(stringify!($name), value)?; })* };
        }
        put!(mode uid gid size atime_ns mtime_ns ctime_ns);
        Ok(all)
    }

    fn __repr__(&self, py: Python<'_>) -> PyResult<String> {
        Ok(format!("Changes({})", self.as_dict(py)?))
    }
}

/// A lock of a range of a file (fcntl) or of the whole (flock), as a guest asks for it or as one is in the way.
#[pyclass(frozen, get_all, module = "virtiofs", skip_from_py_object)]
#[derive(Clone)]
pub(crate) struct Lock {
    /// `fcntl.F_RDLCK`, `F_WRLCK` or `F_UNLCK`.
    pub(crate) kind: u32,
    /// First byte.
    pub(crate) start: u64,
    /// Last byte; 2^63 - 1 is the end of the file, wherever that is.
    pub(crate) end: u64,
    /// Process in the guest.
    pub(crate) pid: u32,
    /// Whose lock it is: unique within one guest.
    pub(crate) owner: u64,
    /// An flock and not one of fcntl.
    pub(crate) flock: bool,
}

#[pymethods]
impl Lock {
    #[new]
    #[pyo3(signature = (kind, start=0, end=i64::MAX as u64, *, pid=0, owner=0, flock=false))]
    fn new(kind: u32, start: u64, end: u64, pid: u32, owner: u64, flock: bool) -> Lock {
        Lock { kind, start, end, pid, owner, flock }
    }

    fn __repr__(&self) -> String {
        let Lock { kind, start, end, pid, owner, flock } = self;
        format!(
            "Lock({kind}, {start}, {end}, pid={pid}, owner={owner:#x}, flock={})",
            if *flock { "True" } else { "False" }
        )
    }
}

impl Lock {
    pub(crate) fn of(args: &LkIn) -> Lock {
        Lock {
            kind: args.lk.kind,
            start: args.lk.start,
            end: args.lk.end,
            pid: args.lk.pid,
            owner: args.owner,
            flock: args.lk_flags & bits::LK_FLOCK != 0,
        }
    }
}
