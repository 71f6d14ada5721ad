//! One guest's session on one host directory.

use std::ffi::{CStr, OsStr};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};

use rustix::fs::{CWD, Mode, OFlags};
use virtiofs_fuse::wire::{Attr, NAME_MAX, ROOT_ID, init};
use virtiofs_fuse::{Context, Error, Negotiated, Result};

use crate::bounds::Bounds;
use crate::config::{Config, Effects};
use crate::credentials::{ids_are_all_mapped, may_read_all};
use crate::error::errno;
use crate::handles::{DirHandle, FileHandle, Handles};
use crate::inode::{Inode, NewInode};
use crate::inodes::Inodes;
use crate::locks::Locks;
use crate::pins::Hold;
use crate::procfd::{ProcFd, is_procfs};
use crate::rules::{Facts, HIDDEN, Rules};
use crate::standing::Standing;
use crate::stat::Status;
use crate::statfs::is_local;
use crate::xattrmap::NameMap;

/// A host directory as a [`FileSystem`](virtiofs_fuse::FileSystem) for one guest.
pub struct HostDir {
    pub(crate) config: Config,
    pub(crate) bounds: Arc<Bounds>,
    pub(crate) inodes: Inodes,
    pub(crate) files: Handles<FileHandle>,
    pub(crate) directories: Handles<DirHandle>,
    /// Files that the guest uses without an OPEN.
    pub(crate) standing_files: Standing<FileHandle>,
    pub(crate) standing_directories: Standing<DirHandle>,
    /// Open directories that keep what was read ahead.
    pub(crate) ahead: Arc<AtomicUsize>,
    pub(crate) proc: ProcFd,
    pub(crate) locks: Arc<Locks>,
    pub(crate) names: NameMap,
    /// By what this guest's locks are told from those of others.
    pub(crate) session: u64,
    pub(crate) effects: Arc<Effects>,
    /// Whether files that were read leave their descriptors for the next OPEN.
    pub(crate) spares: bool,
    /// INIT flags that hold in this session.
    flags: AtomicU64,
    /// The session's DAX window maps files that are not open for writing too.
    pub(crate) maps_read_only: AtomicBool,
}

impl HostDir {
    /// Opens `config.root` and what else the session needs. Call it in the process that will serve: not before a fork.
    ///
    /// # Errors
    ///
    /// What open(2) says of the root, ENOTDIR included; an explained error if it is on a procfs, or if /proc cannot be used.
    pub fn new(config: Config) -> io::Result<HostDir> {
        HostDir::sharing(config, Arc::default())
    }

    /// As [`HostDir::new`], with the locks of other guests of this process: what one of them waits for it gets as soon as another
    /// lets go, and a deadlock between them is found.
    pub fn sharing(config: Config, locks: Arc<Locks>) -> io::Result<HostDir> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let fd = rustix::fs::openat(CWD, config.root.as_path(), flags, Mode::empty())?;
        if is_procfs(&fd)? {
            let text = "a procfs is not shared, for a guest would find this process there, and its memory";
            return Err(io::Error::new(io::ErrorKind::PermissionDenied, text));
        }
        let proc = ProcFd::open(&fd)?;
        // Found out once, while the process may still read it.
        _ = ids_are_all_mapped();
        let spares = may_read_all() && is_local(&fd)?;
        let status = Status::of(&fd).map_err(|error| io::Error::from_raw_os_error(error.to_wire()))?;
        let mut effects = config.effects.clone();
        effects.read_only |= config.read_only;
        let effects = Arc::new(effects);
        let root = NewInode::new(Hold::Fd(fd), &status, Arc::clone(&effects), false, false);
        let bounds = Arc::new(Bounds::new(config.descriptors, config.nodes));
        let standing = standing_limit(config.node_descriptors).min(bounds.idle());
        Ok(HostDir {
            inodes: Inodes::new(root, &status, config.node_descriptors, Arc::clone(&bounds), config.versions.clone()),
            bounds,
            names: NameMap::new(config.xattr_names.clone()),
            config,
            files: Handles::new(),
            directories: Handles::new(),
            standing_files: Standing::new(standing),
            standing_directories: Standing::new(standing),
            ahead: Arc::default(),
            proc,
            session: locks.session(),
            locks,
            effects,
            spares,
            flags: AtomicU64::new(0),
            maps_read_only: AtomicBool::new(false),
        })
    }

    /// Nodes that the guest holds, the root included.
    pub fn nodes(&self) -> usize {
        self.inodes.len()
    }

    /// Descriptors that nodes have, the root's included; the others are held by file handles.
    pub fn node_descriptors(&self) -> usize {
        self.inodes.descriptors()
    }

    /// Descriptors that the guest holds in all.
    pub fn descriptors(&self) -> usize {
        self.bounds.held()
    }

    /// Files and directories that the guest holds open, and those that are kept open for a guest that does not say what it opens.
    pub fn handles(&self) -> usize {
        self.files.len() + self.directories.len() + self.standing_files.len() + self.standing_directories.len()
    }

    /// What holds for an inode that is entered for the first time, found as `name` in `parent`. The one place for decisions about
    /// single inodes; what it answers stays with the node for its life.
    pub(crate) fn effects_for(&self, parent: &Inode, name: &CStr, status: &Status) -> Result<Arc<Effects>> {
        match &self.config.rules {
            None => Ok(Arc::clone(&self.effects)),
            Some(rules) => self.by_rules(rules, parent, name, Some(status.kind()), Some(status.attr(0))),
        }
    }

    /// What holds for an inode that is to be made, as far as its owner is concerned. `None`: what holds for others.
    pub(crate) fn effects_of_new(&self, dir: &Inode, name: &CStr, kind: u32) -> Result<Option<Arc<Effects>>> {
        match self.config.rules.as_ref().filter(|rules| rules.translates()) {
            None => Ok(None),
            Some(rules) => self.by_rules(rules, dir, name, Some(kind), None).map(Some),
        }
    }

    /// What holds where no rule does.
    pub(crate) fn base(&self) -> &Effects {
        &self.effects
    }

    /// As [`HostDir::effects_for`], for an inode that was entered as `path` before.
    pub(crate) fn effects_at(&self, path: &Path, status: &Status) -> Result<Arc<Effects>> {
        let Some(rules) = &self.config.rules else { return Ok(Arc::clone(&self.effects)) };
        let name = path.file_name().unwrap_or_default().as_bytes();
        let path = || Ok(path.to_path_buf());
        let (kind, attr) = (Some(status.kind()), Some(status.attr(0)));
        rules.effects(&Facts { name, path: &path, kind, attr }, &self.effects)
    }

    fn by_rules(
        &self,
        rules: &Rules,
        parent: &Inode,
        name: &CStr,
        kind: Option<u32>,
        attr: Option<Attr>,
    ) -> Result<Arc<Effects>> {
        let path = || -> Result<PathBuf> { Ok(self.path_of(parent)?.join(OsStr::from_bytes(name.to_bytes()))) };
        rules.effects(&Facts { name: name.to_bytes(), path: &path, kind, attr }, &self.effects)
    }

    /// Where a directory is now, from the root of the share.
    fn path_of(&self, dir: &Inode) -> Result<PathBuf> {
        let (path, root) = (self.path(dir.id)?, self.path(ROOT_ID)?);
        // One that was moved out of the share, or has no name any more, has no path in it.
        Ok(path.strip_prefix(root).map_or_else(|_| PathBuf::from("/"), Path::to_path_buf))
    }

    /// Whether to enter an inode may take long here, since somebody is asked about it. Then nothing was done yet.
    pub(crate) fn may_ask(&self, cx: &Context) -> Result<()> {
        let asks = self.config.rules.as_ref().is_some_and(|rules| rules.asks());
        if asks && !cx.may_block { Err(Error::WouldBlock) } else { Ok(()) }
    }

    /// Whether any inode may be hidden.
    pub(crate) fn hides(&self) -> bool {
        self.config.rules.as_ref().is_some_and(|rules| rules.hides())
    }

    /// Refuses to make, or to put something in the place of, what is hidden. `kind` is that of an inode to be made, where it is known.
    pub(crate) fn must_be_seen(&self, dir: &Inode, name: &CStr, kind: Option<u32>) -> Result<()> {
        let Some(rules) = self.config.rules.as_ref().filter(|rules| rules.hides()) else { return Ok(()) };
        let hidden = self.by_rules(rules, dir, name, kind, None)?.hidden
            || match self.status_at(dir, name) {
                Ok(status) => match self.inodes.find(status.key()) {
                    Some(inode) => inode.effects.hidden,
                    None => self.effects_for(dir, name, &status)?.hidden,
                },
                Err(_) => false,
            };
        if hidden { Err(HIDDEN) } else { Ok(()) }
    }

    pub(crate) fn begin(&self, negotiated: &Negotiated) {
        let read_only = negotiated.mappable.is_some_and(|mappable| mappable.read_only);
        self.maps_read_only.store(read_only, Ordering::Relaxed);
        self.flags.store(negotiated.flags, Ordering::Relaxed);
        // Nobody says what is open: it may be all that has lost its name.
        self.inodes.keep_removed(self.no_open());
    }

    pub(crate) fn end(&self) {
        // Handles first: who has none gets no lock any more.
        self.files.clear();
        self.directories.clear();
        self.standing_files.clear();
        self.standing_directories.clear();
        self.locks.forget_session(self.session);
        self.inodes.clear();
    }

    pub(crate) fn negotiated(&self, flag: u64) -> bool {
        self.flags.load(Ordering::Relaxed) & flag != 0
    }

    /// The guest holds dirty pages back.
    pub(crate) fn writeback(&self) -> bool {
        self.config.writeback && self.negotiated(init::WRITEBACK_CACHE)
    }

    pub(crate) fn acls(&self) -> bool {
        self.config.posix_acl && self.negotiated(init::POSIX_ACL)
    }

    pub(crate) fn submounts(&self) -> bool {
        self.config.announce_submounts && self.negotiated(init::SUBMOUNTS)
    }

    /// Locks are kept on the host, so a close in the guest must reach it.
    pub(crate) fn host_locks(&self) -> bool {
        self.negotiated(init::POSIX_LOCKS)
    }

    /// The node of a directory in which names are changed.
    pub(crate) fn writable_directory(&self, node: u64) -> Result<Arc<Inode>> {
        let inode = self.inodes.get(node)?;
        inode.must_be_directory()?;
        inode.must_be_writable()?;
        Ok(inode)
    }
}

/// How many files may stay open for a guest that does not say what it opens, and how many directories: each a quarter of what nodes may
/// have. Nobody closes them, so they are never all that the guest may have either.
fn standing_limit(node_descriptors: usize) -> usize {
    if node_descriptors == 0 { 1024 } else { (node_descriptors / 4).max(16) }
}

/// Refuses a name that is more than one component, or one that the kernel takes for something else. The server has checked what
/// guests send; this is for callers in between, and the reason why no walk ever leaves a directory.
pub(crate) fn component(name: &CStr) -> Result<&CStr> {
    match name.to_bytes() {
        b"" | b"." | b".." => errno(libc::EINVAL),
        bytes if bytes.len() > NAME_MAX => errno(libc::ENAMETOOLONG),
        bytes if bytes.contains(&b'/') => errno(libc::EINVAL),
        _ => Ok(name),
    }
}
