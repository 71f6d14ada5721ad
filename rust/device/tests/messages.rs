//! VMMs that lie, stall, flood and die: whatever they say, the next one is served, and nothing of them is left.

use std::fs::{self, File};
use std::io::{pipe, read_to_string};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::Arc;
use std::time::Duration;

use parking_lot::{Mutex, MutexGuard};
use rustix::event::{EventfdFlags, eventfd};
use rustix::fs::{CWD, MemfdFlags, Mode, OFlags, memfd_create, openat};
use tempfile::TempDir;
use vhost::vhost_user::message::FrontendReq;
use virtiofs_device::Identity;
use virtiofs_device::vhost_user::{Config, Daemon, Source};
use virtiofs_fuse::{Limits, Server};
use virtiofs_guest::{Connection, Error, Guest, Options};
use virtiofs_hostdir::HostDir;

const PATIENCE: Duration = Duration::from_secs(20);
/// The descriptors and threads of the process are counted: one test at a time.
static ALONE: Mutex<()> = Mutex::new(());

struct Share {
    run: TempDir,
    daemon: Daemon,
    _dir: TempDir,
    _alone: MutexGuard<'static, ()>,
}

impl Share {
    fn new() -> Share {
        let alone = ALONE.lock();
        let (dir, run) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        fs::write(dir.path().join("file"), [7; 10_000]).unwrap();
        let config = virtiofs_hostdir::Config { root: dir.path().into(), ..Default::default() };
        let fs = Arc::new(HostDir::sharing(config, Arc::default()).unwrap());
        let server = Arc::new(Server::new(fs, Limits::default()));
        let source = Source::Listening(UnixListener::bind(run.path().join("s")).unwrap());
        let identity = Identity::new("share", 1).unwrap();
        let reconnect = Duration::from_secs(5);
        let config = Config { identity, once: false, slow_threads: 4, window: None, reconnect, may_lose: false };
        let daemon = Daemon::start(server, source, config).unwrap();
        Share { run, daemon, _dir: dir, _alone: alone }
    }

    fn connection(&self) -> Connection {
        Connection::new(UnixStream::connect(self.run.path().join("s")).unwrap(), PATIENCE).unwrap()
    }

    fn guest(&self, options: Options) -> Guest {
        Guest::connect(&self.run.path().join("s"), Options { timeout: PATIENCE, ..options }).unwrap()
    }

    /// An honest guest is served; then the descriptors, threads, and mapped memory files of this process.
    fn check(&self) -> [usize; 3] {
        let guest = self.guest(Options::default());
        assert_eq!(guest.read_file("file").unwrap(), [7; 10_000]);
        guest.unmount().unwrap();
        drop(guest);
        while self.daemon.stats().connected {
            std::thread::sleep(Duration::from_millis(1));
        }
        assert_eq!(self.daemon.server().metrics().panics(), 0);
        let count = |path: &str| fs::read_dir(path).unwrap().count();
        let maps = read_to_string(File::open("/proc/self/maps").unwrap()).unwrap();
        [count("/proc/self/fd"), count("/proc/self/task"), maps.lines().filter(|line| line.contains("memfd")).count()]
    }
}

fn words32(values: &[u32]) -> Vec<u8> {
    values.iter().flat_map(|value| value.to_ne_bytes()).collect()
}

fn words64(values: &[u64]) -> Vec<u8> {
    values.iter().flat_map(|value| value.to_ne_bytes()).collect()
}

fn memfd(size: u64) -> File {
    let file = File::from(memfd_create("memory", MemfdFlags::CLOEXEC).unwrap());
    file.set_len(size).unwrap();
    file
}

const SIZE: u64 = 2 << 20;
/// Guest and user address of the one region.
const AT: u64 = 1 << 32;
const USER: u64 = 1 << 40;

/// What an honest VMM says to start queue 1, and what it sends along.
fn honest<'a>(
    memory: &'a File,
    kick: &'a OwnedFd,
    call: &'a OwnedFd,
) -> Vec<(FrontendReq, Vec<u8>, Vec<BorrowedFd<'a>>)> {
    use FrontendReq::*;
    let table = [words32(&[1, 0]), words64(&[AT, SIZE, USER, 0])].concat();
    let addresses = [words32(&[1, 0]), words64(&[USER + 0x1000, USER + 0x3000, USER + 0x2000, 0])].concat();
    vec![
        (SET_OWNER, vec![], vec![]),
        (SET_FEATURES, words64(&[1 << 32 | 1 << 30 | 1 << 29]), vec![]),
        (SET_PROTOCOL_FEATURES, words64(&[u64::MAX]), vec![]),
        (
            GET_INFLIGHT_FD,
            [words64(&[0, 0]), [2u16, 128].iter().flat_map(|n| n.to_ne_bytes()).collect()].concat(),
            vec![],
        ),
        (SET_MEM_TABLE, table, vec![memory.as_fd()]),
        (SET_VRING_NUM, words32(&[1, 64]), vec![]),
        (SET_VRING_BASE, words32(&[1, 0]), vec![]),
        (SET_VRING_ADDR, addresses, vec![]),
        (SET_VRING_KICK, words64(&[1]), vec![kick.as_fd()]),
        (SET_VRING_CALL, words64(&[1]), vec![call.as_fd()]),
        (SET_VRING_ENABLE, words32(&[1, 1]), vec![]),
    ]
}

struct Random(u64);

impl Random {
    fn below(&mut self, below: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % below
    }

    fn of<'a, T>(&mut self, all: &'a [T]) -> &'a T {
        &all[self.below(all.len() as u64) as usize]
    }

    fn number(&mut self) -> u64 {
        let some =
            [0, 1, 2, 3, 8, 64, 128, 255, 256, 4096, 32_768, 65_535, 65_536, SIZE, AT, AT + SIZE, USER, USER + 0x1000];
        match self.below(5) {
            0 => u64::MAX - self.below(5000),
            1 => self.below(4) << 32 | self.below(300),
            2 => 1 << self.below(64),
            _ => *self.of(&some),
        }
    }
}

/// Descriptors of every kind, fit for nothing or for little.
fn palette(dir: &TempDir) -> Vec<OwnedFd> {
    let path = dir.path().join("plain");
    fs::write(&path, [1; 100]).unwrap();
    let open = |path: &std::path::Path, flags| openat(CWD, path, flags | OFlags::CLOEXEC, Mode::empty()).unwrap();
    let (reader, writer) = pipe().unwrap();
    let (near, far) = UnixStream::pair().unwrap();
    drop(far);
    let full = eventfd(0, EventfdFlags::CLOEXEC).unwrap();
    rustix::io::write(&full, &(u64::MAX - 1).to_ne_bytes()).unwrap();
    let memory = memfd(SIZE);
    let read_only =
        open(format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&memory)).as_ref(), OFlags::RDONLY);
    vec![
        memory.into(),
        read_only,
        memfd(0).into(),
        memfd(4096).into(),
        reader.into(),
        writer.into(),
        open(dir.path(), OFlags::RDONLY | OFlags::DIRECTORY),
        open(&path, OFlags::PATH),
        open(&path, OFlags::RDWR),
        open("/dev/null".as_ref(), OFlags::RDWR),
        open("/dev/zero".as_ref(), OFlags::RDWR),
        near.into(),
        full,
        eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK).unwrap(),
        eventfd(5, EventfdFlags::CLOEXEC | EventfdFlags::SEMAPHORE).unwrap(),
    ]
}

/// One connection's worth of lies; answers how many.
fn lie(share: &Share, random: &mut Random, fds: &[OwnedFd]) -> u64 {
    let connection = share.connection();
    let memory = memfd(SIZE);
    let kick = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK).unwrap();
    let mut script = honest(&memory, &kick, random.of(fds));
    if random.below(3) == 0 {
        script.clear();
    }
    let mut sent = 0;
    let most = 1 + random.below(120);
    while sent < most {
        let next = if script.is_empty() { None } else { Some(script.remove(0)) };
        let (mut request, mut payload, mut along) = match next {
            Some((request, payload, along)) => (request as u32, payload, along),
            None => {
                let numbers = random.below(8);
                let mut payload: Vec<u8> = (0..numbers).flat_map(|_| random.number().to_ne_bytes()).collect();
                if random.below(2) == 0 {
                    // A queue that there may be.
                    let index = (random.below(4) as u32).to_ne_bytes();
                    payload.iter_mut().zip(index).for_each(|(to, from)| *to = from);
                }
                (random.below(46) as u32, payload, vec![])
            }
        };
        // One lie in ten messages of the script, and more where there is none.
        if random.below(10) == 0 || script.is_empty() {
            match random.below(6) {
                0 => payload.truncate(random.below(1 + payload.len() as u64) as usize),
                1 => payload.extend(vec![random.below(256) as u8; random.below(300) as usize]),
                2 => along.extend((0..random.below(4)).map(|_| random.of(fds).as_fd())),
                3 => along.clear(),
                4 if !payload.is_empty() => {
                    let at = random.below(payload.len() as u64) as usize;
                    payload[at] = random.below(256) as u8;
                }
                _ => {
                    request = if random.below(30) == 0 { random.below(1 << 32) as u32 } else { random.below(46) as u32 }
                }
            }
        }
        // NEED_REPLY at random, and once in a while the bits of a reply or of another version.
        let flags = if random.below(100) == 0 { random.below(16) as u32 } else { 8 * random.below(2) as u32 };
        sent += 1;
        if connection.send(request, flags, &payload, &along).is_err() {
            break;
        }
        if random.below(4) == 0 {
            use std::os::unix::fs::FileExt;
            // The available index and the first descriptors, while the queue may run.
            let garbage: Vec<u8> = (0..random.below(64)).map(|_| random.below(256) as u8).collect();
            memory.write_at(&garbage, *random.of(&[0x1000, 0x2000, 0x2002, 0x3000])).unwrap();
            let _ = rustix::io::write(&kick, &1u64.to_ne_bytes());
        }
        if random.below(60) == 0 {
            memory.set_len(*random.of(&[0, 0x1800, 0x2000])).unwrap();
            let _ = rustix::io::write(&kick, &1u64.to_ne_bytes());
        }
    }
    if random.below(4) == 0 {
        let _ = connection.send_bytes(&[2, 0, 0, 0, 1, 0, 0, 0, 8, 0, 0, 0, 1][..1 + random.below(12) as usize], &[]);
    }
    sent
}

#[test]
fn a_hundred_thousand_lies_leave_nothing_behind() {
    let share = Share::new();
    let scratch = tempfile::tempdir().unwrap();
    let fds = palette(&scratch);
    let mut random = Random(0x9e37_79b9_7f4a_7c15);
    // What is made once, for the first of a kind.
    for _ in 0..20 {
        lie(&share, &mut random, &fds);
    }
    let before = share.check();
    let (mut sent, mut connections) = (0, 0u64);
    while sent < 100_000 {
        sent += lie(&share, &mut random, &fds);
        connections += 1;
        if connections.is_multiple_of(200) {
            assert_eq!(share.check(), before, "after {sent} messages");
        }
    }
    assert_eq!(share.check(), before, "after {sent} messages over {connections} connections");
}

#[test]
fn a_thousand_vmms_that_come_and_go_leave_nothing_behind() {
    let share = Share::new();
    let cycle = |round: u32| {
        if round % 6 == 5 {
            // Half a message, of half a VMM.
            let connection = share.connection();
            connection.send(FrontendReq::SET_OWNER as u32, 0, &[], &[]).unwrap();
            return connection
                .send_bytes(&[2, 0, 0, 0, 1, 0, 0, 0, 8, 0, 0, 0, 1][..round as usize % 13], &[])
                .unwrap();
        }
        let guest = share.guest(Options { reconnects: round.is_multiple_of(2), ..Options::default() });
        let file = guest.open("file", libc::O_RDONLY, 0).unwrap();
        let read = || assert_eq!(file.read_at(0, 10).unwrap(), [7; 10]);
        read();
        match round % 6 {
            // It is killed, and its guest had a file open.
            0 | 1 => guest.client().vanish(),
            // It comes back, with what its guest had.
            2 => {
                guest.client().disconnect();
                guest.client().reconnect(share.connection()).unwrap();
                read();
                guest.client().vanish();
            }
            // Its guest begins anew, and says nothing of what it had.
            3 => {
                guest.client().init().unwrap();
                assert!(matches!(file.read_at(0, 10), Err(Error::Errno(_))));
                guest.client().vanish();
            }
            // It ends as it should.
            _ => {
                file.close().unwrap();
                guest.unmount().unwrap();
            }
        }
    };
    (0..24).for_each(cycle);
    let before = share.check();
    (0..1000).for_each(cycle);
    assert_eq!(share.check(), before);
    assert_eq!(share.daemon.server().held().handles, 0);
}

#[test]
fn a_vmm_that_stalls_loses_its_turn_to_the_next_one() {
    let share = Share::new();
    for bytes in [&[][..], &[1, 0, 0], &[2, 0, 0, 0, 1, 0, 0, 0, 8, 0, 0, 0, 1, 2]] {
        let stalled = share.connection();
        stalled.send_bytes(bytes, &[]).unwrap();
        share.check();
        assert!(stalled.closed());
    }
    // One that stands still between messages has every right to.
    let idle = share.guest(Options::default());
    let knocking = share.connection();
    knocking.send(1, 0, &[], &[]).unwrap();
    std::thread::sleep(Duration::from_millis(2500));
    assert_eq!(idle.read_file("file").unwrap().len(), 10_000);
    idle.unmount().unwrap();
    drop(idle);
    assert_eq!(knocking.receive().unwrap().request, 1);
}

#[test]
fn memory_that_is_cut_off_costs_the_session_and_not_the_daemon() {
    let share = Share::new();
    for cut in [0, 0x1800] {
        let memory = memfd(SIZE);
        let [kick, call] = [(); 2].map(|()| eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK).unwrap());
        let connection = share.connection();
        for (request, payload, along) in honest(&memory, &kick, &call) {
            connection.send(request as u32, 0, &payload, &along).unwrap();
            if request == FrontendReq::GET_INFLIGHT_FD {
                connection.receive().unwrap();
            }
        }
        assert_ne!(connection.ask_number(FrontendReq::GET_FEATURES).unwrap(), 0);
        memory.set_len(cut).unwrap();
        rustix::io::write(&kick, &1u64.to_ne_bytes()).unwrap();
        // The queue stops, and so has looked at its ring.
        let base = connection.ask(FrontendReq::GET_VRING_BASE, &words32(&[1, 0]), &[]).unwrap();
        assert_eq!(base.payload.len(), 8);
        drop(connection);
        share.check();
    }
}

#[test]
fn a_call_that_nobody_takes_keeps_no_queue() {
    let share = Share::new();
    let guest = share.guest(Options { polling: true, ..Options::default() });
    let full = eventfd(0, EventfdFlags::CLOEXEC).unwrap();
    rustix::io::write(&full, &(u64::MAX - 1).to_ne_bytes()).unwrap();
    guest.client().with_connection(|connection| {
        connection.tell(FrontendReq::SET_VRING_CALL, &words64(&[1]), &[full.as_fd()]).unwrap();
    });
    assert_eq!(guest.read_file("file").unwrap().len(), 10_000);
    guest.client().vanish();
    drop(guest);
    share.check();
}

#[test]
fn what_is_completed_while_a_rings_memory_is_away_is_not_lost() {
    let share = Share::new();
    let guest = share.guest(Options::default());
    let file = guest.open("file", libc::O_RDWR, 0).unwrap();
    let region = guest.client().memory().regions()[0].clone();
    for _ in 0..200 {
        std::thread::scope(|scope| {
            let reading = scope.spawn(|| file.read_at(0, 10_000));
            guest.client().show_memory(&region, false).unwrap();
            std::thread::yield_now();
            guest.client().show_memory(&region, true).unwrap();
            assert_eq!(reading.join().unwrap().unwrap(), [7; 10_000]);
        });
    }
    file.close().unwrap();
    guest.unmount().unwrap();
}
