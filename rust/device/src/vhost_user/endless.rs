// UNSAFETY: two ioctls of /dev/fuse that hand the kernel a file, for which there is no safe call.
#![allow(unsafe_code)]
//! Files that seem to have no end.
//!
//! QEMU 11.1 maps no page that lies behind the end of a file (`qemu_ram_alloc_from_fd` asks lseek(2) for the size and refuses), so the last
//! page of nearly every file, and all that it may grow into, could not be mapped. A FUSE file with a passthrough backing (Linux
//! 6.9, `fs/fuse/passthrough.c`) has the size that its server says, and mmap(2) of it maps the backing file itself: the
//! same page cache, no copy, and nothing of FUSE in the mapping. So such a file is handed out in place of the real one. The
//! mount is never attached anywhere, one thread serves it, and it is asked once for each file.

use std::collections::HashMap;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use parking_lot::Mutex;
use rustix::fs::{CWD, Mode, OFlags, openat};
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, fsconfig_create, fsconfig_set_flag, fsconfig_set_string, fsmount, fsopen,
};
use virtiofs_fuse::Opcode;
use virtiofs_fuse::wire::{
    Attr, AttrOut, EntryOut, InHeader, InitOut, KERNEL_VERSION, OpenOut, OutHeader, ROOT_ID, fopen, init,
};
use virtiofs_virtqueue::Event;
use zerocopy::{FromBytes, Immutable, IntoBytes};

use super::connection::{Ready, ready};

/// The minor version that brought `max_stack_depth` and backing files.
const MINOR: u32 = 40;
/// Larger than any file, and far from where sizes overflow.
const SIZE: u64 = 1 << 60;
/// Bytes of the longest request taken: a write, which none of these files gets.
const REQUEST_MAX: usize = 128 << 10;
/// Seconds for which the kernel need not ask again.
const LONG: u64 = 1 << 30;

/// A mount of files without an end. Those that were handed out outlive it as far as they are mapped.
#[derive(Debug)]
pub(super) struct Endless {
    mount: OwnedFd,
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Debug)]
struct Shared {
    device: OwnedFd,
    stop: Event,
    /// Backing of each file that is being opened, by node id.
    files: Mutex<(u64, HashMap<u64, i32>)>,
}

/// `struct fuse_backing_map` of `include/uapi/linux/fuse.h`.
#[repr(C)]
struct BackingMap {
    fd: i32,
    flags: u32,
    padding: u64,
}

/// `_IOW(229, 1, struct fuse_backing_map)` and `_IOW(229, 2, uint32_t)`.
const BACKING_OPEN: libc::Ioctl = 0x4010_e501u32 as libc::Ioctl;
const BACKING_CLOSE: libc::Ioctl = 0x4004_e502u32 as libc::Ioctl;

impl Endless {
    /// Makes the mount. Takes CAP_SYS_ADMIN and Linux 6.9.
    pub(super) fn new() -> io::Result<Endless> {
        let flags = OFlags::RDWR | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let device = openat(CWD, c"/dev/fuse", flags, Mode::empty())?;
        let context = fsopen(c"fuse", FsOpenFlags::FSOPEN_CLOEXEC)?;
        let context = context.as_fd();
        fsconfig_set_string(context, c"fd", device.as_raw_fd().to_string())?;
        fsconfig_set_string(context, c"rootmode", "40000")?;
        fsconfig_set_string(context, c"user_id", "0")?;
        fsconfig_set_string(context, c"group_id", "0")?;
        // The VMM may be of another user.
        fsconfig_set_flag(context, c"allow_other")?;
        fsconfig_create(context)?;
        let mount = fsmount(context, FsMountFlags::FSMOUNT_CLOEXEC, MountAttrFlags::empty())?;
        let shared = Arc::new(Shared { device, stop: Event::new()?, files: Mutex::new((ROOT_ID, HashMap::new())) });
        let (begun, begins) = channel();
        let theirs = Arc::clone(&shared);
        let thread = thread::Builder::new().name("virtiofs-endless".into()).spawn(move || theirs.run(&begun))?;
        let endless = Endless { mount, shared, thread: Some(thread) };
        endless.wait(&begins)?;
        Ok(endless)
    }

    /// Before INIT is answered the kernel takes no backing.
    fn wait(&self, begins: &Receiver<()>) -> io::Result<()> {
        begins
            .recv_timeout(Duration::from_secs(5))
            .map_err(|_| io::Error::other("the kernel does not begin the session"))
    }

    /// A descriptor of the same content without an end, open as `file` is.
    pub(super) fn view(&self, file: BorrowedFd<'_>, writable: bool) -> io::Result<OwnedFd> {
        let map = BackingMap { fd: file.as_raw_fd(), flags: 0, padding: 0 };
        // SAFETY: the request reads one `struct fuse_backing_map` at its argument, which lives until the call returns.
        let backing = unsafe { libc::ioctl(self.shared.device.as_raw_fd(), BACKING_OPEN, &raw const map) };
        if backing <= 0 {
            return Err(io::Error::last_os_error());
        }
        let node = {
            let (last, files) = &mut *self.shared.files.lock();
            *last += 1;
            files.insert(*last, backing);
            *last
        };
        let flags = if writable { OFlags::RDWR } else { OFlags::RDONLY };
        let opened = openat(&self.mount, node.to_string(), flags | OFlags::CLOEXEC, Mode::empty());
        self.shared.files.lock().1.remove(&node);
        // SAFETY: as above, with one u32. The open file keeps the backing; the number is not used again.
        unsafe { libc::ioctl(self.shared.device.as_raw_fd(), BACKING_CLOSE, &raw const backing) };
        Ok(opened?)
    }
}

impl Drop for Endless {
    fn drop(&mut self) {
        self.shared.stop.signal();
        if let Some(thread) = self.thread.take() {
            // It ends by itself or has panicked, and has nothing to tell.
            let _ = thread.join();
        }
    }
}

impl Shared {
    fn run(&self, begun: &Sender<()>) {
        let mut request = vec![0; REQUEST_MAX];
        while let Ok(Ready::Readable) = ready(self.device.as_fd(), &self.stop, None, None) {
            match rustix::io::read(&self.device, &mut request) {
                Ok(len) => {
                    let Ok((header, body)) = InHeader::read_from_prefix(request.get(..len).unwrap_or(&[])) else {
                        continue;
                    };
                    self.answer(&header, body);
                    if header.opcode == Opcode::Init as u32 {
                        let _ = begun.send(());
                    }
                }
                // A request that was taken back, or nothing after all.
                Err(rustix::io::Errno::NOENT | rustix::io::Errno::AGAIN | rustix::io::Errno::INTR) => {}
                Err(_) => return,
            }
        }
    }

    fn answer(&self, header: &InHeader, body: &[u8]) {
        let unique = header.unique;
        match header.opcode {
            op if op == Opcode::Init as u32 => self.reply(
                unique,
                &InitOut {
                    major: KERNEL_VERSION,
                    minor: MINOR,
                    flags: init::INIT_EXT as u32,
                    flags2: (init::PASSTHROUGH >> 32) as u32,
                    max_write: 4096,
                    time_gran: 1,
                    max_stack_depth: 2,
                    ..InitOut::default()
                },
            ),
            op if op == Opcode::Lookup as u32 => {
                let name = body.split_last().and_then(|(_, name)| std::str::from_utf8(name).ok());
                match name.and_then(|name| name.parse().ok()).filter(|node| self.files.lock().1.contains_key(node)) {
                    Some(nodeid) => {
                        let attr = attributes(nodeid);
                        self.reply(unique, &EntryOut { nodeid, attr_valid: LONG, attr, ..EntryOut::default() });
                    }
                    None => self.refuse(unique, libc::ENOENT),
                }
            }
            op if op == Opcode::Open as u32 => match self.files.lock().1.get(&header.nodeid) {
                Some(&backing_id) => {
                    self.reply(unique, &OpenOut { fh: 0, open_flags: fopen::PASSTHROUGH | fopen::NOFLUSH, backing_id })
                }
                None => self.refuse(unique, libc::ENOENT),
            },
            op if op == Opcode::Getattr as u32 => {
                let attr = attributes(header.nodeid);
                self.reply(unique, &AttrOut { attr_valid: LONG, attr, ..AttrOut::default() });
            }
            op if op == Opcode::Release as u32 => self.reply(unique, &()),
            op if op == Opcode::Forget as u32 || op == Opcode::BatchForget as u32 => {}
            _ => self.refuse(unique, libc::ENOSYS),
        }
    }

    fn reply<T: IntoBytes + Immutable>(&self, unique: u64, body: &T) {
        let header = OutHeader { len: (size_of::<OutHeader>() + size_of::<T>()) as u32, error: 0, unique };
        self.send(&[header.as_bytes(), body.as_bytes()].concat());
    }

    fn refuse(&self, unique: u64, errno: i32) {
        self.send(OutHeader { len: size_of::<OutHeader>() as u32, error: -errno, unique }.as_bytes());
    }

    fn send(&self, message: &[u8]) {
        // Fails for a request whose caller is gone, which needs no answer then.
        let _ = rustix::io::write(&self.device, message);
    }
}

fn attributes(ino: u64) -> Attr {
    match ino {
        ROOT_ID => Attr { ino, mode: libc::S_IFDIR | 0o700, nlink: 2, blksize: 4096, ..Attr::default() },
        _ => Attr { ino, size: SIZE, mode: libc::S_IFREG | 0o600, nlink: 1, blksize: 4096, ..Attr::default() },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_without_an_end_is_the_file() {
        let endless = match Endless::new() {
            Ok(endless) => endless,
            Err(error) => return eprintln!("skipped: {error}"),
        };
        let file = tempfile::tempfile().unwrap();
        rustix::io::write(&file, b"five!").unwrap();
        let view = endless.view(file.as_fd(), true).unwrap();
        assert_eq!(rustix::fs::fstat(&view).unwrap().st_size as u64, SIZE);
        assert_eq!(rustix::fs::seek(&view, rustix::fs::SeekFrom::End(0)).unwrap(), SIZE);
        let mut back = [0; 9];
        assert_eq!(rustix::io::pread(&view, &mut back, 0).unwrap(), 5, "reads end where the file does");
        assert_eq!(&back[..5], b"five!");
        drop(endless);
        drop(view);
        assert_eq!(rustix::fs::fstat(&file).unwrap().st_size, 5);
    }
}
