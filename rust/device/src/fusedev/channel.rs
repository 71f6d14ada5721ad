// UNSAFETY: FUSE_DEV_IOC_CLONE is an ioctl of /dev/fuse alone, for which nobody has a safe call.
#![allow(unsafe_code)]
//! One descriptor of a connection to the kernel.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use rustix::event::epoll;
use rustix::fs::{Mode, OFlags, fcntl_getfl, fcntl_setfl};
use rustix::io::Errno;
use virtiofs_virtqueue::Event;

use super::buffer::Buffer;

const DEVICE: &str = "/dev/fuse";
/// `FUSE_DEV_IOC_CLONE`: `_IOR(229, 0, uint32_t)`.
const CLONE: rustix::ioctl::Opcode = rustix::ioctl::opcode::read::<u32>(229, 0);

/// Requests come from here, and each is answered where it came from.
#[derive(Debug)]
pub(crate) struct Channel {
    fd: OwnedFd,
}

/// What a look for a request found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Received {
    Request,
    Nothing,
    /// The file system is unmounted, or the connection was aborted.
    Gone,
}

/// Opens /dev/fuse.
pub(crate) fn open() -> io::Result<OwnedFd> {
    Ok(rustix::fs::open(DEVICE, OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())?)
}

impl Channel {
    /// The first descriptor of a connection: the one that was mounted.
    pub(crate) fn new(fd: OwnedFd) -> io::Result<Channel> {
        fcntl_setfl(&fd, fcntl_getfl(&fd)? | OFlags::NONBLOCK)?;
        Ok(Channel { fd })
    }

    /// One more descriptor of the same connection, with a list of requests of its own.
    pub(crate) fn another(&self) -> io::Result<Channel> {
        let fd = open()?;
        let source = self.fd.as_raw_fd() as u32;
        // SAFETY: the opcode is that of FUSE_DEV_IOC_CLONE, which reads one u32 (`fuse_dev_ioctl_clone`: get_user), as the setter passes.
        let clone = unsafe { rustix::ioctl::Setter::<CLONE, u32>::new(source) };
        // SAFETY: the descriptor is one of /dev/fuse, which knows this ioctl by this number and changes no memory of ours.
        unsafe { rustix::ioctl::ioctl(&fd, clone) }?;
        Channel::new(fd)
    }

    /// Takes the next request, if there is one.
    pub(crate) fn receive(&self, buffer: &mut Buffer) -> io::Result<Received> {
        loop {
            match rustix::io::read(&self.fd, buffer.receiver()) {
                Ok(len) => {
                    buffer.received(len);
                    return Ok(Received::Request);
                }
                Err(Errno::AGAIN) => return Ok(Received::Nothing),
                // ENODEV at an unmount, ECONNABORTED where INIT agreed on ABORT_ERROR.
                Err(Errno::NODEV | Errno::CONNABORTED) => return Ok(Received::Gone),
                // ENOENT: its caller gave up before we had it.
                Err(Errno::NOENT | Errno::INTR) => {}
                Err(errno) => return Err(errno.into()),
            }
        }
    }

    /// Answers the request that was received into `buffer` with the `len` bytes of reply that are there.
    pub(crate) fn reply(&self, buffer: &Buffer, len: usize) {
        let [head, data] = buffer.reply(len);
        let parts = [head, data];
        match self.write(if data_is_empty(len) { &parts[..1] } else { &parts }) {
            // ENOENT: nobody waits for this any more.
            Ok(()) | Err(Errno::NOENT | Errno::NODEV | Errno::CONNABORTED | Errno::PERM) => {}
            Err(errno) => tracing::error!(%errno, unique = buffer.unique(), len, "the kernel did not take a reply"),
        }
    }

    /// One message to the kernel.
    pub(crate) fn write(&self, parts: &[io::IoSlice<'_>]) -> Result<(), Errno> {
        rustix::io::retry_on_intr(|| rustix::io::writev(&self.fd, parts)).map(drop)
    }
}

fn data_is_empty(len: usize) -> bool {
    len <= size_of::<virtiofs_fuse::wire::OutHeader>()
}

impl AsFd for Channel {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// Waits for requests on one channel, and for the end.
#[derive(Debug)]
pub(crate) struct Waiter(OwnedFd);

impl Waiter {
    /// Of all threads that wait, the kernel wakes one per request (EPOLLEXCLUSIVE); `end` wakes all.
    pub(crate) fn new(channel: &Channel, end: &Event) -> io::Result<Waiter> {
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        let mut flags = epoll::EventFlags::IN | epoll::EventFlags::EXCLUSIVE;
        epoll::add(&epoll, channel, epoll::EventData::new_u64(0), flags)?;
        flags.remove(epoll::EventFlags::EXCLUSIVE);
        epoll::add(&epoll, end, epoll::EventData::new_u64(1), flags)?;
        Ok(Waiter(epoll))
    }

    /// Returns when there may be something.
    pub(crate) fn wait(&self) -> io::Result<()> {
        let mut events = [std::mem::MaybeUninit::uninit(); 2];
        match epoll::wait(&self.0, &mut events, None) {
            Ok(_) | Err(Errno::INTR) => Ok(()),
            Err(errno) => Err(errno.into()),
        }
    }
}
