//! The window: what a guest asked to have mapped where.

use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use parking_lot::Mutex;

use crate::mapping::{MappedFile, Mapper, Mapping, Refusal};
use crate::table::{Cut, Table};

/// All offsets and lengths are multiples of this many bytes: what INIT announces as `map_alignment`.
pub const PAGE: u64 = 4096;
/// What Linux cuts a window into (`FUSE_DAX_SHIFT`, `fs/fuse/dax.c`), in bytes; no window is smaller.
pub const GRANULE: u64 = 2 << 20;
// What a window is healed by.
const _: () = assert!(GRANULE == virtiofs_guard::GRANULE);

/// A size that no window has.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a DAX window of {0} bytes: its size is a power of two, 2 MiB at least")]
pub struct InvalidSize(pub u64);

/// What a guest asks to have mapped, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Range {
    /// Where in the window.
    pub offset: u64,
    /// How much.
    pub len: u64,
    /// Where in the file.
    pub file_offset: u64,
    /// For writing as well.
    pub write: bool,
}

/// What lies at a place of the window.
#[derive(Clone, Debug)]
pub struct Piece {
    /// The file.
    pub file: Arc<MappedFile>,
    /// Where in the file.
    pub file_offset: u64,
    /// Bytes that follow in one mapping.
    pub len: u64,
    /// Whether the guest may write there.
    pub writable: bool,
}

/// A window and what is mapped in it.
#[derive(Debug)]
pub struct Window<M> {
    mapper: M,
    size: u64,
    most: usize,
    table: Mutex<Table>,
}

/// Whether a window can have this size.
pub fn check_size(size: u64) -> Result<(), InvalidSize> {
    if size.is_power_of_two() && size >= GRANULE { Ok(()) } else { Err(InvalidSize(size)) }
}

impl<M: Mapper> Window<M> {
    /// An empty window of `size` bytes, which holds `most` mappings at the most.
    pub fn new(mapper: M, size: u64, most: usize) -> Result<Window<M>, InvalidSize> {
        check_size(size)?;
        Ok(Window { mapper, size, most, table: Mutex::default() })
    }

    /// Its size in bytes.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// Mappings at present.
    pub fn len(&self) -> usize {
        self.table.lock().len()
    }

    /// Whether nothing is mapped.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// What is mapped at present.
    pub fn mappings(&self) -> Vec<Mapping> {
        self.table.lock().all()
    }

    /// Who maps.
    pub fn mapper(&self) -> &M {
        &self.mapper
    }

    /// Maps a range of the file that is known as `key`, over whatever is mapped there.
    ///
    /// `open` opens the file, for writing as well if it is told so, and says whether the descriptor it answers may write. It is not called
    /// while the file is mapped already.
    pub fn map<E: From<Refusal>>(
        &self,
        key: u64,
        range: Range,
        open: impl FnOnce(bool) -> Result<(OwnedFd, bool), E>,
    ) -> Result<(), E> {
        self.check_range(range.offset, range.len)?;
        let end = range.file_offset.checked_add(range.len).filter(|end| i64::try_from(*end).is_ok());
        if end.is_none() || !range.file_offset.is_multiple_of(PAGE) {
            return Err(Refusal::Invalid.into());
        }
        let known = {
            let table = self.table.lock();
            let same = |there: &&Mapping| {
                there.file.key == key && there.file_offset == range.file_offset && (there.writable || !range.write)
            };
            if table.exactly(range.offset, range.len).filter(same).is_some() {
                return Ok(());
            }
            table.file(key, range.write)
        };
        let file = match known {
            Some(file) => file,
            None => {
                let (fd, writable) = open(range.write || self.mapper.writes_early())?;
                let stand_in = self.mapper.stand_in(fd.as_fd(), writable)?;
                Arc::new(MappedFile::new(key, fd, writable, stand_in))
            }
        };
        let writable = file.writable() && (range.write || self.mapper.writes_early());
        if range.write && !writable {
            return Err(Refusal::Failed(rustix::io::Errno::ACCESS.into()).into());
        }
        let Range { offset, len, file_offset, .. } = range;
        Ok(self.place(Mapping { offset, len, file, file_offset, writable })?)
    }

    fn check_range(&self, offset: u64, len: u64) -> Result<(), Refusal> {
        let end = offset.checked_add(len).ok_or(Refusal::Invalid)?;
        let whole = offset.is_multiple_of(PAGE) && len.is_multiple_of(PAGE);
        if len > 0 && end <= self.size && whole { Ok(()) } else { Err(Refusal::Invalid) }
    }

    fn place(&self, mapping: Mapping) -> Result<(), Refusal> {
        let table = &mut *self.table.lock();
        let cut = table.cut(mapping.offset, mapping.len);
        self.check_room(table, &cut, 1)?;
        if self.mapper.overlays() {
            self.mapper.map(&mapping)?;
            table.apply(&cut);
        } else {
            self.make_room(table, &cut)?;
            if let Err(refusal) = self.map_anew(&mapping) {
                // The guest still believes in what was there.
                self.restore(table, &cut);
                return Err(refusal);
            }
        }
        table.insert(mapping);
        Ok(())
    }

    /// A window that is full takes what replaces something, and gives whatever does not leave more pieces than before.
    fn check_room(&self, table: &Table, cut: &Cut, more: usize) -> Result<(), Refusal> {
        let after = table.len() - cut.before.len() + cut.left.len() + more;
        if after > table.len() && after > self.most { Err(Refusal::Full) } else { Ok(()) }
    }

    /// Takes whole mappings away, and puts back what the range leaves of them.
    fn make_room(&self, table: &mut Table, cut: &Cut) -> Result<(), Refusal> {
        for mapping in &cut.before {
            self.remove(table, mapping)?;
        }
        for mapping in &cut.left {
            self.mapper.map(mapping)?;
            table.insert(mapping.clone());
        }
        Ok(())
    }

    /// One mapping goes. If the other side does not know it, it is gone as well.
    fn remove(&self, table: &mut Table, mapping: &Mapping) -> Result<(), Refusal> {
        match self.mapper.unmap(mapping.offset, mapping.len) {
            Err(Refusal::Halted) => return Err(Refusal::Halted),
            Err(refusal) => tracing::debug!(offset = mapping.offset, %refusal, "a mapping was gone already"),
            Ok(()) => {}
        }
        table.remove(mapping.offset);
        Ok(())
    }

    /// Maps where nothing is mapped. The other side may hold something there that an earlier session left, or a request that
    /// was cut off when the device stopped.
    fn map_anew(&self, mapping: &Mapping) -> Result<(), Refusal> {
        match self.mapper.map(mapping) {
            Err(Refusal::Failed(_)) => {
                if let Err(Refusal::Halted) = self.mapper.unmap(mapping.offset, mapping.len) {
                    return Err(Refusal::Halted);
                }
                self.mapper.map(mapping)
            }
            result => result,
        }
    }

    fn restore(&self, table: &mut Table, cut: &Cut) {
        for mapping in &cut.left {
            let _ = self.remove(table, mapping);
        }
        for mapping in &cut.before {
            match self.mapper.map(mapping) {
                Ok(()) => table.insert(mapping.clone()),
                Err(refusal) => tracing::warn!(offset = mapping.offset, %refusal, "a mapping could not be put back"),
            }
        }
    }

    /// Whether something is mapped anywhere in a range.
    pub fn overlaps(&self, offset: u64, len: u64) -> bool {
        self.check_range(offset, len).is_ok() && !self.table.lock().cut(offset, len).before.is_empty()
    }

    /// Whether anything of the file that is known as `key` is mapped.
    pub fn maps(&self, key: u64) -> bool {
        self.table.lock().file(key, false).is_some()
    }

    /// Whether one mapping covers a range, and no more than that.
    pub fn holds_exactly(&self, offset: u64, len: u64) -> bool {
        self.table.lock().exactly(offset, len).is_some()
    }

    /// Takes away whatever is mapped in a range; nothing need be.
    pub fn unmap(&self, offset: u64, len: u64) -> Result<(), Refusal> {
        self.check_range(offset, len)?;
        let table = &mut *self.table.lock();
        let cut = table.cut(offset, len);
        if cut.before.is_empty() {
            return Ok(());
        }
        self.check_room(table, &cut, 0)?;
        if self.mapper.overlays() {
            self.mapper.unmap(offset, len)?;
            table.apply(&cut);
            return Ok(());
        }
        self.make_room(table, &cut)
    }

    /// Takes everything away, whatever the mapper says to it. [`Refusal::Halted`] if it can not be told now: then it will have to be
    /// told before anything else.
    pub fn clear(&self) -> Result<(), Refusal> {
        let table = &mut *self.table.lock();
        if self.mapper.overlays() {
            // Also where nothing is mapped: zeros may have taken the place of what was.
            self.mapper.unmap(0, self.size)?;
            *table = Table::default();
        }
        for mapping in table.all() {
            self.remove(table, &mapping)?;
        }
        Ok(())
    }

    /// What a byte of the window is.
    pub fn resolve(&self, offset: u64) -> Option<Piece> {
        let table = self.table.lock();
        let mapping = table.at(offset)?;
        let inside = offset - mapping.offset;
        Some(Piece {
            file: Arc::clone(&mapping.file),
            file_offset: mapping.file_offset + inside,
            len: mapping.len - inside,
            writable: mapping.writable,
        })
    }

    /// Calls `with` while all these bytes are mapped, for writing if `write`. Nothing is mapped or unmapped meanwhile.
    pub(crate) fn covered(&self, offset: u64, len: u64, write: bool, with: impl FnOnce()) -> Result<(), Refusal> {
        let table = self.table.lock();
        let end = offset.checked_add(len).ok_or(Refusal::Invalid)?;
        let mut at = offset;
        while at < end {
            let mapping = table.at(at).filter(|mapping| mapping.writable || !write).ok_or(Refusal::Invalid)?;
            at = mapping.end();
        }
        with();
        Ok(())
    }

    /// Fits those that `which` names to what their files are now, one after the other. Answers how many.
    pub fn fit(&self, which: impl Fn(&Mapping) -> bool) -> Result<usize, Refusal> {
        let table = self.table.lock();
        let mut count = 0;
        for mapping in table.all().iter().filter(|mapping| which(mapping)) {
            self.mapper.fit(mapping)?;
            count += 1;
        }
        Ok(count)
    }

    /// Maps those that `which` names once more, where they are. Answers how many.
    pub(crate) fn map_again(&self, which: impl Fn(&Mapping) -> bool) -> Result<usize, Refusal> {
        let table = self.table.lock();
        let mut count = 0;
        for mapping in table.all().iter().filter(|mapping| which(mapping)) {
            self.mapper.map(mapping)?;
            count += 1;
        }
        Ok(count)
    }
}
