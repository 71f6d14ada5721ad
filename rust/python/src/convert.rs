//! What handlers return, as the wire has it.

use std::os::fd::OwnedFd;
use std::time::Duration;

use pyo3::exceptions::{PyTypeError, PyValueError};
use pyo3::prelude::*;
use virtiofs_fuse::wire::*;
use virtiofs_fuse::{BACKING, Error, Result};

use crate::attr::Attr;
use crate::buffer::with_bytes;
use crate::client::Name;
use crate::handlers::{Base, Defaults};
use crate::native::node::Node;
use crate::opened::{Listed, Listing, Opened, PYTHON};
use crate::request::Lock;
use crate::types::{DirEntry, Entry, Open, Statfs};

/// Why there is no answer yet, or none.
pub(crate) enum Fault {
    /// The guest gets this, if it is one for the guest.
    Answer(Error),
    /// The handler raised this, or did what this says.
    Raised(PyErr),
}

impl From<PyErr> for Fault {
    fn from(error: PyErr) -> Fault {
        Fault::Raised(error)
    }
}

impl From<std::convert::Infallible> for Fault {
    fn from(never: std::convert::Infallible) -> Fault {
        match never {}
    }
}

impl From<Error> for Fault {
    fn from(error: Error) -> Fault {
        Fault::Answer(error)
    }
}

/// What is told of a handler that returned something of another type.
pub(crate) fn wrong<T>(expected: &str, answer: &Bound<'_, PyAny>) -> Result<T, Fault> {
    let class = answer.get_type();
    let name = class.name().map_or_else(|_| "something else".into(), |name| name.to_string());
    let hint = match name.as_str() {
        "coroutine" => ": declare the method with async def, so that it is awaited",
        _ => "",
    };
    Err(Fault::Raised(PyTypeError::new_err(format!("must return {expected}, not {name}{hint}"))))
}

/// What is told of a handler that returned several things, and among them one of another type.
fn wrong_item<T>(expected: &str, item: &Bound<'_, PyAny>) -> Result<T, Fault> {
    let name = item.get_type().name().map_or_else(|_| "something else".into(), |name| name.to_string());
    Err(Fault::Raised(PyTypeError::new_err(format!("must return an iterable of {expected}, with no {name} in it"))))
}

/// What is told of a handler that returned a value that cannot be.
pub(crate) fn wrong_value<T>(what: String) -> Result<T, Fault> {
    Err(Fault::Raised(PyValueError::new_err(what)))
}

/// The object of a node id.
pub(crate) fn node(py: Python<'_>, base: &Base, node: u64) -> Result<Py<PyAny>, Fault> {
    match base {
        Base::Own(kept) => kept.nodes.get(py, node).ok_or(Fault::Answer(Error::Errno(libc::ESTALE))),
        Base::Host(native) => Ok(Py::new(py, Node::of_guest(native, node))?.into_any()),
    }
}

/// An Entry, whose node counts as looked up once more.
pub(crate) fn entry(base: &Base, defaults: &Defaults, answer: &Bound<'_, PyAny>) -> Result<EntryOut, Fault> {
    match answer.cast::<Entry>() {
        Ok(entry) => looked_up(base, defaults, entry.get(), answer.py()),
        Err(_) => wrong("an Entry", answer),
    }
}

/// As [`entry`], with the class known.
pub(crate) fn looked_up(base: &Base, defaults: &Defaults, entry: &Entry, py: Python<'_>) -> Result<EntryOut, Fault> {
    let attr = typed(entry.attr.get())?;
    let entry_ttl = seconds(entry.entry_timeout, defaults.entry_ttl)?;
    let attr_ttl = seconds(entry.attr_timeout, defaults.attr_ttl)?;
    let object = entry.node.bind(py);
    let nodeid = match base {
        Base::Own(kept) => match kept.nodes.enter(object, attr.mode & libc::S_IFMT == libc::S_IFDIR)? {
            Some(node) => node,
            None => return wrong_value("must not return the root as an entry of a directory".into()),
        },
        Base::Host(native) => match object.cast::<Node>() {
            Ok(node) => node.get().hold(native)?,
            Err(_) => return wrong_value("must return an Entry whose node came from super()".into()),
        },
    };
    Ok(EntryOut {
        nodeid,
        generation: 0,
        entry_valid: entry_ttl.as_secs(),
        entry_valid_nsec: entry_ttl.subsec_nanos(),
        attr_valid: attr_ttl.as_secs(),
        attr_valid_nsec: attr_ttl.subsec_nanos(),
        attr: attr.wire(nodeid),
    })
}

/// The answer to the lookup of a name that is not there: one to remember, or a plain ENOENT.
pub(crate) fn negative(defaults: &Defaults) -> Result<EntryOut, Fault> {
    let ttl = defaults.negative_ttl;
    match ttl.is_zero() {
        true => Err(Fault::Answer(Error::Errno(libc::ENOENT))),
        false => {
            Ok(EntryOut { entry_valid: ttl.as_secs(), entry_valid_nsec: ttl.subsec_nanos(), ..EntryOut::default() })
        }
    }
}

/// Attributes whose mode says what they are of: a guest takes an inode without a type for broken.
fn typed(attr: &Attr) -> Result<&Attr, Fault> {
    match attr.mode & libc::S_IFMT {
        0 => wrong_value(format!("must give a mode with its type, as stat.S_IFREG | {:#o}", attr.mode)),
        _ => Ok(attr),
    }
}

/// An Attr, or an Entry for its attributes and how long they hold.
fn attributes<T>(
    defaults: &Defaults,
    answer: &Bound<'_, PyAny>,
    make: impl FnOnce(&Attr, Duration) -> T,
) -> Result<T, Fault> {
    if let Ok(attr) = answer.cast::<Attr>() {
        return Ok(make(typed(attr.get())?, defaults.attr_ttl));
    }
    let Ok(entry) = answer.cast::<Entry>() else { return wrong("an Attr", answer) };
    let entry = entry.get();
    Ok(make(typed(entry.attr.get())?, seconds(entry.attr_timeout, defaults.attr_ttl)?))
}

pub(crate) fn attr(defaults: &Defaults, answer: &Bound<'_, PyAny>, node: u64) -> Result<AttrOut, Fault> {
    attributes(defaults, answer, |attr, ttl| AttrOut {
        attr_valid: ttl.as_secs(),
        attr_valid_nsec: ttl.subsec_nanos(),
        dummy: 0,
        attr: attr.wire(node),
    })
}

pub(crate) fn statx(defaults: &Defaults, answer: &Bound<'_, PyAny>, node: u64) -> Result<StatxOut, Fault> {
    attributes(defaults, answer, |attr, ttl| StatxOut {
        attr_valid: ttl.as_secs(),
        attr_valid_nsec: ttl.subsec_nanos(),
        stat: attr.statx(node),
        ..StatxOut::default()
    })
}

fn seconds(given: Option<f64>, default: Duration) -> Result<Duration, Fault> {
    let Some(seconds) = given else { return Ok(default) };
    crate::passthrough::timeout(seconds).map_err(Fault::Raised)
}

/// An Open of a file, or None for one without a handle.
pub(crate) fn open(
    base: &Base,
    opened: &Opened,
    answer: &Bound<'_, PyAny>,
    node: u64,
    default_flags: u32,
) -> Result<OpenOut, Fault> {
    opened_as(false, base, opened, answer, node, default_flags)
}

fn opened_as(
    directory: bool,
    base: &Base,
    opened: &Opened,
    answer: &Bound<'_, PyAny>,
    node: u64,
    default_flags: u32,
) -> Result<OpenOut, Fault> {
    if answer.is_none() {
        return Ok(OpenOut { fh: PYTHON, open_flags: default_flags, backing_id: 0 });
    }
    let Ok(open) = answer.cast::<Open>() else { return wrong("an Open or None", answer) };
    let open = open.get();
    if let Some(fh) = open.native {
        return Ok(OpenOut { fh, open_flags: open.flags, backing_id: 0 });
    }
    let mut open_flags = open.flags | default_flags;
    if open.flags & fopen::DIRECT_IO != 0 {
        open_flags &= !fopen::KEEP_CACHE;
    }
    let handle = open.handle.bind(answer.py());
    let fh = match open.backing {
        Some(number) => {
            let Some(Ok(fd)) = open.kept.as_ref().map(OwnedFd::try_clone) else {
                return wrong_value(format!("must return an open descriptor as backing, not {number}"));
            };
            match base {
                Base::Own(kept) => {
                    let blocks = open.blocks.as_ref().map(|blocks| blocks.get().shared());
                    kept.backings.insert(node, fd, blocks)?
                }
                Base::Host(_) if open.blocks.is_some() => {
                    return wrong_value("must return no blocks: files of a host directory are whole".into());
                }
                Base::Host(native) => native.adopt(node, fd)?,
            }
        }
        None if handle.is_none() => PYTHON,
        None => opened.number(),
    };
    debug_assert!(fh & (PYTHON | BACKING) != 0);
    if !handle.is_none() {
        opened.keep(fh, node, directory, handle.clone().unbind());
    }
    Ok(OpenOut { fh, open_flags, backing_id: 0 })
}

/// An Open of a directory, which has a number in any case: the listing is kept by it.
pub(crate) fn opendir(
    base: &Base,
    opened: &Opened,
    answer: &Bound<'_, PyAny>,
    node: u64,
    default_flags: u32,
) -> Result<OpenOut, Fault> {
    if let Ok(open) = answer.cast::<Open>()
        && open.get().backing.is_some()
    {
        return wrong_value("must return no backing: a directory has none".into());
    }
    let mut out = opened_as(true, base, opened, answer, node, default_flags)?;
    if out.fh == PYTHON {
        out.fh = opened.number();
    }
    Ok(out)
}

/// The target of a symlink.
pub(crate) fn target(answer: &Bound<'_, PyAny>, out: &mut Vec<u8>) -> Result<(), Fault> {
    match answer.extract::<Name>() {
        Ok(Name(target)) if !target.contains(&0) && (1..=SYMLINK_MAX).contains(&target.len()) => {
            out.extend(target);
            Ok(())
        }
        Ok(_) => wrong_value(format!("must return 1 to {SYMLINK_MAX} bytes without a NUL")),
        Err(_) => wrong("the target as str or bytes", answer),
    }
}

/// A directory's entries: those that the handler lists, with "." and ".." before them.
pub(crate) fn listing(answer: &Bound<'_, PyAny>, node: u64) -> Result<Listing, Fault> {
    /// What stands for an inode number that nobody knows: 0 would hide the entry from some.
    const SOME_INO: u64 = 0xffff_ffff;
    const DT_DIR: u32 = libc::S_IFDIR >> 12;
    let Ok(entries) = answer.try_iter() else { return wrong("an iterable of DirEntry or str", answer) };
    let dot = |name: &[u8], ino| Listed { name: name.into(), ino, kind: DT_DIR, entry: None };
    let mut all = vec![dot(b".", node), dot(b"..", SOME_INO)];
    for item in entries {
        let item = item?;
        let (name, kind, ino, entry) = match item.cast::<DirEntry>() {
            Ok(entry) => {
                let DirEntry { name, kind, ino, entry, .. } = entry.get();
                let entry = entry.as_ref().map(|entry| entry.clone_ref(item.py()));
                (std::os::unix::ffi::OsStrExt::as_bytes(name.as_os_str()).to_vec(), *kind, *ino, entry)
            }
            Err(_) => match item.extract::<Name>() {
                Ok(Name(name)) => (name, 0, 0, None),
                Err(_) => return wrong_item("DirEntry or str", &item),
            },
        };
        match name.as_slice() {
            b"." | b".." => continue,
            [] => return wrong_value("must not list an empty name".into()),
            bytes if bytes.len() > NAME_MAX || bytes.iter().any(|byte| matches!(byte, b'/' | 0)) => {
                let name = String::from_utf8_lossy(bytes);
                return wrong_value(format!(
                    "must list names of up to {NAME_MAX} bytes without / and NUL, not {name:?}"
                ));
            }
            _ => {}
        }
        let (kind, ino) = match &entry {
            Some(entry) => {
                let attr = entry.bind(item.py()).get().attr.get();
                (attr.mode & libc::S_IFMT, attr.ino)
            }
            None => (kind, ino),
        };
        all.push(Listed { name, ino: if ino == 0 { SOME_INO } else { ino }, kind: kind >> 12, entry });
    }
    Ok(all)
}

pub(crate) fn statfs(answer: &Bound<'_, PyAny>) -> Result<StatfsOut, Fault> {
    match answer.cast::<Statfs>() {
        Ok(statfs) => Ok(statfs.get().into()),
        Err(_) => wrong("a Statfs", answer),
    }
}

/// The names of extended attributes, each closed by a NUL.
pub(crate) fn names(answer: &Bound<'_, PyAny>) -> Result<Vec<u8>, Fault> {
    let Ok(names) = answer.try_iter() else { return wrong("an iterable of str", answer) };
    let mut all = Vec::new();
    for name in names {
        let name = name?;
        match name.extract::<Name>() {
            Ok(Name(name)) => all.extend(name.into_iter().chain([0])),
            Err(_) => return wrong_item("str", &name),
        }
    }
    Ok(all)
}

/// `value` into `out` if there is room, or its size alone if none was given.
pub(crate) fn sized(value: &[u8], out: &mut [u8]) -> Result<usize, Fault> {
    if !out.is_empty() {
        let Some(room) = out.get_mut(..value.len()) else { return Err(Fault::Answer(Error::Errno(libc::ERANGE))) };
        room.copy_from_slice(value);
    } else if value.len() > XATTR_MAX {
        return Err(Fault::Answer(Error::Errno(libc::E2BIG)));
    }
    Ok(value.len())
}

/// A number from 0 to `most`.
pub(crate) fn count(answer: &Bound<'_, PyAny>, most: u64) -> Result<u64, Fault> {
    match answer.extract::<i128>() {
        Ok(count) if (0..=i128::from(most)).contains(&count) => Ok(count as u64),
        Ok(count) => wrong_value(format!("must return 0 to {most}, not {count}")),
        Err(_) => wrong("an int", answer),
    }
}

/// The output of an ioctl, with its result before it if that is not 0.
pub(crate) fn ioctl(answer: &Bound<'_, PyAny>, out: &mut Vec<u8>) -> Result<i32, Fault> {
    if answer.is_none() {
        return Ok(0);
    }
    let (result, output) = match answer.extract::<(i32, Bound<'_, PyAny>)>() {
        Ok((result, output)) => (result, output),
        Err(_) => (0, answer.clone()),
    };
    match with_bytes(&output, |output| out.extend_from_slice(output)) {
        Ok(()) => Ok(result),
        Err(_) => wrong("bytes, or a pair of int and bytes", answer),
    }
}

/// The lock that is in the way, or None.
pub(crate) fn lock(answer: &Bound<'_, PyAny>) -> Result<FileLock, Fault> {
    if answer.is_none() {
        return Ok(FileLock { kind: libc::F_UNLCK as u32, ..FileLock::default() });
    }
    let Ok(lock) = answer.cast::<Lock>() else { return wrong("a Lock or None", answer) };
    let &Lock { kind, start, end, pid, .. } = lock.get();
    Ok(FileLock { start, end, kind, pid })
}
