//! How a FUSE session begins and ends.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use virtiofs_fuse::Opcode;
use virtiofs_fuse::wire::{InitIn, InitInCompat, InitOut, KERNEL_VERSION, init};
use zerocopy::{FromZeros, IntoBytes};

use crate::memory::PAGE;
use crate::signal::Bell;
use crate::{Client, Connection, Error, Result};

/// Bytes of INIT's reply before minor 23.
const INIT_OUT_OLD: usize = 24;
/// Pages of a request when MAX_PAGES was not negotiated.
const DEFAULT_PAGES: u16 = 32;

/// What INIT settled.
#[derive(Clone, Copy, Debug, Default)]
pub struct Session {
    /// The smaller of both sides' minor versions.
    pub minor: u32,
    /// INIT flags of the reply, bits 32.. from `flags2`.
    pub flags: u64,
    /// Largest WRITE and READ, in bytes, by the server's and our own bounds.
    pub max_io: usize,
    /// The reply as it came.
    pub reply: InitOut,
}

impl Client {
    /// Opens a FUSE session. The first reply of a server; done by `connect` unless `Options::init` is off.
    pub fn init(&self) -> Result<Session> {
        let mut offered = self.options.init_flags;
        if self.window.is_some() {
            // As Linux does where it has found a window, mounted with dax=inode.
            offered |= init::MAP_ALIGNMENT | init::HAS_INODE_DAX;
        }
        let extended = offered & init::INIT_EXT != 0 && self.options.minor >= 36;
        let long = InitIn {
            major: KERNEL_VERSION,
            minor: self.options.minor,
            max_readahead: 128 << 10,
            flags: offered as u32,
            flags2: if extended { (offered >> 32) as u32 } else { 0 },
            unused: [0; 11],
        };
        let short =
            InitInCompat { major: long.major, minor: long.minor, max_readahead: long.max_readahead, flags: long.flags };
        let body = if self.options.minor >= 36 { long.as_bytes() } else { short.as_bytes() };
        let reply = self.call(Opcode::Init, 0, &[body], &[], size_of::<InitOut>(), 0)?;
        if reply.len() != size_of::<InitOut>() && reply.len() != INIT_OUT_OLD {
            return Err(Error::Protocol(format!("INIT was answered with {} bytes", reply.len())));
        }
        let mut out = InitOut::new_zeroed();
        out.as_mut_bytes().iter_mut().zip(&reply).for_each(|(to, from)| *to = *from);
        if out.major != KERNEL_VERSION {
            return Err(Error::Protocol(format!("the server speaks FUSE {}.{}", out.major, out.minor)));
        }
        let mut flags = u64::from(out.flags);
        flags |= if flags & init::INIT_EXT != 0 { u64::from(out.flags2) << 32 } else { 0 };
        if flags & !offered & !init::INIT_EXT != 0 {
            return Err(Error::Protocol(format!("INIT flags {:#x} were not offered", flags & !offered)));
        }
        let pages = if flags & init::MAX_PAGES != 0 { out.max_pages.max(1) } else { DEFAULT_PAGES };
        let session = Session {
            minor: out.minor.min(self.options.minor),
            flags,
            max_io: (usize::from(pages).min(self.pages) * PAGE).min((out.max_write as usize).max(PAGE)),
            reply: out,
        };
        *self.session.write() = session;
        self.open.store(true, Ordering::Release);
        Ok(session)
    }

    /// Ends the session with DESTROY, as umount does.
    pub fn destroy(&self) -> Result<()> {
        self.open.store(false, Ordering::Release);
        self.call(Opcode::Destroy, 0, &[], &[], 0, 0).map(drop)
    }

    /// Ends the session and stops the queues. Dropping the client does the same and keeps quiet about what went wrong.
    pub fn close(&self) -> Result<()> {
        if self.open.load(Ordering::Acquire) {
            self.hiprio.drain()?;
            self.destroy()?;
        }
        self.stop().map(drop)
    }

    /// Is gone without a word, as a guest whose VMM was killed: no DESTROY, no stop; the socket closes at once. Nothing works after it.
    pub fn vanish(&self) {
        self.open.store(false, Ordering::Release);
        self.channels().for_each(|channel| channel.give_up());
        self.with_connection(Connection::hang_up);
    }

    /// Loses the connection, as a VMM may whose guest goes on. Requests wait then, if [`Options::reconnects`](crate::Options).
    pub fn disconnect(&self) {
        self.with_connection(Connection::hang_up);
    }

    /// Goes on with the device, or with one that takes its place, over a new connection: the rings stay as they are, and the session too.
    pub fn reconnect(&self, connection: Connection) -> Result<()> {
        self.transport.lock().reconnect(connection)?;
        for channel in self.channels() {
            channel.waiter.watch(self.transport.lock().life())?;
        }
        self.start()
    }

    /// Adds or takes away what the device knows of a region of memory, which stays mapped here.
    pub fn show_memory(&self, region: &crate::Region, shown: bool) -> Result<()> {
        let mut transport = self.transport.lock();
        if shown { transport.add_region(self.memory(), region) } else { transport.remove_region(region) }
    }

    /// Stops the queues; answers where in each available ring the device stood.
    pub fn stop(&self) -> Result<Vec<u16>> {
        self.transport.lock().stop()
    }

    /// What a guest does that reboots without a word: stops (or, with `by_reset`, resets) the device in the middle of whatever it
    /// does, and starts over with empty rings and a new session.
    pub fn reboot(&self, by_reset: bool) -> Result<()> {
        let done = by_reset && self.transport.lock().reset()?;
        if !done {
            self.stop()?;
        }
        for (channel, (_, call)) in self.channels().zip(&self.lines) {
            channel.reset(&Bell::Fd(Arc::clone(call)))?;
        }
        self.start()?;
        if self.options.init { self.init().map(drop) } else { Ok(()) }
    }
}
