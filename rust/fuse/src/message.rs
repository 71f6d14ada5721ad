//! One request's memory, as a transport lends it to the server.

/// A request that is shorter than its own header, arguments or names say, or a reply that has no room.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Malformed;

/// One request and the room for its reply.
///
/// The request side is a stream: each call takes the next bytes. The reply side is addressed by its offset from the start
/// of the reply header, since the header is written last. Neither side promises any framing: a struct may lie
/// in as many pieces as the guest likes (virtio 1.3, 2.6.4 "Message Framing").
pub trait Message {
    /// Bytes of the request that were not taken yet.
    fn remaining(&self) -> usize;

    /// Takes the next `buf.len()` bytes of the request, or fails and takes none.
    fn take(&mut self, buf: &mut [u8]) -> Result<(), Malformed>;

    /// Takes the next `len` bytes of the request as iovecs, for one system call that reads from them.
    fn take_segments(&mut self, len: usize) -> Result<Segments<'_>, Malformed>;

    /// Room for the reply, header included, in bytes.
    fn room(&self) -> usize;

    /// Writes `bytes` at `offset` of the reply, or fails and writes none.
    fn put(&mut self, offset: usize, bytes: &[u8]) -> Result<(), Malformed>;

    /// The room of the reply from `offset` on, `len` bytes, as iovecs, for one system call that writes to them.
    fn put_segments(&mut self, offset: usize, len: usize) -> Result<Segments<'_>, Malformed>;
}

/// Memory of a request as the kernel takes it: iovecs, mapped for as long as the borrow lives.
///
/// Only system calls may follow the pointers: the guest changes this memory as it likes, so no Rust reference into it may exist.
#[derive(Clone, Copy)]
pub struct Segments<'a> {
    iovecs: &'a [libc::iovec],
    len: usize,
}

impl<'a> Segments<'a> {
    /// Wraps `iovecs`, which hold `len` bytes in all.
    pub fn new(iovecs: &'a [libc::iovec], len: usize) -> Segments<'a> {
        debug_assert_eq!(iovecs.iter().map(|iovec| iovec.iov_len).sum::<usize>(), len);
        Segments { iovecs, len }
    }

    /// The iovecs. There may be more of them than IOV_MAX.
    pub fn iovecs(&self) -> &'a [libc::iovec] {
        self.iovecs
    }

    /// Bytes in all iovecs together.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there is nothing to read or write.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }
}

/// A message in this process's own memory: for tests, and for measuring what a request costs without a transport.
#[derive(Debug)]
pub struct Plain {
    request: Vec<u8>,
    at: usize,
    reply: Vec<u8>,
    lent: Vec<libc::iovec>,
}

impl Plain {
    /// A request, and memory for its reply.
    pub fn new(request: Vec<u8>, reply: Vec<u8>) -> Plain {
        Plain { request, at: 0, reply, lent: Vec::with_capacity(1) }
    }

    /// The same request comes once more.
    pub fn rewind(&mut self) {
        self.at = 0;
    }

    /// The memory for the reply.
    pub fn reply(&self) -> &[u8] {
        &self.reply
    }

    fn lend(lent: &mut Vec<libc::iovec>, part: &mut [u8]) {
        lent.clear();
        lent.push(libc::iovec { iov_base: part.as_mut_ptr().cast(), iov_len: part.len() });
    }
}

impl Message for Plain {
    fn remaining(&self) -> usize {
        self.request.len() - self.at
    }

    fn take(&mut self, buf: &mut [u8]) -> Result<(), Malformed> {
        let from = self.request.get(self.at..self.at.saturating_add(buf.len())).ok_or(Malformed)?;
        buf.copy_from_slice(from);
        self.at += buf.len();
        Ok(())
    }

    fn take_segments(&mut self, len: usize) -> Result<Segments<'_>, Malformed> {
        let part = self.request.get_mut(self.at..self.at.saturating_add(len)).ok_or(Malformed)?;
        Plain::lend(&mut self.lent, part);
        self.at += len;
        Ok(Segments::new(&self.lent, len))
    }

    fn room(&self) -> usize {
        self.reply.len()
    }

    fn put(&mut self, offset: usize, bytes: &[u8]) -> Result<(), Malformed> {
        let to = self.reply.get_mut(offset..offset.saturating_add(bytes.len())).ok_or(Malformed)?;
        to.copy_from_slice(bytes);
        Ok(())
    }

    fn put_segments(&mut self, offset: usize, len: usize) -> Result<Segments<'_>, Malformed> {
        let part = self.reply.get_mut(offset..offset.saturating_add(len)).ok_or(Malformed)?;
        Plain::lend(&mut self.lent, part);
        Ok(Segments::new(&self.lent, len))
    }
}
