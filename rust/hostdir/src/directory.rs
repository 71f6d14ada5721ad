//! READDIR and READDIRPLUS.
//!
//! A cookie is the host's own `d_off`: it holds across insertions and removals as far as the host's file system lets it, and
//! any READDIR may start at any of them. A handle keeps what getdents64(2) gave and the guest has not read yet.

use std::ffi::CStr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use rustix::fs::SeekFrom;
use rustix::io::Errno;
use virtiofs_fuse::wire::{EntryOut, ROOT_ID};
use virtiofs_fuse::{DirBuffer, Result};

use crate::HostDir;
use crate::error::{Lift, answer, errno};
use crate::handles::DirHandle;
use crate::stat::Status;
use crate::sys;

/// As much as glibc asks for: some hundreds of entries per call.
const BUFFER: usize = 32 * 1024;

/// Directories of one guest that keep what was read ahead: others are read anew from the guest's cookie each time.
const AHEAD_MAX: usize = 256;

/// Entries that were read ahead.
#[derive(Default)]
pub(crate) struct Position {
    buffer: Vec<u8>,
    start: usize,
    end: usize,
    /// The cookie of the entry at `start`.
    next: u64,
    /// Of the directories that keep something.
    ahead: Option<Ahead>,
}

/// One of the directories that keep what was read ahead.
struct Ahead(Arc<AtomicUsize>);

impl Ahead {
    fn one_more(of: &Arc<AtomicUsize>) -> Option<Ahead> {
        let more = |count: usize| (count < AHEAD_MAX).then_some(count + 1);
        of.fetch_update(Ordering::Relaxed, Ordering::Relaxed, more).ok()?;
        Some(Ahead(Arc::clone(of)))
    }
}

impl Drop for Ahead {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// One `linux_dirent64`.
struct Record<'a> {
    ino: u64,
    off: u64,
    kind: u32,
    name: &'a CStr,
    len: usize,
}

impl<'a> Record<'a> {
    /// The first record of what getdents64(2) filled in: ino 8, off 8, length 2, type 1, name, NUL, padding.
    fn parse(bytes: &'a [u8]) -> Option<Record<'a>> {
        let (ino, rest) = bytes.split_first_chunk()?;
        let (off, rest) = rest.split_first_chunk()?;
        let (len, rest) = rest.split_first_chunk()?;
        let (kind, _) = rest.split_first()?;
        let len = usize::from(u16::from_ne_bytes(*len));
        let name = CStr::from_bytes_until_nul(bytes.get(19..len)?).ok()?;
        Some(Record { ino: u64::from_ne_bytes(*ino), off: u64::from_ne_bytes(*off), kind: (*kind).into(), name, len })
    }
}

impl HostDir {
    pub(crate) fn op_readdir(&self, node: u64, fh: u64, offset: u64, plus: bool, out: &mut DirBuffer) -> Result<()> {
        let handle = self.directory(node, fh)?;
        self.asked(&handle.inode);
        let mut position = handle.position.lock();
        let listed = self.read_entries(&handle, &mut position, offset, plus, out);
        if position.ahead.is_none() {
            position.ahead = Ahead::one_more(&self.ahead);
        }
        if position.ahead.is_none() {
            // No offset has this cookie: the next READDIR seeks.
            *position = Position { next: u64::MAX, ..Position::default() };
        }
        listed
    }

    fn read_entries(
        &self,
        handle: &DirHandle,
        position: &mut Position,
        offset: u64,
        plus: bool,
        out: &mut DirBuffer,
    ) -> Result<()> {
        // Whoever begins, maybe after others who had the same handle, wants what is there now.
        if offset != position.next || (offset == 0 && position.end > 0) {
            let Ok(cookie) = i64::try_from(offset) else { return errno(libc::EINVAL) };
            rustix::fs::seek(handle.fd(), SeekFrom::Start(cookie as u64)).lift()?;
            (position.start, position.end, position.next) = (0, 0, offset);
        }
        let mut status = Status::none();
        loop {
            if position.start == position.end {
                match position.fill(handle) {
                    Ok(true) => {}
                    // What was found before an error is the guest's; its next READDIR meets the error.
                    Ok(false) => return Ok(()),
                    Err(_) if !out.is_empty() => return Ok(()),
                    Err(error) => return Err(answer(error)),
                }
            }
            let unread = position.buffer.get(position.start..position.end).unwrap_or(&[]);
            let Some(record) = Record::parse(unread) else { return errno(libc::EIO) };
            if !out.fits(plus, record.name.to_bytes()) {
                // An empty answer would be the end of the directory.
                return if out.is_empty() { errno(libc::EINVAL) } else { Ok(()) };
            }
            self.list(handle, &record, plus, &mut status, out);
            position.next = record.off;
            position.start += record.len;
        }
    }

    /// Appends an entry for which there is room. With `plus` it is looked up, unless that fails: then the name is listed
    /// without a node.
    fn list(&self, handle: &DirHandle, record: &Record<'_>, plus: bool, status: &mut Status, out: &mut DirBuffer) {
        let dir = &handle.inode;
        let name = record.name.to_bytes();
        let ino = if dir.id == ROOT_ID && name == b".." { dir.ino() } else { dir.ino_of(record.ino) };
        let dots = name == b"." || name == b"..";
        // What a file of the host stands for is in its attributes: who wants to know asks for those.
        let stands_for_others = self.keeps() && record.kind == u32::from(libc::DT_REG);
        let kind = if stands_for_others { libc::DT_UNKNOWN.into() } else { record.kind };
        if !plus && (dots || !self.hides()) {
            out.push(name, ino, kind, record.off);
            return;
        }
        if dots {
            out.push_plus(name, ino, kind, record.off, &EntryOut::default());
            return;
        }
        let new_directory = record.kind == u32::from(libc::DT_DIR) && !self.likely_known(dir, record.ino);
        match self.enter(dir, handle.fd(), record.name, new_directory, status) {
            Ok(inode) if inode.effects.hidden => _ = self.inodes.forget_inode(&inode, 1),
            Ok(inode) if !plus => {
                out.push(name, ino, kind, record.off);
                self.inodes.forget_inode(&inode, 1);
            }
            Ok(inode) => {
                let entry = self.entry(&inode, status);
                if !out.push_plus(name, ino, entry.attr.mode >> 12, record.off, &entry) {
                    self.inodes.forget_inode(&inode, 1);
                }
            }
            Err(_) if !plus => _ = out.push(name, ino, kind, record.off),
            Err(_) => _ = out.push_plus(name, ino, kind, record.off, &EntryOut::default()),
        }
    }
}

impl Position {
    /// Reads ahead; false at the end of the directory.
    fn fill(&mut self, handle: &DirHandle) -> rustix::io::Result<bool> {
        self.buffer.resize(BUFFER, 0);
        (self.start, self.end) = (0, 0);
        self.end = loop {
            match sys::getdents64(handle.fd(), &mut self.buffer) {
                Err(Errno::INTR) => {}
                result => break result?,
            }
        };
        Ok(self.end > 0)
    }
}

#[cfg(test)]
mod tests {
    use super::Record;

    #[test]
    fn a_record_that_is_cut_off_or_lies_about_its_length_is_none() {
        let mut bytes = 7u64.to_ne_bytes().to_vec();
        bytes.extend(9u64.to_ne_bytes());
        bytes.extend(24u16.to_ne_bytes());
        bytes.extend([8, b'a', 0, 0, 0, 0]);
        let record = Record::parse(&bytes).unwrap();
        assert_eq!((record.ino, record.off, record.kind, record.name, record.len), (7, 9, 8, c"a", 24));
        for len in 0..bytes.len() {
            assert!(Record::parse(&bytes[..len]).is_none());
        }
        bytes[16] = 20;
        assert!(Record::parse(&bytes).is_none(), "a name without its NUL");
    }
}
