//! Which nodes the guest holds, how often each was counted, under which names it knows them, and what it remembers of them: the
//! dentry and inode caches of a kernel, reduced to what FORGET depends on.
//!
//! A name holds for as long as the server said. With a version table it holds as long as its directory's counter stands, and then an absent
//! name and attributes are remembered as well; so they are with notifications, for as long as the server said.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use hashbrown::HashMap;
use virtiofs_coherence::{Version, View};
use virtiofs_fuse::wire::{Attr, AttrOut, EntryOut, ROOT_ID};

use crate::{Error, Notice, Result};

/// A node and how many counts of it go back to the server.
pub(crate) type Forget = (u64, u64);
/// What was known before the question.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Noted {
    /// By a version table, if there is one.
    version: Option<Version>,
    /// Notifications so far.
    heard: u64,
    /// Changes of our own so far.
    changes: u64,
}

#[derive(Debug, Default)]
struct Node {
    nlookup: u64,
    /// Calls and open files that use it right now.
    pins: u32,
    /// Names that lead to it.
    names: u32,
    attr: Option<Known>,
}

/// Attributes, and the changes of our own before they were asked for.
#[derive(Clone, Copy, Debug)]
struct Known {
    attr: Attr,
    holds: Holds,
    changes: u64,
}

#[derive(Clone, Copy, Debug)]
struct Name {
    leads: Leads,
    holds: Holds,
}

/// What a name is known to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Leads {
    /// The name of a node of this mode.
    To(u64, u32),
    Nowhere,
}

#[derive(Clone, Copy, Debug)]
enum Holds {
    /// No end: longer than the clock can tell. Names also end with their epoch.
    Until(Option<Instant>, u64),
    /// As long as the directory's counter stands.
    While(Version),
}

/// The table. Methods that may let nodes go answer what must be sent as FORGET.
#[derive(Debug, Default)]
pub(crate) struct Nodes {
    nodes: HashMap<u64, Node>,
    root: Option<Known>,
    directories: HashMap<u64, HashMap<Box<[u8]>, Name>>,
    names: usize,
    limit: usize,
    versions: Option<Arc<View>>,
    /// Notifications so far; `None` where there are none. Without them attributes are not kept by the clock.
    heard: Option<u64>,
    /// Told by notification to be over.
    epoch: u64,
    /// Changes of our own: each may have changed any attributes.
    changes: Arc<AtomicU64>,
}

impl Nodes {
    pub(crate) fn new(limit: usize, versions: Option<Arc<View>>) -> Nodes {
        Nodes { limit, versions, ..Nodes::default() }
    }

    /// There are notifications; `changes` counts what this guest itself may have changed.
    pub(crate) fn listen(&mut self, changes: Arc<AtomicU64>) {
        (self.heard, self.changes) = (Some(0), changes);
    }

    /// Before a question about a node.
    pub(crate) fn note(&self, nodeid: u64) -> Noted {
        Noted {
            version: self.versions.as_ref().map(|view| view.note(nodeid)),
            heard: self.heard.unwrap_or(0),
            changes: self.changes.load(Ordering::Acquire),
        }
    }

    /// Forgets what a notification says is old. Answers that are on their way are not kept: what they say may be old as well.
    pub(crate) fn heard(&mut self, notice: &Notice) -> Vec<Forget> {
        self.heard = self.heard.map(|heard| heard + 1);
        match notice {
            Notice::Inode { node: ROOT_ID, .. } => self.root = None,
            Notice::Inode { node, .. } => {
                if let Some(node) = self.nodes.get_mut(node) {
                    node.attr = None;
                }
            }
            Notice::Entry { parent, name } => return self.forget_name(*parent, name),
            Notice::Delete { parent, child, name } => {
                if let Some(child) = self.nodes.get_mut(child) {
                    child.attr = None;
                }
                return self.forget_name(*parent, name);
            }
            Notice::Epoch => self.epoch += 1,
        }
        Vec::new()
    }

    /// For how long an answer holds: at once no more if a notification came since the question.
    fn holds(&self, seconds: u64, nanoseconds: u32, noted: Noted) -> Holds {
        let now = Instant::now();
        match noted.version {
            Some(version) => Holds::While(version),
            None if self.heard.is_some_and(|heard| heard != noted.heard) => Holds::Until(Some(now), self.epoch),
            None => {
                let valid = Duration::from_secs(seconds) + Duration::from_nanos(u64::from(nanoseconds));
                Holds::Until(now.checked_add(valid), self.epoch)
            }
        }
    }

    fn stands(&self, nodeid: u64, version: Version) -> bool {
        self.versions.as_ref().is_some_and(|view| view.stands(nodeid, version))
    }

    /// The server answered `entry` for a name and counted its node once. The node is pinned once. `noted` of the directory.
    pub(crate) fn entered(&mut self, parent: u64, name: &[u8], entry: &EntryOut, noted: Noted) -> Vec<Forget> {
        let mut gone = self.forget_name(parent, name);
        gone.extend(self.make_room());
        let holds = self.holds(entry.entry_valid, entry.entry_valid_nsec, noted);
        let node = self.nodes.entry(entry.nodeid).or_default();
        node.nlookup += 1;
        node.pins += 1;
        node.names += 1;
        self.insert(parent, name, Name { leads: Leads::To(entry.nodeid, entry.attr.mode), holds });
        // A node that was let go just now and came back keeps its counts: the FORGET carries only the earlier ones.
        gone
    }

    /// The server knows no such name, or said so by `nothing`, for a time. Remembered with a version table or notifications alone.
    pub(crate) fn absent(&mut self, parent: u64, name: &[u8], nothing: Option<&EntryOut>, noted: Noted) -> Vec<Forget> {
        let mut gone = self.forget_name(parent, name);
        if noted.version.is_some() || self.heard.is_some() && nothing.is_some() {
            gone.extend(self.make_room());
            let (seconds, nanoseconds) = nothing.map_or((0, 0), |entry| (entry.entry_valid, entry.entry_valid_nsec));
            let holds = self.holds(seconds, nanoseconds, noted);
            self.insert(parent, name, Name { leads: Leads::Nowhere, holds });
        }
        gone
    }

    fn make_room(&mut self) -> Vec<Forget> {
        if self.names >= self.limit { self.clear() } else { Vec::new() }
    }

    fn insert(&mut self, parent: u64, name: &[u8], value: Name) {
        if self.directories.entry(parent).or_default().insert(name.into(), value).is_none() {
            self.names += 1;
        }
    }

    fn remove(&mut self, parent: u64, name: &[u8]) -> Option<Name> {
        let directory = self.directories.get_mut(&parent)?;
        let found = directory.remove(name)?;
        if directory.is_empty() {
            self.directories.remove(&parent);
        }
        self.names -= 1;
        Some(found)
    }

    /// The server counted a node that got no name here (TMPFILE). It is pinned once.
    pub(crate) fn counted(&mut self, nodeid: u64) {
        let node = self.nodes.entry(nodeid).or_default();
        node.nlookup += 1;
        node.pins += 1;
    }

    #[inline]
    fn leads(&self, parent: u64, name: &[u8]) -> Option<Leads> {
        let found = self.directories.get(&parent)?.get(name)?;
        let holds = match found.holds {
            Holds::While(version) => self.stands(parent, version),
            Holds::Until(until, epoch) => epoch == self.epoch && lasts(until),
        };
        holds.then_some(found.leads)
    }

    /// What a name is, while that holds. The node is pinned once.
    pub(crate) fn cached(&mut self, parent: u64, name: &[u8]) -> Option<Leads> {
        let found = self.leads(parent, name)?;
        if let Leads::To(nodeid, _) = found {
            self.pin(nodeid);
        }
        Some(found)
    }

    /// Attributes of a node, while they hold.
    #[inline]
    pub(crate) fn attributes(&self, nodeid: u64) -> Option<Attr> {
        let known = if nodeid == ROOT_ID { self.root } else { self.nodes.get(&nodeid)?.attr }?;
        let holds = match known.holds {
            Holds::While(version) => self.stands(nodeid, version),
            Holds::Until(until, _) => known.changes == self.changes.load(Ordering::Acquire) && lasts(until),
        };
        holds.then_some(known.attr)
    }

    /// The server told the attributes of a node after `noted`.
    pub(crate) fn told(&mut self, nodeid: u64, out: &AttrOut, noted: Noted) {
        let told = (noted.version.is_some() || self.heard.is_some()).then(|| Known {
            attr: out.attr,
            holds: self.holds(out.attr_valid, out.attr_valid_nsec, noted),
            changes: noted.changes,
        });
        if nodeid == ROOT_ID {
            self.root = told;
        } else if let Some(node) = self.nodes.get_mut(&nodeid) {
            node.attr = told;
        }
    }

    /// Attributes by path, if all of the way is known and holds: without a request, a system call or an allocation.
    pub(crate) fn walk(&self, path: &[u8], follow: bool) -> Option<Result<Attr>> {
        if self.versions.is_none() && self.heard.is_none() {
            return None;
        }
        let (mut at, mut kind) = (ROOT_ID, libc::S_IFDIR);
        for name in path.split(|byte| *byte == b'/').filter(|name| !name.is_empty() && *name != b".") {
            if kind != libc::S_IFDIR || name == b".." {
                return None;
            }
            match self.leads(at, name)? {
                Leads::To(nodeid, mode) => (at, kind) = (nodeid, mode & libc::S_IFMT),
                Leads::Nowhere => return Some(Err(Error::Errno(libc::ENOENT))),
            }
        }
        if kind == libc::S_IFLNK && follow {
            return None;
        }
        self.attributes(at).map(Ok)
    }

    pub(crate) fn pin(&mut self, nodeid: u64) {
        if nodeid != ROOT_ID {
            self.nodes.entry(nodeid).or_default().pins += 1;
        }
    }

    pub(crate) fn unpin(&mut self, nodeid: u64) -> Option<Forget> {
        if nodeid == ROOT_ID {
            return None;
        }
        let node = self.nodes.get_mut(&nodeid)?;
        node.pins = node.pins.saturating_sub(1);
        self.settle(nodeid)
    }

    /// A name is gone, or leads elsewhere from now on.
    pub(crate) fn forget_name(&mut self, parent: u64, name: &[u8]) -> Vec<Forget> {
        let Some(Name { leads: Leads::To(nodeid, _), .. }) = self.remove(parent, name) else { return Vec::new() };
        if let Some(node) = self.nodes.get_mut(&nodeid) {
            node.names = node.names.saturating_sub(1);
        }
        self.settle(nodeid).into_iter().collect()
    }

    /// A name was given to what another name meant.
    pub(crate) fn renamed(&mut self, parent: u64, name: &[u8], newparent: u64, newname: &[u8]) -> Vec<Forget> {
        let mut gone = self.forget_name(newparent, newname);
        let found = self.directories.get(&parent).and_then(|names| names.get(name));
        if found.is_some_and(|found| matches!(found.holds, Holds::While(_))) {
            // The counter of one directory says nothing about another: it may come by the same number.
            gone.extend(self.forget_name(parent, name));
        } else if let Some(moved) = self.remove(parent, name) {
            self.insert(newparent, newname, moved);
        }
        gone
    }

    /// Drops all names, and with them every node that nobody uses right now.
    pub(crate) fn clear(&mut self) -> Vec<Forget> {
        self.directories.clear();
        (self.names, self.root) = (0, None);
        let mut gone = Vec::new();
        self.nodes.retain(|nodeid, node| {
            node.names = 0;
            let keep = node.pins > 0;
            if !keep {
                gone.push((*nodeid, node.nlookup));
            }
            keep
        });
        gone
    }

    /// Nodes held, the root not counted.
    pub(crate) fn len(&self) -> usize {
        self.nodes.len()
    }

    fn settle(&mut self, nodeid: u64) -> Option<Forget> {
        let node = self.nodes.get(&nodeid)?;
        if node.pins > 0 || node.names > 0 {
            return None;
        }
        self.nodes.remove(&nodeid).map(|node| (nodeid, node.nlookup))
    }
}

fn lasts(until: Option<Instant>) -> bool {
    until.is_none_or(|until| until > Instant::now())
}

#[cfg(test)]
#[path = "nodes_tests.rs"]
mod tests;
