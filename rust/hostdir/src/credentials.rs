//! As whom a system call runs.
//!
//! What a guest's caller makes must belong to that caller. A privileged daemon (CAP_SETUID and CAP_SETGID effective) takes
//! on the caller's fsuid and fsgid for the one call that creates; any other creates as itself. All of it concerns one thread and
//! ends with the guard, within one operation. A change of fsuid makes the process undumpable and clears the thread's
//! parent-death signal (`commit_creds`, `kernel/cred.c`).
//!
//! **Capabilities.** The guest has checked permissions before it asked, with supplementary groups that we are not told; so the
//! creation keeps CAP_DAC_OVERRIDE and its like, which the kernel takes from a thread whose fsuid leaves 0. CAP_FSETID
//! it loses: the host then strips S_ISGID by its own rules, with the one supplementary group that `CREATE_SUPP_GROUP` names.
//!
//! **umask.** With `DONT_MASK` the umask of the guest's caller applies unless the parent has a default ACL. The host knows that
//! best and at the right moment, so it gets the umask: each thread that creates has a umask of its own (`unshare(CLONE_FS)`, once;
//! its working directory becomes its own too) and sets it anew only when the next caller's differs.
//! No umask of the process plays a part.

use std::cell::Cell;
use std::marker::PhantomData;
use std::sync::OnceLock;

use rustix::fs::Mode;
use rustix::process::Gid;
use rustix::thread::{CapabilitySet, CapabilitySets};
use virtiofs_fuse::{Context, Creation, Result};

use crate::error::{Lift, errno};
use crate::sys;

/// What the kernel takes from the effective set of a thread whose fsuid leaves 0, and gives back when it returns: CAP_FS_MASK of
/// `include/linux/capability.h`.
const FILE_SYSTEM: CapabilitySet = CapabilitySet::CHOWN
    .union(CapabilitySet::DAC_OVERRIDE)
    .union(CapabilitySet::DAC_READ_SEARCH)
    .union(CapabilitySet::FOWNER)
    .union(CapabilitySet::FSETID)
    .union(CapabilitySet::LINUX_IMMUTABLE)
    .union(CapabilitySet::MKNOD)
    .union(CapabilitySet::MAC_OVERRIDE);

/// A thread's credentials as they are outside of all guards: read when the thread first needs them.
#[derive(Clone, Copy)]
struct Own {
    uid: u32,
    gid: u32,
    capabilities: CapabilitySets,
}

thread_local! {
    static OWN: Cell<Option<Own>> = const { Cell::new(None) };
    static UMASK: Cell<Option<u32>> = const { Cell::new(None) };
}

impl Own {
    fn of_this_thread() -> Result<Own> {
        if let Some(own) = OWN.get() {
            return Ok(own);
        }
        let capabilities = rustix::thread::capabilities(None).lift()?;
        let own = Own { uid: sys::setfsuid(u32::MAX), gid: sys::setfsgid(u32::MAX), capabilities };
        OWN.set(Some(own));
        Ok(own)
    }

    fn has(&self, capability: CapabilitySet) -> bool {
        self.capabilities.effective.contains(capability)
    }

    fn set_effective(&self, effective: CapabilitySet) -> Result<()> {
        rustix::thread::set_capabilities(None, CapabilitySets { effective, ..self.capabilities }).lift()
    }
}

/// Whether what a guest's callers make will belong to them: this thread has CAP_SETUID and CAP_SETGID. Otherwise all of it belongs to
/// the daemon.
pub fn may_change_owner() -> bool {
    Own::of_this_thread().is_ok_and(|own| own.has(CapabilitySet::SETUID | CapabilitySet::SETGID))
}

/// Whether no file's permissions keep this thread from reading it.
pub(crate) fn may_read_all() -> bool {
    Own::of_this_thread().is_ok_and(|own| own.has(CapabilitySet::DAC_OVERRIDE))
}

/// What the caller may do while a [`Caller`] lasts.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Rights {
    /// The guest has checked: file permissions do not stand in the way.
    Checked,
    /// Only what the host allows this user and group.
    Plain,
}

/// While it lives, this thread acts on the file system as a caller in the guest.
#[must_use]
pub(crate) struct Caller {
    own: Option<Own>,
    groups: Option<Vec<Gid>>,
    _this_thread: PhantomData<*const ()>,
}

impl Caller {
    /// For an operation that creates: owner, group, umask and the supplementary group.
    pub(crate) fn creates(cx: &Context, new: &Creation<'_>) -> Result<Caller> {
        set_umask(new.umask)?;
        Caller::assume(cx, new.supplementary_group, Rights::Checked)
    }

    /// The thread's own credentials stay in force.
    pub(crate) fn oneself() -> Caller {
        Caller { own: None, groups: None, _this_thread: PhantomData }
    }

    /// Takes the ids of `cx` on. Does nothing where they are the thread's own, unknown (`u32::MAX`: an idmapped mount's request
    /// that creates nothing), or not for this daemon to take.
    pub(crate) fn assume(cx: &Context, group: Option<u32>, rights: Rights) -> Result<Caller> {
        let own = Own::of_this_thread()?;
        let uid = if cx.uid == u32::MAX { own.uid } else { cx.uid };
        let gid = if cx.gid == u32::MAX { own.gid } else { cx.gid };
        let mut caller = Caller { own: None, groups: None, _this_thread: PhantomData };
        if (uid, gid) == (own.uid, own.gid) || !own.has(CapabilitySet::SETUID | CapabilitySet::SETGID) {
            return Ok(caller);
        }
        caller.own = Some(own);
        if let Some(group) = group.filter(|&group| group != gid && group != u32::MAX) {
            let groups = rustix::process::getgroups().lift()?;
            let mut more = groups.clone();
            more.push(Gid::from_raw(group));
            rustix::thread::set_thread_groups(&more).lift()?;
            caller.groups = Some(groups);
        }
        if gid != own.gid {
            sys::setfsgid(gid);
        }
        if uid != own.uid {
            sys::setfsuid(uid);
            let effective = own.capabilities.effective;
            own.set_effective(match rights {
                Rights::Checked => effective - CapabilitySet::FSETID,
                Rights::Plain => effective - FILE_SYSTEM,
            })?;
        }
        if !ids_are_all_mapped() && (sys::setfsuid(u32::MAX), sys::setfsgid(u32::MAX)) != (uid, gid) {
            // What open(2) answers where an id has no place on the file system.
            return errno(libc::EOVERFLOW);
        }
        Ok(caller)
    }

    /// Whether the thread's own credentials are in force.
    pub(crate) fn is_oneself(&self) -> bool {
        self.own.is_none()
    }
}

impl Drop for Caller {
    fn drop(&mut self) {
        let Some(own) = self.own else { return };
        sys::setfsuid(own.uid);
        sys::setfsgid(own.gid);
        if let Some(groups) = &self.groups
            && let Err(error) = rustix::thread::set_thread_groups(groups)
        {
            tracing::error!(?error, "a supplementary group of a guest's caller stays with a worker");
        }
        // The return to fsuid 0 gives back what its loss took, which is all there is to give back for root.
        let given_back = own.uid == 0 && own.has(own.capabilities.permitted & FILE_SYSTEM);
        if !given_back && let Err(error) = own.set_effective(own.capabilities.effective) {
            tracing::error!(?error, "a worker could not take its capabilities back");
        }
    }
}

/// While it lives, this thread lacks CAP_FSETID: a write or truncation clears suid and sgid by the host's rules, in one step
/// with the change.
#[must_use]
pub(crate) struct WithoutFsetid {
    own: Option<Own>,
    _this_thread: PhantomData<*const ()>,
}

impl WithoutFsetid {
    /// `group` is the file's. As a member of it the thread keeps S_ISGID on a file that its group may not execute: there
    /// the bit once meant mandatory locking, and FUSE says to leave it (`FUSE_WRITE_KILL_SUIDGID`, `fuse.h`).
    pub(crate) fn enter(group: u32) -> Result<WithoutFsetid> {
        let own = Own::of_this_thread()?;
        if !own.has(CapabilitySet::FSETID) {
            return Ok(WithoutFsetid { own: None, _this_thread: PhantomData });
        }
        own.set_effective(own.capabilities.effective - CapabilitySet::FSETID)?;
        if own.has(CapabilitySet::SETGID) {
            sys::setfsgid(group);
        }
        Ok(WithoutFsetid { own: Some(own), _this_thread: PhantomData })
    }

    /// Whether there is anything to lose: a daemon that lacks CAP_FSETID clears suid and sgid with every write.
    pub(crate) fn matters() -> bool {
        Own::of_this_thread().is_ok_and(|own| own.has(CapabilitySet::FSETID))
    }
}

impl Drop for WithoutFsetid {
    fn drop(&mut self) {
        let Some(own) = self.own else { return };
        if own.has(CapabilitySet::SETGID) {
            sys::setfsgid(own.gid);
        }
        if let Err(error) = own.set_effective(own.capabilities.effective) {
            tracing::error!(?error, "a worker could not take CAP_FSETID back");
        }
    }
}

/// Makes `mask` the umask of this thread, and of this thread alone.
pub(crate) fn set_umask(mask: u32) -> Result<()> {
    let mask = mask & 0o777;
    let before = UMASK.get();
    if before == Some(mask) {
        return Ok(());
    }
    if before.is_none() {
        sys::unshare_fs().lift()?;
    }
    rustix::process::umask(Mode::from_raw_mode(mask));
    UMASK.set(Some(mask));
    Ok(())
}

/// Whether this user namespace maps every id, so that setfsuid(2), which reports nothing, cannot fail for a privileged thread.
pub(crate) fn ids_are_all_mapped() -> bool {
    static ALL: OnceLock<bool> = OnceLock::new();
    *ALL.get_or_init(|| {
        ["/proc/self/uid_map", "/proc/self/gid_map"].iter().all(|path| {
            let map = std::fs::read_to_string(path).unwrap_or_default();
            map.split_whitespace().eq(["0", "0", "4294967295"])
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cx(uid: u32, gid: u32) -> Context {
        Context { unique: 1, uid, gid, pid: 1, may_block: true }
    }

    fn now() -> (u32, u32, u64, Vec<Gid>) {
        let capabilities = rustix::thread::capabilities(None).unwrap().effective.bits();
        (sys::setfsuid(u32::MAX), sys::setfsgid(u32::MAX), capabilities, rustix::process::getgroups().unwrap())
    }

    #[test]
    fn a_caller_leaves_no_trace_on_the_thread() {
        if !may_change_owner() {
            eprintln!("skipped: needs CAP_SETUID and CAP_SETGID");
            return;
        }
        let before = now();
        for (uid, gid) in [(1000, 1000), (1000, 0), (0, 1000), (u32::MAX, u32::MAX), (0, 0)] {
            for rights in [Rights::Checked, Rights::Plain] {
                {
                    let _caller = Caller::assume(&cx(uid, gid), Some(77), rights).unwrap();
                    let inside = now();
                    if uid == 1000 {
                        assert_eq!((inside.0, inside.1), (uid, gid));
                        let keeps = inside.2 & CapabilitySet::DAC_OVERRIDE.bits() != 0;
                        assert_eq!(keeps, rights == Rights::Checked);
                        assert_eq!(inside.2 & CapabilitySet::FSETID.bits(), 0);
                        assert!(inside.3.contains(&Gid::from_raw(77)));
                    }
                }
                assert_eq!(now(), before, "after {uid}:{gid}");
            }
            {
                let _guard = WithoutFsetid::enter(gid).unwrap();
                assert_eq!(now().2 & CapabilitySet::FSETID.bits(), 0);
            }
            assert_eq!(now(), before, "after the loss of CAP_FSETID");
        }
    }

    #[test]
    fn a_umask_stays_with_its_thread() {
        let outside = rustix::process::umask(Mode::from_raw_mode(0o022));
        std::thread::spawn(|| {
            set_umask(0o077).unwrap();
            set_umask(0o077).unwrap();
            assert_eq!(rustix::process::umask(Mode::from_raw_mode(0o077)).as_raw_mode(), 0o077);
        })
        .join()
        .unwrap();
        assert_eq!(rustix::process::umask(outside).as_raw_mode(), 0o022);
    }
}
