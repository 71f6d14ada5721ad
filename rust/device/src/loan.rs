//! Processors beside the one that a queue's thread runs on, for long copies while other requests wait.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

/// What can be lent: to each other processor one copy, and one that waits behind it so that it never pauses.
#[derive(Debug)]
pub(crate) struct Processors {
    lent: Arc<AtomicUsize>,
    most: usize,
}

/// Time of another processor, given back when dropped.
#[derive(Debug)]
pub(crate) struct Loan(Arc<AtomicUsize>);

impl Processors {
    /// Those that this process may use.
    pub(crate) fn here() -> Processors {
        Processors::new(thread::available_parallelism().map_or(1, usize::from))
    }

    fn new(count: usize) -> Processors {
        Processors { lent: Arc::default(), most: 2 * (count - 1) }
    }

    /// Lends time of another processor than the caller's, if there is one that has any left.
    pub(crate) fn lend(&self) -> Option<Loan> {
        let more = |lent: usize| (lent < self.most).then_some(lent + 1);
        self.lent.fetch_update(Ordering::Relaxed, Ordering::Relaxed, more).ok()?;
        Some(Loan(Arc::clone(&self.lent)))
    }
}

impl Drop for Loan {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_callers_own_processor_is_not_lent_and_loans_come_back() {
        let processors = Processors::new(3);
        for _ in 0..2 {
            let loans: Vec<Loan> = std::iter::from_fn(|| processors.lend()).collect();
            assert_eq!(loans.len(), 4);
        }
        assert!(Processors::new(1).lend().is_none());
    }
}
