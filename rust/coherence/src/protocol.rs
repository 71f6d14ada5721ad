//! The rules of moving and reading counters, with their memory ordering. Everything else is where the words lie.
//!
//! The promise: **an answer that is trusted at some moment contains every change whose reply came before that moment.** Why:
//!
//! 1. A writer changes the file (a system call), then moves the counter ([`bump`], at least release), then replies.
//! 2. A reader notes the counter ([`note`], acquire), then asks; the file is read for it after that.
//! 3. Later it reads the counter again ([`stands`], acquire) and finds the number that it noted.
//! 4. If the writer's reply came before (3), in the sense that some chain of synchronizing steps leads from one to the other, then (3)
//!    reads the writer's number or a later one (coherence of a single word). It is the number that was noted; so (2) has read the
//!    writer's or a later one too, which synchronizes with (1): the change happened before the question, and the answer contains it.
//!
//! Counters never come back to a number: they have 63 bits, which last 292 years at a change per nanosecond.
//!
//! Moving a counter and looking for sleepers are sequentially consistent, as are going to sleep and looking at the counters: of a writer
//! and a sleeper that do not see each other neither can come first. Readers need acquire alone.

use std::sync::atomic::Ordering::{Acquire, SeqCst};

/// Bit of a counter: its slot has a directory that is the root of some share. Node id 1 is the root's in every share, whatever its
/// inode, so slot 1 moves with it.
pub const ROOT: u64 = 1 << 63;
/// The slot of node id 1.
pub const ROOT_SLOT: u64 = 1;

/// A word in shared memory, with the accesses that the protocol has. The one place that names orderings; the model checker's
/// words get the same ones.
pub trait Word {
    /// Reads for a reader.
    fn read(&self) -> u64;
    /// Adds one; answers what was there. A writer's.
    fn advance(&self) -> u64;
    /// Sets bits.
    fn mark(&self, bits: u64);
    /// Reads for somebody who is about to sleep.
    fn peek(&self) -> u64;
}

macro_rules! word {
    ($atomic:ty) => {
        impl Word for $atomic {
            #[inline]
            fn read(&self) -> u64 {
                self.load(Acquire)
            }
            #[inline]
            fn advance(&self) -> u64 {
                self.fetch_add(1, SeqCst)
            }
            fn mark(&self, bits: u64) {
                self.fetch_or(bits, SeqCst);
            }
            fn peek(&self) -> u64 {
                self.load(SeqCst)
            }
        }
    };
}

word!(std::sync::atomic::AtomicU64);

/// What a reader noted of a slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Version {
    pub(crate) epoch: u64,
    pub(crate) counter: u64,
}

/// After a change, before its reply: moves the counter on, and that of all roots if a root has this slot.
#[inline]
pub fn bump<W: Word>(counter: &W, root: &W) {
    if counter.advance() & ROOT != 0 {
        root.advance();
    }
}

/// Before a question: what to compare with later.
#[inline]
pub fn note<W: Word>(epoch: &W, counter: &W) -> Version {
    Version { epoch: epoch.read(), counter: counter.read() }
}

/// Whether an answer to a question after `noted` still holds.
#[inline]
pub fn stands<W: Word>(epoch: &W, counter: &W, noted: Version) -> bool {
    counter.read() == noted.counter && epoch.read() == noted.epoch
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::Ordering::{Acquire, Relaxed, Release, SeqCst};

    use loom::sync::Arc;
    use loom::sync::atomic::{AtomicBool, AtomicU64, fence};
    use loom::thread;

    use super::*;

    word!(AtomicU64);

    /// A file and a table. The file's accesses are relaxed: what orders them is the protocol alone (the host's kernel orders more).
    #[derive(Default)]
    struct World {
        file: AtomicU64,
        counter: AtomicU64,
        root: AtomicU64,
        epoch: AtomicU64,
        replied: AtomicBool,
    }

    /// In every interleaving: whoever knows of a reply and trusts an answer has the change in it.
    #[test]
    fn no_interleaving_trusts_an_answer_without_a_change_that_was_replied_to() {
        loom::model(|| {
            let world = Arc::new(World::default());
            let writer = {
                let world = Arc::clone(&world);
                thread::spawn(move || {
                    world.file.store(1, Relaxed);
                    bump(&world.counter, &world.root);
                    world.replied.store(true, Release);
                })
            };
            let noted = note(&world.epoch, &world.counter);
            let answer = world.file.load(Relaxed);
            let replied = world.replied.load(Acquire);
            let trusted = stands(&world.epoch, &world.counter, noted);
            assert!(!(replied && trusted) || answer == 1, "a stale answer was trusted");
            writer.join().unwrap();
            let again = note(&world.epoch, &world.counter);
            assert_eq!(world.file.load(Relaxed), 1);
            assert!(stands(&world.epoch, &world.counter, again), "nothing moves any more");
        });
    }

    /// The same with two writers on one slot, as two inodes that collide or two daemons.
    #[test]
    fn writers_do_not_hide_each_other() {
        loom::model(|| {
            let world = Arc::new(World::default());
            let write = |bit: u64| {
                let world = Arc::clone(&world);
                thread::spawn(move || {
                    world.file.fetch_or(bit, Relaxed);
                    bump(&world.counter, &world.root);
                })
            };
            let (one, two) = (write(1), write(2));
            let noted = note(&world.epoch, &world.counter);
            let answer = world.file.load(Relaxed);
            one.join().unwrap();
            if stands(&world.epoch, &world.counter, noted) {
                assert_eq!(answer & 1, 1);
            }
            two.join().unwrap();
            assert!(!stands(&world.epoch, &world.counter, noted) || answer == 3);
            assert_eq!(world.counter.load(Relaxed), 2);
        });
    }

    /// A share whose root is a directory in another share: node id 1 goes by slot 1.
    #[test]
    fn a_change_of_a_root_is_seen_by_its_node_id() {
        loom::model(|| {
            let world = Arc::new(World::default());
            // Before a share answers its first request, its root is marked.
            world.counter.mark(ROOT);
            let writer = {
                let world = Arc::clone(&world);
                thread::spawn(move || {
                    world.file.store(1, Relaxed);
                    bump(&world.counter, &world.root);
                    world.replied.store(true, Release);
                })
            };
            let noted = note(&world.epoch, &world.root);
            let answer = world.file.load(Relaxed);
            let replied = world.replied.load(Acquire);
            let trusted = stands(&world.epoch, &world.root, noted);
            assert!(!(replied && trusted) || answer == 1);
            writer.join().unwrap();
        });
    }

    /// Dropped events: everything is stale.
    #[test]
    fn an_epoch_ends_every_trust() {
        loom::model(|| {
            let world = Arc::new(World::default());
            let watcher = {
                let world = Arc::clone(&world);
                thread::spawn(move || {
                    world.file.store(1, Relaxed);
                    world.epoch.advance();
                    world.replied.store(true, Release);
                })
            };
            let noted = note(&world.epoch, &world.counter);
            let answer = world.file.load(Relaxed);
            let replied = world.replied.load(Acquire);
            let trusted = stands(&world.epoch, &world.counter, noted);
            assert!(!(replied && trusted) || answer == 1);
            watcher.join().unwrap();
        });
    }

    /// Who sleeps until a counter moves is woken, or has seen the move. loom knows sequential consistency of fences alone, so fences stand
    /// here between the accesses that are sequentially consistent themselves outside of the model.
    #[test]
    fn no_sleeper_is_left_behind() {
        loom::model(|| {
            let world = Arc::new(World::default());
            let sleepers = Arc::new(AtomicU64::new(0));
            let woken = Arc::new(AtomicBool::new(false));
            let writer = {
                let (world, sleepers, woken) = (Arc::clone(&world), Arc::clone(&sleepers), Arc::clone(&woken));
                thread::spawn(move || {
                    bump(&world.counter, &world.root);
                    fence(SeqCst);
                    if sleepers.load(SeqCst) != 0 {
                        woken.store(true, Relaxed);
                    }
                })
            };
            sleepers.store(1, SeqCst);
            fence(SeqCst);
            let seen = world.counter.peek();
            writer.join().unwrap();
            assert!(seen == 1 || woken.load(Relaxed), "neither saw the other");
        });
    }
}
