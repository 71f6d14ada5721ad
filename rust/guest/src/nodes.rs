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
mod tests {
    use super::*;

    fn entry(nodeid: u64, valid: u64) -> EntryOut {
        EntryOut { nodeid, entry_valid: valid, ..EntryOut::default() }
    }

    #[test]
    fn counts_go_back_when_the_last_name_and_the_last_user_are_gone() {
        let mut nodes = Nodes::new(100, None);
        nodes.entered(1, b"a", &entry(7, 60), Noted::default());
        nodes.entered(1, b"a", &entry(7, 60), Noted::default());
        nodes.entered(1, b"hard link", &entry(7, 60), Noted::default());
        assert_eq!(nodes.cached(1, b"a"), Some(Leads::To(7, 0)));
        for _ in 0..4 {
            assert_eq!(nodes.unpin(7), None, "names are left");
        }
        assert_eq!(nodes.forget_name(1, b"a"), []);
        assert_eq!(nodes.forget_name(1, b"hard link"), [(7, 3)]);
        assert_eq!(nodes.len(), 0);
    }

    #[test]
    fn a_node_in_use_outlives_its_name() {
        let mut nodes = Nodes::new(100, None);
        nodes.entered(1, b"a", &entry(7, 60), Noted::default());
        assert_eq!(nodes.clear(), []);
        assert_eq!(nodes.unpin(7), Some((7, 1)));
    }

    #[test]
    fn names_expire_move_and_are_replaced() {
        let mut nodes = Nodes::new(2, None);
        nodes.entered(1, b"a", &entry(7, 0), Noted::default());
        assert_eq!(nodes.cached(1, b"a"), None);
        nodes.unpin(7);
        nodes.entered(1, b"b", &entry(8, u64::MAX / 4), Noted::default());
        nodes.unpin(8);
        assert_eq!(nodes.renamed(1, b"b", 1, b"a"), [(7, 1)]);
        assert_eq!(nodes.cached(1, b"a"), Some(Leads::To(8, 0)));
        nodes.unpin(8);
        nodes.entered(1, b"c", &entry(9, 60), Noted::default());
        nodes.unpin(9);
        let mut gone = nodes.entered(1, b"d", &entry(10, 60), Noted::default());
        gone.sort_unstable();
        assert_eq!(gone, [(8, 1), (9, 1)], "the limit was reached");
    }

    #[test]
    fn with_a_table_all_holds_as_long_as_the_counters_stand() {
        let table = virtiofs_coherence::Table::anonymous(64).unwrap();
        let view = Arc::new(View::new(table.fd()).unwrap());
        let mut nodes = Nodes::new(100, Some(view));
        let attr = |size| Attr { size, mode: libc::S_IFREG, ..Attr::default() };
        let out = |attr| AttrOut { attr, ..AttrOut::default() };
        let noted = nodes.note(1);
        nodes.entered(
            1,
            b"d",
            &EntryOut { attr: Attr { mode: libc::S_IFDIR, ..Attr::default() }, ..entry(66, 0) },
            noted,
        );
        let noted = nodes.note(66);
        nodes.entered(66, b"f", &EntryOut { attr: attr(0), ..entry(67, 0) }, noted);
        assert!(nodes.walk(b"/d/f", true).is_none(), "nobody told the attributes");
        nodes.told(67, &out(attr(9)), nodes.note(67));
        assert_eq!(nodes.walk(b"/d//./f", true).unwrap().unwrap().size, 9);
        nodes.absent(66, b"none", None, nodes.note(66));
        assert!(matches!(nodes.walk(b"d/none", true), Some(Err(Error::Errno(libc::ENOENT)))));
        assert!(nodes.walk(b"d/f/x", true).is_none() && nodes.walk(b"d/../d/f", true).is_none());
        table.bump(67 % 64);
        assert_eq!((nodes.attributes(67), nodes.cached(66, b"f")), (None, Some(Leads::To(67, libc::S_IFREG))));
        nodes.told(67, &out(attr(10)), nodes.note(67));
        table.bump(66 % 64);
        assert!(nodes.walk(b"d/none", true).is_none() && nodes.walk(b"d/f", true).is_none());
        assert_eq!(nodes.attributes(67).unwrap().size, 10);
        assert!(matches!(nodes.cached(1, b"d"), Some(Leads::To(66, _))));
        nodes.told(1, &out(attr(3)), nodes.note(1));
        assert_eq!(nodes.walk(b"/", true).unwrap().unwrap().size, 3);
        table.bump_all();
        assert!(nodes.walk(b"", true).is_none() && nodes.cached(1, b"d").is_none());
    }

    #[test]
    fn with_a_table_a_name_that_moves_is_asked_for_anew() {
        let table = virtiofs_coherence::Table::anonymous(64).unwrap();
        let mut nodes = Nodes::new(100, Some(Arc::new(View::new(table.fd()).unwrap())));
        for (name, noted) in [(b"file", nodes.note(66)), (b"gone", nodes.note(66))] {
            assert_eq!(nodes.entered(66, name, &entry(67, 0), noted), []);
            assert_eq!(nodes.unpin(67), None);
        }
        nodes.absent(66, b"gone", None, nodes.note(66));
        // Nothing was changed yet, so the counters of both directories are equal.
        assert_eq!(nodes.note(66), nodes.note(68));
        assert_eq!(nodes.renamed(66, b"file", 68, b"a"), [(67, 2)]);
        assert_eq!(nodes.renamed(66, b"gone", 68, b"b"), []);
        assert_eq!((nodes.cached(68, b"a"), nodes.cached(68, b"b")), (None, None));
        assert_eq!((nodes.len(), nodes.names), (0, 0));
    }

    #[test]
    fn with_notifications_all_holds_until_it_is_told_to_be_old() {
        let mut nodes = Nodes::new(100, None);
        let changes = Arc::new(AtomicU64::new(0));
        nodes.listen(Arc::clone(&changes));
        let told = |size| AttrOut {
            attr_valid: 60,
            attr: Attr { size, mode: libc::S_IFREG, ..Attr::default() },
            ..AttrOut::default()
        };
        nodes.entered(1, b"a", &entry(7, 60), nodes.note(1));
        nodes.told(7, &told(3), nodes.note(7));
        nodes.absent(1, b"none", Some(&entry(0, 60)), nodes.note(1));
        nodes.absent(1, b"forbidden to say", None, nodes.note(1));
        assert_eq!(nodes.walk(b"a", true).unwrap().unwrap().size, 3);
        assert!(matches!(nodes.walk(b"none", true), Some(Err(Error::Errno(libc::ENOENT)))));
        assert!(nodes.walk(b"forbidden to say", true).is_none());
        // Another node's news, but an answer is on its way.
        let noted = nodes.note(7);
        assert_eq!(nodes.heard(&Notice::Inode { node: 9, offset: 0, len: 0 }), []);
        assert_eq!(nodes.attributes(7).unwrap().size, 3);
        nodes.told(7, &told(4), noted);
        assert!(nodes.attributes(7).is_none());
        nodes.told(7, &told(5), nodes.note(7));
        assert_eq!(nodes.attributes(7).unwrap().size, 5);
        changes.fetch_add(1, Ordering::Release);
        assert!(nodes.attributes(7).is_none(), "this guest itself changed something");
        nodes.told(7, &told(6), nodes.note(7));
        nodes.heard(&Notice::Inode { node: 7, offset: -1, len: 0 });
        assert!(nodes.attributes(7).is_none());
        nodes.heard(&Notice::Entry { parent: 1, name: b"none".to_vec() });
        assert_eq!((nodes.leads(1, b"none"), nodes.leads(1, b"a")), (None, Some(Leads::To(7, 0))));
        nodes.heard(&Notice::Epoch);
        assert_eq!(nodes.leads(1, b"a"), None);
        nodes.unpin(7);
        assert_eq!(nodes.heard(&Notice::Delete { parent: 1, child: 7, name: b"a".to_vec() }), [(7, 1)]);
    }
}
