//! The embedded guest on a device of this process: without a socket, by queue addresses or by registers.

use std::fs::File;
use std::sync::Arc;

use parking_lot::Mutex;
use virtiofs_coherence::View;
use virtiofs_device::mmio::Mmio;
use virtiofs_device::{Call, Device, DeviceError, QueueSetup, State};
use virtiofs_guest::{Config, Error, Machine, Mapped, Memory, Queue, Region, Result, Transport};
use virtiofs_virtqueue as virtqueue;
use virtiofs_virtqueue::Event;

fn refused(error: impl ToString) -> Error {
    Error::Protocol(error.to_string())
}

fn add(device: &Device, region: &Region) -> Result<()> {
    let region = virtqueue::Region {
        guest_address: region.address,
        size: region.size,
        user_address: region.host,
        file: File::from(region.file.try_clone()?),
        offset: region.file_offset,
    };
    device.memory().change(|memory| memory.with(region)).map_err(refused)?;
    device.refresh();
    Ok(())
}

fn remove(device: &Device, region: &Region) -> Result<()> {
    device.memory().change(|memory| memory.without(region.address, region.size)).map_err(refused)?;
    device.refresh();
    Ok(())
}

/// Takes out what a guest has put into a device's memory.
fn remove_all(device: &Device, given: &[Region]) {
    for region in given {
        // One that somebody else took out already is gone.
        let _ = remove(device, region);
    }
}

/// The guest address of the window, far behind any memory.
const WINDOW: u64 = 1 << 40;

/// A device by the addresses of its queues.
pub(crate) struct Direct {
    device: Arc<Device>,
    given: Vec<Region>,
    /// The window has its place from us.
    placed: bool,
}

impl Direct {
    pub(crate) fn new(device: Arc<Device>) -> Direct {
        Direct { device, given: Vec::new(), placed: false }
    }

    /// The device may have another guest afterwards.
    fn leave(&mut self) {
        remove_all(&self.device, &std::mem::take(&mut self.given));
        if std::mem::take(&mut self.placed) {
            // Nothing is in the way of nowhere.
            let _ = self.device.place_window(None);
        }
    }
}

impl Drop for Direct {
    fn drop(&mut self) {
        self.leave();
    }
}

impl Transport for Direct {
    fn features(&mut self) -> Result<u64> {
        Ok(self.device.features())
    }

    fn config(&mut self) -> Result<Option<Config>> {
        let identity = self.device.identity();
        Ok(Some(Config { tag: identity.tag().into(), request_queues: identity.request_queues().into() }))
    }

    fn notify_buf_size(&mut self) -> Result<u32> {
        let space = self.device.identity().config_space();
        Ok(space.get(Config::SIZE..).and_then(|size| size.first_chunk()).map_or(0, |size| u32::from_le_bytes(*size)))
    }

    fn queue_limit(&mut self) -> Result<Option<u64>> {
        Ok(Some(self.device.identity().most_queues() as u64))
    }

    fn start(&mut self, features: u64, memory: &Memory, queues: &[Queue]) -> Result<()> {
        for region in memory.regions() {
            if self.given.iter().all(|given| given.address != region.address) {
                add(&self.device, &region)?;
                self.given.push(region);
            }
        }
        if self.device.window().is_some_and(|window| window.place().is_none()) {
            self.device.place_window(Some(WINDOW)).map_err(refused)?;
            self.placed = true;
        }
        // Goes on as another driver would: with a device that knows of none.
        if self.device.state() == State::Paused {
            self.device.reset().map_err(refused)?;
        }
        let event = |fd: &Arc<std::os::fd::OwnedFd>| Ok::<_, Error>(Event::from_fd(fd.try_clone()?)?);
        let setup = |queue: &Queue| {
            Ok(QueueSetup {
                index: queue.index.into(),
                size: queue.size,
                desc: queue.descriptors,
                avail: queue.available,
                used: queue.used,
                next: queue.base,
                kick: Some(Arc::new(event(&queue.kick.0)?)),
                call: Some(Call::from(event(&queue.call)?)),
            })
        };
        let setups = queues.iter().map(setup).collect::<Result<_>>()?;
        self.device.start(features, setups).map_err(refused)
    }

    fn add_region(&mut self, _memory: &Memory, region: &Region) -> Result<()> {
        add(&self.device, region)?;
        self.given.push(region.clone());
        Ok(())
    }

    fn remove_region(&mut self, region: &Region) -> Result<()> {
        self.given.retain(|given| given.address != region.address);
        remove(&self.device, region)
    }

    fn stop(&mut self) -> Result<Vec<u16>> {
        let stood = match self.device.pause() {
            Ok(()) => self.device.queues().iter().map(|queue| queue.next).collect(),
            // Its owner was faster.
            Err(DeviceError::State { .. }) => Vec::new(),
            Err(error) => return Err(refused(error)),
        };
        self.leave();
        Ok(stood)
    }

    fn reset(&mut self) -> Result<bool> {
        self.device.reset().map_err(refused)?;
        Ok(true)
    }

    fn versions(&self) -> Option<Arc<View>> {
        self.device.notices().map(|notices| Arc::clone(notices.view()))
    }

    fn window(&self) -> Option<Arc<Mapped>> {
        self.device.window().map(|window| Arc::clone(window.window()))
    }
}

/// A VMM with one device behind registers and the embedded guest in it.
pub(crate) struct Vmm {
    mmio: Arc<Mmio>,
    given: Mutex<Vec<Region>>,
}

impl Vmm {
    pub(crate) fn new(mmio: Arc<Mmio>) -> Vmm {
        Vmm { mmio, given: Mutex::default() }
    }
}

impl Drop for Vmm {
    fn drop(&mut self) {
        self.mmio.set_line(None);
        remove_all(self.mmio.device(), self.given.get_mut());
    }
}

impl Machine for Vmm {
    fn read(&self, offset: u64, data: &mut [u8]) {
        self.mmio.read(offset, data);
    }

    fn write(&self, offset: u64, data: &[u8]) {
        self.mmio.write(offset, data);
    }

    fn add_memory(&self, region: &Region) -> Result<()> {
        add(self.mmio.device(), region)?;
        self.given.lock().push(region.clone());
        Ok(())
    }

    fn remove_memory(&self, region: &Region) -> Result<()> {
        self.given.lock().retain(|given| given.address != region.address);
        remove(self.mmio.device(), region)
    }

    fn window(&self, address: u64, size: u64) -> Option<Arc<Mapped>> {
        let window = self.mmio.device().window()?;
        (window.place() == Some(address) && window.size() == size).then(|| Arc::clone(window.window()))
    }

    fn versions(&self, address: u64, size: u64) -> Option<Arc<View>> {
        let device = self.mmio.device();
        let view = device.notices()?.view();
        (device.table_place() == Some(address) && view.size() == size).then(|| Arc::clone(view))
    }

    fn set_interrupt(&self, handler: Box<dyn Fn() + Send + Sync>) {
        self.mmio.set_line(Some(Call::Function(Arc::from(handler))));
    }
}
