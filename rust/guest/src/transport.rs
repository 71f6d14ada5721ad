//! How a driver reaches its device: one trait, so that the same client drives any transport.

use std::os::fd::{BorrowedFd, OwnedFd};
use std::sync::Arc;

use virtiofs_coherence::View;

use crate::connection::Connection;
use crate::memory::{Memory, Region};
use crate::signal::Bell;
use crate::window::Mapped;
use crate::{Error, Result};

/// Bits of the virtio feature word that this driver knows.
#[allow(missing_docs)]
pub mod feature {
    /// VIRTIO_FS_F_NOTIFICATION.
    pub const NOTIFICATION: u64 = 1 << 0;
    pub const INDIRECT_DESC: u64 = 1 << 28;
    pub const EVENT_IDX: u64 = 1 << 29;
    /// vhost-user's own bit: there are protocol features.
    pub const PROTOCOL_FEATURES: u64 = 1 << 30;
    pub const VERSION_1: u64 = 1 << 32;
}

/// The configuration space of a virtio-fs device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// Name of the share, without the padding.
    pub tag: Vec<u8>,
    /// Request queues that the device has.
    pub request_queues: u32,
}

impl Config {
    /// Bytes of `tag` and `num_request_queues` (virtio 1.3, 5.11.4).
    pub const SIZE: usize = 40;
    const TAG: usize = 36;

    pub(crate) fn parse(bytes: &[u8; Config::SIZE]) -> Config {
        let (tag, queues) = bytes.split_at(Config::TAG);
        let end = tag.iter().position(|byte| *byte == 0).unwrap_or(tag.len());
        Config {
            tag: tag.get(..end).unwrap_or(tag).to_vec(),
            request_queues: queues.try_into().map_or(0, u32::from_le_bytes),
        }
    }
}

/// A queue as it is handed to the device.
#[derive(Clone, Debug)]
pub struct Queue {
    /// 0 is the hiprio queue, requests begin at 1; or at 2, behind the queue of notifications.
    pub index: u16,
    /// Descriptors.
    pub size: u16,
    /// Guest addresses of the three parts.
    pub descriptors: u64,
    /// See `descriptors`.
    pub available: u64,
    /// See `descriptors`.
    pub used: u64,
    /// Position in the available ring to begin with.
    pub base: u16,
    /// The device waits on this for kicks, and the driver writes it.
    pub kick: (Arc<OwnedFd>, Arc<OwnedFd>),
    /// The device writes this to call the driver.
    pub call: Arc<OwnedFd>,
}

/// A way to a virtio-fs device: a vhost-user socket, registers, an object in this process.
///
/// Order of calls: `features`, `queue_limit` and `config` in any order; `start`; then any of the others; `stop`, after which
/// `start` may follow again.
pub trait Transport: Send {
    /// Feature bits that the device offers.
    fn features(&mut self) -> Result<u64>;

    /// The configuration space, or `None` where it cannot be read (an old vhost-user daemon).
    fn config(&mut self) -> Result<Option<Config>>;

    /// `notify_buf_size` of the configuration space. Only of a device that offers [`feature::NOTIFICATION`].
    fn notify_buf_size(&mut self) -> Result<u32> {
        Ok(0)
    }

    /// Queues that the device has at most, the hiprio queue included, or `None` if it does not say.
    fn queue_limit(&mut self) -> Result<Option<u64>>;

    /// Hands over memory and queues, and starts the device with the accepted `features`.
    fn start(&mut self, features: u64, memory: &Memory, queues: &[Queue]) -> Result<()>;

    /// How the queue `index` is kicked where it is not by its descriptor.
    fn bell(&self, _index: u16) -> Option<Bell> {
        None
    }

    /// Makes one more region known to a device that runs.
    fn add_region(&mut self, _memory: &Memory, _region: &Region) -> Result<()> {
        Err(Error::Protocol("this transport cannot add memory to a running device".into()))
    }

    /// Takes a region away from a device that runs.
    fn remove_region(&mut self, _region: &Region) -> Result<()> {
        Err(Error::Protocol("this transport cannot take memory from a running device".into()))
    }

    /// Stops the queues and answers, for each, where in the available ring the device stood; nothing if it does not say.
    fn stop(&mut self) -> Result<Vec<u16>>;

    /// Goes on with the device at the other end of another connection; [`Transport::start`] follows.
    fn reconnect(&mut self, _connection: Connection) -> Result<()> {
        Err(Error::Protocol("this transport has no connection to lose".into()))
    }

    /// Resets the device. False if it has no such request.
    fn reset(&mut self) -> Result<bool>;

    /// The device's DAX window, if it has one.
    fn window(&self) -> Option<Arc<Mapped>> {
        None
    }

    /// The device's version table, if it has one that the guest sees (shared memory region 1).
    fn versions(&self) -> Option<Arc<View>> {
        None
    }

    /// Process id of whoever serves the device, if it is another process.
    fn peer(&self) -> Option<u32> {
        None
    }

    /// The vhost-user socket beneath, for messages of the caller's own making.
    fn connection(&self) -> Option<&Connection> {
        None
    }

    /// A descriptor that hangs up when the device's process dies.
    fn life(&self) -> Option<BorrowedFd<'_>> {
        None
    }
}
