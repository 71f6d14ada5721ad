//! Kicks and calls: how driver and device wake one another.

use std::fmt;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

use rustix::event::epoll::{self, EventData, EventFlags};
use rustix::event::{EventfdFlags, Timespec, eventfd};
use rustix::io::{Errno, read, write};
use rustix::pipe::{PipeFlags, pipe_with};

use crate::Result;

/// A wake-up line: one end to raise it, one to wait on.
#[derive(Debug)]
pub struct Line {
    /// The end that is written to raise the line.
    pub raise: Arc<OwnedFd>,
    /// The end that becomes readable.
    pub wait: Arc<OwnedFd>,
    pipe: bool,
}

impl Line {
    /// An eventfd, which is both ends, as QEMU uses; or a pipe, as User-Mode Linux does.
    pub fn new(pipe: bool) -> Result<Line> {
        if pipe {
            let (wait, raise) = pipe_with(PipeFlags::CLOEXEC | PipeFlags::NONBLOCK)?;
            return Ok(Line { raise: Arc::new(raise), wait: Arc::new(wait), pipe });
        }
        let fd = Arc::new(eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?);
        Ok(Line { raise: Arc::clone(&fd), wait: fd, pipe })
    }
}

/// How a queue tells its device that buffers wait.
pub enum Bell {
    /// By writing to a descriptor.
    Fd(Arc<OwnedFd>),
    /// By a call: a register write of a transport without kick descriptors.
    Call(Box<dyn Fn() -> Result<()> + Send + Sync>),
}

impl Bell {
    pub(crate) fn ring(&self) -> Result<()> {
        match self {
            // A full pipe, or an eventfd at its maximum, is a line that is raised already.
            Bell::Fd(fd) => match write(fd, &1u64.to_ne_bytes()) {
                Ok(_) | Err(Errno::AGAIN) => Ok(()),
                Err(errno) => Err(errno.into()),
            },
            Bell::Call(call) => call(),
        }
    }
}

impl fmt::Debug for Bell {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Bell::Fd(fd) => f.debug_tuple("Fd").field(fd).finish(),
            Bell::Call(_) => f.write_str("Call"),
        }
    }
}

/// What ended a wait.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Woken {
    /// The device raised its line.
    Called,
    /// The device's process hung up.
    Gone,
    /// The time is over.
    Late,
}

const CALL: u64 = 0;
const LIFE: u64 = 1;

/// Waits for the calls of one queue, and sees when the device's process dies.
///
/// Edge-triggered, so that an eventfd need not be read: one system call per wake-up.
#[derive(Debug)]
pub(crate) struct Waiter {
    epoll: OwnedFd,
    line: Line,
}

impl Waiter {
    pub(crate) fn new(line: Line, life: Option<BorrowedFd<'_>>) -> Result<Waiter> {
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        epoll::add(&epoll, line.wait.as_fd(), EventData::new_u64(CALL), EventFlags::IN | EventFlags::ET)?;
        if let Some(life) = life {
            epoll::add(&epoll, life, EventData::new_u64(LIFE), EventFlags::RDHUP)?;
        }
        Ok(Waiter { epoll, line })
    }

    /// The device is at the other end of another connection from now on; the old one, which is closed, is no longer watched.
    pub(crate) fn watch(&self, life: Option<BorrowedFd<'_>>) -> Result<()> {
        let Some(life) = life else { return Ok(()) };
        Ok(epoll::add(&self.epoll, life, EventData::new_u64(LIFE), EventFlags::RDHUP)?)
    }

    pub(crate) fn wait(&self, timeout: Duration) -> Result<Woken> {
        let timeout = Timespec { tv_sec: timeout.as_secs() as i64, tv_nsec: i64::from(timeout.subsec_nanos()) };
        let mut events = [epoll::Event { flags: EventFlags::empty(), data: EventData::new_u64(CALL) }; 2];
        let count = match epoll::wait(&self.epoll, &mut events, Some(&timeout)) {
            Ok(count) => count,
            Err(Errno::INTR) => return Ok(Woken::Called),
            Err(errno) => return Err(errno.into()),
        };
        let seen = events.get(..count).unwrap_or(&[]);
        if seen.iter().any(|event| event.data.u64() == LIFE) {
            return Ok(Woken::Gone);
        }
        if self.line.pipe {
            self.drain();
        }
        Ok(if seen.is_empty() { Woken::Late } else { Woken::Called })
    }

    fn drain(&self) {
        let mut bytes = [0u8; 512];
        while matches!(read(&self.line.wait, &mut bytes), Ok(count) if count == bytes.len()) {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_raise_wakes_once_and_a_hangup_is_told_apart() {
        for pipe in [false, true] {
            let line = Line::new(pipe).unwrap();
            let bell = Bell::Fd(Arc::clone(&line.raise));
            let (near, far) = std::os::unix::net::UnixStream::pair().unwrap();
            let waiter = Waiter::new(line, Some(near.as_fd())).unwrap();
            assert_eq!(waiter.wait(Duration::ZERO).unwrap(), Woken::Late);
            for _ in 0..3 {
                bell.ring().unwrap();
                assert_eq!(waiter.wait(Duration::from_secs(5)).unwrap(), Woken::Called);
                assert_eq!(waiter.wait(Duration::ZERO).unwrap(), Woken::Late);
            }
            drop(far);
            assert_eq!(waiter.wait(Duration::from_secs(5)).unwrap(), Woken::Gone);
        }
    }
}
