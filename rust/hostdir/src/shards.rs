//! Tables that many threads share: a fixed number of small tables, each behind its own lock.

use std::hash::{BuildHasher, RandomState};

use hashbrown::HashTable;
use parking_lot::{RwLock, RwLockReadGuard, RwLockWriteGuard};

const SHARDS: usize = 32;

/// One lock per cache line, so that two threads on two shards share none.
#[repr(align(64))]
struct Shard<T>(RwLock<HashTable<T>>);

/// A hash table cut into shards. The caller hashes, with a [`Seed`], and compares.
pub(crate) struct Shards<T> {
    shards: Box<[Shard<T>]>,
}

impl<T> Shards<T> {
    pub(crate) fn new() -> Shards<T> {
        Shards { shards: (0..SHARDS).map(|_| Shard(RwLock::new(HashTable::new()))).collect() }
    }

    #[inline]
    fn shard(&self, hash: u64) -> &RwLock<HashTable<T>> {
        // hashbrown takes its tags from the topmost bits and its buckets from the lowest; these lie in between.
        &self.shards[(hash >> 40) as usize % SHARDS].0
    }

    #[inline]
    pub(crate) fn read(&self, hash: u64) -> RwLockReadGuard<'_, HashTable<T>> {
        self.shard(hash).read()
    }

    #[inline]
    pub(crate) fn write(&self, hash: u64) -> RwLockWriteGuard<'_, HashTable<T>> {
        self.shard(hash).write()
    }

    pub(crate) fn len(&self) -> usize {
        self.shards.iter().map(|shard| shard.0.read().len()).sum()
    }

    /// Calls `look` with all that is in the table, under the lock of its shard.
    pub(crate) fn each(&self, mut look: impl FnMut(&T)) {
        for shard in &self.shards {
            shard.0.read().iter().for_each(&mut look);
        }
    }

    /// Empties the table and gives its memory back. What is dropped is dropped outside of the locks.
    pub(crate) fn clear(&self) {
        for shard in &self.shards {
            let table = std::mem::take(&mut *shard.0.write());
            drop(table);
        }
    }
}

/// A hash of a few integers that no guest can foresee, so that none can fill one bucket with inode numbers of its choice.
#[derive(Clone, Copy)]
pub(crate) struct Seed(u64);

impl Seed {
    pub(crate) fn new() -> Seed {
        Seed(RandomState::new().hash_one(0))
    }

    #[inline]
    pub(crate) fn hash<const N: usize>(self, words: [u64; N]) -> u64 {
        words.into_iter().fold(self.0, |state, word| {
            let product = u128::from(state ^ word) * 0x9e37_79b9_7f4a_7c15;
            (product >> 64) as u64 ^ product as u64
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn neighbouring_numbers_spread_over_shards_and_tags() {
        let seed = Seed::new();
        let mut shards = [0u32; SHARDS];
        let mut tags = [0u32; 128];
        for number in 0..100_000 {
            let hash = seed.hash([7, number]);
            shards[(hash >> 40) as usize % SHARDS] += 1;
            tags[(hash >> 57) as usize] += 1;
        }
        assert!(shards.iter().all(|&count| (2_500..3_750).contains(&count)), "{shards:?}");
        assert!(tags.iter().all(|&count| (500..1_100).contains(&count)), "{tags:?}");
    }
}
