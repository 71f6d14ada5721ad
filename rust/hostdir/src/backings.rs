//! Files without nodes: descriptors that somebody hands over, whose data are served as natively as those of a host directory.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use rustix::fs::OFlags;
use virtiofs_fuse::wire::{CopyFileRangeIn, FallocateIn, ReadIn, WriteIn};
use virtiofs_fuse::{BACKING, Context, Error, Result, Segments};

use crate::blocks::Blocks;
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
    /// Of a file of which not everything has to be there.
    blocks: Option<Arc<Blocks>>,
}

impl Backing {
    fn new(node: u64, fd: OwnedFd, blocks: Option<Arc<Blocks>>) -> Result<Backing> {
        let writes = may_write(&fd)?;
        Ok(Backing { node, fd, writes, no_nowait: AtomicBool::new(false), blocks })
    }

    fn fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }

    /// Whether a guest may map it who has this node open. What lacks parts is not mapped: nobody would be asked for them.
    fn is_mappable(&self, node: u64, write: bool) -> bool {
        self.node == node && (self.writes || !write) && self.blocks.is_none()
    }

    /// Whether everything is there, and stays.
    fn is_whole(&self) -> bool {
        self.blocks.as_ref().is_none_or(|blocks| blocks.is_whole())
    }
}

impl Default for Backings {
    fn default() -> Backings {
        Backings(Handles::new())
    }
}

impl Backings {
    /// Takes an open file of a node over, and answers its handle. With `blocks`, what reads or writes a part that is lacking answers
    /// [`Error::Elsewhere`].
    pub fn insert(&self, node: u64, fd: OwnedFd, blocks: Option<Arc<Blocks>>) -> Result<u64> {
        Ok(self.0.insert_marked(Backing::new(node, fd, blocks)?, BACKING))
    }

    /// As [`Backings::insert`], of a session that goes on, in which the handle was `fh`.
    pub fn insert_again(&self, fh: u64, node: u64, fd: OwnedFd, blocks: Option<Arc<Blocks>>) -> Result<()> {
        self.0.insert_again(fh, Backing::new(node, fd, blocks)?);
        Ok(())
    }

    /// All handles, each with its node.
    pub fn all(&self) -> Vec<(u64, u64)> {
        self.0.all().iter().map(|(number, backing)| (*number, backing.node)).collect()
    }

    /// What the next number is made of.
    pub fn next(&self) -> u64 {
        self.0.next()
    }

    /// No number below `next` is given any more.
    pub fn go_on_from(&self, next: u64) {
        self.0.go_on_from(next);
    }

    /// The file of a node for the DAX window: the one that was opened last, for writing if `write`. A guest maps what it has open, and
    /// names the node alone; EACCES where it has not. Looks at all open files: rare, beside the mapping of 2 MiB.
    pub fn to_map(&self, node: u64, write: bool) -> Result<virtiofs_fuse::Backing> {
        let Some(found) = self.0.newest(|backing| backing.is_mappable(node, write)) else {
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
        let Some(blocks) = &backing.blocks else {
            return io::read(backing.fd(), false, &backing.no_nowait, cx, args.offset, out);
        };
        let reading = blocks.begin(args.offset, out.len()).ok_or(Error::Elsewhere)?;
        let read = io::read(backing.fd(), false, &backing.no_nowait, cx, args.offset, out)?;
        if blocks.held(&reading) { Ok(read) } else { Err(Error::Elsewhere) }
    }

    /// WRITE, at the guest's offset also for appends.
    pub fn write(&self, args: &WriteIn, data: Segments<'_>) -> Result<usize> {
        let backing = self.0.get(args.fh)?;
        if backing.is_whole() { io::write(backing.fd(), 0, args.offset, data) } else { Err(Error::Elsewhere) }
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
        let backing = self.0.get(args.fh)?;
        if backing.is_whole() { io::fallocate(backing.fd(), args) } else { Err(Error::Errno(libc::EOPNOTSUPP)) }
    }

    /// LSEEK. What is lacking is no hole: then all of the file counts as data.
    pub fn lseek(&self, fh: u64, offset: u64, whence: u32) -> Result<u64> {
        let backing = self.0.get(fh)?;
        if backing.is_whole() {
            return io::lseek(backing.fd(), offset, whence);
        }
        let size = rustix::fs::fstat(&backing.fd).lift()?.st_size as u64;
        match whence as i32 {
            libc::SEEK_DATA | libc::SEEK_HOLE if offset >= size => Err(Error::Errno(libc::ENXIO)),
            libc::SEEK_DATA => Ok(offset),
            libc::SEEK_HOLE => Ok(size),
            _ => Err(Error::Errno(libc::EINVAL)),
        }
    }

    /// COPY_FILE_RANGE between two of them.
    pub fn copy_file_range(&self, args: &CopyFileRangeIn) -> Result<u64> {
        let (from, to) = (self.0.get(args.fh_in)?, self.0.get(args.fh_out)?);
        if from.is_whole() && to.is_whole() {
            io::copy_file_range(from.fd(), to.fd(), args)
        } else {
            // The guest copies by itself then.
            Err(Error::Errno(libc::EXDEV))
        }
    }
}

/// Whether a descriptor was opened for writing.
pub(crate) fn may_write(fd: &OwnedFd) -> Result<bool> {
    Ok(rustix::fs::fcntl_getfl(fd).lift()? & OFlags::ACCMODE != OFlags::RDONLY)
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    #[test]
    fn a_file_is_served_until_it_is_taken_out() {
        let backings = Backings::default();
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(b"0123456789").unwrap();
        let fh = backings.insert(7, file.into(), None).unwrap();
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
            backings.insert(node, file.into(), None).unwrap();
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

    #[test]
    fn what_lacks_is_read_elsewhere() {
        let backings = Backings::default();
        let file = tempfile::tempfile().unwrap();
        file.set_len(20).unwrap();
        let blocks = Arc::new(Blocks::new(2, 10).unwrap());
        let fh = backings.insert(7, file.into(), Some(Arc::clone(&blocks))).unwrap();
        let cx = Context { unique: 0, uid: 0, gid: 0, pid: 0, may_block: true };
        let mut buffer = [1u8; 20];
        let vecs = [libc::iovec { iov_base: buffer.as_mut_ptr().cast(), iov_len: 20 }];
        let args = ReadIn { fh, offset: 0, size: 20, ..ReadIn::default() };
        blocks.add(0);
        assert_eq!(backings.read(&cx, &args, Segments::new(&vecs, 20)), Err(Error::Elsewhere));
        assert_eq!(backings.lseek(fh, 5, libc::SEEK_HOLE as u32), Ok(20), "what lacks is no hole");
        assert_eq!(backings.lseek(fh, 20, libc::SEEK_DATA as u32), Err(Error::Errno(libc::ENXIO)));
        let write = WriteIn { fh, offset: 0, size: 20, ..WriteIn::default() };
        assert_eq!(backings.write(&write, Segments::new(&vecs, 20)), Err(Error::Elsewhere));
        blocks.add(1);
        assert_eq!(backings.read(&cx, &args, Segments::new(&vecs, 20)), Ok(20));
        assert_eq!(buffer, [0; 20]);
        assert_eq!(backings.write(&write, Segments::new(&vecs, 20)), Err(Error::Elsewhere), "a block may go");
        blocks.finish();
        assert_eq!(backings.write(&write, Segments::new(&vecs, 20)), Ok(20));
    }
}
