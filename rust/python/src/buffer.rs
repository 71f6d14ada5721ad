// UNSAFETY: the buffer protocol hands out a pointer and a length.
#![allow(unsafe_code)]
//! The bytes of any object that has some.

use pyo3::buffer::PyUntypedBuffer;
use pyo3::exceptions::PyBufferError;
use pyo3::prelude::*;
use pyo3::types::PyBytes;

/// Gives the bytes of `object` to `take`, without a copy of them.
pub(crate) fn with_bytes<R>(object: &Bound<'_, PyAny>, take: impl FnOnce(&[u8]) -> R) -> PyResult<R> {
    if let Ok(bytes) = object.cast::<PyBytes>() {
        return Ok(take(bytes.as_bytes()));
    }
    let buffer = PyUntypedBuffer::get(object)?;
    if !buffer.is_c_contiguous() {
        return Err(PyBufferError::new_err("the buffer is not contiguous"));
    }
    if buffer.len_bytes() == 0 {
        return Ok(take(&[]));
    }
    // We are attached to the interpreter throughout, so no Python code changes the bytes meanwhile; were they shared with another
    // process, as a mapping is, the copy that `take` makes gets some bytes or others, and nothing is derived from them.
    // SAFETY: a contiguous buffer has `len_bytes` readable bytes at `buf_ptr`, which its exporter keeps in place until the buffer is
    // released, after this use; who might change them is said above.
    Ok(take(unsafe { std::slice::from_raw_parts(buffer.buf_ptr().cast::<u8>(), buffer.len_bytes()) }))
}
