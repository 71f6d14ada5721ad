//! The loop that keeps a queue full.

use std::sync::atomic::{AtomicU8, Ordering};
use std::time::{Duration, Instant};

use virtiofs_fuse::Opcode;
use virtiofs_fuse::wire::InHeader;
use zerocopy::FromBytes;

use super::data::Share;
use super::histogram::Histogram;
use super::process::Processes;
use super::rows::{self, Row};
use super::{Plan, Report};
use crate::channel::Channel;
use crate::nodes::Forget;
use crate::ring::{Ring, State};
use crate::signal::Woken;
use crate::slot::Shape;
use crate::{Client, Error, Guest, Result};

const WARM: u8 = 0;
const MEASURE: u8 = 1;
const STOP: u8 = 2;

/// What a row may do with one slot.
pub(crate) struct Io<'a> {
    ring: &'a mut Ring,
    slot: u16,
    unique: &'a mut u64,
    caller: (u32, u32, u32),
    forgets: &'a mut Vec<Forget>,
}

impl Io<'_> {
    /// Fills in a request: arguments behind the header, `data_in` bytes of whatever the pages hold, room for a struct of `reply` bytes
    /// and for `data_out` bytes of data.
    #[inline]
    pub(crate) fn send(
        &mut self,
        opcode: Opcode,
        nodeid: u64,
        args: &[&[u8]],
        data_in: usize,
        reply: usize,
        data_out: usize,
    ) -> Result<()> {
        *self.unique += 2;
        let (uid, gid, pid) = self.caller;
        let unique = *self.unique;
        let header = InHeader { len: 0, opcode: opcode as u32, unique, nodeid, uid, gid, pid, ..InHeader::default() };
        let args_len = args.iter().map(|part| part.len()).sum();
        let shape = Shape { args: args_len, data_in, reply, data_out, wants_reply: true };
        self.ring.fill(self.slot, header, args, shape)
    }

    /// The reply, checked: bytes behind the header.
    #[inline]
    pub(crate) fn outcome(&self) -> Result<usize> {
        self.ring.outcome(self.slot)
    }

    /// The struct in the reply, `offset` bytes behind the header.
    #[inline]
    pub(crate) fn reply<T: FromBytes>(&self, offset: usize) -> T {
        self.ring.reply_as(self.slot, offset)
    }

    /// Appends the reply's first `len` bytes to `out`.
    pub(crate) fn reply_bytes(&self, len: usize, out: &mut Vec<u8>) {
        self.ring.reply_bytes(self.slot, len, out);
    }

    /// Gives counts of a node back with the next batch.
    #[inline]
    pub(crate) fn forget(&mut self, nodeid: u64, nlookup: u64) {
        self.forgets.push((nodeid, nlookup));
    }
}

/// One operation in flight: its place is its number.
#[derive(Clone, Copy)]
struct Lane {
    since: Instant,
    /// In the middle of an operation of several requests.
    inside: bool,
}

/// What one thread counted.
#[derive(Default)]
pub(super) struct Tally {
    pub(super) ops: u64,
    pub(super) latency: Histogram,
    pub(super) kicks: u64,
    pub(super) calls: u64,
}

impl Tally {
    /// One operation, which took so long.
    fn add(&mut self, took: Duration) {
        self.ops += 1;
        self.latency.add(took.as_nanos() as u64);
    }
}

pub(crate) fn run(guest: &Guest, plan: &Plan, daemon: &Processes) -> Result<Report> {
    let client = guest.client();
    let queues = plan.queues.clamp(1, client.request_queues());
    let share = Share::find(guest)?;
    let mut work = Vec::new();
    for queue in 0..queues {
        work.push(rows::build(plan.row, client, &share, plan.depth, queue)?);
    }
    let bytes_per_op = work.first().map_or(0, |row| row.bytes());
    let phase = AtomicU8::new(WARM);
    let own = Processes::own();
    let forget_kicks = || client.queue(0).map_or(0, |hiprio| hiprio.lock().ring.kicks);
    let mut report = Report { bytes_per_op, ..Report::default() };

    let tallies: Vec<Result<Tally>> = std::thread::scope(|scope| {
        let workers: Vec<_> = (1..)
            .zip(&mut work)
            .map(|(queue, row)| {
                let phase = &phase;
                scope.spawn(move || {
                    let result = drive(client, queue, row.as_mut(), plan.depth, phase);
                    if result.is_err() {
                        phase.store(STOP, Ordering::Relaxed);
                    }
                    result
                })
            })
            .collect();
        nap(&phase, plan.warm);
        report.kicks = forget_kicks();
        let (daemon_before, own_before, start) = (daemon.cpu(), own.cpu(), Instant::now());
        // A worker that failed has said STOP already; that must stay.
        let _ = phase.compare_exchange(WARM, MEASURE, Ordering::Relaxed, Ordering::Relaxed);
        nap(&phase, plan.time);
        phase.store(STOP, Ordering::Relaxed);
        report.time = start.elapsed();
        report.daemon_cpu = daemon.cpu().saturating_sub(daemon_before);
        report.driver_cpu = own.cpu().saturating_sub(own_before);
        report.kicks = forget_kicks() - report.kicks;
        workers
            .into_iter()
            .map(|worker| worker.join().unwrap_or_else(|_| Err(Error::Protocol("a worker panicked".into()))))
            .collect()
    });
    for tally in tallies {
        report.add(tally?);
    }
    for row in work {
        row.finish(client)?;
    }
    share.leave(guest)?;
    client.settle()?;
    Ok(report)
}

/// Sleeps, but not on after a worker has stopped.
fn nap(phase: &AtomicU8, time: Duration) {
    let end = Instant::now() + time;
    loop {
        let left = end.saturating_duration_since(Instant::now());
        if left.is_zero() || phase.load(Ordering::Relaxed) == STOP {
            return;
        }
        std::thread::sleep(left.min(Duration::from_millis(50)));
    }
}

fn drive(client: &Client, queue: usize, row: &mut dyn Row, depth: usize, phase: &AtomicU8) -> Result<Tally> {
    let channel = client.queue(queue).ok_or_else(|| Error::Protocol(format!("there is no queue {queue}")))?;
    let hiprio = client.queue(0).ok_or_else(|| Error::Protocol("there is no hiprio queue".into()))?;
    let options = client.options();
    let mut inner = channel.lock();
    let ring = &mut inner.ring;
    if depth > usize::from(ring.layout.slots) {
        return Err(Error::Protocol(format!("depth {depth} needs more than the ring's {} slots", ring.layout.slots)));
    }
    for slot in 0..ring.layout.slots {
        ring.fill_data(slot, row.data(), 0x5a);
    }
    let caller = (options.uid, options.gid, options.pid);
    let mut unique = (queue as u64) << 48;
    let mut forgets: Vec<Forget> = Vec::with_capacity(4096);
    let mut lanes = vec![Lane { since: Instant::now(), inside: false }; depth];
    let mut lane_of = vec![usize::MAX; usize::from(ring.layout.slots)];
    let mut idle: Vec<usize> = (0..depth).rev().collect();
    let mut tally = Tally::default();
    let mut measuring = false;
    let mut now = Instant::now();
    loop {
        let current = phase.load(Ordering::Relaxed);
        if current == MEASURE && !measuring {
            measuring = true;
            tally = Tally::default();
        }
        idle.retain(|lane| current != STOP || lanes.get(*lane).is_some_and(|lane| lane.inside));
        while let Some(index) = idle.pop() {
            let (Some(lane), Some(slot)) = (lanes.get_mut(index), ring.acquire()) else { break };
            if !lane.inside {
                lane.since = now;
                lane.inside = true;
            }
            let mut io = Io { ring: &mut *ring, slot, unique: &mut unique, caller, forgets: &mut forgets };
            row.fill(&mut io, index)?;
            if let Some(place) = lane_of.get_mut(usize::from(slot)) {
                *place = index;
            }
            ring.submit(slot);
        }
        let kicks = ring.kicks;
        ring.kick()?;
        if current == MEASURE {
            tally.kicks += ring.kicks - kicks;
        }
        if !forgets.is_empty() {
            hiprio.post_forgets(&forgets, &mut unique)?;
            forgets.clear();
        }
        if ring.in_flight == 0 {
            return Ok(tally);
        }
        let calls = await_used(channel, ring, options.polling, options.timeout)?;
        if current == MEASURE {
            tally.calls += calls;
        }
        now = Instant::now();
        while let Some(slot) = ring.reap()? {
            debug_assert!(matches!(ring.state(slot), State::Done(_)));
            let Some(index) = lane_of.get(usize::from(slot)).copied() else { continue };
            let mut io = Io { ring: &mut *ring, slot, unique: &mut unique, caller, forgets: &mut forgets };
            let complete = row.done(&mut io, index)?;
            ring.release(slot);
            if complete && let Some(lane) = lanes.get_mut(index) {
                lane.inside = false;
                if current == MEASURE {
                    tally.add(now.duration_since(lane.since));
                }
            }
            idle.push(index);
        }
    }
}

/// Waits until the device has returned something. Answers how many calls it took.
fn await_used(channel: &Channel, ring: &Ring, polling: bool, timeout: Duration) -> Result<u64> {
    let late = || Error::Timeout { what: "anything in flight".into(), after: timeout };
    if polling {
        let mut looks = 0u32;
        let mut start = None;
        while !ring.has_used() {
            std::hint::spin_loop();
            looks = looks.wrapping_add(1);
            if looks.is_multiple_of(1 << 16) {
                if channel.waiter.wait(Duration::ZERO)? == Woken::Gone && !ring.has_used() {
                    return Err(Error::gone("a benchmark"));
                }
                if start.get_or_insert_with(Instant::now).elapsed() > timeout {
                    return Err(late());
                }
            }
        }
        return Ok(0);
    }
    let mut calls = 0;
    // One look costs nothing, arming costs a fence.
    while !ring.has_used() && !ring.arm() {
        match channel.waiter.wait(timeout)? {
            Woken::Called => calls += 1,
            Woken::Late => return Err(late()),
            Woken::Gone if ring.has_used() => {}
            Woken::Gone => return Err(Error::gone("a benchmark")),
        }
    }
    Ok(calls)
}
