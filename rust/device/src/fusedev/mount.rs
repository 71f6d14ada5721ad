//! mount(2) and umount(2) for those who may: root.

use std::ffi::CString;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::fs::{Mode, OFlags};
use rustix::mount::{FsMountFlags, FsOpenFlags, MountAttrFlags, MountFlags, UnmountFlags};

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

/// Unmounts what is mounted at `target`: EBUSY while it is in use. With `detach` it goes from sight at once, and whoever has files open
/// keeps them for as long as the connection is served.
pub fn unmount(target: &Path, detach: bool) -> io::Result<()> {
    let detach = if detach { UnmountFlags::DETACH } else { UnmountFlags::empty() };
    Ok(rustix::mount::unmount(target, detach | UnmountFlags::NOFOLLOW)?)
}

/// How long requests may stand still before they count as those that wait for others: for a lock, say.
const STILL: Duration = Duration::from_secs(1);
/// How long those who go on using the mount can keep it from being given up.
const LONGEST: Duration = Duration::from_secs(10);

/// Has what was changed in memory written to what is mounted at `target`, and waits until that has been served.
///
/// syncfs(2) alone begins it: of FUSE's pages the kernel promises no more (`fs/fuse/inode.c`, `fuse_sync_fs`). So the requests of the
/// connection are counted, by the file system that shows them (`fs/fuse/control.c`), until there are none, or they stand still, or new ones
/// come all the time.
pub fn save(target: &Path) -> io::Result<()> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let root = rustix::fs::open(target, flags, Mode::empty())?;
    rustix::fs::syncfs(&root)?;
    let connection = rustix::fs::minor(rustix::fs::fstat(&root)?.st_dev);
    let Ok(shown) = control(connection) else { return Ok(()) };
    let began = Instant::now();
    let (mut last, mut since) = (None, began);
    while since.elapsed() < STILL && began.elapsed() < LONGEST {
        let mut digits = [0; 24];
        // It is counted at the first read after each open.
        let waiting = rustix::fs::openat(&shown, "waiting", OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?;
        let length = rustix::io::read(&waiting, &mut digits)?;
        if matches!(digits.get(..length).unwrap_or_default().trim_ascii(), b"" | b"0") {
            break;
        }
        if last.replace(digits) != Some(digits) {
            since = Instant::now();
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    Ok(())
}

/// The directory that shows a connection: in the file system that most hosts have mounted, or in an instance that nobody sees, which takes
/// CAP_SYS_ADMIN.
fn control(connection: u32) -> io::Result<OwnedFd> {
    let (flags, none) = (OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty());
    if let Ok(shown) = rustix::fs::open(format!("/sys/fs/fuse/connections/{connection}"), flags, none) {
        return Ok(shown);
    }
    let context = rustix::mount::fsopen("fusectl", FsOpenFlags::FSOPEN_CLOEXEC)?;
    rustix::mount::fsconfig_create(context.as_fd())?;
    let attributes = MountAttrFlags::MOUNT_ATTR_RDONLY;
    let connections = rustix::mount::fsmount(context.as_fd(), FsMountFlags::FSMOUNT_CLOEXEC, attributes)?;
    Ok(rustix::fs::openat(connections, connection.to_string(), flags, none)?)
}
