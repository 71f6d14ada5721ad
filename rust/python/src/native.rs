//! The native operations of a host directory, for a Python class that overrides some of them: what `super()` calls.
//!
//! Over 400 lines, since it is a few lines for each of 40 operations.

pub(crate) mod node;

use std::ffi::{CString, OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::sync::mpsc;

use pyo3::exceptions::{PyRuntimeError, PyValueError};
use pyo3::prelude::*;
use pyo3::types::PyBytes;
use virtiofs_fuse::wire::*;
use virtiofs_fuse::{Context, DirBuffer, Error, FileSystem, Result, Segments};
use virtiofs_guest::parse_listing;
use virtiofs_hostdir::HostDir;

use self::node::Node;
use crate::attr::Attr;
use crate::buffer::with_bytes;
use crate::client::Name;
use crate::errors::of_errno;
use crate::request::{Changes, Lock, Request};
use crate::types::{DirEntry, Entry, Open, Statfs};

fn raise(py: Python<'_>, error: Error) -> PyErr {
    of_errno(py, error.to_wire())
}

fn c_string(name: Name) -> PyResult<CString> {
    CString::new(name.0).map_err(|_| PyValueError::new_err("a name has no NUL"))
}

/// Runs a native operation without the interpreter.
fn run<T: Send>(
    py: Python<'_>,
    request: &Request,
    work: impl Send + FnOnce(&HostDir, &Context) -> Result<T>,
) -> PyResult<T> {
    let Some(native) = &request.native else {
        return Err(PyRuntimeError::new_err("there is no native operation beneath: super() is a Passthrough's"));
    };
    py.detach(|| work(native, &request.cx)).map_err(|error| raise(py, error))
}

fn entered(py: Python<'_>, request: &Request, entry: &EntryOut) -> PyResult<Option<Entry>> {
    match (&request.native, entry.nodeid) {
        (_, 0) => Ok(None),
        (None, _) => Ok(None),
        (Some(native), id) => {
            let node = Node::held(native, id);
            Ok(Some(Entry::of(py, entry, Py::new(py, node)?.into_any())?))
        }
    }
}

fn made(py: Python<'_>, request: &Request, entry: &EntryOut) -> PyResult<Entry> {
    entered(py, request, entry)?.ok_or_else(|| raise(py, Error::Errno(libc::ESTALE)))
}

/// The operations, each with the arguments of the handler that stands for it.
#[pyclass(frozen, module = "virtiofs._core")]
pub(crate) struct Native;

#[pymethods]
#[allow(clippy::too_many_arguments)]
impl Native {
    #[staticmethod]
    fn lookup(py: Python<'_>, request: &Request, parent: &Node, name: Name) -> PyResult<Option<Entry>> {
        let name = c_string(name)?;
        entered(py, request, &run(py, request, |fs, cx| fs.lookup(cx, parent.id, &name))?)
    }

    #[staticmethod]
    fn getattr(py: Python<'_>, request: &Request, node: &Node, handle: Option<u64>) -> PyResult<Attr> {
        Ok((&run(py, request, |fs, cx| fs.getattr(cx, node.id, handle))?.attr).into())
    }

    #[staticmethod]
    fn statx(py: Python<'_>, request: &Request, node: &Node, handle: Option<u64>, mask: u32) -> PyResult<Attr> {
        Ok((&run(py, request, |fs, cx| fs.statx(cx, node.id, handle, mask))?.stat).into())
    }

    #[staticmethod]
    fn setattr(
        py: Python<'_>,
        request: &Request,
        node: &Node,
        handle: Option<u64>,
        changes: &Changes,
    ) -> PyResult<Attr> {
        let args = SetattrIn { fh: handle.unwrap_or(0), ..changes.args };
        Ok((&run(py, request, |fs, cx| fs.setattr(cx, node.id, &args))?.attr).into())
    }

    #[staticmethod]
    fn readlink(py: Python<'_>, request: &Request, node: &Node) -> PyResult<OsString> {
        let mut target = Vec::new();
        run(py, request, |fs, cx| fs.readlink(cx, node.id, &mut target))?;
        Ok(OsString::from_vec(target))
    }

    #[staticmethod]
    fn symlink(py: Python<'_>, request: &Request, parent: &Node, name: Name, target: Name) -> PyResult<Entry> {
        let (name, target) = (c_string(name)?, c_string(target)?);
        let entry = run(py, request, |fs, cx| fs.symlink(cx, parent.id, &name, &target, &request.creation()))?;
        made(py, request, &entry)
    }

    #[staticmethod]
    fn mknod(py: Python<'_>, request: &Request, parent: &Node, name: Name, mode: u32, rdev: u32) -> PyResult<Entry> {
        let name = c_string(name)?;
        let entry = run(py, request, |fs, cx| fs.mknod(cx, parent.id, &name, mode, rdev, &request.creation()))?;
        made(py, request, &entry)
    }

    #[staticmethod]
    fn mkdir(py: Python<'_>, request: &Request, parent: &Node, name: Name, mode: u32) -> PyResult<Entry> {
        let name = c_string(name)?;
        let entry = run(py, request, |fs, cx| fs.mkdir(cx, parent.id, &name, mode, &request.creation()))?;
        made(py, request, &entry)
    }

    #[staticmethod]
    fn unlink(py: Python<'_>, request: &Request, parent: &Node, name: Name) -> PyResult<()> {
        let name = c_string(name)?;
        run(py, request, |fs, cx| fs.unlink(cx, parent.id, &name))
    }

    #[staticmethod]
    fn rmdir(py: Python<'_>, request: &Request, parent: &Node, name: Name) -> PyResult<()> {
        let name = c_string(name)?;
        run(py, request, |fs, cx| fs.rmdir(cx, parent.id, &name))
    }

    #[staticmethod]
    fn rename(
        py: Python<'_>,
        request: &Request,
        parent: &Node,
        name: Name,
        new_parent: &Node,
        new_name: Name,
        flags: u32,
    ) -> PyResult<()> {
        let (name, new_name) = (c_string(name)?, c_string(new_name)?);
        run(py, request, |fs, cx| fs.rename(cx, parent.id, &name, new_parent.id, &new_name, flags))
    }

    #[staticmethod]
    fn link(py: Python<'_>, request: &Request, node: &Node, new_parent: &Node, new_name: Name) -> PyResult<Entry> {
        let name = c_string(new_name)?;
        let entry = run(py, request, |fs, cx| fs.link(cx, node.id, new_parent.id, &name))?;
        made(py, request, &entry)
    }

    #[staticmethod]
    fn open(py: Python<'_>, request: &Request, node: &Node, flags: u32) -> PyResult<Open> {
        Open::by_number(py, &run(py, request, |fs, cx| fs.open(cx, node.id, flags, false))?)
    }

    #[staticmethod]
    fn create(
        py: Python<'_>,
        request: &Request,
        parent: &Node,
        name: Name,
        flags: u32,
        mode: u32,
    ) -> PyResult<(Entry, Open)> {
        let name = c_string(name)?;
        let (entry, open) =
            run(py, request, |fs, cx| fs.create(cx, parent.id, &name, flags, mode, false, &request.creation()))?;
        Ok((made(py, request, &entry)?, Open::by_number(py, &open)?))
    }

    #[staticmethod]
    fn tmpfile(py: Python<'_>, request: &Request, parent: &Node, flags: u32, mode: u32) -> PyResult<(Entry, Open)> {
        let (entry, open) = run(py, request, |fs, cx| fs.tmpfile(cx, parent.id, flags, mode, &request.creation()))?;
        Ok((made(py, request, &entry)?, Open::by_number(py, &open)?))
    }

    #[staticmethod]
    fn read<'py>(
        py: Python<'py>,
        request: &Request,
        node: &Node,
        handle: u64,
        offset: u64,
        size: u32,
    ) -> PyResult<Bound<'py, PyBytes>> {
        let data = run(py, request, |fs, cx| {
            let mut data = vec![0u8; size as usize];
            let vecs = [libc::iovec { iov_base: data.as_mut_ptr().cast(), iov_len: data.len() }];
            let args = ReadIn { fh: handle, offset, size, ..ReadIn::default() };
            let count = fs.read(cx, node.id, &args, Segments::new(&vecs, size as usize))?;
            data.truncate(count);
            Ok(data)
        })?;
        Ok(PyBytes::new(py, &data))
    }

    #[staticmethod]
    fn write(
        py: Python<'_>,
        request: &Request,
        node: &Node,
        handle: u64,
        offset: u64,
        data: &Bound<'_, PyAny>,
    ) -> PyResult<usize> {
        let mut data = with_bytes(data, <[u8]>::to_vec)?;
        run(py, request, |fs, cx| {
            let vecs = [libc::iovec { iov_base: data.as_mut_ptr().cast(), iov_len: data.len() }];
            let args = WriteIn { fh: handle, offset, size: data.len() as u32, ..WriteIn::default() };
            fs.write(cx, node.id, &args, Segments::new(&vecs, data.len()))
        })
    }

    #[staticmethod]
    fn flush(py: Python<'_>, request: &Request, node: &Node, handle: u64) -> PyResult<()> {
        let args = FlushIn { fh: handle, ..FlushIn::default() };
        run(py, request, |fs, cx| fs.flush(cx, node.id, &args))
    }

    #[staticmethod]
    fn fsync(py: Python<'_>, request: &Request, node: &Node, handle: u64, datasync: bool) -> PyResult<()> {
        run(py, request, |fs, cx| fs.fsync(cx, node.id, handle, datasync))
    }

    #[staticmethod]
    fn opendir(py: Python<'_>, request: &Request, node: &Node, flags: u32) -> PyResult<Open> {
        Open::by_number(py, &run(py, request, |fs, cx| fs.opendir(cx, node.id, flags))?)
    }

    /// The whole directory, without "." and "..".
    #[staticmethod]
    fn readdir(py: Python<'_>, request: &Request, node: &Node, handle: u64) -> PyResult<Vec<DirEntry>> {
        let listed = run(py, request, |fs, cx| {
            let (mut all, mut offset, mut out) = (Vec::new(), 0, DirBuffer::default());
            loop {
                out.restart(1 << 16);
                fs.readdir(cx, node.id, handle, offset, false, &mut out)?;
                let listed = parse_listing(out.as_bytes(), false).map_err(|_| Error::Errno(libc::EIO))?;
                let Some(last) = listed.last() else { return Ok(all) };
                offset = last.off;
                all.extend(listed);
            }
        })?;
        let named = listed.into_iter().filter(|entry| entry.name != b"." && entry.name != b"..");
        named.map(|entry| DirEntry::of_guest(py, entry)).collect()
    }

    #[staticmethod]
    fn fsyncdir(py: Python<'_>, request: &Request, node: &Node, handle: u64, datasync: bool) -> PyResult<()> {
        run(py, request, |fs, cx| fs.fsyncdir(cx, node.id, handle, datasync))
    }

    #[staticmethod]
    fn statfs(py: Python<'_>, request: &Request, node: &Node) -> PyResult<Statfs> {
        Ok((&run(py, request, |fs, cx| fs.statfs(cx, node.id))?).into())
    }

    #[staticmethod]
    fn syncfs(py: Python<'_>, request: &Request, node: &Node) -> PyResult<()> {
        run(py, request, |fs, cx| fs.syncfs(cx, node.id))
    }

    #[staticmethod]
    fn setxattr(
        py: Python<'_>,
        request: &Request,
        node: &Node,
        name: Name,
        value: &Bound<'_, PyAny>,
        flags: u32,
    ) -> PyResult<()> {
        let (name, value) = (c_string(name)?, with_bytes(value, <[u8]>::to_vec)?);
        run(py, request, |fs, cx| fs.setxattr(cx, node.id, &name, &value, flags, false))
    }

    #[staticmethod]
    fn getxattr<'py>(py: Python<'py>, request: &Request, node: &Node, name: Name) -> PyResult<Bound<'py, PyBytes>> {
        let name = c_string(name)?;
        let value = run(py, request, |fs, cx| whole(|out| fs.getxattr(cx, node.id, &name, out)))?;
        Ok(PyBytes::new(py, &value))
    }

    #[staticmethod]
    fn listxattr(py: Python<'_>, request: &Request, node: &Node) -> PyResult<Vec<OsString>> {
        let all = run(py, request, |fs, cx| whole(|out| fs.listxattr(cx, node.id, out)))?;
        let names = all.split(|&byte| byte == 0).filter(|name| !name.is_empty());
        Ok(names.map(|name| OsStr::from_bytes(name).to_owned()).collect())
    }

    #[staticmethod]
    fn removexattr(py: Python<'_>, request: &Request, node: &Node, name: Name) -> PyResult<()> {
        let name = c_string(name)?;
        run(py, request, |fs, cx| fs.removexattr(cx, node.id, &name))
    }

    #[staticmethod]
    fn access(py: Python<'_>, request: &Request, node: &Node, mask: u32) -> PyResult<()> {
        run(py, request, |fs, cx| fs.access(cx, node.id, mask))
    }

    #[staticmethod]
    fn fallocate(
        py: Python<'_>,
        request: &Request,
        node: &Node,
        handle: u64,
        offset: u64,
        size: u64,
        mode: u32,
    ) -> PyResult<()> {
        let args = FallocateIn { fh: handle, offset, length: size, mode, padding: 0 };
        run(py, request, |fs, cx| fs.fallocate(cx, node.id, &args))
    }

    #[staticmethod]
    fn lseek(py: Python<'_>, request: &Request, node: &Node, handle: u64, offset: u64, whence: u32) -> PyResult<u64> {
        run(py, request, |fs, cx| fs.lseek(cx, node.id, handle, offset, whence))
    }

    #[staticmethod]
    fn copy_file_range(
        py: Python<'_>,
        request: &Request,
        node: &Node,
        handle: u64,
        offset: u64,
        to_node: &Node,
        to_handle: u64,
        to_offset: u64,
        size: u64,
    ) -> PyResult<u64> {
        let args = CopyFileRangeIn {
            fh_in: handle,
            off_in: offset,
            nodeid_out: to_node.id,
            fh_out: to_handle,
            off_out: to_offset,
            len: size,
            flags: 0,
        };
        run(py, request, |fs, cx| fs.copy_file_range(cx, node.id, &args))
    }

    #[staticmethod]
    fn ioctl<'py>(
        py: Python<'py>,
        request: &Request,
        node: &Node,
        handle: u64,
        command: u32,
        argument: u64,
        data: &Bound<'_, PyAny>,
        size: u32,
    ) -> PyResult<(i32, Bound<'py, PyBytes>)> {
        let input = with_bytes(data, <[u8]>::to_vec)?;
        let args = IoctlIn {
            fh: handle,
            cmd: command,
            arg: argument,
            in_size: input.len() as u32,
            out_size: size,
            ..IoctlIn::default()
        };
        let (result, out) = run(py, request, |fs, cx| {
            let mut out = Vec::new();
            fs.ioctl(cx, node.id, &args, &input, &mut out).map(|result| (result, out))
        })?;
        Ok((result, PyBytes::new(py, &out)))
    }

    #[staticmethod]
    fn getlk(py: Python<'_>, request: &Request, node: &Node, handle: u64, lock: &Lock) -> PyResult<Option<Lock>> {
        let found = run(py, request, |fs, cx| fs.getlk(cx, node.id, &lock_in(handle, lock)))?;
        let FileLock { start, end, kind, pid } = found;
        Ok((kind != libc::F_UNLCK as u32).then_some(Lock { kind, start, end, pid, owner: 0, flock: false }))
    }

    #[staticmethod]
    fn setlk(py: Python<'_>, request: &Request, node: &Node, handle: u64, lock: &Lock) -> PyResult<()> {
        run(py, request, |fs, cx| fs.setlk(cx, node.id, &lock_in(handle, lock)))
    }

    /// Waits for the lock, and keeps its lane from everything else meanwhile.
    #[staticmethod]
    fn setlkw(py: Python<'_>, request: &Request, node: &Node, handle: u64, lock: &Lock) -> PyResult<()> {
        run(py, request, |fs, cx| match fs.setlkw(cx, node.id, &lock_in(handle, lock))? {
            None => Ok(()),
            Some(wait) => {
                let (settled, result) = mpsc::channel();
                fs.settle(wait, Box::new(move |result| _ = settled.send(result)));
                // Dropped unsettled, the session is over.
                result.recv().unwrap_or(Err(Error::Errno(libc::EINTR)))
            }
        })
    }
}

fn lock_in(handle: u64, lock: &Lock) -> LkIn {
    let &Lock { kind, start, end, pid, owner, flock } = lock;
    let lk_flags = if flock { bits::LK_FLOCK } else { 0 };
    LkIn { fh: handle, owner, lk: FileLock { start, end, kind, pid }, lk_flags, padding: 0 }
}

/// What an operation gives that asks for room first.
fn whole(mut ask: impl FnMut(&mut [u8]) -> Result<usize>) -> Result<Vec<u8>> {
    let mut value = vec![0; XATTR_MAX];
    let size = ask(&mut value)?;
    value.truncate(size);
    Ok(value)
}
