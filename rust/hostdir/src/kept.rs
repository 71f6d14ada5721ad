//! Owners, modes and device numbers that the host keeps in an extended attribute for us: what a daemon without privileges could not give
//! to a host's inode, and what no guest is to give to one.
//!
//! On the host there are directories, and regular files that stand for all else (a symlink's target is the content), all of them the
//! daemon's own and for nobody else. So a guest's setuid bits mean nothing there, its devices do nothing, and a mode without access
//! keeps the daemon from nothing. A symlink is a file there too because symlinks cannot have the attribute (xattr(7)): its owner is
//! kept, and no program of the host follows where a guest points.
//!
//! What lacks the attribute is what the host says. One that cannot be read or understood closes its inode to all but the guest's root.
//! The rules for owners and set-id bits of new inodes and at changes are those of `inode_init_owner`, `mode_strip_sgid` and `chown_common`
//! in the kernel's `fs/`. (More than 400 lines, since whoever changes one end of this has to see the other.)

use std::ffi::CStr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use parking_lot::Mutex;
use rustix::fs::{AtFlags, Mode, OFlags};
use rustix::path::DecInt;
use virtiofs_fuse::wire::Attr;
use virtiofs_fuse::{Context, Creation, Error, Result};

use crate::HostDir;
use crate::config::Effects;
use crate::create::Wanted;
use crate::credentials::set_umask;
use crate::error::{Lift, errno};
use crate::inode::Inode;
use crate::lookup::open_path;
use crate::stat::{Status, device_numbers, encode_device};

/// What the host's files and directories are for their owner; for others they are nothing.
const FILE: u32 = 0o600;
const DIRECTORY: u32 = 0o700;

/// The attribute is read, changed and written: one thread at a time for an inode, whichever guest of this process asks.
static CHANGES: [Mutex<()>; 64] = [const { Mutex::new(()) }; 64];

/// What is kept of an inode. As text: `uid:gid:mode`, the mode in octal with its type, and `:major:minor` of a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Kept {
    uid: u32,
    gid: u32,
    mode: u32,
    /// As the wire has it.
    rdev: u32,
}

impl Kept {
    /// Somebody has spoilt it.
    const CLOSED: Kept = Kept { uid: 65534, gid: 65534, mode: 0, rdev: 0 };

    fn of(status: &Status) -> Kept {
        let attr = status.attr(0);
        Kept { uid: attr.uid, gid: attr.gid, mode: attr.mode, rdev: attr.rdev }
    }

    fn is_device(&self) -> bool {
        matches!(self.mode & libc::S_IFMT, libc::S_IFCHR | libc::S_IFBLK)
    }

    fn to_text(self) -> String {
        let Kept { uid, gid, mode, rdev } = self;
        if !self.is_device() {
            return format!("{uid}:{gid}:{mode:o}");
        }
        let (major, minor) = device_numbers(rdev);
        format!("{uid}:{gid}:{mode:o}:{major}:{minor}")
    }

    fn parse(text: &[u8]) -> Option<Kept> {
        let mut parts = std::str::from_utf8(text).ok()?.split(':');
        let mut number = |radix| {
            let digits = parts.next().filter(|part| part.bytes().all(|byte| byte.is_ascii_digit()))?;
            u32::from_str_radix(digits, radix).ok()
        };
        let mut kept = Kept { uid: number(10)?, gid: number(10)?, mode: number(8)?, rdev: 0 };
        if kept.is_device() {
            let (major, minor) = (number(10)?, number(10)?);
            kept.rdev = encode_device(major, minor);
            if device_numbers(kept.rdev) != (major, minor) {
                return None;
            }
        }
        (parts.next().is_none() && kept.mode >> 16 == 0).then_some(kept)
    }

    /// The type that an inode of the host has with this: a directory is one in any case, and nothing else is.
    fn kind(&self, host: u32) -> u32 {
        match (host, self.mode & libc::S_IFMT) {
            (
                libc::S_IFREG,
                kind @ (libc::S_IFLNK | libc::S_IFCHR | libc::S_IFBLK | libc::S_IFIFO | libc::S_IFSOCK),
            ) => kind,
            (host, _) => host,
        }
    }

    /// Whether there are privileges that go when the file changes.
    fn has_privileges(&self) -> bool {
        self.without_privileges() != self.mode
    }

    fn without_privileges(&self) -> u32 {
        const SGID_EXECUTABLE: u32 = libc::S_ISGID | libc::S_IXGRP;
        let mode = self.mode & !libc::S_ISUID;
        if mode & SGID_EXECUTABLE == SGID_EXECUTABLE { mode & !libc::S_ISGID } else { mode }
    }
}

impl HostDir {
    /// Whether all this is so.
    #[inline]
    pub(crate) fn keeps(&self) -> bool {
        self.config.kept.is_some()
    }

    /// Whether a name on the host is that of the attribute, which is not for guests.
    pub(crate) fn is_kept(&self, name: &[u8]) -> bool {
        self.config.kept.as_ref().is_some_and(|kept| kept.to_bytes() == name)
    }

    /// Whether a node is a special file or symlink to its guest: those have no attributes for users (xattr(7)).
    pub(crate) fn is_only_a_file_on_the_host(&self, inode: &Inode) -> bool {
        self.keeps() && !matches!(inode.kind(), libc::S_IFREG | libc::S_IFDIR)
    }

    fn read_kept(&self, fd: BorrowedFd<'_>) -> Result<Option<Kept>> {
        let Some(name) = &self.config.kept else { return Ok(None) };
        let mut text = [0; 64];
        match self.xattrs(fd).get(name, &mut text) {
            Ok(length) => Ok(Some(text.get(..length).and_then(Kept::parse).unwrap_or(Kept::CLOSED))),
            Err(Error::Errno(libc::ENODATA | libc::EOPNOTSUPP | libc::EPERM)) => Ok(None),
            Err(Error::Errno(libc::ERANGE)) => Ok(Some(Kept::CLOSED)),
            Err(error) => Err(error),
        }
    }

    /// What is to be shown.
    fn kept(&self, fd: BorrowedFd<'_>) -> Option<Kept> {
        match self.read_kept(fd) {
            // The daemon may not look into this file of the host's.
            Err(Error::Errno(libc::EACCES)) => None,
            result => result.unwrap_or(Some(Kept::CLOSED)),
        }
    }

    fn write_kept(&self, fd: BorrowedFd<'_>, kept: Kept) -> Result<()> {
        match &self.config.kept {
            Some(name) => self.xattrs(fd).set(name, kept.to_text().as_bytes(), 0),
            None => Ok(()),
        }
    }

    /// Puts what is kept of a node's inode in the place of what the host says.
    #[inline]
    pub(crate) fn show_kept(&self, inode: &Inode, attr: &mut Attr) {
        if !self.keeps() {
            return;
        }
        let kept = inode.fd().map_or(Some(Kept::CLOSED), |fd| self.kept(fd.as_fd()));
        if let Some(kept) = kept {
            (attr.uid, attr.gid, attr.rdev) = (kept.uid, kept.gid, kept.rdev);
            // A node never changes its type, whoever writes attributes on the host.
            attr.mode = inode.kind() | kept.mode & 0o7777;
        }
    }

    /// The same for an inode that is no node yet.
    pub(crate) fn shown(&self, status: Status, fd: impl AsFd) -> Status {
        match self.keeps().then(|| self.kept(fd.as_fd())).flatten() {
            None => status,
            Some(kept) => {
                let mode = kept.kind(status.kind()) | kept.mode & 0o7777;
                status.owned(kept.uid, kept.gid, mode, device_numbers(kept.rdev))
            }
        }
    }

    /// What a name leads to, as the guest is to see it.
    pub(crate) fn status_at(&self, dir: &Inode, name: &CStr) -> Result<Status> {
        if !self.keeps() {
            return Status::by_name(dir.fd()?, name);
        }
        let fd = open_path(dir.fd()?.as_fd(), name)?;
        Ok(self.shown(Status::of(&fd)?, &fd))
    }

    /// Changes what is kept of an inode. False where the host itself has it: special files and symlinks that a guest did not make.
    fn change_kept(&self, inode: &Inode, change: impl Fn(&mut Kept)) -> Result<bool> {
        if !self.keeps() {
            return Ok(false);
        }
        let _one = CHANGES.get(inode.key.ino as usize % CHANGES.len()).map(Mutex::lock);
        let fd = inode.fd()?;
        let host = Status::basic(&fd)?;
        let attempt = || {
            let mut kept = match self.read_kept(fd.as_fd())? {
                Some(kept) => kept,
                None if matches!(inode.kind(), libc::S_IFREG | libc::S_IFDIR) => Kept::of(&host),
                None => return Ok(false),
            };
            change(&mut kept);
            kept.mode = inode.kind() | kept.mode & 0o7777;
            self.write_kept(fd.as_fd(), kept).map(|()| true)
        };
        match attempt() {
            // A file of the daemon's user that the host has made unreadable or read-only.
            Err(Error::Errno(libc::EACCES)) => self.open_to_owner(inode).and_then(|()| attempt()),
            result => result,
        }
    }

    /// Gives the daemon's user the rights on the host that it has to have.
    fn open_to_owner(&self, inode: &Inode) -> Result<()> {
        let host = u32::from(Status::basic(inode.fd()?)?.mode()) & 0o7777;
        let wanted = host | if inode.is_directory() { DIRECTORY } else { FILE };
        if host == wanted { Ok(()) } else { self.chmod_host(inode, wanted) }
    }

    /// chown(2). False where the host has to do it.
    pub(crate) fn keep_owner(&self, inode: &Inode, uid: Option<u32>, gid: Option<u32>) -> Result<bool> {
        self.change_kept(inode, |kept| {
            kept.uid = uid.unwrap_or(kept.uid);
            kept.gid = gid.unwrap_or(kept.gid);
            if !inode.is_directory() {
                kept.mode = kept.without_privileges();
            }
        })
    }

    /// chmod(2). False where the host has to do it.
    pub(crate) fn keep_mode(&self, inode: &Inode, mode: u32) -> Result<bool> {
        let kept = self.change_kept(inode, |kept| kept.mode = mode)?;
        if kept {
            // It was one of the host's own before; nobody else's can be opened so.
            _ = self.open_to_owner(inode);
        }
        Ok(kept)
    }

    /// Takes suid, and sgid if its group may execute it, from a file that is about to change.
    pub(crate) fn drop_kept_privileges(&self, inode: &Inode) -> Result<()> {
        let has = |kept: Option<Kept>| kept.is_some_and(|kept| kept.has_privileges());
        if self.keeps() && has(self.read_kept(inode.fd()?.as_fd())?) {
            self.change_kept(inode, |kept| kept.mode = kept.without_privileges())?;
        }
        Ok(())
    }

    /// Whether somebody in the guest may, by what is kept, with no more groups than we are told; `mask` is that of access(2).
    pub(crate) fn kept_allows(&self, cx: &Context, inode: &Inode, mask: u32) -> Result<bool> {
        let fd = inode.fd()?;
        let kept = self.kept(fd.as_fd()).map_or_else(|| Status::basic(&fd).map(|status| Kept::of(&status)), Ok)?;
        let caller = inode.effects.caller(cx)?;
        let granted = match () {
            () if cx.uid == 0 && (inode.is_directory() || kept.mode & 0o111 != 0) => 0o7,
            () if cx.uid == 0 => 0o6,
            () if caller.uid == kept.uid => kept.mode >> 6,
            () if caller.gid == kept.gid => kept.mode >> 3,
            () => kept.mode,
        };
        Ok(mask & 0o7 & !granted == 0)
    }

    /// What is to be kept of a new inode.
    fn newly_kept(
        &self,
        cx: &Context,
        effects: &Effects,
        dir: &Inode,
        wanted: Wanted<'_>,
        new: &Creation<'_>,
    ) -> Result<Kept> {
        let caller = effects.caller(cx)?;
        let group = effects.host_group_of(new)?;
        let own = |id: u32, own: u32| if id == u32::MAX { own } else { id };
        let uid = own(caller.uid, rustix::process::geteuid().as_raw());
        let mut gid = own(caller.gid, rustix::process::getegid().as_raw());
        let kind = wanted.mode & libc::S_IFMT;
        let mut mode = if kind == libc::S_IFLNK { 0o777 } else { wanted.mode & 0o7777 & !(new.umask & 0o777) };
        let fd = dir.fd()?;
        let above = self.kept(fd.as_fd()).map_or_else(|| Status::basic(&fd).map(|status| Kept::of(&status)), Ok)?;
        if above.mode & libc::S_ISGID != 0 {
            const SGID_EXECUTABLE: u32 = libc::S_ISGID | libc::S_IXGRP;
            let member = cx.uid == 0 || gid == above.gid || group == Some(above.gid);
            gid = above.gid;
            if kind == libc::S_IFDIR {
                mode |= libc::S_ISGID;
            } else if mode & SGID_EXECUTABLE == SGID_EXECUTABLE && !member {
                mode &= !libc::S_ISGID;
            }
        }
        let rdev = if matches!(kind, libc::S_IFCHR | libc::S_IFBLK) { wanted.rdev } else { 0 };
        Ok(Kept { uid, gid, mode: kind | mode, rdev })
    }

    /// MKNOD, MKDIR, SYMLINK.
    pub(crate) fn make_kept(
        &self,
        cx: &Context,
        effects: &Effects,
        dir: &Inode,
        name: &CStr,
        wanted: Wanted<'_>,
        new: &Creation<'_>,
    ) -> Result<()> {
        let kept = self.newly_kept(cx, effects, dir, wanted, new)?;
        if wanted.mode & libc::S_IFMT != libc::S_IFDIR {
            let target = wanted.target.to_bytes();
            if wanted.mode & libc::S_IFMT == libc::S_IFLNK && target.is_empty() {
                return errno(libc::ENOENT);
            }
            return self.make_file(dir, name, OFlags::WRONLY, target, kept).map(drop);
        }
        set_umask(!DIRECTORY)?;
        rustix::fs::mkdirat(dir.fd()?, name, Mode::from_raw_mode(DIRECTORY)).lift()?;
        let made = open_path(dir.fd()?.as_fd(), name).and_then(|fd| self.write_kept(fd.as_fd(), kept));
        made.inspect_err(|_| _ = dir.fd().map(|dir| rustix::fs::unlinkat(dir, name, AtFlags::REMOVEDIR)))
    }

    /// CREATE, and TMPFILE without a name. `flags` are those of open(2).
    #[allow(clippy::too_many_arguments)]
    pub(crate) fn create_kept(
        &self,
        cx: &Context,
        effects: &Effects,
        dir: &Inode,
        name: Option<&CStr>,
        flags: OFlags,
        mode: u32,
        new: &Creation<'_>,
    ) -> Result<OwnedFd> {
        let wanted = Wanted { mode: libc::S_IFREG | mode & 0o7777, rdev: 0, target: c"" };
        let kept = self.newly_kept(cx, effects, dir, wanted, new)?;
        // A file without a name has to be open for writing.
        let writes = flags & OFlags::ACCMODE != OFlags::RDONLY;
        let opened = if writes { flags } else { flags | OFlags::RDWR };
        let fd = match name {
            Some(name) => self.make_file(dir, name, opened, b"", kept)?,
            None => {
                let fd = self.make_nameless(dir, opened)?;
                self.write_kept(fd.as_fd(), kept)?;
                fd
            }
        };
        if writes { Ok(fd) } else { self.proc.reopen(&fd, flags & !(OFlags::EXCL | OFlags::CREATE)) }
    }

    /// A new file under a name that is free, with all that is kept of it from its first moment, where the host's file system can.
    fn make_file(&self, dir: &Inode, name: &CStr, flags: OFlags, content: &[u8], kept: Kept) -> Result<OwnedFd> {
        let fd = match self.make_nameless(dir, flags & !OFlags::EXCL) {
            Err(Error::Errno(libc::EOPNOTSUPP | libc::EISDIR)) => {
                return self.make_in_place(dir, name, flags, content, kept);
            }
            result => result?,
        };
        self.write_kept(fd.as_fd(), kept)?;
        fill(&fd, content)?;
        let from = DecInt::from_fd(&fd);
        rustix::fs::linkat(self.proc.dir(), from.as_c_str(), dir.fd()?, name, AtFlags::SYMLINK_FOLLOW).lift()?;
        Ok(fd)
    }

    fn make_nameless(&self, dir: &Inode, flags: OFlags) -> Result<OwnedFd> {
        set_umask(!FILE)?;
        let flags = flags | OFlags::TMPFILE | OFlags::CLOEXEC;
        let dir = dir.fd()?;
        rustix::io::retry_on_intr(|| rustix::fs::openat(&dir, c".", flags, Mode::from_raw_mode(FILE))).lift()
    }

    /// Until it has its attribute it is the daemon's user's, and closed to others.
    fn make_in_place(&self, dir: &Inode, name: &CStr, flags: OFlags, content: &[u8], kept: Kept) -> Result<OwnedFd> {
        set_umask(!FILE)?;
        let flags = flags | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let dir = dir.fd()?;
        let fd =
            rustix::io::retry_on_intr(|| rustix::fs::openat(&dir, name, flags, Mode::from_raw_mode(FILE))).lift()?;
        let made = self.write_kept(fd.as_fd(), kept).and_then(|()| fill(&fd, content));
        made.inspect_err(|_| _ = rustix::fs::unlinkat(&dir, name, AtFlags::empty()))?;
        Ok(fd)
    }

    /// The target of a symlink that is a file on the host, from its beginning.
    pub(crate) fn read_kept_link(&self, inode: &Inode, out: &mut Vec<u8>) -> Result<Option<usize>> {
        let fd = inode.fd()?;
        if !self.keeps() || Status::basic(&fd)?.kind() != libc::S_IFREG {
            return Ok(None);
        }
        let file = self.proc.reopen(&fd, OFlags::RDONLY)?;
        let read = || rustix::io::pread(&file, rustix::buffer::spare_capacity(out), 0);
        rustix::io::retry_on_intr(read).lift().map(Some)
    }
}

/// Writes the content of a new file.
fn fill(fd: &OwnedFd, mut content: &[u8]) -> Result<()> {
    while !content.is_empty() {
        let written = rustix::io::retry_on_intr(|| rustix::io::write(fd, content)).lift()?;
        content = content.get(written..).unwrap_or_default();
    }
    Ok(())
}

#[cfg(test)]
#[path = "kept_tests.rs"]
mod tests;
