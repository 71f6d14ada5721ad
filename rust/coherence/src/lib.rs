//! The version table: shared memory in which a guest sees whether what it remembers of a file still holds, without asking.
//!
//! One counter per slot, an inode has one slot for good, and whoever changes an inode moves its counter on after the change and
//! before the reply ([`Table`]). A guest notes the counter before it asks and trusts the answer as long as the counter stands
//! ([`View`]). `docs/version-table.md` is the specification, with the argument for the ordering ([`protocol`]) and what collisions,
//! crashes and hostile guests can do.
//!
//! Nothing here knows FUSE, a device or a file system: an inode is the pair of numbers that stat(2) gives.

mod changes;
mod error;
mod fanotify;
mod inodes;
mod layout;
mod map;
mod names;
mod peers;
pub mod protocol;
mod table;
mod view;
#[cfg(test)]
mod waiting;
mod watcher;

pub use changes::{Changed, Changes};
pub use error::Error;
pub use inodes::{InodeWatcher, Watched};
pub use layout::{DEFAULT_SLOTS, LARGEST, LEAST_SLOTS, MOST_SLOTS, slot_of};
pub use names::NamesLock;
pub use protocol::Version;
pub use table::Table;
pub use view::View;
pub use watcher::Watcher;
