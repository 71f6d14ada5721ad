//! A hostile guest at full speed, beside honest ones: malformed chains, requests of every kind with random contents, memory that changes
//! while it is served, rings that break, guests that vanish. Nobody else notices, nothing outside of the share changes, and in
//! the end the process holds what it held before.
//!
//! `VIRTIOFS_MESSAGES` says how many messages (100,000), `VIRTIOFS_SEED` which; the seed is printed, and is part of each failure.

mod chains;
mod dice;
mod requests;
mod witness;

use std::fs;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant, SystemTime};

use tempfile::TempDir;
use virtiofs_device::Identity;
use virtiofs_device::vhost_user::{Config, Daemon, Source};
use virtiofs_fuse::{Limits, Server};
use virtiofs_guest::{Descriptor, Guest, Memory, Options, RawQueue};
use virtiofs_hostdir::{HostDir, Locks};

use chains::{EACH, Place, ROOM, TABLE};
use dice::Dice;
use requests::{Kind, Known, Request};
use witness::{Holds, SECRET};

const PATIENCE: Duration = Duration::from_secs(120);
/// Messages that are in flight on each queue.
const SLOTS: u16 = 64;
/// Messages that one hostile guest sends before it vanishes.
const LIFE: u64 = 10_000;
/// Unused memory around a storm's own, for descriptors that were rewritten meanwhile: a guest that overwrites its own memory proves nothing.
const GUARD: usize = 256 << 10;
/// Requests that may be left waiting for locks when a guest vanishes.
const WAITING: usize = 64;

/// Ends the work beside a storm, also where that ends by a failure.
struct Ends<'a>(&'a AtomicBool);

impl Drop for Ends<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Release);
    }
}

struct Share {
    dir: PathBuf,
    socket: PathBuf,
    daemon: Daemon,
}

impl Share {
    fn new(run: &Path, name: &str, locks: &Arc<Locks>) -> Share {
        let dir = run.join("shares").join(name);
        fs::create_dir_all(&dir).unwrap();
        let config = virtiofs_hostdir::Config { root: dir.clone(), xattr: true, ..Default::default() };
        let server = Server::new(Arc::new(HostDir::sharing(config, Arc::clone(locks)).unwrap()), Limits::default());
        let socket = run.join(format!("{name}.sock"));
        let source = Source::Listening(UnixListener::bind(&socket).unwrap());
        let identity = Identity::new(name, 2).unwrap();
        let config =
            Config { identity, once: false, slow_threads: 4, window: None, reconnect: Duration::ZERO, may_lose: false };
        Share { dir, socket, daemon: Daemon::start(Arc::new(server), source, config).unwrap() }
    }

    fn guest(&self) -> Guest {
        let options = Options { timeout: PATIENCE, regions: 2, request_queues: 2, in_flight: 64, ..Options::default() };
        Guest::connect(&self.socket, options).unwrap()
    }

    /// Puts things there that lead out.
    fn furnish(&self, outside: &Path) {
        fs::create_dir_all(self.dir.join("dir")).unwrap();
        fs::write(self.dir.join("file"), [7; 10_000]).unwrap();
        for (name, target) in [("escape", outside.join("secret")), ("escapes", outside.into()), ("loop", "loop".into())]
        {
            let _ = std::os::unix::fs::symlink(target, self.dir.join(name));
        }
    }

    fn clear(&self) {
        for entry in fs::read_dir(&self.dir).unwrap() {
            let path = entry.unwrap().path();
            fs::remove_dir_all(&path).or_else(|_| fs::remove_file(&path)).unwrap();
        }
    }
}

/// A queue in the hands of a hostile guest.
struct Front<'a> {
    queue: RawQueue<'a>,
    memory: &'a Memory,
    places: Vec<Place>,
    /// What each place's message is, while the device has it.
    busy: Vec<Option<Request>>,
}

impl<'a> Front<'a> {
    fn new(guest: &'a Guest, index: usize) -> Front<'a> {
        let client = guest.client();
        let queue = client.raw_queue(index).unwrap();
        let each = 2 * ROOM + 16 * TABLE;
        let size = each * usize::from(SLOTS);
        let from = queue.buffer(size + 2 * GUARD).unwrap() + GUARD as u64;
        let region = client.memory().regions().into_iter().find(|r| (r.address..r.address + r.size).contains(&from));
        let end = region.map(|region| region.address + region.size).unwrap();
        let places = (0..SLOTS).map(|slot| {
            let request = from + each as u64 * u64::from(slot);
            let (reply, table) = (request + ROOM as u64, request + 2 * ROOM as u64);
            Place { first: slot * EACH, request, reply, table, arena: (from, from + size as u64), end }
        });
        let places = places.collect();
        let empty = (0..SLOTS).map(|_| None).collect();
        Front { queue, memory: client.memory(), places, busy: empty }
    }

    /// Fills all free places with messages, and offers them.
    fn send(&mut self, dice: &mut Dice, known: &Known, kind: Kind) -> u64 {
        let mut sent = 0;
        for slot in 0..SLOTS {
            let (at, index) = (self.places[usize::from(slot)], usize::from(slot));
            if self.busy[index].is_some() {
                continue;
            }
            let request = requests::make(dice, known, kind, ROOM);
            self.memory.write(at.request, &request.bytes).unwrap();
            let hostile = kind == Kind::Harmless && !dice.once_in(3);
            let (ring, table) = match hostile {
                true => chains::hostile(dice, &at, self.queue.size()),
                false => chains::honest(dice, &at, request.bytes.len() as u32, request.room as u32),
            };
            for (k, descriptor) in (at.first..).zip(&ring) {
                self.queue.set(k, *descriptor).unwrap();
            }
            for (k, descriptor) in (0..).zip(&table) {
                write_descriptor(self.memory, at.table + 16 * k, *descriptor);
            }
            self.busy[index] = Some(request);
            self.queue.offer(at.first);
            sent += 1;
        }
        self.queue.kick().unwrap();
        sent
    }

    /// Takes back what is done, waiting up to `patience` for the first. `checks` where replies lie where they are said to lie.
    fn take(&mut self, checks: bool, known: &mut Known, patience: Duration) -> usize {
        let mut done = self.queue.returned(1, patience).unwrap();
        done.extend(self.queue.returned(usize::MAX, Duration::ZERO).unwrap());
        for (head, used) in &done {
            let index = (head / u32::from(EACH)) as usize;
            assert!(head % u32::from(EACH) == 0 && index < SLOTS.into(), "head {head} was never offered");
            let request = self.busy[index].take().unwrap_or_else(|| panic!("head {head} came back twice"));
            if checks {
                self.check(&request, self.places[index].reply, *used as usize, known);
            }
        }
        done.len()
    }

    /// Looks at a reply, whatever the request was.
    fn check(&self, request: &Request, at: u64, used: usize, known: &mut Known) {
        if used == 0 {
            return;
        }
        assert!(used >= 16 && used <= request.room, "{used} bytes of reply to {request:?}");
        let mut bytes = vec![0; used];
        self.memory.read(at, &mut bytes).unwrap();
        let word = |at: usize| u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap());
        let (len, error) = (word(0) as usize, word(4) as i32);
        assert_eq!(len, used, "{request:?}");
        assert!((-511..=0).contains(&error), "{error} for {request:?}");
        assert!(error == 0 || used == 16, "{error} with {used} bytes for {request:?}");
        assert!(!bytes.windows(SECRET.len()).any(|part| part == SECRET), "the secret got out by {request:?}");
        if error == 0 {
            known.learn(request.opcode, &bytes[16..]);
        }
    }

    fn in_flight(&self) -> usize {
        self.busy.iter().flatten().count()
    }

    /// What no device can go on from.
    fn break_ring(&mut self, dice: &mut Dice) {
        let [table, available, used] = self.queue.addresses();
        for slot in 0..16 {
            let first = SLOTS * EACH + slot * EACH;
            let into = *dice.of(&[table, available, used, available + 2, used + 2]);
            let request = self.places[usize::from(slot)].request;
            self.queue.set_chain(first, &[(request, 56, false), (into, 4096, true)]).unwrap();
            self.queue.offer(first);
        }
        let head = *dice.of(&[self.queue.size(), u16::MAX, 3]);
        self.queue.offer(head);
        self.queue.set_available_index(dice.word() as u16).unwrap();
        self.queue.kick().unwrap();
        let _ = self.queue.returned(1, Duration::from_millis(5));
    }
}

fn write_descriptor(memory: &Memory, at: u64, descriptor: Descriptor) {
    let Descriptor { address, len, flags, next } = descriptor;
    let [a, b, c] = [u64::from(len), u64::from(flags), u64::from(next)];
    let word = a | b << 32 | c << 48;
    memory.write(at, &[address.to_le_bytes(), word.to_le_bytes()].concat()).unwrap();
}

/// Rewrites requests, and with `descriptors` those too, while the device reads them. Opcodes stay, so that what may use the host's disk
/// stays what it is.
fn meddle(memory: &Memory, places: &[Place], table: Option<u64>, end: &AtomicBool, mut dice: Dice) {
    while !end.load(Ordering::Acquire) {
        let at = dice.of(places);
        let byte = [dice.word() as u8];
        let place = match (dice.below(4), table) {
            // Of an address and of a length the lower two bytes; flags; next.
            (0, Some(table)) => table + 16 * (u64::from(at.first) + dice.below(4)) + dice.of(&[0, 1, 8, 9, 12, 14]),
            (1, Some(_)) => at.table + 16 * dice.below(4) + dice.of(&[0, 1, 8, 9, 12, 14]),
            (2, _) => at.request + dice.below(4),
            _ => at.request + 8 + dice.below(16),
        };
        memory.write(place, &byte).unwrap();
        if table.is_none() {
            // Names, which are checked once and used then.
            let name = *dice.of(&[&b"../"[..], b"/\0", b"..\0", b"\0", b"aaaa"]);
            memory.write(at.request + 40 + dice.below(32), name).unwrap();
        }
        thread::sleep(Duration::from_micros(10));
    }
}

/// Chains that break every rule on one queue, while the other one has honest work.
fn storm_of_chains(share: &Share, dice: &mut Dice, end_at: u64, rounds: &AtomicU64) -> u64 {
    let guest = share.guest();
    let mut front = Front::new(&guest, 1);
    let (over, mut known, mut sent) = (AtomicBool::new(false), Known::default(), 0);
    let [table, ..] = front.queue.addresses();
    let (memory, places) = (Arc::clone(guest.client().memory()), front.places.clone());
    thread::scope(|scope| {
        let (over, seed, _end) = (&over, dice.word(), Ends(&over));
        let worker = scope.spawn(|| witness::keep_working(&guest, "beside", over, rounds));
        scope.spawn(move || meddle(&memory, &places, Some(table), over, Dice::new(seed)));
        while sent < end_at {
            sent += front.send(dice, &known, Kind::Harmless);
            assert!(
                front.take(false, &mut known, PATIENCE) > 0,
                "nothing comes back of {} messages",
                front.in_flight()
            );
        }
        while front.in_flight() > 0 {
            assert!(front.take(false, &mut known, PATIENCE) > 0, "{} messages never came back", front.in_flight());
        }
        front.break_ring(dice);
        let before = rounds.load(Ordering::Relaxed);
        let until = Instant::now() + PATIENCE;
        while rounds.load(Ordering::Relaxed) < before + 2 && !worker.is_finished() {
            assert!(Instant::now() < until, "a broken ring stops its neighbour");
            thread::sleep(Duration::from_millis(1));
        }
    });
    drop(front);
    guest.client().vanish();
    sent
}

/// Requests of every kind on all queues.
fn storm_of_requests(share: &Share, dice: &mut Dice, end_at: u64) -> u64 {
    let guest = share.guest();
    let mut fronts: Vec<Front<'_>> = (0..3).map(|index| Front::new(&guest, index)).collect();
    let (over, mut known, mut sent) = (AtomicBool::new(false), Known::default(), 0);
    let places: Vec<Place> = fronts.iter().flat_map(|front| front.places.clone()).collect();
    let memory = Arc::clone(guest.client().memory());
    thread::scope(|scope| {
        let (over, seed, _end) = (&over, dice.word(), Ends(&over));
        scope.spawn(move || meddle(&memory, &places, None, over, Dice::new(seed)));
        let mut last = Instant::now();
        while sent < end_at && fronts.iter().map(Front::in_flight).sum::<usize>() <= WAITING + 3 * usize::from(SLOTS) {
            let mut taken = 0;
            for front in &mut fronts {
                sent += front.send(dice, &known, Kind::All);
                taken += front.take(true, &mut known, Duration::from_micros(200));
            }
            match taken {
                0 => assert!(last.elapsed() < PATIENCE, "nothing comes back any more"),
                _ => last = Instant::now(),
            }
        }
    });
    let until = Instant::now() + PATIENCE;
    while fronts.iter().map(Front::in_flight).sum::<usize>() > WAITING {
        assert!(Instant::now() < until, "requests that wait for nothing never came back");
        fronts.iter_mut().for_each(|front| _ = front.take(true, &mut known, Duration::from_millis(1)));
    }
    if dice.once_in(2) {
        fronts.iter_mut().for_each(|front| front.break_ring(dice));
    }
    drop(fronts);
    guest.client().vanish();
    sent
}

fn from_environment(name: &str, otherwise: u64) -> u64 {
    std::env::var(name).map_or(otherwise, |value| value.parse().unwrap())
}

/// Memory is the fastest disk, and no guest fills somebody's real one.
fn scratch() -> TempDir {
    tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).unwrap()
}

#[test]
fn a_storm_of_hostile_messages_is_nobody_elses_trouble() {
    let seed = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_nanos() as u64;
    let (messages, seed) = (from_environment("VIRTIOFS_MESSAGES", 100_000), from_environment("VIRTIOFS_SEED", seed));
    println!("VIRTIOFS_MESSAGES={messages} VIRTIOFS_SEED={seed}");
    rustix::process::setrlimit(
        rustix::process::Resource::Fsize,
        rustix::process::Rlimit { current: Some(1 << 30), maximum: None },
    )
    .unwrap();

    let run = scratch();
    let outside = run.path().join("outside");
    fs::create_dir(&outside).unwrap();
    fs::write(outside.join("secret"), SECRET.repeat(100)).unwrap();
    let locks: Arc<Locks> = Arc::default();
    let (attacked, other) = (Share::new(run.path(), "attacked", &locks), Share::new(run.path(), "other", &locks));
    let before = witness::picture(&outside);
    let siblings = || fs::read_dir(run.path().join("shares")).unwrap().count();
    assert_eq!(siblings(), 2);

    let (over, rounds, beside) = (AtomicBool::new(false), AtomicU64::new(0), AtomicU64::new(0));
    let honest = other.guest();
    let (mut dice, mut sent, mut held) = (Dice::new(seed), 0, None);
    let started = Instant::now();
    thread::scope(|scope| {
        let _end = Ends(&over);
        let worker = scope.spawn(|| witness::keep_working(&honest, "work", &over, &rounds));
        let mut life = 0;
        while sent < messages && !worker.is_finished() {
            attacked.furnish(&outside);
            sent += match life % 3 {
                0 => storm_of_chains(&attacked, &mut dice, LIFE.min(messages), &beside),
                _ => storm_of_requests(&attacked, &mut dice, LIFE.min(messages)),
            };
            life += 1;
            assert_eq!(attacked.daemon.server().metrics().panics(), 0, "seed {seed}: a handler panicked");
            // A new guest is served: the session of the one before was cleaned up.
            assert!(attacked.guest().client().getattr(1, None).is_ok(), "seed {seed}, after life {life}");
            attacked.clear();
            // By now all threads have their memory.
            if held.is_none() && life >= 3 && sent >= messages / 4 {
                held = Some(Holds::now());
            }
        }
    });
    let took = started.elapsed();
    let held = held.expect("too few messages to compare");
    let now = Holds::settle(held, Duration::from_secs(30));
    println!("{sent} messages in {took:.1?}; {held:?}, then {now:?}; honest rounds: {rounds:?}, beside: {beside:?}");
    assert_eq!(witness::picture(&outside), before, "seed {seed}: something outside of the share changed");
    assert_eq!(siblings(), 2, "seed {seed}: something beside the share");
    assert!(rounds.into_inner() > 10 && beside.into_inner() > 10, "seed {seed}: honest guests hardly got a turn");
    assert!(now.descriptors <= held.descriptors, "seed {seed}: descriptors grew from {held:?} to {now:?}");
    assert!(now.threads <= held.threads, "seed {seed}: threads grew from {held:?} to {now:?}");
    assert!(now.memory <= held.memory + (32 << 10), "seed {seed}: memory grew from {held:?} to {now:?}");
    drop(honest);
    // It was a storm, not a drizzle that the first check turns away.
    let asked: Vec<_> = attacked.daemon.server().metrics().operations().collect();
    let in_vain: Vec<_> = asked.iter().filter(|(_, all, failed)| all == failed).map(|(name, ..)| *name).collect();
    println!("{asked:?}, all in vain: {in_vain:?}");
    assert_eq!(asked.len(), virtiofs_fuse::op::OPERATIONS.len(), "seed {seed}");
}
