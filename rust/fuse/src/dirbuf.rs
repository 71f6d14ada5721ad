//! The reply of READDIR and READDIRPLUS while it is filled.

use zerocopy::IntoBytes;

use crate::wire::{Dirent, Direntplus, EntryOut};

/// Directory entries in wire form, up to the size that the guest asked for.
#[derive(Debug, Default)]
pub struct DirBuffer {
    bytes: Vec<u8>,
    limit: usize,
}

impl DirBuffer {
    /// Empties the buffer and sets how many bytes the reply may have.
    pub fn restart(&mut self, limit: usize) {
        self.bytes.clear();
        self.limit = limit;
    }

    /// Bytes that an entry takes.
    fn record(plus: bool, name: &[u8]) -> usize {
        let head = if plus { size_of::<Direntplus>() } else { size_of::<Dirent>() };
        (head + name.len()).next_multiple_of(8)
    }

    /// Whether an entry with this name still has room. Ask before a lookup is counted for it: the kernel drops a record
    /// that was cut off, and with it the count.
    pub fn fits(&self, plus: bool, name: &[u8]) -> bool {
        self.bytes.len() + Self::record(plus, name) <= self.limit
    }

    /// Appends an entry for READDIR; `kind` is a `DT_` value, `off` the cookie behind the entry. False, and no change, if it has no
    /// room.
    pub fn push(&mut self, name: &[u8], ino: u64, kind: u32, off: u64) -> bool {
        self.append(None, name, Dirent { ino, off, namelen: name.len() as u32, kind })
    }

    /// Appends an entry for READDIRPLUS. An `entry` with node id 0 lists the name and makes the guest look it up by itself.
    pub fn push_plus(&mut self, name: &[u8], ino: u64, kind: u32, off: u64, entry: &EntryOut) -> bool {
        self.append(Some(entry), name, Dirent { ino, off, namelen: name.len() as u32, kind })
    }

    fn append(&mut self, entry: Option<&EntryOut>, name: &[u8], dirent: Dirent) -> bool {
        if !self.fits(entry.is_some(), name) {
            return false;
        }
        if let Some(entry) = entry {
            self.bytes.extend_from_slice(entry.as_bytes());
        }
        self.bytes.extend_from_slice(dirent.as_bytes());
        self.bytes.extend_from_slice(name);
        self.bytes.resize(self.bytes.len().next_multiple_of(8), 0);
        true
    }

    /// Whether no entry was appended.
    pub fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    /// The reply's bytes.
    pub fn as_bytes(&self) -> &[u8] {
        &self.bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_are_padded_to_eight_bytes_and_stop_at_the_limit() {
        let mut out = DirBuffer::default();
        out.restart(24 + 8 + 24 + 256);
        assert!(out.push(b"a", 7, 4, 1));
        assert_eq!(out.as_bytes().len(), 32);
        assert!(out.push(&[b'x'; 255], 8, 8, 2));
        assert!(!out.push(b"b", 9, 8, 3), "no room is left");
        assert_eq!(out.as_bytes().len(), 32 + 280);
        out.restart(151);
        assert!(!out.push_plus(b"a", 7, 4, 1, &EntryOut::default()));
        assert!(out.is_empty());
    }
}
