//! The conversation with one VMM. This file is longer than others: it is the list of all messages.

mod kept;
mod moved;

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

use vhost::vhost_user::message::{FrontendReq, VhostUserProtocolFeatures};
use virtiofs_fuse::Server;
use virtiofs_virtqueue::{Area, DirtyLog, Event, Memory, Region, Remote, SharedMemory};
use zerocopy::{FromBytes, IntoBytes};

use super::Config;
use super::away::Away;
use super::connection::{Connection, Next, Received};
use super::shmem::Shmem;
use super::transfer::Transfer;
use super::vring::{Addresses, Vring};
use crate::Identity;
use crate::identity::CONFIG_SIZE;
use crate::notices::Notices;
use crate::pool::Pool;
use crate::running::Surroundings;
use moved::{LOG_ALL, NO_FD, said};

/// VHOST_USER_F_PROTOCOL_FEATURES, a feature bit that the guest never sees.
const PROTOCOL_FEATURES_BIT: u64 = 1 << 30;
/// Regions of memory that a VMM may add. QEMU offers its guest that many slots for hotplug.
const MEMORY_SLOTS: u64 = 509;

/// Regions are given one by one, or there is a DAX window: QEMU 11.1 crashes at a reset of a device that has both, and live mappings. What
/// is mapped in a window goes with its VMM, so a session with one does not wait for that to come back.
fn protocol_features(window: bool, keeps: bool) -> VhostUserProtocolFeatures {
    let all = VhostUserProtocolFeatures::MQ | VhostUserProtocolFeatures::REPLY_ACK | VhostUserProtocolFeatures::CONFIG;
    let kept = if keeps { VhostUserProtocolFeatures::INFLIGHT_SHMFD } else { VhostUserProtocolFeatures::empty() };
    let moves = VhostUserProtocolFeatures::LOG_SHMFD | VhostUserProtocolFeatures::DEVICE_STATE;
    match window {
        false => {
            all | kept
                | moves
                | VhostUserProtocolFeatures::RESET_DEVICE
                | VhostUserProtocolFeatures::CONFIGURE_MEM_SLOTS
        }
        true => {
            all | VhostUserProtocolFeatures::BACKEND_REQ
                | VhostUserProtocolFeatures::BACKEND_SEND_FD
                | VhostUserProtocolFeatures::SHMEM
        }
    }
}

/// What a request is answered with.
enum Answer {
    /// It has no reply of its own: an acknowledgement where one is wanted.
    Done,
    /// Its own reply.
    Value(u64),
    /// Its own reply, of another form.
    Bytes(Vec<u8>),
    /// Its own reply, and the memory that goes along.
    Area(Vec<u8>, Arc<Area>),
}

/// Why a request is refused: the VMM is told if it asked to be, and the connection goes on.
type Refused = String;

/// The state of the device for one VMM.
#[derive(Debug)]
pub(super) struct Session {
    identity: Identity,
    with: Surroundings,
    vrings: Vec<Vring>,
    features: u64,
    protocol_features: u64,
    window: Option<Arc<Shmem>>,
    /// Sessions outlive their connection for so long; not at all if that is nothing.
    patience: Duration,
    /// Where requests in flight are noted: what the VMM was given, and what it has set up.
    area: Option<Arc<Area>>,
    given: Option<Arc<Area>>,
    /// What is kept of a VMM that went away, as long as this one may be the same.
    away: Option<Away>,
    /// Where the VMM wants to find which pages were written, once it says so.
    log: Option<Arc<DirtyLog>>,
    /// The state of the session on its way.
    transfer: Option<Transfer>,
    may_lose: bool,
}

/// What the connection is ended for: the message has no honest meaning, or its reply cannot be given.
fn hopeless(what: String) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what)
}

impl Session {
    pub(super) fn new(
        config: &Config,
        server: Arc<Server>,
        pool: Arc<Pool>,
        window: Option<Arc<Shmem>>,
        notices: Option<Arc<Notices>>,
        patience: Duration,
        away: Option<Away>,
    ) -> Session {
        let with = Surroundings {
            memory: Arc::new(SharedMemory::default()),
            server,
            pool,
            workers: None,
            hiprio: Arc::default(),
            notices,
        };
        let identity = config.identity.clone();
        let vrings = (0..identity.most_queues()).map(|_| Vring::default()).collect();
        Session {
            identity,
            with,
            vrings,
            features: 0,
            protocol_features: 0,
            window,
            patience,
            area: None,
            given: None,
            away,
            log: None,
            transfer: None,
            may_lose: config.may_lose,
        }
    }

    /// Answers the VMM's requests until it hangs up or `stop` is signalled.
    pub(super) fn run(&mut self, connection: &mut Connection, stop: &Event) -> io::Result<()> {
        loop {
            let message = match connection.receive(stop, self.away.as_ref().map(Away::until))? {
                Next::Message(message) => message,
                Next::Gone => return Ok(()),
                Next::Late => {
                    self.give_up("it did not come back in time");
                    continue;
                }
            };
            let (number, need_reply) = (message.request, message.need_reply);
            let Ok(request) = FrontendReq::try_from(number) else {
                return Err(hopeless(format!("message {number} is not in the vhost-user protocol")));
            };
            tracing::trace!(?request, body = ?message.body, fds = message.fds.len(), "message");
            let answer = self.handle(request, message);
            // Only now: User-Mode Linux wants an acknowledgement of the very message that agrees on them.
            let acknowledge = need_reply && self.has(VhostUserProtocolFeatures::REPLY_ACK);
            match answer {
                Ok(Answer::Value(value)) => connection.reply(number, value.as_bytes(), None)?,
                Ok(Answer::Bytes(bytes)) => connection.reply(number, &bytes, None)?,
                Ok(Answer::Area(bytes, area)) => connection.reply(number, &bytes, Some(area.as_fd()))?,
                Ok(Answer::Done) if acknowledge => connection.reply(number, 0u64.as_bytes(), None)?,
                Ok(Answer::Done) => {}
                Err(reason) if has_reply(request) => return Err(hopeless(format!("{request:?}: {reason}"))),
                Err(reason) => {
                    tracing::warn!(?request, %reason, "the VMM asks for what cannot be");
                    if acknowledge {
                        connection.reply(number, 1u64.as_bytes(), None)?;
                    }
                }
            }
        }
    }

    fn protocol_features(&self) -> u64 {
        protocol_features(self.window.is_some(), !self.patience.is_zero()).bits()
    }

    fn has(&self, feature: VhostUserProtocolFeatures) -> bool {
        self.protocol_features & feature.bits() != 0
    }

    fn handle(&mut self, request: FrontendReq, message: Received) -> Result<Answer, Refused> {
        let body = &message.body[..];
        match request {
            FrontendReq::GET_FEATURES => return Ok(Answer::Value(self.features_offered())),
            FrontendReq::SET_FEATURES => self.set_features(take(body)?)?,
            FrontendReq::GET_PROTOCOL_FEATURES => return Ok(Answer::Value(self.protocol_features())),
            FrontendReq::SET_PROTOCOL_FEATURES => {
                self.protocol_features = take::<u64>(body)? & self.protocol_features()
            }
            FrontendReq::GET_QUEUE_NUM => return Ok(Answer::Value(self.vrings.len() as u64)),
            FrontendReq::SET_OWNER => {}
            FrontendReq::RESET_OWNER | FrontendReq::RESET_DEVICE => self.reset(),
            FrontendReq::GET_CONFIG => return self.get_config(message.body),
            FrontendReq::GET_SHMEM_CONFIG => {
                let window = self.window.as_ref().ok_or("there is no DAX window: start with --dax-window SIZE")?;
                return Ok(Answer::Bytes(window.config()));
            }
            FrontendReq::SET_BACKEND_REQ_FD => {
                let window = self.window.as_ref().ok_or("there is nothing to ask the VMM for")?;
                window.connect(one(message.fds)?).map_err(|error| error.to_string())?;
            }
            FrontendReq::SET_CONFIG => return Err("the configuration space is read-only".into()),
            FrontendReq::SET_MEM_TABLE => self.set_mem_table(body, message.fds)?,
            FrontendReq::GET_MAX_MEM_SLOTS => return Ok(Answer::Value(MEMORY_SLOTS)),
            FrontendReq::ADD_MEM_REG => self.add_mem_reg(body, message.fds)?,
            FrontendReq::REM_MEM_REG => self.rem_mem_reg(body)?,
            FrontendReq::SET_VRING_NUM => {
                let [index, size]: [u32; 2] = take(body)?;
                settled(self.vring(index)?.set_size(size), || format!("a queue of {size} entries"))?;
            }
            FrontendReq::SET_VRING_ADDR => {
                let ([index, _flags], [desc, used, avail, _log]): ([u32; 2], [u64; 4]) = take_two(body)?;
                let addresses = Addresses { desc, avail, used };
                settled(self.vring(index)?.set_addresses(addresses), || "new addresses for a running queue".into())?;
            }
            FrontendReq::SET_VRING_BASE => {
                let [index, base]: [u32; 2] = take(body)?;
                settled(self.vring(index)?.set_base(base), || format!("the base {base:#x} for this queue"))?;
            }
            FrontendReq::GET_VRING_BASE => {
                let [index, _]: [u32; 2] = take(body)?;
                self.halt_window();
                let base = self.vring(index)?.get_base();
                return Ok(Answer::Bytes([index, u32::from(base)].as_bytes().to_vec()));
            }
            FrontendReq::SET_VRING_KICK => {
                let (index, kick) = event(body, message.fds)?;
                self.vring(index)?.set_kick(kick);
                // Without protocol features there is no SET_VRING_ENABLE: a kick is all that it takes.
                if self.features & PROTOCOL_FEATURES_BIT == 0 {
                    self.vring(index)?.set_enabled(true);
                    self.resume_window();
                }
            }
            FrontendReq::SET_VRING_CALL => {
                let (index, call) = event(body, message.fds)?;
                self.vring(index)?.set_call(call);
            }
            // Errors go to the log, where somebody reads them.
            FrontendReq::SET_VRING_ERR => {
                self.vring(event(body, message.fds)?.0)?;
            }
            FrontendReq::SET_VRING_ENABLE => {
                let [index, enable]: [u32; 2] = take(body)?;
                match enable {
                    0 => self.halt_window(),
                    _ => self.resume_window(),
                }
                self.vring(index)?.set_enabled(enable != 0);
            }
            FrontendReq::SET_LOG_BASE => {
                self.set_log(take(body)?, message.fds)?;
                return Ok(Answer::Value(0));
            }
            // Nobody waits for it: the log is looked at when the VMM wants to.
            FrontendReq::SET_LOG_FD => {}
            FrontendReq::SET_DEVICE_STATE_FD => {
                let begun = self.move_state(take(body)?, message.fds);
                return Ok(Answer::Value(NO_FD | said(begun, "the state cannot be moved")));
            }
            FrontendReq::CHECK_DEVICE_STATE => {
                return Ok(Answer::Value(said(self.check_state(), "the state was not moved")));
            }
            FrontendReq::GET_INFLIGHT_FD => return self.get_inflight(take(body)?),
            FrontendReq::SET_INFLIGHT_FD => self.set_inflight(take(body)?, message.fds)?,
            _ => return Err("this was not offered".into()),
        }
        self.start()?;
        Ok(Answer::Done)
    }

    /// Starts each queue that has become complete.
    fn start(&mut self) -> Result<(), Refused> {
        if self.vrings.iter().any(Vring::is_complete) {
            self.give_up("another one starts");
        }
        for (index, vring) in self.vrings.iter_mut().enumerate() {
            vring
                .start(index, self.features, self.area.as_ref(), &self.with)
                .map_err(|error| format!("queue {index} cannot start: {error}"))?;
        }
        Ok(())
    }

    /// The VMM that went away will not come back.
    fn give_up(&mut self, why: &str) {
        if let Some(away) = self.away.take() {
            away.end(&self.with.server, why);
        }
    }

    fn vring(&mut self, index: u32) -> Result<&mut Vring, Refused> {
        let queues = self.vrings.len();
        self.vrings.get_mut(index as usize).ok_or_else(|| {
            format!("queue {index} of {queues}: start with more --request-queues, or give the VMM fewer")
        })
    }

    fn set_features(&mut self, features: u64) -> Result<(), Refused> {
        if features & !self.features_offered() != 0 {
            return Err(format!("features {features:#x} were not offered"));
        }
        self.features = features;
        self.log_if_wanted();
        Ok(())
    }

    /// What a window maps is of this host: with one, nothing moves.
    fn features_offered(&self) -> u64 {
        let moves = if self.window.is_some() { 0 } else { LOG_ALL };
        self.identity.features() | PROTOCOL_FEATURES_BIT | moves
    }

    fn must_have(&self, feature: VhostUserProtocolFeatures) -> Result<(), Refused> {
        if self.has(feature) { Ok(()) } else { Err(format!("{feature:?} was not negotiated")) }
    }

    fn halt_window(&self) {
        if let Some(window) = &self.window {
            window.halt();
        }
    }

    /// Queues may have stopped at a request that waited for this.
    fn resume_window(&self) {
        if self.window.as_ref().is_some_and(|window| window.resume()) {
            self.vrings.iter().for_each(Vring::refresh);
        }
    }

    fn reset(&mut self) {
        self.vrings.iter().for_each(Vring::abandon);
        self.halt();
        self.vrings = (0..self.identity.most_queues()).map(|_| Vring::default()).collect();
        if let Some(area) = &self.area {
            area.clear();
        }
        self.give_up("it is reset");
        self.with.server.reset();
    }

    /// Stops all queues, with what is in flight answered.
    pub(super) fn halt(&mut self) {
        self.halt_window();
        self.vrings.iter_mut().for_each(Vring::halt);
        let pages = self.with.memory.load().lost();
        if pages > 0 {
            tracing::warn!(
                pages,
                "the VMM has shortened the memory that it shares: what was missing was taken for zeros"
            );
        }
    }

    /// A VMM may ask for a byte at a time, or for more than there is: what is not there reads as zeros.
    fn get_config(&self, mut body: Vec<u8>) -> Result<Answer, Refused> {
        let ([offset, size, _flags], _): ([u32; 3], _) = prefix(&body)?;
        const HEAD: usize = size_of::<[u32; 3]>();
        let Some(room) = body.get_mut(HEAD..) else { return Err("it has no room".into()) };
        if room.len() < size as usize {
            return Err(format!("{size} bytes of configuration do not fit into {}", room.len()));
        }
        let space: [u8; CONFIG_SIZE] = self.identity.config_space();
        let from = space.get(offset as usize..).unwrap_or(&[]);
        room.fill(0);
        for (to, from) in room.iter_mut().take(size as usize).zip(from) {
            *to = *from;
        }
        Ok(Answer::Bytes(body))
    }

    /// The table says how many regions it has; a body longer than that is what User-Mode Linux sends.
    fn set_mem_table(&mut self, body: &[u8], fds: Vec<OwnedFd>) -> Result<(), Refused> {
        let ([count, _], mut rest): ([u32; 2], &[u8]) = prefix(body)?;
        if count as usize != fds.len() {
            return Err(format!("{count} regions came with {} descriptors", fds.len()));
        }
        let (mut regions, mut window_at) = (Vec::new(), None);
        for fd in fds {
            let (fields, behind) = prefix::<[u64; 4]>(rest)?;
            let region = region(fields, fd);
            let ours =
                self.window.as_ref().and_then(|window| window.offset_of(&region.file, region.offset, region.size));
            match ours {
                // A mapping of ours, and so a sign of where the guest has its window. It is never touched here.
                Some(offset) => window_at = region.guest_address.checked_sub(offset),
                None => regions.push(region),
            }
            rest = behind;
        }
        let before = self.with.memory.load();
        let mut memory = before.replaced_by(regions).map_err(|error| error.to_string())?;
        if let (Some(start), Some(window)) = (window_at, &self.window)
            && let remote = Arc::clone(window) as Arc<dyn Remote>
            && before.remote_start(&remote) != window_at
        {
            let same = || Memory::clone(&before);
            memory = Some(memory.unwrap_or_else(same).with_remote(start, window.size(), remote));
        }
        if let Some(memory) = memory {
            self.store(memory);
        }
        Ok(())
    }

    fn add_mem_reg(&mut self, body: &[u8], fds: Vec<OwnedFd>) -> Result<(), Refused> {
        let (_padding, fields): (u64, [u64; 4]) = take_two(body)?;
        let fd = one(fds)?;
        let memory = self.with.memory.load();
        if memory.regions() as u64 >= MEMORY_SLOTS {
            return Err(format!("{MEMORY_SLOTS} memory regions are the most"));
        }
        let memory = memory.with(region(fields, fd)).map_err(|error| error.to_string())?;
        self.store(memory);
        Ok(())
    }

    fn rem_mem_reg(&mut self, body: &[u8]) -> Result<(), Refused> {
        let (_padding, [guest_address, size, ..]): (u64, [u64; 4]) = take_two(body)?;
        let memory = self.with.memory.load().without(guest_address, size).map_err(|error| error.to_string())?;
        self.store(memory);
        Ok(())
    }

    fn store(&mut self, memory: Memory) {
        tracing::debug!(regions = memory.regions(), bytes = memory.size(), "guest memory");
        self.with.memory.store(memory);
        self.vrings.iter().for_each(Vring::refresh);
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        self.vrings.iter().for_each(Vring::abandon);
        self.halt();
    }
}

/// Whether the VMM waits for a reply of the request's own, whatever was negotiated.
fn has_reply(request: FrontendReq) -> bool {
    matches!(
        request,
        FrontendReq::GET_FEATURES
            | FrontendReq::GET_PROTOCOL_FEATURES
            | FrontendReq::GET_QUEUE_NUM
            | FrontendReq::GET_VRING_BASE
            | FrontendReq::GET_CONFIG
            | FrontendReq::GET_MAX_MEM_SLOTS
            | FrontendReq::GET_INFLIGHT_FD
            | FrontendReq::GET_SHMEM_CONFIG
            | FrontendReq::SET_LOG_BASE
    )
}

fn settled(done: bool, what: impl FnOnce() -> String) -> Result<(), Refused> {
    if done { Ok(()) } else { Err(format!("{} cannot be had", what())) }
}

fn region([guest_address, size, user_address, offset]: [u64; 4], fd: OwnedFd) -> Region {
    Region { guest_address, size, user_address, file: File::from(fd), offset }
}

fn prefix<T: FromBytes>(body: &[u8]) -> Result<(T, &[u8]), Refused> {
    T::read_from_prefix(body).map_err(|_| format!("a body of {} bytes is too short", body.len()))
}

fn take<T: FromBytes>(body: &[u8]) -> Result<T, Refused> {
    prefix(body).map(|(value, _)| value)
}

fn take_two<A: FromBytes, B: FromBytes>(body: &[u8]) -> Result<(A, B), Refused> {
    let (first, rest) = prefix(body)?;
    Ok((first, take(rest)?))
}

fn one(mut fds: Vec<OwnedFd>) -> Result<OwnedFd, Refused> {
    match (fds.pop(), fds.is_empty()) {
        (Some(fd), true) => Ok(fd),
        _ => Err("it takes exactly one descriptor".into()),
    }
}

/// Queue index and descriptor of SET_VRING_KICK, CALL and ERR: bit 8 says that there is none.
fn event(body: &[u8], fds: Vec<OwnedFd>) -> Result<(u32, Option<Event>), Refused> {
    const INDEX: u64 = 0xff;
    const NO_FD: u64 = 1 << 8;
    let word: u64 = take(body)?;
    let event = match word & NO_FD {
        0 => Some(Event::from_fd(one(fds)?).map_err(|error| error.to_string())?),
        _ => None,
    };
    Ok(((word & INDEX) as u32, event))
}
