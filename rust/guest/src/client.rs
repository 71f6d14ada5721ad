//! A FUSE session over the rings: negotiation, numbers, one call per request.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, AtomicUsize, Ordering};

use parking_lot::{Mutex, RwLock};
use virtiofs_fuse::wire::InHeader;
use virtiofs_fuse::{Opcode, Operation};
use zerocopy::FromBytes;

use crate::channel::{Channel, Outgoing};
use crate::connection::Connection;
use crate::memory::{Memory, PAGE, Region};
use crate::notices::{Notice, Notices};
use crate::ring::{Layout, Ring};
use crate::session::Session;
use crate::signal::{Bell, Line, Waiter};
use crate::slot::ARGS_MAX;
use crate::transport::{Config, Queue, Transport, feature};
use crate::vhost_user::VhostUser;
use crate::window::Mapped;
use crate::{Error, Options, Result};

/// A FUSE client over virtqueues. All methods may be called from several threads at once; each blocks until its reply is here, at most
/// for `Options::timeout`.
#[derive(Debug)]
pub struct Client {
    memory: Arc<Memory>,
    pub(crate) transport: Mutex<Box<dyn Transport>>,
    pub(crate) hiprio: Channel,
    notices: Option<Notices>,
    requests: Vec<Channel>,
    /// Data pages of a slot.
    pub(crate) pages: usize,
    pub(crate) lines: Vec<(Line, Arc<std::os::fd::OwnedFd>)>,
    features: u64,
    config: Option<Config>,
    peer: Option<u32>,
    pub(crate) window: Option<Arc<Mapped>>,
    pub(crate) options: Options,
    pub(crate) session: RwLock<Session>,
    unique: AtomicU64,
    turn: AtomicUsize,
    caller: [AtomicU32; 3],
    /// The label of what is made: name and value.
    pub(crate) label: RwLock<Option<(Vec<u8>, Vec<u8>)>>,
    pub(crate) open: AtomicBool,
    /// Requests that may have changed something.
    pub(crate) changes: Arc<AtomicU64>,
}

impl std::fmt::Debug for dyn Transport {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Transport")
    }
}

impl Client {
    /// Connects to the vhost-user socket at `socket`, sets memory and queues up, and opens a FUSE session.
    pub fn connect(socket: &Path, options: Options) -> Result<Client> {
        let connection = Connection::connect(socket, options.connect_timeout, options.timeout)?;
        Client::over_connection(connection, options)
    }

    /// The same over a connection that is there already.
    pub fn over_connection(connection: Connection, options: Options) -> Result<Client> {
        let transport = VhostUser::new(connection, &options)?;
        Client::over(Box::new(transport), options)
    }

    /// The same over any transport.
    pub fn over(mut transport: Box<dyn Transport>, options: Options) -> Result<Client> {
        let offered = transport.features()?;
        let mut wanted = feature::VERSION_1;
        wanted |= if options.indirect { feature::INDIRECT_DESC } else { 0 };
        wanted |= if options.event_idx { feature::EVENT_IDX } else { 0 };
        wanted |= if options.notifications { feature::NOTIFICATION } else { 0 };
        let features = offered & wanted;
        if features & feature::VERSION_1 == 0 {
            return Err(Error::Protocol(format!("the device offers no VIRTIO_F_VERSION_1 (features {offered:#x})")));
        }
        let notifies = features & feature::NOTIFICATION != 0;
        let others = 1 + u64::from(notifies);
        let limit = transport.queue_limit()?.map_or(u64::MAX, |queues| queues.saturating_sub(others));
        let config = transport.config()?;
        let of_device = limit.min(config.as_ref().map_or(u64::MAX, |config| u64::from(config.request_queues)));
        let queues = options.request_queues.min(u16::try_from(of_device).unwrap_or(u16::MAX)).max(1);

        let mut layouts = layouts(&options, features, queues)?;
        if notifies {
            layouts.insert(1, Notices::layout(options.queue_size, features & feature::EVENT_IDX != 0));
        }
        let pages: usize = layouts.iter().map(Layout::memory).sum();
        let memory = Arc::new(Memory::new((pages + pages / 8 + 64) * PAGE, usize::from(options.regions))?);
        let of_slot = layouts.last().map_or(0, |layout| layout.pages);
        let mut channels = Vec::new();
        let mut lines = Vec::new();
        for layout in layouts {
            let ring = Ring::new(&memory, layout, options.strict)?;
            let call = Line::new(options.pipes)?;
            lines.push((Line::new(options.pipes)?, Arc::clone(&call.raise)));
            channels.push(Channel::new(ring, Waiter::new(call, transport.life())?, &options));
        }
        let hiprio = channels.remove(0);
        let notices = match notifies {
            true => Some(Notices::new(channels.remove(0), transport.notify_buf_size()?)?),
            false => None,
        };
        let (peer, window) = (transport.peer(), options.dax.then(|| transport.window()).flatten());
        let caller = [options.uid, options.gid, options.pid].map(AtomicU32::new);
        let mut client = Client {
            memory,
            transport: Mutex::new(transport),
            hiprio,
            notices,
            requests: channels,
            pages: of_slot,
            lines,
            features,
            config,
            peer,
            window,
            options,
            session: RwLock::default(),
            unique: AtomicU64::new(2),
            turn: AtomicUsize::new(0),
            caller,
            label: RwLock::default(),
            open: AtomicBool::new(false),
            changes: Arc::default(),
        };
        client.start()?;
        if client.options.init {
            client.init()?;
        }
        if client.options.find_versions {
            // A device in another process has it shown when the session begins.
            let found = client.transport.lock().versions();
            client.options.versions =
                Some(found.ok_or_else(|| {
                    Error::Protocol("the device shows no version table (shared memory region 1)".into())
                })?);
        }
        Ok(client)
    }

    pub(crate) fn start(&self) -> Result<()> {
        let mut queues = Vec::new();
        for (index, (channel, (kick, call))) in self.channels().zip(&self.lines).enumerate() {
            let inner = channel.lock();
            let at = |offset| self.memory.address(offset);
            queues.push(Queue {
                index: index as u16,
                size: inner.ring.layout.size,
                descriptors: at(inner.ring.descriptors),
                available: at(inner.ring.avail),
                used: at(inner.ring.used),
                base: inner.ring.base(),
                kick: (Arc::clone(&kick.wait), Arc::clone(&kick.raise)),
                call: Arc::clone(call),
            });
        }
        let mut transport = self.transport.lock();
        transport.start(self.features, &self.memory, &queues)?;
        for (channel, queue) in self.channels().zip(&queues) {
            let bell = transport.bell(queue.index).unwrap_or_else(|| Bell::Fd(Arc::clone(&queue.kick.1)));
            channel.lock().ring.connect(bell);
        }
        drop(transport);
        self.notices.as_ref().map_or(Ok(()), Notices::fill)
    }

    pub(crate) fn channels(&self) -> impl Iterator<Item = &Channel> {
        std::iter::once(&self.hiprio).chain(self.notices.as_ref().map(|notices| &notices.channel)).chain(&self.requests)
    }

    /// Takes what the device has told unasked since the last call.
    pub fn notices(&self) -> Result<Vec<Notice>> {
        self.notices.as_ref().map_or(Ok(Vec::new()), Notices::take)
    }

    /// How much the device has told unasked so far, or `None` if there is no queue for that.
    pub fn noticed(&self) -> Option<u64> {
        self.notices.as_ref().map(Notices::taken)
    }

    /// Adds `size` bytes of guest memory while the device runs, and tells it.
    pub fn add_memory(&self, size: usize) -> Result<Region> {
        let region = self.memory.grow(size)?;
        self.transport.lock().add_region(&self.memory, &region)?;
        Ok(region)
    }

    /// One request of an operation: `args` behind the header, `data` in pages, room for `reply` bytes of struct and `data_out` bytes of
    /// data. Answers what came behind the reply header.
    pub(crate) fn call(
        &self,
        opcode: Opcode,
        nodeid: u64,
        args: &[&[u8]],
        data: &[u8],
        reply: usize,
        data_out: usize,
    ) -> Result<Vec<u8>> {
        self.call_with(self.header(opcode as u32, nodeid), args, data, reply, data_out, false)
    }

    pub(crate) fn call_with(
        &self,
        header: InHeader,
        args: &[&[u8]],
        data: &[u8],
        reply: usize,
        data_out: usize,
        size_only: bool,
    ) -> Result<Vec<u8>> {
        let size: usize = args.iter().map(|part| part.len()).sum();
        if size > ARGS_MAX {
            return Err(Error::Errno(libc::ENAMETOOLONG));
        }
        let request = Outgoing { header, args, data, reply, data_out, wants_reply: true, size_only, wipe: false };
        let result = self.channel().call(&request, |ring, slot, _| {
            let len = ring.outcome(slot)?;
            let mut bytes = Vec::new();
            ring.reply_bytes(slot, len, &mut bytes);
            Ok(bytes)
        });
        if Operation::by_number(header.opcode).is_some_and(|row| row.mutates || row.opcode == Opcode::Open) {
            self.changes.fetch_add(1, Ordering::Release);
        }
        match result {
            Ok(result) => result,
            Err(error) => {
                if matches!(error, Error::Timeout { .. } | Error::Io(_)) {
                    // A device that did not answer will not answer DESTROY: dropping must not wait for it again.
                    self.open.store(false, Ordering::Release);
                }
                Err(error)
            }
        }
    }

    /// As [`Client::call`] for replies that are one struct.
    pub(crate) fn ask<T: FromBytes>(&self, opcode: Opcode, nodeid: u64, args: &[&[u8]]) -> Result<T> {
        parse(&self.call(opcode, nodeid, args, &[], size_of::<T>(), 0)?)
    }

    /// A request that nobody answers, on the hiprio queue.
    pub(crate) fn post(&self, opcode: Opcode, nodeid: u64, args: &[&[u8]], data: &[u8]) -> Result<()> {
        let header = InHeader { uid: 0, gid: 0, pid: 0, ..self.header(opcode as u32, nodeid) };
        self.hiprio.post(&Outgoing { header, args, data, ..Outgoing::default() })
    }

    /// Waits until the server has taken all FORGETs.
    pub fn settle(&self) -> Result<()> {
        self.hiprio.drain()
    }

    pub(crate) fn header(&self, opcode: u32, nodeid: u64) -> InHeader {
        let [uid, gid, pid] = [0, 1, 2].map(|i: usize| self.caller.get(i).map_or(0, |id| id.load(Ordering::Relaxed)));
        InHeader { len: 0, opcode, unique: self.number(), nodeid, uid, gid, pid, total_extlen: 0, padding: 0 }
    }

    /// The next request's number: even, since bit 0 means an interrupt.
    pub(crate) fn number(&self) -> u64 {
        self.unique.fetch_add(2, Ordering::Relaxed)
    }

    pub(crate) fn channel(&self) -> &Channel {
        let turn = self.turn.fetch_add(1, Ordering::Relaxed) % self.requests.len();
        let mut free = self.requests.iter().cycle().skip(turn).take(self.requests.len());
        free.find(|channel| !channel.is_raw()).or(self.requests.get(turn)).unwrap_or(&self.hiprio)
    }

    /// The queue `index` as the device counts them: 0 is hiprio.
    pub(crate) fn queue(&self, index: usize) -> Option<&Channel> {
        self.channels().nth(index)
    }

    /// Who asks from now on: fsuid, fsgid, thread id.
    pub fn set_caller(&self, uid: u32, gid: u32, pid: u32) {
        for (id, value) in self.caller.iter().zip([uid, gid, pid]) {
            id.store(value, Ordering::Relaxed);
        }
    }

    /// What INIT settled.
    pub fn session(&self) -> Session {
        *self.session.read()
    }

    /// Whether a flag of INIT was accepted.
    pub(crate) fn has(&self, flag: u64) -> bool {
        self.session.read().flags & flag != 0
    }

    /// Request queues in use.
    pub fn request_queues(&self) -> usize {
        self.requests.len()
    }

    /// Virtio features in use.
    pub fn features(&self) -> u64 {
        self.features
    }

    /// The device's configuration space, if it can be read.
    pub fn config(&self) -> Option<&Config> {
        self.config.as_ref()
    }

    /// The DAX window, if there is one: what is mapped there is read and written as memory.
    pub fn window(&self) -> Option<&Arc<Mapped>> {
        self.window.as_ref()
    }

    /// Process id of the daemon, if there is one.
    pub fn peer(&self) -> Option<u32> {
        self.peer
    }

    /// Guest memory.
    pub fn memory(&self) -> &Arc<Memory> {
        &self.memory
    }

    /// The settings.
    pub fn options(&self) -> &Options {
        &self.options
    }

    /// Lends out the vhost-user socket, for messages of the caller's own making; `None` over another transport.
    pub fn with_connection<T>(&self, with: impl FnOnce(&Connection) -> T) -> Option<T> {
        self.transport.lock().connection().map(with)
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        if self.open.load(Ordering::Acquire) {
            // Best effort: whoever wants to know calls `close`.
            let _ = self.close();
        }
    }
}

pub(crate) fn parse<T: FromBytes>(bytes: &[u8]) -> Result<T> {
    let too_short = || Error::Protocol(format!("a reply of {} bytes where {} were due", bytes.len(), size_of::<T>()));
    T::read_from_prefix(bytes).map(|(value, _)| value).map_err(|_| too_short())
}

fn layouts(options: &Options, features: u64, queues: u16) -> Result<Vec<Layout>> {
    if !options.queue_size.is_power_of_two() || options.queue_size > 1 << 15 {
        return Err(Error::Protocol(format!("{} is no size of a ring", options.queue_size)));
    }
    let indirect = features & feature::INDIRECT_DESC != 0;
    let layout = |slots: u16, pages: usize| {
        let slots = slots.clamp(1, options.queue_size);
        // Without indirect descriptors a slot is a part of the ring itself: as many as fit, at the size that fits.
        let slots = if indirect { slots } else { slots.min(options.queue_size / 8).max(1) };
        // As in Linux: data pages and the four other parts of a request must fit into a chain.
        let chain = if indirect { options.queue_size } else { options.queue_size / slots };
        Layout {
            size: options.queue_size,
            slots: 1 << slots.ilog2(),
            pages: pages.min(usize::from(chain).saturating_sub(4)),
            indirect,
            event_idx: features & feature::EVENT_IDX != 0,
            contiguous: options.contiguous,
            framing: options.framing,
        }
    };
    // Room for one batch of FORGETs in the hiprio queue's slots.
    let mut layouts = vec![layout(options.forgets_in_flight, 1)];
    layouts.extend((0..queues).map(|_| layout(options.in_flight, usize::from(options.max_pages))));
    Ok(layouts)
}
