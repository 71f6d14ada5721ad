//! What no honest driver does: requests, descriptors, ring entries and indices of the caller's own making.

use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use parking_lot::MutexGuard;
use virtiofs_fuse::wire::InHeader;
use zerocopy::IntoBytes;

use crate::channel::{Channel, Inner, Outgoing};
use crate::check::OUT_HEADER;
use crate::memory::PAGE;
use crate::ring::Descriptor;
use crate::signal::Woken;
use crate::slot::REPLY_MAX;
use crate::{Client, Error, Result};

/// The answer to a request that was sent as raw bytes.
#[derive(Clone, Debug)]
pub struct RawReply {
    /// Length that the device reported in the used ring.
    pub used: u32,
    /// As many bytes of the reply, header included, as `used` says and as there was room for.
    pub bytes: Vec<u8>,
}

/// One request for [`Client::raw`].
#[derive(Clone, Copy, Debug, Default)]
pub struct RawRequest<'a> {
    /// Any number.
    pub opcode: u32,
    /// Any node.
    pub nodeid: u64,
    /// What follows the header: arguments and names.
    pub body: &'a [&'a [u8]],
    /// What follows that, in data pages.
    pub data: &'a [u8],
    /// Room for the reply behind its header, in bytes; `None`: no writable descriptor at all.
    pub room: Option<usize>,
    /// `total_extlen` of the header.
    pub extlen: u16,
    /// Send it on the hiprio queue.
    pub hiprio: bool,
    /// Number of the request, or `None` for the next one.
    pub unique: Option<u64>,
    /// `len` of the header, or `None` for the truth.
    pub len: Option<u32>,
}

/// A queue in the hands of one thread that writes its rings itself. The client's own requests take another one meanwhile; where there
/// is none, they wait until it is dropped.
///
/// Buffers are guest memory from [`RawQueue::buffer`], written and read through [`Client::memory`]. Dropping it puts the client's own
/// descriptors back; after [`RawQueue::set_available_index`] only [`Client::reboot`] makes the queue usable again.
#[derive(Debug)]
pub struct RawQueue<'a> {
    client: &'a Client,
    channel: &'a Channel,
    inner: MutexGuard<'a, Inner>,
}

impl Client {
    /// Sends a request with arguments of the caller's own making and takes whatever comes back, unchecked.
    pub fn raw(&self, request: &RawRequest<'_>) -> Result<RawReply> {
        let header = InHeader {
            len: request.len.unwrap_or(0),
            unique: request.unique.unwrap_or_else(|| self.number()),
            total_extlen: request.extlen,
            ..self.header(request.opcode, request.nodeid)
        };
        let room = request.room.unwrap_or(0);
        let in_struct = room.min(REPLY_MAX);
        let outgoing = Outgoing {
            header,
            args: request.body,
            data: request.data,
            reply: in_struct,
            data_out: room - in_struct,
            wants_reply: request.room.is_some(),
            size_only: false,
            wipe: true,
        };
        let channel = if request.hiprio { &self.hiprio } else { self.channel() };
        channel.call(&outgoing, |ring, slot, used| {
            let mut bytes = ring.reply_header(slot).to_vec();
            ring.reply_bytes(slot, (used as usize).saturating_sub(OUT_HEADER).min(room), &mut bytes);
            bytes.truncate(if request.room.is_some() { used as usize } else { 0 });
            RawReply { used, bytes }
        })
    }

    /// Takes the queue `index`: 0 is hiprio, requests begin at 1. `None` if there is no such queue.
    pub fn raw_queue(&self, index: usize) -> Option<RawQueue<'_>> {
        let channel = self.queue(index)?;
        let inner = channel.lock();
        channel.raw.store(true, Ordering::Relaxed);
        Some(RawQueue { client: self, channel, inner })
    }
}

impl RawQueue<'_> {
    /// Descriptors of the ring.
    pub fn size(&self) -> u16 {
        self.inner.ring.layout.size
    }

    /// Guest addresses of the descriptor table, the available ring and the used ring.
    pub fn addresses(&self) -> [u64; 3] {
        let ring = &self.inner.ring;
        [ring.descriptors, ring.avail, ring.used].map(|offset| ring.memory.address(offset))
    }

    /// Guest address of so many bytes that nobody else uses, page-aligned and in one piece.
    pub fn buffer(&self, len: usize) -> Result<u64> {
        let memory = self.client.memory();
        Ok(memory.address(memory.take(len.div_ceil(PAGE).max(1))?))
    }

    /// Writes a descriptor of the ring's own table.
    pub fn set(&mut self, index: u16, descriptor: Descriptor) -> Result<()> {
        let [table, _, _] = self.addresses();
        self.client.memory().write(table + 16 * u64::from(index % self.size()), descriptor.as_bytes())
    }

    /// Writes a chain from the ring's descriptor `first` on: (address, length, writable) each.
    pub fn set_chain(&mut self, first: u16, buffers: &[(u64, u32, bool)]) -> Result<()> {
        for (i, (k, &(address, len, writable))) in (first..).zip(buffers).enumerate() {
            let last = i + 1 == buffers.len();
            let flags = if last { 0 } else { Descriptor::NEXT } | if writable { Descriptor::WRITE } else { 0 };
            self.set(k, Descriptor { address, len, flags, next: if last { 0 } else { k + 1 } })?;
        }
        Ok(())
    }

    /// Makes a descriptor available, whatever number it has.
    pub fn offer(&mut self, head: u16) {
        self.inner.ring.offer(head);
    }

    /// Lies about how many entries the available ring has.
    pub fn set_available_index(&mut self, index: u16) -> Result<()> {
        let [_, available, _] = self.addresses();
        self.client.memory().write(available + 2, &index.to_le_bytes())
    }

    /// Kicks, whether the device wants to be or not.
    pub fn kick(&mut self) -> Result<()> {
        self.inner.ring.kick_always()
    }

    /// What the device returns within `patience`, up to `count` entries: descriptor number and length each.
    pub fn returned(&mut self, count: usize, patience: Duration) -> Result<Vec<(u32, u32)>> {
        let deadline = Instant::now() + patience;
        let mut found = Vec::new();
        while found.len() < count {
            if let Some(used) = self.inner.ring.take_used()? {
                found.push(used);
                continue;
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                break;
            }
            if !self.inner.ring.arm() && self.channel.waiter.wait(left)? == Woken::Gone {
                return Err(Error::gone("a raw request"));
            }
        }
        Ok(found)
    }
}

impl Drop for RawQueue<'_> {
    fn drop(&mut self) {
        self.inner.ring.take_back();
        self.channel.raw.store(false, Ordering::Relaxed);
    }
}
