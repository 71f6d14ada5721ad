//! The native passthrough: a host directory as a [`FileSystem`](virtiofs_fuse::FileSystem) for one guest.

mod attributes;
mod config;
mod create;
mod credentials;
mod directory;
mod error;
mod filesystem;
mod handles;
mod hostdir;
mod inodes;
mod io;
mod ioctl;
mod locking;
mod locks;
mod lookup;
mod names;
mod open;
mod procfd;
mod shards;
mod stat;
mod statfs;
mod sys;
mod xattr;

pub use config::{Config, Effects};
pub use credentials::may_change_owner;
pub use hostdir::HostDir;
pub use locks::Locks;
