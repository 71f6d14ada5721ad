//! The operations of the protocol as typed methods.

use std::ffi::CStr;
use std::os::fd::OwnedFd;

use crate::wire::*;
use crate::{Backing, Creation, DirBuffer, Error, Lost, Negotiated, Reader, Result, Saved, Segments, Unusable};

/// Who asks, and what is allowed where the operation runs.
#[derive(Clone, Copy, Debug)]
pub struct Context {
    /// The request's number, unique among those in flight.
    pub unique: u64,
    /// fsuid of the caller, 0 for requests that the guest kernel makes by itself: good for ownership, never for permission.
    pub uid: u32,
    /// fsgid of the caller, under the same conditions.
    pub gid: u32,
    /// Thread id of the caller in the guest.
    pub pid: u32,
    /// Whether the operation may wait for a disk. Where it may not, it answers [`Error::WouldBlock`] instead.
    pub may_block: bool,
}

/// A number by which a file system knows an operation that waits for another guest or a process of the host, not for a disk: no
/// thread waits with it, and it may last for ever.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Wait(pub u64);

/// What is to be done when a [`Wait`] is over. Dropping it instead means that the session is over and nobody waits any more.
pub type Settle = Box<dyn FnOnce(Result<()>) + Send>;

fn lacks<T>() -> Result<T> {
    Err(Error::Errno(libc::EOPNOTSUPP))
}

/// What a guest holds of a file system.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Held {
    /// Nodes that it has looked up and not forgotten, the root included.
    pub nodes: usize,
    /// Files and directories that it has open.
    pub handles: usize,
}

/// A file system as one guest sees it: node ids, handles and lookup counts belong to one session.
///
/// Every method is called from several threads at once. Each has a default that refuses with EOPNOTSUPP; for operations in
/// [`FileSystem::lacks`] the server answers ENOSYS without a call, after which the guest never asks again. Nodes that
/// a method returns in an `EntryOut` count as looked up once more; [`FileSystem::forget`] takes that back.
#[allow(unused_variables)]
pub trait FileSystem: Send + Sync {
    /// Operations that this file system does not have at all: a set of opcodes, bit `1 << opcode`.
    fn lacks(&self) -> u64 {
        0
    }

    /// Whether operations that change something are refused with EROFS.
    fn read_only(&self) -> bool {
        false
    }

    /// What the guest holds now.
    fn held(&self) -> Held {
        Held::default()
    }

    /// Calls `each` with every node that the guest holds, the root included, and whether it is a directory. Only a file system whose node
    /// ids carry slots of a version table has something to say.
    fn known(&self, each: &mut dyn FnMut(u64, bool)) {}

    /// A session begins with these features. Whatever an earlier session left was dropped by [`FileSystem::destroy`].
    fn init(&self, negotiated: &Negotiated) {}

    /// Says what the guest has, for a file system of the same settings to go on with. No request is under way.
    fn save(&self, out: &mut Saved) -> Result<(), Unusable> {
        Err(Unusable::Other("this file system cannot save what its guest has".into()))
    }

    /// Goes on with what was saved, after [`FileSystem::init`], and adds to `lost` what is not to be had any more.
    fn restore(&self, from: &mut Reader<'_>, lost: &mut Vec<Lost>) -> Result<(), Unusable> {
        Err(Unusable::Other("this file system cannot go on with what another guest had".into()))
    }

    /// The session is over: drop all nodes, handles, locks and mappings. Called at DESTROY, before every INIT, and when the guest goes
    /// away; calls may follow one another.
    fn destroy(&self) {}

    /// Looks `name` up in the directory `parent` and counts the node once. An `EntryOut` with node id 0 is a negative answer that
    /// may be cached for `entry_valid`.
    fn lookup(&self, cx: &Context, parent: u64, name: &CStr) -> Result<EntryOut> {
        lacks()
    }

    /// Takes `nlookup` counts back; at 0 the node may go. Answers whether it went.
    fn forget(&self, node: u64, nlookup: u64) -> bool {
        false
    }

    /// Attributes, of the handle `fh` where there is one.
    fn getattr(&self, cx: &Context, node: u64, fh: Option<u64>) -> Result<AttrOut> {
        lacks()
    }

    /// Attributes with birth time, as statx(2) gives them.
    fn statx(&self, cx: &Context, node: u64, fh: Option<u64>, mask: u32) -> Result<StatxOut> {
        lacks()
    }

    /// Changes the attributes named by `args.valid` and answers all of them anew.
    fn setattr(&self, cx: &Context, node: u64, args: &SetattrIn) -> Result<AttrOut> {
        lacks()
    }

    /// Appends the target of a symlink to `out`, without a NUL.
    fn readlink(&self, cx: &Context, node: u64, out: &mut Vec<u8>) -> Result<()> {
        lacks()
    }

    /// Makes a symlink that holds `target`.
    fn symlink(&self, cx: &Context, parent: u64, name: &CStr, target: &CStr, new: &Creation<'_>) -> Result<EntryOut> {
        lacks()
    }

    /// Makes a file, FIFO, socket or device node; `mode` has the type, `rdev` is in the kernel's 32-bit encoding.
    fn mknod(
        &self,
        cx: &Context,
        parent: u64,
        name: &CStr,
        mode: u32,
        rdev: u32,
        new: &Creation<'_>,
    ) -> Result<EntryOut> {
        lacks()
    }

    /// Makes a directory; `mode` has no type.
    fn mkdir(&self, cx: &Context, parent: u64, name: &CStr, mode: u32, new: &Creation<'_>) -> Result<EntryOut> {
        lacks()
    }

    /// Removes a name that is not a directory.
    fn unlink(&self, cx: &Context, parent: u64, name: &CStr) -> Result<()> {
        lacks()
    }

    /// Removes an empty directory.
    fn rmdir(&self, cx: &Context, parent: u64, name: &CStr) -> Result<()> {
        lacks()
    }

    /// renameat2(2); `flags` are RENAME_NOREPLACE, RENAME_EXCHANGE, RENAME_WHITEOUT.
    fn rename(&self, cx: &Context, parent: u64, name: &CStr, newparent: u64, newname: &CStr, flags: u32) -> Result<()> {
        lacks()
    }

    /// Gives `node` one more name. The answer carries the same node id.
    fn link(&self, cx: &Context, node: u64, newparent: u64, newname: &CStr) -> Result<EntryOut> {
        lacks()
    }

    /// Opens a regular file. `flags` are those of open(2) without O_CREAT, O_EXCL and O_NOCTTY; `kill_suidgid` asks to clear suid
    /// and sgid together with O_TRUNC.
    fn open(&self, cx: &Context, node: u64, flags: u32, kill_suidgid: bool) -> Result<OpenOut> {
        lacks()
    }

    /// Creates, or opens what is there unless O_EXCL is set, in one step.
    #[allow(clippy::too_many_arguments)]
    fn create(
        &self,
        cx: &Context,
        parent: u64,
        name: &CStr,
        flags: u32,
        mode: u32,
        kill_suidgid: bool,
        new: &Creation<'_>,
    ) -> Result<(EntryOut, OpenOut)> {
        lacks()
    }

    /// Makes a file without a name in the directory `parent`.
    fn tmpfile(
        &self,
        cx: &Context,
        parent: u64,
        flags: u32,
        mode: u32,
        new: &Creation<'_>,
    ) -> Result<(EntryOut, OpenOut)> {
        lacks()
    }

    /// Reads from `args.offset` into `out` and answers the count. Less than `out.len()` means end of file and nothing else.
    fn read(&self, cx: &Context, node: u64, args: &ReadIn, out: Segments<'_>) -> Result<usize> {
        lacks()
    }

    /// Writes `data` at `args.offset` and answers the count.
    fn write(&self, cx: &Context, node: u64, args: &WriteIn, data: Segments<'_>) -> Result<usize> {
        lacks()
    }

    /// What serves READ and WRITE instead, if the data lie in this process's memory and not behind a system call.
    fn by_value(&self) -> Option<&dyn ByValue> {
        None
    }

    /// At each close(2) in the guest; answers errors of earlier writes.
    fn flush(&self, cx: &Context, node: u64, args: &FlushIn) -> Result<()> {
        lacks()
    }

    /// The handle goes. A descriptor that this answers is closed after the guest got its reply: close(2) in the guest waits for the
    /// reply, and closing may be slow here.
    fn release(&self, cx: &Context, node: u64, args: &ReleaseIn) -> Result<Option<OwnedFd>> {
        lacks()
    }

    /// fsync(2), or fdatasync(2) with `datasync`.
    fn fsync(&self, cx: &Context, node: u64, fh: u64, datasync: bool) -> Result<()> {
        lacks()
    }

    /// Opens a directory for reading.
    fn opendir(&self, cx: &Context, node: u64, flags: u32) -> Result<OpenOut> {
        lacks()
    }

    /// Fills `out` from the position `offset`: 0, or the cookie of an earlier entry. With `plus`, every entry but `.` and `..` that
    /// carries a node id counts as looked up, and only those that fit into `out` do.
    fn readdir(&self, cx: &Context, node: u64, fh: u64, offset: u64, plus: bool, out: &mut DirBuffer) -> Result<()> {
        lacks()
    }

    /// The directory handle goes, as in [`FileSystem::release`].
    fn releasedir(&self, cx: &Context, node: u64, args: &ReleaseIn) -> Result<Option<OwnedFd>> {
        lacks()
    }

    /// fsync(2) of a directory.
    fn fsyncdir(&self, cx: &Context, node: u64, fh: u64, datasync: bool) -> Result<()> {
        lacks()
    }

    /// statfs(2) of the file system that holds `node`.
    fn statfs(&self, cx: &Context, node: u64) -> Result<StatfsOut> {
        lacks()
    }

    /// syncfs(2) of the file system that holds `node`, the root of a (sub)mount.
    fn syncfs(&self, cx: &Context, node: u64) -> Result<()> {
        lacks()
    }

    /// Sets an extended attribute; `flags` are XATTR_CREATE, XATTR_REPLACE; `kill_sgid` asks to clear S_ISGID with the ACL.
    fn setxattr(&self, cx: &Context, node: u64, name: &CStr, value: &[u8], flags: u32, kill_sgid: bool) -> Result<()> {
        lacks()
    }

    /// The value into `out`, or its size alone if `out` is empty. Answers the size in bytes; ERANGE if it does not fit.
    fn getxattr(&self, cx: &Context, node: u64, name: &CStr, out: &mut [u8]) -> Result<usize> {
        lacks()
    }

    /// The names, each closed by a NUL, into `out`, or their size alone if `out` is empty; ERANGE if they do not fit.
    fn listxattr(&self, cx: &Context, node: u64, out: &mut [u8]) -> Result<usize> {
        lacks()
    }

    /// Removes an extended attribute.
    fn removexattr(&self, cx: &Context, node: u64, name: &CStr) -> Result<()> {
        lacks()
    }

    /// access(2) by `cx.uid` and `cx.gid`. Linux guests of virtio-fs check by themselves and never ask.
    fn access(&self, cx: &Context, node: u64, mask: u32) -> Result<()> {
        lacks()
    }

    /// fallocate(2).
    fn fallocate(&self, cx: &Context, node: u64, args: &FallocateIn) -> Result<()> {
        lacks()
    }

    /// lseek(2) with SEEK_HOLE or SEEK_DATA; ENXIO past the end.
    fn lseek(&self, cx: &Context, node: u64, fh: u64, offset: u64, whence: u32) -> Result<u64> {
        lacks()
    }

    /// copy_file_range(2); answers the count of bytes copied, at most `args.len`.
    fn copy_file_range(&self, cx: &Context, node: u64, args: &CopyFileRangeIn) -> Result<u64> {
        lacks()
    }

    /// A restricted ioctl(2): sizes are those encoded in `args.cmd`. Appends its output to `out`, answers its result.
    fn ioctl(&self, cx: &Context, node: u64, args: &IoctlIn, input: &[u8], out: &mut Vec<u8>) -> Result<i32> {
        Err(Error::Errno(libc::ENOTTY))
    }

    /// The lock that would be in the way of `args.lk`, or one of kind F_UNLCK.
    fn getlk(&self, cx: &Context, node: u64, args: &LkIn) -> Result<FileLock> {
        lacks()
    }

    /// Sets or clears a lock without waiting; EAGAIN where another is in the way.
    fn setlk(&self, cx: &Context, node: u64, args: &LkIn) -> Result<()> {
        lacks()
    }

    /// Sets a lock, and waits for it where another is in the way: then the answer is a [`Wait`], for which
    /// [`FileSystem::settle`] is called at once.
    fn setlkw(&self, cx: &Context, node: u64, args: &LkIn) -> Result<Option<Wait>> {
        lacks()
    }

    /// Says what to do when `wait` is over; it may be already.
    fn settle(&self, wait: Wait, then: Settle) {}

    /// The caller got a signal and would rather not wait on: `wait` ends with EINTR, unless it is over already or cannot be ended.
    fn interrupt(&self, wait: Wait) {}

    /// Opens the file of a node for the DAX window, for writing too if `write` is set. Where that is refused and the guest asked for
    /// reading alone, it is asked for again without.
    fn backing(&self, cx: &Context, node: u64, write: bool) -> Result<Backing> {
        lacks()
    }
}

/// READ and WRITE of a file system whose data lie in this process's memory: one copy between that and the guest's.
pub trait ByValue {
    /// Gives at most `len` bytes from `args.offset` to `put`, in one call, and answers the count. Less means end of file.
    fn read(
        &self,
        cx: &Context,
        node: u64,
        args: &ReadIn,
        len: usize,
        put: &mut dyn FnMut(&[u8]) -> Result<()>,
    ) -> Result<usize>;

    /// Takes `args.size` bytes for `args.offset` by one call of `take`, and answers the count of those that were written.
    fn write(
        &self,
        cx: &Context,
        node: u64,
        args: &WriteIn,
        take: &mut dyn FnMut(&mut [u8]) -> Result<()>,
    ) -> Result<usize>;
}
