//! One queue of the device: a ring that runs, or what is remembered of it while it stands still.

use std::collections::VecDeque;
use std::io;
use std::sync::Arc;

use virtiofs_virtqueue::{Event, Inflight, RingConfig, split};

use crate::Call;
use crate::completer::{Completer, Owed};
use crate::identity::{NOTIFICATION, NOTIFICATION_QUEUE};
use crate::parking::Parking;
use crate::running::{Running, Surroundings};

/// One queue, whatever the transport by which it was described.
#[derive(Debug, Default)]
pub(crate) struct Queue {
    kick: Option<Arc<Event>>,
    call: Option<Call>,
    running: Option<Running>,
    parking: Arc<Parking>,
    /// Where the queue stood when it was stopped: going on from there, it still knows the requests that wait.
    stopped_at: Option<u16>,
    /// Where the chains begin that were taken before, are not completed, and nobody has any more.
    again: Vec<u16>,
    /// What was completed, and could not be given back before the queue was stopped.
    owed: VecDeque<Owed>,
}

impl Queue {
    /// Whether requests are taken from it.
    pub(crate) fn is_running(&self) -> bool {
        self.running.is_some()
    }

    /// By what the driver kicks, if there is anything yet.
    pub(crate) fn kick(&self) -> Option<&Arc<Event>> {
        self.kick.as_ref()
    }

    /// Sets by what the driver kicks. The queue must not run.
    pub(crate) fn set_kick(&mut self, kick: Option<Arc<Event>>) {
        debug_assert!(!self.is_running());
        self.kick = kick;
    }

    /// Sets how the driver is interrupted, also while the queue runs: then it is interrupted once, since an interrupt that went the old
    /// way may not have been seen.
    pub(crate) fn set_call(&mut self, call: Option<Call>) {
        if let Some(running) = &self.running {
            running.completer().set_call(call.clone());
        }
        self.call = call;
    }

    /// Interrupts the driver once, as what happened meanwhile may not have reached it.
    pub(crate) fn interrupt(&self) {
        if let Some(running) = &self.running {
            running.completer().interrupt();
        }
    }

    /// Starts to take requests from the place that `ring` says, or to tell where `features` make this the queue for that. The queue must
    /// have a kick. What is in flight is noted where `inflight` says.
    pub(crate) fn start(
        &mut self,
        index: usize,
        ring: RingConfig,
        features: u64,
        inflight: Option<Inflight>,
        with: &Surroundings,
    ) -> io::Result<()> {
        let kick = self.kick.as_ref().ok_or_else(|| io::Error::other("nothing to be kicked by"))?;
        let (mut available, mut used) = split(ring, &with.memory.load()).map_err(io::Error::other)?;
        let goes_on = self.stopped_at == Some(ring.next_avail);
        if self.stopped_at.is_some() && !goes_on {
            // Another life of the driver, which knows nothing of these.
            (self.again, self.owed) = (Vec::new(), VecDeque::new());
        }
        if let (Some(inflight), false, true) = (&inflight, goes_on, self.again.is_empty()) {
            inflight.clear();
        }
        available.note_in(inflight.clone());
        used.note_in(inflight);
        let completer = Arc::new(Completer::new(&with.memory, used, self.call.clone(), std::mem::take(&mut self.owed)));
        self.parking.open(Arc::clone(&completer), goes_on);
        available.take_again(std::mem::take(&mut self.again));
        tracing::debug!(index, size = ring.size, next = ring.next_avail, "queue starts");
        let notices = with.notices.as_ref().filter(|_| index == NOTIFICATION_QUEUE && features & NOTIFICATION != 0);
        self.running = Some(match notices {
            Some(notices) => Running::tell(index, available, completer, kick, notices, with)?,
            None => Running::start(index, available, completer, kick, &self.parking, with)?,
        });
        Ok(())
    }

    /// Stops where it is, after the requests in flight, and answers the index of the next one; `None` if it did not run.
    pub(crate) fn halt(&mut self) -> Option<u16> {
        self.parking.close();
        let running = self.running.take()?;
        let completer = Arc::clone(running.completer());
        let available = running.stop()?;
        self.owed = completer.owed();
        let position = available.next_avail();
        self.stopped_at = Some(position);
        self.again = available.into_untaken();
        Some(position)
    }

    /// Where the chains of the requests begin that were taken and are not completed; the queue stands still.
    pub(crate) fn unanswered(&self) -> Vec<u16> {
        let mut heads = self.parking.heads();
        heads.extend(&self.again);
        heads
    }

    /// Goes on with the requests of a queue that stands still, from where that does.
    pub(crate) fn inherit(&mut self, other: Queue) {
        let (kick, call) = (self.kick.take(), self.call.take());
        *self = Queue { kick, call, ..other };
    }

    /// Whether all that was taken up to `position` was given back, but for what this queue still knows of.
    pub(crate) fn accounts_for(&self, position: u16, used: u16) -> bool {
        usize::from(position.wrapping_sub(used)) == self.unanswered().len() + self.owed.len()
    }

    /// The queue of a device that went before: it takes these once more before all others.
    pub(crate) fn take_again(&mut self, heads: Vec<u16>) {
        self.stopped_at = None;
        self.again = heads;
    }

    /// The driver is gone: what waits for a disk and was not begun need not be done.
    pub(crate) fn abandon(&self) {
        if let Some(running) = &self.running {
            running.abandon();
        }
    }

    /// The guest's memory has changed.
    pub(crate) fn refresh(&self) {
        if let Some(running) = &self.running {
            running.refresh();
        }
    }
}
