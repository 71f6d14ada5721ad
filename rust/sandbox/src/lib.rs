//! What a process can take from itself before it listens to a guest.
//!
//! Each file is one means, and each means stands alone: who calls them decides which, how far and in which order. All but
//! [`filter`] concern the calling thread and what it starts later, so they are for a process that has a single thread.

pub mod capabilities;
pub mod filter;
pub mod landlock;
pub mod namespaces;
pub mod process;
pub mod root;
mod syscalls;
