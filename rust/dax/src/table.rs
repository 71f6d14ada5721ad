//! Mappings side by side, none over another.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::mapping::{MappedFile, Mapping};

/// The mappings of a window, by where they begin.
#[derive(Debug, Default)]
pub(crate) struct Table(BTreeMap<u64, Mapping>);

/// What a range of the window took away.
#[derive(Debug, Default)]
pub(crate) struct Cut {
    /// The mappings that reached into the range, as they were.
    pub(crate) before: Vec<Mapping>,
    /// What is left of them, outside of the range.
    pub(crate) left: Vec<Mapping>,
}

impl Table {
    pub(crate) fn len(&self) -> usize {
        self.0.len()
    }

    pub(crate) fn insert(&mut self, mapping: Mapping) {
        self.0.insert(mapping.offset, mapping);
    }

    pub(crate) fn remove(&mut self, offset: u64) {
        self.0.remove(&offset);
    }

    /// The mapping that holds a byte of the window.
    pub(crate) fn at(&self, offset: u64) -> Option<&Mapping> {
        self.0.range(..=offset).next_back().map(|(_, mapping)| mapping).filter(|mapping| mapping.end() > offset)
    }

    /// The mapping that covers exactly this range.
    pub(crate) fn exactly(&self, offset: u64, len: u64) -> Option<&Mapping> {
        self.0.get(&offset).filter(|mapping| mapping.len == len)
    }

    /// A file of any mapping.
    pub(crate) fn file(&self, key: u64, writable: bool) -> Option<Arc<MappedFile>> {
        let fits = |file: &&Arc<MappedFile>| file.key == key && (file.writable() || !writable);
        self.0.values().map(|mapping| &mapping.file).find(fits).map(Arc::clone)
    }

    pub(crate) fn all(&self) -> Vec<Mapping> {
        self.0.values().cloned().collect()
    }

    /// What clearing a range would do.
    pub(crate) fn cut(&self, offset: u64, len: u64) -> Cut {
        let end = offset + len;
        let first = self.at(offset).map_or(offset, |mapping| mapping.offset);
        let mut cut = Cut::default();
        for mapping in self.0.range(first..end).map(|(_, mapping)| mapping) {
            if mapping.offset < offset {
                cut.left.push(mapping.part(mapping.offset, offset));
            }
            if mapping.end() > end {
                cut.left.push(mapping.part(end, mapping.end()));
            }
            cut.before.push(mapping.clone());
        }
        cut
    }

    /// Does it.
    pub(crate) fn apply(&mut self, cut: &Cut) {
        for mapping in &cut.before {
            self.0.remove(&mapping.offset);
        }
        for mapping in &cut.left {
            self.insert(mapping.clone());
        }
    }
}
