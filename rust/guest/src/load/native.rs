//! The same work by system calls on a directory of this host, without a device: what there is to be had.
//!
//! Each operation is the system calls that the work cannot do without, on descriptors and names as a good server would use them, one
//! after the other in one thread: the one that calls.

use std::fs::File;
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::Instant;

use rustix::fs::{AtFlags, Dir, Mode, OFlags, StatxFlags, openat, renameat, statx, unlinkat};

use super::data::{BIG, FILES, bare, name};
use super::process::thread_cpu;
use super::rows::{Random, RowKind};
use super::{Plan, Report};
use crate::{Error, Result};

const POOL: usize = 1_000;
const SMALL: usize = 4096;
const LARGE: usize = 1 << 20;

/// What the work needs of the share.
struct Place {
    many: OwnedFd,
    list: OwnedFd,
    work: OwnedFd,
    big: File,
    known: Vec<OwnedFd>,
    own: String,
    other: String,
    data: Vec<u8>,
    random: Random,
    turn: usize,
    next: u64,
}

impl Place {
    fn open(directory: &Path, kind: RowKind) -> Result<Place> {
        let here = |name: &str| -> Result<OwnedFd> {
            let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
            rustix::fs::open(directory.join(name), flags, Mode::empty()).map_err(io)
        };
        let many = here("many")?;
        let known = match kind {
            RowKind::Getattr | RowKind::Mixed => (0..POOL)
                .map(|n| openat(&many, text(&name(n)), OFlags::PATH | OFlags::CLOEXEC, Mode::empty()).map_err(io))
                .collect::<Result<_>>()?,
            _ => Vec::new(),
        };
        let big = File::options().read(true).write(true).open(directory.join("big"))?;
        let own = String::from("n00000");
        if kind == RowKind::Rename {
            File::create(directory.join("work").join(&own))?;
        }
        Ok(Place {
            many,
            list: here("list")?,
            work: here("work")?,
            big,
            known,
            own,
            other: String::from("o00000"),
            data: vec![0x5a; LARGE],
            random: Random::new(0),
            turn: 0,
            next: 0,
        })
    }

    fn pooled(&mut self) -> [u8; 7] {
        self.turn = (self.turn + 1) % POOL;
        name(self.turn)
    }

    /// One operation.
    fn work(&mut self, kind: RowKind) -> Result<()> {
        match kind {
            RowKind::Getattr => {
                self.turn = (self.turn + 1) % POOL;
                let Some(fd) = self.known.get(self.turn) else { return Ok(()) };
                statx(fd, c"", AtFlags::EMPTY_PATH, StatxFlags::BASIC_STATS).map_err(io)?;
            }
            RowKind::LookupHit | RowKind::LookupWarm => {
                let name = self.pooled();
                stat(&self.many, &name)?;
            }
            RowKind::Walk10k => {
                let name = name(self.random.below(FILES as u64) as usize);
                stat(&self.many, &name)?;
            }
            RowKind::LookupMiss => {
                self.turn = (self.turn + 1) % 100_000;
                let mut missing = name(self.turn);
                missing[0] = b'-';
                let flags = AtFlags::SYMLINK_NOFOLLOW;
                match statx(&self.many, text(&missing), flags, StatxFlags::BASIC_STATS) {
                    Err(rustix::io::Errno::NOENT) => {}
                    Err(error) => return Err(io(error)),
                    Ok(_) => return Err(Error::Protocol("a name that is not there was found".into())),
                }
            }
            RowKind::OpenRelease => {
                let name = self.pooled();
                openat(&self.many, text(&name), OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty()).map_err(io)?;
            }
            RowKind::Churn4k => {
                let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
                let file = File::from(openat(&self.work, self.own.as_str(), flags, Mode::from(0o644)).map_err(io)?);
                file.write_all_at(self.data.get(..SMALL).unwrap_or(&[]), 0)?;
                drop(file);
                unlinkat(&self.work, self.own.as_str(), AtFlags::empty()).map_err(io)?;
            }
            RowKind::Readdirplus | RowKind::ReaddirplusWarm => {
                for entry in Dir::read_from(&self.list).map_err(io)? {
                    let flags = AtFlags::SYMLINK_NOFOLLOW;
                    statx(&self.list, entry.map_err(io)?.file_name(), flags, StatxFlags::BASIC_STATS).map_err(io)?;
                }
            }
            RowKind::Randread4k | RowKind::Randwrite4k => {
                let offset = self.random.below(BIG / SMALL as u64) * SMALL as u64;
                self.transfer(SMALL, offset, kind == RowKind::Randwrite4k)?;
            }
            RowKind::Seqread1m | RowKind::Seqwrite1m => {
                self.next = (self.next + LARGE as u64) % BIG;
                self.transfer(LARGE, self.next, kind == RowKind::Seqwrite1m)?;
            }
            RowKind::Rename => {
                renameat(&self.work, self.own.as_str(), &self.work, self.other.as_str()).map_err(io)?;
                std::mem::swap(&mut self.own, &mut self.other);
            }
            RowKind::Setattr => {
                let name = self.pooled();
                let mode = Mode::from(if self.turn.is_multiple_of(2) { 0o644 } else { 0o640 });
                rustix::fs::chmodat(&self.many, text(&name), mode, AtFlags::empty()).map_err(io)?;
            }
            RowKind::MkdirRmdir => {
                rustix::fs::mkdirat(&self.work, self.own.as_str(), Mode::from(0o755)).map_err(io)?;
                unlinkat(&self.work, self.own.as_str(), AtFlags::REMOVEDIR).map_err(io)?;
            }
            RowKind::Mixed => {
                let kind = match self.random.below(100) {
                    0..40 => RowKind::LookupWarm,
                    40..70 => RowKind::Getattr,
                    70..90 => RowKind::Randread4k,
                    _ => RowKind::Randwrite4k,
                };
                self.work(kind)?;
            }
        }
        Ok(())
    }

    fn transfer(&mut self, size: usize, offset: u64, write: bool) -> Result<()> {
        let Some(data) = self.data.get_mut(..size) else { return Ok(()) };
        let moved = if write { self.big.write_all_at(data, offset) } else { self.big.read_exact_at(data, offset) };
        Ok(moved?)
    }

    fn leave(self, kind: RowKind) -> Result<()> {
        if kind == RowKind::Rename {
            unlinkat(&self.work, self.own.as_str(), AtFlags::empty()).map_err(io)?;
        }
        Ok(())
    }
}

fn io(error: rustix::io::Errno) -> Error {
    Error::Io(error.into())
}

fn text(name: &[u8]) -> &str {
    std::str::from_utf8(bare(name)).unwrap_or_default()
}

fn stat(directory: &OwnedFd, name: &[u8]) -> Result<()> {
    statx(directory, text(name), AtFlags::SYMLINK_NOFOLLOW, StatxFlags::BASIC_STATS).map_err(io)?;
    Ok(())
}

/// Runs the work of `plan` on a directory that [`prepare`](super::prepare) has filled through a share: one operation after the other,
/// whatever the depth. `daemon_cpu` is the time of this thread.
pub fn run_native(directory: &Path, plan: &Plan) -> Result<Report> {
    let bytes_per_op = match plan.row {
        RowKind::Churn4k | RowKind::Randread4k | RowKind::Randwrite4k => SMALL as u64,
        RowKind::Seqread1m | RowKind::Seqwrite1m => LARGE as u64,
        _ => 0,
    };
    let mut report = Report { bytes_per_op, ..Report::default() };
    let mut place = Place::open(directory, plan.row)?;
    let begin = Instant::now();
    while begin.elapsed() < plan.warm {
        place.work(plan.row)?;
    }
    let (cpu, start) = (thread_cpu(), Instant::now());
    let mut then = start;
    while then - start < plan.time {
        place.work(plan.row)?;
        let now = Instant::now();
        report.ops += 1;
        report.latency.add((now - then).as_nanos() as u64);
        then = now;
    }
    report.time = then - start;
    report.daemon_cpu = thread_cpu().saturating_sub(cpu);
    place.leave(plan.row)?;
    Ok(report)
}
