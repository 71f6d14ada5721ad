//! A served mount: its threads, its beginning and its end.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::Duration;

use parking_lot::Mutex;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use virtiofs_coherence::Changes;
use virtiofs_fuse::Server;
use virtiofs_virtqueue::Event;

use super::buffer::Buffers;
use super::channel::Channel;
use super::notifier::Notifier;
use super::worker::{Desk, Worker};
use crate::follower::Follower;
use crate::pool::Pool;
use crate::signals::leave_to_others;

/// How a connection is served.
#[derive(Clone, Copy, Debug)]
pub struct Config {
    /// Threads that take requests from the kernel.
    pub threads: usize,
    /// Threads for requests that may wait for a disk, at most.
    pub slow_threads: usize,
    /// `max_write` of the server's limits in bytes: no request and no reply has more data.
    pub max_write: usize,
}

/// A connection to the kernel, served by threads of its own. Dropping it ends it, whether it is unmounted or not.
#[derive(Debug)]
pub struct Connection {
    descriptors: Vec<RawFd>,
    desk: Arc<Desk>,
    notifier: Arc<Notifier>,
    follower: Mutex<Option<Follower>>,
    thread: Mutex<Option<JoinHandle<()>>>,
    end: Arc<Event>,
    /// Signalled once and never drained: INIT was answered.
    begun: Arc<Event>,
    /// Signalled once and never drained: all is over.
    ended: Arc<Event>,
}

impl Connection {
    /// Starts to serve `server` to the kernel at the other end of `fd`, which is a mounted /dev/fuse. Whatever `changes` say is told to
    /// the kernel.
    pub fn start(server: Arc<Server>, fd: OwnedFd, config: Config, changes: Option<Changes>) -> io::Result<Connection> {
        let channel = Arc::new(Channel::new(fd)?);
        let buffers = Buffers::new(config.threads + 2, config.max_write);
        let mut connection = Connection {
            descriptors: vec![channel.as_fd().as_raw_fd()],
            desk: Arc::new(Desk::new(server, buffers)),
            notifier: Arc::new(Notifier::new(Arc::clone(&channel))),
            follower: Mutex::default(),
            thread: Mutex::default(),
            end: Arc::new(Event::new()?),
            begun: Arc::new(Event::new()?),
            ended: Arc::new(Event::new()?),
        };
        let pool = Arc::new(Pool::new(config.slow_threads));
        let worker = |channel| Worker::new(channel, &connection.desk, &pool, &connection.end);
        let first = worker(Arc::clone(&channel))?;
        let mut others = Vec::new();
        for _ in 1..config.threads {
            // Where /dev/fuse may not be opened again (fusermount3 did, for us), one descriptor does for all.
            let another = channel.another().map_or_else(|_| Arc::clone(&channel), Arc::new);
            connection.descriptors.push(another.as_fd().as_raw_fd());
            others.push(worker(another)?);
        }
        let (desk, notifier) = (Arc::clone(&connection.desk), Arc::clone(&connection.notifier));
        let (begun, ended) = (Arc::clone(&connection.begun), Arc::clone(&connection.ended));
        drop((channel, pool));
        let thread = thread::Builder::new().name("virtiofs-f0".into()).spawn(move || {
            leave_to_others();
            first.run(true); // INIT, before which the kernel sends nothing else
            begun.signal();
            let others: Vec<_> =
                others.into_iter().zip(1..).map_while(|(worker, index)| start(worker, index)).collect();
            first.run(false);
            for other in others {
                // The server guards each request; were the thread gone, so would be its work.
                let _ = other.join();
            }
            notifier.close();
            // The last worker takes the pool along, which finishes what it has begun.
            drop(first);
            desk.server.reset();
            ended.signal();
        })?;
        *connection.thread.lock() = Some(thread);
        if let Some(changes) = changes {
            let (server, notifier) = (Arc::clone(connection.server()), Arc::clone(&connection.notifier));
            let follower = Follower::start(changes, server, notifier, false)?;
            *connection.follower.lock() = Some(follower);
        }
        Ok(connection)
    }

    /// Ends it: requests in flight are answered first, all others fail from then on.
    pub fn stop(&self) {
        // While requests are answered: what the kernel is being told may wait for some.
        self.notifier.close();
        drop(self.follower.lock().take());
        self.desk.close();
        self.end.signal();
        if let Some(thread) = self.thread.lock().take() {
            let _ = thread.join();
        }
    }

    /// Waits until the kernel and we have agreed on a session: answers false if it is over before or `timeout` is.
    pub fn wait_begun(&self, timeout: Duration) -> io::Result<bool> {
        Ok(wait(&[&self.begun, &self.ended], timeout)? && self.desk.server.negotiated().is_some())
    }

    /// Whether the connection is over.
    pub fn is_over(&self) -> bool {
        self.desk.is_over()
    }

    /// The descriptors by which the kernel knows this connection, while it lasts. A fork of the process has them too, and would keep the mount
    /// from dying with this one.
    pub fn descriptors(&self) -> &[RawFd] {
        &self.descriptors
    }

    /// The server behind the mount, with its counters.
    pub fn server(&self) -> &Arc<Server> {
        &self.desk.server
    }

    /// By which the kernel is told of changes.
    pub fn notifier(&self) -> &Arc<Notifier> {
        &self.notifier
    }
}

/// The descriptor becomes readable when the connection is over and cleaned up behind, and stays so.
impl AsFd for Connection {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.ended.as_fd()
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.stop();
    }
}

fn start(worker: Worker, index: usize) -> Option<JoinHandle<()>> {
    let started = thread::Builder::new().name(format!("virtiofs-f{index}")).spawn(move || worker.run(false));
    started.inspect_err(|error| tracing::warn!(%error, "fewer threads than asked for serve the mount")).ok()
}

fn wait(events: &[&Event], timeout: Duration) -> io::Result<bool> {
    let mut polled: Vec<PollFd<'_>> = events.iter().map(|event| PollFd::new(*event, PollFlags::IN)).collect();
    let timeout = Timespec { tv_sec: timeout.as_secs() as i64, tv_nsec: i64::from(timeout.subsec_nanos()) };
    loop {
        match poll(&mut polled, Some(&timeout)) {
            Ok(ready) => return Ok(ready > 0),
            Err(Errno::INTR) => {}
            Err(errno) => return Err(errno.into()),
        }
    }
}
