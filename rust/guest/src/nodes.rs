//! Which nodes the guest holds, how often each was counted, and under which names it knows them: the dentry cache of a kernel,
//! reduced to what FORGET depends on.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use virtiofs_fuse::wire::{EntryOut, ROOT_ID};

/// A node and how many counts of it go back to the server.
pub(crate) type Forget = (u64, u64);

#[derive(Debug, Default)]
struct Node {
    nlookup: u64,
    /// Calls and open files that use it right now.
    pins: u32,
    /// Names that lead to it.
    names: u32,
}

#[derive(Clone, Copy, Debug)]
struct Name {
    nodeid: u64,
    mode: u32,
    until: Option<Instant>,
}

/// The table. Methods that may let nodes go answer what must be sent as FORGET.
#[derive(Debug, Default)]
pub(crate) struct Nodes {
    nodes: HashMap<u64, Node>,
    names: HashMap<(u64, Vec<u8>), Name>,
    limit: usize,
}

impl Nodes {
    pub(crate) fn new(limit: usize) -> Nodes {
        Nodes { limit, ..Nodes::default() }
    }

    /// The server answered `entry` for a name and counted its node once. The node is pinned once.
    pub(crate) fn entered(&mut self, parent: u64, name: &[u8], entry: &EntryOut) -> Vec<Forget> {
        let mut gone = self.forget_name(parent, name);
        if self.names.len() >= self.limit {
            gone.extend(self.clear());
        }
        let valid = Duration::from_secs(entry.entry_valid) + Duration::from_nanos(u64::from(entry.entry_valid_nsec));
        let until = Instant::now().checked_add(valid);
        let node = self.nodes.entry(entry.nodeid).or_default();
        node.nlookup += 1;
        node.pins += 1;
        node.names += 1;
        let key = (parent, name.to_vec());
        self.names.insert(key, Name { nodeid: entry.nodeid, mode: entry.attr.mode, until });
        // A node that was let go just now and came back keeps its counts: the FORGET carries only the earlier ones.
        gone
    }

    /// The server counted a node that got no name here (TMPFILE). It is pinned once.
    pub(crate) fn counted(&mut self, nodeid: u64) {
        let node = self.nodes.entry(nodeid).or_default();
        node.nlookup += 1;
        node.pins += 1;
    }

    /// Node and mode of a name while the server's word for it holds. The node is pinned once.
    pub(crate) fn cached(&mut self, parent: u64, name: &[u8]) -> Option<(u64, u32)> {
        let found = *self.names.get(&(parent, name.to_vec()))?;
        // No end: longer than the clock can tell.
        if found.until.is_some_and(|until| until <= Instant::now()) {
            return None;
        }
        self.pin(found.nodeid);
        Some((found.nodeid, found.mode))
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
        let Some(old) = self.names.remove(&(parent, name.to_vec())) else { return Vec::new() };
        if let Some(node) = self.nodes.get_mut(&old.nodeid) {
            node.names = node.names.saturating_sub(1);
        }
        self.settle(old.nodeid).into_iter().collect()
    }

    /// A name was given to what another name meant.
    pub(crate) fn renamed(&mut self, parent: u64, name: &[u8], newparent: u64, newname: &[u8]) -> Vec<Forget> {
        let gone = self.forget_name(newparent, newname);
        if let Some(moved) = self.names.remove(&(parent, name.to_vec())) {
            self.names.insert((newparent, newname.to_vec()), moved);
        }
        gone
    }

    /// Drops all names, and with them every node that nobody uses right now.
    pub(crate) fn clear(&mut self) -> Vec<Forget> {
        self.names.clear();
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

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(nodeid: u64, valid: u64) -> EntryOut {
        EntryOut { nodeid, entry_valid: valid, ..EntryOut::default() }
    }

    #[test]
    fn counts_go_back_when_the_last_name_and_the_last_user_are_gone() {
        let mut nodes = Nodes::new(100);
        nodes.entered(1, b"a", &entry(7, 60));
        nodes.entered(1, b"a", &entry(7, 60));
        nodes.entered(1, b"hard link", &entry(7, 60));
        assert_eq!(nodes.cached(1, b"a"), Some((7, 0)));
        for _ in 0..4 {
            assert_eq!(nodes.unpin(7), None, "names are left");
        }
        assert_eq!(nodes.forget_name(1, b"a"), []);
        assert_eq!(nodes.forget_name(1, b"hard link"), [(7, 3)]);
        assert_eq!(nodes.len(), 0);
    }

    #[test]
    fn a_node_in_use_outlives_its_name() {
        let mut nodes = Nodes::new(100);
        nodes.entered(1, b"a", &entry(7, 60));
        assert_eq!(nodes.clear(), []);
        assert_eq!(nodes.unpin(7), Some((7, 1)));
    }

    #[test]
    fn names_expire_move_and_are_replaced() {
        let mut nodes = Nodes::new(2);
        nodes.entered(1, b"a", &entry(7, 0));
        assert_eq!(nodes.cached(1, b"a"), None);
        nodes.unpin(7);
        nodes.entered(1, b"b", &entry(8, u64::MAX / 4));
        nodes.unpin(8);
        assert_eq!(nodes.renamed(1, b"b", 1, b"a"), [(7, 1)]);
        assert_eq!(nodes.cached(1, b"a"), Some((8, 0)));
        nodes.unpin(8);
        nodes.entered(1, b"c", &entry(9, 60));
        nodes.unpin(9);
        let mut gone = nodes.entered(1, b"d", &entry(10, 60));
        gone.sort_unstable();
        assert_eq!(gone, [(8, 1), (9, 1)], "the limit was reached");
    }
}
