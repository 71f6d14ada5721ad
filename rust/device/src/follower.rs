//! The version table, for a kernel that cannot look at it: whatever moves there is told as an invalidation.
//!
//! Names cannot be told one by one: the table says which directory changed, and nobody knows what the kernel remembers of it. So all names
//! are asked for anew when they are used next (INC_EPOCH, Linux 6.16), while attributes, data and listings go node by node. An answer
//! that was given before the change and arrives after the news is not remembered: `fuse_change_attributes` and `fuse_lookup` of Linux
//! compare counters of their own (see also [`News::Moved`]).

use std::collections::{HashSet, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};
use std::{fmt, io};

use virtiofs_coherence::{Changed, Changes};
use virtiofs_fuse::Server;

use crate::news::{News, Tell};
use crate::signals::leave_to_others;

/// What moves within this time is told at once, which bounds the work of a busy directory.
const PAUSE: Duration = Duration::from_millis(1);
/// Only bounds the wait for a wake-up that nobody sends.
const NAP: Duration = Duration::from_secs(10);
/// After which no request is under way that has looked at a file before it moved and not said so; but for hosts that take longer.
const SETTLED: Duration = Duration::from_millis(50);
/// Until it is tried again where too much waits to be told already.
const PATIENCE: Duration = Duration::from_millis(10);

/// The thread that tells. Ends when it is dropped.
pub(crate) struct Follower {
    ends: Arc<AtomicBool>,
    wake: Box<dyn Fn() + Send + Sync>,
    thread: Option<JoinHandle<()>>,
}

impl Follower {
    /// Follows what moves since `changes` were subscribed to, which is before the other side was told anything to remember; or, with
    /// `anew`, was told anything but what `server` knows of: all of that is told to be old first.
    pub(crate) fn start(
        changes: Changes,
        server: Arc<Server>,
        listener: Arc<dyn Tell>,
        anew: bool,
    ) -> io::Result<Follower> {
        let ends = Arc::new(AtomicBool::new(false));
        let wake = Box::new(changes.waker());
        let work = {
            let ends = Arc::clone(&ends);
            move || {
                leave_to_others();
                follow(changes, &server, &*listener, anew, &ends);
            }
        };
        let thread = thread::Builder::new().name("virtiofs-follow".into()).spawn(work)?;
        Ok(Follower { ends, wake, thread: Some(thread) })
    }
}

impl fmt::Debug for Follower {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Follower").finish_non_exhaustive()
    }
}

impl Drop for Follower {
    fn drop(&mut self) {
        self.ends.store(true, Ordering::Release);
        if let Some(thread) = self.thread.take() {
            // A wake-up that comes before the thread sleeps is lost.
            while !thread.is_finished() {
                (self.wake)();
                thread::sleep(PAUSE);
            }
            let _ = thread.join();
        }
    }
}

fn follow(mut changes: Changes, server: &Server, listener: &dyn Tell, anew: bool, ends: &AtomicBool) {
    let mut first = anew.then_some(Changed::All);
    let mut rounds = Rounds::default();
    while !ends.load(Ordering::Acquire) {
        let changed = first.take().or_else(|| changes.wait(rounds.patience(Instant::now())));
        // Outside of a session nothing is remembered.
        if server.negotiated().is_some() {
            let slot = |node| changes.slot_of_node(node);
            for news in rounds.news(changed, Instant::now(), slot, |each| server.known(each)) {
                // Nothing is dropped: while too much waits to be told, this does.
                while listener.tell(news.clone()).is_err() && !ends.load(Ordering::Acquire) {
                    thread::sleep(PATIENCE);
                }
            }
        }
        thread::sleep(PAUSE);
    }
}

/// What moved of late. A node that becomes known while it moves may be told of with attributes from before: the LOOKUP that finds it looks at
/// it first and enters it then. So each round is gone through again when such a request is long over, for nodes that came since.
#[derive(Default)]
struct Rounds(VecDeque<Round>);

struct Round {
    at: Instant,
    changed: Changed,
    told: HashSet<u64>,
}

impl Round {
    fn concerns(&self, node: u64, slot: u64) -> bool {
        concerns(&self.changed, slot) && !self.told.contains(&node)
    }
}

fn concerns(changed: &Changed, slot: u64) -> bool {
    match changed {
        Changed::All => true,
        Changed::Slots(slots) => slots.binary_search(&slot).is_ok(),
    }
}

impl Rounds {
    /// How long there is nothing to do if nothing moves.
    fn patience(&self, now: Instant) -> Duration {
        self.0.front().map_or(NAP, |round| (round.at + SETTLED).saturating_duration_since(now))
    }

    /// What is to be told when `changed` has moved, or nothing did.
    fn news(
        &mut self,
        changed: Option<Changed>,
        now: Instant,
        slot: impl Fn(u64) -> u64,
        known: impl FnOnce(&mut dyn FnMut(u64, bool)),
    ) -> Vec<News> {
        let due = self.0.iter().take_while(|round| round.at + SETTLED <= now).count();
        let due: Vec<Round> = self.0.drain(..due).collect();
        if changed.is_none() && due.is_empty() {
            return Vec::new();
        }
        let mut nodes = Vec::new();
        let mut names = matches!(changed, Some(Changed::All));
        known(&mut |node, directory| {
            let slot = slot(node);
            let moved = changed.as_ref().is_some_and(|changed| concerns(changed, slot));
            if moved || due.iter().any(|round| round.concerns(node, slot)) {
                nodes.push(node);
                names |= directory;
            }
        });
        if let Some(changed) = changed {
            self.0.push_back(Round { at: now, changed, told: nodes.iter().copied().collect() });
        }
        let epoch = names.then_some(News::Epoch).into_iter();
        epoch.chain(nodes.into_iter().map(|node| News::Moved { node })).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(rounds: &mut Rounds, changed: Option<&[u64]>, now: Instant, known: &[(u64, bool)]) -> Vec<News> {
        let changed = changed.map(|slots| Changed::Slots(slots.to_vec()));
        rounds.news(changed, now, |node| node % 64, |each| known.iter().for_each(|(node, kind)| each(*node, *kind)))
    }

    #[test]
    fn a_node_that_comes_while_it_moves_is_told_of_later_and_once() {
        let (mut rounds, now) = (Rounds::default(), Instant::now());
        assert_eq!(rounds.patience(now), NAP);
        assert_eq!(told(&mut rounds, Some(&[5, 6]), now, &[(6, false), (7, false)]), [News::Moved { node: 6 }]);
        assert_eq!(rounds.patience(now), SETTLED);
        let all = [(5, false), (6, false), (7, false)];
        assert_eq!(told(&mut rounds, None, now + SETTLED / 2, &all), []);
        assert_eq!(told(&mut rounds, None, now + SETTLED, &all), [News::Moved { node: 5 }]);
        assert_eq!(told(&mut rounds, None, now + SETTLED, &all), []);
    }

    #[test]
    fn a_directory_that_moves_takes_all_names_along() {
        let (mut rounds, now) = (Rounds::default(), Instant::now());
        let known = [(66, true), (3, false)];
        assert_eq!(told(&mut rounds, Some(&[2]), now, &known), [News::Epoch, News::Moved { node: 66 }]);
        let all = rounds.news(Some(Changed::All), now, |node| node, |each| each(3, false));
        assert_eq!(all, [News::Epoch, News::Moved { node: 3 }]);
    }
}
