//! A VMM that loses its connection and comes back: its guest notices nothing. And those that come in its place.

use std::fs;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use tempfile::TempDir;
use virtiofs_device::Identity;
use virtiofs_device::vhost_user::{Config, Daemon, Source};
use virtiofs_fuse::{Limits, Server};
use virtiofs_guest::{Connection, Error, Guest, Options};
use virtiofs_hostdir::HostDir;

const PATIENCE: Duration = Duration::from_secs(20);
const LONG: Duration = Duration::from_secs(600);

struct Share {
    dir: Arc<TempDir>,
    run: TempDir,
    daemon: Option<Daemon>,
}

impl Share {
    fn new(reconnect: Duration) -> Share {
        Share::of(Arc::new(tempfile::tempdir().unwrap()), reconnect)
    }

    fn of(dir: Arc<TempDir>, reconnect: Duration) -> Share {
        let mut share = Share { dir, run: tempfile::tempdir().unwrap(), daemon: None };
        share.start(reconnect);
        share
    }

    /// Another guest of the same directory, by a daemon of its own, that has the file locked.
    fn locker(&self) -> (Share, Guest, virtiofs_guest::File) {
        let share = Share::of(Arc::clone(&self.dir), Duration::ZERO);
        let guest = share.guest(false);
        let file = guest.open("file", libc::O_RDWR, 0).unwrap();
        file.lock(1, libc::F_WRLCK, 0, 9, false).unwrap();
        (share, guest, file)
    }

    /// As a daemon that was restarted.
    fn start(&mut self, reconnect: Duration) {
        self.daemon = None;
        let config = virtiofs_hostdir::Config { root: self.dir.path().into(), ..Default::default() };
        let fs = Arc::new(HostDir::sharing(config, Arc::default()).unwrap());
        let limits =
            Limits { want: Limits::default().want | virtiofs_fuse::wire::init::POSIX_LOCKS, ..Limits::default() };
        let server = Arc::new(Server::new(fs, limits));
        let _ = fs::remove_file(self.socket());
        let source = Source::Listening(UnixListener::bind(self.socket()).unwrap());
        let identity = Identity::new("share", 2).unwrap();
        let config = Config { identity, once: false, slow_threads: 4, window: None, reconnect, may_lose: false };
        self.daemon = Some(Daemon::start(server, source, config).unwrap());
    }

    fn daemon(&self) -> &Daemon {
        self.daemon.as_ref().unwrap()
    }

    fn socket(&self) -> PathBuf {
        self.run.path().join("s")
    }

    fn guest(&self, reconnects: bool) -> Guest {
        let options = Options { timeout: PATIENCE, request_queues: 2, regions: 2, reconnects, ..Options::default() };
        Guest::connect(&self.socket(), options).unwrap()
    }

    fn connection(&self) -> Connection {
        Connection::new(UnixStream::connect(self.socket()).unwrap(), PATIENCE).unwrap()
    }

    fn inits(&self) -> u64 {
        self.daemon().server().metrics().operations().find(|(name, ..)| *name == "INIT").unwrap().1
    }

    fn wait(&self, what: &str, until: impl Fn(&Daemon) -> bool) {
        let deadline = Instant::now() + PATIENCE;
        while !until(self.daemon()) {
            assert!(Instant::now() < deadline, "{what}");
            thread::sleep(Duration::from_millis(1));
        }
    }

    fn wait_away(&self) {
        self.wait("the daemon does not notice", |daemon| !daemon.stats().connected);
    }
}

#[test]
fn open_files_locks_and_names_outlive_the_connection() {
    let share = Share::new(LONG);
    fs::write(share.dir.path().join("file"), "content").unwrap();
    let guest = share.guest(true);
    let file = guest.open("file", libc::O_RDWR, 0).unwrap();
    file.lock(7, libc::F_WRLCK, 0, 9, false).unwrap();
    guest.mkdir("dir", 0o755).unwrap();
    let held = share.daemon().server().held();
    for _ in 0..3 {
        guest.client().disconnect();
        share.wait_away();
        assert_eq!(share.daemon().server().held().handles, held.handles, "kept while it is away");
        guest.client().reconnect(share.connection()).unwrap();
        assert_eq!(file.read_at(0, 7).unwrap(), b"content");
        file.write_at(0, b"CONTENT").unwrap();
        file.write_at(0, b"content").unwrap();
        assert!(matches!(guest.mkdir("dir", 0o755), Err(Error::Errno(libc::EEXIST))));
    }
    assert_eq!(share.inits(), 1, "a guest's kernel says INIT once");
    let other = rustix::fs::open(share.dir.path().join("file"), rustix::fs::OFlags::RDWR, rustix::fs::Mode::empty());
    let other = other.unwrap();
    assert!(rustix::fs::fcntl_lock(&other, rustix::fs::FlockOperation::NonBlockingLockExclusive).is_err());
    file.close().unwrap();
    guest.unmount().unwrap();
    drop(guest);
    share.wait("the session is over", |daemon| daemon.server().held().nodes <= 1 && !daemon.stats().connected);
    assert!(rustix::fs::fcntl_lock(&other, rustix::fs::FlockOperation::NonBlockingLockExclusive).is_ok());
}

/// Each request of these does another thing when it is done twice, or fails.
fn chores(guest: &Guest, share: &Share, me: usize, stop: &AtomicBool, rounds: &AtomicU64) {
    let name = |what: &str, round: u64| format!("{what}-{me}-{round}");
    let log =
        guest.open(name("log", 0), libc::O_WRONLY | libc::O_APPEND | libc::O_CREAT | libc::O_EXCL, 0o644).unwrap();
    let mut round = 0u64;
    while !stop.load(Ordering::Relaxed) {
        round += 1;
        let (made, moved, linked, dir) =
            (name("made", round), name("moved", round), name("linked", round), name("dir", round));
        let file = guest.open(&made, libc::O_RDWR | libc::O_CREAT | libc::O_EXCL, 0o644).unwrap();
        file.write_at(0, made.as_bytes()).unwrap();
        guest.link(&made, &linked).unwrap();
        guest.rename(&made, &moved, libc::RENAME_NOREPLACE).unwrap();
        assert_eq!(file.read_at(0, 100).unwrap(), made.as_bytes());
        file.lock(me as u64, libc::F_WRLCK, 0, 9, false).unwrap();
        file.close().unwrap();
        guest.mkdir(&dir, 0o755).unwrap();
        guest.symlink(&moved, format!("{dir}/link")).unwrap();
        guest.unlink(format!("{dir}/link")).unwrap();
        guest.rmdir(&dir).unwrap();
        guest.unlink(&moved).unwrap();
        guest.unlink(&linked).unwrap();
        log.write_at(0, format!("{round:08}").as_bytes()).unwrap();
        rounds.fetch_add(1, Ordering::Relaxed);
    }
    log.close().unwrap();
    let written = fs::read_to_string(share.dir.path().join(name("log", 0))).unwrap();
    let expected: String = (1..=round).map(|round| format!("{round:08}")).collect();
    assert!(written == expected, "each line once and in order: {} bytes of {}", written.len(), expected.len());
}

#[test]
fn what_must_not_be_done_twice_is_done_once_over_a_hundred_lost_connections() {
    let share = Share::new(LONG);
    let guest = share.guest(true);
    let (stop, rounds) = (AtomicBool::new(false), AtomicU64::new(0));
    thread::scope(|scope| {
        let workers: Vec<_> = (0..4)
            .map(|me| {
                let (guest, share, stop, rounds) = (&guest, &share, &stop, &rounds);
                scope.spawn(move || chores(guest, share, me, stop, rounds))
            })
            .collect();
        for lost in 0..100 {
            let before = rounds.load(Ordering::Relaxed);
            thread::sleep(Duration::from_micros(lost * 37));
            guest.client().disconnect();
            guest.client().reconnect(share.connection()).unwrap();
            while rounds.load(Ordering::Relaxed) == before && workers.iter().all(|worker| !worker.is_finished()) {
                thread::yield_now();
            }
        }
        stop.store(true, Ordering::Relaxed);
    });
    assert_eq!(share.inits(), 1);
    assert_eq!(share.daemon().stats().connections, 101);
    guest.unmount().unwrap();
}

#[test]
fn who_waits_for_a_lock_gets_it_once_after_the_connection_was_lost() {
    let share = Share::new(LONG);
    fs::write(share.dir.path().join("file"), "").unwrap();
    let holder = share.locker();
    let guest = share.guest(true);
    let file = guest.open("file", libc::O_RDWR, 0).unwrap();
    thread::scope(|scope| {
        let (guest, file) = (&guest, &file);
        let waiter = scope.spawn(move || file.lock(7, libc::F_WRLCK, 0, 9, true));
        share.wait("SETLKW arrives", |daemon| {
            daemon.server().metrics().operations().any(|(name, asked, _)| name == "SETLKW" && asked == 1)
        });
        guest.client().disconnect();
        share.wait_away();
        guest.client().reconnect(share.connection()).unwrap();
        assert!(!waiter.is_finished());
        // Let go while it is away a second time.
        guest.client().disconnect();
        share.wait_away();
        holder.2.close().unwrap();
        holder.1.unmount().unwrap();
        guest.client().reconnect(share.connection()).unwrap();
        waiter.join().unwrap().unwrap();
    });
    let asked = share.daemon().server().metrics().operations().find(|(name, ..)| *name == "SETLKW").unwrap().1;
    assert_eq!(asked, 1, "it waits on, and does not ask again");
    file.close().unwrap();
    guest.unmount().unwrap();
}

#[test]
fn a_session_is_kept_for_so_long_and_no_longer() {
    let share = Share::new(Duration::from_millis(50));
    fs::write(share.dir.path().join("file"), "content").unwrap();
    let guest = share.guest(true);
    let file = guest.open("file", libc::O_RDONLY, 0).unwrap();
    guest.client().disconnect();
    share.wait("its time is over", |daemon| daemon.server().negotiated().is_none());
    assert_eq!(share.daemon().server().held().handles, 0);
    // Too late: a device that knows nothing of it answers.
    guest.client().reconnect(share.connection()).unwrap();
    assert!(matches!(file.read_at(0, 7), Err(Error::Errno(libc::EIO))));
    guest.client().init().unwrap();
    assert!(guest.client().getattr(1, None).is_ok());
    guest.client().vanish();
}

#[test]
fn another_vmm_ends_what_is_kept_and_one_that_only_looks_does_not() {
    let share = Share::new(LONG);
    fs::write(share.dir.path().join("file"), "content").unwrap();
    let guest = share.guest(true);
    let file = guest.open("file", libc::O_RDONLY, 0).unwrap();
    guest.client().disconnect();
    share.wait_away();
    for _ in 0..3 {
        let looker = share.connection();
        looker.ask_number(vhost::vhost_user::message::FrontendReq::GET_FEATURES).unwrap();
        drop(looker);
    }
    guest.client().reconnect(share.connection()).unwrap();
    assert_eq!(file.read_at(0, 7).unwrap(), b"content");
    guest.client().vanish();
    for reconnects in [false, true] {
        let guest = share.guest(true);
        let file = guest.open("file", libc::O_RDONLY, 0).unwrap();
        guest.client().disconnect();
        share.wait_away();
        let other = share.guest(reconnects);
        assert_eq!(other.read_file("file").unwrap(), b"content");
        assert_eq!(share.daemon().server().held().handles, 0, "the handle of the one that went is closed");
        other.unmount().unwrap();
        drop(other);
        guest.client().reconnect(share.connection()).unwrap();
        assert!(matches!(file.read_at(0, 7), Err(Error::Errno(libc::EIO))), "and it does not hang");
        guest.client().vanish();
    }
}

#[test]
fn a_vmm_that_stops_its_queues_means_to_go() {
    let share = Share::new(LONG);
    let guest = share.guest(true);
    guest.write_file("file", b"").unwrap();
    guest.client().stop().unwrap();
    guest.client().vanish();
    share.wait("the session is over at once", |daemon| daemon.server().negotiated().is_none());
}

#[test]
fn a_daemon_that_was_restarted_answers_what_was_in_flight() {
    let mut share = Share::new(LONG);
    fs::write(share.dir.path().join("file"), "content").unwrap();
    let _locked = share.locker();
    let guest = share.guest(true);
    let file = guest.open("file", libc::O_RDWR, 0).unwrap();
    thread::scope(|scope| {
        let waiters: Vec<_> = (0..3)
            .map(|owner| {
                let file = &file;
                scope.spawn(move || file.lock(owner, libc::F_WRLCK, 0, 9, true))
            })
            .collect();
        share.wait("all SETLKW arrive", |daemon| {
            daemon.server().metrics().operations().any(|(name, asked, _)| name == "SETLKW" && asked == 3)
        });
        share.start(LONG);
        guest.client().reconnect(share.connection()).unwrap();
        for waiter in waiters {
            assert!(matches!(waiter.join().unwrap(), Err(Error::Errno(libc::EIO))));
        }
    });
    assert!(matches!(file.read_at(0, 7), Err(Error::Errno(libc::EIO))));
    // The guest mounts anew.
    guest.client().init().unwrap();
    guest.drop_caches().unwrap();
    assert_eq!(guest.read_file("file").unwrap(), b"content");
    guest.client().vanish();
}
