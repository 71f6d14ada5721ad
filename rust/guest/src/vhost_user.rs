//! The vhost-user front-end: what QEMU does between a socket and a guest.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use vhost::vhost_user::message::{
    FrontendReq, VhostUserConfig, VhostUserConfigFlags, VhostUserMemory, VhostUserMemoryRegion,
    VhostUserProtocolFeatures as Protocol, VhostUserSingleMemoryRegion, VhostUserVringAddr, VhostUserVringAddrFlags,
    VhostUserVringState,
};

use crate::connection::{Connection, bytes};
use crate::memory::{Memory, Region};
use crate::transport::{Config, Queue, Transport, feature};
use crate::window::{FrontEnd, Mapped};
use crate::{Error, Options, Result};
use virtiofs_coherence::View;

/// Protocol features that this front-end uses where the device has them.
const WANTED: Protocol = Protocol::MQ
    .union(Protocol::REPLY_ACK)
    .union(Protocol::CONFIG)
    .union(Protocol::RESET_DEVICE)
    .union(Protocol::CONFIGURE_MEM_SLOTS);

/// What a DAX window takes.
const WINDOW: Protocol = Protocol::SHMEM.union(Protocol::BACKEND_REQ).union(Protocol::BACKEND_SEND_FD);

/// Regions that SET_MEM_TABLE takes (vhost-user, "Memory regions description").
const TABLE_MAX: usize = 8;

/// A device behind a vhost-user socket.
#[derive(Debug)]
pub struct VhostUser {
    connection: Connection,
    features: u64,
    protocol: Protocol,
    by_bytes: bool,
    queues: Vec<u16>,
    /// Guest addresses of the regions that the device was given one by one: it keeps them when it is stopped.
    given: Vec<u64>,
    front_end: Option<FrontEnd>,
    /// Protocol features to use where the device has them.
    wanted: Protocol,
    /// Memory that is kept for the device, and how it described that.
    inflight: Option<(OwnedFd, Vec<u8>)>,
}

/// Body of GET_INFLIGHT_FD: nothing is known of sizes yet.
fn inflight(queues: usize, queue_size: u16) -> Vec<u8> {
    let mut body = vec![0; 16];
    body.extend((queues as u16).to_ne_bytes());
    body.extend(queue_size.to_ne_bytes());
    body
}

impl VhostUser {
    /// Negotiates as far as QEMU does before its guest's driver looks at the device: features and protocol features (less those in
    /// `Options::without_protocol_features`), queue number, ownership, the DAX window.
    pub fn new(connection: Connection, options: &Options) -> Result<VhostUser> {
        let mut wanted = if options.dax || options.find_versions { WANTED.union(WINDOW) } else { WANTED };
        wanted.set(Protocol::INFLIGHT_SHMFD, options.reconnects);
        let mut ours = VhostUser {
            connection,
            features: 0,
            protocol: Protocol::empty(),
            by_bytes: options.config_by_bytes,
            queues: Vec::new(),
            given: Vec::new(),
            front_end: None,
            wanted: wanted.difference(Protocol::from_bits_truncate(options.without_protocol_features)),
            inflight: None,
        };
        ours.negotiate()?;
        if ours.protocol.contains(WINDOW) {
            ours.front_end = FrontEnd::connect(&ours.connection, options.whole_pages)?;
        }
        Ok(ours)
    }

    fn negotiate(&mut self) -> Result<()> {
        self.features = self.connection.ask_number(FrontendReq::GET_FEATURES)?;
        self.protocol = Protocol::empty();
        if self.features & feature::PROTOCOL_FEATURES != 0 {
            let offered = self.connection.ask_number(FrontendReq::GET_PROTOCOL_FEATURES)?;
            self.protocol = Protocol::from_bits_truncate(offered).intersection(self.wanted);
            let request = FrontendReq::SET_PROTOCOL_FEATURES as u32;
            self.connection.send(request, 0, &self.protocol.bits().to_ne_bytes(), &[])?;
            self.connection.acks = self.protocol.contains(Protocol::REPLY_ACK);
        }
        self.connection.tell(FrontendReq::SET_OWNER, &[], &[])
    }

    /// Takes memory for what is in flight, if the device wants that, and shows what it was given before.
    fn set_inflight(&mut self, queues: &[Queue]) -> Result<()> {
        if !self.has(Protocol::INFLIGHT_SHMFD) {
            return Ok(());
        }
        let (fd, body) = match self.inflight.take() {
            Some(known) => known,
            None => {
                let size = queues.iter().map(|queue| queue.size).max().unwrap_or(0);
                let count = queues.iter().map(|queue| usize::from(queue.index) + 1).max().unwrap_or(0);
                let mut reply = self.connection.ask(FrontendReq::GET_INFLIGHT_FD, &inflight(count, size), &[])?;
                let fd = reply.fds.pop().ok_or_else(|| Error::Protocol("GET_INFLIGHT_FD brings nothing".into()))?;
                (fd, reply.payload)
            }
        };
        self.connection.tell(FrontendReq::SET_INFLIGHT_FD, &body, &[fd.as_fd()])?;
        self.inflight = Some((fd, body));
        Ok(())
    }

    /// The protocol features in use.
    pub fn protocol_features(&self) -> u64 {
        self.protocol.bits()
    }

    fn has(&self, feature: Protocol) -> bool {
        self.protocol.contains(feature)
    }

    fn read_config(&self, offset: usize, out: &mut [u8]) -> Result<()> {
        let asked = VhostUserConfig::new(offset as u32, out.len() as u32, VhostUserConfigFlags::empty());
        let mut payload = bytes(&asked).to_vec();
        payload.resize(payload.len() + out.len(), 0);
        let reply = self.connection.ask(FrontendReq::GET_CONFIG, &payload, &[])?;
        match reply.payload.get(size_of::<VhostUserConfig>()..) {
            Some(content) if content.len() == out.len() => {
                out.copy_from_slice(content);
                Ok(())
            }
            _ => Err(Error::Protocol(format!(
                "{} bytes answer a GET_CONFIG of {} at {offset}",
                reply.payload.len(),
                out.len()
            ))),
        }
    }

    /// Sends the whole table of regions.
    pub fn set_mem_table(&self, regions: &[Region]) -> Result<()> {
        let mut payload = bytes(&VhostUserMemory::new(regions.len() as u32)).to_vec();
        for region in regions {
            payload.extend(bytes(&described(region)));
        }
        let fds: Vec<_> = regions.iter().map(Region::fd).collect();
        self.connection.tell(FrontendReq::SET_MEM_TABLE, &payload, &fds)
    }

    fn single(&self, request: FrontendReq, region: &Region) -> Result<()> {
        let one = VhostUserSingleMemoryRegion::new(region.address, region.size, region.host, region.file_offset);
        self.connection.tell(request, bytes(&one), &[region.fd()])
    }

    fn vring(&self, request: FrontendReq, index: u16, number: u32) -> Result<()> {
        self.connection.tell(request, bytes(&VhostUserVringState::new(u32::from(index), number)), &[])
    }

    fn vring_fd(&self, request: FrontendReq, index: u16, fd: BorrowedFd<'_>) -> Result<()> {
        self.connection.tell(request, &u64::from(index).to_ne_bytes(), &[fd])
    }

    fn enable(&self, on: bool) -> Result<()> {
        if self.features & feature::PROTOCOL_FEATURES != 0 {
            for index in &self.queues {
                self.vring(FrontendReq::SET_VRING_ENABLE, *index, u32::from(on))?;
            }
        }
        Ok(())
    }
}

fn described(region: &Region) -> VhostUserMemoryRegion {
    VhostUserMemoryRegion::new(region.address, region.size, region.host, region.file_offset)
}

impl Transport for VhostUser {
    fn features(&mut self) -> Result<u64> {
        Ok(self.features)
    }

    fn config(&mut self) -> Result<Option<Config>> {
        if !self.has(Protocol::CONFIG) {
            return Ok(None);
        }
        let mut space = [0; Config::SIZE];
        let step = if self.by_bytes { 1 } else { Config::SIZE };
        for (i, piece) in space.chunks_mut(step).enumerate() {
            self.read_config(i * step, piece)?;
        }
        Ok(Some(Config::parse(&space)))
    }

    fn notify_buf_size(&mut self) -> Result<u32> {
        let mut size = [0; 4];
        self.read_config(Config::SIZE, &mut size)?;
        Ok(u32::from_le_bytes(size))
    }

    fn queue_limit(&mut self) -> Result<Option<u64>> {
        match self.has(Protocol::MQ) {
            true => self.connection.ask_number(FrontendReq::GET_QUEUE_NUM).map(Some),
            false => Ok(None),
        }
    }

    fn start(&mut self, features: u64, memory: &Memory, queues: &[Queue]) -> Result<()> {
        let accepted = features | self.features & feature::PROTOCOL_FEATURES;
        self.connection.tell(FrontendReq::SET_FEATURES, &accepted.to_ne_bytes(), &[])?;
        let regions = memory.regions();
        if self.has(Protocol::CONFIGURE_MEM_SLOTS) {
            let slots = self.connection.ask_number(FrontendReq::GET_MAX_MEM_SLOTS)?;
            if regions.len() as u64 > slots {
                return Err(Error::Protocol(format!("the device takes {slots} memory regions, not {}", regions.len())));
            }
            let new = regions.iter().filter(|region| !self.given.contains(&region.address));
            new.clone().try_for_each(|region| self.single(FrontendReq::ADD_MEM_REG, region))?;
            self.given = regions.iter().map(|region| region.address).collect();
        } else if regions.len() > TABLE_MAX {
            return Err(Error::Protocol(format!("{} memory regions do not fit into one message", regions.len())));
        } else {
            self.set_mem_table(&regions)?;
        }
        self.queues = queues.iter().map(|queue| queue.index).collect();
        self.set_inflight(queues)?;
        for queue in queues {
            let host = |address| to_host(&regions, address);
            let address = VhostUserVringAddr::new(
                u32::from(queue.index),
                VhostUserVringAddrFlags::empty(),
                host(queue.descriptors),
                host(queue.used),
                host(queue.available),
                0,
            );
            self.vring(FrontendReq::SET_VRING_NUM, queue.index, u32::from(queue.size))?;
            self.vring(FrontendReq::SET_VRING_BASE, queue.index, u32::from(queue.base))?;
            self.connection.tell(FrontendReq::SET_VRING_ADDR, bytes(&address), &[])?;
            self.vring_fd(FrontendReq::SET_VRING_KICK, queue.index, queue.kick.0.as_fd())?;
            self.vring_fd(FrontendReq::SET_VRING_CALL, queue.index, queue.call.as_fd())?;
        }
        self.enable(true)
    }

    fn add_region(&mut self, memory: &Memory, region: &Region) -> Result<()> {
        match self.has(Protocol::CONFIGURE_MEM_SLOTS) {
            true => {
                self.single(FrontendReq::ADD_MEM_REG, region)?;
                self.given.push(region.address);
                Ok(())
            }
            false => self.set_mem_table(&memory.regions()),
        }
    }

    fn remove_region(&mut self, region: &Region) -> Result<()> {
        match self.has(Protocol::CONFIGURE_MEM_SLOTS) {
            true => {
                self.single(FrontendReq::REM_MEM_REG, region)?;
                self.given.retain(|address| *address != region.address);
                Ok(())
            }
            false => Err(Error::Protocol("the device cannot take single regions away".into())),
        }
    }

    fn stop(&mut self) -> Result<Vec<u16>> {
        self.enable(false)?;
        let queues = std::mem::take(&mut self.queues);
        let base = |index: &u16| {
            let state = VhostUserVringState::new(u32::from(*index), 0);
            let reply = self.connection.ask(FrontendReq::GET_VRING_BASE, bytes(&state), &[])?;
            let number = reply.payload.get(4..8).and_then(|b| b.try_into().ok()).map(u32::from_ne_bytes);
            let number = number.and_then(|number| u16::try_from(number).ok());
            number.ok_or_else(|| Error::Protocol(format!("the device answers GET_VRING_BASE with {:?}", reply.payload)))
        };
        queues.iter().map(base).collect()
    }

    fn reconnect(&mut self, connection: Connection) -> Result<()> {
        self.connection = connection;
        self.given.clear();
        self.queues.clear();
        self.negotiate()
    }

    fn reset(&mut self) -> Result<bool> {
        if !self.has(Protocol::RESET_DEVICE) {
            return Ok(false);
        }
        self.connection.tell(FrontendReq::RESET_DEVICE, &[], &[])?;
        self.queues.clear();
        Ok(true)
    }

    fn window(&self) -> Option<Arc<Mapped>> {
        self.front_end.as_ref().map(|front_end| Arc::clone(front_end.window()))
    }

    fn versions(&self) -> Option<Arc<View>> {
        self.front_end.as_ref()?.versions()
    }

    fn peer(&self) -> Option<u32> {
        self.connection.peer()
    }

    fn connection(&self) -> Option<&Connection> {
        Some(&self.connection)
    }

    fn life(&self) -> Option<BorrowedFd<'_>> {
        Some(self.connection.as_fd())
    }
}

/// vhost-user names rings by where they are mapped in the front-end.
fn to_host(regions: &[Region], address: u64) -> u64 {
    let inside = |r: &&Region| address >= r.address && address - r.address < r.size;
    regions.iter().find(inside).map_or(0, |r| r.host + (address - r.address))
}
