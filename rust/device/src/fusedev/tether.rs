// UNSAFETY: a thread with a table of descriptors of its own is beyond what Rust's ownership of descriptors can express.
#![allow(unsafe_code)]
//! A descriptor that is closed when this process dies, before the process waits for anything.
//!
//! A dying process closes its descriptors one after the other, and for a file of FUSE it waits for the reply to FLUSH
//! (`do_exit`, `exit_files`, `fuse_flush` of Linux). Where it served that file itself there is nobody left to reply, and if its /dev/fuse has a higher
//! number it never gets to it. What shall tell others of its death must not stand behind in that line: so a thread has it in a table of its own,
//! which goes with the thread.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc;
use std::thread::{self, Thread};

use rustix::thread::{UnshareFlags, unshare_unsafe};

/// Holds the descriptor until it is dropped or the process dies. A fork of the process has not got it.
#[derive(Debug)]
pub struct Tether {
    thread: Thread,
    released: Arc<AtomicBool>,
}

impl Tether {
    /// Takes the descriptor: when this returns, the thread alone has it.
    pub fn new(fd: OwnedFd) -> io::Result<Tether> {
        let released = Arc::new(AtomicBool::new(false));
        let (tell, told) = mpsc::channel();
        let (number, end) = (fd.as_raw_fd(), Arc::clone(&released));
        let holder = thread::Builder::new().name("virtiofs-tether".into()).spawn(move || {
            let alone = keep_alone(number);
            let held = alone.is_ok();
            // Nobody listens if the thread that started this one is gone, with all others.
            let _ = tell.send(alone);
            while held && !end.load(Ordering::Acquire) {
                thread::park();
            }
        })?;
        told.recv().map_err(|_| io::Error::other("the thread ended at once"))??;
        Ok(Tether { thread: holder.thread().clone(), released })
    }
}

impl Drop for Tether {
    fn drop(&mut self) {
        // Not joined: in a fork of the process there is no such thread.
        self.released.store(true, Ordering::Release);
        self.thread.unpark();
    }
}

/// Gives the calling thread a table of descriptors that has `number` alone.
fn keep_alone(number: RawFd) -> io::Result<()> {
    // SAFETY: the calling thread has just begun. It owns no descriptor and uses none from here on, so no value of Rust names one in
    // the table that it leaves for one in its copy; nobody else's table changes.
    unsafe { unshare_unsafe(UnshareFlags::FILES) }?;
    let number = number as libc::c_uint;
    close_range(number + 1, libc::c_uint::MAX)?;
    if number > 0 { close_range(0, number - 1) } else { Ok(()) }
}

fn close_range(first: libc::c_uint, last: libc::c_uint) -> io::Result<()> {
    // SAFETY: close_range(2) takes three numbers and touches no memory. The descriptors are those of the calling thread's own table, which
    // no value of Rust owns.
    match unsafe { libc::syscall(libc::SYS_close_range, first, last, 0) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::io::Read;
    use std::os::unix::fs::MetadataExt;

    use rustix::fs::fstat;

    use super::*;

    #[test]
    fn holds_the_descriptor_and_nothing_else_until_it_is_dropped() {
        let (mut there, ours) = io::pipe().unwrap();
        let (mut other_there, other) = io::pipe().unwrap();
        let number = ours.as_raw_fd();
        let inode = fstat(&ours).unwrap().st_ino;
        let tether = Tether::new(ours.into()).unwrap();
        drop(other);
        assert_eq!(other_there.read(&mut [0]).unwrap(), 0, "the tether has another's pipe");
        let found = fs::metadata(format!("/proc/self/fd/{number}")).ok();
        assert_ne!(found.map(|file| file.ino()), Some(inode), "the process still has the descriptor");
        rustix::io::ioctl_fionbio(&there, true).unwrap();
        assert_eq!(there.read(&mut [0]).unwrap_err().kind(), io::ErrorKind::WouldBlock);
        rustix::io::ioctl_fionbio(&there, false).unwrap();
        drop(tether);
        assert_eq!(there.read(&mut [0]).unwrap(), 0);
    }
}
