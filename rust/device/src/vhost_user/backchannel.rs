//! The channel on which the device asks and the VMM answers: requests one at a time, each with its reply and a time limit.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use vhost::vhost_user::message::BackendReq;
use virtiofs_dax::Refusal;
use virtiofs_virtqueue::Event;
use zerocopy::{FromZeros, IntoBytes};

use super::connection::{Header, NEED_REPLY, REPLY, send};

/// Bytes of a reply's body: all replies on this channel are one number.
const BODY: usize = 8;

/// The device's end of the channel.
#[derive(Debug)]
pub(super) struct Backchannel {
    stream: UnixStream,
    limit: Duration,
    /// Replies to come that nobody waits for any more.
    owed: u32,
    /// What came of the next reply.
    received: Vec<u8>,
}

impl Backchannel {
    /// Takes over the descriptor of SET_BACKEND_REQ_FD. No reply is waited for longer than `limit`.
    pub(super) fn new(fd: OwnedFd, limit: Duration) -> io::Result<Backchannel> {
        let stream = UnixStream::from(fd);
        stream.set_nonblocking(true)?;
        Ok(Backchannel { stream, limit, owed: 0, received: Vec::new() })
    }

    /// Asks, and waits for the answer: 0 where all went well. [`Refusal::Halted`] if `halt` is signalled before it comes; whatever else goes
    /// wrong ends the channel.
    pub(super) fn ask(
        &mut self,
        request: BackendReq,
        body: &[u8],
        fd: Option<BorrowedFd<'_>>,
        halt: &Event,
    ) -> Result<u64, Refusal> {
        let deadline = Instant::now() + self.limit;
        while self.owed > 0 {
            self.reply(None, deadline, halt)?;
            self.owed -= 1;
        }
        self.send(request, body, fd)?;
        match self.reply(Some(request), deadline, halt) {
            Err(Refusal::Halted) => {
                self.owed += 1;
                Err(Refusal::Halted)
            }
            answer => answer,
        }
    }

    fn send(&self, request: BackendReq, body: &[u8], fd: Option<BorrowedFd<'_>>) -> Result<(), Refusal> {
        // A request is short, and none is sent before the last one was answered: a socket without room has no reader.
        match send(&self.stream, request as u32, NEED_REPLY, body, fd)? {
            true => Ok(()),
            false => Err(io::Error::other("the VMM does not read the backend channel").into()),
        }
    }

    fn reply(&mut self, to: Option<BackendReq>, deadline: Instant, halt: &Event) -> Result<u64, Refusal> {
        const LEN: usize = size_of::<Header>() + BODY;
        while self.received.len() < LEN {
            self.wait(deadline, halt)?;
            let mut buffer = [0; LEN];
            let Some(room) = buffer.get_mut(..LEN - self.received.len()) else { break };
            match rustix::io::read(&self.stream, &mut *room) {
                Ok(0) => return Err(io::Error::from(Errno::PIPE).into()),
                Ok(count) => self.received.extend(room.iter().take(count)),
                Err(Errno::AGAIN | Errno::INTR) => {}
                Err(errno) => return Err(io::Error::from(errno).into()),
            }
        }
        let mut reply = Reply::new_zeroed();
        reply.as_mut_bytes().iter_mut().zip(self.received.drain(..)).for_each(|(to, from)| *to = from);
        let header = reply.header;
        let expected = to.is_none_or(|to| header.request == to as u32);
        if !expected || header.flags & REPLY == 0 || header.size as usize != BODY {
            return Err(io::Error::other(format!("the VMM answers with {header:?} on the backend channel")).into());
        }
        let [low, high] = reply.value;
        Ok(u64::from(low) | u64::from(high) << 32)
    }

    fn wait(&self, deadline: Instant, halt: &Event) -> Result<(), Refusal> {
        let left = deadline.saturating_duration_since(Instant::now());
        let timeout = Timespec { tv_sec: left.as_secs() as i64, tv_nsec: i64::from(left.subsec_nanos()) };
        let mut fds = [PollFd::from_borrowed_fd(self.stream.as_fd(), PollFlags::IN), PollFd::new(halt, PollFlags::IN)];
        match poll(&mut fds, Some(&timeout)) {
            Ok(0) => Err(io::Error::from(Errno::TIMEDOUT).into()),
            Ok(_) if !fds[0].revents().is_empty() => Ok(()),
            Ok(_) => Err(Refusal::Halted),
            Err(Errno::INTR) => Ok(()),
            Err(errno) => Err(io::Error::from(errno).into()),
        }
    }
}

#[derive(zerocopy::FromBytes, IntoBytes)]
#[repr(C)]
struct Reply {
    header: Header,
    value: [u32; 2],
}
