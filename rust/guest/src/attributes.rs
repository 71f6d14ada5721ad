//! Attributes of files, plain and extended, by path.

use std::path::Path;

use virtiofs_fuse::wire::{Attr, ROOT_ID, SetattrIn, StatfsOut, fattr};

use crate::{Guest, Result};

impl Guest {
    /// Changes attributes: those that `change.valid` names. Symlinks are followed.
    pub fn setattr(&self, path: impl AsRef<Path>, change: &SetattrIn) -> Result<Attr> {
        let pin = self.resolve(path.as_ref(), true)?;
        Ok(self.client().setattr(pin.nodeid, change)?.attr)
    }

    /// chmod(2).
    pub fn chmod(&self, path: impl AsRef<Path>, mode: u32) -> Result<()> {
        let change = SetattrIn { valid: fattr::MODE, mode, ..SetattrIn::default() };
        self.setattr(path, &change).map(drop)
    }

    /// chown(2).
    pub fn chown(&self, path: impl AsRef<Path>, uid: u32, gid: u32) -> Result<()> {
        let change = SetattrIn { valid: fattr::UID | fattr::GID, uid, gid, ..SetattrIn::default() };
        self.setattr(path, &change).map(drop)
    }

    /// truncate(2).
    pub fn truncate(&self, path: impl AsRef<Path>, size: u64) -> Result<()> {
        let change = SetattrIn { valid: fattr::SIZE, size, ..SetattrIn::default() };
        self.setattr(path, &change).map(drop)
    }

    /// Sets access and modification time, in nanoseconds since 1970.
    pub fn utime(&self, path: impl AsRef<Path>, atime_ns: i64, mtime_ns: i64) -> Result<()> {
        let split = |ns: i64| (ns.div_euclid(1_000_000_000) as u64, ns.rem_euclid(1_000_000_000) as u32);
        let ((atime, atimensec), (mtime, mtimensec)) = (split(atime_ns), split(mtime_ns));
        let valid = fattr::ATIME | fattr::MTIME;
        let change = SetattrIn { valid, atime, mtime, atimensec, mtimensec, ..SetattrIn::default() };
        self.setattr(path, &change).map(drop)
    }

    /// statfs(2).
    pub fn statfs(&self, path: impl AsRef<Path>) -> Result<StatfsOut> {
        let pin = self.resolve(path.as_ref(), true)?;
        self.client().statfs(pin.nodeid)
    }

    /// syncfs(2) of the whole share.
    pub fn sync(&self) -> Result<()> {
        self.client().syncfs(ROOT_ID)
    }

    /// The value of an extended attribute; symlinks are followed.
    pub fn getxattr(&self, path: impl AsRef<Path>, name: &[u8]) -> Result<Vec<u8>> {
        let pin = self.resolve(path.as_ref(), true)?;
        match self.client().getxattr_size(pin.nodeid, name)? {
            0 => Ok(Vec::new()),
            size => self.client().getxattr(pin.nodeid, name, size),
        }
    }

    /// Sets an extended attribute; `flags` of setxattr(2).
    pub fn setxattr(&self, path: impl AsRef<Path>, name: &[u8], value: &[u8], flags: u32) -> Result<()> {
        let pin = self.resolve(path.as_ref(), true)?;
        self.client().setxattr(pin.nodeid, name, value, flags)
    }

    /// The names of the extended attributes.
    pub fn listxattr(&self, path: impl AsRef<Path>) -> Result<Vec<Vec<u8>>> {
        let pin = self.resolve(path.as_ref(), true)?;
        let bytes = match self.client().listxattr_size(pin.nodeid)? {
            0 => Vec::new(),
            size => self.client().listxattr(pin.nodeid, size)?,
        };
        Ok(bytes.split(|byte| *byte == 0).filter(|name| !name.is_empty()).map(<[u8]>::to_vec).collect())
    }

    /// Removes an extended attribute.
    pub fn removexattr(&self, path: impl AsRef<Path>, name: &[u8]) -> Result<()> {
        let pin = self.resolve(path.as_ref(), true)?;
        self.client().removexattr(pin.nodeid, name)
    }
}
