//! Work on files and directories as a whole, and on file data.

use virtiofs_fuse::Opcode;
use virtiofs_fuse::wire::{CreateIn, EntryOut, MkdirIn, OpenOut, ReadIn, ReleaseIn, RenameIn, WriteIn, WriteOut};
use zerocopy::IntoBytes;

use super::data::{BIG, bare, name};
use super::driver::Io;
use super::rows::{Random, Row};
use crate::{Client, Error, Result};

const WORK_BYTES: usize = 4096;

/// Names of a lane's own: those of other lanes and queues differ.
fn own_name(queue: usize, lane: usize, letter: u8) -> [u8; 7] {
    let mut own = name(queue * 1_000 + lane);
    if let Some(first) = own.first_mut() {
        *first = letter;
    }
    own
}

#[derive(Clone, Copy, PartialEq)]
enum Step {
    Create,
    Write,
    Release,
    Unlink,
}

pub(crate) struct Churn {
    parent: u64,
    queue: usize,
    lanes: Vec<(Step, u64, u64)>,
}

impl Churn {
    pub(crate) fn new(parent: u64, lanes: usize, queue: usize) -> Churn {
        Churn { parent, queue, lanes: vec![(Step::Create, 0, 0); lanes] }
    }
}

impl Row for Churn {
    fn bytes(&self) -> u64 {
        WORK_BYTES as u64
    }

    fn data(&self) -> usize {
        WORK_BYTES
    }

    fn fill(&mut self, io: &mut Io<'_>, lane: usize) -> Result<()> {
        let Some(&(step, node, fh)) = self.lanes.get(lane) else { return Ok(()) };
        let own = own_name(self.queue, lane, b'c');
        match step {
            Step::Create => {
                let flags = (libc::O_WRONLY | libc::O_CREAT | libc::O_EXCL) as u32 | 0o100000;
                let args = CreateIn { flags, mode: libc::S_IFREG | 0o644, umask: 0o022, open_flags: 0 };
                let reply = size_of::<EntryOut>() + size_of::<OpenOut>();
                io.send(Opcode::Create, self.parent, &[args.as_bytes(), &own], 0, reply, 0)
            }
            Step::Write => {
                let args = WriteIn { fh, size: WORK_BYTES as u32, ..WriteIn::default() };
                io.send(Opcode::Write, node, &[args.as_bytes()], WORK_BYTES, size_of::<WriteOut>(), 0)
            }
            Step::Release => {
                let args = ReleaseIn { fh, ..ReleaseIn::default() };
                io.send(Opcode::Release, node, &[args.as_bytes()], 0, 0, 0)
            }
            Step::Unlink => io.send(Opcode::Unlink, self.parent, &[&own], 0, 0, 0),
        }
    }

    fn done(&mut self, io: &mut Io<'_>, lane: usize) -> Result<bool> {
        io.outcome()?;
        let Some((step, node, fh)) = self.lanes.get_mut(lane) else { return Ok(true) };
        *step = match *step {
            Step::Create => {
                *node = io.reply::<EntryOut>(0).nodeid;
                *fh = io.reply::<OpenOut>(size_of::<EntryOut>()).fh;
                Step::Write
            }
            Step::Write => {
                whole(io.reply::<WriteOut>(0).size as usize, WORK_BYTES)?;
                Step::Release
            }
            Step::Release => Step::Unlink,
            Step::Unlink => {
                io.forget(*node, 1);
                Step::Create
            }
        };
        Ok(*step == Step::Create)
    }

    fn finish(self: Box<Self>, _client: &Client) -> Result<()> {
        Ok(())
    }
}

fn whole(got: usize, wanted: usize) -> Result<()> {
    if got == wanted { Ok(()) } else { Err(Error::Protocol(format!("{got} bytes moved, not {wanted}"))) }
}

pub(crate) struct MkdirRmdir {
    parent: u64,
    queue: usize,
    made: Vec<u64>,
}

impl MkdirRmdir {
    pub(crate) fn new(parent: u64, lanes: usize, queue: usize) -> MkdirRmdir {
        MkdirRmdir { parent, queue, made: vec![0; lanes] }
    }
}

impl Row for MkdirRmdir {
    fn fill(&mut self, io: &mut Io<'_>, lane: usize) -> Result<()> {
        let own = own_name(self.queue, lane, b'd');
        if self.made.get(lane).is_some_and(|node| *node != 0) {
            return io.send(Opcode::Rmdir, self.parent, &[&own], 0, 0, 0);
        }
        let args = MkdirIn { mode: 0o755, umask: 0o022 };
        io.send(Opcode::Mkdir, self.parent, &[args.as_bytes(), &own], 0, size_of::<EntryOut>(), 0)
    }

    fn done(&mut self, io: &mut Io<'_>, lane: usize) -> Result<bool> {
        io.outcome()?;
        let Some(made) = self.made.get_mut(lane) else { return Ok(true) };
        if *made == 0 {
            *made = io.reply::<EntryOut>(0).nodeid;
            return Ok(false);
        }
        io.forget(std::mem::take(made), 1);
        Ok(true)
    }

    fn finish(self: Box<Self>, _client: &Client) -> Result<()> {
        Ok(())
    }
}

pub(crate) struct Rename {
    parent: u64,
    queue: usize,
    nodes: Vec<u64>,
    /// Which of its two names each lane's file has.
    second: Vec<bool>,
}

impl Rename {
    pub(crate) fn new(client: &Client, parent: u64, lanes: usize, queue: usize) -> Result<Rename> {
        let make = |lane| {
            let own = own_name(queue, lane, b'r');
            Ok(client.mknod(parent, bare(&own), libc::S_IFREG | 0o644, 0, 0o022)?.nodeid)
        };
        let nodes = (0..lanes).map(make).collect::<Result<Vec<_>>>()?;
        Ok(Rename { parent, queue, nodes, second: vec![false; lanes] })
    }
}

impl Row for Rename {
    fn fill(&mut self, io: &mut Io<'_>, lane: usize) -> Result<()> {
        let (first, second) = (own_name(self.queue, lane, b'r'), own_name(self.queue, lane, b's'));
        let back = self.second.get(lane).copied().unwrap_or(false);
        let (from, to) = if back { (second, first) } else { (first, second) };
        let args = RenameIn { newdir: self.parent };
        io.send(Opcode::Rename, self.parent, &[args.as_bytes(), &from, &to], 0, 0, 0)
    }

    fn done(&mut self, io: &mut Io<'_>, lane: usize) -> Result<bool> {
        io.outcome()?;
        if let Some(second) = self.second.get_mut(lane) {
            *second = !*second;
        }
        Ok(true)
    }

    fn finish(self: Box<Self>, client: &Client) -> Result<()> {
        for (lane, (node, second)) in self.nodes.iter().zip(&self.second).enumerate() {
            let own = own_name(self.queue, lane, if *second { b's' } else { b'r' });
            client.unlink(self.parent, bare(&own))?;
            client.forget(*node, 1)?;
        }
        Ok(())
    }
}

/// Reads or writes of one size, in order or at random.
pub(crate) struct Transfer {
    node: u64,
    fh: u64,
    size: usize,
    write: bool,
    /// `None`: one after the other.
    random: Option<Random>,
    next: u64,
}

impl Transfer {
    pub(crate) fn new(
        client: &Client,
        node: u64,
        size: usize,
        random: bool,
        write: bool,
        queue: usize,
    ) -> Result<Transfer> {
        let max = client.session().max_io;
        if size > max {
            return Err(Error::Protocol(format!("{size} bytes in one request where the server takes {max}")));
        }
        let fh = client.open(node, libc::O_RDWR as u32 | 0o100000)?.fh;
        let random = random.then(|| Random::new(queue));
        Ok(Transfer { node, fh, size, write, random, next: BIG / 2 * (queue as u64 % 2) })
    }
}

impl Row for Transfer {
    fn bytes(&self) -> u64 {
        self.size as u64
    }

    fn data(&self) -> usize {
        if self.write { self.size } else { 0 }
    }

    fn fill(&mut self, io: &mut Io<'_>, _lane: usize) -> Result<()> {
        let size = self.size as u64;
        let offset = match &mut self.random {
            Some(random) => random.below(BIG / size) * size,
            None => {
                self.next = (self.next + size) % BIG;
                self.next
            }
        };
        let (fh, size) = (self.fh, self.size as u32);
        if self.write {
            let args = WriteIn { fh, offset, size, ..WriteIn::default() };
            return io.send(Opcode::Write, self.node, &[args.as_bytes()], self.size, size_of::<WriteOut>(), 0);
        }
        let args = ReadIn { fh, offset, size, ..ReadIn::default() };
        io.send(Opcode::Read, self.node, &[args.as_bytes()], 0, 0, self.size)
    }

    fn done(&mut self, io: &mut Io<'_>, _lane: usize) -> Result<bool> {
        let len = io.outcome()?;
        let moved = if self.write { io.reply::<WriteOut>(0).size as usize } else { len };
        whole(moved, self.size).map(|()| true)
    }

    fn finish(self: Box<Self>, client: &Client) -> Result<()> {
        client.release(self.node, self.fh, libc::O_RDWR as u32)
    }
}
