//! What a share may do, as plain numbers.

use std::ffi::CString;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use virtiofs_coherence::{InodeWatcher, Table};
use virtiofs_fuse::wire::{Attr, AttrOut, EntryOut};

use crate::ids::Translation;
use crate::rules::Rules;
use crate::xattrmap::NameRule;

/// What holds for an inode. Decided once, when the inode is first entered into the table, and kept with it.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Effects {
    /// How long the guest may trust that a name leads to this inode.
    pub entry_ttl: Duration,
    /// How long the guest may trust the attributes.
    pub attr_ttl: Duration,
    /// Of a directory: how long the guest may trust that a name is absent. Zero sends ENOENT, which is not cached.
    pub negative_ttl: Duration,
    /// `FOPEN_*` bits answered to OPEN and CREATE of a file. NOFLUSH is left out where a FLUSH could report something: on handles
    /// that may write, and with locks kept on the host.
    pub open_flags: u32,
    /// `FOPEN_*` bits answered to OPENDIR.
    pub dir_open_flags: u32,
    /// Whatever changes this inode or, of a directory, its entries, answers EROFS.
    pub read_only: bool,
    /// The guest does not see it: names of it are absent, also from listings. Whoever has it already keeps it.
    pub hidden: bool,
    /// Files of at least so many bytes are announced as to be mapped (`FUSE_ATTR_DAX`), where there is a DAX window; `None`: no file is.
    /// A guest that mounts with `dax=always` does not ask.
    pub dax: Option<u64>,
    /// The timeouts of names and attributes follow the inode; `None`: they are what they are.
    pub pace: Option<Pace>,
    /// What users of the guest are called on the host, and the reverse; `None`: the same.
    pub users: Option<Arc<Translation>>,
    /// The same for groups.
    pub groups: Option<Arc<Translation>>,
}

/// How timeouts follow an inode's own pace: nothing is trusted for `restless` after a change, then for `growth` times the time that has
/// passed since, up to the timeouts of [`Effects`].
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Pace {
    /// For so long after a change the timeouts are 0.
    pub restless: Duration,
    /// Timeout per time without a change.
    pub growth: f64,
}

impl Pace {
    /// The timeout, of `most` at most, of what last changed at `changed` (since 1970); the clock says `now`.
    fn timeout(self, most: Duration, changed: Duration, now: Duration) -> Duration {
        // A file from the future has just changed.
        let quiet = now.saturating_sub(changed);
        if quiet < self.restless {
            return Duration::ZERO;
        }
        Duration::try_from_secs_f64(quiet.as_secs_f64() * self.growth).unwrap_or(most).min(most)
    }
}

impl Effects {
    /// The timeouts of a name and of attributes, for an inode with these.
    ///
    /// A file's suid and sgid go with a write, and after one Linux asks for size and times and keeps the mode (`fuse_write_update_attr`,
    /// `fs/fuse/file.c`): so attributes with these bits are never trusted.
    fn timeouts(&self, attr: &Attr) -> [Duration; 2] {
        let privileged = attr.mode & libc::S_IFMT == libc::S_IFREG && attr.mode & (libc::S_ISUID | libc::S_ISGID) != 0;
        let most = [self.entry_ttl, if privileged { Duration::ZERO } else { self.attr_ttl }];
        let Some(pace) = self.pace else { return most };
        let since = |seconds: u64, nanoseconds: u32| {
            i64::try_from(seconds).map_or(Duration::ZERO, |_| Duration::new(seconds, nanoseconds.min(999_999_999)))
        };
        let changed = since(attr.ctime, attr.ctimensec).max(since(attr.mtime, attr.mtimensec));
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        most.map(|most| pace.timeout(most, changed, now))
    }

    pub(crate) fn stamp_entry(&self, entry: &mut EntryOut) {
        let [name, attr] = self.timeouts(&entry.attr);
        (entry.entry_valid, entry.entry_valid_nsec) = (name.as_secs(), name.subsec_nanos());
        (entry.attr_valid, entry.attr_valid_nsec) = (attr.as_secs(), attr.subsec_nanos());
    }

    pub(crate) fn stamp_attr(&self, out: &mut AttrOut) {
        let [_, attr] = self.timeouts(&out.attr);
        (out.attr_valid, out.attr_valid_nsec) = (attr.as_secs(), attr.subsec_nanos());
    }

    pub(crate) fn negative_entry(&self) -> EntryOut {
        let (entry_valid, entry_valid_nsec) = (self.negative_ttl.as_secs(), self.negative_ttl.subsec_nanos());
        EntryOut { entry_valid, entry_valid_nsec, ..EntryOut::default() }
    }
}

/// A share: one directory and what its guest may do with it.
#[derive(Clone, Debug, Default)]
pub struct Config {
    /// The directory. Opened once by [`HostDir::new`](crate::HostDir::new); later renames of it change nothing.
    pub root: PathBuf,
    /// What holds for an inode for which nothing else is decided.
    pub effects: Effects,
    /// What is decided for single inodes.
    pub rules: Option<Arc<Rules>>,
    /// The whole share refuses changes with EROFS.
    pub read_only: bool,
    /// The guest keeps dirty pages of its own when it negotiated `WRITEBACK_CACHE`: a file opened for write is opened for
    /// read as well, and appends are the guest's business.
    pub writeback: bool,
    /// Serve extended attributes; EOPNOTSUPP otherwise.
    pub xattr: bool,
    /// What the guest's names of extended attributes are called on the host; of several rules that fit, the first holds. Empty: no name
    /// changes.
    pub xattr_names: Vec<NameRule>,
    /// Serve the extended attributes that hold POSIX ACLs, once the guest negotiated `POSIX_ACL`.
    pub posix_acl: bool,
    /// Pass O_DIRECT on to the host; otherwise it ends at the guest's page cache.
    pub allow_direct_io: bool,
    /// Descriptors that the guest's nodes may have; beyond that, those used longest ago are held by file handles, where the host allows
    /// that. 0 is no limit.
    pub node_descriptors: usize,
    /// Descriptors that the guest may hold in all: of its nodes, of what it has open, of its locks. Beyond that it gets ENFILE. 0 is no
    /// limit.
    pub descriptors: usize,
    /// Nodes that the guest may hold, each of some hundred bytes. Beyond that it gets ENFILE. 0 is no limit.
    pub nodes: usize,
    /// Tell the guest where another host file system begins, if it negotiated `SUBMOUNTS`.
    pub announce_submounts: bool,
    /// Counters that move with every change, for whoever remembers what guests were told. Node ids carry their slots then.
    pub versions: Option<Arc<Table>>,
    /// The extended attribute (of `user.`) in which owner, mode and device number of each inode are kept, out of the guest's sight; `None`:
    /// they are the host's own.
    pub kept: Option<CString>,
    /// Watches the inodes that guests ask about, where nobody watches whole file systems. Of the same table.
    pub watcher: Option<Arc<InodeWatcher>>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quiet_inodes_are_trusted_for_longer_and_busy_ones_not_at_all() {
        let pace = Pace { restless: Duration::from_secs(2), growth: 0.1 };
        let timeout = |changed, now| {
            let most = Duration::from_secs(60);
            pace.timeout(most, Duration::from_millis(changed), Duration::from_millis(now)).as_millis()
        };
        assert_eq!(timeout(1_000_000, 1_001_999), 0);
        assert_eq!(timeout(1_000_000, 1_002_000), 200);
        assert_eq!(timeout(1_000_000, 1_100_000), 10_000);
        assert_eq!(timeout(1_000_000, 5_000_000), 60_000);
        assert_eq!(timeout(5_000_000, 1_000_000), 0, "from the future");
        assert_eq!(timeout(0, u64::MAX), 60_000);
    }

    #[test]
    fn the_latest_of_an_inodes_times_counts() {
        let pace = Some(Pace { restless: Duration::from_secs(10), growth: 1.0 });
        let (entry_ttl, attr_ttl) = (Duration::from_secs(50), Duration::from_secs(90));
        let effects = Effects { entry_ttl, attr_ttl, pace, ..Effects::default() };
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs();
        let with = |mtime, ctime| effects.timeouts(&Attr { mtime, ctime, ..Attr::default() });
        assert_eq!(with(1, 1), [entry_ttl, attr_ttl]);
        assert_eq!(with(1, now), [Duration::ZERO; 2]);
        assert_eq!(with(now, 1), [Duration::ZERO; 2]);
        assert_eq!(with(u64::MAX, 1), [entry_ttl, attr_ttl], "before 1970");
        assert_eq!(
            Effects { pace: None, ..effects.clone() }.timeouts(&Attr { ctime: now, ..Attr::default() }),
            [entry_ttl, attr_ttl]
        );
    }

    #[test]
    fn attributes_of_files_with_suid_or_sgid_are_not_trusted() {
        let (entry_ttl, attr_ttl) = (Duration::from_secs(50), Duration::from_secs(90));
        let effects = Effects { entry_ttl, attr_ttl, ..Effects::default() };
        let with = |mode| effects.timeouts(&Attr { mode, ..Attr::default() });
        assert_eq!(with(libc::S_IFREG | 0o755), [entry_ttl, attr_ttl]);
        assert_eq!(with(libc::S_IFREG | 0o4755), [entry_ttl, Duration::ZERO]);
        assert_eq!(with(libc::S_IFREG | 0o2644), [entry_ttl, Duration::ZERO]);
        assert_eq!(with(libc::S_IFDIR | 0o2755), [entry_ttl, attr_ttl], "of a directory it means something else");
    }
}
