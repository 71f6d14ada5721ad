//! Guests that move: which pages were written meanwhile, and the session, saved and restored (vhost-user, "Migration" and "Migrating back-end
//! state").

use std::fs::File;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use vhost::vhost_user::message::VhostUserProtocolFeatures;
use virtiofs_fuse::{Lost, Reader, Saved, Unusable};
use virtiofs_virtqueue::DirtyLog;

use super::super::transfer::Transfer;
use super::super::vring::Vring;
use super::{Refused, Session, one};

/// VHOST_F_LOG_ALL, another one: what is written to guest memory is logged while it is set.
pub(super) const LOG_ALL: u64 = 1 << 26;
/// In the reply to SET_DEVICE_STATE_FD: the VMM's own pipe is used.
pub(super) const NO_FD: u64 = 1 << 8;
/// What a saved session begins with, and the version of what follows.
const SAVED: (&[u8], u64) = (b"virtiofs session", 1);
impl Session {
    /// When this returns, what is given back to the guest is in the log, if that is wanted: also replies that were begun before.
    pub(super) fn log_if_wanted(&mut self) {
        let log = self.log.clone().filter(|_| self.features & LOG_ALL != 0);
        let memory = self.with.memory.load().logged_in(log);
        self.store(memory);
    }

    pub(super) fn set_log(&mut self, [size, offset]: [u64; 2], fds: Vec<OwnedFd>) -> Result<(), Refused> {
        self.must_have(VhostUserProtocolFeatures::LOG_SHMFD)?;
        let log = DirtyLog::new(File::from(one(fds)?), offset, size).map_err(|error| error.to_string())?;
        self.log = Some(Arc::new(log));
        self.log_if_wanted();
        Ok(())
    }

    /// Begins to save or to load the session. The queues stand still meanwhile.
    pub(super) fn move_state(&mut self, [direction, phase]: [u32; 2], fds: Vec<OwnedFd>) -> Result<(), Refused> {
        self.must_have(VhostUserProtocolFeatures::DEVICE_STATE)?;
        self.transfer = None;
        let fd = one(fds)?;
        if phase != 0 || self.vrings.iter().any(Vring::is_running) {
            return Err("the queues must stand still".into());
        }
        let transfer = match direction {
            0 => Transfer::save(fd, self.save().map_err(|error| error.to_string())?),
            1 => Transfer::load(fd),
            _ => return Err(format!("direction {direction} is none")),
        };
        self.transfer = Some(transfer.map_err(|error| error.to_string())?);
        Ok(())
    }

    pub(super) fn check_state(&mut self) -> Result<(), Refused> {
        let transfer = self.transfer.take().ok_or("nothing was saved or loaded")?;
        match transfer.finish().map_err(|error| error.to_string())? {
            Some(state) => self.restore(&state).inspect_err(|_| self.with.server.reset()),
            None => Ok(()),
        }
    }

    fn save(&self) -> Result<Vec<u8>, Unusable> {
        let mut out = Saved::default();
        out.bytes(SAVED.0);
        out.numbers([SAVED.1, self.vrings.len() as u64]);
        for heads in self.vrings.iter().map(Vring::unanswered) {
            out.number(heads.len() as u64);
            heads.iter().for_each(|head| out.number((*head).into()));
        }
        self.with.server.save(&mut out)?;
        Ok(out.into_bytes())
    }

    fn restore(&mut self, state: &[u8]) -> Result<(), Refused> {
        let broken = |error: Unusable| error.to_string();
        let from = &mut Reader::new(state);
        if from.bytes().ok() != Some(SAVED.0) || from.number().map_err(broken)? != SAVED.1 {
            return Err("this is no session that this release has saved".into());
        }
        self.give_up("another one goes on here");
        for index in 0..from.number().map_err(broken)? {
            let count = from.number().map_err(broken)?;
            let heads = (0..count).map(|_| from.narrow()).collect::<Result<Vec<u16>, _>>().map_err(broken)?;
            match self.vrings.get_mut(index as usize) {
                Some(vring) => vring.take_again(heads),
                None if heads.is_empty() => {}
                None => return Err(format!("requests wait in queue {index}, which is not here")),
            }
        }
        let lost = self.with.server.restore(from).map_err(broken)?;
        from.end().map_err(broken)?;
        for Lost { what, path, error, .. } in lost.iter().take(20) {
            tracing::warn!(?what, path = %String::from_utf8_lossy(path), ?error, "the guest had this, and it is not here");
        }
        match lost.len() {
            0 => tracing::info!("the session goes on here"),
            count if self.may_lose => tracing::warn!(count, "the session goes on here without what is lost"),
            count => {
                return Err(format!("{count} of what the guest has is not here (--migration-on-error guest-error)"));
            }
        }
        Ok(())
    }
}

/// The code of a result that a reply tells, and to the log why.
pub(super) fn said(result: Result<(), Refused>, what: &str) -> u64 {
    match result {
        Ok(()) => 0,
        Err(reason) => {
            tracing::error!(%reason, "{what}");
            1
        }
    }
}
