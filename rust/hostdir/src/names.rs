//! UNLINK, RMDIR, RENAME, LINK: what happens to names. Nodes do not notice: they are inodes, not paths.

use std::ffi::CStr;

use rustix::fs::{AtFlags, RenameFlags};
use rustix::path::DecInt;
use virtiofs_fuse::wire::EntryOut;
use virtiofs_fuse::{Context, Result};

use crate::HostDir;
use crate::credentials::Rights;
use crate::error::{Lift, STALE, errno};
use crate::hostdir::component;
use crate::stat::Status;

impl HostDir {
    pub(crate) fn op_remove(&self, cx: &Context, parent: u64, name: &CStr, flags: AtFlags) -> Result<()> {
        let dir = self.writable_directory(parent)?;
        let name = component(name)?;
        self.may_ask(cx)?;
        self.must_be_seen(&dir, name, None)?;
        self.hold_on(&dir, name);
        let renaming = self.renaming([(&dir, name), (&dir, name)])?;
        renaming.of(rustix::fs::unlinkat(dir.fd()?, name, flags).lift())
    }

    pub(crate) fn op_rename(
        &self,
        cx: &Context,
        parent: u64,
        name: &CStr,
        newparent: u64,
        newname: &CStr,
        flags: u32,
    ) -> Result<()> {
        let from = self.writable_directory(parent)?;
        let to = self.writable_directory(newparent)?;
        let Some(flags) = RenameFlags::from_bits(flags).filter(|flags| known(*flags)) else {
            return errno(libc::EINVAL);
        };
        let (name, newname) = (component(name)?, component(newname)?);
        self.may_ask(cx)?;
        self.must_be_seen(&from, name, None)?;
        self.must_be_seen(&to, newname, None)?;
        // A whiteout is a device node that comes to be, as the caller's.
        let _caller = match flags.contains(RenameFlags::WHITEOUT) {
            true => Some(self.caller(&from.effects, cx, Rights::Checked)?),
            false => None,
        };
        self.hold_on(&from, name);
        self.hold_on(&to, newname);
        let renaming = self.renaming([(&from, name), (&to, newname)])?;
        renaming.of(rustix::fs::renameat_with(from.fd()?, name, to.fd()?, newname, flags).lift())
    }

    /// linkat(2) by way of /proc: with AT_EMPTY_PATH it wants CAP_DAC_READ_SEARCH. A magic link ends at the inode itself, so symlinks are
    /// linked, not followed; and a file made by TMPFILE gets its first name.
    pub(crate) fn op_link(&self, cx: &Context, node: u64, newparent: u64, newname: &CStr) -> Result<EntryOut> {
        let inode = self.inodes.get(node)?;
        inode.must_be_writable()?;
        let dir = self.writable_directory(newparent)?;
        let newname = component(newname)?;
        self.may_ask(cx)?;
        self.must_be_seen(&dir, newname, Some(inode.kind()))?;
        if !inode.count() {
            return Err(STALE);
        }
        let fd = inode.fd()?;
        let (mut change, mut change_dir) = (self.changing(&inode), self.changing(&dir));
        let linked = rustix::fs::linkat(
            self.proc.dir(),
            DecInt::from_fd(&fd).as_c_str(),
            dir.fd()?,
            newname,
            AtFlags::SYMLINK_FOLLOW,
        );
        match change.of(change_dir.of(linked.lift())).and_then(|()| Status::basic(inode.fd()?)) {
            Ok(status) => Ok(self.entry(&inode, &status)),
            Err(error) => {
                self.inodes.forget_inode(&inode, 1);
                Err(error)
            }
        }
    }
}

fn known(flags: RenameFlags) -> bool {
    (RenameFlags::NOREPLACE | RenameFlags::EXCHANGE | RenameFlags::WHITEOUT).contains(flags)
}
