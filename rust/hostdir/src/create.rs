//! CREATE, TMPFILE, MKNOD, MKDIR, SYMLINK: inodes come to be, as their caller's.

use std::ffi::CStr;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use rustix::fs::{AtFlags, FileType, Mode, OFlags};
use virtiofs_fuse::wire::{EntryOut, OpenOut};
use virtiofs_fuse::{Context, Creation, Error, Result};

use crate::HostDir;
use crate::credentials::Rights;
use crate::error::{Lift, STALE, errno};
use crate::hostdir::component;
use crate::inode::Inode;
use crate::pins::PinFd;
use crate::stat::{Status, decode_device};

/// Flags that make a file, and are not kept with its descriptor.
const CREATES: OFlags = OFlags::CREATE.union(OFlags::NOFOLLOW).union(OFlags::TMPFILE);

/// An inode that is to be made.
#[derive(Clone, Copy)]
pub(crate) struct Wanted<'a> {
    /// Type and permissions.
    pub(crate) mode: u32,
    /// As the wire has it.
    pub(crate) rdev: u32,
    /// Of a symlink.
    pub(crate) target: &'a CStr,
}

/// Somebody makes and removes the same name all the time: after so many rounds the guest may look again by itself.
const ROUNDS: usize = 16;

impl HostDir {
    /// open(2) with O_CREAT. A file that is there already is opened only if it is a regular one and this caller may, by what the host
    /// sees of it: the guest thought that the name was free and has checked nothing. Where that does not do, ESTALE makes the
    /// guest look the name up again and decide.
    #[allow(clippy::too_many_arguments)]
    pub(crate) fn op_create(
        &self,
        cx: &Context,
        parent: u64,
        name: &CStr,
        flags: u32,
        mode: u32,
        kill_suidgid: bool,
        new: &Creation<'_>,
    ) -> Result<(EntryOut, OpenOut)> {
        let dir = self.writable_directory(parent)?;
        let name = component(name)?;
        let host_flags = self.host_flags(&dir, flags)?;
        self.may_ask(cx)?;
        self.must_be_seen(&dir, name, Some(libc::S_IFREG))?;
        self.room_for_new()?;
        for _ in 0..ROUNDS {
            let fresh = OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW;
            let mut change = self.changing(&dir);
            match change.of(self.create_file(cx, &dir, name, fresh, host_flags & !libc::O_TRUNC, mode, new)) {
                Ok(fd) => {
                    let undo = || _ = dir.fd().map(|dir| rustix::fs::unlinkat(dir, name, AtFlags::empty()));
                    return self.enter_created(&dir, name, fd, host_flags, new, undo);
                }
                Err(Error::Errno(libc::EEXIST)) if flags as i32 & libc::O_EXCL == 0 => {}
                Err(error) => return Err(error),
            }
            match self.open_existing(cx, &dir, name, flags, kill_suidgid) {
                Err(Error::Errno(libc::ENOENT)) => {}
                result => return result,
            }
        }
        Err(STALE)
    }

    fn open_existing(
        &self,
        cx: &Context,
        dir: &Arc<Inode>,
        name: &CStr,
        flags: u32,
        kill_suidgid: bool,
    ) -> Result<(EntryOut, OpenOut)> {
        let inode = self.enter(dir, dir.fd()?.as_fd(), name, false, &mut Status::none())?;
        let open = || {
            inode.must_be_regular().map_err(|_| STALE)?;
            if self.keeps() && !self.kept_allows(cx, &inode, access_mask(flags))? {
                return Err(STALE);
            }
            let host_flags = self.host_flags(&inode, flags)?;
            let _change = (host_flags & libc::O_TRUNC != 0).then(|| self.changing(&inode));
            let caller = self.caller(&inode.effects, cx, Rights::Plain)?;
            let _guard = if kill_suidgid && caller.is_oneself() { self.losing_suid(&inode)? } else { None };
            let (fd, host_flags) = self.open_inode(&inode, host_flags, flags).map_err(|error| match error {
                Error::Errno(libc::EACCES) => STALE,
                error => error,
            })?;
            Ok((fd, host_flags, Status::basic(inode.fd()?)?))
        };
        match open() {
            Ok((fd, host_flags, status)) => Ok((self.entry(&inode, &status), self.new_file(inode, fd, host_flags))),
            Err(error) => {
                self.inodes.forget_inode(&inode, 1);
                Err(error)
            }
        }
    }

    pub(crate) fn op_tmpfile(
        &self,
        cx: &Context,
        parent: u64,
        flags: u32,
        mode: u32,
        new: &Creation<'_>,
    ) -> Result<(EntryOut, OpenOut)> {
        let dir = self.writable_directory(parent)?;
        let host_flags = self.host_flags(&dir, flags)? & !libc::O_TRUNC;
        self.may_ask(cx)?;
        self.room_for_new()?;
        // O_EXCL says that the file may never get a name.
        let nameless = OFlags::TMPFILE | OFlags::from_bits_retain(flags) & OFlags::EXCL;
        let fd = self.create_file(cx, &dir, c"", nameless, host_flags, mode, new)?;
        self.enter_created(&dir, c"", fd, host_flags, new, || {})
    }

    #[allow(clippy::too_many_arguments)]
    fn create_file(
        &self,
        cx: &Context,
        dir: &Inode,
        name: &CStr,
        how: OFlags,
        host_flags: i32,
        mode: u32,
        new: &Creation<'_>,
    ) -> Result<OwnedFd> {
        let effects = self.effects_of_new(dir, name, libc::S_IFREG)?;
        let effects = effects.as_deref().unwrap_or(self.base());
        let flags = OFlags::from_bits_retain(host_flags as u32) | how | OFlags::CLOEXEC;
        if self.keeps() {
            let name = (!name.is_empty()).then_some(name);
            return self.create_kept(cx, effects, dir, name, flags & !CREATES, mode, new);
        }
        let dir = dir.fd()?;
        let _caller = self.creates(effects, cx, new)?;
        let mode = Mode::from_raw_mode(mode & 0o7777);
        let name = if name.is_empty() { c"." } else { name };
        rustix::io::retry_on_intr(|| rustix::fs::openat(&dir, name, flags, mode)).lift()
    }

    /// The node and the handle of a file that this call made. The descriptor that pins the node is a second one, O_PATH: the open one would
    /// count as a writer for as long as the guest remembers the file, and nobody could execute it.
    fn enter_created(
        &self,
        dir: &Inode,
        name: &CStr,
        fd: OwnedFd,
        host_flags: i32,
        new: &Creation<'_>,
        undo: impl Fn(),
    ) -> Result<(EntryOut, OpenOut)> {
        let pin = self.proc.reopen(&fd, OFlags::PATH)?;
        if let Some((label, value)) = new.security {
            self.set_label(&pin, label, value).inspect_err(|_| undo())?;
        }
        let status = self.shown(Status::of(&pin)?, &pin);
        let inode = self.enter_fd(dir, name, pin, &status).inspect_err(|_| undo())?;
        Ok((self.entry(&inode, &status), self.new_file(inode, fd, host_flags)))
    }

    pub(crate) fn op_mknod(
        &self,
        cx: &Context,
        parent: u64,
        name: &CStr,
        mode: u32,
        rdev: u32,
        new: &Creation<'_>,
    ) -> Result<EntryOut> {
        let kind = match mode & libc::S_IFMT {
            // mknod(2) takes no type at all for a regular file.
            0 => libc::S_IFREG,
            kind @ (libc::S_IFREG | libc::S_IFIFO | libc::S_IFSOCK | libc::S_IFCHR | libc::S_IFBLK) => kind,
            _ => return errno(libc::EINVAL),
        };
        self.make(cx, parent, name, Wanted { mode: kind | mode & 0o7777, rdev, target: c"" }, new)
    }

    pub(crate) fn op_mkdir(
        &self,
        cx: &Context,
        parent: u64,
        name: &CStr,
        mode: u32,
        new: &Creation<'_>,
    ) -> Result<EntryOut> {
        self.make(cx, parent, name, Wanted { mode: libc::S_IFDIR | mode & 0o7777, rdev: 0, target: c"" }, new)
    }

    pub(crate) fn op_symlink(
        &self,
        cx: &Context,
        parent: u64,
        name: &CStr,
        target: &CStr,
        new: &Creation<'_>,
    ) -> Result<EntryOut> {
        self.make(cx, parent, name, Wanted { mode: libc::S_IFLNK, rdev: 0, target }, new)
    }

    /// Refuses to make what the guest could not hold afterwards.
    fn room_for_new(&self) -> Result<()> {
        self.inodes.room()?;
        self.bounds.room()
    }

    /// Makes what needs no handle, labels it, and enters it; takes it away again if the label is refused.
    fn make(&self, cx: &Context, parent: u64, name: &CStr, wanted: Wanted<'_>, new: &Creation<'_>) -> Result<EntryOut> {
        let dir: Arc<Inode> = self.writable_directory(parent)?;
        let name = component(name)?;
        self.may_ask(cx)?;
        let kind = wanted.mode & libc::S_IFMT;
        self.must_be_seen(&dir, name, Some(kind))?;
        self.room_for_new()?;
        let is_directory = kind == libc::S_IFDIR;
        let effects = self.effects_of_new(&dir, name, kind)?;
        let effects = effects.as_deref().unwrap_or(self.base());
        let mut change = self.changing(&dir);
        if self.keeps() {
            change.of(self.make_kept(cx, effects, &dir, name, wanted, new))?;
        } else {
            let _caller = self.creates(effects, cx, new)?;
            change.of(make_as_wanted(&dir.fd()?, name, wanted).lift())?;
        }
        let mut status = Status::none();
        let inode = self.enter(&dir, dir.fd()?.as_fd(), name, is_directory, &mut status)?;
        if let Some((label, value)) = new.security
            && let Err(error) = self.set_label(&inode.fd()?, label, value)
        {
            self.inodes.forget_inode(&inode, 1);
            let undo = if is_directory { AtFlags::REMOVEDIR } else { AtFlags::empty() };
            _ = rustix::fs::unlinkat(dir.fd()?, name, undo);
            return Err(error);
        }
        Ok(self.entry(&inode, &status))
    }
}

/// The calls that make inodes, by type.
fn make_as_wanted(dir: &PinFd<'_>, name: &CStr, wanted: Wanted<'_>) -> rustix::io::Result<()> {
    let permissions = Mode::from_raw_mode(wanted.mode & 0o7777);
    match FileType::from_raw_mode(wanted.mode) {
        FileType::Directory => rustix::fs::mkdirat(dir, name, permissions),
        FileType::Symlink => rustix::fs::symlinkat(wanted.target, dir, name),
        kind => rustix::fs::mknodat(dir, name, kind, permissions, decode_device(wanted.rdev)),
    }
}

/// What open(2) with these flags wants to do, as access(2) says it.
fn access_mask(flags: u32) -> u32 {
    let flags = flags as i32;
    let (read, write) = match flags & libc::O_ACCMODE {
        libc::O_RDONLY => (libc::R_OK, 0),
        libc::O_WRONLY => (0, libc::W_OK),
        _ => (libc::R_OK, libc::W_OK),
    };
    (read | write | if flags & libc::O_TRUNC != 0 { libc::W_OK } else { 0 }) as u32
}
