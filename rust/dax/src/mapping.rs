//! What is mapped, and who does it.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

/// Why something is not mapped.
#[derive(Debug, thiserror::Error)]
pub enum Refusal {
    /// Beyond the window, not of whole pages, or of none.
    #[error("no such range of the window")]
    Invalid,
    /// As many mappings as there may be.
    #[error("the window holds as many mappings as it can")]
    Full,
    /// The device is being stopped: nothing can be said to the other side now, and nothing was changed.
    #[error("the device is being stopped")]
    Halted,
    /// The other side, or the kernel, does not do it.
    #[error(transparent)]
    Failed(#[from] io::Error),
}

/// A file that is mapped, open for as long as it is.
#[derive(Debug)]
pub struct MappedFile {
    pub(crate) key: u64,
    fd: OwnedFd,
    stand_in: Option<OwnedFd>,
    writable: bool,
}

impl MappedFile {
    /// A file that is known as `key`, open for writing if `writable`.
    pub fn new(key: u64, fd: OwnedFd, writable: bool, stand_in: Option<OwnedFd>) -> MappedFile {
        MappedFile { key, fd, stand_in, writable }
    }

    /// By what the window's user knows it.
    pub fn key(&self) -> u64 {
        self.key
    }

    /// The file itself, to be read and written without touching the window.
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }

    /// What is handed to whoever maps it: the file, or what the mapper put in its place.
    pub fn to_map(&self) -> BorrowedFd<'_> {
        self.stand_in.as_ref().unwrap_or(&self.fd).as_fd()
    }

    /// Whether the descriptor may write.
    pub fn writable(&self) -> bool {
        self.writable
    }
}

/// A range of a file at a place in the window. All numbers are bytes.
#[derive(Clone, Debug)]
pub struct Mapping {
    /// Where in the window it begins.
    pub offset: u64,
    /// Its length.
    pub len: u64,
    /// The file.
    pub file: Arc<MappedFile>,
    /// Where in the file it begins.
    pub file_offset: u64,
    /// Whether the guest may write there. Never set for a file that was not opened for writing.
    pub writable: bool,
}

impl Mapping {
    pub(crate) fn end(&self) -> u64 {
        self.offset + self.len
    }

    /// The part of this mapping between two offsets of the window that lie in it.
    pub(crate) fn part(&self, start: u64, end: u64) -> Mapping {
        let file_offset = self.file_offset + (start - self.offset);
        Mapping { offset: start, len: end - start, file_offset, ..self.clone() }
    }
}

/// Who maps. Calls come one at a time.
pub trait Mapper: Send + Sync {
    /// Whether a mapping may lie over others and replace them, and a removal may take parts of mappings, each in one step. If not,
    /// only whole mappings come and go, none over another.
    fn overlays(&self) -> bool;

    /// Whether to map for writing at once where the file allows it, since making a mapping writable later leaves a gap for a moment.
    fn writes_early(&self) -> bool {
        !self.overlays()
    }

    /// What is to be mapped in place of `file`.
    fn stand_in(&self, _file: BorrowedFd<'_>, _writable: bool) -> Result<Option<OwnedFd>, Refusal> {
        Ok(None)
    }

    /// Maps a range of a file.
    fn map(&self, mapping: &Mapping) -> Result<(), Refusal>;

    /// Takes away what is mapped there.
    fn unmap(&self, offset: u64, len: u64) -> Result<(), Refusal>;

    /// The file of a mapping that is there has become shorter or longer.
    fn fit(&self, mapping: &Mapping) -> Result<(), Refusal> {
        self.map(mapping)
    }
}

impl<M: Mapper + ?Sized> Mapper for Arc<M> {
    fn overlays(&self) -> bool {
        (**self).overlays()
    }

    fn writes_early(&self) -> bool {
        (**self).writes_early()
    }

    fn stand_in(&self, file: BorrowedFd<'_>, writable: bool) -> Result<Option<OwnedFd>, Refusal> {
        (**self).stand_in(file, writable)
    }

    fn map(&self, mapping: &Mapping) -> Result<(), Refusal> {
        (**self).map(mapping)
    }

    fn unmap(&self, offset: u64, len: u64) -> Result<(), Refusal> {
        (**self).unmap(offset, len)
    }

    fn fit(&self, mapping: &Mapping) -> Result<(), Refusal> {
        (**self).fit(mapping)
    }
}
