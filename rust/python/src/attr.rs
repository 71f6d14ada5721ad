//! Attributes of an inode.

use pyo3::prelude::*;
use pyo3::types::PyDict;
use virtiofs_fuse::wire;

/// Attributes of an inode, named as in `os.stat_result`. Times are nanoseconds since the epoch.
#[pyclass(frozen, get_all, eq, hash, module = "virtiofs", skip_from_py_object)]
#[derive(Clone, PartialEq, Eq, Hash)]
pub(crate) struct Attr {
    pub(crate) mode: u32,
    /// Inode number; 0 has it made of the node.
    pub(crate) ino: u64,
    pub(crate) nlink: u32,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    /// Device number in the kernel's 32-bit encoding.
    pub(crate) rdev: u32,
    /// Bytes.
    pub(crate) size: u64,
    /// Units of 512 bytes.
    pub(crate) blocks: u64,
    pub(crate) blksize: u32,
    pub(crate) atime_ns: i128,
    pub(crate) mtime_ns: i128,
    pub(crate) ctime_ns: i128,
    /// When the inode was made, where that is known.
    pub(crate) btime_ns: Option<i128>,
    /// Bits of `fuse_attr.flags`.
    pub(crate) flags: u32,
}

const TYPE_MASK: u32 = libc::S_IFMT;
const ATTR_DAX: u32 = wire::bits::ATTR_DAX;

#[pymethods]
impl Attr {
    #[new]
    #[pyo3(signature = (mode, *, size=0, ino=0, nlink=1, uid=0, gid=0, rdev=0, blocks=None, blksize=4096, atime_ns=0, mtime_ns=0,
                        ctime_ns=0, btime_ns=None, flags=0, dax=false))]
    #[allow(clippy::too_many_arguments)]
    fn new(
        mode: u32,
        size: u64,
        ino: u64,
        nlink: u32,
        uid: u32,
        gid: u32,
        rdev: u32,
        blocks: Option<u64>,
        blksize: u32,
        atime_ns: i128,
        mtime_ns: i128,
        ctime_ns: i128,
        btime_ns: Option<i128>,
        flags: u32,
        dax: bool,
    ) -> Attr {
        let blocks = blocks.unwrap_or(size.div_ceil(512));
        let flags = flags | if dax { ATTR_DAX } else { 0 };
        Attr { mode, ino, nlink, uid, gid, rdev, size, blocks, blksize, atime_ns, mtime_ns, ctime_ns, btime_ns, flags }
    }

    /// The attributes in an `os.stat_result`.
    #[staticmethod]
    fn from_stat(stat: &Bound<'_, PyAny>) -> PyResult<Attr> {
        macro_rules! of {
            ($name:literal) => {
                stat.getattr(pyo3::intern!(stat.py(), $name))?.extract()?
            };
        }
        Ok(Attr {
            mode: of!("st_mode"),
            ino: of!("st_ino"),
            nlink: of!("st_nlink"),
            uid: of!("st_uid"),
            gid: of!("st_gid"),
            rdev: encode_device(of!("st_rdev")),
            size: of!("st_size"),
            blocks: of!("st_blocks"),
            blksize: of!("st_blksize"),
            atime_ns: of!("st_atime_ns"),
            mtime_ns: of!("st_mtime_ns"),
            ctime_ns: of!("st_ctime_ns"),
            btime_ns: None,
            flags: 0,
        })
    }

    /// The same attributes with some of them changed. A new `size` changes `blocks` along, unless that is given too.
    #[pyo3(signature = (**changes))]
    fn replace(&self, changes: Option<&Bound<'_, PyDict>>) -> PyResult<Attr> {
        let mut attr = self.clone();
        for (name, value) in changes.into_iter().flatten() {
            match name.cast::<pyo3::types::PyString>()?.to_str()? {
                "mode" => attr.mode = value.extract()?,
                "ino" => attr.ino = value.extract()?,
                "nlink" => attr.nlink = value.extract()?,
                "uid" => attr.uid = value.extract()?,
                "gid" => attr.gid = value.extract()?,
                "rdev" => attr.rdev = value.extract()?,
                "size" => attr.resize(value.extract()?),
                "blocks" => {}
                "blksize" => attr.blksize = value.extract()?,
                "atime_ns" => attr.atime_ns = value.extract()?,
                "mtime_ns" => attr.mtime_ns = value.extract()?,
                "ctime_ns" => attr.ctime_ns = value.extract()?,
                "btime_ns" => attr.btime_ns = value.extract()?,
                "flags" => attr.flags = value.extract()?,
                "dax" => attr.flags = attr.flags & !ATTR_DAX | if value.extract()? { ATTR_DAX } else { 0 },
                other => {
                    let what = format!("replace() got an unexpected keyword argument '{other}'");
                    return Err(pyo3::exceptions::PyTypeError::new_err(what));
                }
            }
        }
        if let Some(blocks) = changes.map(|changes| changes.get_item("blocks")).transpose()?.flatten() {
            attr.blocks = blocks.extract()?;
        }
        Ok(attr)
    }

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

    /// Whether guests map the file, where the device has a DAX window.
    #[getter]
    fn dax(&self) -> bool {
        self.flags & ATTR_DAX != 0
    }

    /// The mode without the type.
    #[getter]
    fn permissions(&self) -> u32 {
        self.mode & !TYPE_MASK
    }

    pub(crate) fn __repr__(&self) -> String {
        let Attr { ino, mode, nlink, uid, gid, size, mtime_ns, .. } = self;
        format!(
            "Attr(mode={mode:#o}, size={size}, ino={ino}, nlink={nlink}, uid={uid}, gid={gid}, mtime_ns={mtime_ns})"
        )
    }
}

impl Attr {
    pub(crate) fn resize(&mut self, size: u64) {
        self.size = size;
        self.blocks = size.div_ceil(512);
    }

    /// As the wire has it; `ino` stands in for a number that was left open.
    pub(crate) fn wire(&self, ino: u64) -> wire::Attr {
        let [(atime, atimensec), (mtime, mtimensec), (ctime, ctimensec)] =
            [self.atime_ns, self.mtime_ns, self.ctime_ns].map(split);
        wire::Attr {
            ino: if self.ino == 0 { ino } else { self.ino },
            size: self.size,
            blocks: self.blocks,
            atime,
            mtime,
            ctime,
            atimensec,
            mtimensec,
            ctimensec,
            mode: self.mode,
            nlink: self.nlink,
            uid: self.uid,
            gid: self.gid,
            rdev: self.rdev,
            blksize: self.blksize,
            flags: self.flags,
        }
    }

    /// The answer to a STATX: all but the birth time is always there.
    pub(crate) fn statx(&self, ino: u64) -> wire::Statx {
        let time = |nanoseconds: i128| {
            let (seconds, tv_nsec) = split(nanoseconds);
            wire::SxTime { tv_sec: seconds as i64, tv_nsec, reserved: 0 }
        };
        wire::Statx {
            mask: libc::STATX_BASIC_STATS | if self.btime_ns.is_some() { libc::STATX_BTIME } else { 0 },
            blksize: self.blksize,
            nlink: self.nlink,
            uid: self.uid,
            gid: self.gid,
            mode: self.mode as u16,
            ino: if self.ino == 0 { ino } else { self.ino },
            size: self.size,
            blocks: self.blocks,
            atime: time(self.atime_ns),
            btime: self.btime_ns.map(time).unwrap_or_default(),
            ctime: time(self.ctime_ns),
            mtime: time(self.mtime_ns),
            // As new_decode_dev of include/linux/kdev_t.h.
            rdev_major: (self.rdev & 0xfff00) >> 8,
            rdev_minor: self.rdev & 0xff | (self.rdev >> 12) & 0xfff00,
            ..wire::Statx::default()
        }
    }
}

/// A host's device number in the kernel's 32-bit encoding: `new_encode_dev` of include/linux/kdev_t.h.
fn encode_device(device: u64) -> u32 {
    let (major, minor) = (libc::major(device), libc::minor(device));
    (minor & 0xff) | (major << 8) | ((minor & !0xff) << 12)
}

/// Nanoseconds since the epoch as seconds and the rest.
pub(crate) fn split(nanoseconds: i128) -> (u64, u32) {
    (nanoseconds.div_euclid(1_000_000_000) as i64 as u64, nanoseconds.rem_euclid(1_000_000_000) as u32)
}

pub(crate) fn nanoseconds(seconds: u64, nanoseconds: u32) -> i128 {
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
            btime_ns: None,
            flags: attr.flags,
        }
    }
}

impl From<&wire::Statx> for Attr {
    fn from(stat: &wire::Statx) -> Attr {
        let time = |time: wire::SxTime| nanoseconds(time.tv_sec as u64, time.tv_nsec);
        Attr {
            ino: stat.ino,
            mode: stat.mode.into(),
            nlink: stat.nlink,
            uid: stat.uid,
            gid: stat.gid,
            rdev: (stat.rdev_minor & 0xff) | (stat.rdev_major << 8) | ((stat.rdev_minor & !0xff) << 12),
            size: stat.size,
            blocks: stat.blocks,
            blksize: stat.blksize,
            atime_ns: time(stat.atime),
            mtime_ns: time(stat.mtime),
            ctime_ns: time(stat.ctime),
            btime_ns: (stat.mask & libc::STATX_BTIME != 0).then(|| time(stat.btime)),
            flags: 0,
        }
    }
}
