//! The native passthrough: a host directory as a [`FileSystem`](virtiofs_fuse::FileSystem) for one guest.
//!
//! A node is an O_PATH descriptor; every name is one component below such a descriptor and is never followed. No path is kept, none is
//! joined, and no guest, whatever it races, gets out of the directory. A file is opened through /proc/self/fd from its node, after its type
//! is known to be that of a regular file.
//!
//! Needs Linux 5.8 (mount ids from statx, faccessat2); uses fchmodat2 (6.6) and setxattrat (6.13) where they are.
//!
//! System calls per operation (`examples/ops.rs` under `strace -c`); none allocates but for READLINK, LISTXATTR of the size
//! alone with names to hide, and what is new:
//!
//! | operation | calls |
//! |---|---|
//! | LOOKUP of a known node, or of an absent name | statx by name |
//! | LOOKUP of a new node | openat, statx; close when it is forgotten |
//! | GETATTR, STATX | statx |
//! | SETATTR | fchmodat2, fchownat or utimensat, then statx; a size without a handle: openat, ftruncate, close |
//! | OPEN + RELEASE | openat, close |
//! | CREATE | openat, openat (the O_PATH one), statx |
//! | MKDIR, MKNOD, SYMLINK | the call, openat, statx |
//! | … as another user than the daemon's | + setfsgid, setfsuid, capset, setfsuid, setfsgid; umask when it differs from the last |
//! | UNLINK, RMDIR, RENAME | the call |
//! | LINK | linkat, statx |
//! | READ | preadv2; one more at the end of the file, to be sure that it is the end |
//! | WRITE | pwritev2; statx before it when the guest wants suid and sgid cleared |
//! | READDIR | getdents64 per 32 KiB |
//! | READDIRPLUS | the same, and per entry what LOOKUP takes: the inode number tells whether the node is known |
//! | xattr operations | the call |
//! | … where owners are kept in an attribute (`kept.rs`) | + getxattrat for each answer with attributes; LOOKUP of a new node opens it |
//! | FLUSH | fcntl(F_DUPFD), close if the handle may write |

mod attributes;
mod backings;
mod blocks;
mod borrowed;
mod bounds;
mod changes;
mod config;
mod create;
mod credentials;
mod dax;
mod directory;
mod error;
mod filesystem;
mod handles;
mod hostdir;
mod ids;
mod inode;
mod inodes;
mod io;
mod ioctl;
mod kept;
mod locking;
mod locks;
mod lookup;
mod names;
mod open;
mod parts;
mod pins;
mod procfd;
mod rules;
mod saved;
mod seen;
mod shards;
mod standing;
mod stat;
mod statfs;
mod sys;
mod xattr;
mod xattrmap;

pub use backings::Backings;
pub use blocks::Blocks;
pub use bounds::Bounds;
pub use config::{Config, Effects, Pace};
pub use credentials::may_change_owner;
pub use hostdir::HostDir;
pub use ids::{IdRange, To, Translation};
pub use locks::Locks;
pub use rules::{Changes, Conditions, Judge, RULES_MAX, Rules};
pub use xattrmap::NameRule;
