//! Registers as bytes, and with them the device behind.

use std::sync::atomic::Ordering;

use virtiofs_fuse::{Lost, Reader, Saved, Unusable};

use super::{Mmio, QueueRegisters, Registers};
use crate::saved::{RestoreError, Wires};

/// What the bytes begin with.
const MAGIC: &[u8] = b"virtiofs mmio";
/// Of the bytes that follow.
const VERSION: u64 = 1;

/// The saved device behind saved registers: for [`crate::Shape::of`].
pub fn device_of(saved: &[u8]) -> Result<&[u8], Unusable> {
    let mut from = Reader::new(saved);
    if from.bytes().ok() != Some(MAGIC) {
        return Err(Unusable::Other("these are not the bytes of saved registers".into()));
    }
    match from.number()? {
        VERSION => from.bytes(),
        version => Err(Unusable::Other(format!(
            "the registers were saved in format {version}, and this release reads format {VERSION}"
        ))),
    }
}

impl Mmio {
    /// The registers and their device as bytes. The device must be paused.
    pub fn save(&self) -> Result<Vec<u8>, RestoreError> {
        let registers = self.registers.lock();
        let mut out = Saved::default();
        out.bytes(MAGIC);
        out.number(VERSION);
        out.bytes(&self.device.save()?);
        let Registers { status, device_features_sel, driver_features_sel, driver_features, queue_sel, shm_sel, queues } =
            &*registers;
        let words =
            [*status, *device_features_sel, *driver_features_sel, *queue_sel, *shm_sel, self.interrupt_status()];
        out.numbers(words.map(u64::from));
        out.number(*driver_features);
        for QueueRegisters { size, ready, desc, driver, device } in queues {
            out.numbers([(*size).into(), (*ready).into(), *desc, *driver, *device]);
        }
        Ok(out.into_bytes())
    }

    /// Makes these registers, before a device that is ready, go on from what was saved: see [`crate::Device::restore`].
    pub fn restore(&self, saved: &[u8], may_lose: bool) -> Result<Vec<Lost>, RestoreError> {
        let device = device_of(saved)?;
        let from = &mut Reader::new(saved);
        // What `device_of` has read.
        from.bytes()?;
        from.number()?;
        from.bytes()?;
        let mut registers = Registers::new(self.kicks.len());
        registers.status = from.narrow()?;
        registers.device_features_sel = from.narrow()?;
        registers.driver_features_sel = from.narrow()?;
        registers.queue_sel = from.narrow()?;
        registers.shm_sel = from.narrow()?;
        let interrupts = from.narrow()?;
        registers.driver_features = from.number()?;
        for queue in &mut registers.queues {
            *queue = QueueRegisters {
                size: from.narrow()?,
                ready: from.flag()?,
                desc: from.number()?,
                driver: from.number()?,
                device: from.number()?,
            };
        }
        from.end()?;
        let mut ours = self.registers.lock();
        let wires = registers.queues.iter().enumerate().map(|(index, queue)| {
            let setup = self.setup(index, queue);
            Wires::from((setup.kick, setup.call))
        });
        let lost = self.device.restore(device, wires.collect(), may_lose)?;
        *ours = registers;
        self.interrupt.status.fetch_or(interrupts, Ordering::AcqRel);
        Ok(lost)
    }
}
