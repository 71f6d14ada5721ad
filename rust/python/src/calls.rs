//! Interrupts that are Python functions: called by one thread of ours, so that no queue ever waits for the interpreter.

use std::collections::HashMap;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Arc, LazyLock};
use std::thread::{self, ThreadId};

use parking_lot::{Condvar, Mutex};
use pyo3::prelude::*;
use rustix::event::epoll::{self, CreateFlags, EventData, EventFlags};
use rustix::io::Errno;
use virtiofs_virtqueue::Event;

/// The thread of this process, which is there while there are functions to be called.
static CALLER: LazyLock<Caller> = LazyLock::new(Caller::default);

#[derive(Default)]
struct Caller {
    state: Mutex<State>,
    /// A function has returned.
    returned: Condvar,
}

#[derive(Default)]
struct State {
    next: u64,
    functions: HashMap<u64, Function>,
    watch: Option<Arc<Watch>>,
    /// The function that is being called, and by which thread.
    calling: Option<(u64, ThreadId)>,
}

/// What the thread waits for. There is a new one whenever there is a new thread.
struct Watch {
    epoll: OwnedFd,
    stop: Event,
}

/// `stop` among the keys of functions.
const STOP: u64 = u64::MAX;

impl Watch {
    fn new() -> io::Result<Watch> {
        let watch = Watch { epoll: epoll::create(CreateFlags::CLOEXEC)?, stop: Event::new()? };
        epoll::add(&watch.epoll, watch.stop.as_fd(), EventData::new_u64(STOP), EventFlags::IN)?;
        Ok(watch)
    }
}

#[derive(Clone)]
struct Function {
    event: Arc<Event>,
    function: Arc<Py<PyAny>>,
}

/// A function to be called whenever [`Subscription::event`] is signalled. None is called any more when this is dropped; to
/// drop it waits for a call that is under way, unless it is dropped by that call.
pub(crate) struct Subscription {
    key: u64,
    pub(crate) event: Arc<Event>,
}

impl Subscription {
    /// Calls `function` from now on.
    pub(crate) fn new(function: Py<PyAny>) -> io::Result<Subscription> {
        let event = Arc::new(Event::new()?);
        let mut state = CALLER.state.lock();
        let key = state.next;
        state.next += 1;
        let watch = match &state.watch {
            Some(watch) => Arc::clone(watch),
            None => {
                let watch = Arc::new(Watch::new()?);
                let theirs = Arc::clone(&watch);
                thread::Builder::new().name("virtiofs-calls".into()).spawn(move || call_for(&theirs))?;
                state.watch = Some(Arc::clone(&watch));
                watch
            }
        };
        let edge = EventFlags::IN | EventFlags::ET;
        epoll::add(&watch.epoll, event.as_fd(), EventData::new_u64(key), edge)?;
        state.functions.insert(key, Function { event: Arc::clone(&event), function: Arc::new(function) });
        Ok(Subscription { key, event })
    }
}

impl Drop for Subscription {
    fn drop(&mut self) {
        let mut state = CALLER.state.lock();
        let gone = state.functions.remove(&self.key);
        if let (Some(watch), Some(function)) = (&state.watch, &gone) {
            // It is there: nobody else takes it out.
            let _ = epoll::delete(&watch.epoll, function.event.as_fd());
        }
        if state.functions.is_empty()
            && let Some(watch) = state.watch.take()
        {
            watch.stop.signal();
        }
        let us = thread::current().id();
        while state.calling.is_some_and(|(key, thread)| key == self.key && thread != us) {
            CALLER.returned.wait(&mut state);
        }
    }
}

/// Calls functions until `watch` is stopped.
fn call_for(watch: &Watch) {
    let mut events = Vec::with_capacity(16);
    loop {
        events.clear();
        match epoll::wait(&watch.epoll, rustix::buffer::spare_capacity(&mut events), None) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(error) => return tracing::error!(%error, "interrupts no longer reach their functions"),
        }
        for event in &events {
            let key = event.data.u64();
            if key == STOP {
                return;
            }
            let mut state = CALLER.state.lock();
            let Some(function) = state.functions.get(&key).cloned() else { continue };
            state.calling = Some((key, thread::current().id()));
            drop(state);
            Python::try_attach(|py| {
                if let Err(error) = function.function.call0(py) {
                    error.write_unraisable(py, Some(function.function.bind(py)));
                }
            });
            CALLER.state.lock().calling = None;
            CALLER.returned.notify_all();
        }
    }
}
