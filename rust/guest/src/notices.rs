//! The queue of notifications (virtio 1.3, 5.11.2), as a driver that takes it: empty buffers out, messages in.

use std::sync::atomic::{AtomicU64, Ordering};

use virtiofs_fuse::wire::{NotifyDeleteOut, NotifyInvalEntryOut, NotifyInvalInodeOut, OutHeader, notify};
use zerocopy::FromBytes;

use crate::channel::Channel;
use crate::memory::PAGE;
use crate::ring::{Descriptor, Layout, Ring};
use crate::slot::AREA_PAGES;
use crate::{Error, Framing, Result};

/// Buffers that the device has.
const BUFFERS: u16 = 32;

/// What the device tells unasked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Notice {
    /// The attributes of `node`, and `len` bytes of its data from `offset` on: all with `len` 0, none with a negative `offset`.
    Inode {
        /// Node id.
        node: u64,
        /// In bytes.
        offset: i64,
        /// In bytes.
        len: i64,
    },
    /// What `name` means in the directory `parent`.
    Entry {
        /// Node id.
        parent: u64,
        /// One component.
        name: Vec<u8>,
    },
    /// `name`, which was `child`, is gone from `parent`.
    Delete {
        /// Node id.
        parent: u64,
        /// Node id.
        child: u64,
        /// One component.
        name: Vec<u8>,
    },
    /// All names.
    Epoch,
}

/// The queue.
#[derive(Debug)]
pub(crate) struct Notices {
    pub(crate) channel: Channel,
    /// Bytes of each buffer: what the device wants (`notify_buf_size`).
    size: u32,
    taken: AtomicU64,
}

impl Notices {
    pub(crate) fn new(channel: Channel, size: u32) -> Result<Notices> {
        if (size as usize) < size_of::<OutHeader>() || size as usize > AREA_PAGES * PAGE {
            return Err(Error::Protocol(format!("the device wants buffers of {size} bytes for its notifications")));
        }
        Ok(Notices { channel, size, taken: AtomicU64::new(0) })
    }

    /// How the ring is laid out: nothing but the buffers.
    pub(crate) fn layout(size: u16, event_idx: bool) -> Layout {
        let slots = BUFFERS.min(size);
        Layout { size, slots, pages: 0, indirect: false, event_idx, contiguous: true, framing: Framing::Joined }
    }

    /// Gives all buffers to a device that has just started.
    pub(crate) fn fill(&self) -> Result<()> {
        let ring = &mut self.channel.lock().ring;
        for slot in 0..ring.layout.slots {
            let head = ring.head(slot);
            let address = ring.memory.address(ring.buffer(u32::from(head))?);
            let buffer = Descriptor { address, len: self.size, flags: Descriptor::WRITE, next: 0 };
            ring.memory.store_as(ring.descriptors + 16 * usize::from(head), &buffer);
            ring.offer(head);
        }
        ring.kick()
    }

    /// Takes what has come, and gives the buffers back.
    pub(crate) fn take(&self) -> Result<Vec<Notice>> {
        let ring = &mut self.channel.lock().ring;
        let mut found = Vec::new();
        while let Some((head, len)) = ring.take_used()? {
            let offset = ring.buffer(head)?;
            if len > self.size {
                return Err(Error::Protocol(format!("a notification of {len} bytes in a buffer of {}", self.size)));
            }
            let mut message = vec![0; len as usize];
            ring.memory.load(offset, &mut message);
            ring.offer(head as u16);
            found.push(parse(&message)?);
        }
        ring.kick()?;
        self.taken.fetch_add(found.len() as u64, Ordering::Relaxed);
        Ok(found)
    }

    /// How many came so far.
    pub(crate) fn taken(&self) -> u64 {
        self.taken.load(Ordering::Relaxed)
    }
}

impl Ring {
    /// Where the buffer is whose descriptor is `head`.
    fn buffer(&self, head: u32) -> Result<usize> {
        let stride = u32::from(self.layout.size / self.layout.slots);
        let slot = self.slots.get((head / stride) as usize).filter(|_| head.is_multiple_of(stride));
        slot.map(|slot| slot.area)
            .ok_or_else(|| Error::Protocol(format!("the device used descriptor {head}, which is no buffer")))
    }
}

fn parse(message: &[u8]) -> Result<Notice> {
    let wrong = || Error::Protocol(format!("{message:02x?} is no notification"));
    let (header, body) = OutHeader::read_from_prefix(message).map_err(|_| wrong())?;
    if header.unique != 0 || header.len as usize != message.len() {
        return Err(wrong());
    }
    let named = |bytes: &[u8], len: u32| match bytes.split_last() {
        Some((0, name)) if name.len() == len as usize && !name.contains(&0) => Ok(name.to_vec()),
        _ => Err(wrong()),
    };
    match header.error {
        notify::INVAL_INODE => {
            let out = NotifyInvalInodeOut::read_from_bytes(body).map_err(|_| wrong())?;
            Ok(Notice::Inode { node: out.ino, offset: out.off, len: out.len })
        }
        notify::INVAL_ENTRY => {
            let (out, name) = NotifyInvalEntryOut::read_from_prefix(body).map_err(|_| wrong())?;
            Ok(Notice::Entry { parent: out.parent, name: named(name, out.namelen)? })
        }
        notify::DELETE => {
            let (out, name) = NotifyDeleteOut::read_from_prefix(body).map_err(|_| wrong())?;
            Ok(Notice::Delete { parent: out.parent, child: out.child, name: named(name, out.namelen)? })
        }
        notify::INC_EPOCH if body.is_empty() => Ok(Notice::Epoch),
        _ => Err(wrong()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_notification_is_refused() {
        let epoch = [16, 0, 0, 0, 8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
        assert_eq!(parse(&epoch).unwrap(), Notice::Epoch);
        for (at, byte) in [(0, 17), (4, 9), (8, 1)] {
            let mut wrong = epoch;
            wrong[at] = byte;
            assert!(matches!(parse(&wrong), Err(Error::Protocol(_))), "{wrong:?}");
        }
        assert!(parse(&epoch[..15]).is_err() && parse(&[]).is_err());
        let mut entry = vec![34, 0, 0, 0, 3, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
        entry.extend([9, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, b'n', 0]);
        assert_eq!(parse(&entry).unwrap(), Notice::Entry { parent: 9, name: b"n".to_vec() });
        entry[24] = 2;
        assert!(parse(&entry).is_err(), "a name of another length");
    }
}
