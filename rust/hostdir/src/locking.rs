//! GETLK, SETLK, SETLKW: locks on files of this share, in the company of all guests and of the host.

use std::sync::atomic::Ordering;

use rustix::fs::OFlags;
use virtiofs_fuse::wire::{FileLock, FlushIn, LkIn};
use virtiofs_fuse::{Error, Result, Wait};

use crate::HostDir;
use crate::bounds::Counted;
use crate::handles::FileHandle;
use crate::inode::Inode;
use crate::locks::{Asked, FileKey};

fn key(inode: &Inode) -> FileKey {
    (inode.key.device, inode.key.ino)
}

impl HostDir {
    pub(crate) fn op_getlk(&self, args: &LkIn) -> Result<FileLock> {
        let handle = self.files.get(args.fh)?;
        self.locks.get(self.session, key(&handle.inode), args, || self.open_for_locks(&handle.inode))
    }

    pub(crate) fn op_setlk(&self, args: &LkIn, wait: bool) -> Result<Option<Wait>> {
        let handle = self.files.get(args.fh)?;
        handle.locked.store(true, Ordering::Relaxed);
        let open = || self.open_for_locks(&handle.inode);
        Ok(match self.locks.set(self.session, key(&handle.inode), args, wait, open)? {
            Asked::Settled => None,
            Asked::Waits(wait) => Some(wait),
        })
    }

    /// A close in the guest: POSIX locks of the process go, through whichever descriptor it had them (fcntl_locking(2)).
    pub(crate) fn drop_posix_locks(&self, inode: &Inode, args: &FlushIn) {
        if self.host_locks() {
            self.locks.forget_owner(self.session, key(inode), args.lock_owner);
        }
    }

    /// The last close of an open file: its own locks go, be they of flock(2) or of F_OFD_SETLK. Of the latter Linux does not tell the end
    /// (`locks_remove_posix`, `fs/locks.c`, finds none of its own to remove). A process that had locks through this file has closed
    /// it by now, so they went with its FLUSH, and none of another process is in reach.
    pub(crate) fn drop_own_locks(&self, handle: &FileHandle, number: u64) {
        if handle.locked.load(Ordering::Relaxed) {
            self.locks.forget_handle(self.session, key(&handle.inode), number);
        }
    }

    /// A descriptor of its own for one owner's locks: one descriptor's locks never exclude each other. Exclusive byte ranges need one
    /// that may write; where none is to be had, a shared lock still is.
    fn open_for_locks(&self, inode: &Inode) -> Result<Counted> {
        inode.must_be_regular()?;
        self.bounds.room()?;
        let reading = || self.proc.reopen(inode.fd()?, OFlags::RDONLY | OFlags::NONBLOCK);
        let fd = match inode.effects.read_only {
            true => reading(),
            false => self.proc.reopen(inode.fd()?, OFlags::RDWR | OFlags::NONBLOCK),
        };
        let fd = match fd {
            Err(Error::Errno(libc::EACCES | libc::EPERM | libc::EROFS | libc::ETXTBSY)) => reading(),
            other => other,
        };
        Ok(Counted::new(fd?, &self.bounds))
    }
}
