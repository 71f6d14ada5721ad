//! The device behind virtio-mmio registers (virtio 1.3, 4.2 "Virtio Over MMIO", register layout version 2).
//!
//! A VMM forwards its guest's accesses to a page of registers, and that is all. What a driver does in a wrong order is answered as the
//! specification says, or where it says only what a driver must not do, by doing nothing. Over 400 lines, since the registers and the life
//! of a device that they drive are one table.

mod saved;

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use parking_lot::{Mutex, RwLock};
use virtio_bindings::virtio_config::{
    VIRTIO_CONFIG_S_ACKNOWLEDGE as ACKNOWLEDGE, VIRTIO_CONFIG_S_DRIVER as DRIVER,
    VIRTIO_CONFIG_S_DRIVER_OK as DRIVER_OK, VIRTIO_CONFIG_S_FAILED as FAILED,
    VIRTIO_CONFIG_S_FEATURES_OK as FEATURES_OK, VIRTIO_CONFIG_S_NEEDS_RESET as NEEDS_RESET,
};
use virtiofs_virtqueue::Event;

use crate::identity::{NOTIFICATION, QUEUE_SIZE_MAX, VIRTIO_ID_FS};
use crate::setup::check_features;
use crate::{Call, Device, DeviceError, QueueSetup, State};

pub use saved::device_of;

/// Bytes of the register page: control registers, and the configuration space from [`CONFIG`] on.
pub const SIZE: u64 = 0x200;
/// Where the configuration space begins.
pub const CONFIG: u64 = 0x100;

/// Offsets of the control registers (4.2.2, "MMIO Device Register Layout").
#[allow(missing_docs)]
pub mod register {
    pub const MAGIC_VALUE: u64 = 0x000;
    pub const VERSION: u64 = 0x004;
    pub const DEVICE_ID: u64 = 0x008;
    pub const VENDOR_ID: u64 = 0x00c;
    pub const DEVICE_FEATURES: u64 = 0x010;
    pub const DEVICE_FEATURES_SEL: u64 = 0x014;
    pub const DRIVER_FEATURES: u64 = 0x020;
    pub const DRIVER_FEATURES_SEL: u64 = 0x024;
    pub const QUEUE_SEL: u64 = 0x030;
    pub const QUEUE_SIZE_MAX: u64 = 0x034;
    pub const QUEUE_SIZE: u64 = 0x038;
    pub const QUEUE_READY: u64 = 0x044;
    pub const QUEUE_NOTIFY: u64 = 0x050;
    pub const INTERRUPT_STATUS: u64 = 0x060;
    pub const INTERRUPT_ACK: u64 = 0x064;
    pub const STATUS: u64 = 0x070;
    pub const QUEUE_DESC_LOW: u64 = 0x080;
    pub const QUEUE_DESC_HIGH: u64 = 0x084;
    pub const QUEUE_DRIVER_LOW: u64 = 0x090;
    pub const QUEUE_DRIVER_HIGH: u64 = 0x094;
    pub const QUEUE_DEVICE_LOW: u64 = 0x0a0;
    pub const QUEUE_DEVICE_HIGH: u64 = 0x0a4;
    pub const SHM_SEL: u64 = 0x0ac;
    pub const SHM_LEN_LOW: u64 = 0x0b0;
    pub const SHM_LEN_HIGH: u64 = 0x0b4;
    pub const SHM_BASE_LOW: u64 = 0x0b8;
    pub const SHM_BASE_HIGH: u64 = 0x0bc;
    pub const CONFIG_GENERATION: u64 = 0x0fc;
}

use register as r;

/// "virt".
const MAGIC: u32 = 0x7472_6976;
/// Who made the device; no register of vendors exists, and drivers do not care.
const VENDOR: u32 = 0x5346_4956;
/// Interrupt causes (4.2.2, InterruptStatus).
const USED_BUFFER: u32 = 1;
const CONFIG_CHANGE: u32 = 2;
/// The shared memory region that is the DAX window (5.11.6.4, `VIRTIO_FS_SHMCAP_ID_CACHE`).
const WINDOW: u32 = 0;
/// The one that is the version table: none of the specification's, which has region 0 alone.
const TABLE: u32 = 1;
/// What length and base of a shared memory region read as that is not there.
const NO_REGION: u64 = u64::MAX;
/// Feature words that there are: 64 bits.
const FEATURE_WORDS: u32 = 2;

/// The registers of one device.
#[derive(Debug)]
pub struct Mmio {
    device: Arc<Device>,
    /// One for each queue, kept over resets: a VMM may have given them to its kernel.
    kicks: Vec<Arc<Event>>,
    interrupt: Arc<Interrupt>,
    registers: Mutex<Registers>,
}

#[derive(Debug, Default)]
struct Interrupt {
    status: AtomicU32,
    line: RwLock<Option<Call>>,
}

/// What the driver has written. A reset begins with all zeros.
#[derive(Debug, Default)]
struct Registers {
    status: u32,
    device_features_sel: u32,
    driver_features_sel: u32,
    driver_features: u64,
    queue_sel: u32,
    shm_sel: u32,
    queues: Vec<QueueRegisters>,
}

#[derive(Clone, Copy, Debug, Default)]
struct QueueRegisters {
    size: u32,
    ready: bool,
    desc: u64,
    driver: u64,
    device: u64,
}

impl Interrupt {
    fn raise(&self, cause: u32) {
        self.status.fetch_or(cause, Ordering::AcqRel);
        if let Some(line) = &*self.line.read() {
            line.raise();
        }
    }
}

impl Mmio {
    /// Registers for `device`, which is started and reset by its driver from now on.
    pub fn new(device: Arc<Device>) -> io::Result<Mmio> {
        let queues = device.identity().most_queues();
        let kicks = (0..queues).map(|_| Event::new().map(Arc::new)).collect::<io::Result<_>>()?;
        let interrupt = Arc::new(Interrupt::default());
        let registers = Mutex::new(Registers::new(queues));
        Ok(Mmio { device, kicks, interrupt, registers })
    }

    /// Sets how the VMM is told of an interrupt, and tells it once if one is pending.
    pub fn set_line(&self, line: Option<Call>) {
        *self.interrupt.line.write() = line;
        if self.interrupt_status() != 0 {
            self.interrupt.raise(0);
        }
    }

    /// The device behind the registers.
    pub fn device(&self) -> &Arc<Device> {
        &self.device
    }

    /// By what queue `index` is kicked: the same as a write of `index` to QueueNotify, for a kernel that can do it for the VMM
    /// (KVM_IOEVENTFD).
    pub fn kick(&self, index: usize) -> Option<&Arc<Event>> {
        self.kicks.get(index)
    }

    /// Causes of interrupts that the driver has not acknowledged.
    pub fn interrupt_status(&self) -> u32 {
        self.interrupt.status.load(Ordering::Acquire)
    }

    /// A read of the guest at `offset` of the page. What cannot be read so reads as zeros.
    pub fn read(&self, offset: u64, data: &mut [u8]) {
        data.fill(0);
        if let Some(at) = offset.checked_sub(CONFIG) {
            let space = self.device.identity().config_space();
            let from = usize::try_from(at).ok().and_then(|at| space.get(at..)).unwrap_or_default();
            data.iter_mut().zip(from).for_each(|(to, from)| *to = *from);
        } else if let Ok(word) = <&mut [u8; 4]>::try_from(data)
            && offset.is_multiple_of(4)
        {
            *word = self.load(offset).to_le_bytes();
        }
    }

    /// A write of the guest at `offset` of the page. One that makes no sense does nothing: the configuration space has nothing to be
    /// written, and control registers are written 4 bytes at a time.
    ///
    /// Returns when the write has taken effect: one that stops queues waits for the requests in flight.
    pub fn write(&self, offset: u64, data: &[u8]) {
        match <[u8; 4]>::try_from(data) {
            Ok(word) if offset < CONFIG && offset.is_multiple_of(4) => self.store(offset, u32::from_le_bytes(word)),
            _ => tracing::debug!(offset, len = data.len(), "the guest writes where nothing can be written"),
        }
    }

    fn load(&self, offset: u64) -> u32 {
        match offset {
            r::MAGIC_VALUE => return MAGIC,
            r::VERSION => return 2,
            r::DEVICE_ID => return VIRTIO_ID_FS,
            r::VENDOR_ID => return VENDOR,
            r::INTERRUPT_STATUS => return self.interrupt_status(),
            // The configuration space never changes.
            r::CONFIG_GENERATION => return 0,
            _ => {}
        }
        let registers = self.registers.lock();
        let queue = registers.queue();
        match offset {
            r::DEVICE_FEATURES => word(self.device.features(), registers.device_features_sel),
            r::QUEUE_SIZE_MAX => {
                // A driver that did not accept the queue of notifications has one queue less.
                let settled = registers.has(FEATURES_OK) && registers.driver_features & NOTIFICATION == 0;
                let features = if settled { registers.driver_features } else { self.device.features() };
                let there = (registers.queue_sel as usize) < self.device.identity().queues(features);
                if there { u32::from(QUEUE_SIZE_MAX) } else { 0 }
            }
            r::QUEUE_READY => queue.map_or(0, |queue| u32::from(queue.ready)),
            r::STATUS => registers.status,
            r::SHM_LEN_LOW => low(self.shared(&registers).1),
            r::SHM_LEN_HIGH => high(self.shared(&registers).1),
            r::SHM_BASE_LOW => low(self.shared(&registers).0),
            r::SHM_BASE_HIGH => high(self.shared(&registers).0),
            _ => 0,
        }
    }

    /// Base and length of the selected region, where it has its place: the DAX window, or the version table.
    fn shared(&self, registers: &Registers) -> (u64, u64) {
        let device = &self.device;
        let region = match registers.shm_sel {
            WINDOW => device.window().and_then(|window| Some((window.place()?, window.size()))),
            TABLE => device.notices().and_then(|notices| Some((device.table_place()?, notices.view().size()))),
            _ => None,
        };
        region.unwrap_or((NO_REGION, NO_REGION))
    }

    fn store(&self, offset: u64, value: u32) {
        // Kicks do not wait for whoever is at the registers.
        match offset {
            r::QUEUE_NOTIFY => return self.notify(value),
            r::INTERRUPT_ACK => {
                self.interrupt.status.fetch_and(!value, Ordering::AcqRel);
                return;
            }
            _ => {}
        }
        let registers = &mut *self.registers.lock();
        match offset {
            r::DEVICE_FEATURES_SEL => registers.device_features_sel = value,
            r::DRIVER_FEATURES_SEL => registers.driver_features_sel = value,
            r::DRIVER_FEATURES => registers.set_features(value),
            r::QUEUE_SEL => registers.queue_sel = value,
            r::SHM_SEL => registers.shm_sel = value,
            r::STATUS => self.set_status(registers, value),
            r::QUEUE_READY => self.set_ready(registers, value),
            r::QUEUE_SIZE => registers.change_queue(|queue| queue.size = value),
            r::QUEUE_DESC_LOW => registers.change_queue(|queue| set_low(&mut queue.desc, value)),
            r::QUEUE_DESC_HIGH => registers.change_queue(|queue| set_high(&mut queue.desc, value)),
            r::QUEUE_DRIVER_LOW => registers.change_queue(|queue| set_low(&mut queue.driver, value)),
            r::QUEUE_DRIVER_HIGH => registers.change_queue(|queue| set_high(&mut queue.driver, value)),
            r::QUEUE_DEVICE_LOW => registers.change_queue(|queue| set_low(&mut queue.device, value)),
            r::QUEUE_DEVICE_HIGH => registers.change_queue(|queue| set_high(&mut queue.device, value)),
            _ => tracing::debug!(offset, value, "the guest writes a register that is none or cannot be written"),
        }
    }

    /// A queue that does not run has nobody to be woken. (2.9, "before DRIVER_OK the device does not process buffers".)
    fn notify(&self, index: u32) {
        if let Err(error) = self.device.notify(index as usize) {
            tracing::debug!(%error, "the guest notifies in vain");
        }
    }

    fn set_status(&self, registers: &mut Registers, value: u32) {
        if value == 0 {
            return self.reset(registers);
        }
        let given = value & (ACKNOWLEDGE | DRIVER | FEATURES_OK | DRIVER_OK | FAILED);
        if registers.status & !NEEDS_RESET & !given != 0 {
            // Only a reset takes bits back (2.1.1, "the driver MUST NOT clear a device status bit").
            return tracing::debug!(
                now = registers.status,
                value,
                "the guest takes back a part of the device's status"
            );
        }
        registers.status |= given & (ACKNOWLEDGE | DRIVER | FAILED);
        if given & FEATURES_OK != 0 && !registers.has(FEATURES_OK) {
            match check_features(registers.driver_features, self.device.features()) {
                Ok(()) if registers.has(ACKNOWLEDGE | DRIVER) => registers.status |= FEATURES_OK,
                Ok(()) => tracing::debug!("FEATURES_OK before ACKNOWLEDGE and DRIVER"),
                // The driver reads the status again and finds that it was refused (3.1.1, step 6).
                Err(error) => tracing::debug!(%error, "FEATURES_OK is refused"),
            }
        }
        if given & DRIVER_OK != 0 && !registers.has(DRIVER_OK) {
            match registers.has(FEATURES_OK) && !registers.has(FAILED) {
                true => self.go(registers),
                false => tracing::debug!("DRIVER_OK before FEATURES_OK, or after FAILED"),
            }
        }
    }

    fn go(&self, registers: &mut Registers) {
        let ready = registers.queues.iter().enumerate().filter(|(_, queue)| queue.ready);
        let setups = ready.map(|(index, queue)| self.setup(index, queue)).collect();
        registers.status |= DRIVER_OK;
        if let Err(error) = self.device.start(registers.driver_features, setups) {
            self.needs_reset(registers, &error);
        }
    }

    fn setup(&self, index: usize, queue: &QueueRegisters) -> QueueSetup {
        let interrupt = Arc::clone(&self.interrupt);
        QueueSetup {
            index,
            // What does not fit is no power of two either, and refused.
            size: u16::try_from(queue.size).unwrap_or(0),
            desc: queue.desc,
            avail: queue.driver,
            used: queue.device,
            next: 0,
            kick: self.kicks.get(index).cloned(),
            call: Some(Call::Function(Arc::new(move || interrupt.raise(USED_BUFFER)))),
        }
    }

    /// The device cannot go on (2.1.2): the driver is told, and has to reset it.
    fn needs_reset(&self, registers: &mut Registers, error: &DeviceError) {
        tracing::warn!(%error, "the device waits to be reset by its driver");
        registers.status |= NEEDS_RESET;
        if registers.has(DRIVER_OK) {
            self.interrupt.raise(CONFIG_CHANGE);
        }
    }

    /// Queues are made ready between FEATURES_OK and DRIVER_OK. One that is no longer to be ready is left alone when this returns
    /// (4.2.3.2, "the driver MUST read the value back to ensure synchronization").
    fn set_ready(&self, registers: &mut Registers, value: u32) {
        let (status, index) = (registers.status, registers.queue_sel as usize);
        let Some(queue) = registers.queues.get_mut(index) else { return };
        if value & 1 == 0 {
            if std::mem::replace(&mut queue.ready, false) && self.device.state() == State::Running {
                self.device.stop_queue(index);
            }
            return;
        }
        if queue.ready || status & FEATURES_OK == 0 || status & (FAILED | NEEDS_RESET) != 0 {
            return;
        }
        queue.ready = true;
        if status & DRIVER_OK != 0 {
            let setup = self.setup(index, queue);
            if let Err(error) = self.device.start_queue(setup) {
                queue.ready = false;
                self.needs_reset(registers, &error);
            }
        }
    }

    fn reset(&self, registers: &mut Registers) {
        // A device that is closed has nothing to reset.
        if let Err(error) = self.device.reset() {
            tracing::debug!(%error, "reset by the guest");
        }
        *registers = Registers::new(self.kicks.len());
        self.interrupt.status.store(0, Ordering::Release);
    }
}

impl Registers {
    fn new(queues: usize) -> Registers {
        Registers { queues: vec![QueueRegisters::default(); queues], ..Registers::default() }
    }

    fn has(&self, bits: u32) -> bool {
        self.status & bits == bits
    }

    fn queue(&self) -> Option<&QueueRegisters> {
        self.queues.get(self.queue_sel as usize)
    }

    /// Changes the selected queue, unless it is in use (4.2.3.2, "the driver MUST NOT access them while QueueReady is 1").
    fn change_queue(&mut self, change: impl FnOnce(&mut QueueRegisters)) {
        let queue = self.queues.get_mut(self.queue_sel as usize);
        if let Some(queue) = queue.filter(|queue| !queue.ready) {
            change(queue);
        }
    }

    /// Features are settled by FEATURES_OK (2.2.1, "the driver MUST NOT accept new feature bits after this step").
    fn set_features(&mut self, value: u32) {
        if self.status & FEATURES_OK != 0 {
            return;
        }
        match self.driver_features_sel {
            0 => set_low(&mut self.driver_features, value),
            1 => set_high(&mut self.driver_features, value),
            // There are no such features, so one that is accepted was not offered.
            _ if value != 0 => tracing::debug!(word = self.driver_features_sel, value, "unknown features are accepted"),
            _ => {}
        }
    }
}

fn word(features: u64, select: u32) -> u32 {
    if select < FEATURE_WORDS { (features >> (32 * select)) as u32 } else { 0 }
}

fn low(value: u64) -> u32 {
    value as u32
}

fn high(value: u64) -> u32 {
    (value >> 32) as u32
}

fn set_low(value: &mut u64, low: u32) {
    *value = *value & !u64::from(u32::MAX) | u64::from(low);
}

fn set_high(value: &mut u64, high: u32) {
    *value = *value & u64::from(u32::MAX) | u64::from(high) << 32;
}
