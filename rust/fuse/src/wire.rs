//! The structs and constants of the FUSE kernel protocol, minor 46.
//!
//! Source: `include/uapi/linux/fuse.h` of Linux. A struct `fuse_read_in` there is `ReadIn` here; constants keep
//! their spelling without the `FUSE_` in front where the module path already says it. All values are little endian on the
//! hosts we build for; a guest of the other endianness is refused at INIT.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// Protocol version spoken: `FUSE_KERNEL_VERSION`.
pub const KERNEL_VERSION: u32 = 7;
/// Newest minor spoken: `FUSE_KERNEL_MINOR_VERSION`.
pub const KERNEL_MINOR_VERSION: u32 = 46;
/// Oldest minor served. 27 is the last one that changed the size of a struct for which there is no flag.
pub const OLDEST_MINOR_VERSION: u32 = 27;
/// Node id of the root of the mount.
pub const ROOT_ID: u64 = 1;
/// Longest name of a directory entry, in bytes (`NAME_MAX`).
pub const NAME_MAX: usize = 255;
/// Longest path that a symlink may hold, in bytes without the NUL (`PATH_MAX` - 1).
pub const SYMLINK_MAX: usize = 4095;
/// Largest value and largest list of extended attributes, in bytes (`XATTR_SIZE_MAX`, `XATTR_LIST_MAX`).
pub const XATTR_MAX: usize = 65536;

macro_rules! wire {
    ($($(#[$doc:meta])* $name:ident [$size:literal] { $($(#[$fdoc:meta])* $field:ident : $ty:ty),* $(,)? })*) => {$(
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
        #[repr(C)]
        #[allow(missing_docs)]
        pub struct $name { $($(#[$fdoc])* pub $field: $ty),* }
        const _: () = assert!(size_of::<$name>() == $size);
    )*};
}

wire! {
    /// Header of every request.
    InHeader [40] { len: u32, opcode: u32, unique: u64, nodeid: u64, uid: u32, gid: u32, pid: u32, total_extlen: u16, padding: u16 }
    /// Header of every reply.
    OutHeader [16] { len: u32, error: i32, unique: u64 }
    /// Attributes of an inode.
    Attr [88] { ino: u64, size: u64, blocks: u64, atime: u64, mtime: u64, ctime: u64, atimensec: u32, mtimensec: u32,
                ctimensec: u32, mode: u32, nlink: u32, uid: u32, gid: u32, rdev: u32, blksize: u32, flags: u32 }
    /// Time stamp in `Statx`.
    SxTime [16] { tv_sec: i64, tv_nsec: u32, reserved: i32 }
    /// Attributes of an inode in the form of statx(2).
    Statx [256] { mask: u32, blksize: u32, attributes: u64, nlink: u32, uid: u32, gid: u32, mode: u16, spare0: u16, ino: u64,
                  size: u64, blocks: u64, attributes_mask: u64, atime: SxTime, btime: SxTime, ctime: SxTime, mtime: SxTime,
                  rdev_major: u32, rdev_minor: u32, dev_major: u32, dev_minor: u32, spare2: [u64; 14] }
    EntryOut [128] { nodeid: u64, generation: u64, entry_valid: u64, attr_valid: u64, entry_valid_nsec: u32,
                     attr_valid_nsec: u32, attr: Attr }
    ForgetIn [8] { nlookup: u64 }
    ForgetOne [16] { nodeid: u64, nlookup: u64 }
    BatchForgetIn [8] { count: u32, dummy: u32 }
    GetattrIn [16] { getattr_flags: u32, dummy: u32, fh: u64 }
    AttrOut [104] { attr_valid: u64, attr_valid_nsec: u32, dummy: u32, attr: Attr }
    StatxIn [24] { getattr_flags: u32, reserved: u32, fh: u64, sx_flags: u32, sx_mask: u32 }
    StatxOut [288] { attr_valid: u64, attr_valid_nsec: u32, flags: u32, spare: [u64; 2], stat: Statx }
    MknodIn [16] { mode: u32, rdev: u32, umask: u32, padding: u32 }
    MkdirIn [8] { mode: u32, umask: u32 }
    RenameIn [8] { newdir: u64 }
    Rename2In [16] { newdir: u64, flags: u32, padding: u32 }
    LinkIn [8] { oldnodeid: u64 }
    SetattrIn [88] { valid: u32, padding: u32, fh: u64, size: u64, lock_owner: u64, atime: u64, mtime: u64, ctime: u64,
                     atimensec: u32, mtimensec: u32, ctimensec: u32, mode: u32, unused4: u32, uid: u32, gid: u32, unused5: u32 }
    OpenIn [8] { flags: u32, open_flags: u32 }
    CreateIn [16] { flags: u32, mode: u32, umask: u32, open_flags: u32 }
    OpenOut [16] { fh: u64, open_flags: u32, backing_id: i32 }
    ReleaseIn [24] { fh: u64, flags: u32, release_flags: u32, lock_owner: u64 }
    FlushIn [24] { fh: u64, unused: u32, padding: u32, lock_owner: u64 }
    ReadIn [40] { fh: u64, offset: u64, size: u32, read_flags: u32, lock_owner: u64, flags: u32, padding: u32 }
    WriteIn [40] { fh: u64, offset: u64, size: u32, write_flags: u32, lock_owner: u64, flags: u32, padding: u32 }
    WriteOut [8] { size: u32, padding: u32 }
    StatfsOut [80] { blocks: u64, bfree: u64, bavail: u64, files: u64, ffree: u64, bsize: u32, namelen: u32, frsize: u32,
                     padding: u32, spare: [u32; 6] }
    FsyncIn [16] { fh: u64, fsync_flags: u32, padding: u32 }
    SetxattrIn [16] { size: u32, flags: u32, setxattr_flags: u32, padding: u32 }
    /// `SetxattrIn` of a guest without `SETXATTR_EXT`: `FUSE_COMPAT_SETXATTR_IN_SIZE`.
    SetxattrInCompat [8] { size: u32, flags: u32 }
    GetxattrIn [8] { size: u32, padding: u32 }
    GetxattrOut [8] { size: u32, padding: u32 }
    FileLock [24] { start: u64, end: u64, kind: u32, pid: u32 }
    LkIn [48] { fh: u64, owner: u64, lk: FileLock, lk_flags: u32, padding: u32 }
    LkOut [24] { lk: FileLock }
    AccessIn [8] { mask: u32, padding: u32 }
    InitIn [64] { major: u32, minor: u32, max_readahead: u32, flags: u32, flags2: u32, unused: [u32; 11] }
    /// `InitIn` before `INIT_EXT` (minor 36).
    InitInCompat [16] { major: u32, minor: u32, max_readahead: u32, flags: u32 }
    InitOut [64] { major: u32, minor: u32, max_readahead: u32, flags: u32, max_background: u16, congestion_threshold: u16,
                   max_write: u32, time_gran: u32, max_pages: u16, map_alignment: u16, flags2: u32, max_stack_depth: u32,
                   request_timeout: u16, unused: [u16; 11] }
    InterruptIn [8] { unique: u64 }
    BmapIn [16] { block: u64, blocksize: u32, padding: u32 }
    BmapOut [8] { block: u64 }
    IoctlIn [32] { fh: u64, flags: u32, cmd: u32, arg: u64, in_size: u32, out_size: u32 }
    IoctlOut [16] { result: i32, flags: u32, in_iovs: u32, out_iovs: u32 }
    PollIn [24] { fh: u64, kh: u64, flags: u32, events: u32 }
    PollOut [8] { revents: u32, padding: u32 }
    FallocateIn [32] { fh: u64, offset: u64, length: u64, mode: u32, padding: u32 }
    LseekIn [24] { fh: u64, offset: u64, whence: u32, padding: u32 }
    LseekOut [8] { offset: u64 }
    CopyFileRangeIn [56] { fh_in: u64, off_in: u64, nodeid_out: u64, fh_out: u64, off_out: u64, len: u64, flags: u64 }
    CopyFileRangeOut [8] { bytes_copied: u64 }
    SyncfsIn [8] { padding: u64 }
    SetupmappingIn [40] { fh: u64, foffset: u64, len: u64, flags: u64, moffset: u64 }
    RemovemappingIn [4] { count: u32 }
    RemovemappingOne [16] { moffset: u64, len: u64 }
    /// Head of a directory entry; the name follows, padded with zeros to 8 bytes.
    Dirent [24] { ino: u64, off: u64, namelen: u32, kind: u32 }
    Direntplus [152] { entry_out: EntryOut, dirent: Dirent }
    NotifyInvalInodeOut [24] { ino: u64, off: i64, len: i64 }
    NotifyInvalEntryOut [16] { parent: u64, namelen: u32, flags: u32 }
    NotifyDeleteOut [24] { parent: u64, child: u64, namelen: u32, padding: u32 }
    SecctxHeader [8] { size: u32, nr_secctx: u32 }
    Secctx [8] { size: u32, padding: u32 }
    ExtHeader [8] { size: u32, kind: u32 }
}

/// INIT flags: bits 0..31 travel in `flags`, bits 32..63 in `flags2`.
#[allow(missing_docs)]
pub mod init {
    pub const ASYNC_READ: u64 = 1 << 0;
    pub const POSIX_LOCKS: u64 = 1 << 1;
    pub const FILE_OPS: u64 = 1 << 2;
    pub const ATOMIC_O_TRUNC: u64 = 1 << 3;
    pub const EXPORT_SUPPORT: u64 = 1 << 4;
    pub const BIG_WRITES: u64 = 1 << 5;
    pub const DONT_MASK: u64 = 1 << 6;
    pub const SPLICE_WRITE: u64 = 1 << 7;
    pub const SPLICE_MOVE: u64 = 1 << 8;
    pub const SPLICE_READ: u64 = 1 << 9;
    pub const FLOCK_LOCKS: u64 = 1 << 10;
    pub const HAS_IOCTL_DIR: u64 = 1 << 11;
    pub const AUTO_INVAL_DATA: u64 = 1 << 12;
    pub const DO_READDIRPLUS: u64 = 1 << 13;
    pub const READDIRPLUS_AUTO: u64 = 1 << 14;
    pub const ASYNC_DIO: u64 = 1 << 15;
    pub const WRITEBACK_CACHE: u64 = 1 << 16;
    pub const NO_OPEN_SUPPORT: u64 = 1 << 17;
    pub const PARALLEL_DIROPS: u64 = 1 << 18;
    pub const HANDLE_KILLPRIV: u64 = 1 << 19;
    pub const POSIX_ACL: u64 = 1 << 20;
    pub const ABORT_ERROR: u64 = 1 << 21;
    pub const MAX_PAGES: u64 = 1 << 22;
    pub const CACHE_SYMLINKS: u64 = 1 << 23;
    pub const NO_OPENDIR_SUPPORT: u64 = 1 << 24;
    pub const EXPLICIT_INVAL_DATA: u64 = 1 << 25;
    pub const MAP_ALIGNMENT: u64 = 1 << 26;
    pub const SUBMOUNTS: u64 = 1 << 27;
    pub const HANDLE_KILLPRIV_V2: u64 = 1 << 28;
    pub const SETXATTR_EXT: u64 = 1 << 29;
    pub const INIT_EXT: u64 = 1 << 30;
    pub const SECURITY_CTX: u64 = 1 << 32;
    pub const HAS_INODE_DAX: u64 = 1 << 33;
    pub const CREATE_SUPP_GROUP: u64 = 1 << 34;
    pub const HAS_EXPIRE_ONLY: u64 = 1 << 35;
    pub const DIRECT_IO_ALLOW_MMAP: u64 = 1 << 36;
    pub const PASSTHROUGH: u64 = 1 << 37;
    pub const NO_EXPORT_SUPPORT: u64 = 1 << 38;
    pub const HAS_RESEND: u64 = 1 << 39;
    pub const ALLOW_IDMAP: u64 = 1 << 40;
    pub const OVER_IO_URING: u64 = 1 << 41;
    pub const REQUEST_TIMEOUT: u64 = 1 << 42;
}

/// `open_flags` of `OpenOut` (`FOPEN_*`).
#[allow(missing_docs)]
pub mod fopen {
    pub const DIRECT_IO: u32 = 1 << 0;
    pub const KEEP_CACHE: u32 = 1 << 1;
    pub const NONSEEKABLE: u32 = 1 << 2;
    pub const CACHE_DIR: u32 = 1 << 3;
    pub const STREAM: u32 = 1 << 4;
    pub const NOFLUSH: u32 = 1 << 5;
    pub const PASSTHROUGH: u32 = 1 << 7;
    pub const PARALLEL_DIRECT_WRITES: u32 = 1 << 6;
}

/// `valid` of `SetattrIn` (`FATTR_*`).
#[allow(missing_docs)]
pub mod fattr {
    pub const MODE: u32 = 1 << 0;
    pub const UID: u32 = 1 << 1;
    pub const GID: u32 = 1 << 2;
    pub const SIZE: u32 = 1 << 3;
    pub const ATIME: u32 = 1 << 4;
    pub const MTIME: u32 = 1 << 5;
    pub const FH: u32 = 1 << 6;
    pub const ATIME_NOW: u32 = 1 << 7;
    pub const MTIME_NOW: u32 = 1 << 8;
    pub const LOCKOWNER: u32 = 1 << 9;
    pub const CTIME: u32 = 1 << 10;
    pub const KILL_SUIDGID: u32 = 1 << 11;
}

/// `error` of the `OutHeader` of a message that answers nothing (`unique` 0): what the kernel is told (`enum fuse_notify_code`).
#[allow(missing_docs)]
pub mod notify {
    pub const INVAL_INODE: i32 = 2;
    pub const INVAL_ENTRY: i32 = 3;
    pub const DELETE: i32 = 6;
    pub const INC_EPOCH: i32 = 8;
}

/// Bits of single fields of the requests and of `Attr.flags`.
#[allow(missing_docs)]
pub mod bits {
    pub const GETATTR_FH: u32 = 1 << 0;
    pub const READ_LOCKOWNER: u32 = 1 << 1;
    pub const WRITE_CACHE: u32 = 1 << 0;
    pub const WRITE_LOCKOWNER: u32 = 1 << 1;
    pub const WRITE_KILL_SUIDGID: u32 = 1 << 2;
    pub const RELEASE_FLUSH: u32 = 1 << 0;
    pub const RELEASE_FLOCK_UNLOCK: u32 = 1 << 1;
    pub const FSYNC_FDATASYNC: u32 = 1 << 0;
    pub const LK_FLOCK: u32 = 1 << 0;
    pub const OPEN_KILL_SUIDGID: u32 = 1 << 0;
    pub const SETXATTR_ACL_KILL_SGID: u32 = 1 << 0;
    pub const ATTR_SUBMOUNT: u32 = 1 << 0;
    pub const ATTR_DAX: u32 = 1 << 1;
    pub const IOCTL_DIR: u32 = 1 << 4;
    pub const SETUPMAPPING_WRITE: u64 = 1 << 0;
    pub const SETUPMAPPING_READ: u64 = 1 << 1;
    /// Extension record that carries supplementary groups; the smaller numbers count security contexts.
    pub const EXT_GROUPS: u32 = 32;
}
