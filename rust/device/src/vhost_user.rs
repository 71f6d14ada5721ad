//! The device for a VMM in another process, over a vhost-user socket.
//!
//! [`Daemon`] listens, and serves one VMM after the other: when one goes away its session is cleaned up and the next may come. The
//! messages are those of the `vhost` crate; receiving them is our own, since real front ends are more liberal than that
//! crate (pipes for eventfds, a memory table longer than its count).

mod away;
mod backchannel;
mod connection;
mod endless;
mod guard;
mod session;
mod shmem;
mod transfer;
mod vring;

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};
use virtiofs_fuse::{Server, Window};
use virtiofs_virtqueue::Event;

use crate::pool::Pool;
use crate::{Identity, Notices};
use away::Away;
use connection::{Connection, Ready, ready};
use session::Session;
pub use shmem::Settings as WindowSettings;
use shmem::Shmem;

/// Where the VMM comes from.
#[derive(Debug)]
pub enum Source {
    /// A socket that VMMs connect to, one after the other.
    Listening(UnixListener),
    /// A VMM that is connected already; the daemon ends with it.
    Connected(UnixStream),
}

impl Source {
    /// Tells a listening socket from a connected one.
    pub fn from_fd(fd: OwnedFd) -> io::Result<Source> {
        Ok(match rustix::net::sockopt::socket_acceptconn(&fd)? {
            true => Source::Listening(UnixListener::from(fd)),
            false => Source::Connected(UnixStream::from(fd)),
        })
    }
}

/// How a daemon serves.
#[derive(Clone, Debug)]
pub struct Config {
    /// Tag and number of request queues.
    pub identity: Identity,
    /// End when the first VMM goes away, instead of listening for the next one.
    pub once: bool,
    /// Threads for requests that may wait for a disk, at most.
    pub slow_threads: usize,
    /// The DAX window to offer.
    pub window: Option<WindowSettings>,
    /// How long a session is kept whose VMM lost its connection and can prove to be the same when it comes back (INFLIGHT_SHMFD). Zero: not
    /// at all. A daemon that ends with its VMM, or has a window, keeps none.
    pub reconnect: Duration,
    /// Take a session that another device has saved though a part of what its guest has is lost: that is stale for it.
    pub may_lose: bool,
}

/// What a daemon has done and is doing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stats {
    /// VMMs that connected so far.
    pub connections: u64,
    /// Whether one is connected now.
    pub connected: bool,
}

/// A device served over vhost-user by threads of its own. Dropping it stops it.
#[derive(Debug)]
pub struct Daemon {
    shared: Arc<Shared>,
    /// What the thread will serve, until it does.
    waiting: Mutex<Option<(Source, Config)>>,
    notices: Option<Arc<Notices>>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

#[derive(Debug)]
struct Shared {
    server: Arc<Server>,
    stop: Event,
    stopping: AtomicBool,
    connections: AtomicU64,
    connected: AtomicBool,
    ended: Mutex<bool>,
    ends: Condvar,
    /// Signalled once at the end and never drained.
    over: Event,
}

impl Daemon {
    /// Starts to serve `server` to the VMMs that come from `source`.
    pub fn start(server: Arc<Server>, source: Source, config: Config) -> io::Result<Daemon> {
        let daemon = Daemon::new(server, source, config)?;
        daemon.begin()?;
        Ok(daemon)
    }

    /// All that it takes to serve, but for the thread: what a process takes from itself before [`Daemon::begin`] holds for it.
    pub fn new(server: Arc<Server>, source: Source, config: Config) -> io::Result<Daemon> {
        let shared = Arc::new(Shared {
            server,
            stop: Event::new()?,
            stopping: AtomicBool::new(false),
            connections: AtomicU64::new(0),
            connected: AtomicBool::new(false),
            ended: Mutex::new(false),
            ends: Condvar::new(),
            over: Event::new()?,
        });
        if let Source::Listening(listener) = &source {
            listener.set_nonblocking(true)?;
        }
        Ok(Daemon { shared, waiting: Mutex::new(Some((source, config))), notices: None, thread: Mutex::default() })
    }

    /// The same with a queue of notifications, for drivers that take it. Before [`Daemon::begin`].
    pub fn with_notices(mut self, notices: Arc<Notices>) -> Daemon {
        if let Some((_, config)) = self.waiting.get_mut() {
            config.identity = config.identity.clone().notifying();
        }
        self.notices = Some(notices);
        self
    }

    /// What tells the driver of changes, if something does.
    pub fn notices(&self) -> Option<&Arc<Notices>> {
        self.notices.as_ref()
    }

    /// Begins to serve. Once: the second call does nothing.
    pub fn begin(&self) -> io::Result<()> {
        let Some((source, config)) = self.waiting.lock().take() else { return Ok(()) };
        let (theirs, notices) = (Arc::clone(&self.shared), self.notices.clone());
        let thread = thread::Builder::new().name("virtiofs-vhost".into()).spawn(move || {
            theirs.serve(source, &config, notices.as_ref());
            *theirs.ended.lock() = true;
            theirs.ends.notify_all();
            theirs.over.signal();
        })?;
        *self.thread.lock() = Some(thread);
        Ok(())
    }

    /// Ends the session, if there is one, and the daemon. Requests in flight are answered first.
    pub fn stop(&self) {
        self.shared.stopping.store(true, Ordering::Release);
        self.shared.stop.signal();
        if let Some(thread) = self.thread.lock().take() {
            // The thread guards each request; were it gone, stopping it would be done.
            let _ = thread.join();
        }
    }

    /// Waits until the daemon has ended, or until `timeout` is over, and answers whether it has.
    pub fn wait(&self, timeout: Option<Duration>) -> bool {
        let mut ended = self.shared.ended.lock();
        match timeout {
            Some(timeout) => {
                self.shared.ends.wait_while_for(&mut ended, |ended| !*ended, timeout);
            }
            None => self.shared.ends.wait_while(&mut ended, |ended| !*ended),
        }
        *ended
    }

    /// The server behind the device, with its counters.
    pub fn server(&self) -> &Arc<Server> {
        &self.shared.server
    }

    /// What the daemon has done and is doing.
    pub fn stats(&self) -> Stats {
        Stats {
            connections: self.shared.connections.load(Ordering::Relaxed),
            connected: self.shared.connected.load(Ordering::Relaxed),
        }
    }
}

/// The descriptor becomes readable when the daemon has ended, and stays so.
impl AsFd for Daemon {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.shared.over.as_fd()
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        self.stop();
    }
}

impl Shared {
    fn serve(&self, source: Source, config: &Config, notices: Option<&Arc<Notices>>) {
        match source {
            Source::Connected(stream) => {
                self.session(stream, config, notices, None, None);
            }
            Source::Listening(listener) => self.listen(&listener, config, notices),
        }
    }

    fn listen(&self, listener: &UnixListener, config: &Config, notices: Option<&Arc<Notices>>) {
        let mut away: Option<Away> = None;
        while !self.stopping.load(Ordering::Acquire) {
            let until = away.as_ref().map(Away::until);
            let accepted = ready(listener.as_fd(), &self.stop, None, until).and_then(|ready| match ready {
                Ready::Readable | Ready::Knock => listener.accept().map(Some),
                Ready::Stopped | Ready::Late => Ok(None),
            });
            match accepted {
                Ok(Some((stream, _))) => {
                    away = self.session(stream, config, notices, Some(listener), away);
                    if config.once {
                        break;
                    }
                }
                Ok(None) => {
                    if let Some(away) = away.take_if(|away| away.until() <= Instant::now()) {
                        away.end(&self.server, "it did not come back in time");
                    }
                }
                Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::ConnectionAborted) => {}
                Err(error) => {
                    // Out of descriptors or memory: that may pass, and a busy loop would not help.
                    tracing::warn!(%error, "a VMM cannot be accepted");
                    thread::sleep(Duration::from_millis(100));
                }
            }
        }
        if let Some(away) = away {
            away.end(&self.server, "the server ends");
        }
    }

    /// Serves one VMM until it goes away, and cleans up behind it. Answers what is kept until it comes back, or what was kept of another one
    /// that may still do so.
    fn session(
        &self,
        stream: UnixStream,
        config: &Config,
        notices: Option<&Arc<Notices>>,
        door: Option<&UnixListener>,
        away: Option<Away>,
    ) -> Option<Away> {
        let number = self.connections.fetch_add(1, Ordering::Relaxed) + 1;
        self.connected.store(true, Ordering::Relaxed);
        tracing::info!(number, tag = config.identity.tag(), "a VMM is connected");
        let pool = Arc::new(Pool::new(config.slow_threads));
        let table = notices.map(|notices| Arc::clone(notices.table()));
        let window = config.window.map(|window| Shmem::new(window, table)).transpose();
        let (window, failed) = match window {
            Ok(window) => (window, None),
            Err(error) => (None, Some(error)),
        };
        self.server.set_window(window.clone().map(|window| window as Arc<dyn Window>));
        let waits = door.is_some() && !config.once && config.window.is_none();
        let patience = if waits { config.reconnect } else { Duration::ZERO };
        let server = Arc::clone(&self.server);
        let mut session = Session::new(config, server, pool, window, notices.cloned(), patience, away);
        let mut connection = None;
        let served = failed.map_or(Ok(()), Err).and_then(|()| {
            let door = door.map(|door| door.as_fd().try_clone_to_owned()).transpose()?;
            session.run(connection.insert(Connection::new(stream, door)?), &self.stop)
        });
        let mut kept = None;
        if self.stopping.load(Ordering::Acquire) {
            // The VMM is still there, and waits for answers: it must not be hung up on before it has them.
            session.halt();
            drop(connection);
        } else {
            drop(connection);
            kept = session.leave();
        }
        drop(session);
        match served {
            Ok(()) => tracing::info!(number, kept = kept.is_some(), "the VMM is gone"),
            Err(error) => tracing::warn!(number, %error, kept = kept.is_some(), "the connection to the VMM was ended"),
        }
        if kept.is_none() {
            self.server.reset();
        }
        self.server.set_window(None);
        self.connected.store(false, Ordering::Relaxed);
        kept
    }
}
