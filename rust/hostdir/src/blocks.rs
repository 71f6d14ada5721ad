//! Which blocks of a cached file are there: shared by whoever fetches them and by whoever reads the file natively.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

const BITS: u64 = u64::BITS as u64;

/// The blocks of one file, from 0 on. What lies behind the last one counts as there: a file ends where its descriptor says.
#[derive(Debug)]
pub struct Blocks {
    size: u64,
    count: u64,
    there: Box<[AtomicU64]>,
    /// Those that were read since somebody asked.
    read: Box<[AtomicU64]>,
    whole: AtomicBool,
    /// How often a block was taken away.
    taken: AtomicU64,
}

impl Blocks {
    /// So many blocks, none of which is there, of `size` bytes each. None for a size of 0.
    pub fn new(count: u64, size: u64) -> Option<Blocks> {
        if size == 0 {
            return None;
        }
        let words = || (0..count.div_ceil(BITS)).map(|_| AtomicU64::new(0)).collect();
        let (there, read) = (words(), words());
        Some(Blocks { size, count, there, read, whole: AtomicBool::new(false), taken: AtomicU64::new(0) })
    }

    /// How many there are in all.
    pub fn count(&self) -> u64 {
        self.count
    }

    /// Whether a block is there.
    pub fn has(&self, block: u64) -> bool {
        self.is_whole() || test(&self.there, block)
    }

    /// A block is there from now on: its bytes were written to the file before.
    pub fn add(&self, block: u64) {
        if let (true, Some(word)) = (block < self.count, word(&self.there, block)) {
            word.fetch_or(bit(block), Ordering::SeqCst);
        }
    }

    /// A block is there no more: its bytes may go. A read that is under way meanwhile is made again elsewhere.
    pub fn discard(&self, block: u64) {
        if let Some(word) = word(&self.there, block) {
            word.fetch_and(!bit(block), Ordering::SeqCst);
        }
        self.taken.fetch_add(1, Ordering::SeqCst);
    }

    /// Whether a block was read since this was asked last.
    pub fn was_read(&self, block: u64) -> bool {
        word(&self.read, block).is_some_and(|word| word.fetch_and(!bit(block), Ordering::Relaxed) & bit(block) != 0)
    }

    /// Nothing is lacking, and nothing will be taken away: the file may be written, and be of any length.
    pub fn finish(&self) {
        self.whole.store(true, Ordering::SeqCst);
    }

    /// Whether [`Blocks::finish`] was called.
    pub fn is_whole(&self) -> bool {
        self.whole.load(Ordering::SeqCst)
    }

    /// Begins a read of the file; None if something of it is lacking.
    pub(crate) fn begin(&self, offset: u64, len: usize) -> Option<Reading> {
        let reading = Reading(self.taken.load(Ordering::SeqCst));
        if self.is_whole() || len == 0 {
            return Some(reading);
        }
        let last = offset.saturating_add(len as u64 - 1) / self.size;
        for block in offset / self.size..(last + 1).min(self.count) {
            if !test(&self.there, block) {
                return None;
            }
            if let (false, Some(word)) = (test(&self.read, block), word(&self.read, block)) {
                word.fetch_or(bit(block), Ordering::Relaxed);
            }
        }
        Some(reading)
    }

    /// Whether nothing was taken away while a read was under way.
    pub(crate) fn held(&self, reading: &Reading) -> bool {
        self.is_whole() || self.taken.load(Ordering::SeqCst) == reading.0
    }
}

/// A read that is under way.
#[derive(Debug)]
pub(crate) struct Reading(u64);

fn word(words: &[AtomicU64], block: u64) -> Option<&AtomicU64> {
    words.get(usize::try_from(block / BITS).ok()?)
}

fn bit(block: u64) -> u64 {
    1 << (block % BITS)
}

fn test(words: &[AtomicU64], block: u64) -> bool {
    word(words, block).is_some_and(|word| word.load(Ordering::SeqCst) & bit(block) != 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_begin_where_every_block_is_there() {
        let blocks = Blocks::new(70, 4096).unwrap();
        assert!(blocks.begin(0, 1).is_none());
        assert!(blocks.begin(70 * 4096, 100).is_some(), "behind the end is nothing to fetch");
        blocks.add(64);
        blocks.add(65);
        blocks.add(70);
        assert!(blocks.begin(64 * 4096, 8192).is_some());
        assert!(blocks.begin(64 * 4096, 8193).is_none());
        assert!(blocks.begin(64 * 4096 - 1, 2).is_none());
        assert!(!blocks.has(70));
        assert!(blocks.was_read(64));
        assert!(!blocks.was_read(64), "it was asked already");
        assert!(blocks.begin(u64::MAX, usize::MAX).is_some());
    }

    #[test]
    fn a_read_does_not_hold_when_a_block_goes() {
        let blocks = Blocks::new(2, 10).unwrap();
        blocks.add(0);
        let reading = blocks.begin(0, 10).unwrap();
        assert!(blocks.held(&reading));
        blocks.discard(0);
        blocks.add(0);
        assert!(!blocks.held(&reading), "what was read may be the hole in between");
        blocks.finish();
        assert!(blocks.begin(5, 100).is_some_and(|reading| blocks.held(&reading)));
        assert!(Blocks::new(1, 0).is_none());
    }
}
