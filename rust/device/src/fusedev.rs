//! The file system on this host itself: the kernel's /dev/fuse in place of a guest's queues, and no library in between.
//!
//! [`mount()`] gives a connection to the kernel, [`Connection`] serves it with the same [`Server`] as a device would. What is
//! different from a guest (`fs/fuse/dev.c`, `fs/fuse/inode.c` of Linux):
//!
//! - One queue for all. Each thread reads whole requests from a descriptor of its own (FUSE_DEV_IOC_CLONE) and must write each reply to
//!   the one that its request came from. FORGETs come in batches, in turn with requests.
//! - A caller that gets a signal sends INTERRUPT. Only waits for locks heed it (EINTR); whatever else runs is soon over.
//! - There is no DESTROY: the unmount shows as ENODEV. When the last descriptor goes, also by the death of the process, the kernel fails
//!   what is in flight and everything that comes, with ECONNABORTED and ENOTCONN; only the mount point stays, dead. A process that has
//!   files of its own mount open may never get there: [`Tether`] tells of its death all the same.
//! - RELEASE is not waited for.
//! - SUBMOUNTS, MAP_ALIGNMENT and HAS_INODE_DAX are not offered: inode numbers of several host file systems may clash, though files do not.
//!   PASSTHROUGH, OVER_IO_URING and splicing are offered and not taken.
//! - Permissions are checked by the kernel if the mount has `default_permissions`, which a guest's always has. Without `allow_other` it
//!   lets nobody but the user who mounted near.
//! - The kernel listens: [`Notifier`]. A version table is told to it that way.

mod buffer;
mod channel;
mod connection;
mod mount;
mod notifier;
mod tether;
mod waiting;
mod worker;

pub use connection::{Config, Connection};
pub use mount::{mount, save, unmount};
pub use notifier::Notifier;
pub use tether::Tether;
