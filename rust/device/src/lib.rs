//! The virtio-fs device (virtio 1.3, 5.11 "File System Device").
//!
//! [`identity`] is what the device says of itself, a [`Worker`](worker::Worker) serves one queue, [`pool`] runs what may wait for a
//! disk, and [`notices`] tell the driver what it did not ask for. A [`Device`] is the whole of it inside of a VMM, [`mmio`] puts registers before it, [`vhost_user`] carries it to a VMM in
//! another process.
//! [`fusedev`] serves the same file systems to this host, without a device.

mod aside;
mod call;
mod completer;
mod device;
mod follower;
pub mod fusedev;
pub mod identity;
mod loan;
pub mod mmio;
mod news;
mod notices;
mod parking;
mod pool;
mod queue;
mod request;
mod running;
mod saved;
mod setup;
mod signals;
mod spin;
mod tact;
pub mod vhost_user;
mod window;
mod worker;
mod workers;

pub use call::Call;
pub use device::{Device, DeviceError, State, Threads};
pub use identity::{Identity, InvalidIdentity};
pub use news::{Backlog, News, Tell};
pub use notices::Notices;
pub use request::Request;
pub use saved::{RestoreError, Shape, Wires};
pub use setup::QueueSetup;
pub use spin::Spin;
pub use window::Local as LocalWindow;
pub use workers::Workers;
