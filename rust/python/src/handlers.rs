//! The handlers of a Python file system for one guest: which method is called for an operation, and how.
//!
//! A request is handled in two turns, with the call in between ([`crate::turn`]). What each operation gives its method, and makes of what that
//! returns, is in [`operations`].

mod operations;

use std::sync::Arc;
use std::time::Duration;

use pyo3::prelude::*;
use pyo3::types::PyTuple;
use virtiofs_fuse::op::OPCODES;
use virtiofs_fuse::wire::{EntryOut, OpenOut};
use virtiofs_fuse::{Context, Creation, DirBuffer, Error, FileSystem, Opcode, Result};
use virtiofs_hostdir::{Bounds, HostDir};

use crate::backlog::Backlog;
use crate::convert::{self, Fault};
use crate::faults;
use crate::kept::Kept;
use crate::objects::Keepers;
use crate::opened::{Listing, Opened, PYTHON};
use crate::request::Request;
use crate::turn::{self, Call, Turn};

/// A handler.
pub(crate) struct Method {
    pub(crate) callable: Py<PyAny>,
    /// What it returns is to be awaited.
    pub(crate) awaits: bool,
}

/// What lies beneath the handlers.
pub(crate) enum Base {
    /// Nothing: nodes are objects of Python's.
    Own(Arc<Kept>),
    /// A host directory, some of whose operations have handlers.
    Host(Arc<HostDir>),
}

/// Seconds and flags where an answer leaves them open.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Defaults {
    pub(crate) entry_ttl: Duration,
    pub(crate) attr_ttl: Duration,
    pub(crate) negative_ttl: Duration,
    pub(crate) open_flags: u32,
    pub(crate) dir_open_flags: u32,
}

/// The handlers of one file system for one guest.
pub(crate) struct Handlers {
    /// Name of the class, for what is told of faults.
    pub(crate) class: String,
    pub(crate) methods: [Option<Method>; OPCODES],
    pub(crate) base: Base,
    pub(crate) opened: Arc<Opened>,
    pub(crate) defaults: Defaults,
    pub(crate) backlog: Arc<Backlog>,
    pub(crate) keepers: Keepers,
    pub(crate) bounds: Arc<Bounds>,
}

impl Handlers {
    fn method(&self, opcode: Opcode) -> Option<&Method> {
        self.methods.get(opcode as usize)?.as_ref()
    }

    /// The name by which a handler is told of.
    pub(crate) fn name_of(&self, opcode: Opcode) -> String {
        let name = match opcode {
            Opcode::Rename2 => "rename".into(),
            Opcode::CopyFileRange64 => "copy_file_range".into(),
            _ => opcode.name().to_lowercase(),
        };
        format!("{}.{name}", self.class)
    }

    fn serve<T>(
        &self,
        opcode: Opcode,
        cx: &Context,
        new: Option<&Creation<'_>>,
        arguments: impl FnOnce(Python<'_>, Request) -> Result<Py<PyTuple>, Fault>,
        answer: impl FnOnce(&Bound<'_, PyAny>) -> Result<T, Fault>,
    ) -> Result<T> {
        let turn = turn::replace(Turn::Elsewhere);
        Python::attach(|py| {
            let done = match turn {
                Turn::Ask => {
                    let Some(method) = self.method(opcode) else { return Err(Error::Errno(libc::EOPNOTSUPP)) };
                    self.room(opcode)?;
                    let native = match &self.base {
                        Base::Host(native) => Some(Arc::clone(native)),
                        Base::Own(_) => None,
                    };
                    arguments(py, Request::new(cx, opcode, new, native)).and_then(|arguments| {
                        let (callable, awaits) = (method.callable.clone_ref(py), method.awaits);
                        turn::replace(Turn::Call(Call { opcode, callable, arguments, awaits }));
                        Err(Fault::Answer(Error::WouldBlock))
                    })
                }
                Turn::Answer(asked, result) if asked == opcode => {
                    result.map_err(Fault::Raised).and_then(|result| answer(result.bind(py)))
                }
                // The guest wrote over its request between the turns.
                _ => Err(Fault::Answer(Error::Errno(libc::EIO))),
            };
            done.map_err(|fault| match fault {
                Fault::Answer(error) => error,
                Fault::Raised(error) => faults::answer(py, &self.name_of(opcode), error),
            })
        })
    }

    /// Refuses what would have this process hold more for the guest than it may, before a method has done it.
    fn room(&self, opcode: Opcode) -> Result<()> {
        use Opcode::*;
        if let (Base::Own(kept), Mknod | Mkdir | Symlink | Create | Tmpfile) = (&self.base, opcode) {
            kept.nodes.room()?;
        }
        if let Open | Opendir | Create | Tmpfile = opcode { self.room_for_handle() } else { Ok(()) }
    }

    /// A host directory counts its own descriptors.
    fn room_for_handle(&self) -> Result<()> {
        let backings = match &self.base {
            Base::Own(kept) => kept.backings.len(),
            Base::Host(_) => 0,
        };
        self.bounds.room_beside(self.opened.most().max(backings))
    }

    /// The object of a node.
    fn node(&self, node: u64) -> impl Fn(Python<'_>) -> Result<Py<PyAny>, Fault> {
        move |py| convert::node(py, &self.base, node)
    }

    /// The object of a handle.
    fn handle(&self, fh: u64) -> impl Fn(Python<'_>) -> Result<Py<PyAny>, Fault> {
        self.maybe_handle(Some(fh))
    }

    fn maybe_handle(&self, fh: Option<u64>) -> impl Fn(Python<'_>) -> Result<Py<PyAny>, Fault> {
        move |py| {
            let Some(fh) = fh else { return Ok(py.None()) };
            match (self.opened.object(py, fh), &self.base) {
                (Some(object), _) => Ok(object),
                (None, Base::Host(_)) if fh & PYTHON == 0 => Ok(fh.into_pyobject(py)?.into_any().unbind()),
                _ => Ok(py.None()),
            }
        }
    }

    fn entry(&self, answer: &Bound<'_, PyAny>) -> Result<EntryOut, Fault> {
        convert::entry(&self.base, &self.defaults, answer)
    }

    fn open_out(&self, answer: &Bound<'_, PyAny>, node: u64, flags: u32) -> Result<OpenOut, Fault> {
        convert::open(&self.base, &self.opened, answer, node, flags)
    }

    fn created(&self, answer: &Bound<'_, PyAny>) -> Result<(EntryOut, OpenOut), Fault> {
        let Ok((entry, open)) = answer.extract::<(Bound<'_, PyAny>, Bound<'_, PyAny>)>() else {
            return convert::wrong("a pair of an Entry and an Open", answer);
        };
        let entry = self.entry(&entry)?;
        match self.open_out(&open, entry.nodeid, self.defaults.open_flags) {
            Ok(open) => Ok((entry, open)),
            Err(fault) => {
                self.uncount(entry.nodeid);
                Err(fault)
            }
        }
    }

    /// Says that nodes changed, once a handler has done what it was called for, or tried. A host directory says so itself.
    fn moves<T>(&self, nodes: [u64; 2], result: Result<T>) -> Result<T> {
        if let Base::Own(kept) = &self.base
            && !matches!(result, Err(Error::WouldBlock))
        {
            nodes.into_iter().for_each(|node| kept.nodes.moved(node));
        }
        result
    }

    fn uncount(&self, node: u64) {
        match &self.base {
            Base::Own(kept) => kept.nodes.forget(node, 1),
            Base::Host(native) => native.forget(node, 1),
        };
    }

    fn nothing(
        &self,
        opcode: Opcode,
        cx: &Context,
        arguments: impl FnOnce(Python<'_>, Request) -> Result<Py<PyTuple>, Fault>,
    ) -> Result<()> {
        self.serve(
            opcode,
            cx,
            None,
            arguments,
            |answer| {
                if answer.is_none() { Ok(()) } else { convert::wrong("None", answer) }
            },
        )
    }

    fn fill(&self, listing: &Listing, offset: u64, plus: bool, out: &mut DirBuffer) -> Result<()> {
        let start = usize::try_from(offset).unwrap_or(usize::MAX);
        for (index, listed) in listing.iter().enumerate().skip(start) {
            if !out.fits(plus, &listed.name) {
                // An empty answer would be the end of the directory.
                return if out.is_empty() { Err(Error::Errno(libc::EINVAL)) } else { Ok(()) };
            }
            let cookie = index as u64 + 1;
            if !plus {
                out.push(&listed.name, listed.ino, listed.kind, cookie);
                continue;
            }
            let entry = listed.entry.as_ref().and_then(|entry| {
                Python::attach(|py| convert::looked_up(&self.base, &self.defaults, entry.bind(py).get(), py).ok())
            });
            let (entry, counted) = (entry.unwrap_or_default(), entry.is_some());
            if !out.push_plus(&listed.name, listed.ino, listed.kind, cookie, &entry) && counted {
                self.uncount(entry.nodeid);
            }
        }
        Ok(())
    }
}
