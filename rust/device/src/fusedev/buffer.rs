// UNSAFETY: a request goes to another thread together with the iovecs that were last lent from it, and pointers are not Send.
#![allow(unsafe_code)]
//! The memory of one request from /dev/fuse and of its reply.

use std::io::IoSlice;

use parking_lot::Mutex;
use virtiofs_fuse::wire::{ForgetIn, InHeader, InterruptIn, OutHeader, WriteIn, XATTR_MAX};
use virtiofs_fuse::{Malformed, Message, Opcode, Segments};
use zerocopy::FromBytes;

const PAGE: usize = 4096;
/// What comes before the data of a WRITE.
const WRITE_HEAD: usize = size_of::<InHeader>() + size_of::<WriteIn>();
const REPLY_HEAD: usize = size_of::<OutHeader>();
/// An extended attribute goes both ways whole, whatever `max_write` says.
const LEAST: usize = XATTR_MAX + PAGE;

/// One request, as the server reads and answers it.
///
/// The data of a WRITE and those of a READ begin on a page, so that O_DIRECT works on the host as well. Memory that no request has
/// touched takes no room.
#[derive(Debug)]
pub(crate) struct Buffer {
    request: Box<[u8]>,
    /// Where a request begins: [`WRITE_HEAD`] before a page.
    start: usize,
    len: usize,
    taken: usize,
    head: [u8; REPLY_HEAD],
    reply: Box<[u8]>,
    /// Where a reply's data begin: on a page.
    data: usize,
    lent: [libc::iovec; 2],
}

const NOTHING: libc::iovec = libc::iovec { iov_base: std::ptr::null_mut(), iov_len: 0 };

// SAFETY: `lent` is only looked at through the borrow of the buffer that filled it, and points into memory that the buffer owns and
// that belongs to no thread. The buffer itself is used by one thread at a time: nothing reads `lent` through `&self`.
unsafe impl Send for Buffer {}

impl Buffer {
    /// Room for WRITEs and READs of `max` bytes.
    fn new(max: usize) -> Buffer {
        let max = max.max(LEAST);
        let request = vec![0; max + 2 * PAGE].into_boxed_slice();
        let reply = vec![0; max + PAGE].into_boxed_slice();
        let (start, data) = (to_page(&request) + PAGE - WRITE_HEAD, to_page(&reply));
        Buffer { request, start, len: 0, taken: 0, head: [0; REPLY_HEAD], reply, data, lent: [NOTHING; 2] }
    }

    /// Room for the next request: as much as the kernel asks for (`fuse_dev_do_read`: the head and `max_write`, 8 KiB at least).
    pub(crate) fn receiver(&mut self) -> &mut [u8] {
        (self.len, self.taken) = (0, 0);
        self.request.get_mut(self.start..).unwrap_or_default()
    }

    /// A request of `len` bytes was received.
    pub(crate) fn received(&mut self, len: usize) {
        self.len = len;
    }

    /// Back to the start of the request, to handle it again.
    pub(crate) fn rewind(&mut self) {
        self.taken = 0;
    }

    fn bytes(&self) -> &[u8] {
        self.request.get(self.start..self.start + self.len).unwrap_or_default()
    }

    /// The number of the request.
    pub(crate) fn unique(&self) -> u64 {
        InHeader::read_from_prefix(self.bytes()).map_or(0, |(header, _)| header.unique)
    }

    /// The number of the request that this one interrupts.
    pub(crate) fn interrupts(&self) -> Option<u64> {
        let (header, arguments) = InHeader::read_from_prefix(self.bytes()).ok()?;
        let (interrupt, _) = InterruptIn::read_from_prefix(arguments).ok()?;
        (header.opcode == Opcode::Interrupt as u32).then_some(interrupt.unique)
    }

    /// The reply's `len` bytes, for one writev(2).
    pub(crate) fn reply(&self, len: usize) -> [IoSlice<'_>; 2] {
        let data = len.saturating_sub(REPLY_HEAD);
        [IoSlice::new(&self.head), IoSlice::new(self.reply.get(self.data..self.data + data).unwrap_or_default())]
    }
}

/// Bytes from the start of `memory` to the first page in it.
fn to_page(memory: &[u8]) -> usize {
    let address = memory.as_ptr() as usize;
    address.next_multiple_of(PAGE) - address
}

impl Message for Buffer {
    fn remaining(&self) -> usize {
        self.len - self.taken
    }

    fn take(&mut self, buf: &mut [u8]) -> Result<(), Malformed> {
        let from = self.bytes().get(self.taken..).and_then(|rest| rest.get(..buf.len())).ok_or(Malformed)?;
        buf.copy_from_slice(from);
        self.taken += buf.len();
        Ok(())
    }

    fn take_segments(&mut self, len: usize) -> Result<Segments<'_>, Malformed> {
        let at = self.start + self.taken;
        let end = at.checked_add(len).filter(|end| *end <= self.start + self.len).ok_or(Malformed)?;
        let data = self.request.get_mut(at..end).ok_or(Malformed)?;
        self.taken += len;
        self.lent = [libc::iovec { iov_base: data.as_mut_ptr().cast(), iov_len: len }, NOTHING];
        Ok(Segments::new(self.lent.get(..1).unwrap_or_default(), len))
    }

    fn room(&self) -> usize {
        REPLY_HEAD + self.reply.len() - self.data
    }

    fn put(&mut self, offset: usize, bytes: &[u8]) -> Result<(), Malformed> {
        if offset.checked_add(bytes.len()).is_none_or(|end| end > self.room()) {
            return Err(Malformed);
        }
        let (head, data) = bytes.split_at(bytes.len().min(REPLY_HEAD.saturating_sub(offset)));
        if !head.is_empty() {
            self.head.get_mut(offset..offset + head.len()).ok_or(Malformed)?.copy_from_slice(head);
        }
        let at = self.data + (offset + head.len()).saturating_sub(REPLY_HEAD);
        self.reply.get_mut(at..at + data.len()).ok_or(Malformed)?.copy_from_slice(data);
        Ok(())
    }

    fn put_segments(&mut self, offset: usize, len: usize) -> Result<Segments<'_>, Malformed> {
        if offset.checked_add(len).is_none_or(|end| end > self.room()) {
            return Err(Malformed);
        }
        let head = len.min(REPLY_HEAD.saturating_sub(offset));
        let at = self.data + (offset + head).saturating_sub(REPLY_HEAD);
        let first = self.head.get_mut(offset.min(REPLY_HEAD)..).ok_or(Malformed)?.as_mut_ptr();
        let second = self.reply.get_mut(at..at + len - head).ok_or(Malformed)?.as_mut_ptr();
        self.lent = [
            libc::iovec { iov_base: first.cast(), iov_len: head },
            libc::iovec { iov_base: second.cast(), iov_len: len - head },
        ];
        Ok(Segments::new(self.lent.get(usize::from(head == 0)..).unwrap_or_default(), len))
    }
}

/// Buffers that are free, so that no request has to make one.
#[derive(Debug)]
pub(crate) struct Buffers {
    free: Mutex<Vec<Buffer>>,
    keep: usize,
    max: usize,
}

impl Buffers {
    /// Keeps up to `keep` free buffers for transfers of `max` bytes.
    pub(crate) fn new(keep: usize, max: usize) -> Buffers {
        Buffers { free: Mutex::default(), keep, max }
    }

    pub(crate) fn get(&self) -> Buffer {
        let free = self.free.lock().pop();
        free.unwrap_or_else(|| Buffer::new(self.max))
    }

    pub(crate) fn put(&self, buffer: Buffer) {
        let mut free = self.free.lock();
        if free.len() < self.keep {
            free.push(buffer);
        }
    }
}

// What the kernel may send in one FORGET request fits any buffer.
const _: () = assert!(LEAST > 8192 && size_of::<ForgetIn>() == 8);

#[cfg(test)]
mod tests {
    use super::*;
    use zerocopy::IntoBytes;

    fn with(request: &[u8]) -> Buffer {
        let mut buffer = Buffer::new(1 << 16);
        buffer.receiver()[..request.len()].copy_from_slice(request);
        buffer.received(request.len());
        buffer
    }

    #[test]
    fn data_lie_on_pages_both_ways() {
        let mut buffer = with(&[7; WRITE_HEAD + 10_000]);
        buffer.take(&mut [0; WRITE_HEAD]).unwrap();
        let data = buffer.take_segments(10_000).unwrap();
        assert_eq!((data.iovecs().len(), data.iovecs()[0].iov_base as usize % PAGE), (1, 0));
        assert_eq!(buffer.remaining(), 0);
        let data = buffer.put_segments(REPLY_HEAD, 10_000).unwrap();
        assert_eq!((data.iovecs().len(), data.iovecs()[0].iov_base as usize % PAGE), (1, 0));
    }

    #[test]
    fn a_reply_is_one_stream_of_head_and_data() {
        let mut buffer = with(&[]);
        let bytes: Vec<u8> = (0..100).collect();
        buffer.put(0, &bytes).unwrap();
        buffer.put(10, &[200; 10]).unwrap();
        let [head, data] = buffer.reply(100);
        assert_eq!([&head[..10], &data[4..]].concat(), [&bytes[..10], &bytes[20..]].concat());
        assert_eq!([&head[10..], &data[..4]].concat(), [200; 10]);
        let lent = buffer.put_segments(10, 90).unwrap();
        assert_eq!(lent.iovecs().iter().map(|iovec| iovec.iov_len).collect::<Vec<_>>(), [6, 84]);
        let room = buffer.room();
        assert_eq!(buffer.put(room - 1, &[0; 2]), Err(Malformed));
        assert!(buffer.put_segments(room, 1).is_err() && buffer.put_segments(usize::MAX, 2).is_err());
    }

    #[test]
    fn no_more_is_taken_than_was_received() {
        let mut buffer = with(&[1; 50]);
        assert_eq!(buffer.take(&mut [0; 51]), Err(Malformed));
        assert!(buffer.take_segments(51).is_err() && buffer.take_segments(usize::MAX).is_err());
        buffer.take(&mut [0; 50]).unwrap();
        buffer.rewind();
        assert_eq!(buffer.remaining(), 50);
        assert_eq!(with(&[]).interrupts(), None);
        let header = InHeader { opcode: Opcode::Interrupt as u32, unique: 9, ..InHeader::default() };
        let interrupt = with(&[header.as_bytes(), InterruptIn { unique: 8 }.as_bytes()].concat());
        assert_eq!((interrupt.unique(), interrupt.interrupts()), (9, Some(8)));
    }
}
