//! The DAX window over vhost-user: mappings by message (VHOST_USER_PROTOCOL_F_SHMEM).
//!
//! What released front ends do shapes this file. QEMU 11.1 sends the memory table anew in the middle of each mapping, and waits for it to be
//! acknowledged on the other channel, whose thread must therefore never wait for this one. It crashes when it is asked
//! while its device is stopped. It acknowledges a mapping before its guest can see it, so that one more question is put behind each
//! ([`Settings::barrier`]): the answer comes when the first is done. It maps nothing read-only and nothing behind the end of a
//! file: that is found out when a session begins, by mapping a file of our own.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use rustix::fs::{CWD, MemfdFlags, Mode, OFlags, fstat, memfd_create, openat};
use vhost::vhost_user::message::{BackendReq, VhostUserMMapFlags, VhostUserShMemConfig};
use virtiofs_dax::{GRANULE, MappedFile, Mapper, Mapping, PAGE, Refusal};
use virtiofs_fuse::wire::{RemovemappingOne, SetupmappingIn};
use virtiofs_fuse::{Backing, Error, Mappable, Result, Window};
use virtiofs_virtqueue::{Event, Remote};
use zerocopy::{FromBytes, Immutable, IntoBytes};

use super::backchannel::Backchannel;
use super::endless::Endless;
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
    /// What was sent to be mapped, to be known again in the memory table.
    sent: Mutex<Vec<Sent>>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Sent {
    file: (u64, u64),
    file_offset: u64,
    len: u64,
    offset: u64,
}

impl Shmem {
    pub(super) fn new(settings: Settings) -> io::Result<Shmem> {
        let link = Arc::new(Link {
            settings,
            channel: Mutex::new(None),
            halted: AtomicBool::new(true),
            halt: Event::new()?,
            asked: AtomicBool::new(false),
            endless: Mutex::new(None),
            sent: Mutex::default(),
        });
        link.halt.signal();
        let window = virtiofs_dax::Window::new(Arc::clone(&link), settings.size, settings.mappings);
        Ok(Shmem { window: window.map_err(io::Error::other)?, link, found: Mutex::new(None) })
    }

    /// The answer to GET_SHMEM_CONFIG.
    pub(super) fn config(&self) -> Vec<u8> {
        self.link.asked.store(true, Ordering::Relaxed);
        let config = VhostUserShMemConfig::new(1, &[self.window.size()]);
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

    /// What the front end maps, found out by trying.
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
    fn begin(&self) -> Result<Option<Mappable>> {
        self.window.clear().map_err(window::error)?;
        let found = &mut *self.found.lock();
        let known = match *found {
            Some(known) => known,
            None => *found.insert(self.probe().or_else(|refusal| match refusal {
                Refusal::Halted => Err(Error::Halted),
                refusal => {
                    tracing::warn!(%refusal, "the VMM's DAX window cannot be used");
                    Ok(Found::Nothing)
                }
            })?),
        };
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
        let fd = mapping.file.to_map();
        let Mapping { file_offset, len, offset, .. } = *mapping;
        let flags = if mapping.writable { VhostUserMMapFlags::WRITABLE } else { VhostUserMMapFlags::empty() };
        let sent = Sent { file: identity(fd)?, file_offset, len, offset };
        self.sent.lock().push(sent);
        let place = Place { region: 0, file_offset, offset, len, flags: flags.bits() };
        let answer = self.ask(BackendReq::SHMEM_MAP, place.as_bytes(), Some(fd)).and_then(|answer| self.settle(answer));
        if answer.is_ok() && self.settings.barrier {
            // Whatever the answer: there is no such object, and nothing was asked but whether the last request is done.
            self.ask(BackendReq::SHARED_OBJECT_LOOKUP, &[0; 16], None)?;
        }
        if answer.is_err() {
            self.sent.lock().retain(|other| *other != sent);
        }
        answer
    }

    fn unmap(&self, offset: u64, len: u64) -> Result<(), Refusal> {
        let place = Place { region: 0, file_offset: 0, offset, len, flags: 0 };
        let answer = self.settle(self.ask(BackendReq::SHMEM_UNMAP, place.as_bytes(), None)?);
        self.sent.lock().retain(|sent| sent.offset != offset);
        answer
    }
}
