//! The way to the front end of a window: what was sent to be mapped where, and how more is.

use std::collections::HashSet;
use std::ffi::CStr;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};

use parking_lot::Mutex;
use rustix::fs::{CWD, FallocateFlags, MemfdFlags, Mode, OFlags, fstat, memfd_create, openat};
use vhost::vhost_user::message::{BackendReq, VhostUserMMapFlags};
use virtiofs_coherence::Table;
use virtiofs_dax::{GRANULE, MappedFile, Mapper, Mapping, PAGE, Refusal};
use virtiofs_virtqueue::Event;
use zerocopy::{FromBytes, Immutable, IntoBytes};

use super::super::backchannel::Backchannel;
use super::super::endless::Endless;
use super::super::guard::Guard;
use super::Settings;

/// Regions of the specification: the DAX window, and the version table (docs/version-table.md).
const WINDOW: u64 = 0;
const TABLE: u64 = 1;

/// Body of SHMEM_MAP and SHMEM_UNMAP: `VhostUserMMap` of the specification.
#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable)]
#[repr(C)]
struct Place {
    region: u64,
    file_offset: u64,
    offset: u64,
    len: u64,
    flags: u64,
}

/// The way to the front end.
#[derive(Debug)]
pub(super) struct Link {
    settings: Settings,
    channel: Mutex<Option<Backchannel>>,
    /// Set while the front end must be left alone, and signalled for as long.
    halted: AtomicBool,
    halt: Event,
    /// The front end wants to know the size: otherwise it has no window, whatever it negotiated.
    asked: AtomicBool,
    /// Files without an end, where the front end needs them.
    endless: Mutex<Option<Endless>>,
    /// What was sent to be mapped: parts of mappings, and known again in the memory table.
    sent: Mutex<Vec<Sent>>,
    /// Files that somebody has made shorter, by key, until they have grown again.
    shorter: Mutex<HashSet<u64>>,
    /// Pages of zeros for what is behind the end of a file, each at its place in the window.
    zeros: OwnedFd,
    /// Some of them are mapped.
    zeroed: AtomicBool,
    /// Says when a mapped file becomes shorter, if anybody can.
    guard: OnceLock<Guard>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Sent {
    file: (u64, u64),
    file_offset: u64,
    len: u64,
    offset: u64,
    /// Zeros, and not the file.
    zeros: bool,
    /// The front end has said that it is there.
    sure: bool,
}

impl Sent {
    fn end(&self) -> u64 {
        self.offset + self.len
    }
}

fn identity(file: BorrowedFd<'_>) -> io::Result<(u64, u64)> {
    let status = fstat(file)?;
    Ok((status.st_dev, status.st_ino))
}

/// A file in memory of so many bytes.
pub(super) fn memfd(name: &CStr, size: u64) -> io::Result<OwnedFd> {
    let file = memfd_create(name, MemfdFlags::CLOEXEC)?;
    rustix::fs::ftruncate(&file, size)?;
    Ok(file)
}

/// The same file, to be read alone.
pub(super) fn reader(file: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    let path = format!("/proc/self/fd/{}", file.as_raw_fd());
    Ok(openat(CWD, path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?)
}

impl Link {
    /// Before there is a channel.
    pub(super) fn new(settings: Settings) -> io::Result<Link> {
        let link = Link {
            settings,
            channel: Mutex::new(None),
            halted: AtomicBool::new(true),
            halt: Event::new()?,
            asked: AtomicBool::new(false),
            endless: Mutex::new(None),
            sent: Mutex::default(),
            shorter: Mutex::default(),
            zeros: memfd(c"virtiofs-dax-zeros", settings.size)?,
            zeroed: AtomicBool::new(false),
            guard: OnceLock::new(),
        };
        link.halt.signal();
        Ok(link)
    }

    pub(super) fn connect(&self, fd: OwnedFd) -> io::Result<()> {
        *self.channel.lock() = Some(Backchannel::new(fd, self.settings.patience)?);
        Ok(())
    }

    pub(super) fn halt(&self) {
        self.halted.store(true, Ordering::SeqCst);
        self.halt.signal();
        // Whoever was about to send has sent, and does not wait.
        drop(self.channel.lock());
    }

    pub(super) fn resume(&self) -> bool {
        self.halt.drain();
        self.halted.swap(false, Ordering::SeqCst)
    }

    /// The front end has asked for the size of the window.
    pub(super) fn is_asked_for(&self) {
        self.asked.store(true, Ordering::Relaxed);
    }

    pub(super) fn was_asked_for(&self) -> bool {
        self.asked.load(Ordering::Relaxed)
    }

    /// From now on all that is mapped is given without an end.
    pub(super) fn lengthen_by(&self, endless: Endless) {
        *self.endless.lock() = Some(endless);
    }

    pub(super) fn lengthens(&self) -> bool {
        self.endless.lock().is_some()
    }

    pub(super) fn watch_by(&self, guard: Guard) {
        // Once, when the window is made.
        let _ = self.guard.set(guard);
    }

    /// A session begins, with nothing mapped.
    pub(super) fn begin(&self) {
        self.shorter.lock().clear();
        if let Some(guard) = self.guard.get() {
            guard.clear();
        }
    }

    /// The guest itself gives a file a size.
    pub(super) fn resizes(&self, key: u64, size: u64) {
        if let Some(guard) = self.guard.get() {
            guard.own(key, size);
        }
    }

    /// Somebody else has made these files shorter.
    pub(super) fn cut_short(&self, keys: impl IntoIterator<Item = u64>) {
        self.shorter.lock().extend(keys);
    }

    pub(super) fn has_zeros(&self) -> bool {
        self.zeroed.load(Ordering::SeqCst)
    }

    /// Shows the guest the version table, to be read alone: what guests could write would be no proof for others.
    pub(super) fn show(&self, table: &Table) -> Result<(), Refusal> {
        let reader = reader(table.fd())?;
        let len = (table.size() as u64).next_multiple_of(PAGE);
        let place = Place { region: TABLE, file_offset: 0, offset: 0, len, flags: 0 };
        // What an earlier session left, if it did.
        let _ = self.ask(BackendReq::SHMEM_UNMAP, place.as_bytes(), None)?;
        self.settle(self.ask(BackendReq::SHMEM_MAP, place.as_bytes(), Some(reader.as_fd()))?)
    }

    /// The offset in the window, if this part of a file is a mapping of ours.
    pub(super) fn offset_of(&self, file: BorrowedFd<'_>, file_offset: u64, len: u64) -> Option<u64> {
        let file = identity(file).ok()?;
        let sent = self.sent.lock();
        sent.iter()
            .find(|sent| sent.file == file && sent.file_offset == file_offset && sent.len == len)
            .map(|sent| sent.offset)
    }

    /// Whether the front end maps 2 MiB of a file as short as this one.
    pub(super) fn tries(&self, file: &OwnedFd, writable: bool) -> Result<bool, Refusal> {
        let stand_in = self.stand_in(file.as_fd(), writable)?;
        let file = Arc::new(MappedFile::new(0, file.try_clone()?, writable, stand_in));
        match self.map(&Mapping { offset: 0, len: GRANULE, file, file_offset: 0, writable }) {
            Ok(()) => self.unmap(0, GRANULE).map(|()| true),
            Err(Refusal::Failed(error)) if error.raw_os_error() == Some(libc::EIO) => Ok(false),
            Err(refusal) => Err(refusal),
        }
    }

    fn ask(&self, request: BackendReq, body: &[u8], fd: Option<BorrowedFd<'_>>) -> Result<u64, Refusal> {
        let channel = &mut *self.channel.lock();
        if self.halted.load(Ordering::SeqCst) {
            return Err(Refusal::Halted);
        }
        let Some(open) = channel else { return Err(io::Error::from_raw_os_error(libc::ENOTCONN).into()) };
        match open.ask(request, body, fd, &self.halt) {
            Err(Refusal::Failed(error)) => {
                tracing::warn!(?request, %error, "the VMM does not answer as it should: no more files are mapped");
                *channel = None;
                Err(error.into())
            }
            answer => answer,
        }
    }

    fn settle(&self, answer: u64) -> Result<(), Refusal> {
        if answer == 0 { Ok(()) } else { Err(io::Error::from_raw_os_error(libc::EIO).into()) }
    }
}

impl Mapper for Link {
    fn overlays(&self) -> bool {
        false
    }

    fn stand_in(&self, file: BorrowedFd<'_>, writable: bool) -> Result<Option<OwnedFd>, Refusal> {
        let endless = self.endless.lock();
        Ok(endless.as_ref().map(|endless| endless.view(file, writable)).transpose()?)
    }

    fn map(&self, mapping: &Mapping) -> Result<(), Refusal> {
        if let Some(guard) = self.guard.get()
            && let Err(error) = guard.watch(&mapping.file)
        {
            tracing::debug!(%error, "a mapped file cannot be watched");
        }
        self.lay(mapping, self.lasts(mapping))
    }

    fn unmap(&self, offset: u64, len: u64) -> Result<(), Refusal> {
        let parts = self.parts(offset, offset + len);
        if parts.is_empty() {
            return self.take(offset, len);
        }
        let answer = parts.iter().map(|part| self.remove(part)).fold(Ok(()), Result::and);
        self.count_zeros();
        answer
    }

    fn fit(&self, mapping: &Mapping) -> Result<(), Refusal> {
        self.lay(mapping, self.lasts(mapping))
    }
}

/// What is laid where: a mapping is its file up to where that lasts, and zeros behind.
impl Link {
    /// How many bytes of a mapping are to be the file. A file is mapped beyond its end, since it may grow at any time; but not where it ends
    /// before the mapping begins, so that the guest has a wrong idea of it, nor once somebody has made it shorter.
    fn lasts(&self, mapping: &Mapping) -> u64 {
        let Ok(status) = fstat(mapping.file.fd()) else { return mapping.len };
        let end = (status.st_size as u64).next_multiple_of(PAGE);
        let inside = end.saturating_sub(mapping.file_offset).min(mapping.len);
        if inside == 0 || self.is_shorter(mapping) { inside } else { mapping.len }
    }

    pub(super) fn is_shorter(&self, mapping: &Mapping) -> bool {
        self.shorter.lock().contains(&mapping.file.key())
    }

    /// Where zeros are.
    pub(super) fn zeros(&self) -> Vec<u64> {
        self.sent.lock().iter().filter(|sent| sent.zeros).map(|sent| sent.offset).collect()
    }

    /// Whether a mapping has zeros where there is file now, or the reverse.
    pub(super) fn differs(&self, mapping: &Mapping) -> bool {
        let zeros = self.parts(mapping.offset, mapping.offset + mapping.len).into_iter().find(|part| part.zeros);
        let laid = zeros.map_or(mapping.len, |part| part.offset - mapping.offset);
        let lasts = self.lasts(mapping);
        if lasts > laid {
            // It has grown: it may go on, and is mapped beyond its end as any other.
            self.shorter.lock().remove(&mapping.file.key());
        }
        lasts != laid
    }

    fn parts(&self, start: u64, end: u64) -> Vec<Sent> {
        let mut parts: Vec<_> =
            self.sent.lock().iter().filter(|sent| sent.offset >= start && sent.end() <= end).copied().collect();
        parts.sort_by_key(|part| part.offset);
        parts
    }

    /// Sees to it that the first `lasts` bytes of a mapping are its file and the rest zeros. What is right already is left alone.
    fn lay(&self, mapping: &Mapping, lasts: u64) -> Result<(), Refusal> {
        let answer = self.lay_parts(mapping, lasts);
        self.count_zeros();
        answer
    }

    /// Not before all is done: until then whoever has news of a file for the guest waits ([`Window::catch_up`]).
    fn count_zeros(&self) {
        self.zeroed.store(!self.zeros().is_empty(), Ordering::SeqCst);
    }

    fn lay_parts(&self, mapping: &Mapping, lasts: u64) -> Result<(), Refusal> {
        let (start, middle, end) = (mapping.offset, mapping.offset + lasts, mapping.offset + mapping.len);
        let mut laid = Vec::new();
        for part in self.parts(start, end) {
            let right = if part.zeros { part.offset >= middle } else { part.end() <= middle };
            if right && part.sure {
                laid.push((part.offset, part.end()));
            } else {
                match self.remove(&part) {
                    Err(Refusal::Halted) => return Err(Refusal::Halted),
                    Err(refusal) => {
                        tracing::debug!(%refusal, offset = part.offset, "a part of a mapping was gone already")
                    }
                    Ok(()) => {}
                }
            }
        }
        let mut at = start;
        while at < end {
            if let Some((_, after)) = laid.iter().find(|(from, _)| *from == at) {
                at = *after;
                continue;
            }
            let next = laid.iter().map(|(from, _)| *from).filter(|from| *from > at).min().unwrap_or(end);
            let until = if at < middle { next.min(middle) } else { next };
            self.add(mapping, at, until - at, at >= middle)?;
            at = until;
        }
        Ok(())
    }

    /// Maps one part of a mapping: of its file, or of zeros.
    fn add(&self, mapping: &Mapping, offset: u64, len: u64, zeros: bool) -> Result<(), Refusal> {
        let (fd, file_offset) = match zeros {
            true => (self.zeros.as_fd(), offset),
            false => (mapping.file.to_map(), mapping.file_offset + (offset - mapping.offset)),
        };
        let flags = if mapping.writable { VhostUserMMapFlags::WRITABLE } else { VhostUserMMapFlags::empty() };
        let sent = Sent { file: identity(fd)?, file_offset, len, offset, zeros, sure: true };
        self.sent.lock().push(sent);
        if zeros {
            self.zeroed.store(true, Ordering::SeqCst);
        }
        let place = Place { region: WINDOW, file_offset, offset, len, flags: flags.bits() };
        let answer = self.ask(BackendReq::SHMEM_MAP, place.as_bytes(), Some(fd)).and_then(|answer| self.settle(answer));
        if answer.is_ok() && self.settings.barrier {
            // Whatever the answer: there is no such object, and nothing was asked but whether the last request is done.
            self.ask(BackendReq::SHARED_OBJECT_LOOKUP, &[0; 16], None)?;
        }
        match &answer {
            Ok(()) => {}
            // It may be there, and is taken away before anything else is put there.
            Err(Refusal::Halted) => self.doubt(offset),
            Err(_) => self.sent.lock().retain(|other| *other != sent),
        }
        answer
    }

    fn remove(&self, part: &Sent) -> Result<(), Refusal> {
        let answer = self.take(part.offset, part.len);
        if let Err(Refusal::Halted) = answer {
            self.doubt(part.offset);
            return answer;
        }
        self.sent.lock().retain(|sent| sent.offset != part.offset);
        if part.zeros {
            // What the guest has stored there is nobody's.
            let hole = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
            let _ = rustix::fs::fallocate(&self.zeros, hole, part.offset, part.len);
        }
        answer
    }

    fn doubt(&self, offset: u64) {
        self.sent.lock().iter_mut().filter(|sent| sent.offset == offset).for_each(|sent| sent.sure = false);
    }

    fn take(&self, offset: u64, len: u64) -> Result<(), Refusal> {
        let place = Place { region: WINDOW, file_offset: 0, offset, len, flags: 0 };
        self.settle(self.ask(BackendReq::SHMEM_UNMAP, place.as_bytes(), None)?)
    }
}
