//! The kernel of this host as the driver: what it is told it forgets, from wherever it is told.
//!
//! Needs root and /dev/fuse; without them each test says so and ends. `tests/test_mount.py` does real work over the passthrough.

use std::ffi::CStr;
use std::path::Path;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use parking_lot::Mutex;
use rustix::io::Errno;
use virtiofs_device::Tell;
use virtiofs_device::fusedev::{self, Config, Connection, Notifier};
use virtiofs_fuse::wire::{Attr, AttrOut, EntryOut, ROOT_ID};
use virtiofs_fuse::{Context, Error, FileSystem, Limits, Result, Server};

const FILE: u64 = 2;
const FOR_EVER: u64 = 1 << 30;

/// One file, `file`, that the kernel may keep for ever.
#[derive(Default)]
struct OneFile {
    size: Mutex<u64>,
    gone: Mutex<bool>,
    notifier: OnceLock<Arc<Notifier>>,
}

impl OneFile {
    fn attr(&self, node: u64) -> Attr {
        let size = *self.size.lock();
        match node {
            ROOT_ID => Attr { ino: node, mode: 0o40755, nlink: 2, ..Attr::default() },
            _ => Attr { ino: node, mode: 0o100644, nlink: 1, size, mtime: size, ..Attr::default() },
        }
    }
}

impl FileSystem for OneFile {
    fn lookup(&self, _: &Context, _: u64, name: &CStr) -> Result<EntryOut> {
        if name != c"file" || *self.gone.lock() {
            return Err(Error::Errno(libc::ENOENT));
        }
        let attr = self.attr(FILE);
        Ok(EntryOut { nodeid: FILE, entry_valid: FOR_EVER, attr_valid: FOR_EVER, attr, ..EntryOut::default() })
    }

    fn getattr(&self, _: &Context, node: u64, _: Option<u64>) -> Result<AttrOut> {
        Ok(AttrOut { attr_valid: FOR_EVER, attr: self.attr(node), ..AttrOut::default() })
    }

    /// Tells the kernel to forget the name before the reply, while the caller holds the lock of the directory for which that takes.
    fn unlink(&self, _: &Context, parent: u64, _: &CStr) -> Result<()> {
        *self.gone.lock() = true;
        let notifier = self.notifier.get().ok_or(Error::Errno(libc::EIO))?;
        for _ in 0..100 {
            notifier.inval_entry(parent, c"file".into()).map_err(|_| Error::Errno(libc::EAGAIN))?;
        }
        std::thread::sleep(Duration::from_millis(50));
        Ok(())
    }
}

const PATIENCE: Duration = Duration::from_secs(20);

/// Calls `work` with a mount of `OneFile`, and takes that down again.
fn mounted(work: impl FnOnce(&Path, &OneFile, &Connection)) {
    let there = tempfile::tempdir().unwrap();
    let fd = match fusedev::mount(there.path(), "test", "virtiofs", 0, "default_permissions") {
        Ok(fd) => fd,
        Err(error) => return eprintln!("not run: /dev/fuse cannot be mounted here: {error}"),
    };
    let fs = Arc::new(OneFile::default());
    let max_write = 1 << 20;
    let server = Arc::new(Server::new(fs.clone(), Limits { max_write, ..Limits::default() }));
    let config = Config { threads: 2, slow_threads: 2, max_write: max_write as usize };
    let connection = Connection::start(server, fd, config, None).unwrap();
    fs.notifier.set(connection.notifier().clone()).unwrap();
    assert!(connection.wait_begun(PATIENCE).unwrap());
    let _unmount = Unmount(there.path());
    work(there.path(), &fs, &connection);
    assert_eq!(connection.notifier().refused(), 0);
    assert!(!connection.is_over());
    // The end, while the kernel is still being told.
    for node in 0..10_000 {
        connection.notifier().inval_inode(node, 0, 0).unwrap();
    }
    connection.stop();
    assert!(connection.is_over());
}

/// Also where an assertion failed.
struct Unmount<'a>(&'a Path);

impl Drop for Unmount<'_> {
    fn drop(&mut self) {
        fusedev::unmount(self.0, true).unwrap();
    }
}

/// By fstatat(2): what the standard library asks for (statx(2) with the birth time) the file system lacks.
fn stat(path: &Path) -> Result<i64, Errno> {
    rustix::fs::stat(path).map(|stat| stat.st_size)
}

#[test]
fn attributes_are_kept_until_they_are_said_to_be_old() {
    mounted(|there, fs, connection| {
        let file = there.join("file");
        assert_eq!(stat(&file), Ok(0));
        *fs.size.lock() = 5;
        assert_eq!(stat(&file), Ok(0));
        connection.notifier().inval_inode(FILE, 0, 0).unwrap();
        connection.notifier().flush();
        assert_eq!(stat(&file), Ok(5));
        *fs.size.lock() = 6;
        connection.notifier().inval_inode(FILE, -1, 0).unwrap();
        connection.notifier().flush();
        assert_eq!(stat(&file), Ok(6));
    });
}

#[test]
fn a_name_that_is_gone_is_forgotten() {
    mounted(|there, fs, connection| {
        let file = there.join("file");
        assert_eq!(stat(&file), Ok(0));
        *fs.gone.lock() = true;
        assert_eq!(stat(&file), Ok(0));
        connection.notifier().delete(ROOT_ID, FILE, c"file".into()).unwrap();
        connection.notifier().flush();
        assert_eq!(stat(&file), Err(Errno::NOENT));
        // What it never knew is no fault.
        connection.notifier().delete(ROOT_ID, 99, c"other".into()).unwrap();
        connection.notifier().inval_entry(77, c"other".into()).unwrap();
        connection.notifier().flush();
    });
}

#[test]
fn news_of_a_directory_from_one_of_its_own_requests_hold_up_nobody() {
    mounted(|there, fs, connection| {
        let file = there.join("file");
        assert_eq!(stat(&file), Ok(0));
        std::fs::remove_file(&file).unwrap();
        connection.notifier().flush();
        assert_eq!(stat(&file), Err(Errno::NOENT));
        *fs.gone.lock() = false;
        connection.notifier().inval_entry(ROOT_ID, c"file".into()).unwrap();
        connection.notifier().flush();
        assert_eq!(stat(&file), Ok(0));
    });
}
