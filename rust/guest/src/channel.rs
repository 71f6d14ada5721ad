//! A ring shared by threads that each wait for their own request.
//!
//! Whoever finds nobody waiting for the device waits for all; the others sleep until it has taken the completions in. So a lone
//! thread costs one system call per wake-up and needs no thread of ours.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex, MutexGuard};
use virtiofs_fuse::Opcode;
use virtiofs_fuse::op::Operation;
use virtiofs_fuse::wire::{ForgetIn, InHeader};
use zerocopy::IntoBytes;

use crate::nodes::Forget;
use crate::ring::{Ring, State};
use crate::signal::{Bell, Waiter, Woken};
use crate::slot::Shape;
use crate::{Error, Options, Result};

/// Looks at the used ring between two looks at the clock, when polling.
const LOOKS: u32 = 256;

/// Until the next look whether a device that is gone is back.
const ABSENCE: Duration = Duration::from_millis(1);

#[derive(Debug)]
pub(crate) struct Inner {
    pub(crate) ring: Ring,
    /// Somebody waits on the device's line.
    led: bool,
}

#[derive(Debug)]
pub(crate) struct Channel {
    inner: Mutex<Inner>,
    done: Condvar,
    pub(crate) waiter: Waiter,
    timeout: Duration,
    polling: bool,
    /// A device that is gone comes back.
    patient: AtomicBool,
    /// One thread has the ring for itself.
    pub(crate) raw: AtomicBool,
}

/// One request with all of its parts.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Outgoing<'a> {
    pub header: InHeader,
    pub args: &'a [&'a [u8]],
    pub data: &'a [u8],
    pub reply: usize,
    pub data_out: usize,
    pub wants_reply: bool,
    pub size_only: bool,
    /// Clear the reply's room first, so that only what this reply writes is seen.
    pub wipe: bool,
}

impl Outgoing<'_> {
    pub(crate) fn shape(&self) -> Shape {
        Shape {
            args: self.args.iter().map(|part| part.len()).sum(),
            data_in: self.data.len(),
            reply: self.reply,
            data_out: self.data_out,
            wants_reply: self.wants_reply,
        }
    }
}

/// Name of an opcode for messages to people.
pub(crate) fn name(opcode: u32) -> String {
    Operation::by_number(opcode).map_or_else(|| format!("opcode {opcode}"), |row| row.name.to_owned())
}

impl Channel {
    pub(crate) fn new(ring: Ring, waiter: Waiter, options: &Options) -> Channel {
        let (timeout, polling, patient) = (options.timeout, options.polling, options.reconnects);
        if polling {
            ring.disarm();
        }
        let inner = Mutex::new(Inner { ring, led: false });
        let (patient, raw) = (AtomicBool::new(patient), AtomicBool::new(false));
        Channel { inner, done: Condvar::new(), waiter, timeout, polling, patient, raw }
    }

    /// A device that is gone does not come back.
    pub(crate) fn give_up(&self) {
        self.patient.store(false, Ordering::Relaxed);
    }

    /// Whether one thread has the ring for itself.
    pub(crate) fn is_raw(&self) -> bool {
        self.raw.load(Ordering::Relaxed)
    }

    /// The ring for one thread's own use. Nobody else can make a request meanwhile.
    pub(crate) fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock()
    }

    /// Sends a request and waits for its completion, which `with` then reads from its slot.
    pub(crate) fn call<T>(&self, request: &Outgoing<'_>, with: impl FnOnce(&Ring, u16, u32) -> T) -> Result<T> {
        let deadline = Instant::now() + self.timeout;
        let opcode = request.header.opcode;
        let mut inner = self.inner.lock();
        let slot = self.slot(&mut inner, deadline, opcode)?;
        if let Err(error) = send(&mut inner.ring, slot, request) {
            inner.ring.abandon(slot);
            return Err(error);
        }
        let epoch = inner.ring.epoch;
        loop {
            if let State::Done(used) = inner.ring.state(slot) {
                let result = with(&inner.ring, slot, used);
                inner.ring.release(slot);
                self.done.notify_all();
                return Ok(result);
            }
            let step = self.step(&mut inner, deadline, opcode);
            if inner.ring.epoch != epoch {
                // The slot is not ours any more.
                return Err(Error::gone(&name(opcode)));
            }
            if let Err(error) = step {
                inner.ring.abandon(slot);
                self.done.notify_all();
                return Err(error);
            }
        }
    }

    /// Sends a request that nobody answers. Waits only while no slot is free.
    pub(crate) fn post(&self, request: &Outgoing<'_>) -> Result<()> {
        let mut inner = self.inner.lock();
        let slot = self.slot(&mut inner, Instant::now() + self.timeout, request.header.opcode)?;
        send(&mut inner.ring, slot, request)?;
        inner.ring.abandon(slot);
        Ok(())
    }

    /// Sends FORGETs, with one kick for as many as find room at a time.
    pub(crate) fn post_forgets(&self, forgets: &[Forget], unique: &mut u64) -> Result<()> {
        let mut inner = self.inner.lock();
        let shape = Shape { args: size_of::<ForgetIn>(), ..Shape::default() };
        for &(nodeid, nlookup) in forgets {
            let slot = match inner.ring.acquire() {
                Some(slot) => slot,
                None => {
                    inner.ring.kick()?;
                    self.slot(&mut inner, Instant::now() + self.timeout, Opcode::Forget as u32)?
                }
            };
            *unique += 2;
            let (unique, opcode) = (*unique, Opcode::Forget as u32);
            let header = InHeader { opcode, unique, nodeid, ..InHeader::default() };
            inner.ring.fill(slot, header, &[ForgetIn { nlookup }.as_bytes()], shape)?;
            inner.ring.submit(slot);
            inner.ring.abandon(slot);
        }
        inner.ring.kick()
    }

    /// Forgets all that is in flight, and sends home who waits for it. `wake` raises the line that the device calls by.
    pub(crate) fn reset(&self, wake: &Bell) -> Result<()> {
        self.inner.lock().ring.reset();
        self.done.notify_all();
        wake.ring()
    }

    /// Waits until the device has taken and returned all that was sent.
    pub(crate) fn drain(&self) -> Result<()> {
        let deadline = Instant::now() + self.timeout;
        let mut inner = self.inner.lock();
        loop {
            inner.ring.reap_all()?;
            if inner.ring.in_flight == 0 {
                return Ok(());
            }
            self.step(&mut inner, deadline, 0)?;
        }
    }

    fn slot(&self, inner: &mut MutexGuard<'_, Inner>, deadline: Instant, opcode: u32) -> Result<u16> {
        loop {
            if let Some(slot) = inner.ring.acquire() {
                return Ok(slot);
            }
            self.step(inner, deadline, opcode)?;
        }
    }

    /// Takes completions in, waiting for one if there is none.
    fn step(&self, inner: &mut MutexGuard<'_, Inner>, deadline: Instant, opcode: u32) -> Result<()> {
        if inner.ring.reap_all()? > 0 {
            self.done.notify_all();
            return Ok(());
        }
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(Error::Timeout { what: name(opcode), after: self.timeout });
        }
        if inner.led {
            self.done.wait_until(inner, deadline);
            return Ok(());
        }
        if !self.polling && inner.ring.arm() {
            return Ok(());
        }
        inner.led = true;
        let woken = match self.polling {
            true => self.look(inner),
            false => MutexGuard::unlocked(inner, || self.waiter.wait(left)),
        };
        inner.led = false;
        let reaped = inner.ring.reap_all();
        self.done.notify_all();
        match (woken?, reaped?) {
            (Woken::Gone, 0) if self.patient.load(Ordering::Relaxed) => {
                MutexGuard::unlocked(inner, || std::thread::sleep(ABSENCE));
                Ok(())
            }
            (Woken::Gone, 0) => Err(Error::gone(&name(opcode))),
            _ => Ok(()),
        }
    }

    fn look(&self, inner: &mut MutexGuard<'_, Inner>) -> Result<Woken> {
        for _ in 0..LOOKS {
            if inner.ring.has_used() {
                return Ok(Woken::Called);
            }
            std::hint::spin_loop();
        }
        // Once in a while: let others at the ring, and see whether the device lives.
        MutexGuard::unlocked(inner, || self.waiter.wait(Duration::ZERO))
    }
}

fn send(ring: &mut Ring, slot: u16, request: &Outgoing<'_>) -> Result<()> {
    ring.fill(slot, request.header, request.args, request.shape())?;
    ring.expect(slot).size_only = request.size_only;
    ring.put_data(slot, request.data);
    if request.wipe {
        ring.wipe(slot);
    }
    ring.submit(slot);
    ring.kick()
}
