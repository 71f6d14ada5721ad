//! The threads that run Python's handlers.
//!
//! A lane attaches to the interpreter once and keeps its thread state: attaching anew costs forty times what a call does. It drains what
//! waits, and lets go of the interpreter while it waits. With handlers that are to be awaited it runs an event loop of Python's
//! (`virtiofs.lane`), in which any number of requests are in flight ([`event_loop`]).

pub(crate) mod event_loop;

use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};
use pyo3::prelude::*;
use virtiofs_device::Spin;
use virtiofs_fuse::op::OPCODES;
use virtiofs_fuse::{Bell, FileSystem, Lane as Contract, Opcode, Scratch, Ticket, Turned, Untold};

use self::event_loop::{EventLoop, Eventual};
use crate::backlog::{Backlog, Next, Work};
use crate::flight::Flight;
use crate::handlers::{Base, Handlers, Method};
use crate::native::node::Node;
use crate::turn::{self, Call, Turn};

/// How long requests in flight may take once the server ends, and how long lanes then may take to end.
const GRACE: Duration = Duration::from_millis(1200);
const LEAVE: Duration = Duration::from_millis(400);

/// Replies that one interrupt may tell: see `tact.rs` of the device.
const MOST: usize = 4;
/// The longest that a handler may take to count as quick: less than what an interrupt costs in a virtual machine.
const SHORT: Duration = Duration::from_micros(20);

/// What is told of a session's begin and end.
#[derive(Default)]
pub(crate) struct Moments {
    pub(crate) begin: Option<Method>,
    pub(crate) end: Option<Method>,
}

/// All lanes of one server.
pub(crate) struct Lanes {
    handlers: Handlers,
    moments: Moments,
    backlog: Arc<Backlog>,
    number: AtomicU64,
    /// Which handlers were quick the last time: a reply may wait for the next one of theirs before it is told.
    quick: [AtomicBool; OPCODES],
    untold: Mutex<Untold>,
    deadlines: [Option<Duration>; OPCODES],
    /// Lanes that run, and whether the server ends.
    running: Mutex<Running>,
    changed: Condvar,
}

#[derive(Default)]
struct Running {
    lanes: usize,
    /// When requests in flight are answered whatever they are at.
    end: Option<Instant>,
    over: bool,
    threads: Vec<JoinHandle<()>>,
    watched: bool,
}

impl Contract for Lanes {
    fn fs(&self) -> &dyn FileSystem {
        &self.handlers
    }

    fn take(&self, ticket: Ticket) {
        let flight = Arc::new(Flight::new(self.number.fetch_add(1, Ordering::Relaxed), ticket));
        // A sweep finds it, or was before it, and then it is unwanted.
        let unwanted = |_: &Work| flight.is_unwanted();
        if !self.backlog.push_unless(Work::Serve(Arc::clone(&flight)), unwanted) {
            self.fail(&flight);
        }
    }

    fn sweep(&self) {
        self.fail_where(Flight::is_unwanted);
        // What was answered is not to wait for what comes behind it.
        self.untold.lock().tell();
    }
}

impl Lanes {
    pub(crate) fn new(handlers: Handlers, moments: Moments, deadlines: [Option<Duration>; OPCODES]) -> Lanes {
        Lanes {
            backlog: Arc::clone(&handlers.backlog),
            handlers,
            moments,
            number: AtomicU64::new(0),
            quick: [const { AtomicBool::new(false) }; OPCODES],
            untold: Mutex::default(),
            deadlines,
            running: Mutex::default(),
            changed: Condvar::new(),
        }
    }

    /// Starts so many lanes, with an event loop each if handlers are to be awaited.
    pub(crate) fn start(self: &Arc<Lanes>, lanes: usize, awaits: bool) -> std::io::Result<()> {
        for index in 0..lanes {
            self.spawn(format!("virtiofs-lane{index}"), move |lanes| {
                // None where the interpreter is going away.
                let ran =
                    Python::try_attach(|py| if awaits { lanes.clone().run_loop(py, index) } else { lanes.run(py) });
                if ran.is_none() {
                    lanes.backlog.close();
                }
            })?;
        }
        if self.deadlines.iter().any(Option::is_some) {
            self.watch()?;
        }
        Ok(())
    }

    fn spawn(self: &Arc<Lanes>, name: String, work: impl FnOnce(&Arc<Lanes>) + Send + 'static) -> std::io::Result<()> {
        let lanes = Arc::clone(self);
        self.running.lock().lanes += 1;
        let spawned = std::thread::Builder::new().name(name).spawn(move || {
            work(&lanes);
            lanes.running.lock().lanes -= 1;
            lanes.changed.notify_all();
        });
        let mut running = self.running.lock();
        match spawned {
            Ok(thread) => running.threads.push(thread),
            Err(error) => {
                running.lanes -= 1;
                return Err(error);
            }
        }
        Ok(())
    }

    fn run(&self, py: Python<'_>) {
        let (mut scratch, mut spin) = (Scratch::default(), Spin::default());
        while let Some(next) = self.backlog.pop().or_else(|| py.detach(|| self.wait(&mut spin))) {
            self.perform(py, next, &mut scratch, None);
        }
    }

    /// What is next. To sleep and be woken costs more than most handlers, so whoever feeds us is given a moment.
    fn wait(&self, spin: &mut Spin) -> Option<Next> {
        let Ok(_) = spin.look(|| Ok::<_, Infallible>(self.backlog.waits()));
        self.backlog.wait()
    }

    fn run_loop(self: Arc<Lanes>, py: Python<'_>, index: usize) {
        let lanes = Arc::clone(&self);
        let ran = Py::new(py, EventLoop::new(lanes, index))
            .and_then(|lane| py.import("virtiofs.lane")?.call_method1("run", (lane,)));
        if let Err(error) = ran {
            tracing::error!(%error, "a lane has ended: its requests are answered with EIO");
            error.write_unraisable(py, None);
        }
        // Whatever comes now has nobody to serve it: what is added to a closed backlog is answered with EIO at once.
        self.backlog.close();
        while let Some((work, _)) = self.backlog.pop() {
            if let Work::Serve(flight) = work {
                self.fail(&flight);
            }
        }
    }

    /// Does one thing. With an event loop, `eventual` makes tasks of coroutines.
    fn perform(&self, py: Python<'_>, next: Next, scratch: &mut Scratch, eventual: Option<&Eventual<'_, '_>>) {
        let (work, behind) = next;
        if !matches!(work, Work::Serve(_)) {
            self.untold.lock().tell();
        }
        match work {
            Work::Serve(flight) => self.serve(py, flight, behind, scratch, eventual),
            Work::Cancel(flight) => {
                if let Some(task) = flight.task.lock().take() {
                    let _ = task.call_method0(py, "cancel");
                }
            }
            Work::Tidy => {}
            Work::Forgotten(node) => self.forgotten(py, node, eventual),
            Work::Begin => self.tell(py, "init", self.moments.begin.as_ref(), (), eventual),
            Work::End => self.tell(py, "destroy", self.moments.end.as_ref(), (), eventual),
        }
    }

    fn forgotten(&self, py: Python<'_>, node: u64, eventual: Option<&Eventual<'_, '_>>) {
        let Some(Some(method)) = self.handlers.methods.get(Opcode::Forget as usize) else { return };
        let gone = match &self.handlers.base {
            Base::Own(kept) => kept.nodes.gone(),
            Base::Host(native) => {
                Py::new(py, Node::of_guest(native, node)).map(|node| vec![node.into_any()]).unwrap_or_default()
            }
        };
        for object in gone {
            self.tell(py, "forget", Some(method), (object,), eventual);
        }
    }

    /// Calls a handler whose answer nobody waits for.
    fn tell<'py>(
        &self,
        py: Python<'py>,
        name: &str,
        method: Option<&Method>,
        arguments: impl pyo3::call::PyCallArgs<'py>,
        eventual: Option<&Eventual<'_, '_>>,
    ) {
        let Some(method) = method else { return };
        let called = method.callable.bind(py).call1(arguments).and_then(|answer| match (method.awaits, eventual) {
            (true, Some(eventual)) => eventual.spawn.call1((answer,)).map(drop),
            _ => Ok(()),
        });
        if let Err(error) = called {
            let _ = crate::faults::answer(py, &format!("{}.{name}", self.handlers.class), error);
        }
    }

    fn serve(
        &self,
        py: Python<'_>,
        flight: Arc<Flight>,
        behind: Option<Opcode>,
        scratch: &mut Scratch,
        eventual: Option<&Eventual<'_, '_>>,
    ) {
        // None where it was answered while it waited.
        let Some(ticket) = flight.ticket.lock().take() else { return self.land(&flight) };
        turn::replace(Turn::Ask);
        let again = ticket.turn(scratch);
        let (call, ticket) = match (turn::replace(Turn::Elsewhere), again) {
            (Turn::Call(call), Turned::Again(ticket)) => (call, ticket),
            (_, Turned::Over(bell)) => return self.close(&flight, bell, None),
            (_, Turned::Again(ticket)) => {
                drop(ticket);
                return self.close(&flight, None, None);
            }
        };
        *flight.ticket.lock() = Some(ticket);
        let Call { opcode, callable, arguments, awaits } = call;
        let begun = Instant::now();
        let mut result = callable.bind(py).call1(arguments.into_bound(py)).map(Bound::unbind);
        if let Some(quick) = self.quick.get(flight.opcode as usize) {
            quick.store(begun.elapsed() < SHORT && !awaits, Ordering::Relaxed);
        }
        if let (true, Some(eventual)) = (awaits, eventual) {
            match result.and_then(|coroutine| eventual.begin(py, coroutine, &flight, opcode)) {
                Ok(()) => return,
                Err(error) => result = Err(error),
            }
        }
        self.finish(&flight, opcode, result, behind, scratch);
    }

    /// The handler has answered.
    fn finish(
        &self,
        flight: &Flight,
        opcode: Opcode,
        result: PyResult<Py<PyAny>>,
        behind: Option<Opcode>,
        scratch: &mut Scratch,
    ) {
        // None where it took too long.
        let ticket = flight.ticket.lock().take();
        let mut bell = None;
        if let Some(ticket) = ticket {
            turn::replace(Turn::Answer(opcode, result));
            if let Turned::Over(one) = ticket.turn(scratch) {
                bell = one;
            }
            turn::replace(Turn::Elsewhere);
        }
        self.close(flight, bell, behind);
    }

    /// A request was answered. The driver is told, together with a few more if what waits behind is quick.
    fn close(&self, flight: &Flight, bell: Option<Arc<dyn Bell>>, behind: Option<Opcode>) {
        let quick = behind.and_then(|opcode| self.quick.get(opcode as usize));
        let most = if quick.is_some_and(|quick| quick.load(Ordering::Relaxed)) { MOST } else { 1 };
        match bell {
            Some(bell) => self.untold.lock().add(bell, most),
            None => self.untold.lock().tell(),
        }
        self.land(flight);
    }

    fn land(&self, flight: &Flight) {
        if self.backlog.land(flight.number) {
            self.changed.notify_all();
        }
    }

    fn fail(&self, flight: &Arc<Flight>) {
        let ticket = flight.ticket.lock().take();
        if let Some(ticket) = ticket {
            self.land(flight);
            ticket.fail(libc::EIO);
            if flight.task.lock().is_some() {
                self.backlog.push(Work::Cancel(Arc::clone(flight)));
            }
        }
    }

    fn fail_where(&self, wanted: impl Fn(&Flight) -> bool) -> usize {
        let flights = self.backlog.requests();
        let unwanted = flights.iter().filter(|flight| flight.is_open() && wanted(flight));
        unwanted.inspect(|flight| self.fail(flight)).count()
    }

    /// Operation, node and age of each request in flight.
    pub(crate) fn in_flight(&self) -> Vec<(&'static str, u64, Duration)> {
        let flights = self.backlog.requests();
        let open = flights.iter().filter(|flight| flight.is_open());
        let mut all: Vec<_> = open.map(|flight| (flight.opcode.name(), flight.node, flight.since.elapsed())).collect();
        all.sort_by_key(|(_, _, age)| std::cmp::Reverse(*age));
        all
    }

    fn deadline(&self, flight: &Flight) -> Option<Instant> {
        let allowed = self.deadlines.get(flight.opcode as usize).copied().flatten()?;
        flight.since.checked_add(allowed)
    }

    /// Starts the thread that answers what takes too long.
    fn watch(self: &Arc<Lanes>) -> std::io::Result<()> {
        if std::mem::replace(&mut self.running.lock().watched, true) {
            return Ok(());
        }
        let lanes = Arc::clone(self);
        let thread = std::thread::Builder::new().name("virtiofs-deadline".into()).spawn(move || {
            /// How exact a deadline is.
            const TICK: Duration = Duration::from_millis(20);
            let mut running = lanes.running.lock();
            while !running.over {
                lanes.changed.wait_for(&mut running, TICK);
                let end = running.end;
                drop(running);
                let now = Instant::now();
                let late = |flight: &Flight| lanes.deadline(flight).is_some_and(|deadline| deadline <= now);
                let failed = lanes.fail_where(late);
                if failed > 0 {
                    tracing::warn!(requests = failed, "handlers took longer than their deadline: answered with EIO");
                }
                if end.is_some_and(|end| end <= now) {
                    lanes.fail_where(|_| true);
                }
                running = lanes.running.lock();
            }
        })?;
        self.running.lock().threads.push(thread);
        Ok(())
    }

    /// The server ends: from now on requests in flight have only so much time. Does not wait.
    pub(crate) fn hurry(self: &Arc<Lanes>) {
        self.running.lock().end.get_or_insert_with(|| Instant::now() + GRACE);
        self.changed.notify_all();
        if let Err(error) = self.watch() {
            tracing::warn!(%error, "no thread to answer what takes too long: done at once");
            self.fail_where(|_| true);
        }
    }

    /// Ends the lanes, which have nothing in flight any more. A handler that does not return keeps its thread, and nothing else.
    pub(crate) fn end(&self) {
        let mut running = self.running.lock();
        let end = running.end.unwrap_or_else(Instant::now);
        while self.backlog.is_busy() && !self.changed.wait_until(&mut running, end).timed_out() {}
        drop(running);
        self.fail_where(|_| true);
        self.backlog.close();
        let mut running = self.running.lock();
        let stuck = self.changed.wait_while_for(&mut running, |running| running.lanes > 0, LEAVE).timed_out();
        running.over = true;
        let threads = std::mem::take(&mut running.threads);
        drop(running);
        self.changed.notify_all();
        if stuck {
            tracing::warn!("a handler does not return: its thread is left behind");
        }
        for thread in threads {
            if !stuck || thread.is_finished() {
                // A lane guards its requests; were one gone, ending it would be done.
                let _ = thread.join();
            }
        }
    }
}
