//! The reader's side: what a guest has of the table.

use std::io;
use std::os::fd::AsFd;
use std::path::Path;
use std::sync::atomic::Ordering::Relaxed;

use rustix::fs::{CWD, Mode, OFlags, fstat, openat};

use crate::Error;
use crate::layout;
use crate::map::Map;
use crate::protocol::{self, Version};

/// Bytes of a page, the smallest that there are.
const PAGE: u64 = 4096;

/// A table that can be read.
#[derive(Debug)]
pub struct View(Map);

impl View {
    /// Maps a table to read, from any descriptor of it that can be read.
    ///
    /// # Errors
    /// What fstat(2) and mmap(2) say; [`Error::Foreign`] if this is no table.
    pub fn new(fd: impl AsFd) -> Result<View, Error> {
        View::named(&fd, Path::new("what was given"))
    }

    /// The same by the name of the file.
    pub fn open(path: &Path) -> Result<View, Error> {
        let fd = openat(CWD, path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty()).map_err(io::Error::from)?;
        View::named(&fd, path)
    }

    fn named(fd: &impl AsFd, path: &Path) -> Result<View, Error> {
        Ok(View(checked(fd, path, false)?))
    }

    /// The number of slots; the low bits of a node id are its slot.
    pub fn slots(&self) -> u64 {
        self.0.counters().len() as u64
    }

    /// Where the mapping begins in this process, for whoever shows it to a guest: whole pages that can only be read.
    pub fn address(&self) -> usize {
        self.0.address()
    }

    /// Bytes of the mapping: the table's, and zeros to the end of its last page.
    pub fn size(&self) -> u64 {
        (layout::size(self.slots()) as u64).next_multiple_of(PAGE)
    }

    /// Before a question about a node: what to compare with later.
    #[inline]
    pub fn note(&self, node: u64) -> Version {
        protocol::note(self.0.epoch(), self.0.counter(node))
    }

    /// Whether an answer about a node that was asked for after `noted` still holds.
    #[inline]
    pub fn stands(&self, node: u64, noted: Version) -> bool {
        protocol::stands(self.0.epoch(), self.0.counter(node), noted)
    }
}

/// Maps a table after a look at what the file says of itself.
pub(crate) fn checked(fd: &impl AsFd, path: &Path, writable: bool) -> Result<Map, Error> {
    let foreign = |why| Error::Foreign { path: path.to_path_buf(), why };
    let size = fstat(fd).map_err(io::Error::from)?.st_size;
    let least = layout::size(layout::LEAST_SLOTS);
    if usize::try_from(size).unwrap_or(0) < least {
        return Err(foreign("it is too short"));
    }
    // The header lies in the first page of the smallest table, whatever this one is.
    let head = Map::new(fd, layout::LEAST_SLOTS, false).map_err(io::Error::from)?;
    let slots = layout::slots(head.magic().load(Relaxed), head.shape().load(Relaxed)).map_err(foreign)?;
    if usize::try_from(size).ok() != Some(layout::size(slots)) {
        return Err(foreign("its size is not what its header says"));
    }
    Ok(Map::new(fd, slots, writable).map_err(io::Error::from)?)
}
