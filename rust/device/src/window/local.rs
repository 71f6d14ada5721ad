//! The window of a device that is a part of its VMM: addresses of this process, which the VMM gives to its guest as memory.

use std::io;
use std::sync::Arc;

use parking_lot::Mutex;
use virtiofs_dax::{PAGE, Reserved};
use virtiofs_fuse::wire::{RemovemappingOne, SetupmappingIn};
use virtiofs_fuse::{Backing, Mappable, Result, Window};
use virtiofs_virtqueue::{MemoryError, Remote, SharedMemory};

/// A window in this process. What is mapped there is the guest's memory from the same moment on.
#[derive(Debug)]
pub struct Local {
    window: Arc<virtiofs_dax::Window<Reserved>>,
    /// Where the guest sees it.
    place: Mutex<Option<u64>>,
}

impl Local {
    /// A window of `size` bytes (a power of two, 2 MiB at least) for `mappings` at the most.
    pub fn new(size: u64, mappings: usize) -> io::Result<Local> {
        virtiofs_dax::check_size(size).map_err(io::Error::other)?;
        let window = virtiofs_dax::Window::new(Reserved::new(size)?, size, mappings).map_err(io::Error::other)?;
        Ok(Local { window: Arc::new(window), place: Mutex::default() })
    }

    /// What is mapped in it.
    pub fn window(&self) -> &Arc<virtiofs_dax::Window<Reserved>> {
        &self.window
    }

    /// Its size in bytes.
    pub fn size(&self) -> u64 {
        self.window.size()
    }

    /// Where it begins in this process.
    pub fn host_address(&self) -> usize {
        self.window.mapper().address()
    }

    /// How often zeros took the place of what a file did not give.
    pub fn healed(&self) -> u64 {
        self.window.mapper().healed()
    }

    /// Where the guest sees it, if it does.
    pub fn place(&self) -> Option<u64> {
        *self.place.lock()
    }

    /// Makes it known to `memory` that the guest sees the window at an address, or nowhere. Requests may have buffers in it: they are
    /// read and written as the files that are mapped there.
    pub fn set_place(self: &Arc<Local>, memory: &SharedMemory, address: Option<u64>) -> Result<(), MemoryError> {
        let mut place = self.place.lock();
        let remote = Arc::clone(self) as Arc<dyn Remote>;
        memory.change(|memory| {
            let without = memory.clone().without_remote(&remote);
            let Some(address) = address else { return Ok(without) };
            without.check_free(address, self.size())?;
            Ok(without.with_remote(address, self.size(), remote))
        })?;
        *place = address;
        Ok(())
    }

    /// Puts zeros where an access of this process at `address` got SIGBUS. False if that is not in the window. It may be called by a
    /// signal handler.
    pub fn handle_sigbus(&self, address: usize) -> bool {
        self.window.mapper().heal(address)
    }

    /// Sees to it that an access of the guest at `address` that failed (KVM_RUN answers EFAULT) works when it is tried again: zeros are put
    /// where a file has become shorter. False where the guest had no business: nothing is mapped there, or not for writing.
    pub fn handle_efault(&self, address: u64) -> bool {
        let offset = self.place().and_then(|place| address.checked_sub(place));
        let Some(offset) = offset.filter(|offset| *offset < self.size()) else { return false };
        let page = offset - offset % PAGE;
        self.window.resolve(page).is_some_and(|piece| self.window.mapper().revive(page, piece.writable))
    }
}

impl Window for Local {
    fn begin(&self) -> Result<Option<Mappable>> {
        self.window.clear().map_err(super::error)?;
        Ok(Some(Mappable { alignment: PAGE.trailing_zeros() as u16, read_only: true }))
    }

    fn map(&self, node: u64, args: &SetupmappingIn, open: &mut dyn FnMut(bool) -> Result<Backing>) -> Result<()> {
        super::map(&self.window, node, args, open)
    }

    fn unmap(&self, ranges: &[RemovemappingOne]) -> Result<()> {
        super::unmap(&self.window, ranges)
    }

    fn maps(&self, node: u64) -> bool {
        self.window.maps(node)
    }

    /// A file that was cut short may be longer again: what the guest is about to be told must be there.
    fn catch_up(&self) {
        if let Err(refusal) = self.window.mend() {
            tracing::warn!(%refusal, "zeros stay where a file has grown again");
        }
    }

    fn end(&self) {
        if let Err(refusal) = self.window.clear() {
            tracing::error!(%refusal, "mappings of a session that is over could not be taken away");
        }
    }
}

impl Remote for Local {
    fn load(&self, offset: u64, out: &mut [u8]) -> bool {
        super::load(&self.window, offset, out)
    }

    fn store(&self, offset: u64, bytes: &[u8]) -> bool {
        super::store(&self.window, offset, bytes)
    }
}
