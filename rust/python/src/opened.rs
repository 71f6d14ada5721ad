//! What lies behind the handles that Python's opens gave.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::Mutex;
use pyo3::prelude::*;

use crate::types::Entry;

/// Set in the numbers of handles that are no file of the native file system's.
pub(crate) const PYTHON: u64 = 1 << 63;

/// Handles of files and directories. Their numbers are never given twice.
#[derive(Default)]
pub(crate) struct Opened {
    next: AtomicU64,
    objects: Mutex<HashMap<u64, Held>>,
    listings: Mutex<HashMap<u64, Arc<Listing>>>,
}

/// What a handle stands for.
struct Held {
    node: u64,
    directory: bool,
    object: Py<PyAny>,
}

/// A handle that has an object: its number; node, whether it is a directory, object.
pub(crate) type Numbered = (u64, (u64, bool, Py<PyAny>));

/// A directory's entries as they were when a guest began to list it.
pub(crate) type Listing = Vec<Listed>;

/// One of them.
pub(crate) struct Listed {
    pub(crate) name: Vec<u8>,
    pub(crate) ino: u64,
    /// A `DT_` value.
    pub(crate) kind: u32,
    pub(crate) entry: Option<Py<Entry>>,
}

impl Opened {
    /// A new number.
    pub(crate) fn number(&self) -> u64 {
        self.next.fetch_add(1, Ordering::Relaxed) | PYTHON
    }

    /// What the next number is made of.
    pub(crate) fn next(&self) -> u64 {
        self.next.load(Ordering::Relaxed)
    }

    /// No number below `next` is given any more.
    pub(crate) fn go_on_from(&self, next: u64) {
        self.next.fetch_max(next, Ordering::Relaxed);
    }

    /// Keeps the object of a handle of a node.
    pub(crate) fn keep(&self, number: u64, node: u64, directory: bool, object: Py<PyAny>) {
        self.objects.lock().insert(number, Held { node, directory, object });
    }

    /// All handles that have objects.
    pub(crate) fn all(&self, py: Python<'_>) -> Vec<Numbered> {
        let objects = self.objects.lock();
        let all =
            objects.iter().map(|(number, held)| (*number, (held.node, held.directory, held.object.clone_ref(py))));
        all.collect()
    }

    /// The object of a handle; None where it has none.
    pub(crate) fn object(&self, py: Python<'_>, number: u64) -> Option<Py<PyAny>> {
        self.objects.lock().get(&number).map(|held| held.object.clone_ref(py))
    }

    /// Keeps the listing of a directory's handle.
    pub(crate) fn list(&self, number: u64, listing: Arc<Listing>) {
        let before = self.listings.lock().insert(number, listing);
        drop(before);
    }

    /// The listing of a directory's handle.
    pub(crate) fn listing(&self, number: u64) -> Option<Arc<Listing>> {
        self.listings.lock().get(&number).cloned()
    }

    /// Lets go of what lies behind a handle.
    pub(crate) fn remove(&self, number: u64) {
        let object = self.objects.lock().remove(&number);
        let listing = self.listings.lock().remove(&number);
        drop((object, listing));
    }

    /// Lets go of everything.
    pub(crate) fn clear(&self) {
        let objects = std::mem::take(&mut *self.objects.lock());
        let listings = std::mem::take(&mut *self.listings.lock());
        drop((objects, listings));
    }

    /// Whether something is kept for a handle.
    pub(crate) fn knows(&self, number: u64) -> bool {
        self.objects.lock().contains_key(&number) || self.listings.lock().contains_key(&number)
    }

    /// How many objects there are, or listings, if those are more.
    pub(crate) fn most(&self) -> usize {
        self.len().max(self.listings.lock().len())
    }

    /// How many handles have an object.
    pub(crate) fn len(&self) -> usize {
        self.objects.lock().len()
    }
}
