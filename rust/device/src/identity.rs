//! What the device says of itself: device id, feature bits, configuration space.

use virtio_bindings::virtio_config::VIRTIO_F_VERSION_1;
use virtio_bindings::virtio_ring::{VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC};

use crate::news::MESSAGE_MAX;

/// Device id of a file system device.
pub const VIRTIO_ID_FS: u32 = 26;
/// Longest tag in bytes.
pub const TAG_MAX: usize = 36;
/// Bytes of configuration space: `tag[36]`, `le32 num_request_queues` and `le32 notify_buf_size`, which is 0 where there is no such queue.
pub const CONFIG_SIZE: usize = TAG_MAX + 8;
/// Queue that carries FORGET and nothing else; requests come on the queues behind it.
pub const HIPRIO_QUEUE: usize = 0;
/// Queue of notifications where the driver accepted [`NOTIFICATION`]; requests begin behind it then.
pub const NOTIFICATION_QUEUE: usize = 1;
/// Most request queues that a device may have here: vhost-user counts all queues in 8 bits.
pub const REQUEST_QUEUES_MAX: u16 = 255;
/// Largest ring that a driver may set up.
pub const QUEUE_SIZE_MAX: u16 = 32768;

/// virtio feature bits that every device offers.
pub const FEATURES: u64 = VERSION_1 | 1 << VIRTIO_RING_F_INDIRECT_DESC | 1 << VIRTIO_RING_F_EVENT_IDX;
/// VIRTIO_FS_F_NOTIFICATION as a mask. Linux accepts it not.
pub const NOTIFICATION: u64 = 1;
/// VIRTIO_F_VERSION_1 as a mask.
pub const VERSION_1: u64 = 1 << VIRTIO_F_VERSION_1;
/// VIRTIO_F_RING_EVENT_IDX as a mask.
pub const EVENT_IDX: u64 = 1 << VIRTIO_RING_F_EVENT_IDX;

/// Why an identity was refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[allow(missing_docs)]
pub enum InvalidIdentity {
    #[error("the tag is empty: give the guest a name to mount, 1 to 36 bytes long")]
    EmptyTag,
    #[error("the tag has {0} bytes: 36 is the most that a virtio-fs device can carry")]
    LongTag(usize),
    #[error("the tag holds a newline or a NUL, which a guest cannot mount: use printable characters")]
    UnmountableTag,
    #[error("{0} request queues: choose 1 to 255")]
    RequestQueues(u16),
}

/// Tag, number of request queues, and whether there is a queue of notifications.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    tag: String,
    request_queues: u16,
    notifies: bool,
}

impl Identity {
    /// Checks what a Linux guest would refuse (`fs/fuse/virtio_fs.c`, `virtio_fs_read_tag`).
    pub fn new(tag: &str, request_queues: u16) -> Result<Identity, InvalidIdentity> {
        match tag.len() {
            0 => return Err(InvalidIdentity::EmptyTag),
            1..=TAG_MAX => {}
            long => return Err(InvalidIdentity::LongTag(long)),
        }
        if tag.contains(['\n', '\0']) {
            return Err(InvalidIdentity::UnmountableTag);
        }
        if request_queues == 0 || request_queues > REQUEST_QUEUES_MAX {
            return Err(InvalidIdentity::RequestQueues(request_queues));
        }
        Ok(Identity { tag: tag.to_owned(), request_queues, notifies: false })
    }

    /// The same with a queue of notifications, for drivers that take it.
    pub fn notifying(self) -> Identity {
        Identity { notifies: true, ..self }
    }

    /// Whether there is a queue of notifications.
    pub fn notifies(&self) -> bool {
        self.notifies
    }

    /// Feature bits that the device offers.
    pub fn features(&self) -> u64 {
        if self.notifies { FEATURES | NOTIFICATION } else { FEATURES }
    }

    /// The name by which the guest mounts the share.
    pub fn tag(&self) -> &str {
        &self.tag
    }

    /// Number of request queues.
    pub fn request_queues(&self) -> u16 {
        self.request_queues
    }

    /// Number of all queues, hiprio included, for a driver that accepted `features`.
    pub fn queues(&self, features: u64) -> usize {
        1 + usize::from(self.request_queues) + usize::from(features & NOTIFICATION != 0)
    }

    /// The most queues that a driver may set up.
    pub fn most_queues(&self) -> usize {
        self.queues(self.features())
    }

    /// The configuration space.
    pub fn config_space(&self) -> [u8; CONFIG_SIZE] {
        let mut space = [0; CONFIG_SIZE];
        let (tag, numbers) = space.split_at_mut(TAG_MAX);
        for (to, from) in tag.iter_mut().zip(self.tag.bytes()) {
            *to = from;
        }
        let message = if self.notifies { MESSAGE_MAX as u32 } else { 0 };
        for (to, from) in numbers.chunks_exact_mut(4).zip([u32::from(self.request_queues), message]) {
            to.copy_from_slice(&from.to_le_bytes());
        }
        space
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_tag_fills_its_36_bytes_without_a_nul_behind_it() {
        let tag = "x".repeat(36);
        let space = Identity::new(&tag, 3).unwrap().config_space();
        assert_eq!(space[..36], *tag.as_bytes());
        assert_eq!(space[36..], [3, 0, 0, 0, 0, 0, 0, 0]);
        assert_eq!(Identity::new("a", 1).unwrap().config_space()[1..36], [0; 35]);
    }

    #[test]
    fn a_queue_of_notifications_is_there_when_it_is_negotiated() {
        let plain = Identity::new("a", 2).unwrap();
        assert_eq!((plain.features(), plain.most_queues()), (FEATURES, 3));
        let identity = plain.notifying();
        assert_eq!((identity.queues(FEATURES), identity.queues(FEATURES | NOTIFICATION)), (3, 4));
        assert_eq!((identity.features(), identity.most_queues()), (FEATURES | 1, 4));
        assert_eq!(identity.config_space()[36..], [2, 0, 0, 0, 40, 1, 0, 0]);
    }

    #[test]
    fn what_no_guest_can_mount_is_refused() {
        assert_eq!(Identity::new("", 1), Err(InvalidIdentity::EmptyTag));
        assert_eq!(Identity::new(&"é".repeat(19), 1), Err(InvalidIdentity::LongTag(38)));
        assert_eq!(Identity::new("a\nb", 1), Err(InvalidIdentity::UnmountableTag));
        assert_eq!(Identity::new("a", 0), Err(InvalidIdentity::RequestQueues(0)));
        assert_eq!(Identity::new("a", 256), Err(InvalidIdentity::RequestQueues(256)));
    }
}
