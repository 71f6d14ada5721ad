//! How many completions share one interrupt.
//!
//! A driver that catches up with us goes to sleep after each completion, and each interrupt that wakes it costs as much as a short
//! request: a quarter of the daemon's time where there is an idle processor for the driver, a switch to it and back where there is
//! none. So while more requests wait and are short, a few completions are told together. Few, so that the driver refills the ring
//! while we still work on the rest of it: told of all at once, both sides would sleep by turns.

use std::time::{Duration, Instant};

/// The most completions that one interrupt tells.
const MOST: u8 = 4;
/// The longest that a request may take to count as short: less than what an interrupt costs in a virtual machine.
const SHORT: Duration = Duration::from_micros(20);

/// What one worker has not told its driver yet.
#[derive(Debug, Default)]
pub(crate) struct Tact {
    untold: u8,
    /// When the last request was completed, if others waited then.
    last: Option<Instant>,
}

impl Tact {
    /// A request was completed; `more` wait. Answers whether the driver is to be told now.
    pub(crate) fn completed(&mut self, more: bool) -> bool {
        if !more {
            self.last = None;
            return self.told();
        }
        let now = Instant::now();
        let short = self.last.replace(now).is_some_and(|last| now - last < SHORT);
        self.untold += 1;
        if short && self.untold < MOST { false } else { self.told() }
    }

    /// Whether there is something to tell; it is told now.
    pub(crate) fn flush(&mut self) -> bool {
        self.untold > 0 && self.told()
    }

    fn told(&mut self) -> bool {
        self.untold = 0;
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lone_request_is_told_at_once() {
        let mut tact = Tact::default();
        assert!((0..10).all(|_| tact.completed(false)));
        assert!(!tact.flush());
    }

    #[test]
    fn of_many_short_ones_each_is_told_by_the_fourth_or_by_a_flush() {
        let mut tact = Tact::default();
        assert!(tact.completed(true), "nothing is known of how long they take");
        // Short by the clock or not: never more than MOST together, and a flush tells what is left.
        let mut untold = 0;
        for _ in 0..1000 {
            untold += 1;
            if tact.completed(true) {
                untold = 0;
            }
            assert!(untold < MOST);
        }
        assert_eq!(tact.flush(), untold > 0);
        assert!(!tact.flush());
    }

    #[test]
    fn a_long_one_is_told_at_once() {
        let mut tact = Tact { untold: 0, last: Some(Instant::now() - 2 * SHORT) };
        assert!(tact.completed(true));
        let mut tact = Tact { untold: 2, last: Some(Instant::now() - 2 * SHORT) };
        assert!(tact.completed(true), "and those before it with it");
    }
}
