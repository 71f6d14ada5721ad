//! A directory of the host with its settings, as Python describes it.

use std::ffi::CString;
use std::path::PathBuf;
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use virtiofs_hostdir as hostdir;

use crate::rules::Rules;
use crate::versions::VersionTable;

/// Longer than any guest runs. The kernel takes any number of seconds and cuts it to what its clock can count
/// (`fuse_time_to_jiffies`, `fs/fuse/dir.c`).
const FOR_EVER: Duration = Duration::from_secs(u32::MAX as u64);

/// Locks hold between all guests of this process.
static LOCKS: LazyLock<Arc<hostdir::Locks>> = LazyLock::new(Arc::default);

/// The native file system of a directory. The directory is opened when a server starts with it.
#[pyclass(frozen, module = "virtiofs._core")]
pub(crate) struct HostDir {
    config: hostdir::Config,
}

impl HostDir {
    /// A file system for one server.
    pub(crate) fn open(&self) -> PyResult<Arc<hostdir::HostDir>> {
        Ok(Arc::new(hostdir::HostDir::sharing(self.config.clone(), Arc::clone(&LOCKS))?))
    }
}

/// A rule as Python gives it: what names of guests begin with, what names on the host begin with, what goes in front, an errno.
#[derive(FromPyObject)]
struct NameRule(Option<Vec<u8>>, Option<Vec<u8>>, Vec<u8>, i32);

impl From<NameRule> for hostdir::NameRule {
    fn from(NameRule(guest, host, prefix, errno): NameRule) -> hostdir::NameRule {
        hostdir::NameRule { guest, host, prefix, errno }
    }
}

/// Ids that become others: the first one, how many, and what the first becomes; whether all become that one. `None` is refused.
#[derive(Clone, FromPyObject)]
struct IdRange(u32, u32, Option<u32>, bool);

/// Ranges of the guest's ids, and of the host's.
#[derive(Clone, FromPyObject)]
pub(crate) struct Translation(Vec<IdRange>, Vec<IdRange>);

impl From<Translation> for Arc<hostdir::Translation> {
    fn from(Translation(to_host, to_guest): Translation) -> Arc<hostdir::Translation> {
        let ranges = |ranges: Vec<IdRange>| ranges.into_iter().map(hostdir::IdRange::from).collect();
        Arc::new(hostdir::Translation { to_host: ranges(to_host), to_guest: ranges(to_guest) })
    }
}

impl From<IdRange> for hostdir::IdRange {
    fn from(IdRange(from, count, target, one): IdRange) -> hostdir::IdRange {
        let to = match target {
            None => hostdir::To::Refused,
            Some(id) if one => hostdir::To::One(id),
            Some(id) => hostdir::To::Ids(id),
        };
        hostdir::IdRange { from, count, to }
    }
}

#[pymethods]
impl HostDir {
    #[new]
    #[pyo3(signature = (directory, *, attr_timeout, entry_timeout, negative_timeout, open_flags, dir_open_flags, read_only,
                        writeback, xattr, xattr_names, posix_acl, allow_direct_io, announce_submounts, node_descriptors,
                        descriptors, nodes, dax, versions=None, pace=None, rules=None, users=None, groups=None,
                        kept=None))]
    #[allow(clippy::too_many_arguments)]
    fn new(
        py: Python<'_>,
        directory: PathBuf,
        attr_timeout: f64,
        entry_timeout: f64,
        negative_timeout: f64,
        open_flags: u32,
        dir_open_flags: u32,
        read_only: bool,
        writeback: bool,
        xattr: bool,
        xattr_names: Vec<NameRule>,
        posix_acl: bool,
        allow_direct_io: bool,
        announce_submounts: bool,
        node_descriptors: usize,
        descriptors: usize,
        nodes: usize,
        dax: Option<u64>,
        versions: Option<PyRef<'_, VersionTable>>,
        pace: Option<(f64, f64)>,
        rules: Option<PyRef<'_, Rules>>,
        users: Option<Translation>,
        groups: Option<Translation>,
        kept: Option<Vec<u8>>,
    ) -> PyResult<HostDir> {
        let pace = match pace {
            Some((restless, growth)) => Some(hostdir::Pace { restless: timeout(restless)?, growth }),
            None => None,
        };
        let effects = hostdir::Effects {
            entry_ttl: timeout(entry_timeout)?,
            attr_ttl: timeout(attr_timeout)?,
            negative_ttl: timeout(negative_timeout)?,
            open_flags,
            dir_open_flags,
            dax,
            pace,
            users: users.map(Arc::from),
            groups: groups.map(Arc::from),
            ..hostdir::Effects::default()
        };
        let root = directory;
        Ok(HostDir {
            config: hostdir::Config {
                root,
                effects,
                rules: rules.map(|rules| rules.program(py)).transpose()?,
                read_only,
                writeback,
                xattr,
                xattr_names: xattr_names.into_iter().map(hostdir::NameRule::from).collect(),
                posix_acl,
                allow_direct_io,
                announce_submounts,
                node_descriptors,
                descriptors,
                nodes,
                kept: kept.map(CString::new).transpose()?,
                watcher: versions.as_ref().and_then(|versions| versions.inodes()),
                versions: versions.map(|versions| Arc::clone(&versions.table)),
            },
        })
    }
}

pub(crate) fn timeout(seconds: f64) -> PyResult<Duration> {
    if seconds.is_nan() || seconds < 0.0 {
        return Err(PyValueError::new_err(format!("a timeout is in seconds, from 0 on, not {seconds}")));
    }
    Ok(Duration::try_from_secs_f64(seconds).unwrap_or(FOR_EVER).min(FOR_EVER))
}
