//! The thread of one queue.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use virtiofs_fuse::{Outcome, Scratch, Server};
use virtiofs_virtqueue::{Available, Memory, Popped, RingError, SharedMemory, Waiter};

use crate::aside::Aside;
use crate::completer::Completer;
use crate::identity::HIPRIO_QUEUE;
use crate::loan::Loan;
use crate::parking::{Parking, park};
use crate::pool::Pool;
use crate::request::{Request, send};
use crate::running::{Control, Surroundings};
use crate::spin::Spin;
use crate::tact::Tact;

/// Bytes of reply from which on a copy takes many times as long as to hand it to another thread.
const LONG: usize = 256 << 10;

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
    /// The hiprio queue, for the thread of another.
    aside: Option<Aside>,
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

impl Worker {
    /// Who serves `available`.
    pub(crate) fn new(
        index: usize,
        available: Available,
        control: &Arc<Control>,
        completer: &Arc<Completer>,
        parking: &Arc<Parking>,
        with: &Surroundings,
    ) -> Worker {
        let (hiprio, shared) = (index == HIPRIO_QUEUE, with.workers.is_some());
        Worker {
            available,
            control: Arc::clone(control),
            memory: Arc::clone(&with.memory),
            completer: Arc::clone(completer),
            server: Arc::clone(&with.server),
            pool: Arc::clone(&with.pool),
            parking: Arc::clone(parking),
            spin: if hiprio || shared { Spin::never() } else { Spin::default() },
            tact: Tact::default(),
            aside: (!hiprio && !shared).then(|| Aside::new(&with.hiprio)),
            most: if hiprio || shared { TURN } else { usize::MAX },
            broken: false,
        }
    }

    /// Serves the queue until it is to stop.
    pub(crate) fn run(&mut self, waiter: &Waiter) {
        let mut memory = self.memory.load();
        let (mut request, mut scratch) = (Request::default(), Scratch::default());
        while !self.control.stops() {
            if self.serve_while(&mut memory, &mut request, &mut scratch) == Turn::More {
                continue;
            }
            // Nothing of the guest's memory is held on to while nothing is to be done.
            request.0.clear();
            if !self.control.wait(waiter) {
                break;
            }
            self.memory.refresh(&mut memory);
        }
        if let Some(aside) = &mut self.aside {
            aside.leave(&mut request, &mut scratch);
        }
    }

    /// What of the guest's memory there is.
    pub(crate) fn memory(&self) -> Arc<Memory> {
        self.memory.load()
    }

    /// Replaces `memory` by what of the guest's there is.
    pub(crate) fn refresh(&self, memory: &mut Arc<Memory>) {
        self.memory.refresh(memory);
    }

    /// How its thread is reached.
    pub(crate) fn control(&self) -> &Arc<Control> {
        &self.control
    }

    /// Index of the next entry to take.
    pub(crate) fn position(&self) -> u16 {
        self.available.next_avail()
    }

    /// Serves what waits, and tells the driver that no kicks are needed, if anything has come since the queue stood at `position`. Answers
    /// whether the driver was told.
    pub(crate) fn serve_aside(
        &mut self,
        memory: &mut Arc<Memory>,
        position: u16,
        request: &mut Request,
        scratch: &mut Scratch,
    ) -> bool {
        self.memory.refresh(memory);
        // A broken ring is for its own thread to find.
        let waits = self.available.waits(memory).unwrap_or(false);
        if self.control.stops() || !waits && position == self.position() || self.available.hush(memory).is_err() {
            return false;
        }
        let _ = self.serve_waiting(memory, request, scratch);
        self.tell();
        true
    }

    /// Asks for kicks again, where the driver was told that none are needed.
    pub(crate) fn ask_for_kicks(&mut self, memory: &Memory) {
        // Of a ring that cannot be written nobody asks for anything.
        let _ = self.available.arm(memory);
    }

    /// The ring, with what was not taken from it.
    pub(crate) fn into_available(self) -> Available {
        self.available
    }

    /// Serves for a while, at a thread that has other queues as well.
    pub(crate) fn turn(&mut self, request: &mut Request, scratch: &mut Scratch) -> Turn {
        let turn = match self.control.stops() {
            true => Turn::Idle,
            false => self.serve_while(&mut self.memory.load(), request, scratch),
        };
        request.0.clear();
        turn
    }

    pub(crate) fn serve_while(
        &mut self,
        memory: &mut Arc<Memory>,
        request: &mut Request,
        scratch: &mut Scratch,
    ) -> Turn {
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
        if !matches!(served, Ok(Ended::Turn))
            && let Some(aside) = &mut self.aside
        {
            aside.leave(request, scratch);
        }
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
                Popped::Nothing if !self.is_ahead() && self.look(memory, request, scratch)? => {}
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
            if self.aside.as_mut().is_some_and(Aside::is_due) {
                // What is done need not wait for that.
                self.tell();
                if let Some(aside) = &mut self.aside {
                    aside.look(request, scratch);
                }
            }
        }
        scratch.finish();
        Ok(Ended::Turn)
    }

    /// Looks for more, as long as that may pay: the next request, or FORGETs, for which a driver may wait that has no room for others.
    fn look(&mut self, memory: &Memory, request: &mut Request, scratch: &mut Scratch) -> Result<bool, RingError> {
        let Worker { spin, available, aside, .. } = self;
        spin.look(|| {
            let aside = aside.as_mut().is_some_and(|aside| aside.look(request, scratch));
            Ok(aside || available.waits(memory)?)
        })
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
