//! A share behind registers, and the VMM around them.

use std::fs::File;
use std::sync::Arc;

use tempfile::TempDir;
use virtiofs_device::mmio::Mmio;
use virtiofs_device::{Call, Device, Identity, LocalWindow, Threads};
use virtiofs_fuse::{Limits, Server};
use virtiofs_guest::{Error, Guest, Machine, Options, Region, Result};
use virtiofs_hostdir::HostDir;
use virtiofs_virtqueue::SharedMemory;

pub(crate) struct Share {
    pub(crate) dir: TempDir,
    pub(crate) fs: Arc<HostDir>,
    pub(crate) device: Arc<Device>,
    pub(crate) machine: Arc<Vmm>,
}

impl Share {
    pub(crate) fn new(request_queues: u16) -> Share {
        Share::of(request_queues, Threads::Own { slow: 4 }, |device| device)
    }

    pub(crate) fn of(request_queues: u16, threads: Threads, with: impl FnOnce(Device) -> Device) -> Share {
        let dir = tempfile::tempdir().unwrap();
        let config = virtiofs_hostdir::Config { root: dir.path().into(), xattr: true, ..Default::default() };
        let fs = Arc::new(HostDir::new(config).unwrap());
        let server = Arc::new(Server::new(fs.clone(), Limits::default()));
        let identity = Identity::new("share", request_queues).unwrap();
        let device = Device::new(identity, server, Arc::<SharedMemory>::default(), threads);
        let device = Arc::new(with(device.with_window(LocalWindow::new(8 << 20, 4).unwrap())));
        let mmio = Mmio::new(Arc::clone(&device)).unwrap();
        Share { dir, fs, device, machine: Arc::new(Vmm(mmio)) }
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
