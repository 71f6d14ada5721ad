//! LOOKUP and FORGET: from a name to a node.

use std::ffi::CStr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use rustix::fs::{Mode, OFlags};
use virtiofs_fuse::wire::{AttrOut, EntryOut, bits};
use virtiofs_fuse::{Context, Error, Result};

use crate::HostDir;
use crate::error::{Lift, errno};
use crate::hostdir::component;
use crate::inode::{Inode, Key, NewInode};
use crate::pins::Hold;
use crate::procfd::is_procfs;
use crate::seen::Seen;
use crate::stat::{Born, Status};

impl HostDir {
    pub(crate) fn op_lookup(&self, cx: &Context, parent: u64, name: &CStr) -> Result<EntryOut> {
        let dir = self.inodes.get(parent)?;
        let name = component(name)?;
        self.asked(&dir);
        if let Err(error) = self.may_ask(cx)
            && let Ok(status) = Status::by_name(dir.fd()?, name)
            && self.inodes.find(status.key()).is_none()
        {
            return Err(error);
        }
        let mut status = Status::none();
        let found = self.enter(&dir, dir.fd()?.as_fd(), name, false, &mut status);
        match found.and_then(|inode| self.seen(inode)) {
            Ok(inode) => Ok(self.entry(&inode, &status)),
            Err(Error::Errno(libc::ENOENT)) if !dir.effects.negative_ttl.is_zero() => Ok(dir.effects.negative_entry()),
            Err(error) => Err(error),
        }
    }

    /// What was found, unless it is hidden: then there is nothing.
    pub(crate) fn seen(&self, inode: Arc<Inode>) -> Result<Arc<Inode>> {
        if inode.effects.hidden {
            self.inodes.forget_inode(&inode, 1);
            return errno(libc::ENOENT);
        }
        Ok(inode)
    }

    /// The node that a name leads to, counted once more; its attributes go to `status`. `at` is a descriptor of `dir`.
    ///
    /// One statx(2) by name, unless the name leads to a new directory, or to what cannot be told apart from another inode
    /// of its number later: that is opened now, at once if it is `probably_new_directory`. The name is a single component and
    /// is never followed, so whatever somebody puts in its place meanwhile, the node is an entry of this directory.
    pub(crate) fn enter(
        &self,
        dir: &Arc<Inode>,
        at: BorrowedFd<'_>,
        name: &CStr,
        probably_new_directory: bool,
        status: &mut Status,
    ) -> Result<Arc<Inode>> {
        if !probably_new_directory {
            status.read_name(at, name)?;
            if let Some(born) = self.plain(dir, status)
                && let Some(inode) = self.inodes.enter_seen(dir, name, born, status, &self.effects)?
            {
                return Ok(inode);
            }
            if let Some(inode) = self.inodes.find_and_count(status) {
                inode.seen_at(dir, name);
                return Ok(inode);
            }
            if let (false, Some(born)) = (status.is_directory() || self.keeps(), status.born()) {
                let seen = Hold::Seen(Seen::new(dir, name, born));
                return self.enter_new(dir, name, seen, status);
            }
        }
        let fd = open_path(at, name)?;
        status.read(&fd)?;
        *status = self.shown(*status, &fd);
        self.enter_fd(dir, name, fd, status)
    }

    /// Whether nothing has to be found out about an inode that was seen in `dir`, should it be a new one: then when it was made.
    fn plain(&self, dir: &Inode, status: &Status) -> Option<Born> {
        let key = status.key();
        let beside = (key.mount, key.device) == (dir.key.mount, dir.key.device);
        let plain = beside && !status.is_directory() && !self.keeps() && self.config.rules.is_none();
        status.born().filter(|_| plain)
    }

    /// The node of an O_PATH descriptor that was opened as `name` in `dir`.
    pub(crate) fn enter_fd(&self, dir: &Inode, name: &CStr, fd: OwnedFd, status: &Status) -> Result<Arc<Inode>> {
        self.inodes.find_and_count(status).map_or_else(|| self.enter_new(dir, name, Hold::Fd(fd), status), Ok)
    }

    /// The node of an inode that was not there a moment ago. What holds for it is decided outside of all locks.
    fn enter_new(&self, dir: &Inode, name: &CStr, hold: Hold, status: &Status) -> Result<Arc<Inode>> {
        let key = status.key();
        let other_file_system = (key.mount, key.device) != (dir.key.mount, dir.key.device);
        let submount = other_file_system && status.is_directory() && self.submounts();
        let foreign = !submount && (dir.foreign || key.device != dir.key.device);
        // A procfs is a mount of its own; before Linux 5.8 its device alone tells. Others differ in devices at each file (overlayfs).
        if key.mount != dir.key.mount || key.mount == 0 && other_file_system {
            self.check_crossing(dir, name, &hold)?;
        }
        let effects = self.effects_for(dir, name, status)?;
        self.inodes.enter(key, NewInode::new(hold, status, effects, submount, foreign))
    }

    /// EACCES for what lies on a procfs: this process is among its files, its memory too, whatever keeps it from the rest of the host.
    fn check_crossing(&self, dir: &Inode, name: &CStr, hold: &Hold) -> Result<()> {
        let opened;
        let there = match hold {
            Hold::Fd(fd) => fd.as_fd(),
            _ => {
                opened = open_path(dir.fd()?.as_fd(), name)?;
                opened.as_fd()
            }
        };
        if is_procfs(there).lift()? { errno(libc::EACCES) } else { Ok(()) }
    }

    /// The name is about to lead elsewhere, by this guest's own doing: a node that has nothing else of its inode gets hold of it.
    pub(crate) fn hold_on(&self, dir: &Inode, name: &CStr) {
        if dir.has_named_children()
            && let Ok(fd) = dir.fd()
            && let Ok(status) = Status::by_name(fd, name)
            && let Some(inode) = self.inodes.find(status.key())
        {
            // Where that fails the inode has been exchanged by somebody else, which makes the node stale as it is.
            _ = self.inodes.get(inode.id);
        }
    }

    /// A node as the guest enters it. The lookup must have been counted.
    pub(crate) fn entry(&self, inode: &Inode, status: &Status) -> EntryOut {
        // What was seen before the inode was watched may have changed in between.
        let again = if self.asked(inode) { inode.fd().and_then(Status::basic).ok() } else { None };
        let status = again.as_ref().unwrap_or(status);
        let mut entry = EntryOut { nodeid: inode.id, attr: status.attr(inode.ino()), ..EntryOut::default() };
        if inode.submount {
            entry.attr.flags |= bits::ATTR_SUBMOUNT;
        }
        self.show_kept(inode, &mut entry.attr);
        inode.effects.guest_owner(&mut entry.attr.uid, &mut entry.attr.gid);
        self.stamp_dax(inode, &mut entry.attr);
        inode.effects.stamp_entry(&mut entry);
        entry
    }

    pub(crate) fn attributes(&self, inode: &Inode, status: &Status) -> AttrOut {
        let mut out = AttrOut { attr: status.attr(inode.ino()), ..AttrOut::default() };
        if inode.submount {
            out.attr.flags |= bits::ATTR_SUBMOUNT;
        }
        self.show_kept(inode, &mut out.attr);
        inode.effects.guest_owner(&mut out.attr.uid, &mut out.attr.gid);
        self.stamp_dax(inode, &mut out.attr);
        inode.effects.stamp_attr(&mut out);
        out
    }

    /// Whether a directory entry with this inode number is probably a node already.
    pub(crate) fn likely_known(&self, dir: &Inode, ino: u64) -> bool {
        self.inodes.find(Key { ino, ..dir.key }).is_some()
    }
}

/// The descriptor that pins an inode.
pub(crate) fn open_path(dir: BorrowedFd<'_>, name: &CStr) -> Result<OwnedFd> {
    rustix::fs::openat(dir, name, OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty()).lift()
}
