//! What a driver settles with a device before it is served: queues and features.

use std::sync::Arc;

use virtiofs_virtqueue::{Event, RingConfig};

use crate::identity::{EVENT_IDX, VERSION_1};
use crate::{Call, DeviceError};

/// A queue as a driver set it up.
#[derive(Clone, Debug)]
pub struct QueueSetup {
    /// 0 is the hiprio queue, requests begin at 1; where the driver accepted VIRTIO_FS_F_NOTIFICATION, 1 is the queue of notifications and
    /// requests begin at 2.
    pub index: usize,
    /// Entries of the ring, a power of two.
    pub size: u16,
    /// Guest physical address of the descriptor table.
    pub desc: u64,
    /// Guest physical address of the available ring.
    pub avail: u64,
    /// Guest physical address of the used ring.
    pub used: u64,
    /// Index of the next available entry to take: 0 for a new ring.
    pub next: u16,
    /// By what the driver kicks; `None` for [`Device::notify`](crate::Device::notify) alone.
    pub kick: Option<Arc<Event>>,
    /// How the driver is interrupted; `None` for a driver that polls.
    pub call: Option<Call>,
}

impl QueueSetup {
    /// The ring behind it, for a driver that accepted these features.
    pub(crate) fn ring(&self, features: u64) -> RingConfig {
        let &QueueSetup { size, desc, avail, used, next, .. } = self;
        RingConfig { size, desc, avail, used, next_avail: next, event_idx: features & EVENT_IDX != 0 }
    }
}

/// Whether a driver may accept these features.
pub(crate) fn check_features(features: u64, offered: u64) -> Result<(), DeviceError> {
    if features & !offered != 0 {
        return Err(DeviceError::Features { refused: features & !offered, offered });
    }
    if features & VERSION_1 == 0 {
        return Err(DeviceError::Legacy);
    }
    Ok(())
}
