//! Directory listings as they come off the wire.

use virtiofs_fuse::wire::{Dirent, Direntplus, EntryOut, NAME_MAX};
use zerocopy::FromBytes;

use crate::{Error, Result};

/// One name of a directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DirEntry {
    /// The name, in the bytes of the host.
    pub name: Vec<u8>,
    /// Inode number.
    pub ino: u64,
    /// A `DT_` value.
    pub kind: u32,
    /// Where to go on behind this entry.
    pub off: u64,
    /// What READDIRPLUS adds. With node id 0 there is nothing but the name.
    pub entry: Option<EntryOut>,
}

/// Takes a READDIR or READDIRPLUS reply apart. As in the kernel, a record that was cut off at the end is dropped, and a name that
/// no directory can have spoils the whole reply.
pub fn parse(mut bytes: &[u8], plus: bool) -> Result<Vec<DirEntry>> {
    let mut entries = Vec::new();
    let head = if plus { size_of::<Direntplus>() } else { size_of::<Dirent>() };
    while bytes.len() >= head {
        let (entry, dirent) = if plus {
            let (record, _) = Direntplus::read_from_prefix(bytes).map_err(|_| short())?;
            (Some(record.entry_out), record.dirent)
        } else {
            (None, Dirent::read_from_prefix(bytes).map_err(|_| short())?.0)
        };
        let len = dirent.namelen as usize;
        if len == 0 || len > NAME_MAX {
            return Err(Error::Protocol(format!("a directory entry with a name of {len} bytes")));
        }
        let Some(name) = bytes.get(head..head + len) else { break };
        if name.contains(&b'/') || name.contains(&0) {
            return Err(Error::Protocol(format!("a directory entry named {:?}", String::from_utf8_lossy(name))));
        }
        entries.push(DirEntry { name: name.to_vec(), ino: dirent.ino, kind: dirent.kind, off: dirent.off, entry });
        let record = (head + len).next_multiple_of(8);
        let Some(rest) = bytes.get(record..) else { break };
        bytes = rest;
    }
    Ok(entries)
}

fn short() -> Error {
    Error::Protocol("a directory entry shorter than its head".into())
}

#[cfg(test)]
mod tests {
    use zerocopy::IntoBytes;

    use super::*;

    fn record(name: &[u8], namelen: u32) -> Vec<u8> {
        let mut bytes = Dirent { ino: 7, off: 1, namelen, kind: 8 }.as_bytes().to_vec();
        bytes.extend(name);
        bytes.resize(bytes.len().next_multiple_of(8), 0);
        bytes
    }

    #[test]
    fn records_are_read_up_to_a_cut_one_and_bad_names_are_refused() {
        let mut bytes = record(b"one", 3);
        bytes.extend(record(b"a longer name", 13));
        let entries = parse(&bytes, false).unwrap();
        assert_eq!(entries.iter().map(|e| e.name.as_slice()).collect::<Vec<_>>(), [&b"one"[..], b"a longer name"]);
        assert_eq!(parse(&bytes[..60], false).unwrap().len(), 1, "the second record is cut");
        for (name, len) in [(&b""[..], 0), (b"a/b", 3), (b"a\0b", 3), (&[b'x'; 256], 256)] {
            assert!(parse(&record(name, len), false).is_err());
        }
    }
}
