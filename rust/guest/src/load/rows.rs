//! The kinds of work. An operation is one request or a short chain of them; each kind is a small state machine over the operations in
//! flight ("lanes").

use super::data::Share;
use super::driver::Io;
use super::mixed::Mixed;
use super::{files, listing, names};
use crate::{Client, Error, Result};

/// A kind of work, for a number of lanes.
pub(crate) trait Row: Send {
    /// File data that an operation moves, in bytes.
    fn bytes(&self) -> u64 {
        0
    }

    /// Data that requests carry, in bytes: pages are filled once, before the work starts.
    fn data(&self) -> usize {
        0
    }

    /// Fills in the next request of a lane.
    fn fill(&mut self, io: &mut Io<'_>, lane: usize) -> Result<()>;

    /// Takes the reply in. True if it completes the operation.
    fn done(&mut self, io: &mut Io<'_>, lane: usize) -> Result<bool>;

    /// Gives back what it holds: nodes, open files, names.
    fn finish(self: Box<Self>, client: &Client) -> Result<()>;
}

macro_rules! rows {
    ($($(#[$doc:meta])* $variant:ident $name:literal)*) => {
        /// What can be run.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum RowKind { $($(#[$doc])* $variant),* }

        /// All of them.
        pub const ROWS: &[RowKind] = &[$(RowKind::$variant),*];

        impl RowKind {
            /// Its name on command lines and in tables.
            pub fn name(self) -> &'static str {
                match self { $(RowKind::$variant => $name),* }
            }
        }
    };
}

rows! {
    /// GETATTR of one of 1,000 nodes that the server holds.
    Getattr "getattr"
    /// LOOKUP of one of 1,000 names that the server does not hold, and its FORGET.
    LookupHit "lookup-hit"
    /// LOOKUP of one of 1,000 names that the server holds.
    LookupWarm "lookup-warm"
    /// LOOKUP of a name that is not there.
    LookupMiss "lookup-miss"
    /// OPEN and RELEASE of one of 1,000 files.
    OpenRelease "open-release"
    /// CREATE, WRITE of 4 KiB, RELEASE, UNLINK, FORGET.
    Churn4k "churn4k"
    /// A listing of 1,000 entries by READDIRPLUS, OPENDIR and RELEASEDIR and a FORGET for each entry included.
    Readdirplus "readdirplus"
    /// The same of entries that the server holds: no FORGET.
    ReaddirplusWarm "readdirplus-warm"
    /// READ of 4 KiB at random places of 256 MiB.
    Randread4k "randread4k"
    /// WRITE of 4 KiB at random places of 256 MiB.
    Randwrite4k "randwrite4k"
    /// READ of 1 MiB after 1 MiB.
    Seqread1m "seqread1m"
    /// WRITE of 1 MiB after 1 MiB.
    Seqwrite1m "seqwrite1m"
    /// LOOKUP, GETATTR and FORGET of a random one of 10,000 files.
    Walk10k "walk10k"
    /// RENAME of a file within a directory.
    Rename "rename"
    /// SETATTR of the mode of one of 1,000 files.
    Setattr "setattr"
    /// MKDIR, RMDIR, FORGET.
    MkdirRmdir "mkdir-rmdir"
    /// LOOKUP of held names (40 %), GETATTR (30 %), READ (20 %) and WRITE (10 %) of 4 KiB at random places.
    Mixed "mixed"
}

impl std::str::FromStr for RowKind {
    type Err = Error;

    fn from_str(name: &str) -> Result<RowKind> {
        let known = || ROWS.iter().map(|row| row.name()).collect::<Vec<_>>().join(", ");
        let found = ROWS.iter().copied().find(|row| row.name() == name);
        found.ok_or_else(|| Error::Protocol(format!("no row {name:?}; there are {}", known())))
    }
}

pub(crate) fn build(kind: RowKind, client: &Client, share: &Share, lanes: usize, queue: usize) -> Result<Box<dyn Row>> {
    use names::Known;
    Ok(match kind {
        RowKind::Getattr => Box::new(names::Getattr(Known::new(client, share.many, queue)?)),
        RowKind::LookupHit => Box::new(names::LookupHit::new(share.many, queue)),
        RowKind::LookupWarm => Box::new(names::LookupWarm(Known::new(client, share.many, queue)?)),
        RowKind::LookupMiss => Box::new(names::LookupMiss { parent: share.many, turn: 0 }),
        RowKind::OpenRelease => Box::new(names::OpenRelease::new(Known::new(client, share.many, queue)?, lanes)),
        RowKind::Setattr => Box::new(names::Setattr(Known::new(client, share.many, queue)?)),
        RowKind::Walk10k => Box::new(names::Walk::new(share.many, lanes, queue)),
        RowKind::Churn4k => Box::new(files::Churn::new(share.work, lanes, queue)),
        RowKind::Rename => Box::new(files::Rename::new(client, share.work, lanes, queue)?),
        RowKind::MkdirRmdir => Box::new(files::MkdirRmdir::new(share.work, lanes, queue)),
        RowKind::Randread4k => Box::new(files::Transfer::new(client, share.big, 4096, true, false, queue)?),
        RowKind::Randwrite4k => Box::new(files::Transfer::new(client, share.big, 4096, true, true, queue)?),
        RowKind::Seqread1m => Box::new(files::Transfer::new(client, share.big, 1 << 20, false, false, queue)?),
        RowKind::Seqwrite1m => Box::new(files::Transfer::new(client, share.big, 1 << 20, false, true, queue)?),
        RowKind::Mixed => {
            let one = |kind| build(kind, client, share, lanes, queue);
            let parts = vec![
                (40, one(RowKind::LookupWarm)?),
                (70, one(RowKind::Getattr)?),
                (90, one(RowKind::Randread4k)?),
                (100, one(RowKind::Randwrite4k)?),
            ];
            Box::new(Mixed::new(parts, lanes, queue))
        }
        RowKind::Readdirplus => Box::new(listing::Listing::new(client, share.list, lanes, true)?),
        RowKind::ReaddirplusWarm => Box::new(listing::Listing::new(client, share.list, lanes, false)?),
    })
}

/// Numbers that look random (xorshift64).
pub(crate) struct Random(u64);

impl Random {
    pub(crate) fn new(seed: usize) -> Random {
        Random(0x9e37_79b9_7f4a_7c15 ^ ((seed as u64 + 1) << 20))
    }

    #[inline]
    pub(crate) fn below(&mut self, bound: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % bound
    }
}
