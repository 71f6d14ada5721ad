//! IOCTL: the file attributes of chattr(1) and project ids, nothing else.

use virtiofs_fuse::wire::{IoctlIn, bits};
use virtiofs_fuse::{Error, Result};

use crate::HostDir;
use crate::error::{Lift, errno};
use crate::sys::{self, BlockIoctl};

impl HostDir {
    /// ENOTTY for all ioctls that are not on the list: what they would do to the host nobody has looked at.
    pub(crate) fn op_ioctl(&self, node: u64, args: &IoctlIn, input: &[u8], out: &mut Vec<u8>) -> Result<i32> {
        let request = BlockIoctl::by_number(args.cmd).ok_or(Error::Errno(libc::ENOTTY))?;
        let (size, sets) = match request {
            // The number says long, every file system moves an int (`ioctl_getflags`, `fs/file_attr.c`).
            BlockIoctl::GetFlags => (4, false),
            BlockIoctl::SetFlags => (4, true),
            BlockIoctl::GetXattr => (28, false),
            BlockIoctl::SetXattr => (28, true),
        };
        let mut block = [0; BlockIoctl::ROOM];
        if sets {
            let (Some(to), Some(from)) = (block.get_mut(..size), input.get(..size)) else {
                return errno(libc::EINVAL);
            };
            to.copy_from_slice(from);
        }
        let result = if args.flags & bits::IOCTL_DIR != 0 {
            let handle = self.directory(node, args.fh)?;
            if sets {
                handle.inode.must_be_writable()?;
            }
            let _change = sets.then(|| self.changing(&handle.inode));
            sys::ioctl(handle.fd(), request, &mut block)
        } else {
            let handle = self.file(node, args.fh)?;
            if sets {
                handle.inode.must_be_writable()?;
            }
            let _change = sets.then(|| self.changing(&handle.inode));
            sys::ioctl(handle.fd(), request, &mut block)
        };
        let result = result.lift()?;
        if !sets {
            let room = usize::try_from(args.out_size).unwrap_or(usize::MAX);
            out.extend_from_slice(block.get(..size.min(room)).unwrap_or(&[]));
        }
        Ok(result)
    }
}
