//! The DAX window over vhost-user: mappings by message (VHOST_USER_PROTOCOL_F_SHMEM).
//!
//! What released front ends do shapes this file. QEMU 11.1 sends the memory table anew in the middle of each mapping, and waits for it to be
//! acknowledged on the other channel, whose thread must therefore never wait for this one. It crashes when it is asked
//! while its device is stopped. It acknowledges a mapping before its guest can see it, so that one more question is put behind each
//! ([`Settings::barrier`]): the answer comes when the first is done. It maps nothing read-only and nothing behind the end of a
//! file: that is found out when a session begins, by mapping a file of our own.

use std::collections::HashSet;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock, Weak};
use std::time::Duration;

use parking_lot::Mutex;
use rustix::fs::{CWD, FallocateFlags, MemfdFlags, Mode, OFlags, fstat, memfd_create, openat};
use vhost::vhost_user::message::{BackendReq, VhostUserMMapFlags, VhostUserShMemConfig};
use virtiofs_coherence::Table;
use virtiofs_dax::{GRANULE, MappedFile, Mapper, Mapping, PAGE, Refusal};
use virtiofs_fuse::wire::{RemovemappingOne, SetupmappingIn};
use virtiofs_fuse::{Backing, Error, Mappable, Result, Window};
use virtiofs_virtqueue::{Event, Remote};
use zerocopy::{FromBytes, Immutable, IntoBytes};

use super::backchannel::Backchannel;
use super::endless::Endless;
use super::guard::Guard;
use crate::window;

/// How a window is offered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Settings {
    /// Bytes; a power of two, 2 MiB at least.
    pub size: u64,
    /// Mappings at the same time, at the most.
    pub mappings: usize,
    /// Put a question of no consequence behind each mapping, and wait for its answer too. For front ends that acknowledge a mapping
    /// before it can be seen.
    pub barrier: bool,
    /// The longest wait for an answer. One that does not come in time is the end of the channel.
    pub patience: Duration,
}

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

/// One guest's window in its VMM.
#[derive(Debug)]
pub(super) struct Shmem {
    window: virtiofs_dax::Window<Arc<Link>>,
    link: Arc<Link>,
    found: Mutex<Option<Found>>,
    /// Of the share's version table, to read alone: region 1.
    table: Option<Arc<Table>>,
}

/// What the front end turned out to do.
#[derive(Clone, Copy, Debug)]
enum Found {
    Nothing,
    /// It maps files; read-only ones too, or not.
    Maps {
        read_only: bool,
    },
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
    /// A file was made shorter while nothing could be said.
    missed: AtomicBool,
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

/// Regions of the specification: the DAX window, and the version table (docs/version-table.md).
const WINDOW: u64 = 0;
const TABLE: u64 = 1;

impl Shmem {
    /// A window, and beside it the version table of the share, if that is no larger.
    pub(super) fn new(settings: Settings, table: Option<Arc<Table>>) -> io::Result<Arc<Shmem>> {
        let zeros = memfd_create(c"virtiofs-dax-zeros", MemfdFlags::CLOEXEC)?;
        rustix::fs::ftruncate(&zeros, settings.size)?;
        let link = Arc::new(Link {
            settings,
            channel: Mutex::new(None),
            halted: AtomicBool::new(true),
            halt: Event::new()?,
            asked: AtomicBool::new(false),
            endless: Mutex::new(None),
            sent: Mutex::default(),
            shorter: Mutex::default(),
            zeros,
            zeroed: AtomicBool::new(false),
            missed: AtomicBool::new(false),
            guard: OnceLock::new(),
        });
        link.halt.signal();
        let window = virtiofs_dax::Window::new(Arc::clone(&link), settings.size, settings.mappings);
        let window = window.map_err(io::Error::other)?;
        let table = table.filter(|table| table.size() as u64 <= settings.size);
        let shmem = Arc::new(Shmem { window, link, found: Mutex::new(None), table });
        let weak = Arc::downgrade(&shmem);
        let guard = Guard::new(Box::new(move |key| {
            if let Some(shmem) = Weak::upgrade(&weak) {
                shmem.became_shorter(key);
            }
        }));
        match guard {
            Ok(guard) => _ = shmem.link.guard.set(guard),
            Err(error) => tracing::warn!(%error, "mapped files that become shorter go unnoticed"),
        }
        Ok(shmem)
    }

    /// The answer to GET_SHMEM_CONFIG.
    pub(super) fn config(&self) -> Vec<u8> {
        self.link.asked.store(true, Ordering::Relaxed);
        // QEMU 11.1 wants a power of two of all regions together, so the table's is as large as the window. It is not filled.
        let size = self.window.size();
        let config = match &self.table {
            None => VhostUserShMemConfig::new(1, &[size]),
            Some(_) => VhostUserShMemConfig::new(2, &[size, size]),
        };
        vm_memory::ByteValued::as_slice(&config).to_vec()
    }

    /// The descriptor of SET_BACKEND_REQ_FD.
    pub(super) fn connect(&self, fd: OwnedFd) -> io::Result<()> {
        *self.link.channel.lock() = Some(Backchannel::new(fd, self.link.settings.patience)?);
        Ok(())
    }

    /// From now on nothing is sent, and whoever waits for an answer goes away.
    pub(super) fn halt(&self) {
        self.link.halted.store(true, Ordering::SeqCst);
        self.link.halt.signal();
        // Whoever was about to send has sent, and does not wait.
        drop(self.link.channel.lock());
    }

    /// Messages may be sent again. Answers whether they might not.
    pub(super) fn resume(&self) -> bool {
        self.link.halt.drain();
        self.link.halted.swap(false, Ordering::SeqCst)
    }

    /// A file has become shorter, or any file may have: zeros take the place of what is gone.
    fn became_shorter(&self, key: Option<u64>) {
        let fitted = match key {
            Some(key) => {
                self.link.shorter.lock().insert(key);
                self.window.fit(|mapping| mapping.file.key() == key)
            }
            None => {
                let all = self.window.mappings();
                self.link.shorter.lock().extend(all.iter().map(|mapping| mapping.file.key()));
                self.window.fit(|_| true)
            }
        };
        match fitted {
            Ok(count) => tracing::info!(count, "a mapped file was made shorter: zeros take the place of what is gone"),
            // The next request does it: `catch_up`.
            Err(Refusal::Halted) => self.link.missed.store(true, Ordering::SeqCst),
            Err(refusal) => tracing::warn!(%refusal, "a mapped file was made shorter, and the VMM may end by it"),
        }
    }

    /// Shows the guest the version table, to be read alone: what guests could write would be no proof for others.
    fn show_table(&self, table: &Table) -> Result<(), Refusal> {
        let path = format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&table.fd()));
        let reader = openat(CWD, path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty()).map_err(io::Error::from)?;
        let len = (table.size() as u64).next_multiple_of(PAGE);
        let place = Place { region: TABLE, file_offset: 0, offset: 0, len, flags: 0 };
        // What an earlier session left, if it did.
        let _ = self.link.ask(BackendReq::SHMEM_UNMAP, place.as_bytes(), None)?;
        self.link.settle(self.link.ask(BackendReq::SHMEM_MAP, place.as_bytes(), Some(reader.as_fd()))?)
    }

    /// The offset in the window, if this part of a memory table is a mapping of ours.
    pub(super) fn offset_of(&self, file: &File, file_offset: u64, len: u64) -> Option<u64> {
        let file = identity(file.as_fd()).ok()?;
        let sent = self.link.sent.lock();
        sent.iter()
            .find(|sent| sent.file == file && sent.file_offset == file_offset && sent.len == len)
            .map(|sent| sent.offset)
    }

    /// Its size in bytes.
    pub(super) fn size(&self) -> u64 {
        self.window.size()
    }

    /// What the front end maps, found out when that is first asked.
    fn known(&self) -> Result<Found> {
        let found = &mut *self.found.lock();
        Ok(match *found {
            Some(known) => known,
            None => *found.insert(self.probe().or_else(|refusal| match refusal {
                Refusal::Halted => Err(Error::Halted),
                refusal => {
                    tracing::warn!(%refusal, "the VMM's DAX window cannot be used");
                    Ok(Found::Nothing)
                }
            })?),
        })
    }

    /// The same by trying.
    fn probe(&self) -> Result<Found, Refusal> {
        let link = &*self.link;
        if !link.asked.load(Ordering::Relaxed) {
            tracing::warn!(
                "the VMM does not ask for the DAX window: files are read and written by requests (a device that has a window: docs/dax.md)"
            );
            return Ok(Found::Nothing);
        }
        let short = memfd_create(c"virtiofs-dax-probe", MemfdFlags::CLOEXEC).map_err(io::Error::from)?;
        rustix::fs::ftruncate(&short, 1).map_err(io::Error::from)?;
        let path = format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&short));
        let reader = openat(CWD, path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty()).map_err(io::Error::from)?;
        if !link.tries(&short, true)? {
            match Endless::new() {
                Ok(endless) => *link.endless.lock() = Some(endless),
                Err(error) => {
                    tracing::warn!(
                        %error,
                        "the VMM maps whole pages of files alone, and this daemon cannot help it: files are read and written by \
                         requests (as root, on Linux 6.9 or newer, they could be mapped)"
                    );
                    return Ok(Found::Nothing);
                }
            }
            if !link.tries(&short, true)? {
                tracing::warn!("the VMM maps no file: files are read and written by requests");
                return Ok(Found::Nothing);
            }
        }
        let read_only = link.tries(&reader, false)?;
        let endless = link.endless.lock().is_some();
        tracing::info!(size = self.window.size(), read_only, endless, "the VMM has a DAX window");
        Ok(Found::Maps { read_only })
    }
}

impl Window for Shmem {
    fn show(&self) -> Result<()> {
        let Some(table) = &self.table else { return Ok(()) };
        let Found::Maps { read_only: true } = self.known()? else { return Ok(()) };
        match self.show_table(table) {
            Err(Refusal::Halted) => Err(Error::Halted),
            Err(refusal) => {
                tracing::warn!(%refusal, "the VMM does not show the version table");
                Ok(())
            }
            Ok(()) => Ok(()),
        }
    }

    fn begin(&self) -> Result<Option<Mappable>> {
        self.window.clear().map_err(window::error)?;
        self.link.shorter.lock().clear();
        if let Some(guard) = self.link.guard.get() {
            guard.clear();
        }
        let known = self.known()?;
        Ok(match known {
            Found::Nothing => None,
            Found::Maps { read_only } => Some(Mappable { alignment: PAGE.trailing_zeros() as u16, read_only }),
        })
    }

    fn map(&self, node: u64, args: &SetupmappingIn, open: &mut dyn FnMut(bool) -> Result<Backing>) -> Result<()> {
        if !matches!(*self.found.lock(), Some(Found::Maps { .. })) {
            return Err(Error::Errno(libc::EOPNOTSUPP));
        }
        window::map(&self.window, node, args, open)
    }

    fn unmap(&self, ranges: &[RemovemappingOne]) -> Result<()> {
        window::unmap(&self.window, ranges)
    }

    fn resizes(&self, node: u64, size: u64) {
        if let Some(guard) = self.link.guard.get() {
            guard.own(node, size);
        }
    }

    /// A file that was made shorter may be longer again: what the guest is about to be told must be there.
    fn catch_up(&self) {
        let missed = self.link.missed.swap(false, Ordering::SeqCst);
        if !missed && !self.link.zeroed.load(Ordering::SeqCst) {
            return;
        }
        let zeros = self.link.zeros();
        let concerned = |mapping: &Mapping| {
            zeros.iter().any(|at| (mapping.offset..mapping.offset + mapping.len).contains(at))
                || self.link.is_shorter(mapping)
        };
        if let Err(refusal) = self.window.fit(|mapping| concerned(mapping) && self.link.differs(mapping)) {
            tracing::warn!(%refusal, "zeros stay where a file has grown again");
            self.link.missed.store(true, Ordering::SeqCst);
        }
    }

    fn maps(&self, node: u64) -> bool {
        self.window.maps(node)
    }

    fn end(&self) {
        if let Err(refusal) = self.window.clear() {
            tracing::debug!(%refusal, "mappings stay until the next session begins");
        }
    }
}

/// Buffers that lie in the window, as when a program in the guest writes to one file from a mapping of another.
impl Remote for Shmem {
    fn load(&self, offset: u64, out: &mut [u8]) -> bool {
        window::load(&self.window, offset, out)
    }

    fn store(&self, offset: u64, bytes: &[u8]) -> bool {
        window::store(&self.window, offset, bytes)
    }
}

fn identity(file: BorrowedFd<'_>) -> io::Result<(u64, u64)> {
    let status = fstat(file)?;
    Ok((status.st_dev, status.st_ino))
}

impl Link {
    /// Whether the front end maps 2 MiB of a file as short as this one.
    fn tries(&self, file: &OwnedFd, writable: bool) -> Result<bool, Refusal> {
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

    fn is_shorter(&self, mapping: &Mapping) -> bool {
        self.shorter.lock().contains(&mapping.file.key())
    }

    /// Where zeros are.
    fn zeros(&self) -> Vec<u64> {
        self.sent.lock().iter().filter(|sent| sent.zeros).map(|sent| sent.offset).collect()
    }

    /// Whether a mapping has zeros where there is file now, or the reverse.
    fn differs(&self, mapping: &Mapping) -> bool {
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
