//! A paused device as bytes, and a new device that goes on from there, in this process or in another.

use std::sync::Arc;

use virtiofs_fuse::{Lost, Mapped, Reader, Saved, Thing, Unusable};
use virtiofs_virtqueue::Event;

use crate::setup::check_features;
use crate::{Call, Device, DeviceError, QueueSetup, State};

/// What the bytes begin with.
const MAGIC: &[u8] = b"virtiofs device";
/// Of the bytes that follow. Others are refused: what a guest relies on is not guessed at.
const VERSION: u64 = 1;
/// In place of an address where the window has none.
const NOWHERE: u64 = u64::MAX;

/// What a device must be made like to go on with what was saved.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Shape {
    /// Its tag.
    pub tag: String,
    /// Request queues.
    pub request_queues: u16,
    /// Bytes of its DAX window; 0 for none.
    pub window: u64,
}

/// How a queue reaches its driver: by what it is kicked, and how it interrupts.
pub type Wires = (Option<Arc<Event>>, Option<Call>);

/// Why a device does not go on from what was saved. It has no session then, and can be started.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs)]
pub enum RestoreError {
    #[error(transparent)]
    Device(#[from] DeviceError),
    #[error(transparent)]
    Unusable(#[from] Unusable),
    #[error("{} of what the guest has cannot be had any more", .0.len())]
    Lost(Vec<Lost>),
}

impl Shape {
    /// The shape of the device that was saved.
    pub fn of(saved: &[u8]) -> Result<Shape, Unusable> {
        Shape::read(&mut Reader::new(saved))
    }

    fn read(from: &mut Reader<'_>) -> Result<Shape, Unusable> {
        if from.bytes().ok() != Some(MAGIC) {
            return Err(Unusable::Other("these are not the bytes of a saved device".into()));
        }
        let version = from.number()?;
        if version != VERSION {
            let text = format!("the device was saved in format {version}, and this release reads format {VERSION}");
            return Err(Unusable::Other(text));
        }
        let tag = String::from_utf8(from.bytes()?.to_vec()).map_err(|_| Unusable::Broken)?;
        Ok(Shape { tag, request_queues: from.narrow()?, window: from.number()? })
    }
}

impl Device {
    fn shape(&self) -> Shape {
        Shape {
            tag: self.identity().tag().into(),
            request_queues: self.identity().request_queues(),
            window: self.window().map_or(0, |window| window.size()),
        }
    }

    /// The device as bytes, for [`Device::restore`]. It must be paused, and stays as it is.
    pub fn save(&self) -> Result<Vec<u8>, RestoreError> {
        let life = self.life.lock();
        self.must_be(&[State::Paused], "save", "paused")?;
        let mut out = Saved::default();
        let Shape { tag, request_queues, window } = self.shape();
        out.bytes(MAGIC);
        out.number(VERSION);
        out.bytes(tag.as_bytes());
        out.numbers([request_queues.into(), window, life.features]);
        out.number(life.setups.iter().flatten().count() as u64);
        for (setup, queue) in life.setups.iter().zip(&life.queues) {
            let Some(QueueSetup { index, size, desc, avail, used, next, .. }) = setup else { continue };
            out.numbers([*index as u64, (*size).into(), *desc, *avail, *used, (*next).into()]);
            let unanswered = queue.unanswered();
            out.number(unanswered.len() as u64);
            unanswered.iter().for_each(|head| out.number((*head).into()));
        }
        self.server().save(&mut out)?;
        let mappings = self.window().map_or_else(Vec::new, |window| window.window().mappings());
        out.number(self.window().and_then(|window| window.place()).unwrap_or(NOWHERE));
        out.number(mappings.len() as u64);
        for mapping in mappings {
            let (node, writable) = (mapping.file.key(), mapping.writable.into());
            out.numbers([node, mapping.offset, mapping.len, mapping.file_offset, writable]);
        }
        Ok(out.into_bytes())
    }

    /// Makes this device, which is ready and like the one that was saved, go on from there: it is paused then. `wires` has what `save` does
    /// not keep, by queue; each interrupts once, since an interrupt may have been lost on the way. Answers what is lost of
    /// what the guest has, which is stale for it; unless that is to be a failure.
    pub fn restore(&self, saved: &[u8], wires: Vec<Wires>, may_lose: bool) -> Result<Vec<Lost>, RestoreError> {
        let mut life = self.life.lock();
        self.must_be(&[State::Ready], "restore", "ready (new, or reset)")?;
        let result = self.restore_locked(&mut life, saved, wires, may_lose);
        match &result {
            Ok(_) => {
                self.enter(State::Paused);
                let calls = life.setups.iter().flatten().filter_map(|setup| setup.call.as_ref());
                calls.for_each(Call::raise);
            }
            Err(_) => {
                self.forget(&mut life);
                // It was free before.
                _ = self.window().map(|window| window.set_place(self.memory(), None));
            }
        }
        result
    }

    fn restore_locked(
        &self,
        life: &mut crate::device::Life,
        saved: &[u8],
        mut wires: Vec<Wires>,
        may_lose: bool,
    ) -> Result<Vec<Lost>, RestoreError> {
        let from = &mut Reader::new(saved);
        let (theirs, ours) = (Shape::read(from)?, self.shape());
        if theirs != ours {
            return Err(Unusable::Other(format!("{theirs:?} was saved, and the device is {ours:?}")).into());
        }
        life.features = from.number()?;
        check_features(life.features, self.features())?;
        for _ in 0..from.number()? {
            let setup = QueueSetup {
                index: from.narrow()?,
                size: from.narrow()?,
                desc: from.number()?,
                avail: from.number()?,
                used: from.number()?,
                next: from.narrow()?,
                kick: None,
                call: None,
            };
            let count = from.number()?;
            let unanswered = (0..count).map(|_| from.narrow()).collect::<Result<Vec<u16>, _>>()?;
            let (kick, call) = wires.get_mut(setup.index).map(std::mem::take).unwrap_or_default();
            self.set_up(life, QueueSetup { kick, call, ..setup }, Some(unanswered))?;
        }
        let mut lost = self.server().restore(from)?;
        let place = Some(from.number()?).filter(|place| *place != NOWHERE);
        if let Some(window) = self.window() {
            window.set_place(self.memory(), place).map_err(|error| Unusable::Other(error.to_string()))?;
        }
        for _ in 0..from.number()? {
            let [node, offset, len, file_offset] = [from.number()?, from.number()?, from.number()?, from.number()?];
            let mapped = Mapped { node, offset, len, file_offset, writable: from.flag()? };
            if let Err(error) = self.server().map_again(&mapped) {
                lost.push(Lost { what: Thing::Mapping, node, path: Vec::new(), error });
            }
        }
        from.end()?;
        if lost.is_empty() || may_lose { Ok(lost) } else { Err(RestoreError::Lost(lost)) }
    }
}
