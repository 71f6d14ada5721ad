//! The operations of the protocol as one table.
//!
//! A row is all that the server needs to know of an operation before it looks at its arguments: the number, the struct and the
//! count of names that follow the header, the form of its reply, and two traits that decide where it may run and whether a
//! read-only share refuses it. `Opcode`, its names, the decoding and the reply check all come from here.

use crate::wire::*;

/// The form of a success reply. Linux (since 7.3, `virtio_fs_verify_response`) answers EIO to its caller if a reply is of
/// another length.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReplyForm {
    /// No reply at all: the chain comes back with length 0.
    Nothing,
    /// The header and exactly so many bytes.
    Exact(usize),
    /// The header and as many bytes as there are, up to the room given.
    UpTo,
    /// `Exact` of this struct when the request asked for the size alone, `UpTo` otherwise (GETXATTR, LISTXATTR).
    SizeOr(usize),
}

/// One row of the table.
#[derive(Clone, Copy, Debug)]
pub struct Operation {
    /// The operation.
    pub opcode: Opcode,
    /// Its name as in `fuse.h`, without `FUSE_`.
    pub name: &'static str,
    /// Size of the struct behind the header, in bytes.
    pub arguments: usize,
    /// Names, each closed by a NUL, behind the struct.
    pub names: usize,
    /// The reply.
    pub reply: ReplyForm,
    /// It changes the file system: a read-only share answers EROFS.
    pub mutates: bool,
    /// It may wait for a disk long enough that it never runs on a queue's own thread.
    pub slow: bool,
}

macro_rules! operations {
    ($($name:ident $variant:ident = $number:literal, $args:ty, $names:literal, $reply:expr, [$($mark:ident)*];)*) => {
        /// An operation by its wire number.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
        #[repr(u8)]
        #[allow(missing_docs)]
        pub enum Opcode { $($variant = $number),* }

        /// All operations, in the order of their numbers.
        pub const OPERATIONS: &[Operation] = &[$(Operation {
            opcode: Opcode::$variant,
            name: stringify!($name),
            arguments: size_of::<$args>(),
            names: $names,
            reply: $reply,
            mutates: mark!(mutates, $($mark)*),
            slow: mark!(slow, $($mark)*),
        }),*];
    };
}

macro_rules! mark {
    (mutates, mutates $($rest:ident)*) => { true };
    (slow, slow $($rest:ident)*) => { true };
    ($want:ident, $other:ident $($rest:ident)*) => { mark!($want, $($rest)*) };
    ($want:ident,) => { false };
}

use ReplyForm::{Exact, Nothing, SizeOr, UpTo};
const HEADER_ONLY: ReplyForm = Exact(0);
const ENTRY: ReplyForm = Exact(size_of::<EntryOut>());
const ENTRY_OPEN: ReplyForm = Exact(size_of::<EntryOut>() + size_of::<OpenOut>());
const ATTR: ReplyForm = Exact(size_of::<AttrOut>());
const OPEN: ReplyForm = Exact(size_of::<OpenOut>());

#[rustfmt::skip]
operations! {
//  name               variant              arguments       names reply                                traits
    LOOKUP             Lookup           = 1, (),              1, ENTRY,                                [];
    FORGET             Forget           = 2, ForgetIn,        0, Nothing,                              [];
    GETATTR            Getattr          = 3, GetattrIn,       0, ATTR,                                 [];
    SETATTR            Setattr          = 4, SetattrIn,       0, ATTR,                                 [mutates];
    READLINK           Readlink         = 5, (),              0, UpTo,                                 [];
    SYMLINK            Symlink          = 6, (),              2, ENTRY,                                [mutates];
    MKNOD              Mknod            = 8, MknodIn,         1, ENTRY,                                [mutates];
    MKDIR              Mkdir            = 9, MkdirIn,         1, ENTRY,                                [mutates];
    UNLINK             Unlink           = 10, (),             1, HEADER_ONLY,                          [mutates];
    RMDIR              Rmdir            = 11, (),             1, HEADER_ONLY,                          [mutates];
    RENAME             Rename           = 12, RenameIn,       2, HEADER_ONLY,                          [mutates];
    LINK               Link             = 13, LinkIn,         1, ENTRY,                                [mutates];
    OPEN               Open             = 14, OpenIn,         0, OPEN,                                 [];
    READ               Read             = 15, ReadIn,         0, UpTo,                                 [];
    WRITE              Write            = 16, WriteIn,        0, Exact(size_of::<WriteOut>()),         [mutates];
    STATFS             Statfs           = 17, (),             0, Exact(size_of::<StatfsOut>()),        [];
    RELEASE            Release          = 18, ReleaseIn,      0, HEADER_ONLY,                          [];
    FSYNC              Fsync            = 20, FsyncIn,        0, HEADER_ONLY,                          [slow];
    SETXATTR           Setxattr         = 21, SetxattrInCompat, 0, HEADER_ONLY,                        [mutates];
    GETXATTR           Getxattr         = 22, GetxattrIn,     1, SizeOr(size_of::<GetxattrOut>()),     [];
    LISTXATTR          Listxattr        = 23, GetxattrIn,     0, SizeOr(size_of::<GetxattrOut>()),     [];
    REMOVEXATTR        Removexattr      = 24, (),             1, HEADER_ONLY,                          [mutates];
    FLUSH              Flush            = 25, FlushIn,        0, HEADER_ONLY,                          [];
    INIT               Init             = 26, InitInCompat,   0, UpTo,                                 [];
    OPENDIR            Opendir          = 27, OpenIn,         0, OPEN,                                 [];
    READDIR            Readdir          = 28, ReadIn,         0, UpTo,                                 [];
    RELEASEDIR         Releasedir       = 29, ReleaseIn,      0, HEADER_ONLY,                          [];
    FSYNCDIR           Fsyncdir         = 30, FsyncIn,        0, HEADER_ONLY,                          [slow];
    GETLK              Getlk            = 31, LkIn,           0, Exact(size_of::<LkOut>()),            [];
    SETLK              Setlk            = 32, LkIn,           0, HEADER_ONLY,                          [];
    SETLKW             Setlkw           = 33, LkIn,           0, HEADER_ONLY,                          [];
    ACCESS             Access           = 34, AccessIn,       0, HEADER_ONLY,                          [];
    CREATE             Create           = 35, CreateIn,       1, ENTRY_OPEN,                           [mutates];
    INTERRUPT          Interrupt        = 36, InterruptIn,    0, Nothing,                              [];
    BMAP               Bmap             = 37, BmapIn,         0, Exact(size_of::<BmapOut>()),          [];
    DESTROY            Destroy          = 38, (),             0, HEADER_ONLY,                          [slow];
    IOCTL              Ioctl            = 39, IoctlIn,        0, UpTo,                                 [];
    POLL               Poll             = 40, PollIn,         0, Exact(size_of::<PollOut>()),          [];
    NOTIFY_REPLY       NotifyReply      = 41, (),             0, Nothing,                              [];
    BATCH_FORGET       BatchForget      = 42, BatchForgetIn,  0, Nothing,                              [];
    FALLOCATE          Fallocate        = 43, FallocateIn,    0, HEADER_ONLY,                          [mutates slow];
    READDIRPLUS        Readdirplus      = 44, ReadIn,         0, UpTo,                                 [];
    RENAME2            Rename2          = 45, Rename2In,      2, HEADER_ONLY,                          [mutates];
    LSEEK              Lseek            = 46, LseekIn,        0, Exact(size_of::<LseekOut>()),         [];
    COPY_FILE_RANGE    CopyFileRange    = 47, CopyFileRangeIn, 0, Exact(size_of::<WriteOut>()),        [mutates slow];
    SETUPMAPPING       Setupmapping     = 48, SetupmappingIn, 0, HEADER_ONLY,                          [];
    REMOVEMAPPING      Removemapping    = 49, RemovemappingIn, 0, HEADER_ONLY,                         [];
    SYNCFS             Syncfs           = 50, SyncfsIn,       0, HEADER_ONLY,                          [slow];
    TMPFILE            Tmpfile          = 51, CreateIn,       1, ENTRY_OPEN,                           [mutates];
    STATX              Statx            = 52, StatxIn,        0, Exact(size_of::<StatxOut>()),         [];
    COPY_FILE_RANGE_64 CopyFileRange64  = 53, CopyFileRangeIn, 0, Exact(size_of::<CopyFileRangeOut>()), [mutates slow];
}

/// One past the largest opcode: the length of arrays indexed by opcode.
pub const OPCODES: usize = 54;

const BY_NUMBER: [Option<&'static Operation>; OPCODES] = {
    let mut table = [None; OPCODES];
    let mut i = 0;
    while i < OPERATIONS.len() {
        table[OPERATIONS[i].opcode as usize] = Some(&OPERATIONS[i]);
        i += 1;
    }
    table
};

impl Operation {
    /// The row of a wire number, or `None` for a number that the protocol does not have.
    #[inline]
    pub fn by_number(number: u32) -> Option<&'static Operation> {
        *BY_NUMBER.get(usize::try_from(number).ok()?)?
    }
}

impl Opcode {
    /// The row of this operation.
    pub fn operation(self) -> &'static Operation {
        // Every variant has a row: both come from one macro. The first row keeps this total without a panic.
        BY_NUMBER[self as usize].unwrap_or(&OPERATIONS[0])
    }

    /// The name as in `fuse.h`, without `FUSE_`.
    pub fn name(self) -> &'static str {
        self.operation().name
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_row_is_found_by_its_number_and_carries_its_own_opcode() {
        for row in OPERATIONS {
            let found = Operation::by_number(row.opcode as u32).unwrap();
            assert_eq!((found.opcode, found.name), (row.opcode, row.name));
        }
        assert_eq!(OPERATIONS.len(), 51);
        for hole in [0, 7, 19, 54, 4096, u32::MAX] {
            assert!(Operation::by_number(hole).is_none(), "{hole} is not an operation");
        }
    }

    #[test]
    fn only_operations_that_change_something_are_refused_on_a_read_only_share() {
        let mutating: Vec<_> = OPERATIONS.iter().filter(|row| row.mutates).map(|row| row.name).collect();
        assert_eq!(
            mutating,
            [
                "SETATTR",
                "SYMLINK",
                "MKNOD",
                "MKDIR",
                "UNLINK",
                "RMDIR",
                "RENAME",
                "LINK",
                "WRITE",
                "SETXATTR",
                "REMOVEXATTR",
                "CREATE",
                "FALLOCATE",
                "RENAME2",
                "COPY_FILE_RANGE",
                "TMPFILE",
                "COPY_FILE_RANGE_64"
            ]
        );
    }
}
