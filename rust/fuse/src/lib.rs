//! The FUSE protocol without a transport.
//!
//! [`wire`] has the structs, [`op`] the operations as one table, [`FileSystem`] the operations as typed methods, [`Server`] turns a
//! [`Message`] (one request's memory, whoever carries it) into a call and its result into a reply of exactly the length that
//! the kernel expects. Nothing here knows a virtqueue, a file descriptor of a device, or Python.

mod call;
mod creation;
mod dirbuf;
mod error;
mod fs;
mod head;
mod lane;
mod message;
mod metrics;
mod names;
mod negotiate;
pub mod op;
mod saved;
mod server;
mod window;
pub mod wire;

pub use creation::Creation;
pub use dirbuf::DirBuffer;
pub use error::{Error, Result};
pub use fs::{ByValue, Context, FileSystem, Held, Settle, Wait};
pub use lane::{BACKING, Bell, Carried, Lane, Route, Routes, Ticket, Turned, Untold};
pub use message::{Malformed, Message, Plain, Segments};
pub use metrics::Metrics;
pub use negotiate::{Limits, Negotiated};
pub use op::{Opcode, Operation};
pub use saved::{Lost, Mapped, Reader, Saved, Thing, Unusable};
pub use server::{Outcome, Pending, Scratch, Server};
pub use window::{Backing, Mappable, Window};
