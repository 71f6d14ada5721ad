//! The DAX window on the driver's side: a front end that maps what the device sends it, and shows that to its guest.

use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::Duration;

use parking_lot::Mutex;
use rustix::fs::{OFlags, fcntl_getfl, fstat};
use vhost::vhost_user::message::{BackendReq, FrontendReq, VhostUserHeaderFlag};
use virtiofs_coherence::View;
use virtiofs_dax::{Range, Refusal, Reserved, Window};

use crate::{Connection, Error, Message, Result};

/// Mappings at the same time, at the most.
const MAPPINGS: usize = 1 << 16;
/// How often somebody looks whether the device is still there.
const LOOK: Duration = Duration::from_secs(3600);

/// The window of one device.
pub type Mapped = Window<Reserved>;

/// The other end of the channel on which the device asks for mappings.
#[derive(Debug)]
pub(crate) struct FrontEnd {
    window: Arc<Mapped>,
    /// What the device has shown of its version table: region 1.
    table: Arc<Mutex<Option<Arc<View>>>>,
    connection: Arc<Connection>,
    thread: Option<JoinHandle<()>>,
}

impl FrontEnd {
    /// A window of `size` bytes, and the descriptor that the device is to be given. With `whole_pages` it is as QEMU 11.1: it maps nothing
    /// behind the end of a file, and no file that may not be written.
    pub(crate) fn new(size: u64, whole_pages: bool) -> Result<(FrontEnd, OwnedFd)> {
        let window = Window::new(Reserved::new(size)?, size, MAPPINGS);
        let window = Arc::new(window.map_err(|error| Error::Protocol(error.to_string()))?);
        let (ours, theirs) = UnixStream::pair()?;
        let connection = Arc::new(Connection::new(ours, LOOK)?);
        let table = Arc::default();
        let (channel, mapped, shown) = (Arc::clone(&connection), Arc::clone(&window), Arc::clone(&table));
        let thread = thread::Builder::new().name("virtiofs-frontend".into()).spawn(move || {
            let mut mappings = 0;
            loop {
                match channel.receive() {
                    Ok(message) => {
                        mappings += 1;
                        let answer = u64::from(answer(&mapped, &shown, &message, mappings, whole_pages).is_err());
                        let flags = VhostUserHeaderFlag::REPLY.bits();
                        if channel.send(message.request, flags, &answer.to_ne_bytes(), &[]).is_err() {
                            return;
                        }
                    }
                    Err(Error::Timeout { .. }) => {}
                    Err(_) => return,
                }
            }
        })?;
        Ok((FrontEnd { window, table, connection, thread: Some(thread) }, theirs.into()))
    }

    /// Asks the device for the size of its window, and gives it the channel to fill it. `None` if it has none after all.
    pub(crate) fn connect(connection: &Connection, whole_pages: bool) -> Result<Option<FrontEnd>> {
        let reply = connection.ask(FrontendReq::GET_SHMEM_CONFIG, &[], &[])?;
        let first = reply.payload.get(8..16).and_then(|bytes| bytes.try_into().ok()).map(u64::from_ne_bytes);
        let size = match (reply.payload.get(..4), first) {
            (Some([0, 0, 0, 0]), _) | (_, Some(0)) => return Ok(None),
            (_, Some(size)) => size,
            (_, None) => {
                let size = reply.payload.len();
                return Err(Error::Protocol(format!("{size} bytes answer GET_SHMEM_CONFIG")));
            }
        };
        let (front_end, theirs) = FrontEnd::new(size, whole_pages)?;
        connection.tell(FrontendReq::SET_BACKEND_REQ_FD, &[], &[theirs.as_fd()])?;
        Ok(Some(front_end))
    }

    pub(crate) fn window(&self) -> &Arc<Mapped> {
        &self.window
    }

    pub(crate) fn versions(&self) -> Option<Arc<View>> {
        self.table.lock().clone()
    }
}

impl Drop for FrontEnd {
    fn drop(&mut self) {
        self.connection.hang_up();
        if let Some(thread) = self.thread.take() {
            // It ends with the connection, and has nothing to tell.
            let _ = thread.join();
        }
    }
}

/// Does what one message asks for. `key` is a number that no other mapping has.
fn answer(
    window: &Mapped,
    table: &Mutex<Option<Arc<View>>>,
    message: &Message,
    key: u64,
    whole_pages: bool,
) -> std::result::Result<(), Refusal> {
    let refuse = || Refusal::Failed(std::io::ErrorKind::InvalidInput.into());
    let word = |at: usize| {
        let bytes = message.payload.get(at..at + 8).and_then(|bytes| bytes.try_into().ok());
        bytes.map(u64::from_ne_bytes).ok_or_else(refuse)
    };
    let place = || Ok::<_, Refusal>([word(0)?, word(8)?, word(16)?, word(24)?, word(32)?]);
    if message.request == BackendReq::SHMEM_MAP as u32 {
        let [region, file_offset, offset, len, flags] = place()?;
        let fd = message.fds.first().ok_or_else(refuse)?.try_clone()?;
        if region & 0xff == 1 {
            let view = View::new(&fd).map_err(|_| refuse())?;
            // A guest gets it to read, and whole.
            if (file_offset, offset, len, flags) != (0, 0, view.size(), 0) || may_write(&fd)? || whole_pages {
                return Err(refuse());
            }
            *table.lock() = Some(Arc::new(view));
            return Ok(());
        }
        // A file of its own for each mapping, and none over another: the specification leaves no other choice.
        if region & 0xff != 0 || window.overlaps(offset, len) || whole_pages && !as_qemu(&fd, file_offset, len)? {
            return Err(refuse());
        }
        let write = flags & 1 != 0;
        return window.map(key, Range { offset, len, file_offset, write }, |_| Ok((fd, write)));
    }
    if message.request == BackendReq::SHMEM_UNMAP as u32 {
        let [region, _, offset, len, _] = place()?;
        if region & 0xff == 1 {
            return table.lock().take().map(drop).ok_or_else(refuse);
        }
        return if window.holds_exactly(offset, len) { window.unmap(offset, len) } else { Err(refuse()) };
    }
    // Whatever it is: there is no such thing.
    Err(refuse())
}

/// `qemu_ram_alloc_from_fd` of QEMU 11.1: the size is where lseek(2) finds the end, and all is mapped for writing.
fn as_qemu(fd: &OwnedFd, file_offset: u64, len: u64) -> std::result::Result<bool, Refusal> {
    let writable = may_write(fd)?;
    let size = fstat(fd.as_fd()).map_err(std::io::Error::from)?.st_size as u64;
    Ok(writable && file_offset.saturating_add(len) <= size)
}

fn may_write(fd: &OwnedFd) -> std::result::Result<bool, Refusal> {
    Ok(fcntl_getfl(fd).map_err(std::io::Error::from)?.contains(OFlags::RDWR))
}
