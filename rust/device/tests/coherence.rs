//! The checker of the version table: guests and a program of the host change the same files at random, and no guest may be told what was
//! no longer true when it asked.
//!
//! The oracle: each name has a history of what it was. A change enters it before it is begun, and counts as done when its reply is here (on
//! the host: when the watcher has said so). An answer must be something that the name, and the file behind it, were at some moment
//! between the question and the answer. Sizes are unique, so an answer tells which moment that was.
//!
//! `VIRTIOFS_OPERATIONS` says how many answers (20,000 if unset; `make coherence` takes a million), `VIRTIOFS_SEED` repeats a run.

use std::collections::BTreeMap;
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};
use std::{array, fs, io, thread};

use parking_lot::Mutex;
use tempfile::TempDir;
use virtiofs_coherence::{InodeWatcher, Table, View, Watched, Watcher, slot_of};
use virtiofs_device::Identity;
use virtiofs_device::vhost_user::{Config, Daemon, Source};
use virtiofs_fuse::{Limits, Server};
use virtiofs_guest::{Error, Guest, Options};
use virtiofs_hostdir::HostDir;

const DIRECTORIES: usize = 3;
const NAMES: usize = 5;
const LONG: Duration = Duration::from_secs(60);
/// Daemons that share the table, each with two guests.
const DAEMONS: usize = 2;
/// Files that a program of the host changes to hear from a watcher: of each daemon's, twice two.
const MARKERS: [[[&str; 2]; 2]; DAEMONS] =
    [[["marker-a", "marker-b"], ["marker-c", "marker-d"]], [["marker-e", "marker-f"], ["marker-g", "marker-h"]]];

/// What stat(2) says: nothing, or a file of this size and number of links.
type Value = Option<(u64, u32)>;

/// What something was, and when: each entry with the tick at which its change was begun, and that after its reply.
struct History<V>(Vec<(V, u64, Option<u64>)>);

impl<V: PartialEq> History<V> {
    fn begin(&mut self, value: V, now: u64) {
        if self.0.last().is_none_or(|last| last.0 != value) {
            self.0.push((value, now, None));
        }
    }

    fn end(&mut self, now: u64) {
        self.0.iter_mut().rev().take_while(|entry| entry.2.is_none()).for_each(|entry| entry.2 = Some(now));
    }

    /// All that it was at some moment since a tick, latest first: what was replaced before that is no more.
    fn since(&self, tick: u64) -> impl Iterator<Item = &V> {
        let mut replaced = false;
        self.0.iter().rev().map_while(move |(value, _, done)| {
            let current = !replaced;
            replaced |= done.is_some_and(|done| done <= tick);
            current.then_some(value)
        })
    }
}

/// What writers know of a directory that they have locked: which file each name leads to. Links stay in their directory.
type Directory = BTreeMap<usize, u64>;

struct World {
    root: PathBuf,
    directories: [Mutex<Directory>; DIRECTORIES],
    names: [[Mutex<History<Option<u64>>>; NAMES]; DIRECTORIES],
    /// Size and links of each file that there ever was.
    files: Mutex<BTreeMap<u64, History<(u64, u32)>>>,
    clock: AtomicU64,
    next: AtomicU64,
    answers: AtomicU64,
    wanted: u64,
    stale: Mutex<Vec<String>>,
    broken: AtomicBool,
}

struct Random(u64);

impl Random {
    fn below(&mut self, limit: usize) -> usize {
        self.0 = slot_of(self.0, 1);
        (self.0 % limit as u64) as usize
    }
}

fn name(directory: usize, name: usize) -> String {
    format!("d{directory}/n{name}")
}

/// Somebody who works on the files: a guest, or a program on the host.
trait Actor: Send {
    fn stat(&self, path: &str) -> io::Result<Value>;
    fn list(&self, directory: usize) -> io::Result<Vec<String>>;
    fn create(&self, path: &str) -> io::Result<()>;
    fn write(&self, path: &str, size: u64) -> io::Result<()>;
    fn link(&self, from: &str, to: &str) -> io::Result<()>;
    fn rename(&self, from: &str, to: &str) -> io::Result<()>;
    fn unlink(&self, path: &str) -> io::Result<()>;
    /// Returns when everybody can know of what was changed.
    fn told(&self) {}
}

fn lift<T>(result: virtiofs_guest::Result<T>) -> io::Result<T> {
    result.map_err(|error| match error {
        Error::Errno(errno) => io::Error::from_raw_os_error(errno),
        other => io::Error::other(other.to_string()),
    })
}

impl Actor for Guest {
    fn stat(&self, path: &str) -> io::Result<Value> {
        loop {
            match lift(Guest::stat(self, path)) {
                Ok(attr) => return Ok(Some((attr.size, attr.nlink))),
                Err(error) if error.raw_os_error() == Some(libc::ENOENT) => return Ok(None),
                // The name leads elsewhere since the walk: Linux walks again then, and asks for each name (retry_estale of fs/namei.h).
                Err(error) if error.raw_os_error() == Some(libc::ESTALE) => lift(self.drop_caches())?,
                Err(error) => return Err(error),
            }
        }
    }
    fn list(&self, directory: usize) -> io::Result<Vec<String>> {
        let names = lift(self.listdir(format!("d{directory}")))?;
        Ok(names.into_iter().map(|name| String::from_utf8_lossy(&name).into_owned()).collect())
    }
    fn create(&self, path: &str) -> io::Result<()> {
        let file = lift(self.open(path, libc::O_WRONLY | libc::O_CREAT | libc::O_EXCL, 0o666))?;
        lift(file.close())
    }
    fn write(&self, path: &str, size: u64) -> io::Result<()> {
        if size.is_multiple_of(2) {
            return lift(self.truncate(path, size));
        }
        let file = lift(self.open(path, libc::O_WRONLY | libc::O_TRUNC, 0))?;
        lift(file.write_at(size - 1, b"x"))?;
        lift(file.close())
    }
    fn link(&self, from: &str, to: &str) -> io::Result<()> {
        lift(Guest::link(self, from, to))
    }
    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        lift(Guest::rename(self, from, to, 0))
    }
    fn unlink(&self, path: &str) -> io::Result<()> {
        lift(Guest::unlink(self, path))
    }
}

/// A program of the host, which no daemon asks.
struct Host {
    root: PathBuf,
    view: View,
    /// The watchers that it waits for.
    eyes: Vec<Eye>,
    /// How often it has waited for them.
    waits: AtomicU64,
}

/// A watcher: of the file system, or of inodes, which has to be asked to watch those of its markers.
enum Eye {
    FileSystem,
    Inodes(Arc<InodeWatcher>, [[Watched; 2]; 2]),
}

impl Host {
    /// Changes a file that nobody else changes, and waits until that is told. Answers whether it was told by its watch: that another
    /// took its watch is told as well, but out of order.
    fn heard(&self, marker: &str, watch: Option<(&InodeWatcher, &Watched)>) -> io::Result<bool> {
        let file = fs::File::options().write(true).open(self.root.join(marker))?;
        let status = file.metadata()?;
        let slot = slot_of(status.dev(), status.ino());
        if let Some((watcher, mark)) = watch {
            watcher.see(|| Some(&file), slot, mark);
        }
        let noted = self.view.note(slot);
        file.set_len(status.len() ^ 1)?;
        drop(file);
        let watched = || watch.is_none_or(|(_, mark)| mark.load(Ordering::Acquire));
        let end = Instant::now() + LONG;
        while watched() && self.view.stands(slot, noted) {
            assert!(Instant::now() < end, "the watcher did not tell of a change on the host");
            thread::yield_now();
        }
        Ok(watched())
    }
}

impl Actor for Host {
    fn stat(&self, path: &str) -> io::Result<Value> {
        match fs::metadata(self.root.join(path)) {
            Ok(status) => Ok(Some((status.len(), status.nlink() as u32))),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }
    fn list(&self, directory: usize) -> io::Result<Vec<String>> {
        let entries = fs::read_dir(self.root.join(format!("d{directory}")))?;
        entries.map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned())).collect()
    }
    fn create(&self, path: &str) -> io::Result<()> {
        fs::File::create_new(self.root.join(path)).map(drop)
    }
    fn write(&self, path: &str, size: u64) -> io::Result<()> {
        fs::File::options().write(true).open(self.root.join(path))?.set_len(size)
    }
    fn link(&self, from: &str, to: &str) -> io::Result<()> {
        fs::hard_link(self.root.join(from), self.root.join(to))
    }
    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        fs::rename(self.root.join(from), self.root.join(to))
    }
    fn unlink(&self, path: &str) -> io::Result<()> {
        fs::remove_file(self.root.join(path))
    }

    /// Events come in order: when a watcher has told of two later changes, it has told of all before. (Two, since another inode may
    /// have the slot of one. And others than the last time, of which an event may still be under way: a change makes several.)
    fn told(&self) {
        let turn = self.waits.fetch_add(1, Ordering::Relaxed) as usize % 2;
        for (eye, markers) in self.eyes.iter().zip(&MARKERS) {
            for (at, marker) in markers[turn].iter().enumerate() {
                let watch = match eye {
                    Eye::FileSystem => None,
                    Eye::Inodes(watcher, marks) => Some((&**watcher, &marks[turn][at])),
                };
                while !self.heard(marker, watch).unwrap() {}
            }
        }
    }
}

impl World {
    fn new(root: &Path, wanted: u64) -> World {
        for directory in 0..DIRECTORIES {
            fs::create_dir(root.join(format!("d{directory}"))).unwrap();
        }
        for marker in MARKERS.as_flattened().as_flattened() {
            fs::write(root.join(marker), "").unwrap();
        }
        World {
            root: root.to_path_buf(),
            directories: Default::default(),
            names: [(); DIRECTORIES].map(|()| [(); NAMES].map(|()| Mutex::new(History(vec![(None, 0, Some(0))])))),
            files: Mutex::default(),
            clock: AtomicU64::new(1),
            next: AtomicU64::new(1),
            answers: AtomicU64::new(0),
            wanted,
            stale: Mutex::default(),
            broken: AtomicBool::new(false),
        }
    }

    fn tick(&self) -> u64 {
        self.clock.fetch_add(1, Ordering::SeqCst)
    }

    fn goes_on(&self) -> bool {
        self.answers.load(Ordering::Relaxed) < self.wanted && !self.broken.load(Ordering::Relaxed)
    }

    /// A change is about to begin: these directories, locked by the caller, will be so, and this file of this size.
    fn begin(&self, locked: &[(usize, &Directory)], file: u64, size: Option<u64>) {
        let mut files = self.files.lock();
        let now = self.tick();
        let mut changed = vec![file];
        for &(directory, names) in locked {
            for at in 0..NAMES {
                let mut history = self.names[directory][at].lock();
                changed.extend(history.0.last().and_then(|last| last.0));
                history.begin(names.get(&at).copied(), now);
            }
        }
        for id in changed {
            let links = locked.iter().flat_map(|(_, names)| names.values()).filter(|other| **other == id).count();
            let history = files.entry(id).or_insert(History(Vec::new()));
            let was = history.0.last().map_or(0, |last| last.0.0);
            history.begin((size.filter(|_| id == file).unwrap_or(was), links as u32), now);
        }
    }

    fn end(&self, locked: &[usize], changed: &[u64]) {
        let mut files = self.files.lock();
        let now = self.tick();
        for history in locked.iter().flat_map(|directory| &self.names[*directory]) {
            history.lock().end(now);
        }
        changed.iter().for_each(|file| files.get_mut(file).unwrap().end(now));
    }

    fn change(&self, actor: &dyn Actor, random: &mut Random) -> io::Result<()> {
        let (from, to) = (random.below(DIRECTORIES), random.below(DIRECTORIES));
        let (at, target) = (from.min(to), from.max(to));
        let mut first = self.directories[at].lock();
        let mut second = (at != target).then(|| self.directories[target].lock());
        let (a, b) = (random.below(NAMES), random.below(NAMES));
        let path = name(at, a);
        let fresh = || self.next.fetch_add(1, Ordering::Relaxed);
        let mut changed: Vec<u64> =
            first.values().chain(second.iter().flat_map(|second| second.values())).copied().collect();
        match (first.get(&a).copied(), random.below(6)) {
            (None, _) => {
                let file = fresh();
                first.insert(a, file);
                changed.push(file);
                self.begin(&[(at, &first)], file, Some(0));
                actor.create(&path)?;
            }
            (Some(file), 0..=2) => {
                let size = fresh();
                if !size.is_multiple_of(2) {
                    // Truncated first, then written.
                    self.begin(&[(at, &first)], file, Some(0));
                }
                self.begin(&[(at, &first)], file, Some(size));
                actor.write(&path, size)?;
            }
            (Some(file), 3) => {
                first.remove(&a);
                self.begin(&[(at, &first)], file, None);
                actor.unlink(&path)?;
            }
            (Some(file), 4) if !first.contains_key(&b) => {
                first.insert(b, file);
                self.begin(&[(at, &first)], file, None);
                actor.link(&path, &name(at, b))?;
            }
            // Over directories only what has one name: links stay where they are.
            (Some(file), _) if first.values().filter(|other| **other == file).count() == 1 => {
                first.remove(&a);
                second.as_deref_mut().unwrap_or(&mut first).insert(b, file);
                match second.as_deref() {
                    Some(second) => self.begin(&[(at, &first), (target, second)], file, None),
                    None => self.begin(&[(at, &first)], file, None),
                }
                actor.rename(&path, &name(target, b))?;
            }
            _ => return Ok(()),
        }
        actor.told();
        self.end(&[at, target], &changed);
        Ok(())
    }

    fn ask(&self, who: &str, actor: &dyn Actor, random: &mut Random) -> io::Result<()> {
        let directory = random.below(DIRECTORIES);
        let report = |at: usize, what: &str, was: String| {
            self.stale.lock().push(format!("{who}: {} is {what}, but was {was}", name(directory, at)));
        };
        if random.below(50) == 0 {
            let since = self.tick();
            let listed = actor.list(directory)?;
            for at in 0..NAMES {
                let there = listed.contains(&format!("n{at}"));
                let history = self.names[directory][at].lock();
                if !history.since(since).any(|was| was.is_some() == there) {
                    report(
                        at,
                        if there { "listed" } else { "not listed" },
                        format!("{:?}", history.since(since).collect::<Vec<_>>()),
                    );
                }
            }
        } else {
            let at = random.below(NAMES);
            let since = self.tick();
            let value = actor.stat(&name(directory, at))?;
            let files = self.files.lock();
            let history = self.names[directory][at].lock();
            // A path leads to a file first, and that file is looked at then: it may have left the name in between.
            let fits = |was: &Option<u64>| match (was, value) {
                (None, None) => true,
                (Some(file), Some(value)) => files[file].since(since).any(|was| *was == value),
                (Some(file), None) => files[file].since(since).any(|was| was.1 == 0),
                (None, Some(_)) => false,
            };
            if !history.since(since).any(fits) {
                let was =
                    history.since(since).map(|file| file.map(|file| files[&file].since(since).collect::<Vec<_>>()));
                report(at, &format!("{value:?}"), format!("{:?}", was.collect::<Vec<_>>()));
            }
        }
        self.answers.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }

    fn work(&self, who: &str, actor: &dyn Actor, seed: u64, changes: bool) {
        let mut random = Random(seed);
        while self.goes_on() {
            let result = match random.below(8) {
                0 if changes => self.change(actor, &mut random),
                _ => self.ask(who, actor, &mut random),
            };
            if let Err(error) = result {
                self.broken.store(true, Ordering::Relaxed);
                self.stale.lock().push(format!("{who}: {error}"));
            }
        }
    }
}

/// One device with its guest.
struct Seat {
    guest: Guest,
    server: Arc<Server>,
    _daemon: Daemon,
    _run: TempDir,
}

fn seat(root: &Path, table: &Arc<Table>, watcher: Option<Arc<InodeWatcher>>, tells: bool) -> Seat {
    let run = tempfile::tempdir().unwrap();
    let versions = tells.then(|| Arc::clone(table));
    let config = virtiofs_hostdir::Config { root: root.into(), versions, watcher, ..Default::default() };
    let server = Arc::new(Server::new(Arc::new(HostDir::new(config).unwrap()), Limits::default()));
    let source = Source::Listening(UnixListener::bind(run.path().join("s")).unwrap());
    let identity = Identity::new("share", 1).unwrap();
    let daemon = Daemon::start(
        Arc::clone(&server),
        source,
        Config { identity, once: false, slow_threads: 2, window: None, reconnect: Duration::ZERO, may_lose: false },
    )
    .unwrap();
    let view = tells.then(|| Arc::new(View::new(table.fd()).unwrap()));
    let guest = Guest::connect(&run.path().join("s"), Options { versions: view, ..Options::default() }).unwrap();
    Seat { guest, server, _daemon: daemon, _run: run }
}

struct Report {
    seed: u64,
    answers: u64,
    requests: u64,
    stale: Vec<String>,
}

/// Who tells of what the program on the host changes.
enum Watch {
    /// A watcher of the file system; without privileges there is no such program.
    FileSystem,
    /// Each daemon watches so many of the inodes that its guests ask about.
    Inodes(usize),
    /// Nobody, and there is no such program. And the last device does not tell either, whose guest alone changes files.
    Nothing,
}

/// Four guests at four devices of two daemons, and a program of the host.
fn history(wanted: u64, watch: Watch) -> Report {
    let all_tell = !matches!(watch, Watch::Nothing);
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_nanos() as u64;
    let seed = std::env::var("VIRTIOFS_SEED").ok().map_or(now, |seed| seed.parse().expect("VIRTIOFS_SEED is a number"));
    println!("seed {seed}");
    let (dir, shared) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let daemons = [(); DAEMONS].map(|()| Table::shared(shared.path(), None).unwrap());
    let world = World::new(dir.path(), wanted);
    let mut watcher = None;
    let mut eyes = Vec::new();
    match watch {
        Watch::FileSystem => match Watcher::start(Arc::clone(&daemons[0]), fs::File::open(dir.path()).unwrap()) {
            Ok(started) => {
                watcher = Some(started);
                eyes.push(Eye::FileSystem);
            }
            Err(error) => println!("without a program on the host: {error}"),
        },
        Watch::Inodes(most) => eyes.extend(daemons.iter().map(|table| {
            let watcher = InodeWatcher::start(Arc::clone(table), most).unwrap();
            Eye::Inodes(Arc::new(watcher), array::from_fn(|_| array::from_fn(|_| Watched::default())))
        })),
        Watch::Nothing => {}
    }
    let of_inodes = |daemon: usize| match eyes.get(daemon) {
        Some(Eye::Inodes(watcher, _)) => Some(Arc::clone(watcher)),
        _ => None,
    };
    let seat = |at| seat(dir.path(), &daemons[at % DAEMONS], of_inodes(at % DAEMONS), all_tell || at != 3);
    let seats: Vec<_> = (0..2 * DAEMONS).map(seat).collect();
    let host = (!eyes.is_empty()).then(|| Host {
        root: world.root.clone(),
        view: View::new(daemons[1].fd()).unwrap(),
        eyes,
        waits: AtomicU64::new(0),
    });
    thread::scope(|scope| {
        for (at, seat) in seats.iter().enumerate() {
            let world = &world;
            scope.spawn(move || {
                world.work(&format!("guest {at}"), &seat.guest, slot_of(seed, at as u64), all_tell || at == 3)
            });
        }
        if let Some(host) = &host {
            scope.spawn(|| world.work("host", host, slot_of(seed, 99), true));
        }
    });
    drop(watcher);
    let requests = seats.iter().flat_map(|seat| seat.server.metrics().operations().collect::<Vec<_>>());
    let requests = requests.filter(|row| matches!(row.0, "LOOKUP" | "GETATTR")).map(|row| row.1).sum();
    let report = Report { seed, answers: world.answers.into_inner(), requests, stale: world.stale.into_inner() };
    println!("seed {seed}: {} answers for {} requests, {} stale", report.answers, report.requests, report.stale.len());
    report
}

fn wanted() -> u64 {
    let wanted = std::env::var("VIRTIOFS_OPERATIONS").ok();
    wanted.map_or(20_000, |wanted| wanted.parse().expect("VIRTIOFS_OPERATIONS is a number"))
}

fn none_is_stale(report: &Report) {
    assert!(report.stale.is_empty(), "seed {}: {:#?}", report.seed, &report.stale[..report.stale.len().min(10)]);
    assert!(report.answers >= wanted());
}

#[test]
fn no_stale_answer_in_a_random_history() {
    let report = history(wanted(), Watch::FileSystem);
    none_is_stale(&report);
    assert!(report.requests < report.answers, "nothing was remembered");
}

/// With a watch for each inode, and with so few that they go round.
#[test]
fn no_stale_answer_where_single_inodes_are_watched() {
    for most in [1000, 12] {
        none_is_stale(&history(wanted(), Watch::Inodes(most)));
    }
}

/// The same where one daemon keeps its changes to itself: the checker finds it out.
#[test]
fn the_checker_finds_a_daemon_that_does_not_tell() {
    let report = history(5_000, Watch::Nothing);
    assert!(!report.stale.is_empty(), "seed {}", report.seed);
}
