//! Values whose end may wait for a server.

use std::ops::Deref;

use pyo3::prelude::*;

/// Dropped without the interpreter: what it waits for may need that, as a Python file system in this very process does.
pub(crate) struct Detached<T: Send>(Option<T>);

impl<T: Send> Detached<T> {
    pub(crate) fn new(value: T) -> Detached<T> {
        Detached(Some(value))
    }
}

impl<T: Send> Drop for Detached<T> {
    fn drop(&mut self) {
        let value = &mut self.0;
        // What is left after this, since the interpreter is going away, is dropped as it is.
        Python::try_attach(|py| py.detach(|| drop(value.take())));
    }
}

impl<T: Send> Deref for Detached<T> {
    type Target = T;

    fn deref(&self) -> &T {
        match &self.0 {
            Some(value) => value,
            None => unreachable!("it is taken by its drop alone"),
        }
    }
}
