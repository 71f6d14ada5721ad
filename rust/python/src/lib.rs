//! `virtiofs._core`: the native side of the Python package, and the only crate that names Python.
//!
//! Python decides, so what is here takes numbers, starts and ends threads, and converts. Every wait runs without the
//! interpreter; no thread is started by an import.

mod attr;
mod backlog;
mod blocks;
mod buffer;
mod calls;
mod client;
mod constants;
mod convert;
mod detached;
mod device;
mod embedded;
mod engine;
mod errors;
mod faults;
mod fd;
mod file;
mod flight;
mod guest;
mod handlers;
mod kept;
mod lane;
mod load;
mod log;
mod memory;
mod mmio;
mod mount;
mod native;
mod nodes;
mod objects;
mod opened;
mod passthrough;
mod request;
mod rules;
mod sandbox;
mod saved;
mod server;
mod turn;
mod types;
mod versions;
mod workers;

use pyo3::prelude::*;

/// Native parts of the package `virtiofs`. Private: use the names that `virtiofs` exports.
#[pymodule(gil_used = false)]
mod _core {
    use super::*;

    #[pymodule_export]
    use super::attr::Attr;
    #[pymodule_export]
    use super::blocks::{Blocks, punch_hole};
    #[pymodule_export]
    use super::client::Client;
    #[pymodule_export]
    use super::device::Device;
    #[pymodule_export]
    use super::engine::Routed;
    #[pymodule_export]
    use super::file::File;
    #[pymodule_export]
    use super::guest::Guest;
    #[pymodule_export]
    use super::lane::event_loop::EventLoop;
    #[pymodule_export]
    use super::load::{Load, load_native, load_rows, load_wakeup};
    #[pymodule_export]
    use super::log::{log, log_sink, log_stop, log_to_python, log_to_stderr, log_to_syslog};
    #[pymodule_export]
    use super::memory::GuestMemory;
    #[pymodule_export]
    use super::mmio::Mmio;
    #[pymodule_export]
    use super::mount::{Connection, Tether, fuse_mount, fuse_save, fuse_unmount};
    #[pymodule_export]
    use super::native::Native;
    #[pymodule_export]
    use super::native::node::Node;
    #[pymodule_export]
    use super::passthrough::HostDir;
    #[pymodule_export]
    use super::request::{Changes, Lock, Request};
    #[pymodule_export]
    use super::rules::Rules;
    #[pymodule_export]
    use super::sandbox::{
        adopt_orphans, change_root, die_with_parent, effective_capabilities, enter_namespaces, filter_calls,
        keep_capabilities, landlock_version, no_new_privileges, replace_root, restrict_files, undumpable,
    };
    #[pymodule_export]
    use super::saved::saved_shape;
    #[pymodule_export]
    use super::server::Daemon;
    #[pymodule_export]
    use super::types::{DirEntry, Entry, Open, Statfs};
    #[pymodule_export]
    use super::versions::VersionTable;
    #[pymodule_export]
    use super::workers::Workers;

    #[pymodule_init]
    fn init(module: &Bound<'_, PyModule>) -> PyResult<()> {
        module.add("__version__", env!("CARGO_PKG_VERSION"))?;
        module.add("CAPABILITIES", virtiofs_sandbox::capabilities::NAMES.to_vec())?;
        module.add("DEBUG_BUILD", cfg!(debug_assertions))?;
        module.add("MAX_REQUEST_QUEUES", virtiofs_device::identity::REQUEST_QUEUES_MAX)?;
        constants::add(module)
    }
}
