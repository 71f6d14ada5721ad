//! What the lane and the operation that it handles say to each other.
//!
//! A handler is called in two turns. In the first the operation is decoded and leaves the call that is to be made here; then nothing of the
//! request is borrowed any more, and the lane makes the call, for as long as it takes. In the second the operation is decoded again, finds
//! the handler's answer here, and replies. Decoding and replying so stay one piece of code for native and for Python's operations.

use std::cell::RefCell;

use pyo3::prelude::*;
use pyo3::types::PyTuple;
use virtiofs_fuse::Opcode;

/// What the thread that handles a request is at.
pub(crate) enum Turn {
    /// It is no lane.
    Elsewhere,
    /// The first turn.
    Ask,
    /// The first turn has this to call.
    Call(Call),
    /// The second turn.
    Answer(Opcode, PyResult<Py<PyAny>>),
}

/// A call to be made.
pub(crate) struct Call {
    pub(crate) opcode: Opcode,
    pub(crate) callable: Py<PyAny>,
    pub(crate) arguments: Py<PyTuple>,
    /// What it returns is to be awaited.
    pub(crate) awaits: bool,
}

thread_local! {
    static TURN: RefCell<Turn> = const { RefCell::new(Turn::Elsewhere) };
}

/// Sets what the thread is at, and answers what it was at.
pub(crate) fn replace(turn: Turn) -> Turn {
    TURN.replace(turn)
}
