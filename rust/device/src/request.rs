//! A descriptor chain as a FUSE message.

use std::sync::Arc;

use virtiofs_fuse::{Bell, Carried, Malformed, Message, Segments, Server};
use virtiofs_virtqueue::Chain;

use crate::completer::Completer;

/// One chain, as the server reads and answers it.
#[derive(Debug, Default)]
pub struct Request(pub Chain);

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

/// A chain on its way through a lane: it knows by whom it is completed.
#[derive(Debug, Default)]
pub(crate) struct Travelling {
    request: Request,
    way: Option<(Arc<Server>, Arc<Completer>)>,
}

/// Sends a request to the lane, and leaves an empty one in its place.
pub(crate) fn send(server: &Arc<Server>, completer: &Arc<Completer>, request: &mut Request) {
    let mut travelling = completer.spare();
    std::mem::swap(&mut travelling.request, request);
    travelling.way = Some((Arc::clone(server), Arc::clone(completer)));
    server.send(travelling);
}

impl Carried for Travelling {
    fn message(&mut self) -> &mut dyn Message {
        &mut self.request
    }

    fn rewind(&mut self) {
        self.request.0.rewind();
    }

    fn unwanted(&self) -> bool {
        self.way.as_ref().is_some_and(|(_, completer)| completer.is_in_a_hurry())
    }

    fn complete(mut self: Box<Self>, len: usize) -> Option<Arc<dyn Bell>> {
        let (server, completer) = self.way.take()?;
        let len = self.request.finish(&server, len);
        completer.put(self.request.0.head(), len);
        self.request.0.clear();
        completer.keep(self);
        Some(completer)
    }
}
