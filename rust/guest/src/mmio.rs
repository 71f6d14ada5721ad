//! A driver of virtio-mmio registers (virtio 1.3, 4.2), which initialises its device step by step as Linux does
//! (`drivers/virtio/virtio_mmio.c`).

use std::sync::Arc;

use virtiofs_coherence::View;

use crate::memory::{Memory, Region};
use crate::signal::Bell;
use crate::transport::{Config, Queue, Transport};
use crate::window::Mapped;
use crate::{Error, Result};

const MAGIC_VALUE: u64 = 0x000;
const VERSION: u64 = 0x004;
const DEVICE_ID: u64 = 0x008;
const DEVICE_FEATURES: u64 = 0x010;
const DEVICE_FEATURES_SEL: u64 = 0x014;
const DRIVER_FEATURES: u64 = 0x020;
const DRIVER_FEATURES_SEL: u64 = 0x024;
const QUEUE_SEL: u64 = 0x030;
const QUEUE_SIZE_MAX: u64 = 0x034;
const QUEUE_SIZE: u64 = 0x038;
const QUEUE_READY: u64 = 0x044;
const QUEUE_NOTIFY: u64 = 0x050;
const INTERRUPT_STATUS: u64 = 0x060;
const INTERRUPT_ACK: u64 = 0x064;
const STATUS: u64 = 0x070;
const QUEUE_DESC: u64 = 0x080;
const QUEUE_DRIVER: u64 = 0x090;
const QUEUE_DEVICE: u64 = 0x0a0;
const SHM_SEL: u64 = 0x0ac;
const SHM_LEN: u64 = 0x0b0;
const SHM_BASE: u64 = 0x0b8;
const CONFIG_GENERATION: u64 = 0x0fc;
const CONFIG: u64 = 0x100;

const ACKNOWLEDGE: u32 = 1;
const DRIVER: u32 = 2;
const DRIVER_OK: u32 = 4;
const FEATURES_OK: u32 = 8;
const NEEDS_RESET: u32 = 64;

/// The shared memory region that is the DAX window (`VIRTIO_FS_SHMCAP_ID_CACHE`).
const WINDOW: u32 = 0;
/// The one that is the version table.
const TABLE: u32 = 1;

/// "virt", and the id of a file system device.
const MAGIC: u32 = 0x7472_6976;
const FILE_SYSTEM: u32 = 26;

/// A VMM around the registers: what this driver cannot do from inside of the guest.
pub trait Machine: Send + Sync {
    /// The guest reads `data.len()` bytes at `offset` of the device's page.
    fn read(&self, offset: u64, data: &mut [u8]);

    /// The guest writes `data` at `offset` of the device's page.
    fn write(&self, offset: u64, data: &[u8]);

    /// The VMM gives the device one more region of memory.
    fn add_memory(&self, region: &Region) -> Result<()>;

    /// The VMM takes a region away from the device.
    fn remove_memory(&self, region: &Region) -> Result<()>;

    /// What the guest has at `address`, if that is a DAX window of `size` bytes.
    fn window(&self, _address: u64, _size: u64) -> Option<Arc<Mapped>> {
        None
    }

    /// What the guest has at `address`, if that is a version table in `size` bytes.
    fn versions(&self, _address: u64, _size: u64) -> Option<Arc<View>> {
        None
    }

    /// The VMM interrupts the guest by calling this from now on.
    fn set_interrupt(&self, handler: Box<dyn Fn() + Send + Sync>);
}

/// A device behind registers.
pub struct Mmio {
    machine: Arc<dyn Machine>,
    queues: Vec<u16>,
    /// Regions that the device has: they outlive a reset.
    given: Vec<Region>,
}

impl Mmio {
    /// Finds out whether a file system device is there.
    pub fn new(machine: Arc<dyn Machine>) -> Result<Mmio> {
        let mmio = Mmio { machine, queues: Vec::new(), given: Vec::new() };
        let found = (mmio.get(MAGIC_VALUE), mmio.get(VERSION), mmio.get(DEVICE_ID));
        if found != (MAGIC, 2, FILE_SYSTEM) {
            return Err(Error::Protocol(format!("these are not the registers of a file system device: {found:x?}")));
        }
        mmio.restart()?;
        Ok(mmio)
    }

    fn get(&self, offset: u64) -> u32 {
        let mut word = [0; 4];
        self.machine.read(offset, &mut word);
        u32::from_le_bytes(word)
    }

    fn set(&self, offset: u64, value: u32) {
        self.machine.write(offset, &value.to_le_bytes());
    }

    fn get_wide(&self, offset: u64) -> u64 {
        u64::from(self.get(offset)) | u64::from(self.get(offset + 4)) << 32
    }

    fn set_wide(&self, offset: u64, value: u64) {
        self.set(offset, value as u32);
        self.set(offset + 4, (value >> 32) as u32);
    }

    /// Steps 1 to 3 of 3.1.1: reset, and notice the device.
    fn restart(&self) -> Result<()> {
        self.set(STATUS, 0);
        if self.get(STATUS) != 0 {
            return Err(Error::Protocol(format!("the device has status {:#x} after a reset", self.get(STATUS))));
        }
        self.set(STATUS, ACKNOWLEDGE);
        self.set(STATUS, ACKNOWLEDGE | DRIVER);
        Ok(())
    }

    /// Address and size of a shared memory region. A length of all ones: there is no such region (4.2.2, SHMLen).
    fn shared(&self, region: u32) -> Option<(u64, u64)> {
        self.set(SHM_SEL, region);
        let (size, address) = (self.get_wide(SHM_LEN), self.get_wide(SHM_BASE));
        (size != u64::MAX).then_some((address, size))
    }

    fn set_up(&self, queue: &Queue) -> Result<()> {
        self.set(QUEUE_SEL, u32::from(queue.index));
        if self.get(QUEUE_READY) != 0 {
            return Err(Error::Protocol(format!("queue {} is ready before it was set up", queue.index)));
        }
        let most = self.get(QUEUE_SIZE_MAX);
        if u32::from(queue.size) > most {
            return Err(Error::Protocol(format!("queue {} takes {most} entries, not {}", queue.index, queue.size)));
        }
        self.set(QUEUE_SIZE, u32::from(queue.size));
        self.set_wide(QUEUE_DESC, queue.descriptors);
        self.set_wide(QUEUE_DRIVER, queue.available);
        self.set_wide(QUEUE_DEVICE, queue.used);
        self.set(QUEUE_READY, 1);
        match self.get(QUEUE_READY) {
            1 => Ok(()),
            _ => Err(Error::Protocol(format!("queue {} does not become ready", queue.index))),
        }
    }
}

/// What a driver does when it is interrupted: one line serves all queues, and whoever sleeps at one of them looks for itself.
fn handler(machine: &Arc<dyn Machine>, queues: &[Queue]) -> Box<dyn Fn() + Send + Sync> {
    // The machine keeps the handler.
    let machine = Arc::downgrade(machine);
    let bells: Vec<Bell> = queues.iter().map(|queue| Bell::Fd(Arc::clone(&queue.call))).collect();
    Box::new(move || {
        let Some(machine) = machine.upgrade() else { return };
        let mut causes = [0; 4];
        machine.read(INTERRUPT_STATUS, &mut causes);
        machine.write(INTERRUPT_ACK, &causes);
        for bell in &bells {
            // A line of our own fails in no way that somebody else could mend.
            let _ = bell.ring();
        }
    })
}

impl Transport for Mmio {
    fn features(&mut self) -> Result<u64> {
        let word = |select| {
            self.set(DEVICE_FEATURES_SEL, select);
            u64::from(self.get(DEVICE_FEATURES))
        };
        Ok(word(0) | word(1) << 32)
    }

    /// Read until no change came between, field by field (2.5.1, "atomicity of configuration space").
    fn config(&mut self) -> Result<Option<Config>> {
        loop {
            let before = self.get(CONFIG_GENERATION);
            let mut space = [0; Config::SIZE];
            for (at, byte) in space.iter_mut().enumerate().take(Config::SIZE - 4) {
                self.machine.read(CONFIG + at as u64, std::slice::from_mut(byte));
            }
            if let Some(count) = space.last_chunk_mut::<4>() {
                self.machine.read(CONFIG + Config::SIZE as u64 - 4, count);
            }
            if self.get(CONFIG_GENERATION) == before {
                return Ok(Some(Config::parse(&space)));
            }
        }
    }

    fn notify_buf_size(&mut self) -> Result<u32> {
        Ok(self.get(CONFIG + Config::SIZE as u64))
    }

    fn queue_limit(&mut self) -> Result<Option<u64>> {
        let mut count = 0;
        loop {
            self.set(QUEUE_SEL, count);
            if self.get(QUEUE_SIZE_MAX) == 0 {
                return Ok(Some(u64::from(count)));
            }
            count += 1;
        }
    }

    fn start(&mut self, features: u64, memory: &Memory, queues: &[Queue]) -> Result<()> {
        if queues.iter().any(|queue| queue.base != 0) {
            return Err(Error::Protocol("a queue behind registers begins at 0".into()));
        }
        for region in memory.regions() {
            if self.given.iter().all(|given| given.address != region.address) {
                self.machine.add_memory(&region)?;
                self.given.push(region);
            }
        }
        self.restart()?;
        self.machine.set_interrupt(handler(&self.machine, queues));
        for (select, word) in [(0, features as u32), (1, (features >> 32) as u32)] {
            self.set(DRIVER_FEATURES_SEL, select);
            self.set(DRIVER_FEATURES, word);
        }
        let mut status = ACKNOWLEDGE | DRIVER | FEATURES_OK;
        self.set(STATUS, status);
        if self.get(STATUS) & FEATURES_OK == 0 {
            return Err(Error::Protocol(format!("the device refuses features {features:#x}")));
        }
        queues.iter().try_for_each(|queue| self.set_up(queue))?;
        status |= DRIVER_OK;
        self.set(STATUS, status);
        if self.get(STATUS) & NEEDS_RESET != 0 {
            return Err(Error::Protocol("the device wants to be reset as soon as it is started".into()));
        }
        self.queues = queues.iter().map(|queue| queue.index).collect();
        Ok(())
    }

    fn bell(&self, index: u16) -> Option<Bell> {
        let machine = Arc::clone(&self.machine);
        Some(Bell::Call(Box::new(move || {
            machine.write(QUEUE_NOTIFY, &u32::from(index).to_le_bytes());
            Ok(())
        })))
    }

    fn add_region(&mut self, _memory: &Memory, region: &Region) -> Result<()> {
        self.machine.add_memory(region)?;
        self.given.push(region.clone());
        Ok(())
    }

    fn remove_region(&mut self, region: &Region) -> Result<()> {
        self.given.retain(|given| given.address != region.address);
        self.machine.remove_memory(region)
    }

    /// A driver lets go of its queues one by one and resets (`vm_del_vqs`). Where they stood cannot be read from registers. The machine may
    /// have another guest afterwards.
    fn stop(&mut self) -> Result<Vec<u16>> {
        for index in std::mem::take(&mut self.queues) {
            self.set(QUEUE_SEL, u32::from(index));
            self.set(QUEUE_READY, 0);
            if self.get(QUEUE_READY) != 0 {
                return Err(Error::Protocol(format!("queue {index} stays ready")));
            }
        }
        self.restart()?;
        std::mem::take(&mut self.given).iter().try_for_each(|region| self.machine.remove_memory(region))?;
        Ok(Vec::new())
    }

    fn window(&self) -> Option<Arc<Mapped>> {
        let (address, size) = self.shared(WINDOW)?;
        self.machine.window(address, size)
    }

    fn versions(&self) -> Option<Arc<View>> {
        let (address, size) = self.shared(TABLE)?;
        self.machine.versions(address, size)
    }

    fn reset(&mut self) -> Result<bool> {
        self.queues.clear();
        self.restart()?;
        Ok(true)
    }
}
