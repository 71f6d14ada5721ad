//! The reply of READDIR and READDIRPLUS while it is filled.

use zerocopy::{Immutable, IntoBytes};

use crate::wire::{Dirent, Direntplus, EntryOut};

/// Directory entries in wire form, up to the size that the guest asked for.
#[derive(Debug, Default)]
pub struct DirBuffer {
    /// Whatever was in it stays: what counts are the bytes below `used`.
    bytes: Vec<u8>,
    used: usize,
    limit: usize,
}

impl DirBuffer {
    /// Empties the buffer and sets how many bytes the reply may have.
    pub fn restart(&mut self, limit: usize) {
        (self.used, self.limit) = (0, limit);
        if self.bytes.len() < limit {
            self.bytes.resize(limit, 0);
        }
    }

    /// Bytes that an entry takes.
    fn record(plus: bool, name: &[u8]) -> usize {
        let head = if plus { size_of::<Direntplus>() } else { size_of::<Dirent>() };
        (head + name.len()).next_multiple_of(8)
    }

    /// Whether an entry with this name still has room. Ask before a lookup is counted for it: the kernel drops a record
    /// that was cut off, and with it the count.
    pub fn fits(&self, plus: bool, name: &[u8]) -> bool {
        self.used + Self::record(plus, name) <= self.limit
    }

    /// Appends an entry for READDIR; `kind` is a `DT_` value, `off` the cookie behind the entry. False, and no change, if it has no
    /// room.
    pub fn push(&mut self, name: &[u8], ino: u64, kind: u32, off: u64) -> bool {
        self.append(&Dirent { ino, off, namelen: name.len() as u32, kind }, name)
    }

    /// Appends an entry for READDIRPLUS. An `entry` with node id 0 lists the name and makes the guest look it up by itself.
    pub fn push_plus(&mut self, name: &[u8], ino: u64, kind: u32, off: u64, entry: &EntryOut) -> bool {
        let dirent = Dirent { ino, off, namelen: name.len() as u32, kind };
        self.append(&Direntplus { entry_out: *entry, dirent }, name)
    }

    fn append<H: IntoBytes + Immutable>(&mut self, head: &H, name: &[u8]) -> bool {
        let len = (size_of::<H>() + name.len()).next_multiple_of(8);
        let end = self.used + len;
        let Some(record) = self.bytes.get_mut(self.used..end).filter(|_| end <= self.limit) else { return false };
        let (record, rest) = record.split_at_mut(size_of::<H>());
        record.copy_from_slice(head.as_bytes());
        let (record, padding) = rest.split_at_mut(name.len());
        record.copy_from_slice(name);
        padding.fill(0);
        self.used = end;
        true
    }

    /// Whether no entry was appended.
    pub fn is_empty(&self) -> bool {
        self.used == 0
    }

    /// The reply's bytes.
    pub fn as_bytes(&self) -> &[u8] {
        self.bytes.get(..self.used).unwrap_or_default()
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
        out.restart(32);
        assert!(out.push(b"ab", 7, 4, 1));
        assert_eq!(out.as_bytes()[24..], *b"ab\0\0\0\0\0\0", "nothing is left of what was there");
    }
}
