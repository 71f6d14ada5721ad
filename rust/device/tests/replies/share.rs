//! A directory with one of everything, served to an embedded guest that holds nodes and handles of it.

use std::fs;
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use tempfile::TempDir;
use virtiofs_device::Identity;
use virtiofs_device::vhost_user::{Config, Daemon, Source, WindowSettings};
use virtiofs_fuse::wire::init;
use virtiofs_fuse::{Limits, Server};
use virtiofs_guest::{Client, Guest, Options};
use virtiofs_hostdir::HostDir;

/// What kind of share.
#[derive(Default)]
pub(crate) struct Setup {
    pub(crate) read_only: bool,
    /// The guest has sent no INIT.
    pub(crate) no_session: bool,
    /// The device has a DAX window, and the guest uses it.
    pub(crate) window: bool,
}

/// Bytes of the DAX window.
pub(crate) const WINDOW: u64 = 8 << 20;

pub(crate) struct Share {
    pub(crate) guest: Guest,
    pub(crate) daemon: Daemon,
    mounts: bool,
    dir: TempDir,
    _run: TempDir,
}

impl Share {
    pub(crate) fn new(setup: Setup) -> Share {
        let mounts = has_mounts() && private_mounts();
        let (dir, run) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let at = |name: &str| dir.path().join(name);
        fs::write(at("file"), b"0123456789").unwrap();
        fs::create_dir_all(at("dir/inner")).unwrap();
        for name in ["empty", "gone", "small"] {
            fs::create_dir(at(name)).unwrap();
        }
        std::os::unix::fs::symlink("file", at("link")).unwrap();
        if mounts {
            mount_small(&at("small"));
        }
        let config = virtiofs_hostdir::Config {
            root: dir.path().into(),
            xattr: true,
            read_only: setup.read_only,
            ..Default::default()
        };
        let fs = Arc::new(HostDir::new(config).unwrap());
        let dax = init::MAP_ALIGNMENT | init::HAS_INODE_DAX;
        let want = Limits::default().want | init::POSIX_LOCKS | init::FLOCK_LOCKS | dax;
        let server = Arc::new(Server::new(fs, Limits { want, ..Limits::default() }));
        let source = Source::Listening(UnixListener::bind(run.path().join("s")).unwrap());
        let identity = Identity::new("share", 1).unwrap();
        let window = setup.window.then_some(WindowSettings {
            size: WINDOW,
            mappings: 4,
            barrier: true,
            patience: Duration::from_secs(20),
        });
        let daemon = Daemon::start(
            server,
            source,
            Config { identity, once: false, slow_threads: 2, window, reconnect: Duration::ZERO, may_lose: false },
        )
        .unwrap();
        let options = Options { dax: setup.window, init: !setup.no_session, uid: 0, gid: 0, ..Options::default() };
        let guest = Guest::connect(&run.path().join("s"), options).unwrap();
        Share { guest, daemon, mounts, dir, _run: run }
    }

    pub(crate) fn client(&self) -> &Client {
        self.guest.client()
    }

    /// The node of a name in the root.
    pub(crate) fn node(&self, name: &str) -> u64 {
        self.client().lookup(1, name.as_bytes()).unwrap().nodeid
    }

    /// The node of a directory that is no more.
    pub(crate) fn gone(&self) -> u64 {
        let node = self.node("gone");
        fs::remove_dir(self.dir.path().join("gone")).unwrap();
        node
    }

    /// A handle of the file `name`.
    pub(crate) fn open(&self, name: &str, flags: i32) -> u64 {
        self.client().open(self.node(name), flags as u32).unwrap().fh
    }

    pub(crate) fn opendir(&self, name: &str) -> u64 {
        self.client().opendir(self.node(name), 0).unwrap().fh
    }

    /// A directory on a file system of its own, of 64 KiB; `None` where nothing can be mounted.
    pub(crate) fn small(&self) -> Option<u64> {
        self.mounts.then(|| self.node("small"))
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        if self.mounts {
            let _ = rustix::mount::unmount(self.dir.path().join("small"), rustix::mount::UnmountFlags::DETACH);
        }
    }
}

/// Whether this user may mount, in a namespace of its own.
pub(crate) fn has_mounts() -> bool {
    static MAY: LazyLock<bool> = LazyLock::new(|| {
        let may = rustix::process::geteuid().is_root() && std::thread::spawn(private_mounts).join().unwrap();
        if !may {
            eprintln!("without full disks and other file systems: needs root");
        }
        may
    });
    *MAY
}

/// Gives this thread, and those that it starts, mounts of their own.
fn private_mounts() -> bool {
    use rustix::mount::{MountPropagationFlags, mount_change};
    use rustix::thread::UnshareFlags;
    // SAFETY: neither flag touches descriptors or memory.
    #[allow(unsafe_code)]
    let unshared = unsafe { rustix::thread::unshare_unsafe(UnshareFlags::NEWNS | UnshareFlags::FS) };
    unshared.is_ok() && mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC).is_ok()
}

fn mount_small(path: &Path) {
    let options = Some(c"size=64k");
    rustix::mount::mount("none", path, "tmpfs", rustix::mount::MountFlags::empty(), options).unwrap();
}
