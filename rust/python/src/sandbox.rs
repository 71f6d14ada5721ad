//! What a process takes from itself: `virtiofs_sandbox`, one function for each means.

use std::path::PathBuf;

use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use virtiofs_sandbox::filter::{self, Action, Calls, Filter};
use virtiofs_sandbox::landlock::{self, Rights};
use virtiofs_sandbox::{capabilities, namespaces, process, root};

/// Moves this process, which must have one thread, into new namespaces: `flags` are CLONE_NEW* of unshare(2).
#[pyfunction]
pub(crate) fn enter_namespaces(flags: u32) -> PyResult<()> {
    Ok(namespaces::enter(flags)?)
}

/// Makes an empty root with `directories` at their paths and a procfs; answers whether that is of our own pid namespace.
#[pyfunction]
pub(crate) fn replace_root(directories: Vec<PathBuf>) -> PyResult<bool> {
    Ok(root::replace(&directories)?)
}

/// chroot(2) into `directory`.
#[pyfunction]
pub(crate) fn change_root(directory: PathBuf) -> PyResult<()> {
    Ok(root::change(directory)?)
}

/// Names of the capabilities in effect.
#[pyfunction]
pub(crate) fn effective_capabilities() -> PyResult<Vec<&'static str>> {
    Ok(capabilities::effective()?)
}

/// Gives up all capabilities but those `names`.
#[pyfunction]
pub(crate) fn keep_capabilities(names: Vec<String>) -> PyResult<()> {
    let unknown = |name: &str| PyValueError::new_err(format!("no capability is called {name:?}"));
    let keep = names.iter().map(|name| capabilities::by_name(name).ok_or_else(|| unknown(name)));
    Ok(capabilities::keep_only(keep.collect::<PyResult<Vec<_>>>()?.into_iter().collect())?)
}

/// The version of Landlock, 0 for none.
#[pyfunction]
pub(crate) fn landlock_version() -> i32 {
    landlock::version()
}

/// Opens only what is below `directories` from now on: path, and whether it may be changed. Without `files`, the contents of
/// files are not restricted. Answers whether anything is.
#[pyfunction]
#[pyo3(signature = (directories, *, files))]
pub(crate) fn restrict_files(directories: Vec<(PathBuf, bool)>, files: bool) -> PyResult<bool> {
    let rights = |change| if change { Rights::Change } else { Rights::Read };
    let directories: Vec<_> = directories.into_iter().map(|(path, change)| (path, rights(change))).collect();
    Ok(landlock::restrict(&directories, files)?)
}

/// allow, log, trap, kill, or an errno.
#[derive(FromPyObject)]
pub(crate) enum Named {
    Errno(u16),
    Name(String),
}

impl Named {
    fn action(&self) -> PyResult<Action> {
        Ok(match self {
            Named::Errno(errno) => Action::Errno(*errno),
            Named::Name(name) => match name.as_str() {
                "allow" => Action::Allow,
                "log" => Action::Log,
                "trap" => Action::Trap,
                "kill" => Action::Kill,
                _ => return Err(PyValueError::new_err(format!("no action is called {name:?}"))),
            },
        })
    }
}

/// Filters the system calls of all threads. Each filter has what it lists (a name, and what arguments must be: number, mask, value), what
/// happens to that, and what to all others.
#[pyfunction]
#[allow(clippy::type_complexity)]
pub(crate) fn filter_calls(filters: Vec<(Vec<(String, Vec<(u8, u64, u64)>)>, Named, Named)>) -> PyResult<()> {
    let filters = filters.into_iter().map(|(listed, matched, others)| {
        let listed = listed.into_iter().map(|(name, when)| Calls { name, when }).collect();
        Ok(Filter { listed, matched: matched.action()?, others: others.action()? })
    });
    Ok(filter::apply(&filters.collect::<PyResult<Vec<_>>>()?)?)
}

/// No execve(2) gives privileges any more.
#[pyfunction]
pub(crate) fn no_new_privileges() -> PyResult<()> {
    Ok(process::no_new_privileges()?)
}

/// Leaves no core file and is traced by nobody of the same user.
#[pyfunction]
pub(crate) fn undumpable() -> PyResult<()> {
    Ok(process::undumpable()?)
}

/// Is killed when its parent ends.
#[pyfunction]
pub(crate) fn die_with_parent() -> PyResult<()> {
    Ok(process::die_with_parent()?)
}

/// Becomes the parent of its children's children when those end.
#[pyfunction]
pub(crate) fn adopt_orphans() -> PyResult<()> {
    Ok(process::adopt_orphans()?)
}
