//! The DAX window over vhost-user: mappings by message (VHOST_USER_PROTOCOL_F_SHMEM).
//!
//! What released front ends do shapes this file. QEMU 11.1 sends the memory table anew in the middle of each mapping, and waits for it to be
//! acknowledged on the other channel, whose thread must therefore never wait for this one. It crashes when it is asked
//! while its device is stopped. It acknowledges a mapping before its guest can see it, so that one more question is put behind each
//! ([`Settings::barrier`]): the answer comes when the first is done. It maps nothing read-only and nothing behind the end of a
//! file: that is found out when a session begins, by mapping a file of our own.

mod link;

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;

use parking_lot::Mutex;
use vhost::vhost_user::message::VhostUserShMemConfig;
use virtiofs_coherence::Table;
use virtiofs_dax::{Mapping, PAGE, Refusal};
use virtiofs_fuse::wire::{RemovemappingOne, SetupmappingIn};
use virtiofs_fuse::{Backing, Error, Mappable, Result, Window};
use virtiofs_virtqueue::Remote;

use super::endless::Endless;
use super::guard::Guard;
use crate::window;
use link::{Link, memfd, reader};

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

/// One guest's window in its VMM.
#[derive(Debug)]
pub(super) struct Shmem {
    window: virtiofs_dax::Window<Arc<Link>>,
    link: Arc<Link>,
    found: Mutex<Option<Found>>,
    /// A file was made shorter while nothing could be said.
    missed: AtomicBool,
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

impl Shmem {
    /// A window, and beside it the version table of the share, if that is no larger.
    pub(super) fn new(settings: Settings, table: Option<Arc<Table>>) -> io::Result<Arc<Shmem>> {
        let link = Arc::new(Link::new(settings)?);
        let window = virtiofs_dax::Window::new(Arc::clone(&link), settings.size, settings.mappings);
        let window = window.map_err(io::Error::other)?;
        let table = table.filter(|table| table.size() as u64 <= settings.size);
        let shmem = Arc::new(Shmem { window, link, found: Mutex::new(None), missed: AtomicBool::new(false), table });
        let weak = Arc::downgrade(&shmem);
        let guard = Guard::new(Box::new(move |key| {
            if let Some(shmem) = Weak::upgrade(&weak) {
                shmem.became_shorter(key);
            }
        }));
        match guard {
            Ok(guard) => shmem.link.watch_by(guard),
            Err(error) => tracing::warn!(%error, "mapped files that become shorter go unnoticed"),
        }
        Ok(shmem)
    }

    /// The answer to GET_SHMEM_CONFIG.
    pub(super) fn config(&self) -> Vec<u8> {
        self.link.is_asked_for();
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
        self.link.connect(fd)
    }

    /// From now on nothing is sent, and whoever waits for an answer goes away.
    pub(super) fn halt(&self) {
        self.link.halt();
    }

    /// Messages may be sent again. Answers whether they might not.
    pub(super) fn resume(&self) -> bool {
        self.link.resume()
    }

    /// A file has become shorter, or any file may have: zeros take the place of what is gone.
    fn became_shorter(&self, key: Option<u64>) {
        let fitted = match key {
            Some(key) => {
                self.link.cut_short([key]);
                self.window.fit(|mapping| mapping.file.key() == key)
            }
            None => {
                self.link.cut_short(self.window.mappings().iter().map(|mapping| mapping.file.key()));
                self.window.fit(|_| true)
            }
        };
        match fitted {
            Ok(count) => tracing::info!(count, "a mapped file was made shorter: zeros take the place of what is gone"),
            // The next request does it: `catch_up`.
            Err(Refusal::Halted) => self.missed.store(true, Ordering::SeqCst),
            Err(refusal) => tracing::warn!(%refusal, "a mapped file was made shorter, and the VMM may end by it"),
        }
    }

    /// The offset in the window, if this part of a memory table is a mapping of ours.
    pub(super) fn offset_of(&self, file: &File, file_offset: u64, len: u64) -> Option<u64> {
        self.link.offset_of(file.as_fd(), file_offset, len)
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
        if !link.was_asked_for() {
            tracing::warn!(
                "the VMM does not ask for the DAX window: files are read and written by requests (a device that has a window: docs/dax.md)"
            );
            return Ok(Found::Nothing);
        }
        let short = memfd(c"virtiofs-dax-probe", 1)?;
        let reader = reader(short.as_fd())?;
        if !link.tries(&short, true)? {
            match Endless::new() {
                Ok(endless) => link.lengthen_by(endless),
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
        let endless = link.lengthens();
        tracing::info!(size = self.window.size(), read_only, endless, "the VMM has a DAX window");
        Ok(Found::Maps { read_only })
    }
}

impl Window for Shmem {
    fn show(&self) -> Result<()> {
        let Some(table) = &self.table else { return Ok(()) };
        let Found::Maps { read_only: true } = self.known()? else { return Ok(()) };
        match self.link.show(table) {
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
        self.link.begin();
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
        self.link.resizes(node, size);
    }

    /// A file that was made shorter may be longer again: what the guest is about to be told must be there.
    fn catch_up(&self) {
        let missed = self.missed.swap(false, Ordering::SeqCst);
        if !missed && !self.link.has_zeros() {
            return;
        }
        let zeros = self.link.zeros();
        let concerned = |mapping: &Mapping| {
            zeros.iter().any(|at| (mapping.offset..mapping.offset + mapping.len).contains(at))
                || self.link.is_shorter(mapping)
        };
        if let Err(refusal) = self.window.fit(|mapping| concerned(mapping) && self.link.differs(mapping)) {
            tracing::warn!(%refusal, "zeros stay where a file has grown again");
            self.missed.store(true, Ordering::SeqCst);
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
