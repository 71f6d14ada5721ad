//! The files that the work is done on.

use virtiofs_fuse::wire::ROOT_ID;

use crate::{Error, Guest, Result};

/// Files in `many/`, for lookups.
pub const FILES: usize = 10_000;
/// Files in `list/`, for listings.
pub const LISTED: usize = 1_000;
/// Bytes of `big`, for reads and writes.
pub(crate) const BIG: u64 = 256 << 20;

/// The name of the file `n` of `many/` or `list/`, closed by a NUL.
pub(crate) fn name(n: usize) -> [u8; 7] {
    let mut name = *b"f00000\0";
    let mut rest = n;
    for digit in name.iter_mut().skip(1).take(5).rev() {
        *digit = b'0' + (rest % 10) as u8;
        rest /= 10;
    }
    name
}

/// A name without its NUL.
pub(crate) fn bare(name: &[u8]) -> &[u8] {
    name.strip_suffix(&[0]).unwrap_or(name)
}

/// Fills the share with what all rows work on, as far as it is not there yet: `many/` with [`FILES`] empty files, `list/` with
/// [`LISTED`], `big` with 256 MiB of data, and an empty directory `work/`.
pub fn prepare(guest: &Guest) -> Result<()> {
    for (directory, count) in [("many", FILES), ("list", LISTED), ("work", 0)] {
        match guest.mkdir(directory, 0o755) {
            Ok(()) | Err(Error::Errno(libc::EEXIST)) => {}
            Err(error) => return Err(error),
        }
        let node = guest.nodeid(directory)?;
        let client = guest.client();
        for n in 0..count {
            let file = name(n);
            match client.mknod(node, bare(&file), libc::S_IFREG | 0o644, 0, 0o022) {
                Ok(entry) => client.forget(entry.nodeid, 1)?,
                Err(Error::Errno(libc::EEXIST)) => {}
                Err(error) => return Err(error),
            }
        }
    }
    let big = guest.open("big", libc::O_RDWR | libc::O_CREAT, 0o644)?;
    if big.stat()?.size != BIG {
        // Not zeros: some file systems would not store them.
        let mut state = 0x9e37_79b9_7f4a_7c15u64;
        let mut piece = vec![0u8; 1 << 20];
        for i in 0..BIG >> 20 {
            for word in piece.chunks_mut(8) {
                state ^= state << 13;
                state ^= state >> 7;
                state ^= state << 17;
                word.copy_from_slice(state.to_le_bytes().get(..word.len()).unwrap_or(&[]));
            }
            big.write_at(i << 20, &piece)?;
        }
    }
    big.close()?;
    guest.client().settle()
}

/// Looks the names `f00000` and so on up in each directory of `directory`, `count` in each, and holds them. Answers how many nodes
/// that are: as many as the host lets the daemon hold.
pub fn hold(guest: &Guest, directory: &str, count: usize) -> Result<usize> {
    let mut nodes = 0;
    for name_of in guest.listdir(directory)? {
        let parent = guest.nodeid(format!("{directory}/{}", String::from_utf8_lossy(&name_of)))?;
        for n in 0..count {
            match guest.client().lookup(parent, bare(&name(n))) {
                Ok(_) => nodes += 1,
                Err(Error::Errno(libc::EMFILE | libc::ENFILE)) => return Ok(nodes),
                Err(error) => return Err(error),
            }
        }
    }
    Ok(nodes)
}

/// What rows know of the share.
pub(crate) struct Share {
    pub(crate) many: u64,
    pub(crate) list: u64,
    pub(crate) work: u64,
    pub(crate) big: u64,
}

impl Share {
    /// Looks everything up by hand, so that no cache gives it back meanwhile.
    pub(crate) fn find(guest: &Guest) -> Result<Share> {
        let node = |name: &[u8]| Ok::<u64, Error>(guest.client().lookup(ROOT_ID, name)?.nodeid);
        Ok(Share { many: node(b"many")?, list: node(b"list")?, work: node(b"work")?, big: node(b"big")? })
    }

    pub(crate) fn leave(&self, guest: &Guest) -> Result<()> {
        [self.many, self.list, self.work, self.big].iter().try_for_each(|node| guest.client().forget(*node, 1))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_count_in_decimal() {
        assert_eq!(&name(0), b"f00000\0");
        assert_eq!(&name(9_871), b"f09871\0");
        assert_eq!(bare(&name(5)), b"f00005");
    }
}
