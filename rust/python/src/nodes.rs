//! Which object a node id means.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::Mutex;
use pyo3::prelude::*;
use pyo3::types::{PyInt, PyString};
use virtiofs_coherence::{Table, slot_of};
use virtiofs_fuse::Error;
use virtiofs_fuse::wire::ROOT_ID;
use virtiofs_hostdir::Bounds;

/// What makes two objects one node: that they are one object, or, for strings and numbers, that they are equal.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Key {
    Object(usize),
    Text(String),
    Number(i128),
}

impl Key {
    fn of(object: &Bound<'_, PyAny>) -> Key {
        if let Ok(text) = object.cast_exact::<PyString>() {
            // Lone surrogates have no UTF-8; such a name is its own representation.
            return Key::Text(text.to_str().map_or_else(|_| format!("\0{text:?}"), str::to_owned));
        }
        match object.cast_exact::<PyInt>().map(|number| number.extract()) {
            Ok(Ok(number)) => Key::Number(number),
            // The table holds on to the object, so its address is its own for as long as it is a key.
            _ => Key::Object(object.as_ptr() as usize),
        }
    }

    /// What the slot of a version table follows from: for strings and numbers the same in all processes.
    fn mixed(&self) -> u64 {
        match self {
            Key::Object(address) => slot_of(u64::MAX, *address as u64),
            Key::Number(number) => slot_of((*number >> 64) as u64, *number as u64),
            Key::Text(text) => text.as_bytes().chunks(8).fold(slot_of(0, text.len() as u64), |mixed, bytes| {
                slot_of(mixed, bytes.iter().fold(0, |word, byte| word << 8 | u64::from(*byte)))
            }),
        }
    }
}

/// Says in a version table that what a node is has changed, for whoever remembers something of it, in all sessions.
pub(crate) fn changed(table: &Table, object: &Bound<'_, PyAny>) {
    table.bump(Key::of(object).mixed() & (table.slots() - 1));
}

/// The nodes of one guest. No method runs code of Python's, but for those that drop objects, which happens outside of the lock.
pub(crate) struct Nodes {
    state: Mutex<State>,
    next: AtomicU64,
    root: Py<PyAny>,
    /// Where changes are told: node ids carry their slots in their low bits then.
    table: Option<Arc<Table>>,
    /// Whether somebody wants the objects of nodes that are gone.
    keeps_gone: bool,
    bounds: Arc<Bounds>,
}

#[derive(Default)]
struct State {
    by_id: HashMap<u64, Node>,
    by_key: HashMap<Key, u64>,
    gone: Vec<Py<PyAny>>,
}

struct Node {
    object: Py<PyAny>,
    key: Key,
    nlookup: u64,
    directory: bool,
}

impl Nodes {
    pub(crate) fn new(root: Py<PyAny>, keeps_gone: bool, table: Option<Arc<Table>>, bounds: Arc<Bounds>) -> Nodes {
        Nodes { state: Mutex::default(), next: AtomicU64::new(ROOT_ID + 1), root, table, keeps_gone, bounds }
    }

    /// After a change of a node by a guest, and before its reply.
    pub(crate) fn moved(&self, id: u64) {
        if let Some(table) = &self.table {
            // The root's id is its slot as well.
            table.bump(id & (table.slots() - 1));
        }
    }

    /// Calls `each` with every node and whether it is a directory, if their ids carry slots.
    pub(crate) fn known(&self, each: &mut dyn FnMut(u64, bool)) {
        if self.table.is_some() {
            each(ROOT_ID, true);
            self.state.lock().by_id.iter().for_each(|(id, node)| each(*id, node.directory));
        }
    }

    /// The object of a node.
    pub(crate) fn get(&self, py: Python<'_>, id: u64) -> Option<Py<PyAny>> {
        match id {
            ROOT_ID => Some(self.root.clone_ref(py)),
            _ => self.state.lock().by_id.get(&id).map(|node| node.object.clone_ref(py)),
        }
    }

    /// Refuses a node more than the guest may have.
    pub(crate) fn room(&self) -> Result<(), Error> {
        self.bounds.room_for_node(self.state.lock().by_id.len())
    }

    /// The node of an object, a directory or not, counted once more. The root is no entry of any directory, so it has none.
    pub(crate) fn enter(&self, object: &Bound<'_, PyAny>, directory: bool) -> Result<Option<u64>, Error> {
        if object.is(&self.root) {
            return Ok(None);
        }
        let key = Key::of(object);
        let state = &mut *self.state.lock();
        if let Some(&id) = state.by_key.get(&key)
            && let Some(node) = state.by_id.get_mut(&id)
        {
            node.nlookup = node.nlookup.saturating_add(1);
            return Ok(Some(id));
        }
        self.bounds.room_for_node(state.by_id.len())?;
        // A number is given once, so every node is of generation 0 for ever.
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        let id = self.table.as_ref().map_or(number, |table| number * table.slots() + key.mixed() % table.slots());
        state.by_key.insert(key.clone(), id);
        state.by_id.insert(id, Node { object: object.clone().unbind(), key, nlookup: 1, directory });
        Ok(Some(id))
    }

    /// How many slots the version table has that node ids carry; 0 for none.
    pub(crate) fn slots(&self) -> u64 {
        self.table.as_ref().map_or(0, |table| table.slots())
    }

    /// What the next id is made of.
    pub(crate) fn next(&self) -> u64 {
        self.next.load(Ordering::Relaxed)
    }

    /// No id below that of `next` is given any more.
    pub(crate) fn go_on_from(&self, next: u64) {
        self.next.fetch_max(next, Ordering::Relaxed);
    }

    /// All nodes but the root: id, lookups, whether it is a directory, object.
    pub(crate) fn all(&self, py: Python<'_>) -> Vec<(u64, u64, bool, Py<PyAny>)> {
        let state = self.state.lock();
        let all = state.by_id.iter().map(|(id, node)| (*id, node.nlookup, node.directory, node.object.clone_ref(py)));
        let mut all: Vec<_> = all.collect();
        all.sort_by_key(|node| node.0);
        all
    }

    /// The node `id` of a session that goes on. Two nodes of one object cannot be, nor one whose slot another process made of an address.
    pub(crate) fn enter_again(
        &self,
        id: u64,
        nlookup: u64,
        directory: bool,
        object: &Bound<'_, PyAny>,
    ) -> Result<(), Error> {
        let key = Key::of(object);
        let slotted = self.table.as_ref().is_none_or(|table| key.mixed() % table.slots() == id % table.slots());
        let state = &mut *self.state.lock();
        if object.is(&self.root) || !slotted || state.by_key.contains_key(&key) {
            return Err(Error::Errno(libc::ESTALE));
        }
        self.bounds.room_for_node(state.by_id.len())?;
        state.by_key.insert(key.clone(), id);
        state.by_id.insert(id, Node { object: object.clone().unbind(), key, nlookup, directory });
        Ok(())
    }

    /// Says that whatever anybody remembers of any node is to be asked again.
    pub(crate) fn all_moved(&self) {
        if let Some(table) = &self.table {
            table.bump_all();
        }
    }

    /// Takes lookups back, and answers whether the node is gone.
    pub(crate) fn forget(&self, id: u64, nlookup: u64) -> bool {
        let mut state = self.state.lock();
        let Some(node) = state.by_id.get_mut(&id) else { return false };
        node.nlookup = node.nlookup.saturating_sub(nlookup);
        if node.nlookup > 0 {
            return false;
        }
        let node = state.by_id.remove(&id);
        if let Some(node) = &node {
            state.by_key.remove(&node.key);
        }
        if self.keeps_gone {
            state.gone.extend(node.map(|node| node.object));
            return true;
        }
        drop(state);
        drop(node);
        true
    }

    /// The objects of nodes that are gone since this was asked last.
    pub(crate) fn gone(&self) -> Vec<Py<PyAny>> {
        std::mem::take(&mut self.state.lock().gone)
    }

    /// Forgets all nodes but the root.
    pub(crate) fn clear(&self) {
        let state = std::mem::take(&mut *self.state.lock());
        drop(state);
        self.bounds.forget();
    }

    /// How many there are, the root included.
    pub(crate) fn len(&self) -> usize {
        1 + self.state.lock().by_id.len()
    }
}
