//! Attributes of host inodes, and their wire forms.

use std::ffi::CStr;
use std::os::fd::AsFd;

use rustix::fs::{AtFlags, Statx as HostStatx, StatxFlags};
use virtiofs_fuse::Result;
use virtiofs_fuse::wire::{Attr, Statx, SxTime};

use crate::error::Lift;
use crate::inode::Key;
use crate::sys;

/// `STATX_MNT_ID_UNIQUE` (Linux 6.8): a mount id that is never used again. Asked for together with `STATX_MNT_ID`, which older
/// kernels answer instead.
const MNT_ID_UNIQUE: u32 = 0x4000;

fn identity() -> StatxFlags {
    StatxFlags::BASIC_STATS | StatxFlags::BTIME | StatxFlags::MNT_ID | StatxFlags::from_bits_retain(MNT_ID_UNIQUE)
}

/// The time of birth of an inode: seconds and nanoseconds.
pub(crate) type Born = (i64, u32);

/// What statx(2) told about an inode.
#[derive(Clone, Copy)]
pub(crate) struct Status(HostStatx);

impl Status {
    /// Nothing yet: what others fill in is not moved about.
    #[inline]
    pub(crate) fn none() -> Status {
        Status(sys::no_statx())
    }

    /// Of the descriptor's inode, with what identifies it.
    pub(crate) fn of(fd: impl AsFd) -> Result<Status> {
        Status::empty_path(fd, identity())
    }

    /// As [`Status::of`], in place.
    pub(crate) fn read(&mut self, fd: impl AsFd) -> Result<()> {
        sys::statx(fd.as_fd(), c"", AtFlags::EMPTY_PATH, identity(), &mut self.0).lift()
    }

    /// As [`Status::basic`], in place.
    pub(crate) fn read_basic(&mut self, fd: impl AsFd) -> Result<()> {
        sys::statx(fd.as_fd(), c"", AtFlags::EMPTY_PATH, StatxFlags::BASIC_STATS, &mut self.0).lift()
    }

    /// As [`Status::by_name`], in place.
    pub(crate) fn read_name(&mut self, dir: impl AsFd, name: &CStr) -> Result<()> {
        let flags = AtFlags::SYMLINK_NOFOLLOW | AtFlags::NO_AUTOMOUNT;
        sys::statx(dir.as_fd(), name, flags, identity(), &mut self.0).lift()
    }

    /// Of the descriptor's inode, with exactly what `mask` asks for.
    pub(crate) fn of_with(fd: impl AsFd, mask: StatxFlags) -> Result<Status> {
        Status::empty_path(fd, mask)
    }

    /// Of the descriptor's inode, as stat(2) would tell.
    pub(crate) fn basic(fd: impl AsFd) -> Result<Status> {
        Status::empty_path(fd, StatxFlags::BASIC_STATS)
    }

    fn empty_path(fd: impl AsFd, mask: StatxFlags) -> Result<Status> {
        let mut status = Status::none();
        sys::statx(fd.as_fd(), c"", AtFlags::EMPTY_PATH, mask, &mut status.0).lift()?;
        Ok(status)
    }

    /// Of a name in a directory, links not followed.
    pub(crate) fn by_name(dir: impl AsFd, name: &CStr) -> Result<Status> {
        let mut status = Status::none();
        status.read_name(dir, name)?;
        Ok(status)
    }

    /// What identifies the inode. Before Linux 5.8 the mount is always 0.
    pub(crate) fn key(&self) -> Key {
        let device = rustix::fs::makedev(self.0.stx_dev_major, self.0.stx_dev_minor);
        Key { mount: self.0.stx_mnt_id, device, ino: self.0.stx_ino }
    }

    /// When the inode was made, where the host's file system remembers it.
    pub(crate) fn born(&self) -> Option<Born> {
        let known = self.0.stx_mask & StatxFlags::BTIME.bits() != 0;
        known.then_some((self.0.stx_btime.tv_sec, self.0.stx_btime.tv_nsec))
    }

    /// The type alone.
    pub(crate) fn kind(&self) -> u32 {
        u32::from(self.mode()) & libc::S_IFMT
    }

    pub(crate) fn is_directory(&self) -> bool {
        u32::from(self.mode()) & libc::S_IFMT == libc::S_IFDIR
    }

    /// Type and permissions.
    pub(crate) fn mode(&self) -> u16 {
        self.0.stx_mode
    }

    pub(crate) fn gid(&self) -> u32 {
        self.0.stx_gid
    }

    /// The same inode with another owner, another mode and another device number.
    pub(crate) fn owned(mut self, uid: u32, gid: u32, mode: u32, (major, minor): (u32, u32)) -> Status {
        (self.0.stx_uid, self.0.stx_gid, self.0.stx_mode) = (uid, gid, mode as u16);
        (self.0.stx_rdev_major, self.0.stx_rdev_minor) = (major, minor);
        self
    }

    /// In the form of GETATTR.
    pub(crate) fn attr(&self, ino: u64) -> Attr {
        let status = &self.0;
        Attr {
            ino,
            size: status.stx_size,
            blocks: status.stx_blocks,
            atime: status.stx_atime.tv_sec as u64,
            mtime: status.stx_mtime.tv_sec as u64,
            ctime: status.stx_ctime.tv_sec as u64,
            atimensec: status.stx_atime.tv_nsec,
            mtimensec: status.stx_mtime.tv_nsec,
            ctimensec: status.stx_ctime.tv_nsec,
            mode: u32::from(status.stx_mode),
            nlink: status.stx_nlink,
            uid: status.stx_uid,
            gid: status.stx_gid,
            rdev: encode_device(status.stx_rdev_major, status.stx_rdev_minor),
            blksize: status.stx_blksize,
            flags: 0,
        }
    }

    /// In the form of STATX.
    pub(crate) fn statx(&self, ino: u64) -> Statx {
        let status = &self.0;
        let time =
            |time: rustix::fs::StatxTimestamp| SxTime { tv_sec: time.tv_sec, tv_nsec: time.tv_nsec, reserved: 0 };
        Statx {
            // What the wire form has no field for must not be claimed.
            mask: status.stx_mask & (StatxFlags::BASIC_STATS | StatxFlags::BTIME).bits(),
            blksize: status.stx_blksize,
            attributes: status.stx_attributes.bits(),
            nlink: status.stx_nlink,
            uid: status.stx_uid,
            gid: status.stx_gid,
            mode: status.stx_mode,
            ino,
            size: status.stx_size,
            blocks: status.stx_blocks,
            attributes_mask: status.stx_attributes_mask.bits(),
            atime: time(status.stx_atime),
            btime: time(status.stx_btime),
            ctime: time(status.stx_ctime),
            mtime: time(status.stx_mtime),
            rdev_major: status.stx_rdev_major,
            rdev_minor: status.stx_rdev_minor,
            dev_major: status.stx_dev_major,
            dev_minor: status.stx_dev_minor,
            ..Statx::default()
        }
    }
}

/// A device number as the kernel sends it: `new_encode_dev` of `include/linux/kdev_t.h`.
pub(crate) fn encode_device(major: u32, minor: u32) -> u32 {
    (minor & 0xff) | (major << 8) | ((minor & !0xff) << 12)
}

/// The reverse: major and minor.
pub(crate) fn device_numbers(device: u32) -> (u32, u32) {
    ((device & 0xf_ff00) >> 8, (device & 0xff) | ((device >> 12) & 0xf_ff00))
}

/// The same for mknod(2).
pub(crate) fn decode_device(device: u32) -> u64 {
    let (major, minor) = device_numbers(device);
    rustix::fs::makedev(major, minor)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn device_numbers_survive_the_wire() {
        for (major, minor) in [(1, 3), (8, 255), (259, 65_537), (4095, 1_048_575)] {
            let device = decode_device(encode_device(major, minor));
            assert_eq!((rustix::fs::major(device), rustix::fs::minor(device)), (major, minor));
        }
    }

    #[test]
    fn one_inode_has_one_key_by_name_and_by_descriptor() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("f"), "x").unwrap();
        let fd = std::fs::File::open(dir.path()).unwrap();
        let file = std::fs::File::open(dir.path().join("f")).unwrap();
        assert_eq!(Status::by_name(&fd, c"f").unwrap().key(), Status::of(&file).unwrap().key());
        assert_ne!(Status::of(&fd).unwrap().key(), Status::of(&file).unwrap().key());
    }
}
