//! A virtio-fs guest in this process: the driver's side of the device, without a virtual machine.
//!
//! [`Guest`] mounts a share and has files by path. Beneath it, [`Client`] has every FUSE operation as a call and keeps
//! the reply to the rules of Linux 7.3; beneath that are split virtqueues in a memfd and a [`Transport`]: a vhost-user
//! socket ([`VhostUser`]) of any daemon, registers ([`Mmio`]), or whatever else implements the trait.
//!
//! ```no_run
//! use virtiofs_guest::{Guest, Options};
//!
//! let guest = Guest::connect("/run/share.sock".as_ref(), Options::default())?;
//! guest.write_file("notes/today", b"hello")?;
//! assert_eq!(guest.read_file("notes/today")?, b"hello");
//! # Ok::<(), virtiofs_guest::Error>(())
//! ```

mod attributes;
mod channel;
mod check;
mod client;
mod connection;
mod dirents;
mod error;
mod file;
mod guest;
pub mod load;
mod memory;
mod mmio;
mod nodes;
mod notices;
mod ops;
mod options;
mod raw;
mod resolve;
mod ring;
mod session;
mod signal;
mod slot;
mod transport;
mod vhost_user;
mod window;

pub use check::Expect;
pub use client::Client;
pub use connection::{Connection, Message};
pub use dirents::{DirEntry, parse as parse_listing};
pub use error::{Error, Result};
pub use file::File;
pub use guest::Guest;
pub use memory::{Memory, PAGE, Region};
pub use mmio::{Machine, Mmio};
pub use notices::Notice;
pub use options::{Framing, LINUX_FLAGS, Options};
pub use raw::{RawQueue, RawReply, RawRequest};
pub use ring::Descriptor;
pub use session::Session;
pub use signal::{Bell, Line};
pub use transport::{Config, Queue, Transport, feature};
pub use vhost_user::VhostUser;
pub use window::Mapped;
