//! What the kernel is told unasked: that something which it remembers is no longer true.
//!
//! To forget a name the kernel takes the lock of its directory, and to forget data those of their pages; either may be held by a caller
//! who waits for a reply of ours. So nothing is told by the thread that has something to tell: one thread does that, which no reply
//! waits for.

use std::collections::VecDeque;
use std::ffi::CString;
use std::io::{self, IoSlice};
use std::sync::Arc;
use std::thread::{self, JoinHandle};

use parking_lot::{Condvar, Mutex};
use rustix::io::Errno;
use virtiofs_fuse::wire::{NotifyDeleteOut, NotifyInvalEntryOut, NotifyInvalInodeOut, OutHeader, notify};
use zerocopy::{Immutable, IntoBytes};

use super::channel::Channel;

/// News that may wait to be told.
const BACKLOG: usize = 1 << 16;

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

/// So much waits to be told that more would only pile up: try again later.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{BACKLOG} notifications wait for the kernel already")]
pub struct Backlog;

#[derive(Debug)]
enum News {
    Inode { node: u64, offset: i64, len: i64 },
    Moved { node: u64 },
    Entry { parent: u64, name: CString },
    Delete { parent: u64, child: u64, name: CString },
    Epoch,
}

impl Notifier {
    pub(crate) fn new(channel: Arc<Channel>) -> Notifier {
        let state = State { channel: Some(channel), waiting: VecDeque::new(), telling: false, refused: 0 };
        let shared = Shared { state: Mutex::new(state), news: Condvar::new(), idle: Condvar::new() };
        Notifier { shared: Arc::new(shared), thread: Mutex::default() }
    }

    /// The attributes of `node`, and `len` bytes of its data from `offset` on: all from there on with `len` 0, none with a negative `offset`.
    pub fn inval_inode(&self, node: u64, offset: i64, len: i64) -> Result<(), Backlog> {
        self.tell(News::Inode { node, offset, len })
    }

    /// Everything about `node`, also if the kernel only learns of it from a reply that is still on its way.
    pub fn moved(&self, node: u64) -> Result<(), Backlog> {
        self.tell(News::Moved { node })
    }

    /// What `name` means in the directory `parent`.
    pub fn inval_entry(&self, parent: u64, name: CString) -> Result<(), Backlog> {
        self.tell(News::Entry { parent, name })
    }

    /// `name`, which was `child`, is gone from `parent`.
    pub fn delete(&self, parent: u64, child: u64, name: CString) -> Result<(), Backlog> {
        self.tell(News::Delete { parent, child, name })
    }

    /// All names: each is asked for again when it is used next. Linux 6.16 and newer.
    pub fn inc_epoch(&self) -> Result<(), Backlog> {
        self.tell(News::Epoch)
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
            let told = news.send(&channel);
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

impl News {
    fn send(&self, channel: &Channel) -> Result<(), Errno> {
        match self {
            News::Inode { node, offset, len } => {
                let out = NotifyInvalInodeOut { ino: *node, off: *offset, len: *len };
                message(channel, notify::INVAL_INODE, &out, None)
            }
            News::Moved { node } => {
                let out = NotifyInvalInodeOut { ino: *node, off: 0, len: 0 };
                match raw(channel, notify::INVAL_INODE, &out, None) {
                    // A name that leads to it may be on its way, with attributes from before. It counts as old from its arrival.
                    Err(Errno::NOENT) => message(channel, notify::INC_EPOCH, &(), None),
                    other => known(other),
                }
            }
            News::Entry { parent, name } => {
                let out = NotifyInvalEntryOut { parent: *parent, namelen: name.count_bytes() as u32, flags: 0 };
                message(channel, notify::INVAL_ENTRY, &out, Some(name))
            }
            News::Delete { parent, child, name } => {
                let namelen = name.count_bytes() as u32;
                let out = NotifyDeleteOut { parent: *parent, child: *child, namelen, padding: 0 };
                message(channel, notify::DELETE, &out, Some(name))
            }
            News::Epoch => message(channel, notify::INC_EPOCH, &(), None),
        }
    }
}

fn message<T: IntoBytes + Immutable>(
    channel: &Channel,
    code: i32,
    body: &T,
    name: Option<&CString>,
) -> Result<(), Errno> {
    known(raw(channel, code, body, name))
}

/// ENOENT: the kernel does not know it, so there is nothing to forget. ENODEV: it is unmounted.
fn known(result: Result<(), Errno>) -> Result<(), Errno> {
    match result {
        Err(Errno::NOENT | Errno::NODEV | Errno::CONNABORTED) => Ok(()),
        other => other,
    }
}

fn raw<T: IntoBytes + Immutable>(channel: &Channel, code: i32, body: &T, name: Option<&CString>) -> Result<(), Errno> {
    let (body, name) = (body.as_bytes(), name.map_or(&[][..], |name| name.as_bytes_with_nul()));
    let len = size_of::<OutHeader>() + body.len() + name.len();
    let header = OutHeader { len: len as u32, error: code, unique: 0 };
    let parts = [IoSlice::new(header.as_bytes()), IoSlice::new(body), IoSlice::new(name)];
    channel.write(&parts)
}
