//! A guest without a kernel: calls the operations of a `HostDir` over a temporary directory, and counts what it looked up.
#![allow(dead_code, missing_docs, unreachable_pub)]

use std::ffi::{CStr, CString};
use std::path::{Path, PathBuf};
use std::time::Duration;

use tempfile::TempDir;
use virtiofs_fuse::wire::*;
use virtiofs_fuse::{Context, Creation, DirBuffer, Error, FileSystem, Negotiated, Result, Segments};
use virtiofs_hostdir::{Config, Effects, HostDir};

pub const ROOT: Context = Context { unique: 1, uid: 0, gid: 0, pid: 1, may_block: true };
pub const USER: Context = Context { unique: 1, uid: 1234, gid: 5678, pid: 1, may_block: true };

pub struct Share {
    pub fs: HostDir,
    dir: TempDir,
}

/// A directory entry of READDIR or READDIRPLUS.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listed {
    pub name: Vec<u8>,
    pub ino: u64,
    pub off: u64,
    pub kind: u32,
    pub node: u64,
    pub mode: u32,
}

pub fn is_root() -> bool {
    rustix::process::geteuid().is_root() && virtiofs_hostdir::may_change_owner()
}

/// Ends the test that calls it if it is not run by root, and says so.
#[macro_export]
macro_rules! needs_root {
    () => {
        if !common::is_root() {
            eprintln!("skipped: needs root");
            return;
        }
    };
}

/// A folder on the file system of the build directory, since the usual place may be a tmpfs.
pub fn on_disk() -> TempDir {
    tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).or_else(|_| tempfile::tempdir()).unwrap()
}

pub fn config() -> Config {
    let effects =
        Effects { entry_ttl: Duration::from_millis(1500), attr_ttl: Duration::from_secs(2), ..Effects::default() };
    Config { effects, xattr: true, announce_submounts: true, ..Config::default() }
}

pub fn share() -> Share {
    Share::with(config(), init::SUBMOUNTS | init::DONT_MASK)
}

pub fn iovecs(parts: &mut [&mut [u8]]) -> (Vec<libc::iovec>, usize) {
    let iovecs: Vec<_> =
        parts.iter_mut().map(|part| libc::iovec { iov_base: part.as_mut_ptr().cast(), iov_len: part.len() }).collect();
    let len = iovecs.iter().map(|iovec| iovec.iov_len).sum();
    (iovecs, len)
}

pub fn is<T: std::fmt::Debug>(result: Result<T>, errno: i32) {
    match result {
        Err(Error::Errno(found)) if found == errno => {}
        other => panic!("expected errno {errno}, got {other:?}"),
    }
}

impl Share {
    pub fn with(config: Config, flags: u64) -> Share {
        Share::within(tempfile::tempdir().unwrap(), config, flags)
    }

    pub fn within(dir: TempDir, config: Config, flags: u64) -> Share {
        let fs = HostDir::new(Config { root: dir.path().into(), ..config }).unwrap();
        fs.init(&Negotiated { minor: 46, flags, max_write: 1 << 20, max_readahead: 1 << 20, ..Negotiated::default() });
        Share { fs, dir }
    }

    pub fn path(&self, name: impl AsRef<Path>) -> PathBuf {
        self.dir.path().join(name)
    }

    pub fn lookup(&self, parent: u64, name: &CStr) -> Result<EntryOut> {
        self.fs.lookup(&ROOT, parent, name)
    }

    pub fn node(&self, name: &str) -> u64 {
        self.lookup(ROOT_ID, &CString::new(name).unwrap()).unwrap().nodeid
    }

    pub fn attr(&self, node: u64) -> Attr {
        self.fs.getattr(&ROOT, node, None).unwrap().attr
    }

    pub fn create(&self, cx: &Context, name: &CStr, flags: i32, mode: u32) -> Result<(EntryOut, OpenOut)> {
        self.fs.create(cx, ROOT_ID, name, flags as u32, mode, false, &Creation::default())
    }

    pub fn open(&self, node: u64, flags: i32) -> Result<u64> {
        self.fs.open(&ROOT, node, flags as u32, false).map(|open| open.fh)
    }

    pub fn read(&self, fh: u64, offset: u64, len: usize) -> Result<Vec<u8>> {
        self.read_with(&ROOT, fh, offset, len)
    }

    pub fn read_with(&self, cx: &Context, fh: u64, offset: u64, len: usize) -> Result<Vec<u8>> {
        let mut buffer = vec![0xaa; len];
        let (vecs, len) = iovecs(&mut [&mut buffer]);
        let args = ReadIn { fh, offset, size: len as u32, ..ReadIn::default() };
        let count = self.fs.read(cx, 0, &args, Segments::new(&vecs, len))?;
        buffer.truncate(count);
        Ok(buffer)
    }

    pub fn write(&self, fh: u64, offset: u64, data: &[u8]) -> Result<usize> {
        self.write_with(fh, offset, data, 0, 0)
    }

    pub fn write_with(&self, fh: u64, offset: u64, data: &[u8], write_flags: u32, flags: i32) -> Result<usize> {
        let mut data = data.to_vec();
        let (vecs, len) = iovecs(&mut [&mut data]);
        let args = WriteIn { fh, offset, size: len as u32, write_flags, flags: flags as u32, ..WriteIn::default() };
        self.fs.write(&ROOT, 0, &args, Segments::new(&vecs, len))
    }

    pub fn release(&self, fh: u64) {
        self.fs.release(&ROOT, 0, &ReleaseIn { fh, ..ReleaseIn::default() }).unwrap();
    }

    pub fn opendir(&self, node: u64) -> u64 {
        self.fs.opendir(&ROOT, node, 0).unwrap().fh
    }

    pub fn releasedir(&self, fh: u64) {
        self.fs.releasedir(&ROOT, 0, &ReleaseIn { fh, ..ReleaseIn::default() }).unwrap();
    }

    /// One READDIR or READDIRPLUS.
    pub fn readdir(&self, fh: u64, offset: u64, plus: bool, limit: usize) -> Result<Vec<Listed>> {
        let mut out = DirBuffer::default();
        out.restart(limit);
        self.fs.readdir(&ROOT, 0, fh, offset, plus, &mut out)?;
        Ok(parse(out.as_bytes(), plus))
    }

    /// A whole directory, by as many READDIRs as it takes.
    pub fn list(&self, node: u64, plus: bool, limit: usize) -> Vec<Listed> {
        let fh = self.opendir(node);
        let (mut all, mut offset) = (Vec::new(), 0);
        loop {
            let some = self.readdir(fh, offset, plus, limit).unwrap();
            let Some(last) = some.last() else { break };
            offset = last.off;
            all.extend(some);
        }
        self.releasedir(fh);
        all
    }
}

fn parse(mut bytes: &[u8], plus: bool) -> Vec<Listed> {
    use zerocopy::FromBytes;
    let mut all = Vec::new();
    while !bytes.is_empty() {
        let before = bytes.len();
        let mut entry = EntryOut::default();
        if plus {
            (entry, bytes) = EntryOut::read_from_prefix(bytes).unwrap();
        }
        let (head, rest) = Dirent::read_from_prefix(bytes).unwrap();
        let name = rest[..head.namelen as usize].to_vec();
        let length = (before - rest.len() + name.len()).next_multiple_of(8);
        bytes = &rest[length - (before - rest.len())..];
        let Dirent { ino, off, kind, .. } = head;
        all.push(Listed { name, ino, off, kind, node: entry.nodeid, mode: entry.attr.mode });
    }
    all
}

pub fn names(listed: &[Listed]) -> Vec<String> {
    let mut names: Vec<_> = listed.iter().map(|entry| String::from_utf8_lossy(&entry.name).into_owned()).collect();
    names.sort();
    names
}

/// Gives this thread a mount namespace of its own, from which nothing spreads. False where that is not allowed.
pub fn private_mounts() -> bool {
    use rustix::mount::{MountPropagationFlags, mount_change};
    use rustix::thread::UnshareFlags;
    let flags = UnshareFlags::NEWNS | UnshareFlags::FS;
    // SAFETY: neither flag touches descriptors or memory.
    #[allow(unsafe_code)]
    let unshared = unsafe { rustix::thread::unshare_unsafe(flags) };
    unshared.is_ok() && mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC).is_ok()
}

pub fn mount_tmpfs(path: &Path) {
    rustix::mount::mount("none", path, "tmpfs", rustix::mount::MountFlags::empty(), None).unwrap();
}

pub fn unmount(path: &Path) {
    rustix::mount::unmount(path, rustix::mount::UnmountFlags::DETACH).unwrap();
}
