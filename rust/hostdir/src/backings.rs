//! Files without nodes: descriptors that somebody hands over, whose data are served as natively as those of a host directory.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use rustix::fs::OFlags;
use virtiofs_fuse::wire::{CopyFileRangeIn, FallocateIn, ReadIn, WriteIn};
use virtiofs_fuse::{BACKING, Context, Result, Segments};

use crate::error::{Lift, errno};
use crate::handles::Handles;
use crate::io;

/// Open files by the number of their handle, in which [`BACKING`] is set. The operations are those of
/// [`FileSystem`](virtiofs_fuse::FileSystem), and answer EBADF for other handles.
pub struct Backings(Handles<Backing>);

struct Backing {
    node: u64,
    fd: OwnedFd,
    writes: bool,
    no_nowait: AtomicBool,
}

impl Backing {
    fn fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl Default for Backings {
    fn default() -> Backings {
        Backings(Handles::new())
    }
}

impl Backings {
    /// Takes an open file of a node over, and answers its handle.
    pub fn insert(&self, node: u64, fd: OwnedFd) -> Result<u64> {
        let writes = may_write(&fd)?;
        Ok(self.0.insert_marked(Backing { node, fd, writes, no_nowait: AtomicBool::new(false) }, BACKING))
    }

    /// The file of a node for the DAX window: the one that was opened last, for writing if `write`. A guest maps what it has open, and
    /// names the node alone; EACCES where it has not. Looks at all open files: rare, beside the mapping of 2 MiB.
    pub fn to_map(&self, node: u64, write: bool) -> Result<virtiofs_fuse::Backing> {
        let Some(found) = self.0.newest(|backing| backing.node == node && (backing.writes || !write)) else {
            return errno(libc::EACCES);
        };
        let fd = rustix::io::fcntl_dupfd_cloexec(found.fd(), 0).lift()?;
        Ok(virtiofs_fuse::Backing { fd, writable: found.writes })
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Closes all.
    pub fn clear(&self) {
        self.0.clear();
    }

    /// Takes a file out; whoever uses it last closes it.
    pub fn remove(&self, fh: u64) -> Result<Option<OwnedFd>> {
        Ok(Arc::into_inner(self.0.remove(fh)?).map(|backing| backing.fd))
    }

    /// READ.
    pub fn read(&self, cx: &Context, args: &ReadIn, out: Segments<'_>) -> Result<usize> {
        let backing = self.0.get(args.fh)?;
        io::read(backing.fd(), false, &backing.no_nowait, cx, args.offset, out)
    }

    /// WRITE, at the guest's offset also for appends.
    pub fn write(&self, args: &WriteIn, data: Segments<'_>) -> Result<usize> {
        io::write(self.0.get(args.fh)?.fd(), 0, args.offset, data)
    }

    /// FLUSH.
    pub fn flush(&self, fh: u64) -> Result<()> {
        let backing = self.0.get(fh)?;
        if backing.writes { io::flush(backing.fd()) } else { Ok(()) }
    }

    /// FSYNC.
    pub fn fsync(&self, fh: u64, datasync: bool) -> Result<()> {
        io::fsync(self.0.get(fh)?.fd(), datasync)
    }

    /// FALLOCATE.
    pub fn fallocate(&self, args: &FallocateIn) -> Result<()> {
        io::fallocate(self.0.get(args.fh)?.fd(), args)
    }

    /// LSEEK.
    pub fn lseek(&self, fh: u64, offset: u64, whence: u32) -> Result<u64> {
        io::lseek(self.0.get(fh)?.fd(), offset, whence)
    }

    /// COPY_FILE_RANGE between two of them.
    pub fn copy_file_range(&self, args: &CopyFileRangeIn) -> Result<u64> {
        let (from, to) = (self.0.get(args.fh_in)?, self.0.get(args.fh_out)?);
        io::copy_file_range(from.fd(), to.fd(), args)
    }
}

/// Whether a descriptor was opened for writing.
pub(crate) fn may_write(fd: &OwnedFd) -> Result<bool> {
    Ok(rustix::fs::fcntl_getfl(fd).lift()? & OFlags::ACCMODE != OFlags::RDONLY)
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use virtiofs_fuse::Error;

    use super::*;

    #[test]
    fn a_file_is_served_until_it_is_taken_out() {
        let backings = Backings::default();
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(b"0123456789").unwrap();
        let fh = backings.insert(7, file.into()).unwrap();
        assert_eq!(fh & BACKING, BACKING);
        let cx = Context { unique: 0, uid: 0, gid: 0, pid: 0, may_block: true };
        let mut buffer = [0u8; 16];
        let vecs = [libc::iovec { iov_base: buffer.as_mut_ptr().cast(), iov_len: 16 }];
        let args = ReadIn { fh, offset: 4, size: 16, ..ReadIn::default() };
        assert_eq!(backings.read(&cx, &args, Segments::new(&vecs, 16)), Ok(6));
        assert_eq!(&buffer[..6], b"456789");
        assert_eq!(backings.lseek(fh, 3, libc::SEEK_HOLE as u32), Ok(10));
        assert!(backings.remove(fh).unwrap().is_some());
        assert!(backings.is_empty());
        assert_eq!(backings.flush(fh), Err(Error::Errno(libc::EBADF)));
    }

    #[test]
    fn the_file_that_was_opened_last_is_mapped() {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name);
        let backings = Backings::default();
        for (node, name, writes) in [(7, "first", true), (7, "second", true), (7, "third", false), (8, "other", true)] {
            std::fs::write(path(name), name).unwrap();
            let file = std::fs::File::options().read(true).write(writes).open(path(name)).unwrap();
            backings.insert(node, file.into()).unwrap();
        }
        let content = |node, write| {
            let backing = backings.to_map(node, write).unwrap();
            (std::io::read_to_string(std::fs::File::from(backing.fd)).unwrap(), backing.writable)
        };
        assert_eq!(content(7, false), ("third".into(), false));
        assert_eq!(content(7, true), ("second".into(), true));
        assert_eq!(content(8, false), ("other".into(), true));
        assert_eq!(backings.to_map(9, false).unwrap_err(), Error::Errno(libc::EACCES));
    }
}
