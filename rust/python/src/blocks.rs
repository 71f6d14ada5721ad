//! Which blocks of a cached file are there, as Python tells the native side.

use std::sync::Arc;

use pyo3::exceptions::{PyIndexError, PyValueError};
use pyo3::prelude::*;
use rustix::fs::FallocateFlags;

use crate::fd;

/// Most blocks of one file: their bits take 256 MiB.
const COUNT_MAX: u64 = 1 << 30;

/// Which blocks of a file are there. `Open(backing=fd, blocks=...)` reads those natively; a read that takes others comes to
/// `read`, and a write to `write` before `finish`.
#[pyclass(frozen, module = "virtiofs._core")]
pub(crate) struct Blocks(Arc<virtiofs_hostdir::Blocks>);

impl Blocks {
    pub(crate) fn shared(&self) -> Arc<virtiofs_hostdir::Blocks> {
        Arc::clone(&self.0)
    }

    fn known(&self, block: u64) -> PyResult<u64> {
        let count = self.0.count();
        if block < count {
            return Ok(block);
        }
        Err(PyIndexError::new_err(format!("there is no block {block}: the file has {count}")))
    }
}

/// Takes a range of an open file away: it reads as zeros then, and takes no room.
#[pyfunction]
pub(crate) fn punch_hole(py: Python<'_>, fd: i32, offset: u64, size: u64) -> PyResult<()> {
    let file = fd::duplicate(fd)?;
    let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
    py.detach(|| rustix::fs::fallocate(file, flags, offset, size)).map_err(|errno| std::io::Error::from(errno).into())
}

#[pymethods]
impl Blocks {
    #[new]
    fn new(count: u64, size: u64) -> PyResult<Blocks> {
        if count > COUNT_MAX {
            return Err(PyValueError::new_err(format!(
                "a file has up to {COUNT_MAX} blocks, not {count}: make them larger"
            )));
        }
        let blocks = virtiofs_hostdir::Blocks::new(count, size);
        let blocks = blocks.ok_or_else(|| PyValueError::new_err("a block has 1 byte or more, not 0"))?;
        Ok(Blocks(Arc::new(blocks)))
    }

    /// A block is there from now on. Write its bytes to the file before.
    fn add(&self, block: u64) -> PyResult<()> {
        self.0.add(self.known(block)?);
        Ok(())
    }

    /// A block is there no more. Take its bytes away afterwards (`punch_hole`).
    fn discard(&self, block: u64) -> PyResult<()> {
        self.0.discard(self.known(block)?);
        Ok(())
    }

    /// Whether a block was read natively since this was asked last.
    fn was_read(&self, block: u64) -> PyResult<bool> {
        Ok(self.0.was_read(self.known(block)?))
    }

    /// Everything is there, and nothing will be taken away: the file is read and written natively from now on.
    fn finish(&self) {
        self.0.finish();
    }

    /// Whether `finish` was called.
    #[getter]
    fn whole(&self) -> bool {
        self.0.is_whole()
    }

    fn __contains__(&self, block: u64) -> bool {
        self.0.has(block)
    }

    fn __len__(&self) -> usize {
        // Bounded when it was made.
        self.0.count() as usize
    }
}
