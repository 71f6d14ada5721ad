//! Which nodes the guest holds, how often each was counted, under which names it knows them, and what it remembers of them: the
//! dentry and inode caches of a kernel, reduced to what FORGET depends on.
//!
//! A name holds for as long as the server said. With a version table it holds as long as its directory's counter stands, and then an absent
//! name and attributes are remembered as well.

use std::sync::Arc;
use std::time::{Duration, Instant};

use hashbrown::HashMap;
use virtiofs_coherence::{Version, View};
use virtiofs_fuse::wire::{Attr, EntryOut, ROOT_ID};

use crate::{Error, Result};

/// A node and how many counts of it go back to the server.
pub(crate) type Forget = (u64, u64);
/// What a version table said of a node before the question; `None` without one.
pub(crate) type Noted = Option<Version>;

#[derive(Debug, Default)]
struct Node {
    nlookup: u64,
    /// Calls and open files that use it right now.
    pins: u32,
    /// Names that lead to it.
    names: u32,
    attr: Option<(Attr, Version)>,
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
    /// No end: longer than the clock can tell.
    Until(Option<Instant>),
    /// As long as the directory's counter stands.
    While(Version),
}

/// The table. Methods that may let nodes go answer what must be sent as FORGET.
#[derive(Debug, Default)]
pub(crate) struct Nodes {
    nodes: HashMap<u64, Node>,
    root: Option<(Attr, Version)>,
    directories: HashMap<u64, HashMap<Box<[u8]>, Name>>,
    names: usize,
    limit: usize,
    versions: Option<Arc<View>>,
}

impl Nodes {
    pub(crate) fn new(limit: usize, versions: Option<Arc<View>>) -> Nodes {
        Nodes { limit, versions, ..Nodes::default() }
    }

    /// Before a question about a node.
    pub(crate) fn note(&self, nodeid: u64) -> Noted {
        self.versions.as_ref().map(|view| view.note(nodeid))
    }

    fn stands(&self, nodeid: u64, version: Version) -> bool {
        self.versions.as_ref().is_some_and(|view| view.stands(nodeid, version))
    }

    /// The server answered `entry` for a name and counted its node once. The node is pinned once. `noted` of the directory.
    pub(crate) fn entered(&mut self, parent: u64, name: &[u8], entry: &EntryOut, noted: Noted) -> Vec<Forget> {
        let mut gone = self.forget_name(parent, name);
        gone.extend(self.make_room());
        let holds = noted.map_or_else(|| until(entry.entry_valid, entry.entry_valid_nsec), Holds::While);
        let node = self.nodes.entry(entry.nodeid).or_default();
        node.nlookup += 1;
        node.pins += 1;
        node.names += 1;
        self.insert(parent, name, Name { leads: Leads::To(entry.nodeid, entry.attr.mode), holds });
        // A node that was let go just now and came back keeps its counts: the FORGET carries only the earlier ones.
        gone
    }

    /// The server knows no such name. Remembered with a version table alone.
    pub(crate) fn absent(&mut self, parent: u64, name: &[u8], noted: Noted) -> Vec<Forget> {
        let mut gone = self.forget_name(parent, name);
        if let Some(version) = noted {
            gone.extend(self.make_room());
            self.insert(parent, name, Name { leads: Leads::Nowhere, holds: Holds::While(version) });
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
            Holds::Until(until) => until.is_none_or(|until| until > Instant::now()),
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
        let known = if nodeid == ROOT_ID { self.root } else { self.nodes.get(&nodeid)?.attr };
        known.filter(|(_, version)| self.stands(nodeid, *version)).map(|(attr, _)| attr)
    }

    /// The server told the attributes of a node after `noted`.
    pub(crate) fn told(&mut self, nodeid: u64, attr: Attr, noted: Noted) {
        let told = noted.map(|version| (attr, version));
        if nodeid == ROOT_ID {
            self.root = told;
        } else if let Some(node) = self.nodes.get_mut(&nodeid) {
            node.attr = told;
        }
    }

    /// Attributes by path, if all of the way is known and holds: without a request, a system call or an allocation.
    pub(crate) fn walk(&self, path: &[u8], follow: bool) -> Option<Result<Attr>> {
        self.versions.as_ref()?;
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

fn until(seconds: u64, nanoseconds: u32) -> Holds {
    let valid = Duration::from_secs(seconds) + Duration::from_nanos(u64::from(nanoseconds));
    Holds::Until(Instant::now().checked_add(valid))
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
        nodes.entered(1, b"a", &entry(7, 60), None);
        nodes.entered(1, b"a", &entry(7, 60), None);
        nodes.entered(1, b"hard link", &entry(7, 60), None);
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
        nodes.entered(1, b"a", &entry(7, 60), None);
        assert_eq!(nodes.clear(), []);
        assert_eq!(nodes.unpin(7), Some((7, 1)));
    }

    #[test]
    fn names_expire_move_and_are_replaced() {
        let mut nodes = Nodes::new(2, None);
        nodes.entered(1, b"a", &entry(7, 0), None);
        assert_eq!(nodes.cached(1, b"a"), None);
        nodes.unpin(7);
        nodes.entered(1, b"b", &entry(8, u64::MAX / 4), None);
        nodes.unpin(8);
        assert_eq!(nodes.renamed(1, b"b", 1, b"a"), [(7, 1)]);
        assert_eq!(nodes.cached(1, b"a"), Some(Leads::To(8, 0)));
        nodes.unpin(8);
        nodes.entered(1, b"c", &entry(9, 60), None);
        nodes.unpin(9);
        let mut gone = nodes.entered(1, b"d", &entry(10, 60), None);
        gone.sort_unstable();
        assert_eq!(gone, [(8, 1), (9, 1)], "the limit was reached");
    }

    #[test]
    fn with_a_table_all_holds_as_long_as_the_counters_stand() {
        let table = virtiofs_coherence::Table::anonymous(64).unwrap();
        let view = Arc::new(View::new(table.fd()).unwrap());
        let mut nodes = Nodes::new(100, Some(view));
        let attr = |size| Attr { size, mode: libc::S_IFREG, ..Attr::default() };
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
        nodes.told(67, attr(9), nodes.note(67));
        assert_eq!(nodes.walk(b"/d//./f", true).unwrap().unwrap().size, 9);
        nodes.absent(66, b"none", nodes.note(66));
        assert!(matches!(nodes.walk(b"d/none", true), Some(Err(Error::Errno(libc::ENOENT)))));
        assert!(nodes.walk(b"d/f/x", true).is_none() && nodes.walk(b"d/../d/f", true).is_none());
        table.bump(67 % 64);
        assert_eq!((nodes.attributes(67), nodes.cached(66, b"f")), (None, Some(Leads::To(67, libc::S_IFREG))));
        nodes.told(67, attr(10), nodes.note(67));
        table.bump(66 % 64);
        assert!(nodes.walk(b"d/none", true).is_none() && nodes.walk(b"d/f", true).is_none());
        assert_eq!(nodes.attributes(67).unwrap().size, 10);
        assert!(matches!(nodes.cached(1, b"d"), Some(Leads::To(66, _))));
        nodes.told(1, attr(3), nodes.note(1));
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
        nodes.absent(66, b"gone", nodes.note(66));
        // Nothing was changed yet, so the counters of both directories are equal.
        assert_eq!(nodes.note(66), nodes.note(68));
        assert_eq!(nodes.renamed(66, b"file", 68, b"a"), [(67, 2)]);
        assert_eq!(nodes.renamed(66, b"gone", 68, b"b"), []);
        assert_eq!((nodes.cached(68, b"a"), nodes.cached(68, b"b")), (None, None));
        assert_eq!((nodes.len(), nodes.names), (0, 0));
    }
}
