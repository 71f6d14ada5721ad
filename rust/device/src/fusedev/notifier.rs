//! What the kernel is told unasked: that something which it remembers is no longer true.
//!
//! To forget a name the kernel takes the lock of its directory, and to forget data those of their pages; either may be held by a caller
//! who waits for a reply of ours. So nothing is told by the thread that has something to tell: one thread does that, which no reply
//! waits for.

use std::collections::VecDeque;
use std::io::{self, IoSlice};
use std::sync::Arc;
use std::thread::{self, JoinHandle};

use parking_lot::{Condvar, Mutex};
use rustix::io::Errno;

use super::channel::Channel;
use crate::news::{BACKLOG, Backlog, News, Tell};

/// Tells the kernel what to forget. To be used from any thread, handlers of requests included; it never waits.
#[derive(Debug)]
pub struct Notifier {
    shared: Arc<Shared>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

#[derive(Debug)]
struct Shared {
    state: Mutex<State>,
    news: Condvar,
    idle: Condvar,
}

#[derive(Debug)]
struct State {
    /// None when nothing is told any more: a connection lasts for as long as a descriptor of it is open.
    channel: Option<Arc<Channel>>,
    waiting: VecDeque<News>,
    telling: bool,
    refused: u64,
}

impl Notifier {
    pub(crate) fn new(channel: Arc<Channel>) -> Notifier {
        let state = State { channel: Some(channel), waiting: VecDeque::new(), telling: false, refused: 0 };
        let shared = Shared { state: Mutex::new(state), news: Condvar::new(), idle: Condvar::new() };
        Notifier { shared: Arc::new(shared), thread: Mutex::default() }
    }

    /// Waits until all is told. Not for handlers of requests.
    pub fn flush(&self) {
        let mut state = self.shared.state.lock();
        let busy = |state: &mut State| state.channel.is_some() && (state.telling || !state.waiting.is_empty());
        self.shared.idle.wait_while(&mut state, busy);
    }

    /// Notifications that the kernel refused; that it did not know the node or the name is no refusal.
    pub fn refused(&self) -> u64 {
        self.shared.state.lock().refused
    }

    /// Tells nothing more. To be called while requests are still answered: the last notification may wait for that.
    pub(crate) fn close(&self) {
        let mut state = self.shared.state.lock();
        state.channel = None;
        state.waiting.clear();
        drop(state);
        self.shared.news.notify_one();
        self.shared.idle.notify_all();
        if let Some(thread) = self.thread.lock().take() {
            // It has no code that panics; were it gone all the same, there would be nothing to wait for.
            let _ = thread.join();
        }
    }
}

impl Tell for Notifier {
    fn tell(&self, news: News) -> Result<(), Backlog> {
        let mut state = self.shared.state.lock();
        if state.channel.is_none() {
            return Ok(());
        }
        if state.waiting.len() >= BACKLOG {
            return Err(Backlog);
        }
        state.waiting.push_back(news);
        drop(state);
        self.shared.news.notify_one();
        let mut thread = self.thread.lock();
        if thread.is_none() {
            let shared = Arc::clone(&self.shared);
            match thread::Builder::new().name("virtiofs-notify".into()).spawn(move || shared.run()) {
                Ok(started) => *thread = Some(started),
                Err(error) => tracing::warn!(%error, "no thread to tell the kernel of changes: they wait for one"),
            }
        }
        Ok(())
    }
}

impl Shared {
    fn run(&self) {
        let mut state = self.state.lock();
        while let Some(channel) = state.channel.clone() {
            let Some(news) = state.waiting.pop_front() else {
                drop(channel);
                self.idle.notify_all();
                self.news.wait(&mut state);
                continue;
            };
            state.telling = true;
            drop(state);
            let told = send(&news, &channel);
            drop(channel);
            state = self.state.lock();
            state.telling = false;
            if let Err(errno) = told {
                state.refused += 1;
                if state.refused == 1 {
                    let error = io::Error::from(errno);
                    tracing::warn!(%error, ?news, "the kernel refuses a notification; of more like it nothing is said");
                }
            }
        }
    }
}

fn send(news: &News, channel: &Channel) -> Result<(), Errno> {
    let write = |news: &News| channel.write(&[IoSlice::new(&news.message())]);
    match (news, write(news)) {
        // A name that leads to it may be on its way, with attributes from before. It counts as old from its arrival.
        (News::Moved { .. }, Err(Errno::NOENT)) => known(write(&News::Epoch)),
        (_, result) => known(result),
    }
}

/// ENOENT: the kernel does not know it, so there is nothing to forget. ENODEV: it is unmounted.
fn known(result: Result<(), Errno>) -> Result<(), Errno> {
    match result {
        Err(Errno::NOENT | Errno::NODEV | Errno::CONNABORTED) => Ok(()),
        other => other,
    }
}
