//! The thread of one queue.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use virtiofs_fuse::{Outcome, Scratch, Server};
use virtiofs_virtqueue::{Available, Event, Memory, Popped, RingError, SharedMemory, Waiter};

use crate::completer::Completer;
use crate::identity::HIPRIO_QUEUE;
use crate::loan::Loan;
use crate::parking::{Parking, park};
use crate::pool::Pool;
use crate::request::{Request, Travelling};
use crate::spin::Spin;
use crate::tact::Tact;

/// Bytes of reply from which on a copy takes many times as long as to hand it to another thread.
const LONG: usize = 256 << 10;

/// How long a queue that is to stop waits for requests on a lane, before they are answered with EIO. A VMM stands still meanwhile.
const PATIENCE: Duration = Duration::from_secs(5);

/// Serves the requests of one queue until it is stopped.
pub(crate) struct Worker {
    available: Available,
    waiter: Waiter,
    control: Arc<Control>,
    memory: Arc<SharedMemory>,
    completer: Arc<Completer>,
    server: Arc<Server>,
    pool: Arc<Pool>,
    parking: Arc<Parking>,
    spin: Spin,
    tact: Tact,
}

#[derive(Debug)]
struct Control {
    event: Event,
    stop: AtomicBool,
}

/// What a worker needs beside the ring.
#[derive(Clone, Debug)]
pub(crate) struct Surroundings {
    pub(crate) memory: Arc<SharedMemory>,
    pub(crate) server: Arc<Server>,
    pub(crate) pool: Arc<Pool>,
}

/// A worker's thread, and the way to end it.
#[derive(Debug)]
pub(crate) struct Running {
    thread: Option<JoinHandle<u16>>,
    control: Arc<Control>,
    completer: Arc<Completer>,
    server: Arc<Server>,
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
            waiter: Waiter::new(Arc::clone(kick), &control.event)?,
            control: Arc::clone(&control),
            memory: Arc::clone(&with.memory),
            completer: Arc::clone(&completer),
            server: Arc::clone(&with.server),
            pool: Arc::clone(&with.pool),
            parking: Arc::clone(parking),
            spin: if index == HIPRIO_QUEUE { Spin::never() } else { Spin::default() },
            tact: Tact::default(),
        };
        let thread = thread::Builder::new().name(format!("virtiofs-q{index}")).spawn(move || {
            worker.run();
            worker.available.next_avail()
        })?;
        Ok(Running { thread: Some(thread), control, completer, server: Arc::clone(&with.server) })
    }

    /// The half of the queue that completes.
    pub(crate) fn completer(&self) -> &Completer {
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

    /// Stops taking requests, waits for those in flight, and answers the index of the next one.
    pub(crate) fn stop(mut self) -> Option<u16> {
        self.join()
    }

    fn join(&mut self) -> Option<u16> {
        self.control.stop.store(true, Ordering::Release);
        self.control.event.signal();
        let joined = self.thread.take()?.join();
        if !self.completer.drain_for(PATIENCE) {
            self.completer.hurry();
            self.server.sweep();
            self.completer.drain();
        }
        joined.ok()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.join();
    }
}

impl Worker {
    fn run(&mut self) {
        let mut memory = self.memory.load();
        let (mut request, mut scratch) = (Request::default(), Scratch::default());
        let mut broken = false;
        while !self.control.stop.load(Ordering::Acquire) {
            match self.serve(&mut memory, &mut request, &mut scratch) {
                Ok(true) => continue,
                Ok(false) => broken = false,
                Err(error) => {
                    if !std::mem::replace(&mut broken, true) {
                        tracing::warn!(%error, "the guest's ring is broken: it is served again once the guest has reset it");
                    }
                }
            }
            // Nothing of the guest's memory is held on to while nothing is to be done.
            request.0.clear();
            match self.waiter.wait(None) {
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

    /// Serves what waits, and answers whether there is more after kicks were asked for.
    fn serve(
        &mut self,
        memory: &mut Arc<Memory>,
        request: &mut Request,
        scratch: &mut Scratch,
    ) -> Result<bool, RingError> {
        self.available.disarm(memory)?;
        let served = self.serve_waiting(memory, request, scratch);
        self.tell();
        Ok(served? && self.available.arm(memory)?)
    }

    /// As [`Worker::serve`]; false if the queue is to rest although requests wait.
    fn serve_waiting(
        &mut self,
        memory: &mut Arc<Memory>,
        request: &mut Request,
        scratch: &mut Scratch,
    ) -> Result<bool, RingError> {
        loop {
            self.memory.refresh(memory);
            let popped = self.available.pop(memory, &mut request.0)?;
            scratch.finish();
            if popped != Popped::Request || request.0.room().max(request.0.unread()) >= LONG {
                self.tell();
            }
            match popped {
                Popped::Nothing if self.spin.look(|| self.available.waits(memory))? => {}
                Popped::Nothing => break,
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
                            return Ok(false);
                        }
                        Outcome::Elsewhere => self.send(std::mem::take(request)),
                    },
                },
            }
            if self.control.stop.load(Ordering::Relaxed) {
                scratch.finish();
                break;
            }
        }
        Ok(true)
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
                Outcome::Elsewhere => return send(&server, &completer, request),
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
    fn send(&self, request: Request) {
        if self.completer.leave() > usize::from(self.available.size()) {
            // As above, but with nobody here to do it: a driver that uses descriptors twice gets nothing for them.
            self.completer.complete(request.0.head(), 0);
            return self.completer.arrive();
        }
        send(&self.server, &self.completer, request);
    }
}

fn send(server: &Arc<Server>, completer: &Arc<Completer>, request: Request) {
    server.send(Box::new(Travelling { request, server: Arc::clone(server), completer: Arc::clone(completer) }));
}
