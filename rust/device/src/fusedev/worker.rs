//! A thread that takes requests from the kernel.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use virtiofs_fuse::{Bell, Carried, Message, Outcome, Pending, Scratch, Server};
use virtiofs_virtqueue::Event;

use super::buffer::{Buffer, Buffers};
use super::channel::{Channel, Received, Waiter};
use super::waiting::Waiting;
use crate::pool::Pool;

/// Requests that may be with the pool at once: each keeps a buffer. The kernel has as many in the background (read-ahead, writeback) as
/// INIT agreed on, which is more.
const OFFLOADED_MAX: usize = 128;

/// What all threads of a connection share.
#[derive(Debug)]
pub(crate) struct Desk {
    pub(crate) server: Arc<Server>,
    pub(crate) buffers: Buffers,
    pub(crate) waiting: Waiting,
    offloaded: AtomicUsize,
    /// No more requests are taken.
    over: AtomicBool,
    /// Nobody is there any more to be answered.
    gone: AtomicBool,
}

impl Desk {
    pub(crate) fn new(server: Arc<Server>, buffers: Buffers) -> Desk {
        let (over, gone) = (AtomicBool::new(false), AtomicBool::new(false));
        Desk { server, buffers, waiting: Waiting::default(), offloaded: AtomicUsize::new(0), over, gone }
    }

    /// Takes no more requests; what was taken is answered.
    pub(crate) fn close(&self) {
        self.over.store(true, Ordering::Release);
    }

    pub(crate) fn is_over(&self) -> bool {
        self.over.load(Ordering::Acquire)
    }

    /// Handles a request where it may wait for a disk.
    fn wait_for(self: &Arc<Self>, channel: &Arc<Channel>, mut buffer: Buffer, scratch: &mut Scratch) {
        if self.gone.load(Ordering::Relaxed) {
            return;
        }
        match self.server.handle(&mut buffer, scratch, true) {
            Outcome::Done(len) => {
                answer(channel, &buffer, len);
                self.buffers.put(buffer);
            }
            Outcome::Later(pending) => self.park(channel, buffer, pending),
            // A cached block was taken away while it was read.
            Outcome::Elsewhere => {
                let (desk, channel) = (Arc::clone(self), Arc::clone(channel));
                self.server.clone().send(Box::new(Travelling { desk, channel, buffer }));
            }
            // It was told that it may wait, and there is no device here that could be stopped.
            Outcome::WouldBlock | Outcome::Halted => {
                tracing::error!("an operation would not wait where it may");
            }
        }
        scratch.finish();
    }

    /// Keeps a request until its wait is over, and answers it then.
    fn park(self: &Arc<Self>, channel: &Arc<Channel>, mut buffer: Buffer, pending: Pending) {
        let unique = buffer.unique();
        let interrupted = self.waiting.park(unique, pending);
        let (desk, channel) = (Arc::clone(self), Arc::clone(channel));
        let then = move |result| {
            desk.waiting.settled(unique);
            let len = desk.server.answer(&mut buffer, pending, result);
            answer(&channel, &buffer, len);
            desk.buffers.put(buffer);
        };
        self.server.settle(pending, Box::new(then));
        if interrupted {
            self.server.interrupt(pending);
        }
    }
}

fn answer(channel: &Channel, buffer: &Buffer, len: usize) {
    if len > 0 {
        channel.reply(buffer, len);
    }
}

/// A request on its way through a lane.
struct Travelling {
    desk: Arc<Desk>,
    channel: Arc<Channel>,
    buffer: Buffer,
}

impl Carried for Travelling {
    fn message(&mut self) -> &mut dyn Message {
        &mut self.buffer
    }

    fn rewind(&mut self) {
        self.buffer.rewind();
    }

    fn unwanted(&self) -> bool {
        self.desk.gone.load(Ordering::Relaxed)
    }

    fn complete(self: Box<Self>, len: usize) -> Option<Arc<dyn Bell>> {
        answer(&self.channel, &self.buffer, len);
        self.desk.buffers.put(self.buffer);
        None
    }
}

/// One thread's part of a connection.
#[derive(Debug)]
pub(crate) struct Worker {
    channel: Arc<Channel>,
    waiter: Waiter,
    desk: Arc<Desk>,
    pool: Arc<Pool>,
    end: Arc<Event>,
}

impl Worker {
    /// `end` is signalled when there is nothing more to do, by whoever sees it first.
    pub(crate) fn new(
        channel: Arc<Channel>,
        desk: &Arc<Desk>,
        pool: &Arc<Pool>,
        end: &Arc<Event>,
    ) -> io::Result<Worker> {
        let waiter = Waiter::new(&channel, end)?;
        Ok(Worker { channel, waiter, desk: Arc::clone(desk), pool: Arc::clone(pool), end: Arc::clone(end) })
    }

    /// Serves until the connection is over, or just one request.
    pub(crate) fn run(&self, once: bool) {
        let (mut buffer, mut scratch) = (self.desk.buffers.get(), Scratch::default());
        while !self.desk.is_over() {
            let looked = match self.channel.receive(&mut buffer) {
                Ok(Received::Request) => {
                    self.serve(&mut buffer, &mut scratch);
                    scratch.finish();
                    if once {
                        break;
                    }
                    Ok(())
                }
                Ok(Received::Nothing) => self.waiter.wait(),
                Ok(Received::Gone) => {
                    self.close();
                    break;
                }
                Err(error) => Err(error),
            };
            if let Err(error) = looked {
                tracing::error!(%error, "the kernel cannot be heard: the mount is given up");
                self.close();
            }
        }
        self.desk.buffers.put(buffer);
    }

    fn close(&self) {
        self.desk.gone.store(true, Ordering::Relaxed);
        self.desk.server.sweep();
        self.desk.close();
        self.end.signal();
    }

    fn serve(&self, buffer: &mut Buffer, scratch: &mut Scratch) {
        let desk = &self.desk;
        if let Some(unique) = buffer.interrupts()
            && let Some(pending) = desk.waiting.interrupt(unique)
        {
            desk.server.interrupt(pending);
        }
        match desk.server.handle(buffer, scratch, false) {
            Outcome::Done(len) => answer(&self.channel, buffer, len),
            Outcome::Later(pending) => desk.park(&self.channel, self.exchange(buffer), pending),
            Outcome::WouldBlock | Outcome::Halted => {
                let mut request = self.exchange(buffer);
                request.rewind();
                self.offload(request, scratch);
            }
            Outcome::Elsewhere => {
                let (desk, channel) = (Arc::clone(desk), Arc::clone(&self.channel));
                desk.server.clone().send(Box::new(Travelling { desk, channel, buffer: self.exchange(buffer) }));
            }
        }
    }

    /// Takes the buffer with the request away and leaves an empty one.
    fn exchange(&self, buffer: &mut Buffer) -> Buffer {
        std::mem::replace(buffer, self.desk.buffers.get())
    }

    /// Hands a request to the pool, from where it is answered. Where too many are there, it is for this thread to wait.
    fn offload(&self, request: Buffer, scratch: &mut Scratch) {
        let (desk, channel) = (Arc::clone(&self.desk), Arc::clone(&self.channel));
        if desk.offloaded.fetch_add(1, Ordering::Relaxed) >= OFFLOADED_MAX {
            desk.offloaded.fetch_sub(1, Ordering::Relaxed);
            return desk.wait_for(&channel, request, scratch);
        }
        let job = move |scratch: &mut Scratch| {
            desk.wait_for(&channel, request, scratch);
            desk.offloaded.fetch_sub(1, Ordering::Relaxed);
        };
        self.pool.run(Box::new(job), scratch);
    }
}
