//! The completing half of a queue, shared by all threads that finish its requests.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};
use virtiofs_fuse::Bell;
use virtiofs_virtqueue::{Memory, SharedMemory, Used};

use crate::Call;
use crate::request::Travelling;

/// The most of [`Completer::spare`] that is kept.
const SPARE_MAX: usize = 64;

/// Completes requests of one queue and interrupts the driver.
#[derive(Debug)]
pub(crate) struct Completer {
    memory: Arc<SharedMemory>,
    side: Mutex<Side>,
    /// Requests that were handed to the pool or a lane and are not completed yet.
    elsewhere: AtomicUsize,
    /// Those of them that are on a lane.
    travelling: AtomicUsize,
    /// Somebody waits until there are none; the lock is theirs.
    draining: AtomicBool,
    drain: Mutex<()>,
    none_elsewhere: Condvar,
    /// Messages that were on a lane, empty, for the next that go there: what one thread allocates and another frees is dear.
    // Boxed, as they travel: what is kept is the box as well.
    #[allow(clippy::vec_box)]
    spare: Mutex<Vec<Box<Travelling>>>,
    abandoned: AtomicBool,
    hurried: AtomicBool,
}

#[derive(Debug)]
struct Side {
    used: Used,
    call: Option<Call>,
    memory: Arc<Memory>,
    /// Completed while the ring's memory was away, as when a VMM takes a region back to give another for it.
    owed: VecDeque<Owed>,
    broken: bool,
}

/// A chain that is to be given back, and the bytes that were written.
pub(crate) type Owed = (u16, usize);

impl Completer {
    /// `owed` was completed before and could not be given back yet.
    pub(crate) fn new(memory: &Arc<SharedMemory>, used: Used, call: Option<Call>, owed: VecDeque<Owed>) -> Completer {
        let side = Side { used, call, memory: memory.load(), owed, broken: false };
        Completer {
            memory: Arc::clone(memory),
            side: Mutex::new(side),
            elsewhere: AtomicUsize::new(0),
            travelling: AtomicUsize::new(0),
            draining: AtomicBool::new(false),
            drain: Mutex::default(),
            none_elsewhere: Condvar::new(),
            spare: Mutex::default(),
            abandoned: AtomicBool::new(false),
            hurried: AtomicBool::new(false),
        }
    }

    /// Gives a chain back, and interrupts the driver if it wants that: at once, so that it wakes up while we go on with the next
    /// request. A driver that is awake has said so (EVENT_IDX, or a flag) and is left alone.
    pub(crate) fn complete(&self, head: u16, len: usize) {
        let side = &mut *self.side.lock();
        self.memory.refresh(&mut side.memory);
        side.put(head, len);
        side.tell();
    }

    /// Gives a chain back without a word; [`Completer::tell`] has to follow soon.
    pub(crate) fn put(&self, head: u16, len: usize) {
        let side = &mut *self.side.lock();
        self.memory.refresh(&mut side.memory);
        side.put(head, len);
    }

    /// Interrupts the driver if it wants that for what was given back since the last time.
    pub(crate) fn tell(&self) {
        let side = &mut *self.side.lock();
        self.memory.refresh(&mut side.memory);
        side.tell();
    }

    /// What could not be given back so far.
    pub(crate) fn owed(&self) -> VecDeque<Owed> {
        self.side.lock().owed.clone()
    }

    /// Interrupts the driver, whether it wants that or not: an earlier interrupt may not have been seen.
    pub(crate) fn interrupt(&self) {
        let side = &mut *self.side.lock();
        side.pay();
        if let Some(call) = &side.call {
            call.raise();
        }
    }

    /// Replaces the way by which the driver is interrupted, and uses it once: an interrupt that went the old way may not have
    /// been seen.
    pub(crate) fn set_call(&self, call: Option<Call>) {
        let side = &mut *self.side.lock();
        side.call = call;
        if let Some(call) = &side.call {
            call.raise();
        }
    }

    /// Lets go of memory that the guest no longer has, and gives back what waited for memory that it has again.
    pub(crate) fn refresh(&self) {
        let side = &mut *self.side.lock();
        self.memory.refresh(&mut side.memory);
        if side.pay() {
            side.tell();
        }
    }

    /// A request goes to the pool or a lane; answers how many are there.
    pub(crate) fn leave(&self) -> usize {
        self.elsewhere.fetch_add(1, Ordering::Relaxed) + 1
    }

    /// How many requests are on a lane and have no reply.
    pub(crate) fn travelling(&self) -> usize {
        self.travelling.load(Ordering::Relaxed)
    }

    /// An empty message, for a request that goes to a lane.
    pub(crate) fn spare(&self) -> Box<Travelling> {
        self.travelling.fetch_add(1, Ordering::Relaxed);
        self.spare.lock().pop().unwrap_or_default()
    }

    /// Takes a message back whose request was answered.
    pub(crate) fn keep(&self, empty: Box<Travelling>) {
        self.travelling.fetch_sub(1, Ordering::Relaxed);
        let mut spare = self.spare.lock();
        if spare.len() < SPARE_MAX {
            spare.push(empty);
        }
    }

    /// The driver is gone, and nobody waits for what was not begun.
    pub(crate) fn abandon(&self) {
        self.abandoned.store(true, Ordering::Relaxed);
    }

    /// Whether the driver is gone.
    pub(crate) fn is_abandoned(&self) -> bool {
        self.abandoned.load(Ordering::Relaxed)
    }

    /// What is on a lane is to be answered now: the driver wants its queue back.
    pub(crate) fn hurry(&self) {
        self.hurried.store(true, Ordering::Relaxed);
    }

    /// Whether what is on a lane is to be answered now.
    pub(crate) fn is_in_a_hurry(&self) -> bool {
        self.is_abandoned() || self.hurried.load(Ordering::Relaxed)
    }

    /// A request that went elsewhere is completed, and told.
    pub(crate) fn arrive(&self) {
        self.arrived(1);
    }

    fn arrived(&self, count: usize) {
        // Sequentially consistent, as in `drain_until`: of the two, one sees what the other did.
        if self.elsewhere.fetch_sub(count, Ordering::SeqCst) == count && self.draining.load(Ordering::SeqCst) {
            drop(self.drain.lock());
            self.none_elsewhere.notify_all();
        }
    }

    /// Waits until no request is elsewhere.
    pub(crate) fn drain(&self) {
        self.drain_until(None);
    }

    /// As [`Completer::drain`], for so long; answers whether that was enough.
    pub(crate) fn drain_for(&self, patience: Duration) -> bool {
        self.drain_until(Instant::now().checked_add(patience))
    }

    fn drain_until(&self, end: Option<Instant>) -> bool {
        let mut lock = self.drain.lock();
        self.draining.store(true, Ordering::SeqCst);
        while self.elsewhere.load(Ordering::SeqCst) > 0 {
            match end {
                None => self.none_elsewhere.wait(&mut lock),
                Some(end) if self.none_elsewhere.wait_until(&mut lock, end).timed_out() => break,
                Some(_) => {}
            }
        }
        self.draining.store(false, Ordering::SeqCst);
        self.elsewhere.load(Ordering::SeqCst) == 0
    }
}

impl Bell for Completer {
    fn ring(&self, replies: usize) {
        self.tell();
        self.arrived(replies);
    }

    fn presses(&self) -> bool {
        self.is_in_a_hurry() || self.draining.load(Ordering::Relaxed)
    }
}

impl Side {
    fn put(&mut self, head: u16, len: usize) {
        self.owed.push_back((head, len));
        self.pay();
        // No honest driver has more requests in flight than its ring has entries.
        if self.owed.len() > usize::from(self.used.size()) {
            self.owed.pop_back();
        }
    }

    /// Gives back what is owed, as far as the ring can be written; answers whether that was anything.
    fn pay(&mut self) -> bool {
        let before = self.owed.len();
        while let Some(&(head, len)) = self.owed.front() {
            // A reply is never longer than the chain, whose length fits 32 bits.
            if let Err(error) = self.used.complete(&self.memory, head, len as u32) {
                self.check(Err(error));
                break;
            }
            self.owed.pop_front();
        }
        self.owed.len() < before
    }

    fn tell(&mut self) {
        if !self.owed.is_empty() {
            return;
        }
        let result = self.used.wants_call(&self.memory);
        if self.check(result)
            && let Some(call) = &self.call
        {
            call.raise();
        }
    }

    /// A ring that cannot be written is the VMM's doing, or the driver's: said once, and the device goes on.
    fn check(&mut self, result: Result<bool, virtiofs_virtqueue::RingError>) -> bool {
        result.unwrap_or_else(|error| {
            if !std::mem::replace(&mut self.broken, true) {
                tracing::warn!(%error, "requests cannot be completed until the memory of their ring is there again, or the guest resets the device");
            }
            false
        })
    }
}
