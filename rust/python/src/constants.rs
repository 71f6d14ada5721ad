//! Names of the protocol's flags, for decisions that are made in Python.

use pyo3::prelude::*;
use pyo3::types::PyDict;
use virtiofs_fuse::wire::{fopen, init};

macro_rules! table {
    ($py:expr, $module:ident: $($name:ident)*) => {{
        let table = PyDict::new($py);
        $(table.set_item(stringify!($name), $module::$name)?;)*
        table
    }};
}

pub(crate) fn add(module: &Bound<'_, PyModule>) -> PyResult<()> {
    let py = module.py();
    module.add("INIT", table!(py, init:
        ASYNC_READ POSIX_LOCKS ATOMIC_O_TRUNC EXPORT_SUPPORT BIG_WRITES DONT_MASK FLOCK_LOCKS HAS_IOCTL_DIR AUTO_INVAL_DATA
        DO_READDIRPLUS READDIRPLUS_AUTO ASYNC_DIO WRITEBACK_CACHE NO_OPEN_SUPPORT PARALLEL_DIROPS HANDLE_KILLPRIV POSIX_ACL
        ABORT_ERROR MAX_PAGES CACHE_SYMLINKS NO_OPENDIR_SUPPORT EXPLICIT_INVAL_DATA MAP_ALIGNMENT SUBMOUNTS
        HANDLE_KILLPRIV_V2 SETXATTR_EXT INIT_EXT SECURITY_CTX HAS_INODE_DAX CREATE_SUPP_GROUP DIRECT_IO_ALLOW_MMAP
        NO_EXPORT_SUPPORT ALLOW_IDMAP REQUEST_TIMEOUT))?;
    module.add(
        "FOPEN",
        table!(py, fopen:
        DIRECT_IO KEEP_CACHE NONSEEKABLE CACHE_DIR STREAM NOFLUSH PARALLEL_DIRECT_WRITES),
    )
}
