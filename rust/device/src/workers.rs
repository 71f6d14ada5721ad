//! Threads that serve the queues of many devices, for a process with more devices than it wants threads.
//!
//! Each thread waits for all of its queues at once and serves those that were kicked in turns, so that none of them waits for the last
//! request of another. A thread is there while it has queues.

use std::collections::{HashMap, VecDeque};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread::{self, JoinHandle};

use parking_lot::Mutex;
use rustix::event::epoll::{self, CreateFlags, EventData, EventFlags};
use rustix::io::Errno;
use virtiofs_fuse::Scratch;
use virtiofs_virtqueue::Event;

use crate::pool::Pool;
use crate::request::Request;
use crate::signals::leave_to_others;
use crate::worker::{Turn, Worker};

/// A bounded number of threads, shared by any number of devices.
#[derive(Debug)]
pub struct Workers {
    tables: Vec<Arc<Table>>,
    next: AtomicUsize,
    pub(crate) pool: Arc<Pool>,
}

/// The queues of one thread.
#[derive(Debug)]
struct Table {
    name: String,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    next_key: u64,
    seats: HashMap<u64, Arc<Seat>>,
    /// The thread and what it waits for; there is a new one whenever there are queues again.
    thread: Option<(Arc<Watch>, JoinHandle<()>)>,
}

#[derive(Debug)]
struct Watch {
    epoll: OwnedFd,
    /// Signalled for newcomers, whose rings may hold requests already, and for the end.
    control: Event,
    news: Mutex<News>,
}

#[derive(Debug, Default)]
struct News {
    seated: Vec<Arc<Seat>>,
    over: bool,
}

/// `control` among the keys of queues.
const CONTROL: u64 = u64::MAX;

/// One queue at a thread's table.
#[derive(Debug)]
struct Seat {
    kick: Arc<Event>,
    /// Taken out by whoever stops the queue.
    worker: Mutex<Option<Worker>>,
}

/// A queue that is served here until this is given back.
#[derive(Debug)]
pub(crate) struct Seated {
    table: Arc<Table>,
    key: u64,
}

impl Workers {
    /// As many threads as there is use for, `threads` at the most, and as many more, up to `slow_threads`, for requests that wait for
    /// a disk.
    pub fn new(threads: usize, slow_threads: usize) -> Workers {
        let table = |number| Arc::new(Table { name: format!("virtiofs-w{number}"), state: Mutex::default() });
        let tables = (0..threads.max(1)).map(table).collect();
        Workers { tables, next: AtomicUsize::new(0), pool: Arc::new(Pool::new(slow_threads)) }
    }

    /// Threads that there are at most, those for slow requests not counted.
    pub fn threads(&self) -> usize {
        self.tables.len()
    }

    /// Serves a queue from now on.
    pub(crate) fn seat(&self, worker: Worker, kick: &Arc<Event>) -> io::Result<Seated> {
        let turn = self.next.fetch_add(1, Ordering::Relaxed);
        let table = self.tables.get(turn % self.tables.len()).ok_or(io::ErrorKind::NotFound)?;
        let seat = Arc::new(Seat { kick: Arc::clone(kick), worker: Mutex::new(Some(worker)) });
        let mut state = table.state.lock();
        let watch = match &state.thread {
            Some((watch, _)) => Arc::clone(watch),
            None => {
                let watch = Arc::new(Watch::new()?);
                let (theirs, places) = (Arc::clone(&watch), Arc::clone(table));
                let run = move || {
                    leave_to_others();
                    attend(&theirs, &places);
                };
                let thread = thread::Builder::new().name(table.name.clone()).spawn(run)?;
                state.thread = Some((Arc::clone(&watch), thread));
                watch
            }
        };
        let key = state.next_key;
        state.next_key += 1;
        state.seats.insert(key, Arc::clone(&seat));
        let edge = EventFlags::IN | EventFlags::ET;
        if let Err(error) = epoll::add(&watch.epoll, kick.as_fd(), EventData::new_u64(key), edge) {
            drop(state);
            drop(Seated { table: Arc::clone(table), key }.leave());
            return Err(error.into());
        }
        watch.news.lock().seated.push(seat);
        watch.control.signal();
        Ok(Seated { table: Arc::clone(table), key })
    }
}

impl Seated {
    /// Takes the queue away, after the request that is being handled.
    pub(crate) fn leave(self) -> Option<Worker> {
        let mut state = self.table.state.lock();
        let seat = state.seats.remove(&self.key)?;
        if let Some((watch, _)) = &state.thread {
            // It may not have been added: two queues of one table cannot have one kick.
            let _ = epoll::delete(&watch.epoll, seat.kick.as_fd());
        }
        let last = if state.seats.is_empty() { state.thread.take() } else { None };
        drop(state);
        let worker = seat.worker.lock().take();
        if let Some((watch, thread)) = last {
            watch.news.lock().over = true;
            watch.control.signal();
            // Each request is guarded, so it ends as it should.
            let _ = thread.join();
        }
        worker
    }
}

impl Watch {
    fn new() -> io::Result<Watch> {
        let watch =
            Watch { epoll: epoll::create(CreateFlags::CLOEXEC)?, control: Event::new()?, news: Mutex::default() };
        epoll::add(&watch.epoll, watch.control.as_fd(), EventData::new_u64(CONTROL), EventFlags::IN)?;
        Ok(watch)
    }
}

/// Serves queues until the last one has left.
fn attend(watch: &Watch, table: &Table) {
    let (mut request, mut scratch) = (Request::default(), Scratch::default());
    let mut events = Vec::with_capacity(64);
    let mut ready: VecDeque<Arc<Seat>> = VecDeque::new();
    let now = rustix::event::Timespec { tv_sec: 0, tv_nsec: 0 };
    loop {
        events.clear();
        let timeout = if ready.is_empty() { None } else { Some(&now) };
        match epoll::wait(&watch.epoll, rustix::buffer::spare_capacity(&mut events), timeout) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(error) => return tracing::error!(%error, "waiting for guests failed: their queues are not served"),
        }
        for event in &events {
            let key = event.data.u64();
            if key == CONTROL {
                watch.control.drain();
                let mut news = watch.news.lock();
                if news.over {
                    return;
                }
                news.seated.drain(..).for_each(|seat| enqueue(&mut ready, seat));
            } else if let Some(seat) = table.state.lock().seats.get(&key) {
                seat.kick.consume();
                enqueue(&mut ready, Arc::clone(seat));
            }
        }
        // One turn for each: what was kicked meanwhile gets the next.
        for _ in 0..ready.len() {
            let Some(seat) = ready.pop_front() else { break };
            let turn = seat.worker.lock().as_mut().map(|worker| worker.turn(&mut request, &mut scratch));
            if turn == Some(Turn::More) {
                ready.push_back(seat);
            }
        }
    }
}

/// A queue that is in line already has its turn anyway.
fn enqueue(ready: &mut VecDeque<Arc<Seat>>, seat: Arc<Seat>) {
    if ready.iter().all(|waiting| !Arc::ptr_eq(waiting, &seat)) {
        ready.push_back(seat);
    }
}
