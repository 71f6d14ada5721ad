//! A file system that answers at once: what is left is the cost of asking.

use std::ffi::CStr;
use std::sync::Arc;

use virtiofs_fuse::wire::{AttrOut, EntryOut, InitIn, ReadIn, WriteIn};
use virtiofs_fuse::{
    Context, DirBuffer, FileSystem, Limits, Opcode, Outcome, Plain, Result, Scratch, Segments, Server,
};
use zerocopy::IntoBytes;

/// Has whatever is asked for, and does nothing for it.
#[derive(Debug)]
pub struct Instant;

impl FileSystem for Instant {
    fn forget(&self, _: u64, _: u64) -> bool {
        false
    }

    fn lookup(&self, _: &Context, _: u64, _: &CStr) -> Result<EntryOut> {
        Ok(EntryOut::default())
    }

    fn getattr(&self, _: &Context, _: u64, _: Option<u64>) -> Result<AttrOut> {
        Ok(AttrOut::default())
    }

    fn read(&self, _: &Context, _: u64, _: &ReadIn, out: Segments<'_>) -> Result<usize> {
        Ok(out.len())
    }

    fn write(&self, _: &Context, _: u64, _: &WriteIn, data: Segments<'_>) -> Result<usize> {
        Ok(data.len())
    }

    fn readdir(&self, _: &Context, _: u64, _: u64, _: u64, plus: bool, out: &mut DirBuffer) -> Result<()> {
        while if plus { out.push_plus(b"name", 1, 8, 1, &EntryOut::default()) } else { out.push(b"name", 1, 8, 1) } {}
        Ok(())
    }
}

/// A server of [`Instant`] whose session has begun.
///
/// # Panics
///
/// Where the server refuses INIT.
pub fn greet() -> Server {
    let server = Server::new(Arc::new(Instant), Limits::default());
    let init = InitIn { major: 7, minor: 46, flags: u32::MAX, flags2: u32::MAX, ..InitIn::default() };
    let mut message = Plain::new(crate::request(Opcode::Init, init.as_bytes()), vec![0; 80]);
    assert_eq!(server.handle(&mut message, &mut Scratch::default(), true), Outcome::Done(80));
    server
}
