//! Rules for single inodes, as Python gives them, and the functions among their conditions.

use std::ops::RangeInclusive;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::Arc;

use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use virtiofs_fuse::wire;
use virtiofs_fuse::{Error, Result};
use virtiofs_hostdir as hostdir;

use crate::attr::Attr;
use crate::faults;
use crate::passthrough::{Translation, timeout};

/// The program that decides about single inodes.
#[pyclass(frozen, module = "virtiofs._core")]
pub(crate) struct Rules {
    given: Vec<Given>,
}

/// One rule as `virtiofs.policy` makes it.
#[derive(FromPyObject)]
#[pyo3(from_item_all)]
struct Given {
    names: Vec<String>,
    paths: Vec<String>,
    kinds: Vec<u32>,
    sizes: Option<(u64, u64)>,
    uids: Vec<u32>,
    gids: Vec<u32>,
    when: Option<Py<PyAny>>,
    entry_timeout: Option<f64>,
    attr_timeout: Option<f64>,
    negative_timeout: Option<f64>,
    pace: Option<Pace>,
    open_flags: (u32, u32),
    dir_open_flags: Option<u32>,
    read_only: Option<bool>,
    hidden: Option<bool>,
    dax: Option<(bool, u64)>,
    users: Option<Translation>,
    groups: Option<Translation>,
}

/// How timeouts follow an inode, or that they do not.
#[derive(Clone, Copy, FromPyObject)]
enum Pace {
    Of(f64, f64),
    #[allow(dead_code)]
    None(bool),
}

/// A Python function that is asked about an inode.
struct Function(Py<PyAny>);

impl hostdir::Judge for Function {
    fn holds(&self, path: &Path, attr: &wire::Attr) -> Result<bool> {
        let asked = Python::try_attach(|py| {
            let path = path.as_os_str().as_bytes();
            let decoded = py.import("os").and_then(|os| os.call_method1("fsdecode", (path,)));
            let answer = decoded.and_then(|path| self.0.call1(py, (path, Attr::from(attr)))?.is_truthy(py));
            answer.map_err(|error| faults::answer(py, "Rule.when", error))
        });
        // None where the interpreter is going away.
        asked.unwrap_or(Err(Error::Errno(libc::EIO)))
    }
}

impl Given {
    fn conditions(&self, py: Python<'_>) -> hostdir::Conditions {
        let judge = self.when.as_ref().map(|when| Box::new(Function(when.clone_ref(py))) as Box<dyn hostdir::Judge>);
        hostdir::Conditions {
            names: self.names.clone(),
            paths: self.paths.clone(),
            kinds: self.kinds.clone(),
            sizes: self.sizes.map(|(least, most)| RangeInclusive::new(least, most)),
            uids: self.uids.clone(),
            gids: self.gids.clone(),
            judge,
        }
    }

    fn changes(&self) -> PyResult<hostdir::Changes> {
        let seconds = |value: Option<f64>| value.map(timeout).transpose();
        let pace = match self.pace {
            None => None,
            Some(Pace::None(_)) => Some(None),
            Some(Pace::Of(restless, growth)) => Some(Some(hostdir::Pace { restless: timeout(restless)?, growth })),
        };
        Ok(hostdir::Changes {
            entry_ttl: seconds(self.entry_timeout)?,
            attr_ttl: seconds(self.attr_timeout)?,
            negative_ttl: seconds(self.negative_timeout)?,
            pace,
            open_flags: self.open_flags,
            dir_open_flags: self.dir_open_flags,
            read_only: self.read_only,
            hidden: self.hidden,
            dax: self.dax.map(|(some, least)| some.then_some(least)),
            users: self.users.clone().map(|users| Some(users.into())),
            groups: self.groups.clone().map(|groups| Some(groups.into())),
        })
    }
}

#[pymethods]
impl Rules {
    /// Refuses globs that are none, and more rules than there may be.
    #[new]
    fn new(py: Python<'_>, given: Vec<Given>) -> PyResult<Rules> {
        let rules = Rules { given };
        rules.program(py)?;
        Ok(rules)
    }
}

impl Rules {
    /// The program, for one share.
    pub(crate) fn program(&self, py: Python<'_>) -> PyResult<Arc<hostdir::Rules>> {
        let rules = self.given.iter().map(|rule| Ok((rule.conditions(py), rule.changes()?)));
        let rules = rules.collect::<PyResult<Vec<_>>>()?;
        hostdir::Rules::new(rules).map(Arc::new).map_err(PyValueError::new_err)
    }
}
