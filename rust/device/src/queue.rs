//! One queue of the device: a ring that runs, or what is remembered of it while it stands still.

use std::io;
use std::sync::Arc;

use virtiofs_virtqueue::{Event, RingConfig, split};

use crate::Call;
use crate::completer::Completer;
use crate::identity::{NOTIFICATION, NOTIFICATION_QUEUE};
use crate::parking::Parking;
use crate::worker::{Running, Surroundings};

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

    /// Starts to take requests from the place that `ring` says, or to tell where `features` make this the queue for that. The queue must
    /// have a kick.
    pub(crate) fn start(
        &mut self,
        index: usize,
        ring: RingConfig,
        features: u64,
        with: &Surroundings,
    ) -> io::Result<()> {
        let kick = self.kick.as_ref().ok_or_else(|| io::Error::other("nothing to be kicked by"))?;
        let (mut available, used) = split(ring, &with.memory.load()).map_err(io::Error::other)?;
        let completer = Arc::new(Completer::new(&with.memory, used, self.call.clone()));
        self.parking.open(Arc::clone(&completer), self.stopped_at == Some(ring.next_avail));
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
        let available = self.running.take().and_then(Running::stop)?;
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

    /// The queue of a device that was saved: it takes these once more before all others.
    pub(crate) fn take_again(&mut self, heads: Vec<u16>) {
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
