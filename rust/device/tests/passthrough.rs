//! The whole path in one process: the embedded guest over vhost-user, the device, a host directory.

use std::fs;
use std::os::unix::net::UnixListener;
use std::sync::Arc;
use std::time::Duration;

use tempfile::TempDir;
use virtiofs_device::Identity;
use virtiofs_device::vhost_user::{Config, Daemon, Source};
use virtiofs_fuse::wire::{FileLock, init};
use virtiofs_fuse::{Limits, Server};
use virtiofs_guest::{Connection, Error, Framing, Guest, Options};
use virtiofs_hostdir::{HostDir, Locks};

struct Share {
    dir: TempDir,
    run: TempDir,
    fs: Arc<HostDir>,
    daemon: Daemon,
}

impl Share {
    fn new(request_queues: u16) -> Share {
        Share::of(tempfile::tempdir().unwrap(), request_queues, Arc::default())
    }

    fn of(dir: TempDir, request_queues: u16, locks: Arc<Locks>) -> Share {
        let run = tempfile::tempdir().unwrap();
        let config = virtiofs_hostdir::Config { root: dir.path().into(), xattr: true, ..Default::default() };
        let fs = Arc::new(HostDir::sharing(config, locks).unwrap());
        let want = Limits::default().want | init::POSIX_LOCKS | init::FLOCK_LOCKS;
        let server = Arc::new(Server::new(fs.clone(), Limits { want, ..Limits::default() }));
        let source = Source::Listening(UnixListener::bind(run.path().join("s")).unwrap());
        let identity = Identity::new("share", request_queues).unwrap();
        let daemon = Daemon::start(
            server,
            source,
            Config { identity, once: false, slow_threads: 4, window: None, reconnect: Duration::ZERO, may_lose: false },
        )
        .unwrap();
        Share { dir, run, fs, daemon }
    }

    fn guest(&self, options: Options) -> Guest {
        Guest::connect(&self.run.path().join("s"), options).unwrap()
    }
}

/// Writes, lists, reads and removes through one guest, and looks at the host in between.
fn work(share: &Share, options: Options) {
    let guest = share.guest(options);
    let data: Vec<u8> = (0..1_500_000u32).map(|i| (i / 7) as u8).collect();
    guest.makedirs("a/b/c").unwrap();
    guest.write_file("a/b/c/data", &data).unwrap();
    assert!(fs::read(share.dir.path().join("a/b/c/data")).unwrap() == data);
    fs::write(share.dir.path().join("a/from-host"), &data[..70_001]).unwrap();
    assert!(guest.read_file("a/from-host").unwrap() == data[..70_001]);
    for at in 0..120 {
        guest.write_file(format!("a/b/{at:03}"), &[at as u8]).unwrap();
    }
    let mut names = guest.listdir("a/b").unwrap();
    names.sort();
    assert_eq!(names.len(), 121);
    assert_eq!(guest.stat("a/b/c/data").unwrap().size, 1_500_000);
    guest.rename("a/b/c/data", "moved", 0).unwrap();
    guest.setxattr("moved", b"user.note", b"value", 0).unwrap();
    assert_eq!(guest.getxattr("moved", b"user.note").unwrap(), b"value");
    guest.remove_tree("a").unwrap();
    guest.unlink("moved").unwrap();
    assert_eq!(guest.listdir("").unwrap().len(), 0);
    guest.drop_caches().unwrap();
    guest.unmount().unwrap();
}

#[test]
fn every_framing_and_notification_does_the_same_work() {
    let share = Share::new(2);
    let plain = Options::default();
    for options in [
        plain.clone(),
        Options { framing: Framing::Joined, contiguous: true, ..plain.clone() },
        Options { framing: Framing::Pieces(99), max_pages: 1, ..plain.clone() },
        Options { indirect: false, event_idx: false, ..plain.clone() },
        Options { indirect: false, queue_size: 512, ..plain.clone() },
        Options { pipes: true, ..plain.clone() },
        Options { polling: true, ..plain.clone() },
        Options { regions: 5, request_queues: 2, ..plain.clone() },
        Options { config_by_bytes: true, minor: 31, init_flags: 0, ..plain },
    ] {
        work(&share, options.clone());
        assert_eq!(share.fs.handles(), 0, "{options:?}");
    }
    assert_eq!(share.daemon.server().metrics().malformed(), 0);
    assert_eq!(share.daemon.server().metrics().panics(), 0);
}

#[test]
fn the_next_guest_is_served_when_one_vanishes_and_nothing_of_it_stays() {
    let share = Share::new(1);
    for round in 0..50 {
        let guest = share.guest(Options::default());
        guest.write_file("file", &[round; 5000]).unwrap();
        let node = guest.client().lookup(1, b"file").unwrap().nodeid;
        guest.client().open(node, 0).unwrap();
        assert!(share.fs.nodes() > 1);
        drop(guest);
    }
    let guest = share.guest(Options::default());
    assert_eq!(guest.read_file("file").unwrap(), [49; 5000]);
    assert_eq!(share.fs.handles(), 0);
    drop(guest);
    share.daemon.stop();
    assert_eq!((share.fs.nodes(), share.fs.handles()), (1, 0));
    assert_eq!(share.daemon.stats().connections, 51);
    assert!(share.daemon.wait(Some(Duration::ZERO)));
}

/// What a queue's own thread must not wait for is done elsewhere, and all of it arrives.
#[test]
fn cold_data_and_flushes_come_from_threads_that_may_wait() {
    // On a disk, if there is one: a tmpfs cannot lose its pages.
    let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let share = Share::of(dir, 1, Arc::default());
    let guest = share.guest(Options::default());
    let data: Vec<u8> = (0..4_000_000u32).map(|i| (i / 251) as u8).collect();
    guest.write_file("file", &data).unwrap();
    let node = guest.client().lookup(1, b"file").unwrap().nodeid;
    let fh = guest.client().open(node, 2).unwrap().fh;
    guest.client().fsync(node, fh, false).unwrap();
    guest.client().fsync(node, fh, true).unwrap();
    guest.client().fallocate(node, fh, 0, 4096, 0).unwrap();
    guest.client().syncfs(1).unwrap();
    let host = fs::File::open(share.dir.path().join("file")).unwrap();
    host.sync_all().unwrap();
    for _ in 0..3 {
        rustix::fs::fadvise(&host, 0, None, rustix::fs::Advice::DontNeed).unwrap();
        assert!(guest.read_file("file").unwrap() == data);
    }
    assert_eq!(share.daemon.server().metrics().panics(), 0);
}

/// A file open in one guest, to be locked.
struct Opened<'a> {
    guest: &'a Guest,
    node: u64,
    fh: u64,
}

impl Opened<'_> {
    fn new(guest: &Guest) -> Opened<'_> {
        let node = guest.client().lookup(1, b"file").unwrap().nodeid;
        let fh = guest.client().open(node, 2).unwrap().fh;
        Opened { guest, node, fh }
    }

    fn set(&self, kind: u32, wait: bool) -> Result<(), Error> {
        let lock = FileLock { start: 0, end: i64::MAX as u64, kind, pid: 7 };
        self.guest.client().setlk(self.node, self.fh, 1, lock, false, wait)
    }
}

const WRITE: u32 = 1;
const UNLOCK: u32 = 2;

#[test]
fn a_lock_is_waited_for_across_two_guests_while_the_queue_goes_on() {
    let locks = Arc::<Locks>::default();
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("file"), b"x").unwrap();
    let run = tempfile::tempdir().unwrap();
    let first = Share::of(dir, 1, locks.clone());
    // The same directory for the second guest, through a device of its own.
    let config = virtiofs_hostdir::Config { root: first.dir.path().into(), ..Default::default() };
    let fs = Arc::new(HostDir::sharing(config, locks.clone()).unwrap());
    let want = Limits::default().want | init::POSIX_LOCKS;
    let server = Arc::new(Server::new(fs, Limits { want, ..Limits::default() }));
    let socket = run.path().join("s");
    let source = Source::Listening(UnixListener::bind(&socket).unwrap());
    let identity = Identity::new("other", 1).unwrap();
    let _daemon = Daemon::start(
        server,
        source,
        Config { identity, once: false, slow_threads: 4, window: None, reconnect: Duration::ZERO, may_lose: false },
    )
    .unwrap();

    let (one, two) = (first.guest(Options::default()), Guest::connect(&socket, Options::default()).unwrap());
    let (holder, waiter) = (Opened::new(&one), Opened::new(&two));
    holder.set(WRITE, true).unwrap();
    assert!(matches!(waiter.set(WRITE, false), Err(Error::Errno(11))));
    std::thread::scope(|scope| {
        let waiting = scope.spawn(|| waiter.set(WRITE, true));
        while locks.count().1 == 0 {
            std::thread::yield_now();
        }
        // The one queue of the waiting guest is not held up.
        assert_eq!(two.stat("file").unwrap().size, 1);
        assert!(!waiting.is_finished());
        holder.set(UNLOCK, false).unwrap();
        waiting.join().unwrap().unwrap();
    });
    drop(two);
    while locks.count().0 > 0 {
        std::thread::yield_now();
    }
    holder.set(WRITE, true).unwrap();
}

/// Numbers of `VHOST_USER_SET_PROTOCOL_FEATURES` and its flags: version 1, a reply is needed.
const SET_PROTOCOL_FEATURES: u32 = 16;
const NEED_REPLY: u32 = 1 | 1 << 3;

#[test]
fn the_message_that_turns_acknowledgements_on_is_acknowledged() {
    // User-Mode Linux sends it so, and waits.
    let share = Share::new(1);
    let timeout = Duration::from_secs(20);
    let connection = Connection::connect(&share.run.path().join("s"), Duration::ZERO, timeout).unwrap();
    let reply_ack = 1u64 << 3;
    connection.send(SET_PROTOCOL_FEATURES, NEED_REPLY, &reply_ack.to_le_bytes(), &[]).unwrap();
    let answer = connection.receive().unwrap();
    assert_eq!((answer.request, &answer.payload[..]), (SET_PROTOCOL_FEATURES, &[0; 8][..]));
}

#[test]
fn long_reads_at_once_are_each_answered_with_their_own_data() {
    const MIB: usize = 1 << 20;
    let share = Share::new(1);
    let data: Vec<u8> = (0..8 * MIB).map(|i| (i / 4096 * 31 + i) as u8).collect();
    fs::write(share.dir.path().join("file"), &data).unwrap();
    let guest = share.guest(Options::default());
    let file = guest.open("file", 0, 0).unwrap();
    std::thread::scope(|scope| {
        for part in data.chunks(MIB).enumerate() {
            let file = &file;
            scope.spawn(move || {
                for _ in 0..20 {
                    assert!(file.read_at((part.0 * MIB) as u64, MIB).unwrap() == part.1);
                }
            });
        }
    });
    file.close().unwrap();
    guest.unmount().unwrap();
    assert_eq!(share.fs.handles(), 0);
}

/// FORGETs are taken by a thread that serves requests as long as that is awake, and by the hiprio queue's own when it sleeps: whichever it is,
/// none stays behind.
#[test]
fn forgets_are_taken_beside_requests_and_without_them() {
    for (queues, event_idx) in [(1, true), (1, false), (2, true), (2, false)] {
        let share = Share::new(queues);
        for at in 0..64 {
            fs::write(share.dir.path().join(format!("{at:02}")), []).unwrap();
        }
        let guest = share.guest(Options { event_idx, timeout: Duration::from_secs(20), ..Options::default() });
        let until = std::time::Instant::now() + Duration::from_millis(400);
        std::thread::scope(|scope| {
            for thread in 0..3 {
                let guest = &guest;
                scope.spawn(move || {
                    for turn in 0.. {
                        if std::time::Instant::now() >= until {
                            break;
                        }
                        guest.stat(format!("{:02}", (turn * 7 + thread) % 64)).unwrap();
                        if thread == 0 {
                            // Fails if the FORGETs are not taken in time.
                            guest.drop_caches().unwrap();
                        }
                        if turn % 50 == 0 {
                            std::thread::sleep(Duration::from_micros(300));
                        }
                    }
                });
            }
        });
        guest.drop_caches().unwrap();
        assert_eq!(share.fs.nodes(), 1, "the root alone");
        guest.unmount().unwrap();
    }
}
