//! The whole client against a daemon of one's choice:
//!
//! ```sh
//! VIRTIOFS_TEST_SOCKET_CMD='virtiofsd --shared-dir {dir} --socket-path {sock}' cargo test -p virtiofs-guest -- --ignored
//! ```
//!
//! `VIRTIOFS_TEST_LENIENT=1` for a daemon that breaks the reply rules of Linux 7.3.

use std::fs;
use std::io::ErrorKind;
use std::os::unix::fs::MetadataExt;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process_group};
use tempfile::TempDir;
use virtiofs_fuse::Opcode;
use virtiofs_fuse::wire::init;
use virtiofs_guest::{Error, Framing, Guest, Options, RawRequest};

struct Daemon {
    child: Child,
    dir: TempDir,
    run: TempDir,
}

impl Daemon {
    fn start() -> Daemon {
        let line = std::env::var("VIRTIOFS_TEST_SOCKET_CMD").expect("VIRTIOFS_TEST_SOCKET_CMD names a daemon");
        let (dir, run) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let (shared, socket) = (dir.path().to_str().unwrap(), run.path().join("s"));
        let words: Vec<String> = line
            .split_whitespace()
            .map(|word| word.replace("{dir}", shared).replace("{sock}", socket.to_str().unwrap()))
            .collect();
        // A group of its own: some daemons serve from a child.
        let child = Command::new(&words[0]).args(&words[1..]).process_group(0).spawn().unwrap();
        Daemon { child, dir, run }
    }

    fn options(&self) -> Options {
        Options {
            strict: std::env::var_os("VIRTIOFS_TEST_LENIENT").is_none(),
            connect_timeout: Duration::from_secs(10),
            ..Options::default()
        }
    }

    fn guest(&self, options: Options) -> Guest {
        Guest::connect(&self.run.path().join("s"), options).unwrap()
    }
}

impl Daemon {
    fn kill(&mut self) {
        let group = Pid::from_child(&self.child);
        // Fails if all of it has ended.
        let _ = kill_process_group(group, Signal::KILL);
        self.child.wait().unwrap();
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        self.kill();
    }
}

fn errno<T: std::fmt::Debug>(result: Result<T, Error>) -> i32 {
    result.unwrap_err().errno().expect("an errno of the server")
}

#[test]
#[ignore = "needs a daemon: VIRTIOFS_TEST_SOCKET_CMD"]
fn files_go_in_and_come_back_the_same() {
    let daemon = Daemon::start();
    let (host, guest) = (daemon.dir.path(), daemon.guest(daemon.options()));
    let data: Vec<u8> = (0..3_000_017u32).map(|i| ((i * 7) >> 3) as u8).collect();
    guest.makedirs("a/b/c").unwrap();
    guest.write_file("a/b/data", &data).unwrap();
    assert!(fs::read(host.join("a/b/data")).unwrap() == data);
    assert!(guest.read_file("a/b/data").unwrap() == data);

    guest.symlink("b/data", "a/link").unwrap();
    guest.symlink("/a/link", "again").unwrap();
    assert!(guest.read_file("again").unwrap() == data, "symlinks lead from the root of the share");
    assert_eq!(guest.readlink("again").unwrap(), b"/a/link");
    assert_eq!(guest.lstat("again").unwrap().mode & 0o170000, 0o120000);
    guest.symlink("loop", "loop").unwrap();
    assert_eq!(errno(guest.stat("loop")), libc_errno::ELOOP);

    guest.link("a/b/data", "hard").unwrap();
    assert_eq!(guest.stat("hard").unwrap().nlink, 2);
    assert_eq!(guest.stat("hard").unwrap().ino, fs::metadata(host.join("hard")).unwrap().ino());
    guest.rename("hard", "a/renamed", 0).unwrap();
    assert!(!guest.exists("hard").unwrap());
    guest.truncate("a/renamed", 10).unwrap();
    assert_eq!(guest.read_file("a/b/data").unwrap(), data[..10]);
    guest.chmod("a/renamed", 0o600).unwrap();
    guest.utime("a/renamed", 1_000_000_001, -500_000_000).unwrap();
    let meta = fs::metadata(host.join("a/renamed")).unwrap();
    assert_eq!((meta.mode() & 0o777, meta.mtime(), meta.mtime_nsec()), (0o600, -1, 500_000_000));

    let file = guest.open("a/renamed", 0o2, 0).unwrap();
    guest.unlink("a/renamed").unwrap();
    guest.unlink("a/b/data").unwrap();
    file.write_at(4, b"....").unwrap();
    assert_eq!(file.stat().unwrap().size, 10, "an open file outlives its last name");
    file.close().unwrap();

    let names: Vec<Vec<u8>> = (0..2_000).map(|n| format!("many-{n:05}-{}", "x".repeat(n % 100)).into_bytes()).collect();
    guest.mkdir("many", 0o755).unwrap();
    for name in &names {
        fs::write(host.join("many").join(String::from_utf8_lossy(name).as_ref()), name).unwrap();
    }
    let mut listed = guest.listdir("many").unwrap();
    listed.sort();
    assert_eq!(listed, names);
    assert_eq!(guest.walk("many").unwrap().len(), names.len());
    guest.remove_tree("many").unwrap();
    assert!(guest.statfs("").unwrap().bsize > 0);
    guest.drop_caches().unwrap();
    assert_eq!(guest.nodes_held(), 0);
    guest.unmount().unwrap();
}

mod libc_errno {
    pub(crate) const ENOENT: i32 = 2;
    pub(crate) const EEXIST: i32 = 17;
    pub(crate) const ENOTDIR: i32 = 20;
    pub(crate) const ELOOP: i32 = 40;
    pub(crate) const ENOTEMPTY: i32 = 39;
    pub(crate) const ENAMETOOLONG: i32 = 36;
    pub(crate) const ENOSYS: i32 = 38;
}
use libc_errno::*;

#[test]
#[ignore = "needs a daemon: VIRTIOFS_TEST_SOCKET_CMD"]
fn errors_come_with_the_errno_of_the_host() {
    let daemon = Daemon::start();
    let guest = daemon.guest(daemon.options());
    guest.write_file("file", b"x").unwrap();
    guest.mkdir("directory", 0o755).unwrap();
    guest.write_file("directory/inside", b"x").unwrap();
    assert_eq!(errno(guest.stat("missing")), ENOENT);
    assert_eq!(errno(guest.stat("file/below")), ENOTDIR);
    assert_eq!(errno(guest.mkdir("directory", 0o755)), EEXIST);
    assert_eq!(errno(guest.rmdir("directory")), ENOTEMPTY);
    assert_eq!(errno(guest.stat("n".repeat(256))), ENAMETOOLONG);
    assert_eq!(errno(guest.open("file", 0o301, 0o644)), EEXIST, "O_CREAT | O_EXCL");
    let unknown = RawRequest { opcode: 4000, nodeid: 1, room: Some(64), ..RawRequest::default() };
    let reply = guest.client().raw(&unknown).unwrap();
    assert_eq!(reply.bytes.get(4..8), Some((-ENOSYS).to_le_bytes().as_slice()));
    let statfs = RawRequest { opcode: Opcode::Statfs as u32, nodeid: 1, room: Some(80), ..RawRequest::default() };
    assert_eq!(guest.client().raw(&statfs).unwrap().bytes.len(), 96);
}

#[test]
#[ignore = "needs a daemon: VIRTIOFS_TEST_SOCKET_CMD"]
fn every_way_to_lay_a_ring_out_does_the_same_work() {
    let plain = |daemon: &Daemon| Options { queue_size: 256, ..daemon.options() };
    type Change = fn(Options) -> Options;
    let changes: [(&str, Change); 9] = [
        ("like Linux", |o| o),
        ("joined", |o| Options { framing: Framing::Joined, contiguous: true, ..o }),
        ("pieces", |o| Options { framing: Framing::Pieces(61), max_pages: 1, ..o }),
        ("direct descriptors", |o| Options { indirect: false, in_flight: 4, ..o }),
        ("no EVENT_IDX", |o| Options { event_idx: false, ..o }),
        ("polling", |o| Options { polling: true, ..o }),
        ("three regions", |o| Options { regions: 3, ..o }),
        ("old protocol", |o| Options { minor: 31, init_flags: init::MAX_PAGES | init::BIG_WRITES, ..o }),
        ("no acknowledgements", |o| Options { without_protocol_features: 1 << 3, ..o }),
    ];
    for (name, change) in changes {
        // A daemon of its own for each: some end with their first guest.
        let daemon = Daemon::start();
        let guest = daemon.guest(change(plain(&daemon)));
        let data: Vec<u8> = (0..300_001u32).map(|i| (i / 5) as u8).collect();
        guest.write_file("data", &data).unwrap_or_else(|error| panic!("{name}: {error}"));
        assert!(guest.read_file("data").unwrap() == data, "{name}");
        std::thread::scope(|scope| {
            for thread in 0..4 {
                let guest = &guest;
                scope.spawn(move || {
                    for n in 0..50 {
                        let path = format!("file-{thread}-{n}");
                        guest.write_file(&path, path.as_bytes()).unwrap();
                        assert_eq!(guest.read_file(&path).unwrap(), path.as_bytes());
                        guest.unlink(&path).unwrap();
                    }
                });
            }
        });
        assert_eq!(guest.listdir("").unwrap(), [b"data"], "{name}");
        guest.drop_caches().unwrap();
    }
}

#[test]
#[ignore = "needs a daemon: VIRTIOFS_TEST_SOCKET_CMD"]
fn a_daemon_that_dies_is_an_error_and_no_hang() {
    let mut daemon = Daemon::start();
    let guest = daemon.guest(daemon.options());
    guest.write_file("file", b"x").unwrap();
    daemon.kill();
    match guest.stat("file") {
        Err(Error::Io(error)) => assert_eq!(error.kind(), ErrorKind::ConnectionReset),
        other => panic!("{other:?}"),
    }
}
