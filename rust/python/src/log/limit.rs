//! How often one place in the code may log: at first a good many times, then once in a while. What was left out is counted, and told.

use std::collections::HashMap;
use std::sync::LazyLock;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use tracing::{Event, Level, Metadata};

use super::{Record, emit};

/// Lines of one kind that may come at once.
const BURST: u32 = 50;
/// After that, one in so long.
const PACE: Duration = Duration::from_secs(2);
/// How soon it is told what was left out.
const TELL: Duration = Duration::from_secs(5);

/// What one place logs.
struct Kind {
    level: Level,
    target: &'static str,
    left: u32,
    /// When `left` was last made more.
    since: Instant,
    suppressed: u64,
    /// Its message, as it was the first time.
    message: String,
}

/// Kinds by the address of what describes them, which is a static of its place in the code.
static KINDS: LazyLock<Mutex<Kinds>> = LazyLock::new(Mutex::default);

#[derive(Default)]
struct Kinds {
    by_place: HashMap<usize, Kind>,
    /// The process in which a thread will tell what was left out: a fork has not got it.
    teller: Option<u32>,
}

impl Kind {
    fn new(metadata: &Metadata<'static>, message: String, now: Instant) -> Kind {
        Kind { level: *metadata.level(), target: metadata.target(), left: BURST, since: now, suppressed: 0, message }
    }

    fn admits(&mut self, now: Instant) -> bool {
        let earned =
            (now.saturating_duration_since(self.since).as_millis() / PACE.as_millis()).min(BURST.into()) as u32;
        if earned > 0 {
            self.left = (self.left + earned).min(BURST);
            self.since = now;
        }
        match self.left.checked_sub(1) {
            Some(left) => {
                self.left = left;
                true
            }
            None => {
                self.suppressed += 1;
                false
            }
        }
    }

    /// The line that tells how many were left out since the last one.
    fn tell(&mut self) -> Option<Record> {
        let count = std::mem::take(&mut self.suppressed);
        (count > 0).then(|| Record {
            level: self.level,
            target: self.target,
            message: format!("{} ({count} more suppressed)", self.message),
            fields: Vec::new(),
        })
    }
}

/// Whether an event is to be logged. Whoever asked for everything gets everything.
pub(super) fn admits(event: &Event<'_>) -> bool {
    let metadata = event.metadata();
    if *metadata.level() == Level::TRACE {
        return true;
    }
    let now = Instant::now();
    let mut kinds = KINDS.lock();
    let place = std::ptr::from_ref(metadata) as usize;
    let new = || {
        let mut record = Record::of(metadata);
        event.record(&mut record);
        Kind::new(metadata, record.message, now)
    };
    let admitted = kinds.by_place.entry(place).or_insert_with(new).admits(now);
    let process = std::process::id();
    if !admitted && kinds.teller != Some(process) {
        // Without such a thread it is told when logging ends.
        let thread = std::thread::Builder::new().name("virtiofs-log".into()).stack_size(256 << 10);
        kinds.teller = thread.spawn(keep_telling).ok().map(|_| process);
    }
    admitted
}

/// Tells from time to time, until nothing is left out any more.
fn keep_telling() {
    loop {
        std::thread::sleep(TELL);
        if tell_all() == 0 {
            let mut kinds = KINDS.lock();
            if kinds.by_place.values().all(|kind| kind.suppressed == 0) {
                kinds.teller = None;
                return;
            }
        }
    }
}

/// Tells what was left out; answers of how many kinds.
pub(super) fn tell_all() -> usize {
    let told: Vec<Record> = KINDS.lock().by_place.values_mut().filter_map(Kind::tell).collect();
    let count = told.len();
    told.into_iter().for_each(emit);
    count
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kind_has_its_burst_then_its_pace_and_nothing_is_lost_from_the_count() {
        let start = Instant::now();
        let mut kind = Kind {
            level: Level::WARN,
            target: "here",
            left: BURST,
            since: start,
            suppressed: 0,
            message: "it rains".to_owned(),
        };
        let admitted = (0..1000).filter(|_| kind.admits(start)).count();
        assert_eq!(admitted, BURST as usize);
        assert_eq!(kind.tell().unwrap().message, "it rains (950 more suppressed)");
        assert!(kind.tell().is_none());
        let hour = (0..3600).filter(|second| kind.admits(start + Duration::from_secs(*second))).count();
        assert!((1750..=1850).contains(&hour), "{hour}");
        let later = start + Duration::from_secs(86_400);
        assert_eq!((0..1000).filter(|_| kind.admits(later)).count(), BURST as usize);
    }
}
