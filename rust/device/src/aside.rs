//! The hiprio queue, served on the way by whoever is awake.
//!
//! What honest drivers send there are FORGETs, on which nobody waits. A thread of its own that is woken for each of them costs more than they
//! do: the driver pays for the kick, a processor for two switches, and the counts of the nodes go from one processor to the other and
//! back. So a thread that has requests to serve takes the FORGETs along, and asks for no kicks there while it is awake; the queue's own
//! thread has them while all others sleep. Whoever goes to sleep, or stops, asks for kicks again, and waits for nobody to do so.

use std::sync::Arc;

use parking_lot::Mutex;
use virtiofs_fuse::Scratch;
use virtiofs_virtqueue::{Available, Memory, Waiter};

use crate::request::Request;
use crate::running::Control;
use crate::worker::{Turn, Worker};

/// Requests after which a busy thread looks at the hiprio queue.
const EVERY: u8 = 16;

/// The hiprio queue's place, where all threads of a device find it while it runs.
#[derive(Debug, Default)]
pub(crate) struct Place {
    sitting: Mutex<Option<Sitting>>,
    /// How the queue's own thread is reached while somebody else serves the queue.
    control: Mutex<Option<Arc<Control>>>,
}

#[derive(Debug)]
struct Sitting {
    worker: Worker,
    memory: Arc<Memory>,
}

impl Place {
    /// Serves the queue whenever it is kicked, until it is to stop.
    pub(crate) fn run(&self, worker: Worker, waiter: &Waiter) -> Option<Available> {
        let control = Arc::clone(worker.control());
        let memory = worker.memory();
        *self.control.lock() = Some(Arc::clone(&control));
        *self.sitting.lock() = Some(Sitting { worker, memory });
        let (mut request, mut scratch) = (Request::default(), Scratch::default());
        while !control.stops() {
            if self.serve(&mut request, &mut scratch) == Turn::More {
                continue;
            }
            // Nothing of the guest's memory is held on to while nothing is to be done.
            request.0.clear();
            if !control.wait(waiter) {
                break;
            }
            if let Some(sitting) = &mut *self.sitting.lock() {
                sitting.worker.refresh(&mut sitting.memory);
            }
        }
        *self.control.lock() = None;
        let Sitting { mut worker, memory } = self.sitting.lock().take()?;
        // The ring is left as others may expect it who go on with it.
        worker.ask_for_kicks(&memory);
        Some(worker.into_available())
    }

    /// Serves what waits there and asks for kicks; what is much, or in the hands of somebody else, is left to the queue's own thread.
    fn hand_back(&self, request: &mut Request, scratch: &mut Scratch) {
        if let Some(mut place) = self.sitting.try_lock() {
            let Some(Sitting { worker, memory }) = &mut *place else { return };
            if worker.serve_while(memory, request, scratch) == Turn::Idle {
                return;
            }
        }
        if let Some(control) = &*self.control.lock() {
            control.event.signal();
        }
    }

    /// Serves what waits there, and asks for kicks.
    fn serve(&self, request: &mut Request, scratch: &mut Scratch) -> Turn {
        match &mut *self.sitting.lock() {
            Some(sitting) => sitting.worker.serve_while(&mut sitting.memory, request, scratch),
            None => Turn::Idle,
        }
    }
}

/// One thread's way to the hiprio queue.
#[derive(Debug)]
pub(crate) struct Aside {
    place: Arc<Place>,
    /// Requests since the last look.
    requests: u8,
    /// Where the queue stood then.
    position: u16,
    /// The driver was told that no kicks are needed.
    hushed: bool,
}

impl Aside {
    pub(crate) fn new(place: &Arc<Place>) -> Aside {
        Aside { place: Arc::clone(place), requests: 0, position: 0, hushed: false }
    }

    /// One more request was served: whether it is time to look.
    #[inline]
    pub(crate) fn is_due(&mut self) -> bool {
        self.requests += 1;
        self.requests >= EVERY
    }

    /// Serves what waits there, unless somebody else is at it, and answers whether that was anything. Where something came since the last
    /// look, more will: no kicks for it.
    pub(crate) fn look(&mut self, request: &mut Request, scratch: &mut Scratch) -> bool {
        self.requests = 0;
        let Some(mut place) = self.place.sitting.try_lock() else { return false };
        let Some(Sitting { worker, memory }) = &mut *place else { return false };
        let before = worker.position();
        self.hushed |= worker.serve_aside(memory, self.position, request, scratch);
        self.position = worker.position();
        self.position != before
    }

    /// The thread is going to sleep: from now on kicks are needed again.
    pub(crate) fn leave(&mut self, request: &mut Request, scratch: &mut Scratch) {
        if std::mem::take(&mut self.hushed) {
            self.place.hand_back(request, scratch);
        }
    }
}
