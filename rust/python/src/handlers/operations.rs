//! The operations of a Python file system: arguments become objects, and what a method returns becomes the answer.
//!
//! Each operation is one expression of two halves, one for each turn.

use std::ffi::{CStr, OsStr};
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::sync::Arc;

use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyTuple};
use virtiofs_fuse::wire::*;
use virtiofs_fuse::{
    ByValue, Context, Creation, DirBuffer, Error, FileSystem, Lost, Negotiated, Opcode, Reader, Result, Saved,
    Unusable, Wait,
};

use super::{Base, Handlers};
use crate::backlog::Work;
use crate::buffer::with_bytes;
use crate::convert::{self, Fault};
use crate::opened::PYTHON;
use crate::request::{Changes, Lock, Request};

/// `(request, …)`, as a handler gets it.
macro_rules! arguments {
    ($($value:expr),* $(,)?) => {
        |py: Python<'_>, request: Request| -> Result<Py<PyTuple>, Fault> {
            let _ = py;
            Ok((Py::new(py, request)?, $($value(py)?),*).into_pyobject(py)?.unbind())
        }
    };
}

/// A value that is the same for all interpreters.
fn plain<'a, T: Clone + 'a>(value: T) -> impl Fn(Python<'_>) -> Result<T, Fault> + 'a {
    move |_| Ok(value.clone())
}

/// A name, as `os` has it.
fn name<'a>(name: &'a CStr) -> impl Fn(Python<'_>) -> Result<&'a OsStr, Fault> + use<'a> {
    move |_| Ok(OsStr::from_bytes(name.to_bytes()))
}

impl FileSystem for Handlers {
    fn init(&self, _negotiated: &Negotiated) {
        self.backlog.push(Work::Begin);
    }

    fn save(&self, out: &mut Saved) -> Result<(), Unusable> {
        self.save_objects(out);
        Ok(())
    }

    fn restore(&self, from: &mut Reader<'_>, lost: &mut Vec<Lost>) -> Result<(), Unusable> {
        self.restore_objects(from, lost)
    }

    fn destroy(&self) {
        self.opened.clear();
        self.backlog.push(Work::End);
    }

    fn forget(&self, node: u64, _nlookup: u64) -> bool {
        self.backlog.forgotten(node, self.method(Opcode::Forget).is_some());
        true
    }

    fn lookup(&self, cx: &Context, parent: u64, n: &CStr) -> Result<EntryOut> {
        self.serve(Opcode::Lookup, cx, None, arguments!(self.node(parent), name(n)), |answer| match answer.is_none() {
            true => convert::negative(&self.defaults),
            false => self.entry(answer),
        })
    }

    fn getattr(&self, cx: &Context, node: u64, fh: Option<u64>) -> Result<AttrOut> {
        self.serve(Opcode::Getattr, cx, None, arguments!(self.node(node), self.maybe_handle(fh)), |answer| {
            convert::attr(&self.defaults, answer, node)
        })
    }

    fn statx(&self, cx: &Context, node: u64, fh: Option<u64>, mask: u32) -> Result<StatxOut> {
        let arguments = arguments!(self.node(node), self.maybe_handle(fh), plain(mask));
        self.serve(Opcode::Statx, cx, None, arguments, |answer| convert::statx(&self.defaults, answer, node))
    }

    fn setattr(&self, cx: &Context, node: u64, args: &SetattrIn) -> Result<AttrOut> {
        let fh = (args.valid & fattr::FH != 0).then_some(args.fh);
        let changes = |py: Python<'_>| Ok::<_, Fault>(Py::new(py, Changes::new(args))?);
        let arguments = arguments!(self.node(node), self.maybe_handle(fh), changes);
        let done =
            self.serve(Opcode::Setattr, cx, None, arguments, |answer| convert::attr(&self.defaults, answer, node));
        self.moves([node; 2], done)
    }

    fn readlink(&self, cx: &Context, node: u64, out: &mut Vec<u8>) -> Result<()> {
        self.serve(Opcode::Readlink, cx, None, arguments!(self.node(node)), |answer| convert::target(answer, out))
    }

    fn symlink(&self, cx: &Context, parent: u64, n: &CStr, target: &CStr, new: &Creation<'_>) -> Result<EntryOut> {
        let arguments = arguments!(self.node(parent), name(n), name(target));
        let done = self.serve(Opcode::Symlink, cx, Some(new), arguments, |answer| self.entry(answer));
        self.moves([parent; 2], done)
    }

    fn mknod(&self, cx: &Context, parent: u64, n: &CStr, mode: u32, rdev: u32, new: &Creation<'_>) -> Result<EntryOut> {
        let arguments = arguments!(self.node(parent), name(n), plain(mode), plain(rdev));
        let done = self.serve(Opcode::Mknod, cx, Some(new), arguments, |answer| self.entry(answer));
        self.moves([parent; 2], done)
    }

    fn mkdir(&self, cx: &Context, parent: u64, n: &CStr, mode: u32, new: &Creation<'_>) -> Result<EntryOut> {
        let arguments = arguments!(self.node(parent), name(n), plain(mode));
        let done = self.serve(Opcode::Mkdir, cx, Some(new), arguments, |answer| self.entry(answer));
        self.moves([parent; 2], done)
    }

    fn unlink(&self, cx: &Context, parent: u64, n: &CStr) -> Result<()> {
        let done = self.nothing(Opcode::Unlink, cx, arguments!(self.node(parent), name(n)));
        self.moves([parent; 2], done)
    }

    fn rmdir(&self, cx: &Context, parent: u64, n: &CStr) -> Result<()> {
        let done = self.nothing(Opcode::Rmdir, cx, arguments!(self.node(parent), name(n)));
        self.moves([parent; 2], done)
    }

    fn rename(&self, cx: &Context, parent: u64, n: &CStr, newparent: u64, newname: &CStr, flags: u32) -> Result<()> {
        let arguments = arguments!(self.node(parent), name(n), self.node(newparent), name(newname), plain(flags));
        let done = self.nothing(Opcode::Rename2, cx, arguments);
        self.moves([parent, newparent], done)
    }

    fn link(&self, cx: &Context, node: u64, newparent: u64, newname: &CStr) -> Result<EntryOut> {
        let arguments = arguments!(self.node(node), self.node(newparent), name(newname));
        let done = self.serve(Opcode::Link, cx, None, arguments, |answer| self.entry(answer));
        self.moves([node, newparent], done)
    }

    fn open(&self, cx: &Context, node: u64, flags: u32, _kill_suidgid: bool) -> Result<OpenOut> {
        let opened = self.serve(Opcode::Open, cx, None, arguments!(self.node(node), plain(flags)), |answer| {
            self.open_out(answer, node, self.defaults.open_flags)
        });
        if flags & libc::O_TRUNC as u32 != 0 { self.moves([node; 2], opened) } else { opened }
    }

    fn create(
        &self,
        cx: &Context,
        parent: u64,
        n: &CStr,
        flags: u32,
        mode: u32,
        _kill_suidgid: bool,
        new: &Creation<'_>,
    ) -> Result<(EntryOut, OpenOut)> {
        let arguments = arguments!(self.node(parent), name(n), plain(flags), plain(mode));
        let done = self.serve(Opcode::Create, cx, Some(new), arguments, |answer| self.created(answer));
        self.moves([parent; 2], done)
    }

    fn tmpfile(
        &self,
        cx: &Context,
        parent: u64,
        flags: u32,
        mode: u32,
        new: &Creation<'_>,
    ) -> Result<(EntryOut, OpenOut)> {
        let arguments = arguments!(self.node(parent), plain(flags), plain(mode));
        self.serve(Opcode::Tmpfile, cx, Some(new), arguments, |answer| self.created(answer))
    }

    fn by_value(&self) -> Option<&dyn ByValue> {
        Some(self)
    }

    fn flush(&self, cx: &Context, node: u64, args: &FlushIn) -> Result<()> {
        self.nothing(Opcode::Flush, cx, arguments!(self.node(node), self.handle(args.fh)))
    }

    fn release(&self, cx: &Context, node: u64, args: &ReleaseIn) -> Result<Option<OwnedFd>> {
        self.close(Opcode::Release, cx, node, args)
    }

    fn fsync(&self, cx: &Context, node: u64, fh: u64, datasync: bool) -> Result<()> {
        self.nothing(Opcode::Fsync, cx, arguments!(self.node(node), self.handle(fh), plain(datasync)))
    }

    fn opendir(&self, cx: &Context, node: u64, flags: u32) -> Result<OpenOut> {
        self.serve(Opcode::Opendir, cx, None, arguments!(self.node(node), plain(flags)), |answer| {
            convert::opendir(&self.base, &self.opened, answer, node, self.defaults.dir_open_flags)
        })
    }

    fn readdir(&self, cx: &Context, node: u64, fh: u64, offset: u64, plus: bool, out: &mut DirBuffer) -> Result<()> {
        let opcode = if plus { Opcode::Readdirplus } else { Opcode::Readdir };
        let listing = match (offset, self.opened.listing(fh)) {
            (1.., Some(listing)) => listing,
            // The beginning, also after rewinddir(3): the directory as it is now.
            _ => {
                let arguments = |py: Python<'_>, request| {
                    if !self.opened.knows(fh) {
                        self.room_for_handle()?;
                    }
                    arguments!(self.node(node), self.handle(fh))(py, request)
                };
                let listing = self.serve(opcode, cx, None, arguments, |answer| convert::listing(answer, node))?;
                let listing = Arc::new(listing);
                self.opened.list(fh, Arc::clone(&listing));
                listing
            }
        };
        self.fill(&listing, offset, plus, out)
    }

    fn releasedir(&self, cx: &Context, node: u64, args: &ReleaseIn) -> Result<Option<OwnedFd>> {
        self.close(Opcode::Releasedir, cx, node, args)
    }

    fn fsyncdir(&self, cx: &Context, node: u64, fh: u64, datasync: bool) -> Result<()> {
        self.nothing(Opcode::Fsyncdir, cx, arguments!(self.node(node), self.handle(fh), plain(datasync)))
    }

    fn statfs(&self, cx: &Context, node: u64) -> Result<StatfsOut> {
        self.serve(Opcode::Statfs, cx, None, arguments!(self.node(node)), convert::statfs)
    }

    fn syncfs(&self, cx: &Context, node: u64) -> Result<()> {
        self.nothing(Opcode::Syncfs, cx, arguments!(self.node(node)))
    }

    fn setxattr(&self, cx: &Context, node: u64, n: &CStr, value: &[u8], flags: u32, _kill_sgid: bool) -> Result<()> {
        let value = |py: Python<'_>| Ok::<_, Fault>(PyBytes::new(py, value).unbind());
        let done = self.nothing(Opcode::Setxattr, cx, arguments!(self.node(node), name(n), value, plain(flags)));
        self.moves([node; 2], done)
    }

    fn getxattr(&self, cx: &Context, node: u64, n: &CStr, out: &mut [u8]) -> Result<usize> {
        self.serve(Opcode::Getxattr, cx, None, arguments!(self.node(node), name(n)), |answer| {
            with_bytes(answer, |value| convert::sized(value, out))
                .unwrap_or_else(|_| convert::wrong("bytes or another buffer", answer))
        })
    }

    fn listxattr(&self, cx: &Context, node: u64, out: &mut [u8]) -> Result<usize> {
        self.serve(Opcode::Listxattr, cx, None, arguments!(self.node(node)), |answer| {
            convert::sized(&convert::names(answer)?, out)
        })
    }

    fn removexattr(&self, cx: &Context, node: u64, n: &CStr) -> Result<()> {
        let done = self.nothing(Opcode::Removexattr, cx, arguments!(self.node(node), name(n)));
        self.moves([node; 2], done)
    }

    fn access(&self, cx: &Context, node: u64, mask: u32) -> Result<()> {
        self.nothing(Opcode::Access, cx, arguments!(self.node(node), plain(mask)))
    }

    fn fallocate(&self, cx: &Context, node: u64, args: &FallocateIn) -> Result<()> {
        let arguments =
            arguments!(self.node(node), self.handle(args.fh), plain(args.offset), plain(args.length), plain(args.mode));
        let done = self.nothing(Opcode::Fallocate, cx, arguments);
        self.moves([node; 2], done)
    }

    fn lseek(&self, cx: &Context, node: u64, fh: u64, offset: u64, whence: u32) -> Result<u64> {
        let arguments = arguments!(self.node(node), self.handle(fh), plain(offset), plain(whence));
        self.serve(Opcode::Lseek, cx, None, arguments, |answer| convert::count(answer, i64::MAX as u64))
    }

    fn copy_file_range(&self, cx: &Context, node: u64, args: &CopyFileRangeIn) -> Result<u64> {
        let arguments = arguments!(
            self.node(node),
            self.handle(args.fh_in),
            plain(args.off_in),
            self.node(args.nodeid_out),
            self.handle(args.fh_out),
            plain(args.off_out),
            plain(args.len),
        );
        let done = self.serve(Opcode::CopyFileRange64, cx, None, arguments, |answer| convert::count(answer, args.len));
        self.moves([args.nodeid_out; 2], done)
    }

    fn ioctl(&self, cx: &Context, node: u64, args: &IoctlIn, input: &[u8], out: &mut Vec<u8>) -> Result<i32> {
        let input = |py: Python<'_>| Ok::<_, Fault>(PyBytes::new(py, input).unbind());
        let arguments = arguments!(
            self.node(node),
            self.handle(args.fh),
            plain(args.cmd),
            plain(args.arg),
            input,
            plain(args.out_size)
        );
        self.serve(Opcode::Ioctl, cx, None, arguments, |answer| convert::ioctl(answer, out))
    }

    fn getlk(&self, cx: &Context, node: u64, args: &LkIn) -> Result<FileLock> {
        let lock = |py: Python<'_>| Ok::<_, Fault>(Py::new(py, Lock::of(args))?);
        let arguments = arguments!(self.node(node), self.handle(args.fh), lock);
        self.serve(Opcode::Getlk, cx, None, arguments, convert::lock)
    }

    fn setlk(&self, cx: &Context, node: u64, args: &LkIn) -> Result<()> {
        let lock = |py: Python<'_>| Ok::<_, Fault>(Py::new(py, Lock::of(args))?);
        self.nothing(Opcode::Setlk, cx, arguments!(self.node(node), self.handle(args.fh), lock))
    }

    fn setlkw(&self, cx: &Context, node: u64, args: &LkIn) -> Result<Option<Wait>> {
        let lock = |py: Python<'_>| Ok::<_, Fault>(Py::new(py, Lock::of(args))?);
        let done = self.nothing(Opcode::Setlkw, cx, arguments!(self.node(node), self.handle(args.fh), lock));
        done.map(|()| None)
    }
}

impl ByValue for Handlers {
    fn read(
        &self,
        cx: &Context,
        node: u64,
        args: &ReadIn,
        len: usize,
        put: &mut dyn FnMut(&[u8]) -> Result<()>,
    ) -> Result<usize> {
        let arguments = arguments!(self.node(node), self.handle(args.fh), plain(args.offset), plain(len));
        self.serve(Opcode::Read, cx, None, arguments, |answer| {
            let copy = |data: &[u8]| match data.len() {
                size if size <= len => put(data).map(|()| size).map_err(Fault::Answer),
                size => convert::wrong_value(format!("must return at most {len} bytes, not {size}")),
            };
            with_bytes(answer, copy).unwrap_or_else(|_| convert::wrong("bytes or another buffer", answer))
        })
    }

    fn write(
        &self,
        cx: &Context,
        node: u64,
        args: &WriteIn,
        take: &mut dyn FnMut(&mut [u8]) -> Result<()>,
    ) -> Result<usize> {
        let size = args.size as usize;
        let arguments = |py: Python<'_>, request: Request| -> Result<Py<PyTuple>, Fault> {
            let mut taken = Ok(());
            let data = PyBytes::new_with(py, size, |into| {
                taken = take(into);
                Ok(())
            })?;
            taken.map_err(Fault::Answer)?;
            let (node, handle) = (self.node(node)(py)?, self.handle(args.fh)(py)?);
            Ok((Py::new(py, request)?, node, handle, args.offset, data).into_pyobject(py)?.unbind())
        };
        let done = self.serve(Opcode::Write, cx, None, arguments, |answer| match answer.is_none() {
            true => Ok(size),
            false => convert::count(answer, size as u64).map(|count| count as usize),
        });
        self.moves([node; 2], done)
    }
}

impl Handlers {
    /// Tells the handler of a close, if there is one, and closes then.
    fn close(&self, opcode: Opcode, cx: &Context, node: u64, args: &ReleaseIn) -> Result<Option<OwnedFd>> {
        let told = match self.method(opcode) {
            Some(_) => self.nothing(opcode, cx, arguments!(self.node(node), self.handle(args.fh))),
            None => Ok(()),
        };
        if told == Err(Error::WouldBlock) {
            return Err(Error::WouldBlock);
        }
        self.opened.remove(args.fh);
        let closed = match &self.base {
            Base::Own(kept) => kept.close(args.fh),
            Base::Host(_) if args.fh & PYTHON != 0 => Ok(None),
            Base::Host(native) if opcode == Opcode::Releasedir => native.releasedir(cx, node, args),
            Base::Host(native) => native.release(cx, node, args),
        };
        told.and(match closed {
            // The handler was thorough.
            Err(Error::Errno(libc::EBADF)) => Ok(None),
            closed => closed,
        })
    }
}
