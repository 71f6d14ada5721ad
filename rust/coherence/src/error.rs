//! What can be wrong with a table.

use std::io;
use std::path::PathBuf;

/// Why there is no table.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The host refused.
    #[error("{0}")]
    Io(#[from] io::Error),
    /// The number of slots cannot be had.
    #[error("a version table has a power of two of slots, from {least} to {most}, not {asked}")]
    Slots {
        /// What was asked for.
        asked: u64,
        /// The smallest table.
        least: u64,
        /// The largest.
        most: u64,
    },
    /// There is a table already, of another size.
    #[error("the version table {} has {found} slots, not {asked}: ask for {found}, or remove it while no daemon uses it", path.display())]
    Size {
        /// The file.
        path: PathBuf,
        /// What was asked for.
        asked: u64,
        /// What it has.
        found: u64,
    },
    /// What is there is no table, or a damaged one. It was not touched: somebody may be using it.
    #[error("{} is no version table that can be used: {why}; remove it while no daemon uses it", path.display())]
    Foreign {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        why: &'static str,
    },
}
