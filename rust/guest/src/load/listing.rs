//! Work on directories: whole listings.

use virtiofs_fuse::Opcode;
use virtiofs_fuse::wire::{Direntplus, EntryOut, OpenIn, OpenOut, ReadIn, ReleaseIn};
use zerocopy::{FromBytes, IntoBytes};

use super::data::{LISTED, bare, name};
use super::driver::Io;
use super::rows::Row;
use crate::{Client, Error, Result};

/// What glibc asks for at once.
const SIZE: usize = 32 << 10;

#[derive(Clone, Copy, PartialEq)]
enum Step {
    Open,
    List,
    Close,
}

struct Lane {
    step: Step,
    fh: u64,
    offset: u64,
    seen: usize,
}

pub(crate) struct Listing {
    node: u64,
    lanes: Vec<Lane>,
    /// Give each entry back at once. Otherwise the nodes are held, and what comes on top is given back in the end.
    forget: bool,
    held: Vec<u64>,
    listings: u64,
    bytes: Vec<u8>,
}

impl Listing {
    pub(crate) fn new(client: &Client, node: u64, lanes: usize, forget: bool) -> Result<Listing> {
        let lane = |_| Lane { step: Step::Open, fh: 0, offset: 0, seen: 0 };
        let find = |n| Ok(client.lookup(node, bare(&name(n)))?.nodeid);
        let held = if forget { Vec::new() } else { (0..LISTED).map(find).collect::<Result<Vec<_>>>()? };
        let lanes = (0..lanes).map(lane).collect();
        Ok(Listing { node, lanes, forget, held, listings: 0, bytes: Vec::with_capacity(SIZE) })
    }
}

impl Row for Listing {
    fn fill(&mut self, io: &mut Io<'_>, lane: usize) -> Result<()> {
        let Some(lane) = self.lanes.get(lane) else { return Ok(()) };
        match lane.step {
            Step::Open => {
                io.send(Opcode::Opendir, self.node, &[OpenIn::default().as_bytes()], 0, size_of::<OpenOut>(), 0)
            }
            Step::List => {
                let args = ReadIn { fh: lane.fh, offset: lane.offset, size: SIZE as u32, ..ReadIn::default() };
                io.send(Opcode::Readdirplus, self.node, &[args.as_bytes()], 0, 0, SIZE)
            }
            Step::Close => {
                let args = ReleaseIn { fh: lane.fh, ..ReleaseIn::default() };
                io.send(Opcode::Releasedir, self.node, &[args.as_bytes()], 0, 0, 0)
            }
        }
    }

    fn done(&mut self, io: &mut Io<'_>, index: usize) -> Result<bool> {
        let len = io.outcome()?;
        let Some(lane) = self.lanes.get_mut(index) else { return Ok(true) };
        match lane.step {
            Step::Open => {
                *lane = Lane { step: Step::List, fh: io.reply::<OpenOut>(0).fh, offset: 0, seen: 0 };
                Ok(false)
            }
            Step::List if len == 0 => {
                if lane.seen != LISTED {
                    return Err(Error::Protocol(format!("{} entries listed, not {LISTED}", lane.seen)));
                }
                lane.step = Step::Close;
                Ok(false)
            }
            Step::List => {
                self.bytes.clear();
                io.reply_bytes(len, &mut self.bytes);
                let mut rest = self.bytes.as_slice();
                while let Ok((entry, behind)) = Direntplus::read_from_prefix(rest) {
                    lane.offset = entry.dirent.off;
                    let names = entry.dirent.namelen as usize;
                    let dots = behind.first() == Some(&b'.');
                    let EntryOut { nodeid, .. } = entry.entry_out;
                    lane.seen += usize::from(!dots);
                    if self.forget && nodeid != 0 && !dots {
                        io.forget(nodeid, 1);
                    }
                    rest = rest.get((size_of::<Direntplus>() + names).next_multiple_of(8)..).unwrap_or(&[]);
                }
                Ok(false)
            }
            Step::Close => {
                lane.step = Step::Open;
                self.listings += 1;
                Ok(true)
            }
        }
    }

    fn finish(self: Box<Self>, client: &Client) -> Result<()> {
        // Every listing has counted every node once more.
        self.held.iter().try_for_each(|node| client.forget(*node, 1 + self.listings))
    }
}
