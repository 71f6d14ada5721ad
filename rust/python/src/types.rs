//! What operations answer: frozen values.

use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;

use pyo3::prelude::*;
use virtiofs_fuse::wire;
use virtiofs_guest as guest;

/// Attributes of an inode, named as in `os.stat_result`. Times are nanoseconds since the epoch.
#[pyclass(frozen, get_all, eq, hash, module = "virtiofs", skip_from_py_object)]
#[derive(Clone, PartialEq, Eq, Hash)]
pub(crate) struct Attr {
    ino: u64,
    mode: u32,
    nlink: u32,
    uid: u32,
    gid: u32,
    /// Device number in the kernel's 32-bit encoding.
    rdev: u32,
    /// Bytes.
    size: u64,
    /// Units of 512 bytes.
    blocks: u64,
    blksize: u32,
    atime_ns: i128,
    mtime_ns: i128,
    ctime_ns: i128,
    /// Bits of `fuse_attr.flags`.
    flags: u32,
}

const TYPE_MASK: u32 = libc::S_IFMT;

#[pymethods]
impl Attr {
    /// Whether it is a directory.
    #[getter]
    fn is_dir(&self) -> bool {
        self.mode & TYPE_MASK == libc::S_IFDIR
    }

    /// Whether it is a regular file.
    #[getter]
    fn is_file(&self) -> bool {
        self.mode & TYPE_MASK == libc::S_IFREG
    }

    /// Whether it is a symlink.
    #[getter]
    fn is_symlink(&self) -> bool {
        self.mode & TYPE_MASK == libc::S_IFLNK
    }

    /// The mode without the type.
    #[getter]
    fn permissions(&self) -> u32 {
        self.mode & !TYPE_MASK
    }

    fn __repr__(&self) -> String {
        let Attr { ino, mode, nlink, uid, gid, size, mtime_ns, .. } = self;
        format!(
            "Attr(ino={ino}, mode={mode:#o}, nlink={nlink}, uid={uid}, gid={gid}, size={size}, mtime_ns={mtime_ns})"
        )
    }
}

fn nanoseconds(seconds: u64, nanoseconds: u32) -> i128 {
    // Seconds travel unsigned, and are signed on both sides.
    i128::from(seconds as i64) * 1_000_000_000 + i128::from(nanoseconds)
}

impl From<&wire::Attr> for Attr {
    fn from(attr: &wire::Attr) -> Attr {
        Attr {
            ino: attr.ino,
            mode: attr.mode,
            nlink: attr.nlink,
            uid: attr.uid,
            gid: attr.gid,
            rdev: attr.rdev,
            size: attr.size,
            blocks: attr.blocks,
            blksize: attr.blksize,
            atime_ns: nanoseconds(attr.atime, attr.atimensec),
            mtime_ns: nanoseconds(attr.mtime, attr.mtimensec),
            ctime_ns: nanoseconds(attr.ctime, attr.ctimensec),
            flags: attr.flags,
        }
    }
}

/// A name that was looked up: its node id, which guests count and forget, and how long both may be trusted (seconds).
#[pyclass(frozen, get_all, eq, module = "virtiofs", skip_from_py_object)]
#[derive(Clone, PartialEq)]
pub(crate) struct Entry {
    node: u64,
    generation: u64,
    entry_timeout: f64,
    attr_timeout: f64,
    attr: Attr,
}

#[pymethods]
impl Entry {
    fn __repr__(&self) -> String {
        let Entry { node, entry_timeout, attr_timeout, attr, .. } = self;
        let attr = attr.__repr__();
        format!("Entry(node={node}, entry_timeout={entry_timeout}, attr_timeout={attr_timeout}, attr={attr})")
    }
}

fn seconds(seconds: u64, nanoseconds: u32) -> f64 {
    seconds as f64 + f64::from(nanoseconds) / 1e9
}

impl From<&wire::EntryOut> for Entry {
    fn from(entry: &wire::EntryOut) -> Entry {
        Entry {
            node: entry.nodeid,
            generation: entry.generation,
            entry_timeout: seconds(entry.entry_valid, entry.entry_valid_nsec),
            attr_timeout: seconds(entry.attr_valid, entry.attr_valid_nsec),
            attr: Attr::from(&entry.attr),
        }
    }
}

/// One name of a directory listing. `kind` is the type as in `Attr.mode`, `cookie` where the listing goes on behind it;
/// `entry` is there if attributes were asked for.
#[pyclass(frozen, get_all, eq, module = "virtiofs", skip_from_py_object)]
#[derive(Clone, PartialEq)]
pub(crate) struct DirEntry {
    name: OsString,
    ino: u64,
    kind: u32,
    cookie: u64,
    entry: Option<Entry>,
}

#[pymethods]
impl DirEntry {
    fn __repr__(&self) -> String {
        let DirEntry { name, ino, kind, .. } = self;
        format!("DirEntry({name:?}, ino={ino}, kind={kind:#o})")
    }
}

impl From<guest::DirEntry> for DirEntry {
    fn from(entry: guest::DirEntry) -> DirEntry {
        DirEntry {
            ino: entry.ino,
            kind: entry.kind << 12, // DT_ values are the type bits of a mode, moved down: dirent(3)
            cookie: entry.off,
            entry: entry.entry.as_ref().filter(|entry| entry.nodeid != 0).map(Entry::from),
            name: OsString::from_vec(entry.name),
        }
    }
}

/// An open file or directory: the handle, and the FOPEN flags that came with it.
#[pyclass(frozen, get_all, eq, hash, module = "virtiofs", skip_from_py_object)]
#[derive(Clone, PartialEq, Eq, Hash)]
pub(crate) struct Open {
    handle: u64,
    flags: u32,
}

#[pymethods]
impl Open {
    fn __repr__(&self) -> String {
        format!("Open(handle={}, flags={:#x})", self.handle, self.flags)
    }
}

impl From<&wire::OpenOut> for Open {
    fn from(open: &wire::OpenOut) -> Open {
        Open { handle: open.fh, flags: open.open_flags }
    }
}

/// What statfs(2) says. `blocks`, `bfree` and `bavail` are in units of `frsize` bytes.
#[pyclass(frozen, get_all, eq, hash, module = "virtiofs", skip_from_py_object)]
#[derive(Clone, PartialEq, Eq, Hash)]
pub(crate) struct Statfs {
    blocks: u64,
    bfree: u64,
    bavail: u64,
    files: u64,
    ffree: u64,
    bsize: u32,
    frsize: u32,
    namelen: u32,
}

#[pymethods]
impl Statfs {
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
