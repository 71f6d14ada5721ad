//! Work on names and attributes.

use virtiofs_fuse::Opcode;
use virtiofs_fuse::wire::{AttrOut, EntryOut, GetattrIn, OpenIn, OpenOut, ReleaseIn, SetattrIn, fattr};
use zerocopy::IntoBytes;

use super::data::{FILES, bare, name};
use super::driver::Io;
use super::rows::{Random, Row};
use crate::{Client, Error, Result};

/// Files that most rows go round.
const POOL: usize = 1_000;

/// Nodes that are held while the work runs.
pub(crate) struct Known {
    parent: u64,
    first: usize,
    nodes: Vec<u64>,
    /// Counts taken beside the one of each node's own.
    extra: Vec<u64>,
    turn: usize,
}

impl Known {
    pub(crate) fn new(client: &Client, parent: u64, queue: usize) -> Result<Known> {
        let first = queue * POOL % FILES;
        let find = |n| Ok(client.lookup(parent, bare(&name(first + n)))?.nodeid);
        let nodes = (0..POOL).map(find).collect::<Result<Vec<_>>>()?;
        Ok(Known { parent, first, extra: vec![0; nodes.len()], nodes, turn: 0 })
    }

    #[inline]
    fn next(&mut self) -> (usize, u64) {
        self.turn = if self.turn + 1 < self.nodes.len() { self.turn + 1 } else { 0 };
        (self.turn, self.nodes.get(self.turn).copied().unwrap_or(0))
    }

    fn finish(self, client: &Client) -> Result<()> {
        for (node, extra) in self.nodes.iter().zip(&self.extra) {
            client.forget(*node, 1 + extra)?;
        }
        Ok(())
    }
}

pub(crate) struct Getattr(pub(crate) Known);

impl Row for Getattr {
    fn fill(&mut self, io: &mut Io<'_>, _lane: usize) -> Result<()> {
        let (_, node) = self.0.next();
        io.send(Opcode::Getattr, node, &[GetattrIn::default().as_bytes()], 0, size_of::<AttrOut>(), 0)
    }

    fn done(&mut self, io: &mut Io<'_>, _lane: usize) -> Result<bool> {
        io.outcome().map(|_| true)
    }

    fn finish(self: Box<Self>, client: &Client) -> Result<()> {
        self.0.finish(client)
    }
}

pub(crate) struct LookupHit {
    parent: u64,
    first: usize,
    turn: usize,
}

impl LookupHit {
    pub(crate) fn new(parent: u64, queue: usize) -> LookupHit {
        LookupHit { parent, first: queue * POOL % FILES, turn: 0 }
    }
}

impl Row for LookupHit {
    fn fill(&mut self, io: &mut Io<'_>, _lane: usize) -> Result<()> {
        self.turn = (self.turn + 1) % POOL;
        io.send(Opcode::Lookup, self.parent, &[&name(self.first + self.turn)], 0, size_of::<EntryOut>(), 0)
    }

    fn done(&mut self, io: &mut Io<'_>, _lane: usize) -> Result<bool> {
        io.outcome()?;
        let entry: EntryOut = io.reply(0);
        io.forget(entry.nodeid, 1);
        Ok(true)
    }

    fn finish(self: Box<Self>, _client: &Client) -> Result<()> {
        Ok(())
    }
}

pub(crate) struct LookupWarm(pub(crate) Known);

impl Row for LookupWarm {
    fn fill(&mut self, io: &mut Io<'_>, _lane: usize) -> Result<()> {
        let (index, _) = self.0.next();
        if let Some(extra) = self.0.extra.get_mut(index) {
            *extra += 1;
        }
        io.send(Opcode::Lookup, self.0.parent, &[&name(self.0.first + index)], 0, size_of::<EntryOut>(), 0)
    }

    fn done(&mut self, io: &mut Io<'_>, _lane: usize) -> Result<bool> {
        io.outcome().map(|_| true)
    }

    fn finish(self: Box<Self>, client: &Client) -> Result<()> {
        self.0.finish(client)
    }
}

pub(crate) struct LookupMiss {
    pub(crate) parent: u64,
    pub(crate) turn: usize,
}

impl Row for LookupMiss {
    fn fill(&mut self, io: &mut Io<'_>, _lane: usize) -> Result<()> {
        self.turn = (self.turn + 1) % 100_000;
        let mut missing = name(self.turn);
        if let Some(letter) = missing.first_mut() {
            *letter = b'-';
        }
        io.send(Opcode::Lookup, self.parent, &[&missing], 0, size_of::<EntryOut>(), 0)
    }

    fn done(&mut self, io: &mut Io<'_>, _lane: usize) -> Result<bool> {
        match io.outcome() {
            Err(Error::Errno(libc::ENOENT)) => Ok(true),
            Ok(_) if io.reply::<EntryOut>(0).nodeid == 0 => Ok(true),
            Ok(_) => Err(Error::Protocol("a name that is not there was found".into())),
            Err(error) => Err(error),
        }
    }

    fn finish(self: Box<Self>, _client: &Client) -> Result<()> {
        Ok(())
    }
}

pub(crate) struct OpenRelease {
    known: Known,
    /// The file that each lane has open.
    open: Vec<Option<(u64, u64)>>,
}

impl OpenRelease {
    pub(crate) fn new(known: Known, lanes: usize) -> OpenRelease {
        OpenRelease { known, open: vec![None; lanes] }
    }
}

impl Row for OpenRelease {
    fn fill(&mut self, io: &mut Io<'_>, lane: usize) -> Result<()> {
        let Some(open) = self.open.get_mut(lane) else { return Ok(()) };
        if let Some((node, fh)) = *open {
            let args = ReleaseIn { fh, ..ReleaseIn::default() };
            return io.send(Opcode::Release, node, &[args.as_bytes()], 0, 0, 0);
        }
        let (_, node) = self.known.next();
        *open = Some((node, 0));
        let args = OpenIn { flags: libc::O_RDONLY as u32 | 0o100000, open_flags: 0 };
        io.send(Opcode::Open, node, &[args.as_bytes()], 0, size_of::<OpenOut>(), 0)
    }

    fn done(&mut self, io: &mut Io<'_>, lane: usize) -> Result<bool> {
        let len = io.outcome()?;
        let Some(open) = self.open.get_mut(lane) else { return Ok(true) };
        if len == 0 {
            *open = None;
            return Ok(true);
        }
        if let Some((_, fh)) = open {
            *fh = io.reply::<OpenOut>(0).fh;
        }
        Ok(false)
    }

    fn finish(self: Box<Self>, client: &Client) -> Result<()> {
        self.known.finish(client)
    }
}

pub(crate) struct Setattr(pub(crate) Known);

impl Row for Setattr {
    fn fill(&mut self, io: &mut Io<'_>, _lane: usize) -> Result<()> {
        let (index, node) = self.0.next();
        let mode = libc::S_IFREG | if index % 2 == 0 { 0o644 } else { 0o640 };
        let args = SetattrIn { valid: fattr::MODE, mode, ..SetattrIn::default() };
        io.send(Opcode::Setattr, node, &[args.as_bytes()], 0, size_of::<AttrOut>(), 0)
    }

    fn done(&mut self, io: &mut Io<'_>, _lane: usize) -> Result<bool> {
        io.outcome().map(|_| true)
    }

    fn finish(self: Box<Self>, client: &Client) -> Result<()> {
        self.0.finish(client)
    }
}

pub(crate) struct Walk {
    parent: u64,
    random: Random,
    /// The node that each lane has found.
    found: Vec<u64>,
}

impl Walk {
    pub(crate) fn new(parent: u64, lanes: usize, queue: usize) -> Walk {
        Walk { parent, random: Random::new(queue), found: vec![0; lanes] }
    }
}

impl Row for Walk {
    fn fill(&mut self, io: &mut Io<'_>, lane: usize) -> Result<()> {
        match self.found.get(lane).copied().unwrap_or(0) {
            0 => {
                let n = self.random.below(FILES as u64) as usize;
                io.send(Opcode::Lookup, self.parent, &[&name(n)], 0, size_of::<EntryOut>(), 0)
            }
            node => io.send(Opcode::Getattr, node, &[GetattrIn::default().as_bytes()], 0, size_of::<AttrOut>(), 0),
        }
    }

    fn done(&mut self, io: &mut Io<'_>, lane: usize) -> Result<bool> {
        io.outcome()?;
        let Some(found) = self.found.get_mut(lane) else { return Ok(true) };
        if *found == 0 {
            *found = io.reply::<EntryOut>(0).nodeid;
            return Ok(false);
        }
        io.forget(std::mem::take(found), 1);
        Ok(true)
    }

    fn finish(self: Box<Self>, _client: &Client) -> Result<()> {
        Ok(())
    }
}
