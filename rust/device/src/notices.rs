//! The queue of notifications (virtio 1.3, 5.11.2): the driver fills it with empty buffers, each of which takes one message.
//!
//! Like `virtio_fs_verify_response` for replies, a driver may hold us to this: `unique` is 0, `error` is the code, and the used length is
//! that of the message. A driver that gives no buffers is told nothing and costs nothing more: news wait, [`BACKLOG`] of them, and
//! behind those the version table does, which names what moved once however often it did.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use parking_lot::Mutex;
use virtiofs_coherence::{Error, Table, View};
use virtiofs_virtqueue::{Available, Chain, Memory, Popped, RingError, SharedMemory, Waiter};

use crate::completer::Completer;
use crate::news::{BACKLOG, Backlog, News, Tell};
use crate::running::Control;

/// What a device tells its driver of unasked: whatever moves in the version table, and what it is told to tell.
#[derive(Debug)]
pub struct Notices {
    pub(crate) table: Arc<Table>,
    view: Arc<View>,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    /// Wakes the queue's thread; `None` while there is none, when nobody has anything to be told.
    wake: Option<Arc<Control>>,
    waiting: VecDeque<News>,
}

impl Notices {
    /// Nobody to tell yet.
    pub fn new(table: Arc<Table>) -> Result<Notices, Error> {
        let view = Arc::new(View::new(table.fd())?);
        Ok(Notices { table, view, state: Mutex::default() })
    }

    /// The table as a guest may have it.
    pub fn view(&self) -> &Arc<View> {
        &self.view
    }

    /// The table.
    pub fn table(&self) -> &Arc<Table> {
        &self.table
    }

    /// The queue has a thread from now on.
    pub(crate) fn open(&self, wake: Arc<Control>) {
        *self.state.lock() = State { wake: Some(wake), waiting: VecDeque::new() };
    }

    /// It has none any more. What was not told yet is not told: whoever goes on is told that everything is old.
    pub(crate) fn close(&self) {
        *self.state.lock() = State::default();
    }

    fn next(&self) -> Option<News> {
        self.state.lock().waiting.pop_front()
    }

    fn put_back(&self, news: News) {
        self.state.lock().waiting.push_front(news);
    }
}

impl Tell for Notices {
    fn tell(&self, news: News) -> Result<(), Backlog> {
        let mut state = self.state.lock();
        let Some(wake) = state.wake.clone() else { return Ok(()) };
        if state.waiting.len() >= BACKLOG {
            return Err(Backlog);
        }
        state.waiting.push_back(news);
        drop(state);
        wake.event.signal();
        Ok(())
    }
}

/// The thread of the queue.
pub(crate) struct Teller {
    pub(crate) available: Available,
    pub(crate) waiter: Waiter,
    pub(crate) control: Arc<Control>,
    pub(crate) memory: Arc<SharedMemory>,
    pub(crate) completer: Arc<Completer>,
    pub(crate) notices: Arc<Notices>,
}

impl Teller {
    /// Tells until it is stopped, and answers where the buffers come from.
    pub(crate) fn run(mut self) -> Available {
        let mut memory = self.memory.load();
        let mut chain = Chain::default();
        let mut broken = false;
        while !self.is_to_stop() {
            if let Err(error) = self.deliver(&memory, &mut chain)
                && !std::mem::replace(&mut broken, true)
            {
                tracing::warn!(%error, "the guest's ring of notifications is broken: it is told nothing until it has reset it");
            }
            chain.clear();
            match self.waiter.wait(None) {
                Ok(wake) if wake.control => self.control.event.drain(),
                Ok(_) => {}
                Err(error) => {
                    tracing::error!(%error, "waiting for the guest failed: it is no longer told of changes");
                    break;
                }
            }
            self.memory.refresh(&mut memory);
        }
        self.available
    }

    /// Tells what waits, as far as there are buffers. Kicks are wanted only while they are missing.
    fn deliver(&mut self, memory: &Arc<Memory>, chain: &mut Chain) -> Result<(), RingError> {
        self.available.disarm(memory)?;
        while let Some(news) = self.notices.next() {
            let message = news.message();
            while !self.write(memory, chain, &message)? {
                self.completer.tell();
                if self.is_to_stop() || !self.available.arm(memory)? {
                    self.notices.put_back(news);
                    return Ok(());
                }
            }
        }
        self.completer.tell();
        Ok(())
    }

    fn is_to_stop(&self) -> bool {
        self.control.stop.load(Ordering::Acquire)
    }

    /// Puts a message into the next buffer, or answers false where there is none, or no time for it. Buffers that are too short go back empty; a
    /// driver may have any number of them.
    fn write(&mut self, memory: &Arc<Memory>, chain: &mut Chain, message: &[u8]) -> Result<bool, RingError> {
        loop {
            if self.is_to_stop() {
                return Ok(false);
            }
            match self.available.pop(memory, chain)? {
                Popped::Nothing => return Ok(false),
                Popped::Malformed { head } => self.completer.put(head, 0),
                Popped::Request if chain.write(0, message) && chain.settle(message.len()) => {
                    self.completer.put(chain.head(), message.len());
                    return Ok(true);
                }
                Popped::Request => self.completer.put(chain.head(), 0),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;
    use std::sync::atomic::AtomicBool;

    use rustix::fs::{MemfdFlags, memfd_create};
    use virtiofs_virtqueue::{Event, Region, RingConfig, split};

    use super::*;

    /// A driver whose buffers are all too short: how many it got back, and how many messages wait.
    fn told(stop: bool) -> (u64, usize) {
        let file = std::fs::File::from(memfd_create("guest", MemfdFlags::CLOEXEC).unwrap());
        file.set_len(0x8000).unwrap();
        let region = Region { guest_address: 0, size: 0x8000, user_address: 0, file, offset: 0 };
        let memory = Memory::new(vec![region]).unwrap();
        // One descriptor of 8 bytes for the device to write, eight times.
        memory.write(0x1000, &[0, 0x40, 0, 0, 0, 0, 0, 0, 8, 0, 0, 0, 2, 0, 0, 0]).unwrap();
        memory.store(0x2002, 8, 2).unwrap();
        let ring = RingConfig { size: 16, desc: 0x1000, avail: 0x2000, used: 0x3000, next_avail: 0, event_idx: false };
        let (available, used) = split(ring, &memory).unwrap();
        let shared = Arc::new(SharedMemory::default());
        shared.store(memory);
        let control = Arc::new(Control { event: Event::new().unwrap(), stop: AtomicBool::new(stop) });
        let notices = Arc::new(Notices::new(Table::anonymous(64).unwrap()).unwrap());
        notices.open(Arc::clone(&control));
        notices.tell(News::Moved { node: 1 }).unwrap();
        let mut teller = Teller {
            available,
            waiter: Waiter::new(Arc::new(Event::new().unwrap()), &control.event).unwrap(),
            control,
            completer: Arc::new(Completer::new(&shared, used, None, VecDeque::new())),
            memory: Arc::clone(&shared),
            notices: Arc::clone(&notices),
        };
        let memory = shared.load();
        teller.deliver(&memory, &mut Chain::default()).unwrap();
        let waiting = notices.state.lock().waiting.len();
        (memory.load(0x3002, 2).unwrap(), waiting)
    }

    #[test]
    fn buffers_that_are_too_short_keep_nobody_from_stopping() {
        assert_eq!(told(false), (8, 1));
        assert_eq!(told(true), (0, 1));
    }
}
