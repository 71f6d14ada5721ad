//! The device as an object, for whoever has guest memory and queue addresses at hand: a VMM of which it is a part, or a transport.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};

use parking_lot::{Mutex, RwLock};
use virtiofs_fuse::Server;
use virtiofs_virtqueue::{Event, MemoryError, SharedMemory, split};

use crate::identity::QUEUE_SIZE_MAX;
use crate::notices::Notices;
use crate::pool::Pool;
use crate::queue::Queue;
use crate::running::Surroundings;
use crate::setup::{QueueSetup, check_features};
use crate::window::Local;
use crate::{Identity, Workers};

/// What a device does at present.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum State {
    /// It can be started: it is new, or was reset.
    Ready,
    /// It serves its queues.
    Running,
    /// It was started and serves nothing for the time; its rings do not change.
    Paused,
    /// It is over.
    Closed,
}

impl State {
    const ALL: [State; 4] = [State::Ready, State::Running, State::Paused, State::Closed];
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            State::Ready => "ready",
            State::Running => "running",
            State::Paused => "paused",
            State::Closed => "closed",
        })
    }
}

/// Why a device did not do what it was asked for. It is as it was before.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs)]
pub enum DeviceError {
    #[error("the device is {is}: to {action}, it must be {wanted}")]
    State { is: State, action: &'static str, wanted: &'static str },
    #[error("features {refused:#x} were not offered: accept some of {offered:#x}")]
    Features { refused: u64, offered: u64 },
    #[error("VIRTIO_F_VERSION_1 (bit 32) was not accepted: there is no legacy device here")]
    Legacy,
    #[error("queue {index} is none of this device, which has {queues}")]
    NoQueue { index: usize, queues: usize },
    #[error("queue {index} was not set up")]
    Unused { index: usize },
    #[error("queue {index} cannot start: {reason}")]
    Queue { index: usize, reason: String },
}

/// Who does the work of a device.
#[derive(Clone, Debug)]
pub enum Threads {
    /// A thread for each queue, and `slow` at the most for requests that wait for a disk.
    Own {
        /// At least 1.
        slow: usize,
    },
    /// Threads that serve other devices as well.
    Shared(Arc<Workers>),
}

/// A virtio-fs device. It has no thread before it is started, and none after it is reset or closed. Dropping it closes it.
///
/// Methods may be called from any thread. Those that stop queues wait for the requests in flight.
#[derive(Debug)]
pub struct Device {
    identity: Identity,
    with: Surroundings,
    state: AtomicU8,
    pub(crate) life: Mutex<Life>,
    /// The kicks of the queues that are set up. Beside `life`, so that a kick never waits for a queue that stops.
    kicks: RwLock<Vec<Option<Arc<Event>>>>,
    window: Option<Arc<Local>>,
    /// Where the guest sees the version table.
    table_at: Mutex<Option<u64>>,
}

#[derive(Debug)]
pub(crate) struct Life {
    pub(crate) features: u64,
    pub(crate) setups: Vec<Option<QueueSetup>>,
    pub(crate) queues: Vec<Queue>,
}

impl Device {
    /// A device that serves `server`.
    pub fn new(identity: Identity, server: Arc<Server>, memory: Arc<SharedMemory>, threads: Threads) -> Device {
        let count = identity.most_queues();
        let (pool, workers) = match threads {
            Threads::Own { slow } => (Arc::new(Pool::new(slow)), None),
            Threads::Shared(workers) => (Arc::clone(&workers.pool), Some(workers)),
        };
        let with = Surroundings { memory, server, pool, workers, hiprio: Arc::default(), notices: None };
        let queues = (0..count).map(|_| Queue::default()).collect();
        Device {
            identity,
            with,
            state: AtomicU8::new(State::Ready as u8),
            life: Mutex::new(Life { features: 0, setups: vec![None; count], queues }),
            kicks: RwLock::new(vec![None; count]),
            window: None,
            table_at: Mutex::default(),
        }
    }

    /// The same device with a DAX window.
    pub fn with_window(mut self, window: Local) -> Device {
        let window = Arc::new(window);
        self.with.server.set_window(Some(Arc::clone(&window) as _));
        self.window = Some(window);
        self
    }

    /// The same device with a queue of notifications, for drivers that take it.
    pub fn with_notices(mut self, notices: Arc<Notices>) -> Device {
        self.identity = self.identity.clone().notifying();
        self.with.notices = Some(notices);
        let count = self.identity.most_queues();
        let life = self.life.get_mut();
        life.queues.resize_with(count, Queue::default);
        life.setups.resize(count, None);
        self.kicks.get_mut().resize(count, None);
        self
    }

    /// What tells its driver of changes, if something does.
    pub fn notices(&self) -> Option<&Arc<Notices>> {
        self.with.notices.as_ref()
    }

    /// Its DAX window, if it has one.
    pub fn window(&self) -> Option<&Arc<Local>> {
        self.window.as_ref()
    }

    /// Says where the guest sees the window, if it does: see [`Local::set_place`]. Nothing to say of a device without one.
    pub fn place_window(&self, address: Option<u64>) -> Result<(), MemoryError> {
        let Some(window) = &self.window else { return Ok(()) };
        window.set_place(&self.with.memory, address)?;
        self.refresh();
        Ok(())
    }

    /// Says where the guest sees the version table ([`Notices::view`], shared memory region 1), if it does.
    pub fn place_table(&self, address: Option<u64>) {
        *self.table_at.lock() = address;
    }

    /// Where the guest sees the version table.
    pub fn table_place(&self) -> Option<u64> {
        *self.table_at.lock()
    }

    /// Tag, queues and configuration space.
    pub fn identity(&self) -> &Identity {
        &self.identity
    }

    /// The server behind the device, with its counters.
    pub fn server(&self) -> &Arc<Server> {
        &self.with.server
    }

    /// The memory of its guest.
    pub fn memory(&self) -> &Arc<SharedMemory> {
        &self.with.memory
    }

    /// Feature bits that the device offers.
    pub fn features(&self) -> u64 {
        self.identity.features()
    }

    /// Feature bits that the driver accepted; 0 before the device was started.
    pub fn accepted(&self) -> u64 {
        self.life.lock().features
    }

    /// What the device does at present.
    pub fn state(&self) -> State {
        State::ALL.get(usize::from(self.state.load(Ordering::Acquire))).copied().unwrap_or(State::Closed)
    }

    pub(crate) fn enter(&self, state: State) {
        self.state.store(state as u8, Ordering::Release);
    }

    pub(crate) fn must_be(
        &self,
        states: &[State],
        action: &'static str,
        wanted: &'static str,
    ) -> Result<(), DeviceError> {
        let is = self.state();
        if states.contains(&is) { Ok(()) } else { Err(DeviceError::State { is, action, wanted }) }
    }

    /// Starts to serve `queues`, with the features that the driver accepted. Where one of them cannot be served, none is.
    pub fn start(&self, features: u64, queues: Vec<QueueSetup>) -> Result<(), DeviceError> {
        let mut life = self.life.lock();
        self.must_be(&[State::Ready], "start", "ready (new, or reset)")?;
        check_features(features, self.features())?;
        life.features = features;
        let started = queues.into_iter().try_for_each(|setup| self.set_up(&mut life, setup, None));
        if started.is_err() {
            self.forget(&mut life);
            return started;
        }
        self.enter(State::Running);
        Ok(())
    }

    /// Starts one more queue of a device that runs.
    pub(crate) fn start_queue(&self, setup: QueueSetup) -> Result<(), DeviceError> {
        let mut life = self.life.lock();
        self.must_be(&[State::Running], "start a queue", "running")?;
        self.set_up(&mut life, setup, None)
    }

    /// Stops one queue for good. Its ring is the driver's own when this returns.
    pub(crate) fn stop_queue(&self, index: usize) {
        let mut life = self.life.lock();
        if let Some(queue) = life.queues.get_mut(index) {
            queue.halt();
            *queue = Queue::default();
        }
        if let Some(setup) = life.setups.get_mut(index) {
            *setup = None;
        }
        if let Some(kick) = self.kicks.write().get_mut(index) {
            *kick = None;
        }
    }

    /// Starts a queue; or, with the chains that it is to take once more, makes it stand still as one that was paused.
    pub(crate) fn set_up(
        &self,
        life: &mut Life,
        mut setup: QueueSetup,
        paused_with: Option<Vec<u16>>,
    ) -> Result<(), DeviceError> {
        let (index, queues) = (setup.index, self.identity.queues(life.features));
        let refuse = |reason: String| DeviceError::Queue { index, reason };
        let (Some(queue), Some(slot), true) = (life.queues.get_mut(index), life.setups.get_mut(index), index < queues)
        else {
            return Err(DeviceError::NoQueue { index, queues });
        };
        if slot.is_some() {
            return Err(refuse("it is set up already".into()));
        }
        if !setup.size.is_power_of_two() || setup.size > QUEUE_SIZE_MAX {
            return Err(refuse(format!("{} entries: a power of two up to {QUEUE_SIZE_MAX} is needed", setup.size)));
        }
        let kick = match setup.kick.take() {
            Some(kick) => kick,
            None => Arc::new(Event::new().map_err(|error| refuse(error.to_string()))?),
        };
        queue.set_kick(Some(Arc::clone(&kick)));
        queue.set_call(setup.call.clone());
        let ring = setup.ring(life.features);
        match paused_with {
            None => {
                queue.start(index, ring, life.features, None, &self.with).map_err(|error| refuse(error.to_string()))?
            }
            Some(heads) => {
                split(ring, &self.with.memory.load()).map_err(|error| refuse(error.to_string()))?;
                queue.take_again(heads);
            }
        }
        if let Some(entry) = self.kicks.write().get_mut(index) {
            *entry = Some(Arc::clone(&kick));
        }
        *slot = Some(QueueSetup { kick: Some(kick), ..setup });
        Ok(())
    }

    /// The driver has put something into queue `index`. Of a device that is paused it is taken when that goes on.
    pub fn notify(&self, index: usize) -> Result<(), DeviceError> {
        self.must_be(&[State::Running, State::Paused], "be notified", "running or paused")?;
        let kicks = self.kicks.read();
        let queues = kicks.len();
        match kicks.get(index) {
            Some(Some(kick)) => {
                kick.signal();
                Ok(())
            }
            Some(None) => Err(DeviceError::Unused { index }),
            None => Err(DeviceError::NoQueue { index, queues }),
        }
    }

    /// Stops all queues where they are, after the requests in flight. From then on nothing of the guest's memory is read or written.
    pub fn pause(&self) -> Result<(), DeviceError> {
        let mut life = self.life.lock();
        self.must_be(&[State::Running], "pause", "running")?;
        let Life { queues, setups, .. } = &mut *life;
        for (queue, setup) in queues.iter_mut().zip(setups) {
            if let (Some(next), Some(setup)) = (queue.halt(), setup) {
                setup.next = next;
            }
        }
        self.enter(State::Paused);
        Ok(())
    }

    /// Goes on from where the queues stopped. If one cannot, the device stays paused.
    pub fn resume(&self) -> Result<(), DeviceError> {
        let mut life = self.life.lock();
        self.must_be(&[State::Paused], "resume", "paused")?;
        let Life { features, queues, setups } = &mut *life;
        for (index, (queue, setup)) in queues.iter_mut().zip(setups.iter()).enumerate() {
            let Some(setup) = setup else { continue };
            if let Err(error) = queue.start(index, setup.ring(*features), *features, None, &self.with) {
                for (queue, setup) in queues.iter_mut().zip(setups) {
                    if let (Some(next), Some(setup)) = (queue.halt(), setup) {
                        setup.next = next;
                    }
                }
                return Err(DeviceError::Queue { index, reason: error.to_string() });
            }
        }
        self.enter(State::Running);
        Ok(())
    }

    /// The queues that are set up, with where they stand if the device is paused.
    pub fn queues(&self) -> Vec<QueueSetup> {
        self.life.lock().setups.iter().flatten().cloned().collect()
    }

    /// Forgets the driver: queues, features, and the guest's session with all its nodes, handles and locks. Requests that were begun are
    /// finished first.
    pub fn reset(&self) -> Result<(), DeviceError> {
        let mut life = self.life.lock();
        self.must_be(&[State::Ready, State::Running, State::Paused], "reset", "not closed")?;
        self.forget(&mut life);
        self.enter(State::Ready);
        Ok(())
    }

    /// Ends the device as [`Device::reset`] does, for good; its window is nowhere then. May be called again.
    pub fn close(&self) {
        let mut life = self.life.lock();
        if self.state() != State::Closed {
            self.forget(&mut life);
            // The memory may be that of other devices too, which must not keep the window.
            let gone = self.window.as_ref().map(|window| window.set_place(&self.with.memory, None));
            debug_assert!(gone.is_none_or(|gone| gone.is_ok()));
            self.enter(State::Closed);
        }
    }

    pub(crate) fn forget(&self, life: &mut Life) {
        life.queues.iter().for_each(Queue::abandon);
        for queue in &mut life.queues {
            queue.halt();
            *queue = Queue::default();
        }
        life.setups.fill(None);
        life.features = 0;
        self.kicks.write().fill(None);
        self.with.server.reset();
    }

    /// The guest's memory has changed: threads that wait let go of what is no longer part of it.
    pub fn refresh(&self) {
        self.life.lock().queues.iter().for_each(Queue::refresh);
    }
}

impl Drop for Device {
    fn drop(&mut self) {
        self.close();
    }
}
