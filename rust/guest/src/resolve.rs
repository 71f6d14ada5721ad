//! From paths to nodes, the way a kernel walks.

use std::collections::VecDeque;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use virtiofs_fuse::wire::{Attr, EntryOut, ROOT_ID};

use crate::nodes::{Forget, Leads, Noted};
use crate::{Error, Guest, Result};

/// Symlinks followed in one path at most, as in Linux.
const LINKS_MAX: usize = 40;

/// A node in use: its counts stay until this is dropped.
#[derive(Debug)]
pub(crate) struct Pin {
    pub(crate) guest: Guest,
    pub(crate) nodeid: u64,
}

impl Drop for Pin {
    fn drop(&mut self) {
        let gone = self.guest.inner.nodes.lock().unpin(self.nodeid);
        self.guest.give_back(gone);
    }
}
impl Pin {
    pub(crate) fn guest(&self) -> &Guest {
        &self.guest
    }
}

impl Guest {
    /// Walks a path to its node.
    pub(crate) fn resolve(&self, path: &Path, follow: bool) -> Result<Pin> {
        let mut waiting: VecDeque<Vec<u8>> = split(path.as_os_str().as_bytes()).collect();
        let mut above = vec![Pin { guest: self.clone(), nodeid: ROOT_ID }];
        let mut links = 0;
        while let Some(name) = waiting.pop_front() {
            if name == b".." {
                if above.len() > 1 {
                    above.pop();
                }
                continue;
            }
            let Some(parent) = above.last() else { break };
            let (pin, mode) = self.step(parent, &name)?;
            match mode & libc::S_IFMT {
                libc::S_IFLNK if follow || !waiting.is_empty() => {
                    links += 1;
                    if links > LINKS_MAX {
                        return Err(Error::Errno(libc::ELOOP));
                    }
                    let target = self.client().readlink(pin.nodeid)?;
                    if target.starts_with(b"/") {
                        above.truncate(1);
                    }
                    split(&target).rev().for_each(|part| waiting.push_front(part));
                }
                libc::S_IFDIR => above.push(pin),
                _ if waiting.is_empty() => return Ok(pin),
                _ => return Err(Error::Errno(libc::ENOTDIR)),
            }
        }
        above.pop().ok_or(Error::Errno(libc::ENOENT))
    }

    pub(crate) fn step(&self, parent: &Pin, name: &[u8]) -> Result<(Pin, u32)> {
        self.hear()?;
        let cached = self.inner.nodes.lock().cached(parent.nodeid, name);
        match cached {
            Some(Leads::To(nodeid, mode)) => return Ok((Pin { guest: self.clone(), nodeid }, mode)),
            Some(Leads::Nowhere) => return Err(Error::Errno(libc::ENOENT)),
            None => {}
        }
        let noted = self.note(parent.nodeid);
        match self.client().lookup(parent.nodeid, name) {
            Ok(entry) if entry.nodeid != 0 => Ok((self.entered(parent, name, &entry, noted)?, entry.attr.mode)),
            Ok(nothing) => {
                self.hear()?;
                let gone = self.inner.nodes.lock().absent(parent.nodeid, name, Some(&nothing), noted);
                self.give_back(gone);
                Err(Error::Errno(libc::ENOENT))
            }
            Err(Error::Errno(libc::ENOENT)) => {
                let gone = self.inner.nodes.lock().absent(parent.nodeid, name, None, noted);
                self.give_back(gone);
                Err(Error::Errno(libc::ENOENT))
            }
            Err(error) => Err(error),
        }
    }

    /// The directory that a path's last name is in, and that name.
    pub(crate) fn parent(&self, path: &Path) -> Result<(Pin, Vec<u8>)> {
        let mut parts: Vec<Vec<u8>> = split(path.as_os_str().as_bytes()).collect();
        let name = parts.pop().ok_or(Error::Errno(libc::EISDIR))?;
        let directory = parts.join(&b'/');
        Ok((self.resolve(std::ffi::OsStr::from_bytes(&directory).as_ref(), true)?, name))
    }

    /// Forgets what the device has told to be old.
    pub(crate) fn hear(&self) -> Result<()> {
        for notice in self.client().notices()? {
            let gone = self.inner.nodes.lock().heard(&notice);
            self.give_back(gone);
        }
        Ok(())
    }

    /// Before a question about a node.
    pub(crate) fn note(&self, nodeid: u64) -> Noted {
        self.inner.nodes.lock().note(nodeid)
    }

    /// Attributes of a node: remembered ones while they hold.
    pub(crate) fn attributes(&self, pin: &Pin, fh: Option<u64>) -> Result<Attr> {
        let (known, noted) = {
            let nodes = self.inner.nodes.lock();
            (nodes.attributes(pin.nodeid), nodes.note(pin.nodeid))
        };
        if let Some(attr) = known {
            return Ok(attr);
        }
        let out = self.client().getattr(pin.nodeid, fh)?;
        self.hear()?;
        self.inner.nodes.lock().told(pin.nodeid, &out, noted);
        Ok(out.attr)
    }

    pub(crate) fn entered(&self, parent: &Pin, name: &[u8], entry: &EntryOut, noted: Noted) -> Result<Pin> {
        if entry.nodeid == 0 || entry.nodeid == ROOT_ID {
            return Err(Error::Protocol(format!("node id {} for {:?}", entry.nodeid, String::from_utf8_lossy(name))));
        }
        self.hear()?;
        let gone = self.inner.nodes.lock().entered(parent.nodeid, name, entry, noted);
        self.give_back(gone);
        Ok(Pin { guest: self.clone(), nodeid: entry.nodeid })
    }

    pub(crate) fn name_gone(&self, parent: &Pin, name: &[u8]) {
        let gone = self.inner.nodes.lock().forget_name(parent.nodeid, name);
        self.give_back(gone);
    }

    pub(crate) fn give_back(&self, gone: impl IntoIterator<Item = Forget>) {
        for (nodeid, nlookup) in gone {
            // A device that went away has forgotten everything; the next call that wants an answer says so.
            let _ = self.client().forget(nodeid, nlookup);
        }
    }
}

fn split(path: &[u8]) -> impl DoubleEndedIterator<Item = Vec<u8>> + use<'_> {
    path.split(|byte| *byte == b'/').filter(|part| !part.is_empty() && *part != b".").map(<[u8]>::to_vec)
}
