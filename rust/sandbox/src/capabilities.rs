//! Capabilities: of capabilities(7), only those named stay, for good.

use std::io;

use rustix::thread::{self, CapabilitySet, CapabilitySets};

/// Capabilities by the names that the manual has, without `CAP_`, in lower case.
pub const NAMES: [&str; 41] = [
    "chown",
    "dac_override",
    "dac_read_search",
    "fowner",
    "fsetid",
    "kill",
    "setgid",
    "setuid",
    "setpcap",
    "linux_immutable",
    "net_bind_service",
    "net_broadcast",
    "net_admin",
    "net_raw",
    "ipc_lock",
    "ipc_owner",
    "sys_module",
    "sys_rawio",
    "sys_chroot",
    "sys_ptrace",
    "sys_pacct",
    "sys_admin",
    "sys_boot",
    "sys_nice",
    "sys_resource",
    "sys_time",
    "sys_tty_config",
    "mknod",
    "lease",
    "audit_write",
    "audit_control",
    "setfcap",
    "mac_override",
    "mac_admin",
    "syslog",
    "wake_alarm",
    "block_suspend",
    "audit_read",
    "perfmon",
    "bpf",
    "checkpoint_restore",
];

/// The capability that is called `name`.
pub fn by_name(name: &str) -> Option<CapabilitySet> {
    let bit = NAMES.iter().position(|known| *known == name)?;
    Some(CapabilitySet::from_bits_retain(1 << bit))
}

/// Names of the capabilities that this thread has in effect.
pub fn effective() -> io::Result<Vec<&'static str>> {
    let effective = thread::capabilities(None)?.effective.bits();
    Ok(NAMES.iter().enumerate().filter(|(bit, _)| effective >> bit & 1 != 0).map(|(_, name)| *name).collect())
}

/// Keeps those of `keep` that this thread has and gives all others up, those that an execve(2) could bring back included.
pub fn keep_only(keep: CapabilitySet) -> io::Result<()> {
    let now = thread::capabilities(None)?;
    if now.effective.contains(CapabilitySet::SETPCAP) {
        // 63 is where the sets end; beyond what this kernel knows it answers EINVAL.
        for bit in 0..63 {
            let one = CapabilitySet::from_bits_retain(1 << bit);
            match keep.contains(one) {
                true => {}
                false => match thread::remove_capability_from_bounding_set(one) {
                    Ok(()) => {}
                    Err(rustix::io::Errno::INVAL) => break,
                    Err(error) => return Err(error.into()),
                },
            }
        }
    }
    match thread::clear_ambient_capability_set() {
        Ok(()) | Err(rustix::io::Errno::INVAL) => {}
        Err(error) => return Err(error.into()),
    }
    let kept = now.permitted & keep;
    let sets = CapabilitySets { effective: kept, permitted: kept, inheritable: CapabilitySet::empty() };
    Ok(thread::set_capabilities(None, sets)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_those_of_the_kernel() {
        for (name, capability) in [
            ("chown", CapabilitySet::CHOWN),
            ("setuid", CapabilitySet::SETUID),
            ("sys_admin", CapabilitySet::SYS_ADMIN),
            ("mknod", CapabilitySet::MKNOD),
            ("setfcap", CapabilitySet::SETFCAP),
            ("checkpoint_restore", CapabilitySet::CHECKPOINT_RESTORE),
        ] {
            assert_eq!(by_name(name), Some(capability), "{name}");
        }
        assert_eq!(by_name("CAP_CHOWN"), None);
    }

    #[test]
    fn what_is_not_kept_is_gone_for_good() {
        // A thread of its own: the loss is the thread's alone.
        std::thread::spawn(|| {
            keep_only(CapabilitySet::CHOWN).unwrap();
            let now = thread::capabilities(None).unwrap();
            assert_eq!(now.effective - CapabilitySet::CHOWN, CapabilitySet::empty());
            assert_eq!(now.permitted, now.effective);
            assert_eq!(now.inheritable, CapabilitySet::empty());
            let again = CapabilitySets { effective: CapabilitySet::SYS_ADMIN, ..now };
            assert!(thread::set_capabilities(None, again).is_err());
            if now.effective.contains(CapabilitySet::CHOWN) {
                assert!(!thread::capability_is_in_bounding_set(CapabilitySet::SYS_ADMIN).unwrap());
            }
        })
        .join()
        .unwrap();
    }
}
