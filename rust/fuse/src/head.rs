//! How a request begins, and the shortest of them as a whole.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::Ordering::Relaxed;

use zerocopy::{FromBytes, IntoBytes, KnownLayout};

use crate::op::Opcode;
use crate::wire::{ForgetIn, InHeader, init};
use crate::{Malformed, Message, Route, Server};

/// The header, and what lies behind it in a request that is as short as FORGET: of those each byte is taken in one step.
#[derive(FromBytes, IntoBytes, KnownLayout)]
#[repr(C)]
pub(crate) struct Head {
    pub(crate) header: InHeader,
    pub(crate) behind: [u8; size_of::<ForgetIn>()],
}

impl Head {
    /// Takes the header, and all of a request that is just so long. Answers how many bytes of `behind` are there.
    pub(crate) fn take(&mut self, message: &mut dyn Message) -> Option<usize> {
        let all = self.as_mut_bytes();
        if message.remaining() == all.len() && message.take(all).is_ok() {
            return Some(size_of::<ForgetIn>());
        }
        message.take(self.header.as_mut_bytes()).ok().map(|()| 0)
    }
}

impl Server {
    /// FORGET, the short way, where nothing stands in it: a listing is followed by one for each entry. False, and nothing done, otherwise.
    pub(crate) fn forgets_at_once(&self, header: &InHeader, early: &[u8]) -> bool {
        let here = matches!(self.routes.get(Opcode::Forget as usize), Some(Route::Here));
        let whole = (size_of::<InHeader>()..=size_of::<Head>()).contains(&(header.len as usize));
        let plain = here && whole && self.initialized.load(Relaxed) && !self.has(init::MAP_ALIGNMENT);
        let Ok(args) = ForgetIn::read_from_bytes(early) else { return false };
        if !plain {
            return false;
        }
        let result = catch_unwind(AssertUnwindSafe(|| self.forget(header.nodeid, args.nlookup)));
        if result.is_err() {
            self.metrics.panic();
        }
        self.metrics.request(Opcode::Forget, result.is_err());
        true
    }
}

/// As [`Message::take`], of bytes that were taken before.
#[inline(never)]
pub(crate) fn take_early(early: &mut &[u8], into: &mut [u8]) -> Result<(), Malformed> {
    let (taken, left) = early.split_at_checked(into.len()).ok_or(Malformed)?;
    into.copy_from_slice(taken);
    *early = left;
    Ok(())
}
