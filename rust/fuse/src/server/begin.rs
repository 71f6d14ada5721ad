//! The begin of a session: INIT, and what the window is to do in it.

use std::sync::atomic::Ordering::Relaxed;

use zerocopy::FromZeros;

use super::Server;
use crate::call::Call;
use crate::wire::*;
use crate::{Error, Mappable, Negotiated, Result};

impl Server {
    /// Ends the session before, if there is one, and agrees with the guest on a new one.
    pub(crate) fn init(&self, call: &mut Call<'_>) -> Result<usize> {
        let compat: InitInCompat = call.arguments()?;
        let mut request = InitIn::new_zeroed();
        (request.major, request.minor) = (compat.major, compat.minor);
        (request.max_readahead, request.flags) = (compat.max_readahead, compat.flags);
        if call.message.remaining() >= size_of::<InitIn>() - size_of::<InitInCompat>() {
            request.flags2 = call.take()?;
        }
        let mut session = self.session.lock();
        self.end(&mut session);
        let (negotiated, out) = self.limits.answer(&request, self.begin_window(&request)?).inspect_err(|_| {
            tracing::error!(
                major = request.major,
                minor = request.minor,
                "the guest's FUSE is too old: use Linux 5.4 or newer"
            );
        })?;
        if negotiated != Negotiated::default() {
            self.fs.init(&negotiated);
            if let Some(lane) = &self.lane {
                lane.fs().init(&negotiated);
            }
            *session = negotiated;
            self.flags.store(negotiated.flags, Relaxed);
            self.initialized.store(true, Relaxed);
            tracing::info!(
                minor = negotiated.minor,
                flags = format_args!("{:#x}", negotiated.flags),
                max_write = negotiated.max_write,
                "session begins"
            );
        }
        call.reply(&out)
    }

    /// What the window can do for a guest that wants to use it.
    ///
    /// A guest mounted with `dax=always` maps every file, whatever we say (`fuse_should_enable_dax`, `fs/fuse/dax.c`): without
    /// [`init::HAS_INODE_DAX`] among what it offers. Where nothing can be mapped its files could not be read, so its session is refused.
    fn begin_window(&self, request: &InitIn) -> Result<Option<Mappable>> {
        let offers = u64::from(request.flags) | u64::from(request.flags2) << 32;
        let Some(window) = self.window() else { return Ok(None) };
        window.show()?;
        if offers & self.limits.want & init::MAP_ALIGNMENT == 0 {
            return Ok(None);
        }
        let mappable = window.begin()?;
        let maps_all = offers & init::HAS_INODE_DAX == 0;
        if maps_all && !mappable.is_some_and(|mappable| mappable.read_only || !self.fs.read_only()) {
            tracing::error!("the guest mounts with dax=always, and not all of its files can be mapped: use dax=inode");
            return Err(Error::Errno(libc::EOPNOTSUPP));
        }
        Ok(mappable)
    }
}
