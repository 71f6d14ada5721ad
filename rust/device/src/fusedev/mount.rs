//! mount(2) and umount(2) for those who may: root.

use std::ffi::CString;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::Path;

use rustix::fs::{Mode, OFlags};
use rustix::mount::{MountFlags, UnmountFlags};

use super::channel;

/// Mounts a new connection at the directory `target` and answers its first descriptor. Until it is served, whoever touches the mount waits.
///
/// `source` and `subtype` are what /proc/mounts shows; `flags` are the MS_ flags of mount(2); `options` are those of the kernel's FUSE
/// that follow on `fd`, `rootmode`, `user_id` and `group_id`: `default_permissions`, `allow_other`, `max_read=`.
pub fn mount(target: &Path, source: &str, subtype: &str, flags: u32, options: &str) -> io::Result<OwnedFd> {
    let fd = channel::open()?;
    let (user, group) = (rustix::process::getuid().as_raw(), rustix::process::getgid().as_raw());
    let mut data = format!("fd={},rootmode={:o},user_id={user},group_id={group}", fd.as_raw_fd(), libc::S_IFDIR);
    if !options.is_empty() {
        data = format!("{data},{options}");
    }
    let data = CString::new(data)?;
    let flags = MountFlags::from_bits_retain(flags);
    rustix::mount::mount(source, target, format!("fuse.{subtype}"), flags, data.as_c_str())?;
    Ok(fd)
}

/// Unmounts what is mounted at `target`: EBUSY while it is in use. With `detach` it goes from sight at once, what was changed in
/// memory is written first, and whoever has files open keeps them for as long as the connection is served.
pub fn unmount(target: &Path, detach: bool) -> io::Result<()> {
    if !detach {
        return Ok(rustix::mount::unmount(target, UnmountFlags::NOFOLLOW)?);
    }
    // A dead mount cannot be opened, and has nothing that could still be written.
    if let Ok(root) = rustix::fs::open(target, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty()) {
        let _ = rustix::fs::syncfs(root);
    }
    Ok(rustix::mount::unmount(target, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW)?)
}
