//! A descriptor chain as a FUSE message.

use virtiofs_fuse::{Malformed, Message, Segments, Server};
use virtiofs_virtqueue::Chain;

/// One chain, as the server reads and answers it.
#[derive(Debug, Default)]
pub(crate) struct Request(pub(crate) Chain);

impl Request {
    /// What is to be done before a reply of `len` bytes is the guest's: it may lie in its DAX window. Answers the reply's length, which is
    /// that of EFAULT where there is nothing to take it.
    pub(crate) fn finish(&mut self, server: &Server, len: usize) -> usize {
        if self.0.settle(len) { len } else { self.fault(server) }
    }

    /// Answers EFAULT, whatever was asked for.
    pub(crate) fn fault(&mut self, server: &Server) -> usize {
        self.0.rewind();
        let len = server.refuse(self, libc::EFAULT);
        if self.0.settle(len) { len } else { 0 }
    }
}

impl Message for Request {
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
