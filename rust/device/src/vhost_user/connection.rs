//! Messages on a vhost-user socket.

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage, SendFlags,
    recvmsg, sendmsg,
};
use virtiofs_virtqueue::Event;
use zerocopy::{FromBytes, FromZeros, Immutable, IntoBytes, KnownLayout};

/// Bytes of the longest message body taken; `vhost::vhost_user::message::MAX_MSG_SIZE` of the crate.
const BODY_MAX: usize = vhost::vhost_user::message::MAX_MSG_SIZE;
/// Descriptors taken with one message; the kernel sends no more at once (`SCM_MAX_FD`).
const FDS_MAX: usize = 253;
/// How long a VMM that is in the middle of a message, or has said nothing yet, may keep another one waiting.
const GRACE: Duration = Duration::from_secs(2);

pub(super) const VERSION: u32 = 1;
const VERSION_MASK: u32 = 3;
pub(super) const REPLY: u32 = 1 << 2;
pub(super) const NEED_REPLY: u32 = 1 << 3;

/// Header of each message.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub(super) struct Header {
    pub(super) request: u32,
    pub(super) flags: u32,
    pub(super) size: u32,
}

/// One message of the VMM.
#[derive(Debug)]
pub(super) struct Received {
    /// Number of the request.
    pub(super) request: u32,
    /// Whether an answer is wanted even where the request has none of its own (REPLY_ACK).
    pub(super) need_reply: bool,
    /// What follows the header.
    pub(super) body: Vec<u8>,
    /// Descriptors that came along.
    pub(super) fds: Vec<OwnedFd>,
}

/// Why a message cannot be taken: what follows on the socket makes no sense any more.
fn broken(what: impl Into<String>) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what.into())
}

/// What ended a wait.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Ready {
    /// There is something to read, or nobody any more to write it.
    Readable,
    /// Somebody stands at the door.
    Knock,
    /// We are to stop.
    Stopped,
    /// The time is over.
    Late,
}

/// Waits until `fd` is readable (or hung up), `stop` is signalled, somebody knocks at `door`, or `until` is over.
pub(super) fn ready(
    fd: BorrowedFd<'_>,
    stop: &Event,
    door: Option<BorrowedFd<'_>>,
    until: Option<Instant>,
) -> io::Result<Ready> {
    loop {
        let left = until.map(|until| until.saturating_duration_since(Instant::now()));
        let left = left.map(|left| Timespec { tv_sec: left.as_secs() as i64, tv_nsec: i64::from(left.subsec_nanos()) });
        // Without a door, nothing in its place: what arrives between two looks at one descriptor would pass for a knock.
        let mut fds = Vec::from([PollFd::from_borrowed_fd(fd, PollFlags::IN), PollFd::new(stop, PollFlags::IN)]);
        fds.extend(door.map(|door| PollFd::from_borrowed_fd(door, PollFlags::IN)));
        let any = |at: usize, fds: &[PollFd<'_>]| fds.get(at).is_some_and(|fd| !fd.revents().is_empty());
        match poll(&mut fds, left.as_ref()) {
            Ok(_) if any(1, &fds) => return Ok(Ready::Stopped),
            Ok(_) if any(0, &fds) => return Ok(Ready::Readable),
            Ok(_) if any(2, &fds) => return Ok(Ready::Knock),
            Ok(_) => return Ok(Ready::Late),
            Err(Errno::INTR) => {}
            Err(errno) => return Err(errno.into()),
        }
    }
}

/// A VMM that is connected.
#[derive(Debug)]
pub(super) struct Connection {
    stream: UnixStream,
    /// Where others wait for their turn.
    door: Option<OwnedFd>,
    /// Until when the VMM has to be done with a message, since another one waits.
    due: Option<Instant>,
    /// It has said something.
    greeted: bool,
}

/// What came of waiting for a message.
#[derive(Debug)]
pub(super) enum Next {
    Message(Received),
    /// The VMM hung up, or we are to stop.
    Gone,
    /// The time for it is over.
    Late,
}

impl Connection {
    /// Over a stream. A VMM that says half a message and nothing more loses its turn once somebody knocks at `door`.
    pub(super) fn new(stream: UnixStream, door: Option<OwnedFd>) -> io::Result<Connection> {
        // Half a message must not keep us from stopping: each read waits in `ready`.
        stream.set_nonblocking(true)?;
        Ok(Connection { stream, door, due: None, greeted: false })
    }

    /// The next message, if one begins before `until`.
    pub(super) fn receive(&mut self, stop: &Event, until: Option<Instant>) -> io::Result<Next> {
        if until.is_some() && ready(self.stream.as_fd(), stop, None, until)? == Ready::Late {
            return Ok(Next::Late);
        }
        let mut header = Header::new_zeroed();
        let mut fds = Vec::new();
        match self.fill(header.as_mut_bytes(), &mut fds, stop, !self.greeted)? {
            Filled::All => {}
            Filled::Nothing => return Ok(Next::Gone),
            Filled::Some => return Err(broken("the VMM hung up in the middle of a message")),
        }
        if header.flags & VERSION_MASK != VERSION {
            return Err(broken(format!(
                "message {} is of an unknown version (flags {:#x})",
                header.request, header.flags
            )));
        }
        if header.flags & REPLY != 0 {
            return Err(broken(format!("a reply to message {}, which nobody sent", header.request)));
        }
        let size = header.size as usize;
        if size > BODY_MAX {
            return Err(broken(format!("message {} claims {size} bytes", header.request)));
        }
        let mut body = vec![0; size];
        match self.fill(&mut body, &mut fds, stop, true)? {
            Filled::All => {}
            _ => return Err(broken(format!("the VMM hung up in the middle of message {}", header.request))),
        }
        (self.greeted, self.due) = (true, None);
        Ok(Next::Message(Received { request: header.request, need_reply: header.flags & NEED_REPLY != 0, body, fds }))
    }

    /// Waits for more bytes, which are owed where a message has begun. Answers false when we are to stop.
    fn wait(&mut self, stop: &Event, owed: bool) -> io::Result<bool> {
        loop {
            let due = self.due.filter(|_| owed);
            let door = self.door.as_ref().filter(|_| owed && due.is_none());
            match ready(self.stream.as_fd(), stop, door.map(OwnedFd::as_fd), due)? {
                Ready::Readable => return Ok(true),
                Ready::Stopped => return Ok(false),
                Ready::Knock => self.due = Some(Instant::now() + GRACE),
                Ready::Late => return Err(broken("it does not finish its message, and another VMM waits")),
            }
        }
    }

    fn fill(&mut self, buf: &mut [u8], fds: &mut Vec<OwnedFd>, stop: &Event, owed: bool) -> io::Result<Filled> {
        let mut done = 0;
        while let Some(rest) = buf.get_mut(done..).filter(|rest| !rest.is_empty()) {
            if !self.wait(stop, owed || done > 0)? {
                return Ok(Filled::Nothing);
            }
            let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(FDS_MAX))];
            let mut ancillary = RecvAncillaryBuffer::new(&mut space);
            let received = recvmsg(&self.stream, &mut [IoSliceMut::new(rest)], &mut ancillary, RecvFlags::CMSG_CLOEXEC);
            for message in ancillary.drain() {
                if let RecvAncillaryMessage::ScmRights(rights) = message {
                    fds.extend(rights);
                }
            }
            if fds.len() > FDS_MAX {
                return Err(broken(format!("a message with more than {FDS_MAX} descriptors")));
            }
            match received {
                Ok(message) if message.bytes == 0 => {
                    return Ok(if done == 0 { Filled::Nothing } else { Filled::Some });
                }
                Ok(message) => done += message.bytes,
                Err(Errno::AGAIN | Errno::INTR) => {}
                // A VMM that was killed resets the connection.
                Err(Errno::CONNRESET) => return Ok(Filled::Nothing),
                Err(errno) => return Err(errno.into()),
            }
        }
        Ok(Filled::All)
    }

    /// Answers a request.
    pub(super) fn reply(&mut self, request: u32, body: &[u8], fd: Option<BorrowedFd<'_>>) -> io::Result<()> {
        // Replies are short; a socket that has no room for one belongs to a VMM that reads none.
        match send(&self.stream, request, REPLY, body, fd)? {
            true => Ok(()),
            false => Err(broken("the VMM does not read its replies")),
        }
    }
}

/// Sends one message, and says whether there was room for all of it.
pub(super) fn send(
    stream: &UnixStream,
    request: u32,
    flags: u32,
    body: &[u8],
    fd: Option<BorrowedFd<'_>>,
) -> io::Result<bool> {
    let header = Header { request, flags: VERSION | flags, size: body.len() as u32 };
    let whole = [header.as_bytes(), body].concat();
    let fds: Vec<_> = fd.into_iter().collect();
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    if !fds.is_empty() {
        ancillary.push(SendAncillaryMessage::ScmRights(&fds));
    }
    Ok(sendmsg(stream, &[IoSlice::new(&whole)], &mut ancillary, SendFlags::NOSIGNAL)? == whole.len())
}

enum Filled {
    All,
    Some,
    Nothing,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_end_of_a_wait_is_told_apart() {
        let (near, far) = UnixStream::pair().unwrap();
        let stop = Event::new().unwrap();
        stop.signal();
        assert_eq!(ready(near.as_fd(), &stop, None, None).unwrap(), Ready::Stopped);
        stop.drain();
        assert_eq!(ready(near.as_fd(), &stop, Some(near.as_fd()), Some(Instant::now())).unwrap(), Ready::Late);
        rustix::io::write(&far, &[0]).unwrap();
        assert_eq!(ready(near.as_fd(), &stop, None, Some(Instant::now())).unwrap(), Ready::Readable);
        let (door, knock) = UnixStream::pair().unwrap();
        rustix::io::read(&near, &mut [0; 1]).unwrap();
        rustix::io::write(&knock, &[0]).unwrap();
        assert_eq!(ready(near.as_fd(), &stop, Some(door.as_fd()), None).unwrap(), Ready::Knock);
    }
}
