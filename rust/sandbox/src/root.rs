//! A root directory with nothing in it but what is served.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Component, Path};

use rustix::fs::{CWD, Mode, OFlags};
use rustix::io::Errno;
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MountFlags, MountPropagationFlags, MoveMountFlags, OpenTreeFlags,
    UnmountFlags,
};

/// Makes an empty, read-only tmpfs the root of this mount namespace, with each of `directories` in it at the path that it has now (absolute, no
/// symlinks, none inside of another), the mounts below it included, and a procfs at /proc. Mounts that the host makes below a
/// directory later appear there too, where the host shares them; none of ours goes the other way.
///
/// Answers whether the procfs is that of our own pid namespace. Where the kernel does not allow one (a container that hides parts of its
/// own), it is the one that was there.
///
/// # Errors
///
/// EINVAL for a path that is not as it must be, and what the calls say; then the process must not go on, since its mounts may
/// be half of each.
pub fn replace(directories: &[impl AsRef<Path>]) -> io::Result<bool> {
    rustix::mount::mount_change("/", MountPropagationFlags::REC | MountPropagationFlags::DOWNSTREAM)?;
    let served = directories.iter().map(|path| clone_tree(path.as_ref())).collect::<io::Result<Vec<_>>>()?;
    let (proc, fresh) = match proc_of_ours() {
        Ok(proc) => (proc, true),
        Err(Errno::PERM) => (clone_tree(Path::new("/proc"))?, false),
        Err(error) => return Err(error.into()),
    };
    let root = tmpfs()?;
    // A mount must stand somewhere before others can stand on it, and pivot_root(2) wants one that does.
    attach(&root, CWD, Path::new("/proc"))?;
    for (tree, path) in served.iter().zip(directories) {
        attach(tree, &root, made(&root, path.as_ref())?)?;
    }
    attach(&proc, &root, made(&root, Path::new("/proc"))?)?;
    rustix::process::fchdir(&root)?;
    // The old root comes to lie on top of the new one, where it is taken away (pivot_root(2), "pivot_root(".", ".")").
    rustix::process::pivot_root(".", ".")?;
    rustix::mount::unmount(".", UnmountFlags::DETACH)?;
    rustix::process::chdir("/")?;
    let flags = MountFlags::BIND | MountFlags::RDONLY | MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
    Ok(rustix::mount::mount_remount("/", flags, "").map(|()| fresh)?)
}

/// Makes `directory` the root of this process, and its working directory: chroot(2).
pub fn change(directory: impl AsRef<Path>) -> io::Result<()> {
    rustix::process::chdir(directory.as_ref())?;
    rustix::process::chroot(".")?;
    Ok(rustix::process::chdir("/")?)
}

/// A copy of the mounts at and below `path`, not attached anywhere.
fn clone_tree(path: &Path) -> io::Result<OwnedFd> {
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC | OpenTreeFlags::AT_RECURSIVE;
    Ok(rustix::mount::open_tree(CWD, path, flags)?)
}

/// A new procfs that shows the processes of our pid namespace and nothing of the kernel (`subset=pid`, Linux 5.8).
fn proc_of_ours() -> rustix::io::Result<OwnedFd> {
    let options = rustix::mount::fsopen("proc", FsOpenFlags::FSOPEN_CLOEXEC)?;
    match rustix::mount::fsconfig_set_string(options.as_fd(), "subset", "pid") {
        Ok(()) | Err(Errno::INVAL) => {}
        Err(error) => return Err(error),
    }
    rustix::mount::fsconfig_create(options.as_fd())?;
    let attributes =
        MountAttrFlags::MOUNT_ATTR_NOSUID | MountAttrFlags::MOUNT_ATTR_NODEV | MountAttrFlags::MOUNT_ATTR_NOEXEC;
    rustix::mount::fsmount(options.as_fd(), FsMountFlags::FSMOUNT_CLOEXEC, attributes)
}

/// An empty file system with room for mount points.
fn tmpfs() -> io::Result<OwnedFd> {
    let options = rustix::mount::fsopen("tmpfs", FsOpenFlags::FSOPEN_CLOEXEC)?;
    for (key, value) in [("size", "64k"), ("nr_inodes", "1024"), ("mode", "755")] {
        rustix::mount::fsconfig_set_string(options.as_fd(), key, value)?;
    }
    rustix::mount::fsconfig_create(options.as_fd())?;
    let attributes =
        MountAttrFlags::MOUNT_ATTR_NOSUID | MountAttrFlags::MOUNT_ATTR_NODEV | MountAttrFlags::MOUNT_ATTR_NOEXEC;
    Ok(rustix::mount::fsmount(options.as_fd(), FsMountFlags::FSMOUNT_CLOEXEC, attributes)?)
}

/// Makes the directories of the absolute `path` below `root`, and answers the path from there.
fn made<'p>(root: &OwnedFd, path: &'p Path) -> io::Result<&'p Path> {
    let relative = path.strip_prefix("/").map_err(|_| Errno::INVAL)?;
    if relative.components().next().is_none() {
        return Err(Errno::INVAL.into());
    }
    let mut at = rustix::io::fcntl_dupfd_cloexec(root, 0)?;
    for component in relative.components() {
        let Component::Normal(name) = component else { return Err(Errno::INVAL.into()) };
        match rustix::fs::mkdirat(&at, name, Mode::from_raw_mode(0o755)) {
            Ok(()) | Err(Errno::EXIST) => {}
            Err(error) => return Err(error.into()),
        }
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        at = rustix::fs::openat(&at, name, flags, Mode::empty())?;
    }
    Ok(relative)
}

fn attach(tree: &OwnedFd, to: impl AsFd, path: &Path) -> io::Result<()> {
    Ok(rustix::mount::move_mount(tree, "", to, path, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)?)
}
