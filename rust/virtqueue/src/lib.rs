//! Guest memory and split virtqueues, from the device's side.
//!
//! [`Memory`] is what the guest shares, [`split`] cuts a ring into the half that takes work ([`Available`]) and the half that
//! completes it ([`Used`]), so that a request may be completed by another thread than the one that took it, and out of order. A
//! [`Chain`] is one request: a stream to read and room to write, both as iovecs over guest memory for system calls. [`Event`] is a
//! kick or a call. Built on rust-vmm's `vm-memory` and `virtio-queue`.

mod access;
mod ahead;
mod area;
mod chain;
mod descriptors;
mod event;
mod inflight;
mod log;
mod memory;
mod ring;

pub use access::{Keep, PAGE, Piece};
pub use chain::Chain;
pub use event::{Event, Waiter, Wake};
pub use inflight::{Area, Inflight};
pub use log::DirtyLog;
pub use memory::{Memory, MemoryError, Region, Remote, SharedMemory};
pub use ring::{Available, Popped, RingConfig, RingError, Used, split, used_index};
