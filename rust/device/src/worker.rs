//! The thread of one queue.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use virtiofs_fuse::{Outcome, Scratch, Server};
use virtiofs_virtqueue::{Available, Event, Memory, Popped, RingError, SharedMemory, Waiter};

use crate::completer::Completer;
use crate::follower::Follower;
use crate::identity::HIPRIO_QUEUE;
use crate::loan::Loan;
use crate::news::Tell;
use crate::notices::{Notices, Teller};
use crate::parking::{Parking, park};
use crate::pool::Pool;
use crate::request::{Request, send};
use crate::signals::leave_to_others;
use crate::spin::Spin;
use crate::tact::Tact;
use crate::workers::{Seated, Workers};

/// Bytes of reply from which on a copy takes many times as long as to hand it to another thread.
const LONG: usize = 256 << 10;

/// How long a queue that is to stop waits for requests on a lane, before they are answered with EIO. A VMM stands still meanwhile.
const PATIENCE: Duration = Duration::from_secs(5);

/// Requests on a lane beyond which a queue does not look for more.
const AHEAD: usize = 2;

/// Requests that a queue is served before others at the same thread have their turn.
const TURN: usize = 32;

/// Serves the requests of one queue.
pub(crate) struct Worker {
    available: Available,
    control: Arc<Control>,
    memory: Arc<SharedMemory>,
    completer: Arc<Completer>,
    server: Arc<Server>,
    pool: Arc<Pool>,
    parking: Arc<Parking>,
    spin: Spin,
    tact: Tact,
    /// Requests that it may take before it gives way to others.
    most: usize,
    /// The ring was found broken, which was said.
    broken: bool,
}

impl std::fmt::Debug for Worker {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Worker").field("available", &self.available).finish_non_exhaustive()
    }
}

/// What came of serving a queue for a while.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Turn {
    /// There is more to do.
    More,
    /// A kick will come when there is.
    Idle,
}

/// Why a worker takes no more requests for now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Ended {
    /// There are none, or the queue is to stop.
    Empty,
    /// It is the turn of others.
    Turn,
    /// The queue is to rest although requests wait.
    Halted,
}

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
    Thread(JoinHandle<Available>),
    Shared(Seated),
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
        let mut worker = Worker {
            available,
            control: Arc::clone(&control),
            memory: Arc::clone(&with.memory),
            completer: Arc::clone(&completer),
            server: Arc::clone(&with.server),
            pool: Arc::clone(&with.pool),
            parking: Arc::clone(parking),
            spin: if index == HIPRIO_QUEUE || with.workers.is_some() { Spin::never() } else { Spin::default() },
            tact: Tact::default(),
            most: if with.workers.is_some() { TURN } else { usize::MAX },
            broken: false,
        };
        let by = match &with.workers {
            Some(workers) => By::Shared(workers.seat(worker, kick)?),
            None => {
                let waiter = Waiter::new(Arc::clone(kick), &control.event)?;
                By::Thread(thread::Builder::new().name(format!("virtiofs-q{index}")).spawn(move || {
                    leave_to_others();
                    worker.run(&waiter);
                    worker.available
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
            teller.run()
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
            By::Thread(thread) => thread.join().ok(),
            By::Shared(seated) => seated.leave().map(|worker| worker.available),
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

impl Worker {
    fn run(&mut self, waiter: &Waiter) {
        let mut memory = self.memory.load();
        let (mut request, mut scratch) = (Request::default(), Scratch::default());
        while !self.control.stop.load(Ordering::Acquire) {
            if self.serve_while(&mut memory, &mut request, &mut scratch) == Turn::More {
                continue;
            }
            // Nothing of the guest's memory is held on to while nothing is to be done.
            request.0.clear();
            match waiter.wait(None) {
                Ok(wake) if wake.control => self.control.event.drain(),
                Ok(_) => {}
                Err(error) => {
                    tracing::error!(%error, "waiting for the guest failed: this queue is no longer served");
                    break;
                }
            }
            self.memory.refresh(&mut memory);
        }
    }

    /// Serves for a while, at a thread that has other queues as well.
    pub(crate) fn turn(&mut self, request: &mut Request, scratch: &mut Scratch) -> Turn {
        let turn = match self.control.stop.load(Ordering::Acquire) {
            true => Turn::Idle,
            false => self.serve_while(&mut self.memory.load(), request, scratch),
        };
        request.0.clear();
        turn
    }

    fn serve_while(&mut self, memory: &mut Arc<Memory>, request: &mut Request, scratch: &mut Scratch) -> Turn {
        match self.serve(memory, request, scratch) {
            Ok(true) => return Turn::More,
            Ok(false) => self.broken = false,
            Err(error) => {
                if !std::mem::replace(&mut self.broken, true) {
                    tracing::warn!(%error, "the guest's ring is broken: it is served again once the guest has reset it");
                }
            }
        }
        Turn::Idle
    }

    /// Serves what waits, and answers whether there is more: after kicks were asked for, or since others have their turn.
    fn serve(
        &mut self,
        memory: &mut Arc<Memory>,
        request: &mut Request,
        scratch: &mut Scratch,
    ) -> Result<bool, RingError> {
        self.available.disarm(memory)?;
        let served = self.serve_waiting(memory, request, scratch);
        self.tell();
        match served? {
            Ended::Empty => self.available.arm(memory),
            Ended::Turn => Ok(true),
            Ended::Halted => Ok(false),
        }
    }

    fn serve_waiting(
        &mut self,
        memory: &mut Arc<Memory>,
        request: &mut Request,
        scratch: &mut Scratch,
    ) -> Result<Ended, RingError> {
        for _ in 0..self.most {
            self.memory.refresh(memory);
            let popped = self.available.pop(memory, &mut request.0)?;
            scratch.finish();
            if popped != Popped::Request || request.0.room().max(request.0.unread()) >= LONG {
                self.tell();
            }
            match popped {
                Popped::Nothing if !self.is_ahead() && self.spin.look(|| self.available.waits(memory))? => {}
                Popped::Nothing => return Ok(Ended::Empty),
                Popped::Malformed { head } => {
                    self.server.metrics().malformed_request();
                    self.completer.complete(head, 0);
                }
                Popped::Request if request.0.faulted() => {
                    let len = request.fault(&self.server);
                    self.completer.complete(request.0.head(), len);
                }
                Popped::Request => match self.share(memory, request)? {
                    Some(loan) => self.offload(std::mem::take(request), scratch, Some(loan)),
                    None => match self.server.handle(request, scratch, false) {
                        Outcome::Done(len) => {
                            let len = request.finish(&self.server, len);
                            self.completer.put(request.0.head(), len);
                            // A broken ring is found out by the next pop.
                            if self.tact.completed(self.available.waits(memory).unwrap_or(false)) {
                                self.completer.tell();
                            }
                        }
                        Outcome::Later(pending) => park(&self.parking, &self.server, std::mem::take(request), pending),
                        Outcome::WouldBlock => self.offload(std::mem::take(request), scratch, None),
                        Outcome::Halted => {
                            // It is taken again when the queue goes on, or when somebody calls.
                            self.available.put_back();
                            return Ok(Ended::Halted);
                        }
                        Outcome::Elsewhere => self.send(request),
                    },
                },
            }
            if self.control.stop.load(Ordering::Relaxed) {
                scratch.finish();
                return Ok(Ended::Empty);
            }
        }
        scratch.finish();
        Ok(Ended::Turn)
    }

    /// So much waits for a lane that to look for more only takes the processor from it: replies come several at a time, and one kick
    /// with what follows them.
    fn is_ahead(&self) -> bool {
        self.completer.travelling() > AHEAD
    }

    /// Tells the driver what it was not told yet.
    fn tell(&mut self) {
        if self.tact.flush() {
            self.completer.tell();
        }
    }

    /// Whether another processor is to have this request, since it is long and others wait behind it. What has much room for its reply
    /// is a copy of that size. Long writes stay: those to one file would only wait for each other.
    fn share(&self, memory: &Memory, request: &Request) -> Result<Option<Loan>, RingError> {
        let shares = request.0.room() >= LONG && self.available.waits(memory)?;
        Ok(if shares { self.pool.processors.lend() } else { None })
    }

    /// Hands a request to the pool, from where it is completed.
    ///
    /// No honest driver has more requests in flight than its ring has entries; one that has waits for each.
    fn offload(&self, mut request: Request, scratch: &mut Scratch, loan: Option<Loan>) {
        request.0.rewind();
        let crowded = self.completer.leave() > usize::from(self.available.size());
        let (server, completer) = (Arc::clone(&self.server), Arc::clone(&self.completer));
        let parking = Arc::clone(&self.parking);
        let job = move |scratch: &mut Scratch| {
            if completer.is_abandoned() {
                return completer.arrive();
            }
            match server.handle(&mut request, scratch, true) {
                Outcome::Done(len) => {
                    let len = request.finish(&server, len);
                    completer.complete(request.0.head(), len);
                }
                Outcome::Later(pending) => park(&parking, &server, request, pending),
                Outcome::Elsewhere => return send(&server, &completer, &mut request),
                // It was told that it may wait.
                Outcome::WouldBlock | Outcome::Halted => completer.complete(request.0.head(), 0),
            }
            scratch.finish();
            drop(loan);
            completer.arrive();
        };
        if crowded { job(scratch) } else { self.pool.run(Box::new(job), scratch) }
    }

    /// Hands a request to the lane, from where it is completed.
    fn send(&self, request: &mut Request) {
        if self.completer.leave() > usize::from(self.available.size()) {
            // As above, but with nobody here to do it: a driver that uses descriptors twice gets nothing for them.
            self.completer.complete(request.0.head(), 0);
            return self.completer.arrive();
        }
        send(&self.server, &self.completer, request);
    }
}
