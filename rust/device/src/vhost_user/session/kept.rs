//! What is in flight when a connection is lost, and who goes on with it (vhost-user, "Inflight I/O tracking").

use std::fs::File;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Instant;

use vhost::vhost_user::message::VhostUserProtocolFeatures;
use virtiofs_virtqueue::{Area, Memory};
use zerocopy::{FromBytes, Immutable, IntoBytes};

use super::super::away::Away;
use super::super::vring::Vring;
use super::{Answer, Refused, Session, one};
use crate::identity::QUEUE_SIZE_MAX;

/// Body of GET_INFLIGHT_FD, its reply, and SET_INFLIGHT_FD.
#[derive(FromBytes, IntoBytes, Immutable)]
#[repr(C)]
pub(super) struct InflightBody {
    size: [u32; 2],
    offset: [u32; 2],
    queues: u16,
    queue_size: u16,
}

impl Session {
    /// Who asks for new memory has none of an earlier life.
    pub(super) fn get_inflight(&mut self, asked: InflightBody) -> Result<Answer, Refused> {
        self.must_have(VhostUserProtocolFeatures::INFLIGHT_SHMFD)?;
        let InflightBody { queues, queue_size, .. } = asked;
        if usize::from(queues) > self.vrings.len() || queues == 0 || queue_size == 0 || queue_size > QUEUE_SIZE_MAX {
            return Err(format!("no device here has {queues} queues of {queue_size} entries"));
        }
        self.give_up("another one begins");
        let area = Arc::new(Area::new(queues, queue_size).map_err(|error| error.to_string())?);
        self.given = Some(Arc::clone(&area));
        let size = area.size();
        let body = InflightBody { size: [size as u32, (size >> 32) as u32], offset: [0; 2], ..asked };
        Ok(Answer::Area(body.as_bytes().to_vec(), area))
    }

    pub(super) fn set_inflight(&mut self, described: InflightBody, fds: Vec<OwnedFd>) -> Result<(), Refused> {
        self.must_have(VhostUserProtocolFeatures::INFLIGHT_SHMFD)?;
        let file = File::from(one(fds)?);
        if self.area.as_ref().is_some_and(|area| area.is(&file)) {
            return Ok(());
        }
        if self.vrings.iter().any(Vring::is_in_use) {
            return Err("queues run already".into());
        }
        if let Some(given) = self.given.take_if(|given| given.is(&file)) {
            self.area = Some(given);
            return Ok(());
        }
        if let Some(away) = self.away.take_if(|away| away.area().is(&file)) {
            tracing::info!("the VMM is back, and its session goes on");
            let (area, vrings) = away.into_parts();
            self.area = Some(area);
            self.vrings.iter_mut().zip(vrings).for_each(|(ours, kept)| ours.inherit(kept));
            return Ok(());
        }
        let InflightBody { size, offset, queues, queue_size } = described;
        let [size, offset] = [size, offset].map(|[low, high]| u64::from(low) | u64::from(high) << 32);
        if usize::from(queues) > self.vrings.len() || queues == 0 || queue_size == 0 || queue_size > QUEUE_SIZE_MAX {
            return Err(format!("no device here has {queues} queues of {queue_size} entries"));
        }
        let area = Area::of(file, offset, size, queues, queue_size);
        self.area = Some(Arc::new(area.map_err(|error| format!("the memory of what is in flight: {error}"))?));
        self.give_up("another one begins");
        self.vrings.iter_mut().for_each(Vring::expect_left_behind);
        Ok(())
    }

    /// The connection is lost. What of this session is to be kept for the VMM to come back: requests in flight are completed, in memory
    /// that its guest still has. A VMM that has stopped its queues means to go.
    pub(in super::super) fn leave(&mut self) -> Option<Away> {
        if self.away.is_some() {
            return self.away.take();
        }
        let begun = self.with.server.negotiated().is_some() && self.vrings.iter().any(Vring::is_in_use);
        let area = self.area.take().filter(|_| begun && !self.patience.is_zero())?;
        self.vrings.iter_mut().for_each(Vring::keep);
        // The memory of a guest that is gone for good is not held on to, but for what waits in it.
        self.with.memory.store(Memory::default());
        Some(Away::new(area, std::mem::take(&mut self.vrings), Instant::now() + self.patience))
    }
}
