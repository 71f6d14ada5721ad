//! What a guest has of Python's, as bytes: nodes and handles that are objects, which their file system says, and finds again.
//!
//! The class has four methods for it (`FileSystem.save_node` and its like). What they cannot do is lost, and listed with the reason, as
//! a deleted file of a host directory is.

use std::collections::{BTreeMap, HashSet};
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;

use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyString};
use virtiofs_fuse::{BACKING, Error, Lost, Reader, Saved, Thing, Unusable};

use crate::client::Name;
use crate::convert::{self, Fault};
use crate::faults;
use crate::fd;
use crate::handlers::{Base, Handlers};
use crate::types::Open;

/// The methods that say and find again.
pub(crate) struct Keepers {
    pub(crate) save_node: Py<PyAny>,
    pub(crate) restore_node: Py<PyAny>,
    pub(crate) save_handle: Py<PyAny>,
    pub(crate) restore_handle: Py<PyAny>,
}

/// What stands for an object: nothing where it cannot be saved, or text or bytes.
enum Token {
    None,
    Bytes(Vec<u8>),
    Text(Vec<u8>),
}

impl Token {
    fn write(&self, out: &mut Saved) {
        let (kind, bytes) = match self {
            Token::None => (0, &[][..]),
            Token::Bytes(bytes) => (1, &bytes[..]),
            Token::Text(text) => (2, &text[..]),
        };
        out.number(kind);
        out.bytes(bytes);
    }

    fn read(from: &mut Reader<'_>) -> Result<Token, Unusable> {
        let (kind, bytes) = (from.number()?, from.bytes()?.to_vec());
        match kind {
            0 => Ok(Token::None),
            1 => Ok(Token::Bytes(bytes)),
            2 => Ok(Token::Text(bytes)),
            _ => Err(Unusable::Broken),
        }
    }

    fn of(answer: &Bound<'_, PyAny>) -> Result<Token, Fault> {
        if answer.is_none() {
            return Ok(Token::None);
        }
        match answer.extract::<Name>() {
            Ok(Name(text)) if answer.is_instance_of::<PyString>() => Ok(Token::Text(text)),
            Ok(Name(bytes)) => Ok(Token::Bytes(bytes)),
            Err(_) => convert::wrong("bytes, a str or None", answer),
        }
    }

    /// As the method gets it that finds again.
    fn object<'py>(&self, py: Python<'py>) -> Result<Bound<'py, PyAny>, Fault> {
        match self {
            // The class said that it cannot.
            Token::None => Err(Fault::Answer(Error::Errno(libc::EOPNOTSUPP))),
            Token::Bytes(bytes) => Ok(PyBytes::new(py, bytes).into_any()),
            Token::Text(text) => Ok(OsStr::from_bytes(text).into_pyobject(py)?.into_any()),
        }
    }

    /// For who reads what is lost.
    fn path(&self) -> Vec<u8> {
        match self {
            Token::Text(text) => text.clone(),
            Token::None | Token::Bytes(_) => Vec::new(),
        }
    }
}

impl Handlers {
    fn fault(&self, py: Python<'_>, method: &str, fault: Fault) -> Error {
        match fault {
            Fault::Answer(error) => error,
            Fault::Raised(error) => faults::answer(py, &format!("{}.{method}", self.class), error),
        }
    }

    /// What a method that says something answers; what it fails at cannot be saved.
    fn said<'py>(&self, py: Python<'py>, method: &str, called: PyResult<Bound<'py, PyAny>>) -> Token {
        let token = called.map_err(Fault::Raised).and_then(|answer| Token::of(&answer));
        token.unwrap_or_else(|fault| {
            self.fault(py, method, fault);
            Token::None
        })
    }

    pub(crate) fn save_objects(&self, out: &mut Saved) {
        Python::attach(|py| {
            if let Base::Own(kept) = &self.base {
                out.numbers([kept.nodes.slots(), kept.nodes.next(), kept.backings.next()]);
                let nodes = kept.nodes.all(py);
                out.number(nodes.len() as u64);
                for (id, lookups, directory, object) in nodes {
                    out.numbers([id, lookups, directory.into()]);
                    self.said(py, "save_node", self.keepers.save_node.bind(py).call1((object,))).write(out);
                }
            }
            let backings = match &self.base {
                Base::Own(kept) => kept.backings.all(),
                Base::Host(native) => native.adopted(),
            };
            let mut handles: BTreeMap<u64, (u64, bool, Py<PyAny>)> =
                backings.into_iter().map(|(fh, node)| (fh, (node, false, py.None()))).collect();
            handles.extend(self.opened.all(py));
            out.numbers([self.opened.next(), handles.len() as u64]);
            for (fh, (node, directory, handle)) in handles {
                out.numbers([fh, node, directory.into()]);
                let token = match convert::node(py, &self.base, node) {
                    Ok(node) => {
                        let called = self.keepers.save_handle.bind(py).call1((node, handle));
                        self.said(py, "save_handle", called)
                    }
                    Err(_) => Token::None,
                };
                token.write(out);
            }
        });
    }

    pub(crate) fn restore_objects(&self, from: &mut Reader<'_>, lost: &mut Vec<Lost>) -> Result<(), Unusable> {
        Python::attach(|py| {
            // What a lost node had open is lost with it, and not named again.
            let mut gone: HashSet<u64> =
                lost.iter().filter(|lost| lost.what == Thing::Node).map(|lost| lost.node).collect();
            if let Base::Own(kept) = &self.base {
                let slots = from.number()?;
                if slots != kept.nodes.slots() {
                    let ours = kept.nodes.slots();
                    let text = format!("node ids were made for a version table of {slots} slots, and there are {ours}");
                    return Err(Unusable::Other(text));
                }
                kept.nodes.go_on_from(from.number()?);
                kept.backings.go_on_from(from.number()?);
                for _ in 0..from.number()? {
                    let (id, lookups, directory) = (from.number()?, from.number()?, from.flag()?);
                    let token = Token::read(from)?;
                    let found = token.object(py).and_then(|saved| {
                        let object = self.keepers.restore_node.bind(py).call1((saved,))?;
                        Ok(kept.nodes.enter_again(id, lookups, directory, &object)?)
                    });
                    if let Err(fault) = found {
                        let error = self.fault(py, "restore_node", fault);
                        gone.insert(id);
                        lost.push(Lost { what: Thing::Node, node: id, path: token.path(), error });
                    }
                }
                kept.nodes.all_moved();
            }
            self.opened.go_on_from(from.number()?);
            for _ in 0..from.number()? {
                let (fh, node, directory) = (from.number()?, from.number()?, from.flag()?);
                let token = Token::read(from)?;
                if gone.contains(&node) {
                    continue;
                }
                if let Err(fault) = self.open_again(py, fh, node, directory, &token) {
                    let what = if directory { Thing::Directory } else { Thing::File };
                    let error = self.fault(py, "restore_handle", fault);
                    lost.push(Lost { what, node, path: token.path(), error });
                }
            }
            Ok(())
        })
    }

    fn open_again(&self, py: Python<'_>, fh: u64, node: u64, directory: bool, token: &Token) -> Result<(), Fault> {
        let (saved, object) = (token.object(py)?, convert::node(py, &self.base, node)?);
        let answer = self.keepers.restore_handle.bind(py).call1((object, saved))?;
        let Ok(open) = answer.cast::<Open>() else { return convert::wrong("an Open", &answer) };
        let open = open.get();
        match (open.backing, fh & BACKING != 0) {
            (None, false) => {}
            (Some(number), true) => {
                let Ok(fd) = fd::duplicate(number) else {
                    return convert::wrong_value(format!("must return an open descriptor as backing, not {number}"));
                };
                match &self.base {
                    Base::Own(kept) => {
                        let blocks = open.blocks.as_ref().map(|blocks| blocks.get().shared());
                        kept.backings.insert_again(fh, node, fd, blocks)?;
                    }
                    Base::Host(native) => native.adopt_again(fh, node, fd)?,
                }
            }
            _ => {
                return convert::wrong_value(
                    "must return an Open that has a backing if the one that was saved had".into(),
                );
            }
        }
        let handle = open.handle.bind(py);
        if !handle.is_none() {
            self.opened.keep(fh, node, directory, handle.clone().unbind());
        }
        Ok(())
    }
}
