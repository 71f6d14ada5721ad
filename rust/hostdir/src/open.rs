//! OPEN, RELEASE, OPENDIR, RELEASEDIR: handles come and go.

use std::os::fd::OwnedFd;
use std::sync::Arc;

use rustix::fs::{Mode, OFlags};
use virtiofs_fuse::wire::{OpenOut, ReleaseIn, fopen};
use virtiofs_fuse::{Error, Result};

use crate::HostDir;
use crate::bounds::Counted;
use crate::error::{Lift, errno};
use crate::handles::{DirHandle, FileHandle};
use crate::inode::Inode;

/// Flags of the guest's open(2) that mean something to the host's. O_NONBLOCK, O_NOFOLLOW and their like were the guest's business, O_APPEND
/// is per write: a descriptor with it would ignore the offsets of writes.
const PASSED_ON: i32 = libc::O_ACCMODE | libc::O_TRUNC | libc::O_SYNC | libc::O_DSYNC | libc::O_NOATIME;

impl HostDir {
    pub(crate) fn op_open(&self, node: u64, flags: u32, kill_suidgid: bool) -> Result<OpenOut> {
        let inode = self.inodes.get(node)?;
        inode.must_be_regular()?;
        let host_flags = self.host_flags(&inode, flags)?;
        self.bounds.room()?;
        let _guard = if kill_suidgid && host_flags & libc::O_TRUNC != 0 { self.losing_suid(&inode)? } else { None };
        let _change = (host_flags & libc::O_TRUNC != 0).then(|| self.changing(&inode));
        let spare = if host_flags == libc::O_RDONLY { inode.take_spare() } else { None };
        let spare = spare.map(|fd| (fd, host_flags));
        let (fd, host_flags) = spare.map_or_else(|| self.open_inode(&inode, host_flags, flags), Ok)?;
        Ok(self.new_file(inode, fd, host_flags))
    }

    /// The host's open flags for the guest's. A guest that holds dirty pages reads a page before it changes part of it, so what it opens for
    /// writing must be readable.
    pub(crate) fn host_flags(&self, inode: &Inode, flags: u32) -> Result<i32> {
        let flags = flags as i32;
        let mut passed = flags & PASSED_ON;
        let writes = match passed & libc::O_ACCMODE {
            libc::O_RDONLY => passed & libc::O_TRUNC != 0,
            libc::O_WRONLY | libc::O_RDWR => true,
            _ => return errno(libc::EINVAL),
        };
        if writes {
            inode.must_be_writable()?;
        }
        if self.no_open() {
            // Of a file that stands for its node whoever opened it first.
            passed &= libc::O_ACCMODE | libc::O_TRUNC;
        }
        if (self.writeback() || self.no_open()) && passed & libc::O_ACCMODE == libc::O_WRONLY {
            passed = passed & !libc::O_ACCMODE | libc::O_RDWR;
        }
        if self.config.allow_direct_io && !self.no_open() {
            passed |= flags & libc::O_DIRECT;
        }
        Ok(passed)
    }

    /// Opens a regular file through its pinned inode. What the host refuses for a flag alone is tried again without, or with, it.
    /// Answers the flags that it took.
    pub(crate) fn open_inode(&self, inode: &Inode, host_flags: i32, asked: u32) -> Result<(OwnedFd, i32)> {
        if host_flags & libc::O_TRUNC != 0 {
            self.drop_capability(inode)?;
        }
        let mut flags = host_flags;
        loop {
            let result = self.proc.reopen(inode.fd()?, OFlags::from_bits_retain(flags as u32));
            match result {
                // Only the owner and the privileged may leave atime alone; the guest has asked for a hint.
                Err(Error::Errno(libc::EPERM)) if flags & libc::O_NOATIME != 0 => flags &= !libc::O_NOATIME,
                // A file with the append-only attribute opens for writing in no other way.
                Err(Error::Errno(libc::EPERM)) if asked as i32 & !flags & libc::O_APPEND != 0 => {
                    flags |= libc::O_APPEND
                }
                // Readable was our wish, not the guest's.
                Err(Error::Errno(libc::EACCES)) if (asked as i32 ^ flags) & libc::O_ACCMODE != 0 => {
                    flags = flags & !libc::O_ACCMODE | asked as i32 & libc::O_ACCMODE;
                }
                result => return result.map(|fd| (fd, flags)),
            }
        }
    }

    /// Enters an open file into the table.
    pub(crate) fn new_file(&self, inode: Arc<Inode>, fd: OwnedFd, host_flags: i32) -> OpenOut {
        let mut open_flags = inode.effects.open_flags;
        if self.no_open() {
            // Nobody would say when it is closed.
            self.stand(inode, fd, host_flags);
            return OpenOut { open_flags, ..OpenOut::default() };
        }
        if self.may_be_mapped(&inode) {
            open_flags |= fopen::KEEP_CACHE;
        }
        let handle = FileHandle::new(inode, Counted::new(fd, &self.bounds), host_flags);
        if handle.writes || self.host_locks() {
            open_flags &= !fopen::NOFLUSH;
        }
        if host_flags & libc::O_APPEND != 0 {
            // An append-only file takes no page that the guest writes back: that has old bytes in it, which would be appended again.
            open_flags = open_flags & !fopen::KEEP_CACHE | fopen::DIRECT_IO;
        }
        OpenOut { fh: self.files.insert(handle), open_flags, backing_id: 0 }
    }

    /// The descriptor is closed by whoever answers the guest, unless the next OPEN can have it. While another request still uses the
    /// handle, that one closes it.
    pub(crate) fn op_release(&self, args: &ReleaseIn) -> Result<Option<OwnedFd>> {
        let handle = self.files.remove(args.fh)?;
        self.drop_own_locks(&handle, args.fh);
        let Some(handle) = Arc::into_inner(handle) else { return Ok(None) };
        if handle.plain && self.reopening_is_idle(&handle.inode) {
            let (inode, fd) = handle.into_parts();
            return Ok(self.inodes.keep_spare(&inode, fd));
        }
        Ok(Some(handle.into_parts().1))
    }

    /// Whether to open this file again would find out nothing: this daemon may read all files, and the file system is a local one, where
    /// an open(2) fetches nothing from a server.
    fn reopening_is_idle(&self, inode: &Inode) -> bool {
        self.spares && inode.key.mount == self.inodes.root().key.mount
    }

    pub(crate) fn op_opendir(&self, node: u64) -> Result<OpenOut> {
        let inode = self.inodes.get(node)?;
        inode.must_be_directory()?;
        self.bounds.room()?;
        let fd = Counted::new(open_directory(&inode)?, &self.bounds);
        let open_flags = inode.effects.dir_open_flags;
        let fh = self.directories.insert(DirHandle::new(inode, fd));
        Ok(OpenOut { fh, open_flags, backing_id: 0 })
    }

    pub(crate) fn op_releasedir(&self, fh: u64) -> Result<Option<OwnedFd>> {
        Ok(Arc::into_inner(self.directories.remove(fh)?).map(DirHandle::into_fd))
    }
}

/// A directory's own "." needs no way through /proc.
pub(crate) fn open_directory(inode: &Inode) -> Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let fd = inode.fd()?;
    rustix::io::retry_on_intr(|| rustix::fs::openat(&fd, c".", flags, Mode::empty())).lift()
}
