//! The state of a session on its way through a pipe of the VMM's (SET_DEVICE_STATE_FD), while the VMM goes on to talk.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, sync_channel};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, poll};
use rustix::fs::{OFlags, fcntl_getfl, fcntl_setfl};
use rustix::io::Errno;
use virtiofs_virtqueue::Event;

use crate::signals::leave_to_others;

/// Bytes of state, at most: some million files.
const STATE_MAX: usize = 1 << 30;
/// How long a VMM that says that all is through is believed.
const PATIENCE: Duration = Duration::from_secs(10);

/// A thread that writes or reads the state.
#[derive(Debug)]
pub(super) struct Transfer {
    thread: Option<JoinHandle<()>>,
    stop: Arc<Event>,
    through: Receiver<io::Result<Vec<u8>>>,
    loads: bool,
}

impl Transfer {
    /// Writes `state`.
    pub(super) fn save(to: OwnedFd, state: Vec<u8>) -> io::Result<Transfer> {
        Transfer::start(to, false, move |fd, stop| write(fd, stop, &state).map(|()| Vec::new()))
    }

    /// Reads a state to its end.
    pub(super) fn load(from: OwnedFd) -> io::Result<Transfer> {
        Transfer::start(from, true, read)
    }

    fn start(
        fd: OwnedFd,
        loads: bool,
        work: impl FnOnce(&OwnedFd, &Event) -> io::Result<Vec<u8>> + Send + 'static,
    ) -> io::Result<Transfer> {
        fcntl_setfl(&fd, fcntl_getfl(&fd)? | OFlags::NONBLOCK)?;
        let stop = Arc::new(Event::new()?);
        let (said, through) = sync_channel(1);
        let theirs = Arc::clone(&stop);
        let thread = thread::Builder::new().name("virtiofs-state".into()).spawn(move || {
            leave_to_others();
            let result = work(&fd, &theirs);
            // The end of the pipe is what the VMM waits for.
            drop(fd);
            let _ = said.send(result);
        })?;
        Ok(Transfer { thread: Some(thread), stop, through, loads })
    }

    /// Waits until all is through. Answers what was read, if that is what it did.
    pub(super) fn finish(self) -> io::Result<Option<Vec<u8>>> {
        let result = self.through.recv_timeout(PATIENCE);
        let bytes = result.map_err(|_| io::Error::from(Errno::TIMEDOUT))??;
        Ok(self.loads.then_some(bytes))
    }
}

impl Drop for Transfer {
    fn drop(&mut self) {
        self.stop.signal();
        if let Some(thread) = self.thread.take() {
            // It guards nothing but its own result.
            let _ = thread.join();
        }
    }
}

fn wait(fd: &OwnedFd, flags: PollFlags, stop: &Event) -> io::Result<()> {
    let mut fds = [PollFd::from_borrowed_fd(fd.as_fd(), flags), PollFd::new(stop, PollFlags::IN)];
    match poll(&mut fds, None) {
        Ok(_) if !fds[1].revents().is_empty() => Err(Errno::CANCELED.into()),
        Ok(_) | Err(Errno::INTR) => Ok(()),
        Err(errno) => Err(errno.into()),
    }
}

fn write(fd: &OwnedFd, stop: &Event, mut state: &[u8]) -> io::Result<()> {
    while !state.is_empty() {
        match rustix::io::write(fd, state) {
            Ok(count) => state = state.get(count..).unwrap_or(&[]),
            Err(Errno::AGAIN) => wait(fd, PollFlags::OUT, stop)?,
            Err(Errno::INTR) => {}
            Err(errno) => return Err(errno.into()),
        }
    }
    Ok(())
}

fn read(fd: &OwnedFd, stop: &Event) -> io::Result<Vec<u8>> {
    let (mut state, mut piece) = (Vec::new(), vec![0; 64 << 10]);
    loop {
        match rustix::io::read(fd, &mut *piece) {
            Ok(0) => return Ok(state),
            Ok(count) if state.len() + count > STATE_MAX => return Err(Errno::FBIG.into()),
            Ok(count) => state.extend(piece.iter().take(count)),
            Err(Errno::AGAIN) => wait(fd, PollFlags::IN, stop)?,
            Err(Errno::INTR) => {}
            Err(errno) => return Err(errno.into()),
        }
    }
}
