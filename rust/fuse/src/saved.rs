//! A session as bytes, to go on in another device: numbers of 64 bits, least significant byte first, and byte strings behind their length.
//!
//! Whoever writes first says the format and its version; here is what the server and its file system have to say.

use std::sync::atomic::Ordering::Relaxed;

use crate::wire::{SetupmappingIn, bits};
use crate::{Context, Error, Mappable, Negotiated, Result, Server};

/// What is saved, as it grows.
#[derive(Debug, Default)]
pub struct Saved(Vec<u8>);

/// What was saved, as it is read.
#[derive(Clone, Debug)]
pub struct Reader<'a>(&'a [u8]);

/// Why a saved session cannot be gone on with at all.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs)]
pub enum Unusable {
    #[error("what was saved ends too early, or was changed")]
    Broken,
    #[error("{0}")]
    Other(String),
}

/// Something that the guest had and that is not to be had any more.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lost {
    /// What it is.
    pub what: Thing,
    /// The node that it belongs to.
    pub node: u64,
    /// Where it was in the share, if that is known.
    pub path: Vec<u8>,
    /// Why it is lost.
    pub error: Error,
}

/// What a guest has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Thing {
    /// A node; what it had open is not named again.
    Node,
    /// An open file.
    File,
    /// An open directory.
    Directory,
    /// A lock.
    Lock,
    /// A mapping in the DAX window.
    Mapping,
}

/// A mapping of the DAX window.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mapped {
    /// The node whose file it is.
    pub node: u64,
    /// Where in the window.
    pub offset: u64,
    /// How many bytes.
    pub len: u64,
    /// Where in the file.
    pub file_offset: u64,
    /// The guest may write.
    pub writable: bool,
}

impl Saved {
    /// One more number.
    pub fn number(&mut self, value: u64) {
        self.0.extend(value.to_le_bytes());
    }

    /// A few more numbers.
    pub fn numbers<const N: usize>(&mut self, values: [u64; N]) {
        values.into_iter().for_each(|value| self.number(value));
    }

    /// One more string.
    pub fn bytes(&mut self, bytes: &[u8]) {
        self.number(bytes.len() as u64);
        self.0.extend(bytes);
    }

    /// All of it.
    pub fn into_bytes(self) -> Vec<u8> {
        self.0
    }
}

impl<'a> Reader<'a> {
    /// Of these bytes.
    pub fn new(bytes: &'a [u8]) -> Reader<'a> {
        Reader(bytes)
    }

    /// The next number.
    pub fn number(&mut self) -> Result<u64, Unusable> {
        let (value, rest) = self.0.split_first_chunk().ok_or(Unusable::Broken)?;
        self.0 = rest;
        Ok(u64::from_le_bytes(*value))
    }

    /// The next number, which fits a narrower type.
    pub fn narrow<T: TryFrom<u64>>(&mut self) -> Result<T, Unusable> {
        T::try_from(self.number()?).map_err(|_| Unusable::Broken)
    }

    /// The next number as a yes or no.
    pub fn flag(&mut self) -> Result<bool, Unusable> {
        Ok(self.narrow::<u8>()? != 0)
    }

    /// The next string.
    pub fn bytes(&mut self) -> Result<&'a [u8], Unusable> {
        let len = self.narrow()?;
        let (bytes, rest) = self.0.split_at_checked(len).ok_or(Unusable::Broken)?;
        self.0 = rest;
        Ok(bytes)
    }

    /// Nothing may be left.
    pub fn end(&self) -> Result<(), Unusable> {
        if self.0.is_empty() { Ok(()) } else { Err(Unusable::Broken) }
    }
}

impl Server {
    /// Says what the session is, and what the guest has. No request may be under way.
    pub fn save(&self, out: &mut Saved) -> Result<(), Unusable> {
        let Some(session) = self.negotiated() else {
            out.number(0);
            return Ok(());
        };
        out.number(1);
        let Negotiated { minor, flags, max_write, max_readahead, mappable } = session;
        out.numbers([minor.into(), max_write.into(), max_readahead.into(), flags, mappable.is_some().into()]);
        let mappable = mappable.unwrap_or(Mappable { alignment: 0, read_only: false });
        out.numbers([mappable.alignment.into(), mappable.read_only.into()]);
        out.number(self.lane.is_some().into());
        self.fs.save(out)?;
        self.lane.as_ref().map_or(Ok(()), |lane| lane.fs().save(out))
    }

    /// Goes on with a session that was saved, in place of any other, and answers what of it is lost: the guest gets ESTALE and EBADF for
    /// that. After an error there is no session.
    pub fn restore(&self, from: &mut Reader<'_>) -> Result<Vec<Lost>, Unusable> {
        self.reset();
        let mut lost = Vec::new();
        if !from.flag()? {
            return Ok(lost);
        }
        let (minor, max_write, max_readahead) = (from.narrow()?, from.narrow()?, from.narrow()?);
        let flags = from.number()?;
        let has_window = from.flag()?;
        let mappable = Mappable { alignment: from.narrow()?, read_only: from.flag()? };
        let mappable = has_window.then_some(mappable);
        let unknown = flags & !self.limits.want;
        if unknown != 0 {
            return Err(Unusable::Other(format!(
                "the guest has agreed on FUSE features {unknown:#x} that this file system does not offer: give it the \
                 settings of the one that was saved"
            )));
        }
        if from.flag()? != self.lane.is_some() {
            return Err(Unusable::Other(
                "of the two file systems, the one that was saved and this one, one has methods in Python, and the other has none"
                    .into(),
            ));
        }
        let session = Negotiated { minor, flags, max_write, max_readahead, mappable };
        let mut ours = self.session.lock();
        self.fs.init(&session);
        let restored = self.fs.restore(from, &mut lost);
        let restored =
            restored.and_then(|()| self.lane.as_ref().map_or(Ok(()), |lane| lane.fs().restore(from, &mut lost)));
        if let Err(error) = restored {
            self.end(&mut ours);
            return Err(error);
        }
        if let Some(lane) = &self.lane {
            lane.fs().init(&session);
        }
        *ours = session;
        self.flags.store(flags, Relaxed);
        self.initialized.store(true, Relaxed);
        Ok(lost)
    }

    /// Maps again what the guest had in its window, after [`Server::restore`].
    pub fn map_again(&self, mapped: &Mapped) -> Result<()> {
        let Some(window) = self.window() else { return Err(Error::Errno(libc::ENODEV)) };
        let Mapped { node, offset, len, file_offset, writable } = *mapped;
        let write = if writable { bits::SETUPMAPPING_WRITE } else { 0 };
        let args = SetupmappingIn {
            fh: u64::MAX,
            foffset: file_offset,
            len,
            flags: bits::SETUPMAPPING_READ | write,
            moffset: offset,
        };
        let cx = Context { unique: 0, uid: 0, gid: 0, pid: 0, may_block: true };
        window.map(node, &args, &mut |write| self.fs.backing(&cx, node, write))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read_and_nothing_else() {
        let mut saved = Saved::default();
        saved.number(7);
        saved.bytes(b"name");
        saved.number(u64::MAX);
        let bytes = saved.into_bytes();
        let mut reader = Reader::new(&bytes);
        assert_eq!(reader.number().unwrap(), 7);
        assert!(reader.end().is_err());
        assert_eq!(reader.bytes().unwrap(), b"name");
        assert!(reader.clone().narrow::<u32>().is_err());
        assert!(reader.clone().bytes().is_err(), "a length beyond the end");
        assert_eq!(reader.number().unwrap(), u64::MAX);
        assert!(reader.number().is_err());
        reader.end().unwrap();
    }
}
