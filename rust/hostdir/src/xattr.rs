//! SETXATTR, GETXATTR, LISTXATTR, REMOVEXATTR.
//!
//! All go through /proc/self/fd with links followed: a magic link ends at the pinned inode, whatever its type, so symlinks and special
//! files need neither an open nor a change of directory. Linux 6.13 has calls relative to a descriptor for that; before, the path is
//! written out. (With AT_EMPTY_PATH these calls refuse an O_PATH descriptor: EBADF.)

use std::ffi::CStr;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::fs::XattrFlags;
use rustix::io::Errno;
use rustix::path::DecInt;
use virtiofs_fuse::wire::XATTR_MAX;
use virtiofs_fuse::{Error, Result};

use crate::HostDir;
use crate::error::{Lift, errno};
use crate::inode::Inode;
use crate::stat::Status;
use crate::sys;
use crate::xattrmap::{NAME_BUFFER, NameBuffer, narrow};

/// The kernel has no calls relative to a descriptor.
static BY_PATH: AtomicBool = AtomicBool::new(false);

/// Tells a kernel without the call from every other result.
fn has_calls<T>(result: rustix::io::Result<T>) -> Option<rustix::io::Result<T>> {
    match result {
        Err(Errno::NOSYS) => {
            BY_PATH.store(true, Ordering::Relaxed);
            None
        }
        result => Some(result),
    }
}

/// The extended attributes of the inode of one descriptor.
pub(crate) struct Attributes<'a> {
    proc: BorrowedFd<'a>,
    fd: BorrowedFd<'a>,
}

impl Attributes<'_> {
    /// The way by [`ProcFd`](crate::procfd::ProcFd), while the kernel may have the calls for it.
    fn at<T>(
        &self,
        call: impl FnOnce(BorrowedFd<'_>, &CStr) -> rustix::io::Result<T>,
    ) -> Option<rustix::io::Result<T>> {
        if BY_PATH.load(Ordering::Relaxed) {
            return None;
        }
        has_calls(call(self.proc, DecInt::from_fd(self.fd).as_c_str()))
    }

    fn path(&self) -> String {
        format!("/proc/self/fd/{}", self.fd.as_raw_fd())
    }

    pub(crate) fn set(&self, name: &CStr, value: &[u8], flags: u32) -> Result<()> {
        let by_path = || rustix::fs::setxattr(self.path(), name, value, XattrFlags::from_bits_retain(flags));
        self.at(|dir, path| sys::setxattrat(dir, path, name, value, flags)).unwrap_or_else(by_path).lift()
    }

    pub(crate) fn get(&self, name: &CStr, out: &mut [u8]) -> Result<usize> {
        match self.at(|dir, path| sys::getxattrat(dir, path, name, out)) {
            Some(result) => result.lift(),
            None if out.is_empty() => rustix::fs::getxattr_query(self.path(), name).lift(),
            None => rustix::fs::getxattr(self.path(), name, out).lift(),
        }
    }

    fn list(&self, out: &mut [u8]) -> Result<usize> {
        match self.at(|dir, path| sys::listxattrat(dir, path, out)) {
            Some(result) => result.lift(),
            None if out.is_empty() => rustix::fs::listxattr_query(self.path()).lift(),
            None => rustix::fs::listxattr(self.path(), out).lift(),
        }
    }

    fn remove(&self, name: &CStr) -> Result<()> {
        let by_path = || rustix::fs::removexattr(self.path(), name);
        self.at(|dir, path| sys::removexattrat(dir, path, name)).unwrap_or_else(by_path).lift()
    }
}

impl HostDir {
    /// The host's name for the guest's. Refuses what the share does not serve, not with ENOSYS: there are other names. What it keeps there for
    /// itself answers `missing`.
    fn host_name<'n>(&self, name: &'n CStr, buffer: &'n mut NameBuffer, missing: i32) -> Result<&'n CStr> {
        if !self.config.xattr || is_acl(name.to_bytes()) && !self.acls() {
            return errno(libc::EOPNOTSUPP);
        }
        let name = self.names.to_host(name, buffer)?;
        if self.is_kept(name.to_bytes()) {
            return errno(missing);
        }
        Ok(name)
    }

    pub(crate) fn op_setxattr(&self, node: u64, name: &CStr, value: &[u8], flags: u32, kill_sgid: bool) -> Result<()> {
        let inode = self.inodes.get(node)?;
        inode.must_be_writable()?;
        let _change = self.changing(&inode);
        let mut buffer = NAME_BUFFER;
        if self.is_only_a_file_on_the_host(&inode) && name.to_bytes().starts_with(b"user.") {
            return errno(libc::EPERM);
        }
        let name = self.host_name(name, &mut buffer, libc::EPERM)?;
        self.xattrs(inode.fd()?.as_fd()).set(name, value, flags)?;
        if kill_sgid {
            let mode = u32::from(Status::basic(inode.fd()?)?.mode());
            if mode & libc::S_ISGID != 0 {
                self.chmod(&inode, mode & 0o7777 & !libc::S_ISGID)?;
            }
        }
        Ok(())
    }

    /// A security label of a new inode, whatever else is served: the guest's policy rests on it.
    pub(crate) fn set_label(&self, fd: impl AsFd, name: &CStr, value: &[u8]) -> Result<()> {
        let mut buffer = NAME_BUFFER;
        self.xattrs(fd.as_fd()).set(self.names.to_host(name, &mut buffer)?, value, 0)
    }

    /// Takes a program's privileges away before its file changes, where the host does not know them for what they are
    /// (`security_inode_killpriv` goes by the name).
    #[inline]
    pub(crate) fn drop_capability(&self, inode: &Inode) -> Result<()> {
        match &self.names.capability {
            Some(name) if inode.kind() == libc::S_IFREG => match self.xattrs(inode.fd()?.as_fd()).remove(name) {
                Err(Error::Errno(libc::ENODATA | libc::EOPNOTSUPP)) => Ok(()),
                result => result,
            },
            _ => Ok(()),
        }
    }

    pub(crate) fn xattrs<'a>(&'a self, fd: BorrowedFd<'a>) -> Attributes<'a> {
        Attributes { proc: self.proc.dir(), fd }
    }

    pub(crate) fn op_getxattr(&self, node: u64, name: &CStr, out: &mut [u8]) -> Result<usize> {
        let inode = self.inodes.get(node)?;
        self.asked(&inode);
        let mut buffer = NAME_BUFFER;
        let name = self.host_name(name, &mut buffer, libc::ENODATA)?;
        self.xattrs(inode.fd()?.as_fd()).get(name, out)
    }

    pub(crate) fn op_listxattr(&self, node: u64, out: &mut [u8]) -> Result<usize> {
        let inode = self.inodes.get(node)?;
        self.asked(&inode);
        if !self.config.xattr {
            return errno(libc::EOPNOTSUPP);
        }
        let (fd, acls) = (inode.fd()?, self.acls());
        let host = self.xattrs(fd.as_fd());
        if acls && self.names.is_empty() && !self.keeps() {
            return host.list(out);
        }
        let strips = |name: &[u8]| {
            let lost = self.names.strips(name).filter(|_| !self.is_kept(name))?;
            (acls || !name.get(lost..).is_some_and(is_acl)).then_some(lost)
        };
        if !out.is_empty() {
            match host.list(out) {
                Err(Error::Errno(libc::ERANGE)) => {}
                Ok(length) => return Ok(narrow(out.get_mut(..length).unwrap_or_default(), strips)),
                error => return error,
            }
        }
        // Only without what is hidden may it fit, or the size alone is asked for.
        let mut all = vec![0; XATTR_MAX];
        let length = host.list(&mut all)?;
        let length = narrow(all.get_mut(..length).unwrap_or_default(), strips);
        if !out.is_empty() {
            let shown = all.get(..length).unwrap_or_default();
            out.get_mut(..length).ok_or(Error::Errno(libc::ERANGE))?.copy_from_slice(shown);
        }
        Ok(length)
    }

    pub(crate) fn op_removexattr(&self, node: u64, name: &CStr) -> Result<()> {
        let inode = self.inodes.get(node)?;
        inode.must_be_writable()?;
        let _change = self.changing(&inode);
        let mut buffer = NAME_BUFFER;
        let name = self.host_name(name, &mut buffer, libc::EPERM)?;
        self.xattrs(inode.fd()?.as_fd()).remove(name)
    }
}

fn is_acl(name: &[u8]) -> bool {
    name == b"system.posix_acl_access" || name == b"system.posix_acl_default"
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Config;
    use crate::lookup::open_path;

    /// What a kernel before 6.13 makes us do gives what a newer one's calls give.
    #[test]
    fn the_way_by_path_does_the_same() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("f"), "").unwrap();
        std::os::unix::fs::symlink("f", dir.path().join("l")).unwrap();
        let share = HostDir::new(Config { root: dir.path().into(), ..Config::default() }).unwrap();
        let root = std::fs::File::open(dir.path()).unwrap();
        for by_path in [false, true] {
            BY_PATH.store(by_path, Ordering::Relaxed);
            for (file, name) in [(c"f", c"user.x"), (c"l", c"trusted.x")] {
                let fd = open_path(root.as_fd(), file).unwrap();
                let attributes = share.xattrs(fd.as_fd());
                match attributes.set(name, b"value", 0) {
                    Err(Error::Errno(libc::EPERM | libc::EOPNOTSUPP)) => {
                        eprintln!("without {name:?}: not allowed here");
                        continue;
                    }
                    result => result.unwrap(),
                }
                let mut out = [0; 16];
                assert_eq!(attributes.get(name, &mut []), Ok(5));
                assert_eq!(attributes.get(name, &mut out), Ok(5));
                assert_eq!(&out[..5], b"value");
                assert_eq!(attributes.get(name, &mut out[..2]), Err(Error::Errno(libc::ERANGE)));
                let length = attributes.list(&mut out).unwrap();
                assert_eq!(out[..length], *name.to_bytes_with_nul());
                assert_eq!(attributes.list(&mut []), Ok(length));
                attributes.remove(name).unwrap();
                assert_eq!(attributes.get(name, &mut out), Err(Error::Errno(libc::ENODATA)));
            }
        }
        BY_PATH.store(false, Ordering::Relaxed);
    }
}
