//! The DAX window as the server knows it: something that maps what a guest asks for.

use std::os::fd::OwnedFd;

use crate::wire::{RemovemappingOne, SetupmappingIn};
use crate::{Error, Result};

/// An open file whose content may be mapped.
#[derive(Debug)]
pub struct Backing {
    /// The file, open for reading.
    pub fd: OwnedFd,
    /// Whether it is open for writing as well.
    pub writable: bool,
}

/// What a window can do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mappable {
    /// log2 of the alignment of mappings; at most 21.
    pub alignment: u16,
    /// It maps files that are not open for writing too.
    pub read_only: bool,
}

/// A range of memory that the guest sees, and into which files are mapped for it.
pub trait Window: Send + Sync {
    /// A session begins, whether its guest maps files or not: what else there is to see is shown to it.
    fn show(&self) -> Result<()> {
        Ok(())
    }

    /// A session begins in which the guest maps files: whatever an earlier one left is unmapped. Answers what can be mapped, `None` for nothing.
    fn begin(&self) -> Result<Option<Mappable>>;

    /// Maps a range of a node's file, over whatever is mapped there. `open` opens the file, for writing too if it is told so.
    fn map(&self, node: u64, args: &SetupmappingIn, open: &mut dyn FnMut(bool) -> Result<Backing>) -> Result<()>;

    /// Takes ranges away.
    fn unmap(&self, ranges: &[RemovemappingOne]) -> Result<()>;

    /// The guest is about to give a node's file this size: what is behind it the guest does not touch any more.
    fn resizes(&self, _node: u64, _size: u64) {}

    /// Whether anything of a node's file is mapped.
    fn maps(&self, node: u64) -> bool;

    /// A request was handled by which a file may have become longer, or the guest hears that it did. The guest has no reply yet.
    fn catch_up(&self) {}

    /// The session is over: all mappings go, now or before the next session begins.
    fn end(&self);
}

/// An error that the guest's kernel takes for one. ENOMEM and EAGAIN make its fault handler ask again for ever
/// (`dax_fault_return`, `fs/dax.c`).
pub(crate) fn final_error(error: Error) -> Error {
    match error {
        Error::Halted => Error::Halted,
        Error::Errno(errno) if !matches!(errno, libc::ENOMEM | libc::EAGAIN) => Error::Errno(errno),
        _ => Error::Errno(libc::EIO),
    }
}
