//! What the micro-benchmarks share: a driver that works its ring by hand, and a file system that answers at once.

mod driver;
mod instant;
mod message;

pub use driver::{Driver, PLACE, Place};
pub use instant::{Instant, greet};
pub use message::request;
