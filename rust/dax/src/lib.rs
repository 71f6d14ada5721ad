//! The DAX window (virtio 1.3, 5.11.6.4 "Device Operation: DAX Window"): ranges of files where a guest sees them as memory.
//!
//! A [`Window`] is the truth about what is mapped; it keeps the rules of the specification and tells a [`Mapper`] what to do.
//! [`Reserved`] maps into this process, for a virtual machine monitor that lives in it. The other mapper sends messages to one in
//! another process, and is part of the vhost-user transport.

mod mapping;
mod reserved;
mod table;
mod window;

pub use mapping::{MappedFile, Mapper, Mapping, Refusal};
pub use reserved::Reserved;
pub use window::{GRANULE, InvalidSize, PAGE, Piece, Range, Window, check_size};
