#![allow(unsafe_code)]
// UNSAFETY: unshare(2) can take descriptors away from threads that Rust believes to have them; here it cannot be asked to.

//! Namespaces of one's own: namespaces(7).

use std::io;

use rustix::thread::UnshareFlags;

/// What may be had of one's own.
const KNOWN: UnshareFlags = UnshareFlags::NEWNS
    .union(UnshareFlags::NEWPID)
    .union(UnshareFlags::NEWNET)
    .union(UnshareFlags::NEWIPC)
    .union(UnshareFlags::NEWUTS)
    .union(UnshareFlags::NEWUSER);

/// Moves the calling process, which has one thread, into new namespaces; `flags` are `CLONE_NEW*` of unshare(2). A new pid namespace is
/// for the children that it has from now on.
///
/// # Errors
///
/// EINVAL for other flags, and whatever unshare(2) says.
pub fn enter(flags: u32) -> io::Result<()> {
    let flags = UnshareFlags::from_bits_retain(flags);
    if !KNOWN.contains(flags) {
        return Err(io::Error::from_raw_os_error(libc::EINVAL));
    }
    // SAFETY: `KNOWN` has no CLONE_FILES, so that all descriptors stay where they are; the rest changes what paths, ids and
    // addresses mean, and no memory.
    unsafe { rustix::thread::unshare_unsafe(flags)? };
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn descriptors_and_memory_are_not_up_for_it() {
        for flags in [libc::CLONE_FILES, libc::CLONE_VM, libc::CLONE_THREAD] {
            let error = enter(flags as u32).unwrap_err();
            assert_eq!(error.raw_os_error(), Some(libc::EINVAL));
        }
    }
}
