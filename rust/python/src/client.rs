//! The embedded guest's FUSE client: operations by node id.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};

use pyo3::buffer::PyBuffer;
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyDict};
use virtiofs_fuse::wire::{CopyFileRangeIn, RemovemappingOne, SetattrIn, SetupmappingIn, bits, fattr};
use virtiofs_guest::{Client as Native, Guest, RawRequest, Result};

use crate::attr::{Attr, split};
use crate::detached::Detached;
use crate::errors;
use crate::types::{DirEntry, Entry, Open, Statfs};

/// A name as `os` functions take it: str with surrogateescape, or bytes.
pub(crate) struct Name(pub(crate) Vec<u8>);

impl<'py> FromPyObject<'_, 'py> for Name {
    type Error = PyErr;

    fn extract(object: Borrowed<'_, 'py, PyAny>) -> PyResult<Name> {
        if let Ok(bytes) = object.cast::<PyBytes>() {
            return Ok(Name(bytes.as_bytes().to_vec()));
        }
        Ok(Name(object.extract::<OsString>()?.into_vec()))
    }
}

/// A FUSE session over vhost-user, as the driver of a guest has it. Every call blocks until its reply is here, with the
/// interpreter free for other threads.
#[pyclass(frozen, module = "virtiofs._core")]
pub(crate) struct Client {
    pub(crate) guest: Detached<Guest>,
}

impl Client {
    fn run<T: Send>(&self, py: Python<'_>, work: impl Send + FnOnce(&Native) -> Result<T>) -> PyResult<T> {
        py.detach(|| work(self.guest.client())).map_err(|error| errors::of_guest(py, error))
    }
}

pub(crate) fn bytes<'py>(py: Python<'py>, data: &[u8]) -> Bound<'py, PyBytes> {
    PyBytes::new(py, data)
}

#[pymethods]
impl Client {
    /// Who asks from now on: fsuid, fsgid, thread id.
    #[pyo3(signature = (uid, gid, pid=1))]
    fn set_caller(&self, uid: u32, gid: u32, pid: u32) {
        self.guest.client().set_caller(uid, gid, pid);
    }

    /// What a security module in the guest gives to all that is made from now on, as name and value of an extended attribute. Sent if
    /// SECURITY_CTX was agreed on.
    #[pyo3(signature = (name=None, value=Vec::new()))]
    fn set_label(&self, name: Option<Name>, value: Vec<u8>) {
        self.guest.client().set_label(name.as_ref().map(|name| (name.0.as_slice(), value.as_slice())));
    }

    /// What was agreed on: tag, request_queues (of the device), minor, flags, max_io (bytes), peer (process id).
    #[getter]
    fn session<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        let (session, config) = (self.guest.client().session(), self.guest.client().config());
        let all = PyDict::new(py);
        all.set_item("tag", config.map(|config| OsStr::from_bytes(&config.tag)))?;
        all.set_item("request_queues", config.map(|config| config.request_queues))?;
        all.set_item("minor", session.minor)?;
        all.set_item("flags", session.flags)?;
        all.set_item("max_io", session.max_io)?;
        all.set_item("peer", self.guest.client().peer())?;
        Ok(all)
    }

    /// Waits until the server has taken all FORGETs.
    fn settle(&self, py: Python<'_>) -> PyResult<()> {
        self.run(py, Native::settle)
    }

    /// Sends a request of any content; answers the length that the device reported and the bytes of the reply.
    #[pyo3(signature = (opcode, node, body=Name(Vec::new()), *, room=None, hiprio=false, extlen=0))]
    #[allow(clippy::too_many_arguments)]
    fn raw<'py>(
        &self,
        py: Python<'py>,
        opcode: u32,
        node: u64,
        body: Name,
        room: Option<usize>,
        hiprio: bool,
        extlen: u16,
    ) -> PyResult<(u32, Bound<'py, PyBytes>)> {
        let parts = [body.0.as_slice()];
        let request = RawRequest { opcode, nodeid: node, body: &parts, room, hiprio, extlen, ..RawRequest::default() };
        let reply = self.run(py, |native| native.raw(&request))?;
        Ok((reply.used, bytes(py, &reply.bytes)))
    }

    fn lookup(&self, py: Python<'_>, parent: u64, name: Name) -> PyResult<Entry> {
        Entry::of_guest(py, &self.run(py, |native| native.lookup(parent, &name.0))?)
    }

    fn forget(&self, py: Python<'_>, node: u64, nlookup: u64) -> PyResult<()> {
        self.run(py, |native| native.forget(node, nlookup))
    }

    #[pyo3(signature = (node, handle=None))]
    fn getattr(&self, py: Python<'_>, node: u64, handle: Option<u64>) -> PyResult<Attr> {
        Ok((&self.run(py, |native| native.getattr(node, handle))?.attr).into())
    }

    #[pyo3(signature = (node, *, handle=None, mode=None, uid=None, gid=None, size=None, atime_ns=None, mtime_ns=None))]
    #[allow(clippy::too_many_arguments)]
    fn setattr(
        &self,
        py: Python<'_>,
        node: u64,
        handle: Option<u64>,
        mode: Option<u32>,
        uid: Option<u32>,
        gid: Option<u32>,
        size: Option<u64>,
        atime_ns: Option<i128>,
        mtime_ns: Option<i128>,
    ) -> PyResult<Attr> {
        let (atime, atimensec) = split(atime_ns.unwrap_or(0));
        let (mtime, mtimensec) = split(mtime_ns.unwrap_or(0));
        let valid = [
            (handle.is_some(), fattr::FH),
            (mode.is_some(), fattr::MODE),
            (uid.is_some(), fattr::UID),
            (gid.is_some(), fattr::GID),
            (size.is_some(), fattr::SIZE),
            (atime_ns.is_some(), fattr::ATIME),
            (mtime_ns.is_some(), fattr::MTIME),
        ];
        let args = SetattrIn {
            valid: valid.iter().filter(|(given, _)| *given).map(|(_, bit)| bit).sum(),
            fh: handle.unwrap_or(0),
            size: size.unwrap_or(0),
            atime,
            mtime,
            atimensec,
            mtimensec,
            mode: mode.unwrap_or(0),
            uid: uid.unwrap_or(0),
            gid: gid.unwrap_or(0),
            ..SetattrIn::default()
        };
        Ok((&self.run(py, |native| native.setattr(node, &args))?.attr).into())
    }

    fn readlink(&self, py: Python<'_>, node: u64) -> PyResult<OsString> {
        Ok(OsString::from_vec(self.run(py, |native| native.readlink(node))?))
    }

    fn symlink(&self, py: Python<'_>, parent: u64, name: Name, target: Name) -> PyResult<Entry> {
        Entry::of_guest(py, &self.run(py, |native| native.symlink(parent, &name.0, &target.0))?)
    }

    #[pyo3(signature = (parent, name, mode, rdev=0, umask=0))]
    fn mknod(&self, py: Python<'_>, parent: u64, name: Name, mode: u32, rdev: u32, umask: u32) -> PyResult<Entry> {
        Entry::of_guest(py, &self.run(py, |native| native.mknod(parent, &name.0, mode, rdev, umask))?)
    }

    #[pyo3(signature = (parent, name, mode=0o777, umask=0o022))]
    fn mkdir(&self, py: Python<'_>, parent: u64, name: Name, mode: u32, umask: u32) -> PyResult<Entry> {
        Entry::of_guest(py, &self.run(py, |native| native.mkdir(parent, &name.0, mode, umask))?)
    }

    fn unlink(&self, py: Python<'_>, parent: u64, name: Name) -> PyResult<()> {
        self.run(py, |native| native.unlink(parent, &name.0))
    }

    fn rmdir(&self, py: Python<'_>, parent: u64, name: Name) -> PyResult<()> {
        self.run(py, |native| native.rmdir(parent, &name.0))
    }

    #[pyo3(signature = (parent, name, newparent, newname, flags=0))]
    fn rename(
        &self,
        py: Python<'_>,
        parent: u64,
        name: Name,
        newparent: u64,
        newname: Name,
        flags: u32,
    ) -> PyResult<()> {
        self.run(py, |native| native.rename2(parent, &name.0, newparent, &newname.0, flags))
    }

    fn link(&self, py: Python<'_>, node: u64, newparent: u64, newname: Name) -> PyResult<Entry> {
        Entry::of_guest(py, &self.run(py, |native| native.link(node, newparent, &newname.0))?)
    }

    fn open(&self, py: Python<'_>, node: u64, flags: u32) -> PyResult<Open> {
        Open::by_number(py, &self.run(py, |native| native.open(node, flags))?)
    }

    #[pyo3(signature = (parent, name, flags, mode=0o666, umask=0o022))]
    fn create(
        &self,
        py: Python<'_>,
        parent: u64,
        name: Name,
        flags: u32,
        mode: u32,
        umask: u32,
    ) -> PyResult<(Entry, Open)> {
        let (entry, open) = self.run(py, |native| native.create_file(parent, &name.0, flags, mode, umask))?;
        Ok((Entry::of_guest(py, &entry)?, Open::by_number(py, &open)?))
    }

    fn read<'py>(
        &self,
        py: Python<'py>,
        node: u64,
        handle: u64,
        offset: u64,
        size: usize,
    ) -> PyResult<Bound<'py, PyBytes>> {
        Ok(bytes(py, &self.run(py, |native| native.read(node, handle, offset, size))?))
    }

    fn write(&self, py: Python<'_>, node: u64, handle: u64, offset: u64, data: PyBuffer<u8>) -> PyResult<usize> {
        let data = data.to_vec(py)?;
        self.run(py, |native| native.write(node, handle, offset, &data))
    }

    fn flush(&self, py: Python<'_>, node: u64, handle: u64) -> PyResult<()> {
        self.run(py, |native| native.flush(node, handle, 0))
    }

    #[pyo3(signature = (node, handle, datasync=false))]
    fn fsync(&self, py: Python<'_>, node: u64, handle: u64, datasync: bool) -> PyResult<()> {
        self.run(py, |native| native.fsync(node, handle, datasync))
    }

    #[pyo3(signature = (node, handle, flags=0))]
    fn release(&self, py: Python<'_>, node: u64, handle: u64, flags: u32) -> PyResult<()> {
        self.run(py, |native| native.release(node, handle, flags))
    }

    #[pyo3(signature = (node, flags=0))]
    fn opendir(&self, py: Python<'_>, node: u64, flags: u32) -> PyResult<Open> {
        Open::by_number(py, &self.run(py, |native| native.opendir(node, flags))?)
    }

    #[pyo3(signature = (node, handle, offset=0, size=32768, plus=false))]
    fn readdir(
        &self,
        py: Python<'_>,
        node: u64,
        handle: u64,
        offset: u64,
        size: usize,
        plus: bool,
    ) -> PyResult<Vec<DirEntry>> {
        let entries = self.run(py, |native| match plus {
            true => native.readdirplus(node, handle, offset, size),
            false => native.readdir(node, handle, offset, size),
        })?;
        entries.into_iter().map(|entry| DirEntry::of_guest(py, entry)).collect()
    }

    fn releasedir(&self, py: Python<'_>, node: u64, handle: u64) -> PyResult<()> {
        self.run(py, |native| native.releasedir(node, handle))
    }

    fn statfs(&self, py: Python<'_>, node: u64) -> PyResult<Statfs> {
        Ok((&self.run(py, |native| native.statfs(node))?).into())
    }

    #[pyo3(signature = (node=1))]
    fn syncfs(&self, py: Python<'_>, node: u64) -> PyResult<()> {
        self.run(py, |native| native.syncfs(node))
    }

    #[pyo3(signature = (node, name, value, flags=0))]
    fn setxattr(&self, py: Python<'_>, node: u64, name: Name, value: PyBuffer<u8>, flags: u32) -> PyResult<()> {
        let value = value.to_vec(py)?;
        self.run(py, |native| native.setxattr(node, &name.0, &value, flags))
    }

    #[pyo3(signature = (node, name, size=65536))]
    fn getxattr<'py>(&self, py: Python<'py>, node: u64, name: Name, size: usize) -> PyResult<Bound<'py, PyBytes>> {
        Ok(bytes(py, &self.run(py, |native| native.getxattr(node, &name.0, size))?))
    }

    #[pyo3(signature = (node, size=65536))]
    fn listxattr(&self, py: Python<'_>, node: u64, size: usize) -> PyResult<Vec<OsString>> {
        let all = self.run(py, |native| native.listxattr(node, size))?;
        let names = all.split(|&byte| byte == 0).filter(|name| !name.is_empty());
        Ok(names.map(|name| OsStr::from_bytes(name).to_owned()).collect())
    }

    fn removexattr(&self, py: Python<'_>, node: u64, name: Name) -> PyResult<()> {
        self.run(py, |native| native.removexattr(node, &name.0))
    }

    #[pyo3(signature = (node, handle, offset, length, mode=0))]
    fn fallocate(&self, py: Python<'_>, node: u64, handle: u64, offset: u64, length: u64, mode: u32) -> PyResult<()> {
        self.run(py, |native| native.fallocate(node, handle, offset, length, mode))
    }

    fn lseek(&self, py: Python<'_>, node: u64, handle: u64, offset: u64, whence: u32) -> PyResult<u64> {
        self.run(py, |native| native.lseek(node, handle, offset, whence))
    }

    /// Maps `length` bytes of a node's file from `offset` on at `window_offset` of the DAX window.
    #[pyo3(signature = (node, offset, length, window_offset, write=false))]
    fn setupmapping(
        &self,
        py: Python<'_>,
        node: u64,
        offset: u64,
        length: u64,
        window_offset: u64,
        write: bool,
    ) -> PyResult<()> {
        let flags = bits::SETUPMAPPING_READ | if write { bits::SETUPMAPPING_WRITE } else { 0 };
        // Linux has no handle at hand here either.
        let args = SetupmappingIn { fh: u64::MAX, foffset: offset, len: length, flags, moffset: window_offset };
        self.run(py, |native| native.setupmapping(node, &args))
    }

    /// Takes ranges, each an offset in the window and a length, out of it.
    fn removemapping(&self, py: Python<'_>, ranges: Vec<(u64, u64)>) -> PyResult<()> {
        let one = |(moffset, len)| RemovemappingOne { moffset, len };
        let ranges: Vec<_> = ranges.into_iter().map(one).collect();
        self.run(py, |native| native.removemapping(1, &ranges))
    }

    #[allow(clippy::too_many_arguments)]
    fn copy_file_range(
        &self,
        py: Python<'_>,
        node: u64,
        handle: u64,
        offset: u64,
        to_node: u64,
        to_handle: u64,
        to_offset: u64,
        length: u64,
    ) -> PyResult<u64> {
        let args = CopyFileRangeIn {
            fh_in: handle,
            off_in: offset,
            nodeid_out: to_node,
            fh_out: to_handle,
            off_out: to_offset,
            len: length,
            flags: 0,
        };
        self.run(py, |native| native.copy_file_range(node, &args, true))
    }
}
