//! What the device says of itself: device id, feature bits, configuration space.

use virtio_bindings::virtio_config::VIRTIO_F_VERSION_1;
use virtio_bindings::virtio_ring::{VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC};

/// Device id of a file system device.
pub const VIRTIO_ID_FS: u32 = 26;
/// Longest tag in bytes.
pub const TAG_MAX: usize = 36;
/// Bytes of configuration space: `tag[36]` and `le32 num_request_queues`.
pub const CONFIG_SIZE: usize = TAG_MAX + 4;
/// Queue that carries FORGET and nothing else; requests come on the queues behind it.
pub const HIPRIO_QUEUE: usize = 0;
/// Most request queues that a device may have here: vhost-user counts all queues in 8 bits.
pub const REQUEST_QUEUES_MAX: u16 = 255;
/// Largest ring that a driver may set up.
pub const QUEUE_SIZE_MAX: u16 = 32768;

/// virtio feature bits that every device offers.
pub const FEATURES: u64 = VERSION_1 | 1 << VIRTIO_RING_F_INDIRECT_DESC | 1 << VIRTIO_RING_F_EVENT_IDX;
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

/// Tag and number of request queues.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    tag: String,
    request_queues: u16,
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
        Ok(Identity { tag: tag.to_owned(), request_queues })
    }

    /// The name by which the guest mounts the share.
    pub fn tag(&self) -> &str {
        &self.tag
    }

    /// Number of request queues.
    pub fn request_queues(&self) -> u16 {
        self.request_queues
    }

    /// Number of all queues, hiprio included.
    pub fn queues(&self) -> usize {
        1 + usize::from(self.request_queues)
    }

    /// The configuration space.
    pub fn config_space(&self) -> [u8; CONFIG_SIZE] {
        let mut space = [0; CONFIG_SIZE];
        let (tag, queues) = space.split_at_mut(TAG_MAX);
        for (to, from) in tag.iter_mut().zip(self.tag.bytes()) {
            *to = from;
        }
        queues.copy_from_slice(&u32::from(self.request_queues).to_le_bytes());
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
        assert_eq!(space[36..], [3, 0, 0, 0]);
        assert_eq!(Identity::new("a", 1).unwrap().config_space()[1..36], [0; 35]);
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
