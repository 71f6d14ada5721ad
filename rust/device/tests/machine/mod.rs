//! A share behind registers, and the VMM around them. No test needs all of it.
#![allow(dead_code)]

use std::fs::File;
use std::path::Path;
use std::sync::Arc;

use tempfile::TempDir;
use virtiofs_device::mmio::Mmio;
use virtiofs_device::{Call, Device, Identity, LocalWindow, Threads};
use virtiofs_fuse::wire::init;
use virtiofs_fuse::{Limits, Server};
use virtiofs_guest::{Error, Guest, Machine, Options, Region, Result};
use virtiofs_hostdir::{HostDir, Locks};
use virtiofs_virtqueue::SharedMemory;

pub(crate) struct Share {
    pub(crate) dir: TempDir,
    pub(crate) fs: Arc<HostDir>,
    pub(crate) device: Arc<Device>,
    pub(crate) machine: Arc<Vmm>,
    pub(crate) locks: Arc<Locks>,
    request_queues: u16,
}

fn make(
    dir: &Path,
    locks: &Arc<Locks>,
    memory: Arc<SharedMemory>,
    request_queues: u16,
    threads: Threads,
    with: impl FnOnce(Device) -> Device,
) -> (Arc<HostDir>, Arc<Vmm>) {
    let config = virtiofs_hostdir::Config { root: dir.into(), xattr: true, ..Default::default() };
    let fs = Arc::new(HostDir::sharing(config, Arc::clone(locks)).unwrap());
    let want = Limits::default().want | init::POSIX_LOCKS | init::FLOCK_LOCKS;
    let server = Arc::new(Server::new(fs.clone(), Limits { want, ..Limits::default() }));
    let identity = Identity::new("share", request_queues).unwrap();
    let device = Device::new(identity, server, memory, threads);
    let device = Arc::new(with(device.with_window(LocalWindow::new(8 << 20, 4).unwrap())));
    (fs, Arc::new(Vmm(Mmio::new(device).unwrap())))
}

impl Share {
    pub(crate) fn new(request_queues: u16) -> Share {
        Share::of(request_queues, Threads::Own { slow: 4 }, |device| device)
    }

    pub(crate) fn of(request_queues: u16, threads: Threads, with: impl FnOnce(Device) -> Device) -> Share {
        let dir = tempfile::tempdir().unwrap();
        let locks = Arc::<Locks>::default();
        let (fs, machine) = make(dir.path(), &locks, Arc::default(), request_queues, threads, with);
        Share { dir, fs, device: machine.0.device().clone(), machine, locks, request_queues }
    }

    /// One more device over the same directory.
    pub(crate) fn another(&self, memory: Arc<SharedMemory>) -> Arc<Vmm> {
        make(self.dir.path(), &self.locks, memory, self.request_queues, Threads::Own { slow: 4 }, |device| device).1
    }

    pub(crate) fn guest(&self, options: Options) -> Guest {
        let transport = virtiofs_guest::Mmio::new(self.machine.clone()).unwrap();
        Guest::over(Box::new(transport), options).unwrap()
    }
}

pub(crate) struct Vmm(pub(crate) Mmio);

impl Machine for Vmm {
    fn read(&self, offset: u64, data: &mut [u8]) {
        self.0.read(offset, data);
    }

    fn write(&self, offset: u64, data: &[u8]) {
        self.0.write(offset, data);
    }

    fn add_memory(&self, region: &Region) -> Result<()> {
        let region = virtiofs_virtqueue::Region {
            guest_address: region.address,
            size: region.size,
            user_address: region.host,
            file: File::from(region.file.try_clone().unwrap()),
            offset: region.file_offset,
        };
        let changed = self.0.device().memory().change(|memory| memory.with(region));
        changed.map_err(|error| Error::Protocol(error.to_string()))?;
        self.0.device().refresh();
        Ok(())
    }

    fn remove_memory(&self, region: &Region) -> Result<()> {
        let changed = self.0.device().memory().change(|memory| memory.without(region.address, region.size));
        changed.map_err(|error| Error::Protocol(error.to_string()))?;
        self.0.device().refresh();
        Ok(())
    }

    fn set_interrupt(&self, handler: Box<dyn Fn() + Send + Sync>) {
        self.0.set_line(Some(Call::Function(Arc::from(handler))));
    }
}
