//! Messages on a vhost-user socket.

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;

use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendFlags, recvmsg, sendmsg,
};
use virtiofs_virtqueue::Event;
use zerocopy::{FromBytes, FromZeros, Immutable, IntoBytes, KnownLayout};

/// Bytes of the longest message body taken; `vhost::vhost_user::message::MAX_MSG_SIZE` of the crate.
const BODY_MAX: usize = vhost::vhost_user::message::MAX_MSG_SIZE;
/// Descriptors taken with one message; the kernel sends no more (`SCM_MAX_FD`).
const FDS_MAX: usize = 253;

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

/// Waits until `fd` is readable (or hung up), or answers false when `stop` is signalled first.
pub(super) fn ready(fd: BorrowedFd<'_>, stop: &Event) -> io::Result<bool> {
    loop {
        let mut fds = [PollFd::from_borrowed_fd(fd, PollFlags::IN), PollFd::new(stop, PollFlags::IN)];
        match poll(&mut fds, None) {
            Ok(_) if !fds[1].revents().is_empty() => return Ok(false),
            Ok(_) => return Ok(true),
            Err(Errno::INTR) => {}
            Err(errno) => return Err(errno.into()),
        }
    }
}

/// A VMM that is connected.
#[derive(Debug)]
pub(super) struct Connection {
    stream: UnixStream,
}

impl Connection {
    pub(super) fn new(stream: UnixStream) -> io::Result<Connection> {
        // Half a message must not keep us from stopping: each read waits in `ready`.
        stream.set_nonblocking(true)?;
        Ok(Connection { stream })
    }

    /// The next message, or `None` when the VMM hung up or `stop` was signalled.
    pub(super) fn receive(&mut self, stop: &Event) -> io::Result<Option<Received>> {
        let mut header = Header::new_zeroed();
        let mut fds = Vec::new();
        match self.fill(header.as_mut_bytes(), &mut fds, stop)? {
            Filled::All => {}
            Filled::Nothing => return Ok(None),
            Filled::Some => return Err(broken("the VMM hung up in the middle of a message")),
        }
        if header.flags & VERSION_MASK != VERSION {
            return Err(broken(format!(
                "message {} is of an unknown version (flags {:#x})",
                header.request, header.flags
            )));
        }
        let size = header.size as usize;
        if size > BODY_MAX {
            return Err(broken(format!("message {} claims {size} bytes", header.request)));
        }
        let mut body = vec![0; size];
        match self.fill(&mut body, &mut fds, stop)? {
            Filled::All => {}
            _ => return Err(broken(format!("the VMM hung up in the middle of message {}", header.request))),
        }
        Ok(Some(Received { request: header.request, need_reply: header.flags & NEED_REPLY != 0, body, fds }))
    }

    fn fill(&mut self, buf: &mut [u8], fds: &mut Vec<OwnedFd>, stop: &Event) -> io::Result<Filled> {
        let mut done = 0;
        while let Some(rest) = buf.get_mut(done..).filter(|rest| !rest.is_empty()) {
            if !ready(self.stream.as_fd(), stop)? {
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
    pub(super) fn reply(&mut self, request: u32, body: &[u8]) -> io::Result<()> {
        let header = Header { request, flags: VERSION | REPLY, size: body.len() as u32 };
        let whole = [header.as_bytes(), body].concat();
        let sent =
            sendmsg(&self.stream, &[IoSlice::new(&whole)], &mut SendAncillaryBuffer::default(), SendFlags::NOSIGNAL)?;
        // Replies are short; a socket that has no room for one belongs to a VMM that reads none.
        if sent == whole.len() { Ok(()) } else { Err(broken("the VMM does not read its replies")) }
    }
}

enum Filled {
    All,
    Some,
    Nothing,
}
