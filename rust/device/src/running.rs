//! A queue that is served: what its thread needs, how it is reached, and the way to end it.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use virtiofs_fuse::Server;
use virtiofs_virtqueue::{Available, Event, SharedMemory, Waiter};

use crate::aside::Place;
use crate::completer::Completer;
use crate::follower::Follower;
use crate::identity::HIPRIO_QUEUE;
use crate::news::Tell;
use crate::notices::{Notices, Teller};
use crate::parking::Parking;
use crate::pool::Pool;
use crate::signals::leave_to_others;
use crate::worker::Worker;
use crate::workers::{Seated, Workers};

/// How long a queue that is to stop waits for requests on a lane, before they are answered with EIO. A VMM stands still meanwhile.
const PATIENCE: Duration = Duration::from_secs(5);

/// How a queue's thread is reached.
#[derive(Debug)]
pub(crate) struct Control {
    pub(crate) event: Event,
    pub(crate) stop: AtomicBool,
}

/// What a worker needs beside the ring.
#[derive(Clone, Debug)]
pub(crate) struct Surroundings {
    pub(crate) memory: Arc<SharedMemory>,
    pub(crate) server: Arc<Server>,
    pub(crate) pool: Arc<Pool>,
    /// Threads that are shared with other devices; otherwise each queue has its own.
    pub(crate) workers: Option<Arc<Workers>>,
    /// Where the hiprio queue is served, if it has a thread of its own.
    pub(crate) hiprio: Arc<Place>,
    /// What the driver is told unasked, if it wants to be.
    pub(crate) notices: Option<Arc<Notices>>,
}

/// A queue that is served, and the way to end that.
#[derive(Debug)]
pub(crate) struct Running {
    by: Option<By>,
    control: Arc<Control>,
    completer: Arc<Completer>,
    server: Arc<Server>,
    /// Of the queue of notifications.
    telling: Option<(Arc<Notices>, Follower)>,
}

/// Who serves a queue.
#[derive(Debug)]
enum By {
    Thread(JoinHandle<Option<Available>>),
    Shared(Seated),
}

impl Control {
    /// Whether the queue is to stop.
    pub(crate) fn stops(&self) -> bool {
        self.stop.load(Ordering::Acquire)
    }

    /// Waits for a kick, or for whoever reaches for the thread. False where that cannot be waited for.
    pub(crate) fn wait(&self, waiter: &Waiter) -> bool {
        match waiter.wait(None) {
            Ok(wake) if wake.control => self.event.drain(),
            Ok(_) => {}
            Err(error) => {
                tracing::error!(%error, "waiting for the guest failed: this queue is no longer served");
                return false;
            }
        }
        true
    }
}

impl Running {
    /// Starts serving a queue.
    pub(crate) fn start(
        index: usize,
        available: Available,
        completer: Arc<Completer>,
        kick: &Arc<Event>,
        parking: &Arc<Parking>,
        with: &Surroundings,
    ) -> io::Result<Running> {
        let control = Arc::new(Control { event: Event::new()?, stop: AtomicBool::new(false) });
        let mut worker = Worker::new(index, available, &control, &completer, parking, with);
        let by = match &with.workers {
            Some(workers) => By::Shared(workers.seat(worker, kick)?),
            None => {
                let waiter = Waiter::new(Arc::clone(kick), &control.event)?;
                let place = (index == HIPRIO_QUEUE).then(|| Arc::clone(&with.hiprio));
                By::Thread(thread::Builder::new().name(format!("virtiofs-q{index}")).spawn(move || {
                    leave_to_others();
                    if let Some(place) = place {
                        return place.run(worker, &waiter);
                    }
                    worker.run(&waiter);
                    Some(worker.into_available())
                })?)
            }
        };
        Ok(Running { by: Some(by), control, completer, server: Arc::clone(&with.server), telling: None })
    }

    /// Starts the queue of notifications.
    pub(crate) fn tell(
        index: usize,
        available: Available,
        completer: Arc<Completer>,
        kick: &Arc<Event>,
        notices: &Arc<Notices>,
        with: &Surroundings,
    ) -> io::Result<Running> {
        let control = Arc::new(Control { event: Event::new()?, stop: AtomicBool::new(false) });
        let teller = Teller {
            available,
            waiter: Waiter::new(Arc::clone(kick), &control.event)?,
            control: Arc::clone(&control),
            memory: Arc::clone(&with.memory),
            completer: Arc::clone(&completer),
            notices: Arc::clone(notices),
        };
        notices.open(Arc::clone(&control));
        let server = Arc::clone(&with.server);
        let listener = Arc::clone(notices) as Arc<dyn Tell>;
        // A driver that goes on after a pause has heard nothing meanwhile.
        let follower = Follower::start(notices.table.changes(), Arc::clone(&server), listener, true)?;
        let thread = thread::Builder::new().name(format!("virtiofs-q{index}")).spawn(move || {
            leave_to_others();
            Some(teller.run())
        })?;
        let telling = Some((Arc::clone(notices), follower));
        Ok(Running { by: Some(By::Thread(thread)), control, completer, server, telling })
    }

    /// The half of the queue that completes.
    pub(crate) fn completer(&self) -> &Arc<Completer> {
        &self.completer
    }

    /// Lets go of memory that the guest no longer has, also while there is nothing to do.
    pub(crate) fn refresh(&self) {
        self.completer.refresh();
        self.control.event.signal();
    }

    /// Nobody is there any more to be answered: requests that were not begun need not be.
    pub(crate) fn abandon(&self) {
        self.completer.abandon();
        self.server.sweep();
    }

    /// Stops taking requests, waits for those in flight, and answers what it took them from.
    pub(crate) fn stop(mut self) -> Option<Available> {
        self.join()
    }

    fn join(&mut self) -> Option<Available> {
        if let Some((notices, follower)) = self.telling.take() {
            drop(follower);
            notices.close();
        }
        self.control.stop.store(true, Ordering::Release);
        self.control.event.signal();
        let next = match self.by.take()? {
            By::Thread(thread) => thread.join().ok().flatten(),
            By::Shared(seated) => seated.leave().map(Worker::into_available),
        };
        if !self.completer.drain_for(PATIENCE) {
            self.completer.hurry();
            self.server.sweep();
            self.completer.drain();
        }
        next
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.join();
    }
}
