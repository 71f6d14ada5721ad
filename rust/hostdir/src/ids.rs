//! Users and groups that are called something else on the host.

use std::sync::Arc;

use virtiofs_fuse::{Context, Creation, Result};

use crate::HostDir;
use crate::config::Effects;
use crate::credentials::{Caller, Rights};
use crate::error::errno;

/// What becomes of a range of ids, in one direction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IdRange {
    /// The first id.
    pub from: u32,
    /// How many there are.
    pub count: u32,
    /// What they become.
    pub to: To,
}

/// What becomes of the ids of a range.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum To {
    /// As many ids from this one on.
    Ids(u32),
    /// All of them this one.
    One(u32),
    /// EPERM.
    Refused,
}

/// What users, or groups, are called; ids in none of the ranges stay what they are, of several ranges the first holds.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Translation {
    /// Ids of the guest, as the host gets them.
    pub to_host: Vec<IdRange>,
    /// Those of the host, as the guest sees them.
    pub to_guest: Vec<IdRange>,
}

impl IdRange {
    fn apply(&self, id: u32) -> Option<To> {
        let offset = id.checked_sub(self.from).filter(|&offset| offset < self.count)?;
        Some(match self.to {
            // Python has checked that the last one is an id; where it was not, no id is better than another's.
            To::Ids(base) => base.checked_add(offset).map_or(To::Refused, To::One),
            other => other,
        })
    }
}

fn translated(ranges: &[IdRange], id: u32) -> Result<u32> {
    match ranges.iter().find_map(|range| range.apply(id)) {
        // u32::MAX is no id: nobody, or as it is.
        _ if id == u32::MAX => Ok(id),
        Some(To::One(other) | To::Ids(other)) => Ok(other),
        Some(To::Refused) => errno(libc::EPERM),
        None => Ok(id),
    }
}

/// An id of the guest by the name of the host.
fn on_host(ids: &Option<Arc<Translation>>, id: u32) -> Result<u32> {
    ids.as_ref().map_or(Ok(id), |ids| translated(&ids.to_host, id))
}

/// An id of the host by the name of the guest.
fn in_guest(ids: &Option<Arc<Translation>>, id: u32) -> u32 {
    ids.as_ref().map_or(id, |ids| translated(&ids.to_guest, id).unwrap_or(id))
}

impl Effects {
    /// A caller by the host's names.
    pub(crate) fn caller(&self, cx: &Context) -> Result<Context> {
        Ok(Context { uid: on_host(&self.users, cx.uid)?, gid: on_host(&self.groups, cx.gid)?, ..*cx })
    }

    /// The caller's other group, by the host's name.
    pub(crate) fn host_group_of(&self, new: &Creation<'_>) -> Result<Option<u32>> {
        new.supplementary_group.map(|group| on_host(&self.groups, group)).transpose()
    }

    /// An owner that the guest wants for an inode, by the names of the host.
    pub(crate) fn host_owner(&self, uid: Option<u32>, gid: Option<u32>) -> Result<(Option<u32>, Option<u32>)> {
        Ok((uid.map(|id| on_host(&self.users, id)).transpose()?, gid.map(|id| on_host(&self.groups, id)).transpose()?))
    }

    /// The owner of an inode, by the names of the guest.
    #[inline]
    pub(crate) fn guest_owner(&self, uid: &mut u32, gid: &mut u32) {
        *uid = in_guest(&self.users, *uid);
        *gid = in_guest(&self.groups, *gid);
    }
}

impl HostDir {
    /// For a call that creates: this thread becomes the guest's caller, by the caller's name on the host.
    pub(crate) fn creates(&self, effects: &Effects, cx: &Context, new: &Creation<'_>) -> Result<Caller> {
        let supplementary_group = effects.host_group_of(new)?;
        Caller::creates(&effects.caller(cx)?, &Creation { supplementary_group, ..*new })
    }

    /// The same for any other call. Where owners are kept apart from the host's inodes, the host knows the daemon alone.
    pub(crate) fn caller(&self, effects: &Effects, cx: &Context, rights: Rights) -> Result<Caller> {
        if self.keeps() { Ok(Caller::oneself()) } else { Caller::assume(&effects.caller(cx)?, None, rights) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn range(from: u32, count: u32, to: To) -> IdRange {
        IdRange { from, count, to }
    }

    #[test]
    fn an_id_is_that_of_the_first_range_it_is_in() {
        let ranges = [
            range(0, 1, To::One(1000)),
            range(1, 9, To::Refused),
            range(5, 100, To::Ids(5000)),
            range(u32::MAX - 1, 2, To::Ids(0)),
        ];
        for (id, other) in
            [(0, Some(1000)), (1, None), (9, None), (10, Some(5005)), (104, Some(5099)), (105, Some(105))]
        {
            assert_eq!(translated(&ranges, id).ok(), other, "{id}");
        }
        assert_eq!(translated(&ranges, u32::MAX - 1).ok(), Some(0));
        assert_eq!(translated(&ranges, u32::MAX).ok(), Some(u32::MAX), "no id");
    }

    #[test]
    fn a_range_never_wraps_round() {
        let ranges = [range(0, 10, To::Ids(u32::MAX - 3))];
        assert_eq!(translated(&ranges, 3).ok(), Some(u32::MAX));
        assert!(translated(&ranges, 4).is_err());
    }
}
