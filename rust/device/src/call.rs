//! How the device interrupts its driver.

use std::fmt;
use std::sync::Arc;

use virtiofs_virtqueue::Event;

/// A way to the driver. Clones lead to the same one.
#[derive(Clone)]
pub enum Call {
    /// A descriptor that the driver, or whoever delivers its interrupts, waits for.
    Event(Arc<Event>),
    /// A function. The queue waits for it, so it must be quick and must not wait for anybody.
    Function(Arc<dyn Fn() + Send + Sync>),
}

impl Call {
    /// Interrupts the driver.
    pub(crate) fn raise(&self) {
        match self {
            Call::Event(event) => event.signal(),
            Call::Function(function) => function(),
        }
    }
}

impl From<Event> for Call {
    fn from(event: Event) -> Call {
        Call::Event(Arc::new(event))
    }
}

impl fmt::Debug for Call {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Call::Event(event) => f.debug_tuple("Event").field(event).finish(),
            Call::Function(_) => f.write_str("Function"),
        }
    }
}
