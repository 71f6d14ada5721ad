//! Messages: in plain memory, and on a ring.

use virtiofs_fuse::wire::InHeader;
use virtiofs_fuse::{Malformed, Message, Opcode, Segments};
use virtiofs_virtqueue::Chain;
use zerocopy::IntoBytes;

/// A FUSE request: the header for `opcode`, and its arguments.
pub fn request(opcode: Opcode, arguments: &[u8]) -> Vec<u8> {
    let len = 40 + arguments.len() as u32;
    let header = InHeader { len, opcode: opcode as u32, unique: 2, nodeid: 1, ..InHeader::default() };
    [header.as_bytes(), arguments].concat()
}

/// A message in this process's own memory.
#[derive(Debug)]
pub struct Plain {
    request: Vec<u8>,
    at: usize,
    reply: Vec<u8>,
    lent: [libc::iovec; 1],
}

impl Plain {
    /// A request, and so many bytes for its reply.
    pub fn new(request: &[u8], room: usize) -> Plain {
        let nothing = libc::iovec { iov_base: std::ptr::null_mut(), iov_len: 0 };
        Plain { request: request.into(), at: 0, reply: vec![0; room], lent: [nothing] }
    }

    /// It comes once more.
    pub fn rewind(&mut self) {
        self.at = 0;
    }
}

impl Message for Plain {
    fn remaining(&self) -> usize {
        self.request.len() - self.at
    }

    fn take(&mut self, buf: &mut [u8]) -> Result<(), Malformed> {
        let from = self.request.get(self.at..self.at + buf.len()).ok_or(Malformed)?;
        buf.copy_from_slice(from);
        self.at += buf.len();
        Ok(())
    }

    fn take_segments(&mut self, len: usize) -> Result<Segments<'_>, Malformed> {
        let part = self.request.get_mut(self.at..self.at + len).ok_or(Malformed)?;
        self.lent = [libc::iovec { iov_base: part.as_mut_ptr().cast(), iov_len: len }];
        self.at += len;
        Ok(Segments::new(&self.lent, len))
    }

    fn room(&self) -> usize {
        self.reply.len()
    }

    fn put(&mut self, offset: usize, bytes: &[u8]) -> Result<(), Malformed> {
        let to = self.reply.get_mut(offset..offset + bytes.len()).ok_or(Malformed)?;
        to.copy_from_slice(bytes);
        Ok(())
    }

    fn put_segments(&mut self, offset: usize, len: usize) -> Result<Segments<'_>, Malformed> {
        let part = self.reply.get_mut(offset..offset + len).ok_or(Malformed)?;
        self.lent = [libc::iovec { iov_base: part.as_mut_ptr().cast(), iov_len: len }];
        Ok(Segments::new(&self.lent, len))
    }
}

/// A descriptor chain, as a device serves it.
#[derive(Debug, Default)]
pub struct OnRing(pub Chain);

impl Message for OnRing {
    fn remaining(&self) -> usize {
        self.0.unread()
    }

    fn take(&mut self, buf: &mut [u8]) -> Result<(), Malformed> {
        self.0.read(buf).then_some(()).ok_or(Malformed)
    }

    fn take_segments(&mut self, len: usize) -> Result<Segments<'_>, Malformed> {
        self.0.read_iovecs(len).map(|iovecs| Segments::new(iovecs, len)).ok_or(Malformed)
    }

    fn room(&self) -> usize {
        self.0.room()
    }

    fn put(&mut self, offset: usize, bytes: &[u8]) -> Result<(), Malformed> {
        self.0.write(offset, bytes).then_some(()).ok_or(Malformed)
    }

    fn put_segments(&mut self, offset: usize, len: usize) -> Result<Segments<'_>, Malformed> {
        self.0.write_iovecs(offset, len).map(|iovecs| Segments::new(iovecs, len)).ok_or(Malformed)
    }
}
