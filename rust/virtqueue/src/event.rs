//! Kicks and calls: file descriptors by which driver and device wake each other.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, epoll, eventfd, poll};
use rustix::fs::{FileType, OFlags, fcntl_getfl, fcntl_setfl, fstat};
use rustix::io::Errno;

/// A descriptor that wakes whoever waits for it: an eventfd, or the end of a pipe (User-Mode Linux sends pipes).
#[derive(Debug)]
pub struct Event {
    fd: OwnedFd,
    pipe: bool,
    /// Writing to it may wait, if it is full.
    waits: bool,
}

impl Event {
    /// An eventfd of our own.
    pub fn new() -> io::Result<Event> {
        Ok(Event { fd: eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?, pipe: false, waits: false })
    }

    /// A descriptor that a front end sent. A pipe is made non-blocking: nobody may be there to empty it. An eventfd is left as it is, since
    /// the front end may rely on that.
    pub fn from_fd(fd: OwnedFd) -> io::Result<Event> {
        let kind = FileType::from_raw_mode(fstat(&fd)?.st_mode);
        // An eventfd is of no type. A file may be on a file system that never answers.
        if !matches!(kind, FileType::Fifo | FileType::Socket | FileType::Unknown) {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "it is neither an eventfd, a pipe nor a socket"));
        }
        let (pipe, flags) = (kind == FileType::Fifo, fcntl_getfl(&fd)?);
        if pipe {
            fcntl_setfl(&fd, flags | OFlags::NONBLOCK)?;
        }
        Ok(Event { fd, pipe, waits: !pipe && !flags.contains(OFlags::NONBLOCK) })
    }

    /// Wakes the other side. That it is gone, or has not looked at what it was woken by for long, is not our concern, and we do not wait for it.
    pub fn signal(&self) {
        if self.waits && !self.has_room() {
            return;
        }
        let _ = rustix::io::write(&self.fd, &1u64.to_ne_bytes());
    }

    fn has_room(&self) -> bool {
        let mut fds = [PollFd::new(&self.fd, PollFlags::OUT)];
        matches!(poll(&mut fds, Some(&Timespec { tv_sec: 0, tv_nsec: 0 })), Ok(1..))
            && fds[0].revents().contains(PollFlags::OUT)
    }

    /// Makes room for what is still to be signalled, where that is watched by its edges: a pipe fills up, an eventfd does not.
    pub fn consume(&self) {
        if self.pipe {
            self.drain();
        }
    }

    /// Takes back what was signalled so far.
    pub fn drain(&self) {
        let mut bytes = [0; 512];
        while matches!(rustix::io::read(&self.fd, &mut bytes), Ok(1..)) && self.pipe {}
    }
}

impl AsFd for Event {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// What ended a wait.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Wake {
    /// The driver kicked.
    pub kicked: bool,
    /// The control side wants attention.
    pub control: bool,
}

const KICK: u64 = 0;
const CONTROL: u64 = 1;

/// Waits for a kick and for our own control event with one system call for each wake-up.
///
/// The kick is watched edge-triggered: each write to an eventfd is an edge, so its counter need not be read. A pipe is
/// emptied, since it would fill up. The control event is level-triggered and stays up until it is drained.
#[derive(Debug)]
pub struct Waiter {
    epoll: OwnedFd,
    kick: Arc<Event>,
}

impl Waiter {
    /// A waiter for `kick` and `control`.
    pub fn new(kick: Arc<Event>, control: &Event) -> io::Result<Waiter> {
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        let edge = epoll::EventFlags::IN | epoll::EventFlags::ET;
        epoll::add(&epoll, kick.as_fd(), epoll::EventData::new_u64(KICK), edge)?;
        epoll::add(&epoll, control, epoll::EventData::new_u64(CONTROL), epoll::EventFlags::IN)?;
        Ok(Waiter { epoll, kick })
    }

    /// Waits until one of the two is up, or `timeout` is over (for ever if there is none).
    pub fn wait(&self, timeout: Option<Duration>) -> io::Result<Wake> {
        let timeout = timeout.map(|t| Timespec { tv_sec: t.as_secs() as i64, tv_nsec: i64::from(t.subsec_nanos()) });
        let mut events = [std::mem::MaybeUninit::uninit(); 2];
        let woken = match epoll::wait(&self.epoll, &mut events, timeout.as_ref()) {
            Ok((woken, _)) => woken,
            Err(Errno::INTR) => return Ok(Wake { kicked: true, control: false }),
            Err(errno) => return Err(errno.into()),
        };
        let mut wake = Wake { kicked: false, control: false };
        for event in woken.iter() {
            match event.data.u64() {
                KICK => wake.kicked = true,
                _ => wake.control = true,
            }
        }
        if wake.kicked {
            self.kick.consume();
        }
        Ok(wake)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Option<Duration> = Some(Duration::ZERO);
    const NOTHING: Wake = Wake { kicked: false, control: false };

    #[test]
    fn each_kick_wakes_once_by_eventfd_and_by_pipe() {
        let eventfd = eventfd(0, EventfdFlags::CLOEXEC).unwrap();
        let (pipe_out, pipe_in) = rustix::pipe::pipe().unwrap();
        for (theirs, ours) in [(eventfd.try_clone().unwrap(), eventfd), (pipe_in, pipe_out)] {
            let control = Event::new().unwrap();
            let waiter = Waiter::new(Arc::new(Event::from_fd(ours).unwrap()), &control).unwrap();
            let driver = Event::from_fd(theirs).unwrap();
            assert_eq!(waiter.wait(NOW).unwrap(), NOTHING);
            for _ in 0..100_000 {
                driver.signal();
                assert!(waiter.wait(NOW).unwrap().kicked);
                assert_eq!(waiter.wait(NOW).unwrap(), NOTHING);
            }
            control.signal();
            assert!(waiter.wait(NOW).unwrap().control);
            assert!(waiter.wait(NOW).unwrap().control, "control stays up until it is drained");
            control.drain();
            assert_eq!(waiter.wait(NOW).unwrap(), NOTHING);
        }
    }

    #[test]
    fn a_pipe_that_nobody_empties_does_not_block_the_device() {
        let (_out, into) = rustix::pipe::pipe().unwrap();
        let call = Event::from_fd(into).unwrap();
        for _ in 0..100_000 {
            call.signal();
        }
    }

    #[test]
    fn an_eventfd_that_is_full_does_not_block_the_device_and_a_file_is_none() {
        let fd = eventfd(0, EventfdFlags::CLOEXEC).unwrap();
        rustix::io::write(&fd, &(u64::MAX - 1).to_ne_bytes()).unwrap();
        let call = Event::from_fd(fd.try_clone().unwrap()).unwrap();
        call.signal();
        call.drain();
        call.signal();
        let mut count = [0; 8];
        rustix::io::read(&fd, &mut count).unwrap();
        assert_eq!(u64::from_ne_bytes(count), 1);
        for path in ["/", "/dev/null", "/proc/self/exe"] {
            assert!(Event::from_fd(std::fs::File::open(path).unwrap().into()).is_err(), "{path}");
        }
    }
}
