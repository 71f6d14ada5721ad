//! Messages over a vhost-user socket, well-formed or not.

use std::io::{self, ErrorKind, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::net::Shutdown;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage, SendFlags,
    recvmsg, sendmsg,
};
use vhost::vhost_user::message::{FrontendReq, MAX_ATTACHED_FD_ENTRIES, VhostUserHeaderFlag};
use vm_memory::ByteValued;

use crate::{Error, Result};

/// Protocol version, bits 0 and 1 of a message's flags.
const VERSION: u32 = 1;
/// Bytes of a message header: request, flags, size of the payload, 32 bits each.
pub(crate) const HEADER: usize = 12;
/// Largest payload taken from a device, in bytes.
const PAYLOAD_MAX: u32 = 1 << 16;

/// One message as it came.
#[derive(Debug)]
pub struct Message {
    /// Number of the request.
    pub request: u32,
    /// Version, reply and need-reply bits.
    pub flags: u32,
    /// What followed the header.
    pub payload: Vec<u8>,
    /// Descriptors that came along.
    pub fds: Vec<OwnedFd>,
}

/// The front-end's end of a vhost-user socket. Every wait ends after a time limit.
#[derive(Debug)]
pub struct Connection {
    stream: UnixStream,
    timeout: Duration,
    /// Whether NEED_REPLY may be set (REPLY_ACK was negotiated).
    pub(crate) acks: bool,
}

impl Connection {
    /// Connects to the socket at `path`, trying again for `patience` as long as nobody listens there.
    pub fn connect(path: &Path, patience: Duration, timeout: Duration) -> Result<Connection> {
        let deadline = Instant::now() + patience;
        loop {
            match UnixStream::connect(path) {
                Ok(stream) => return Connection::new(stream, timeout),
                Err(error)
                    if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::ConnectionRefused)
                        && Instant::now() < deadline =>
                {
                    std::thread::sleep(Duration::from_millis(5));
                }
                Err(error) => {
                    let text = format!("connecting to {}: {error}", path.display());
                    return Err(io::Error::new(error.kind(), text).into());
                }
            }
        }
    }

    /// Takes over a connected stream.
    pub fn new(stream: UnixStream, timeout: Duration) -> Result<Connection> {
        stream.set_nonblocking(true)?;
        Ok(Connection { stream, timeout, acks: false })
    }

    /// Process id of who listens at the other end.
    pub fn peer(&self) -> Option<u32> {
        let credentials = rustix::net::sockopt::socket_peercred(&self.stream).ok()?;
        u32::try_from(credentials.pid.as_raw_nonzero().get()).ok()
    }

    /// Sends bytes and descriptors as they are: for messages that no front-end should send.
    pub fn send_bytes(&self, bytes: &[u8], fds: &[BorrowedFd<'_>]) -> Result<()> {
        let mut sent = 0;
        while sent < bytes.len() {
            let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_ATTACHED_FD_ENTRIES))];
            let mut ancillary = SendAncillaryBuffer::new(&mut space);
            if sent == 0 && !fds.is_empty() && !ancillary.push(SendAncillaryMessage::ScmRights(fds)) {
                return Err(io::Error::new(ErrorKind::InvalidInput, "too many descriptors for one message").into());
            }
            let rest = IoSlice::new(bytes.get(sent..).unwrap_or(&[]));
            match sendmsg(&self.stream, &[rest], &mut ancillary, SendFlags::NOSIGNAL) {
                Ok(count) => sent += count,
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => self.wait(PollFlags::OUT, "taking a message")?,
                Err(Errno::PIPE | Errno::CONNRESET) => return Err(Error::gone("a message to it")),
                Err(errno) => return Err(errno.into()),
            }
        }
        Ok(())
    }

    /// Sends one message; any number, any flags, any payload.
    pub fn send(&self, request: u32, flags: u32, payload: &[u8], fds: &[BorrowedFd<'_>]) -> Result<()> {
        let mut bytes = Vec::with_capacity(HEADER + payload.len());
        for word in [request, flags | VERSION, payload.len() as u32] {
            bytes.extend(word.to_ne_bytes());
        }
        bytes.extend(payload);
        self.send_bytes(&bytes, fds)
    }

    /// Takes the next message.
    pub fn receive(&self) -> Result<Message> {
        let mut header = [0u8; HEADER];
        let fds = self.fill(&mut header)?;
        let word = |at: usize| header.get(at..at + 4).and_then(|b| b.try_into().ok()).map_or(0, u32::from_ne_bytes);
        let (request, flags, size) = (word(0), word(4), word(8));
        if size > PAYLOAD_MAX {
            return Err(Error::Protocol(format!("the device sent a message with a payload of {size} bytes")));
        }
        let mut payload = vec![0; size as usize];
        self.fill(&mut payload)?;
        Ok(Message { request, flags, payload, fds })
    }

    /// Sends a request and takes its reply, which must bear the same number.
    pub fn ask(&self, request: FrontendReq, payload: &[u8], fds: &[BorrowedFd<'_>]) -> Result<Message> {
        self.send(request as u32, 0, payload, fds)?;
        self.reply(request)
    }

    /// Sends a request that has no reply of its own; where that was negotiated, waits until the device has agreed.
    pub fn tell(&self, request: FrontendReq, payload: &[u8], fds: &[BorrowedFd<'_>]) -> Result<()> {
        if !self.acks {
            return self.send(request as u32, 0, payload, fds);
        }
        self.send(request as u32, VhostUserHeaderFlag::NEED_REPLY.bits(), payload, fds)?;
        match value(&self.reply(request)?)? {
            0 => Ok(()),
            code => Err(Error::Protocol(format!("the device answered {request:?} with failure {code}"))),
        }
    }

    /// As [`Connection::ask`], for requests whose reply is one 64-bit number.
    pub fn ask_number(&self, request: FrontendReq) -> Result<u64> {
        value(&self.ask(request, &[], &[])?)
    }

    fn reply(&self, request: FrontendReq) -> Result<Message> {
        let message = self.receive()?;
        if message.request != request as u32 || message.flags & VhostUserHeaderFlag::REPLY.bits() == 0 {
            return Err(Error::Protocol(format!(
                "message {} with flags {:#x} came where the reply to {request:?} was due",
                message.request, message.flags
            )));
        }
        Ok(message)
    }

    fn fill(&self, out: &mut [u8]) -> Result<Vec<OwnedFd>> {
        let mut fds = Vec::new();
        let mut done = 0;
        while done < out.len() {
            let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_ATTACHED_FD_ENTRIES))];
            let mut ancillary = RecvAncillaryBuffer::new(&mut space);
            let rest = out.get_mut(done..).unwrap_or(&mut []);
            match recvmsg(&self.stream, &mut [IoSliceMut::new(rest)], &mut ancillary, RecvFlags::CMSG_CLOEXEC) {
                Ok(received) if received.bytes == 0 => return Err(Error::gone("a message from it")),
                Ok(received) => {
                    done += received.bytes;
                    for message in ancillary.drain() {
                        if let RecvAncillaryMessage::ScmRights(rights) = message {
                            fds.extend(rights);
                        }
                    }
                }
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => self.wait(PollFlags::IN, "a message")?,
                Err(Errno::CONNRESET) => return Err(Error::gone("a message from it")),
                Err(errno) => return Err(errno.into()),
            }
        }
        Ok(fds)
    }

    fn wait(&self, flags: PollFlags, what: &str) -> Result<()> {
        let timeout =
            Timespec { tv_sec: self.timeout.as_secs() as i64, tv_nsec: i64::from(self.timeout.subsec_nanos()) };
        match poll(&mut [PollFd::new(&self.stream, flags)], Some(&timeout)) {
            Ok(0) => Err(Error::Timeout { what: what.to_owned(), after: self.timeout }),
            Ok(_) | Err(Errno::INTR) => Ok(()),
            Err(errno) => Err(errno.into()),
        }
    }

    /// Closes the connection, whoever still holds it.
    pub fn hang_up(&self) {
        // Fails only when it is closed already.
        let _ = self.stream.shutdown(Shutdown::Both);
    }

    /// Whether the other end closed the connection, within the time limit.
    pub fn closed(&self) -> bool {
        matches!(self.receive(), Err(Error::Io(error)) if error.kind() == ErrorKind::ConnectionReset)
    }
}

impl AsFd for Connection {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.stream.as_fd()
    }
}

fn value(message: &Message) -> Result<u64> {
    let bytes = message.payload.as_slice().try_into();
    bytes.map(u64::from_ne_bytes).map_err(|_| {
        let size = message.payload.len();
        Error::Protocol(format!("{size} bytes answer message {}, which is answered by 8", message.request))
    })
}

/// The bytes of a message struct.
pub(crate) fn bytes<T: ByteValued>(value: &T) -> &[u8] {
    value.as_slice()
}
