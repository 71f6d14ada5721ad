//! What it costs to wake a thread here, without a device: an eventfd, and somebody who sleeps in epoll_wait(2) as a driver does.
//!
//! On one processor that is a switch of threads. On two, the other of which idles, it is an interrupt and the way out of idling: ten
//! times as much and more, above all in a virtual machine. Which of both it is the scheduler decides, for seconds at a time.

use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{ScopedJoinHandle, scope, yield_now};
use std::time::{Duration, Instant};

use rustix::event::epoll::{self, EventData, EventFlags};
use rustix::event::{EventfdFlags, eventfd};
use rustix::io::{Errno, write};
use rustix::thread::{CpuSet, sched_setaffinity};

use super::histogram::Histogram;
use super::process::thread_cpu;
use crate::{Error, Result};

/// What one thread works before it wakes the other: that one is asleep by then, and no longer about to be.
const WORK: Duration = Duration::from_micros(10);

/// What came out: medians, but for the CPU time of who is woken and of round trips, which are means.
#[derive(Clone, Copy, Debug, Default)]
pub struct WakeUp {
    /// CPU time of the write(2) by which a thread that goes on working wakes one that sleeps.
    pub waker_cpu: Duration,
    /// Time from there until the other runs.
    pub delay: Duration,
    /// CPU time of the other, to fall asleep and to come back.
    pub woken_cpu: Duration,
    /// Time of two wake-ups, when two threads wake one another and sleep in between.
    pub round_trip: Duration,
    /// CPU time of both for that.
    pub round_trip_cpu: Duration,
}

/// Where a thread sleeps, and how it is woken.
struct Bed {
    epoll: OwnedFd,
    bell: OwnedFd,
}

impl Bed {
    fn new() -> Result<Bed> {
        let bell = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        // Edge-triggered: the bell need not be read.
        epoll::add(&epoll, &bell, EventData::new_u64(0), EventFlags::IN | EventFlags::ET)?;
        Ok(Bed { epoll, bell })
    }

    /// Without a timeout: to set a timer and to take it back costs as much again where timers are the hypervisor's.
    fn sleep(&self) -> Result<()> {
        let mut events = [epoll::Event { flags: EventFlags::empty(), data: EventData::new_u64(0) }; 1];
        loop {
            match epoll::wait(&self.epoll, &mut events, None) {
                Ok(0) | Err(Errno::INTR) => {}
                Ok(_) => return Ok(()),
                Err(errno) => return Err(errno.into()),
            }
        }
    }

    fn wake(&self) -> Result<()> {
        write(&self.bell, &1u64.to_ne_bytes())?;
        Ok(())
    }
}

/// Wakes a thread again and again, for half of `time` while the waker works and for half while it sleeps itself.
///
/// The waker keeps to the first of `processors`, the other to the second; without them both run where the scheduler puts them, as
/// daemons and drivers do.
///
/// # Errors
/// There is no such processor.
pub fn wake_up(time: Duration, processors: Option<(usize, usize)>) -> Result<WakeUp> {
    let mut found = WakeUp::default();
    // The caller's own thread stays as it is.
    let waker = || -> Result<()> {
        keep_to(processors.map(|(first, _)| first))?;
        let second = processors.map(|(_, second)| second);
        one_way(time / 2, second, &mut found)?;
        round_trips(time / 2, second, &mut found)
    };
    scope(|scope| joined(scope.spawn(waker)))?;
    Ok(found)
}

fn keep_to(processor: Option<usize>) -> Result<()> {
    let Some(processor) = processor else { return Ok(()) };
    let mut only = CpuSet::new();
    if processor >= CpuSet::MAX_CPU {
        return Err(Errno::INVAL.into());
    }
    only.set(processor);
    Ok(sched_setaffinity(None, &only)?)
}

fn joined<T>(thread: ScopedJoinHandle<'_, Result<T>>) -> Result<T> {
    thread.join().unwrap_or_else(|_| Err(Error::Protocol("a thread panicked".into())))
}

/// One thread works and wakes another, which falls asleep again.
fn one_way(time: Duration, processor: Option<usize>, found: &mut WakeUp) -> Result<()> {
    let bed = Bed::new()?;
    let (going, slept, stop) = (AtomicU64::new(0), AtomicU64::new(0), AtomicBool::new(false));
    // When the other last ran, in ns from here.
    let begin = Instant::now();
    let ran = AtomicU64::new(0);
    let sleeper = || -> Result<Duration> {
        keep_to(processor)?;
        let before = thread_cpu();
        while !stop.load(Ordering::Acquire) {
            going.fetch_add(1, Ordering::Release);
            bed.sleep()?;
            ran.store(begin.elapsed().as_nanos() as u64, Ordering::Relaxed);
            slept.fetch_add(1, Ordering::Release);
        }
        Ok(thread_cpu().saturating_sub(before))
    };
    let clock = clock_cost();
    let (mut cpu, mut delay, mut count) = (Histogram::default(), Histogram::default(), 0);
    let other: Result<Duration> = scope(|scope| {
        let other = scope.spawn(sleeper);
        // On one processor the other runs only while this one gives way.
        let reaches = |counter: &AtomicU64, value: u64| {
            while counter.load(Ordering::Acquire) < value && !other.is_finished() {
                yield_now();
            }
        };
        while !other.is_finished() {
            reaches(&going, count + 1);
            let working = Instant::now();
            while working.elapsed() < WORK {
                std::hint::spin_loop();
            }
            stop.store(begin.elapsed() >= time, Ordering::Release);
            let (start, before) = (begin.elapsed(), thread_cpu());
            bed.wake()?;
            let took = thread_cpu().saturating_sub(before);
            reaches(&slept, count + 1);
            count += 1;
            cpu.add(took.saturating_sub(clock).as_nanos() as u64);
            delay.add(ran.load(Ordering::Relaxed).saturating_sub(start.as_nanos() as u64));
            if stop.load(Ordering::Relaxed) {
                break;
            }
        }
        joined(other)
    });
    found.woken_cpu = other?.div_f64(count.max(1) as f64);
    found.waker_cpu = Duration::from_nanos(cpu.quantile(0.5));
    found.delay = Duration::from_nanos(delay.quantile(0.5));
    Ok(())
}

/// Two threads wake one another, and each sleeps until it is its turn.
fn round_trips(time: Duration, processor: Option<usize>, found: &mut WakeUp) -> Result<()> {
    let (near, far, stop) = (Bed::new()?, Bed::new()?, AtomicBool::new(false));
    let answer = || -> Result<Duration> {
        keep_to(processor)?;
        let before = thread_cpu();
        loop {
            far.sleep()?;
            // Before the answer: what is said after it is about the next round.
            let last = stop.load(Ordering::Acquire);
            near.wake()?;
            if last {
                return Ok(thread_cpu().saturating_sub(before));
            }
        }
    };
    let answer = || {
        let result = answer();
        if result.is_err() {
            stop.store(true, Ordering::Release);
            near.wake()?;
        }
        result
    };
    let mut trips = Histogram::default();
    let mut count = 0u32;
    let cpu: Result<Duration> = scope(|scope| {
        let other = scope.spawn(answer);
        let (begin, before) = (Instant::now(), thread_cpu());
        while !stop.load(Ordering::Relaxed) {
            let start = Instant::now();
            if start - begin >= time {
                stop.store(true, Ordering::Release);
            }
            far.wake()?;
            near.sleep()?;
            trips.add(start.elapsed().as_nanos() as u64);
            count += 1;
        }
        let own = thread_cpu().saturating_sub(before);
        Ok(own + joined(other)?)
    });
    found.round_trip_cpu = cpu? / count.max(1);
    found.round_trip = Duration::from_nanos(trips.quantile(0.5));
    Ok(())
}

/// CPU time between two looks at the clock of this thread.
fn clock_cost() -> Duration {
    let mut looks = Histogram::default();
    for _ in 0..1000 {
        let before = thread_cpu();
        looks.add(thread_cpu().saturating_sub(before).as_nanos() as u64);
    }
    Duration::from_nanos(looks.quantile(0.5))
}

#[cfg(test)]
mod tests {
    use rustix::thread::sched_getaffinity;

    use super::*;

    #[test]
    fn a_wake_up_costs_both_sides_something_wherever_they_run() {
        let allowed = sched_getaffinity(None).unwrap();
        let one = (0..CpuSet::MAX_CPU).find(|cpu| allowed.is_set(*cpu)).unwrap();
        for processors in [None, Some((one, one))] {
            let found = wake_up(Duration::from_millis(40), processors).unwrap();
            assert!(found.waker_cpu > Duration::ZERO, "{found:?}");
            assert!(found.delay > Duration::ZERO, "{found:?}");
            assert!(found.woken_cpu > Duration::ZERO, "{found:?}");
            assert!(found.round_trip > Duration::ZERO, "{found:?}");
            assert!(found.round_trip_cpu > Duration::ZERO, "{found:?}");
        }
    }

    #[test]
    fn a_processor_that_is_not_there_is_an_error_for_either_side() {
        for processors in [(0, 1000), (1000, 0), (usize::MAX, 0), (0, usize::MAX)] {
            assert!(wake_up(Duration::from_millis(10), Some(processors)).is_err(), "{processors:?}");
        }
    }
}
