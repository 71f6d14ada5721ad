//! How tests wait for what a watcher's thread does.

use std::thread;
use std::time::{Duration, Instant};

const LONG: Duration = Duration::from_secs(60);

/// Waits until `look` is true; fails with `what` if that takes too long.
pub(crate) fn becomes(what: &str, look: impl Fn() -> bool) {
    let end = Instant::now() + LONG;
    while !look() {
        assert!(Instant::now() < end, "{what}");
        thread::sleep(Duration::from_millis(1));
    }
}
