//! GETATTR, STATX, SETATTR, ACCESS, READLINK: what an inode says of itself.

use std::os::fd::AsFd;
use std::sync::Arc;

use rustix::fs::{AtFlags, Gid, Mode, OFlags, StatxFlags, Timespec, Timestamps, UTIME_NOW, UTIME_OMIT, Uid};
use rustix::io::Errno;
use rustix::path::DecInt;
use virtiofs_fuse::wire::{AttrOut, SYMLINK_MAX, SetattrIn, StatxOut, fattr};
use virtiofs_fuse::{BACKING, Context, Result};

use crate::HostDir;
use crate::credentials::{Rights, WithoutFsetid};
use crate::error::{Lift, errno};
use crate::handles::FileHandle;
use crate::inode::Inode;
use crate::stat::{Status, device_numbers};
use crate::sys;

impl HostDir {
    pub(crate) fn op_getattr(&self, node: u64, fh: Option<u64>) -> Result<AttrOut> {
        if self.config.watcher.is_some() {
            self.asked(&*self.inodes.get(node)?);
        }
        let mut status = Status::none();
        let inode = match fh {
            None => self.inodes.status(node, &mut status)?,
            Some(fh) => match self.file_at_hand(node, fh)? {
                None => self.inodes.status(node, &mut status)?,
                Some(file) => {
                    status.read_basic(file.fd())?;
                    self.inodes.get(node)?
                }
            },
        };
        Ok(self.attributes(&inode, &status))
    }

    pub(crate) fn op_statx(&self, node: u64, fh: Option<u64>, mask: u32) -> Result<StatxOut> {
        let inode = self.inodes.get(node)?;
        self.asked(&inode);
        let mask = StatxFlags::from_bits_retain(mask) & (StatxFlags::BASIC_STATS | StatxFlags::BTIME);
        let status = match fh {
            None => Status::of_with(inode.fd()?, mask)?,
            Some(fh) => match self.file_at_hand(node, fh)? {
                None => Status::of_with(inode.fd()?, mask)?,
                Some(file) => Status::of_with(file.fd(), mask)?,
            },
        };
        let times = self.attributes(&inode, &status);
        let (attr_valid, attr_valid_nsec) = (times.attr_valid, times.attr_valid_nsec);
        let mut stat = status.statx(inode.ino());
        (stat.uid, stat.gid, stat.mode) = (times.attr.uid, times.attr.gid, times.attr.mode as u16);
        (stat.rdev_major, stat.rdev_minor) = device_numbers(times.attr.rdev);
        Ok(StatxOut { attr_valid, attr_valid_nsec, stat, ..StatxOut::default() })
    }

    /// Owner first, since that clears suid and sgid, then mode, size and times: as if all of it were one step.
    ///
    /// A change of owner clears suid, sgid and security.capability by the host's own rules, whoever asks (`chown_common`,
    /// `fs/open.c`). CTIME has no call on Linux; the host sets it by itself.
    pub(crate) fn op_setattr(&self, node: u64, args: &SetattrIn) -> Result<AttrOut> {
        let inode = self.inodes.get(node)?;
        inode.must_be_writable()?;
        let _change = self.changing(&inode);
        let has = |bit: u32| args.valid & bit != 0;
        let handle = if has(fattr::FH) { self.file_at_hand(node, args.fh)? } else { None };
        if has(fattr::UID | fattr::GID) {
            let uid = if has(fattr::UID) { Some(owner(args.uid)?) } else { None };
            let gid = if has(fattr::GID) { Some(owner(args.gid)?) } else { None };
            let (uid, gid) = inode.effects.host_owner(uid, gid)?;
            self.drop_capability(&inode)?;
            if !self.keep_owner(&inode, uid, gid)? {
                let (uid, gid) = (uid.map(Uid::from_raw), gid.map(Gid::from_raw));
                rustix::fs::chownat(inode.fd()?, c"", uid, gid, AtFlags::EMPTY_PATH).lift()?;
            }
        }
        if has(fattr::MODE) {
            self.chmod(&inode, args.mode & 0o7777)?;
        }
        if has(fattr::SIZE) {
            self.truncate(&inode, handle.as_deref(), args.size, has(fattr::KILL_SUIDGID))?;
        }
        if has(fattr::ATIME | fattr::MTIME | fattr::ATIME_NOW | fattr::MTIME_NOW) {
            let last_access = time(has(fattr::ATIME), has(fattr::ATIME_NOW), args.atime, args.atimensec);
            let last_modification = time(has(fattr::MTIME), has(fattr::MTIME_NOW), args.mtime, args.mtimensec);
            self.set_times(&inode, &Timestamps { last_access, last_modification })?;
        }
        let status = match &handle {
            Some(handle) if args.fh & BACKING == 0 => Status::basic(handle.fd())?,
            _ => Status::basic(inode.fd()?)?,
        };
        Ok(self.attributes(&inode, &status))
    }

    /// chmod(2) of the pinned inode, or of what is kept of it.
    pub(crate) fn chmod(&self, inode: &Inode, mode: u32) -> Result<()> {
        if self.keep_mode(inode, mode)? { Ok(()) } else { self.chmod_host(inode, mode) }
    }

    /// fchmodat2 (Linux 6.6), before that through /proc.
    pub(crate) fn chmod_host(&self, inode: &Inode, mode: u32) -> Result<()> {
        match sys::fchmod_path(inode.fd()?.as_fd(), mode) {
            Err(Errno::NOSYS) => self.chmod_by_path(inode, mode),
            result => result.lift(),
        }
    }

    fn chmod_by_path(&self, inode: &Inode, mode: u32) -> Result<()> {
        if inode.kind() == libc::S_IFLNK {
            return errno(libc::EOPNOTSUPP);
        }
        let fd = inode.fd()?;
        let path = DecInt::from_fd(&fd);
        rustix::fs::chmodat(self.proc.dir(), path.as_c_str(), Mode::from_raw_mode(mode), AtFlags::empty()).lift()
    }

    fn truncate(&self, inode: &Arc<Inode>, handle: Option<&FileHandle>, size: u64, kill: bool) -> Result<()> {
        if i64::try_from(size).is_err() {
            return errno(libc::EFBIG);
        }
        inode.must_be_regular()?;
        self.drop_capability(inode)?;
        let _guard = if kill { self.losing_suid(inode)? } else { None };
        if let Some(handle) = handle.filter(|handle| handle.writes) {
            return rustix::io::retry_on_intr(|| rustix::fs::ftruncate(handle.fd(), size)).lift();
        }
        let fd = self.proc.reopen(inode.fd()?, OFlags::WRONLY)?;
        rustix::io::retry_on_intr(|| rustix::fs::ftruncate(&fd, size)).lift()
    }

    /// utimensat(2) of the pinned inode: on the descriptor itself since Linux 5.8.
    fn set_times(&self, inode: &Inode, times: &Timestamps) -> Result<()> {
        rustix::fs::utimensat(inode.fd()?, c"", times, AtFlags::EMPTY_PATH).lift()
    }

    pub(crate) fn op_readlink(&self, node: u64, out: &mut Vec<u8>) -> Result<()> {
        let inode = self.inodes.get(node)?;
        self.asked(&inode);
        if inode.kind() != libc::S_IFLNK {
            return errno(libc::EINVAL);
        }
        // One byte more than a target may have tells whether it was cut off.
        out.reserve(SYMLINK_MAX + 1);
        let length = match self.read_kept_link(&inode, out)? {
            Some(length) => length,
            None => rustix::fs::readlinkat_raw(inode.fd()?, c"", rustix::buffer::spare_capacity(out)).lift()?,
        };
        if length > SYMLINK_MAX { errno(libc::ENAMETOOLONG) } else { Ok(()) }
    }

    pub(crate) fn op_access(&self, cx: &Context, node: u64, mask: u32) -> Result<()> {
        let inode = self.inodes.get(node)?;
        if self.keeps() {
            return if self.kept_allows(cx, &inode, mask)? { Ok(()) } else { errno(libc::EACCES) };
        }
        let _caller = self.caller(&inode.effects, cx, Rights::Plain)?;
        sys::access(inode.fd()?.as_fd(), mask).lift()
    }

    /// While the answer lives, a change to the file's data clears its suid, and its sgid if its group may execute it, by the host's own
    /// rules and in one step with the change. One fstat(2) where there is nothing to clear. The host clears
    /// security.capability on every write, whoever writes.
    pub(crate) fn losing_suid(&self, inode: &Inode) -> Result<Option<WithoutFsetid>> {
        const SGID_EXECUTABLE: u32 = libc::S_ISGID | libc::S_IXGRP;
        self.drop_kept_privileges(inode)?;
        if !WithoutFsetid::matters() {
            return Ok(None);
        }
        let status = Status::basic(inode.fd()?)?;
        let mode = u32::from(status.mode());
        if mode & libc::S_ISUID == 0 && mode & SGID_EXECUTABLE != SGID_EXECUTABLE {
            return Ok(None);
        }
        WithoutFsetid::enter(status.gid()).map(Some)
    }
}

/// -1 means "leave alone" to chown(2); the guest says that by a bit.
fn owner(id: u32) -> Result<u32> {
    if id == u32::MAX { errno(libc::EINVAL) } else { Ok(id) }
}

fn time(set: bool, now: bool, seconds: u64, nanoseconds: u32) -> Timespec {
    match (set, now) {
        (_, true) => Timespec { tv_sec: 0, tv_nsec: UTIME_NOW },
        (true, _) => Timespec { tv_sec: seconds as i64, tv_nsec: nanoseconds.into() },
        _ => Timespec { tv_sec: 0, tv_nsec: UTIME_OMIT },
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt;

    use virtiofs_fuse::wire::ROOT_ID;

    use super::*;
    use crate::Config;

    /// What a kernel before 6.6 makes us do gives what a newer one's call gives.
    #[test]
    fn the_way_by_path_changes_the_same_mode() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("f"), "").unwrap();
        std::os::unix::fs::symlink("f", dir.path().join("l")).unwrap();
        let share = HostDir::new(Config { root: dir.path().into(), ..Config::default() }).unwrap();
        let cx = Context { unique: 0, uid: 0, gid: 0, pid: 0, may_block: true };
        let node = |name| share.inodes.get(share.op_lookup(&cx, ROOT_ID, name).unwrap().nodeid).unwrap();
        let mode = || std::fs::metadata(dir.path().join("f")).unwrap().mode() & 0o7777;
        share.chmod(&node(c"f"), 0o4711).unwrap();
        assert_eq!(mode(), 0o4711);
        share.chmod_by_path(&node(c"f"), 0o640).unwrap();
        assert_eq!(mode(), 0o640);
        for refused in [share.chmod(&node(c"l"), 0o600), share.chmod_by_path(&node(c"l"), 0o600)] {
            assert_eq!(refused, Err(virtiofs_fuse::Error::Errno(libc::EOPNOTSUPP)));
        }
        assert_eq!(mode(), 0o640);
    }
}
