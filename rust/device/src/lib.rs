//! The virtio-fs device (virtio 1.3, 5.11 "File System Device").
//!
//! [`identity`] is what the device says of itself, a [`Worker`](worker::Worker) serves one queue, [`pool`] runs what may wait for a
//! disk, [`vhost_user`] carries the device to a VMM in another process.
//! [`fusedev`] serves the same file systems to this host, without a device.

mod call;
mod completer;
pub mod fusedev;
pub mod identity;
mod loan;
mod parking;
mod pool;
mod queue;
mod request;
mod spin;
pub mod vhost_user;
mod worker;

pub use call::Call;
pub use identity::{Identity, InvalidIdentity};
