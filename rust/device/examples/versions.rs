//! What the version table costs and saves: nanoseconds of a bump and of a stat that asks nobody, beside one that asks, requests when
//! little changes, and after how long a change that a program of the host makes is in the table. The number is that of seconds with one
//! change each, 20 if none is given.
//!
//!     cargo run --release -p virtiofs-device --example versions [SECONDS]

use std::fs::{self, File};
use std::hint::black_box;
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use virtiofs_coherence::{InodeWatcher, Table, View, Watched, Watcher};
use virtiofs_device::Identity;
use virtiofs_device::vhost_user::{Config, Daemon, Source};
use virtiofs_fuse::{Limits, Server};
use virtiofs_guest::{Guest, Options};
use virtiofs_hostdir::HostDir;

const FILES: usize = 10_000;
const ROUNDS: u64 = 10_000_000;

/// Nanoseconds of one call, the best of five rounds.
fn nanoseconds(times: u64, mut call: impl FnMut(u64)) -> f64 {
    let round = |_| {
        let began = Instant::now();
        (0..times).for_each(&mut call);
        began.elapsed().as_nanos() as f64 / times as f64
    };
    (0..5).map(round).fold(f64::INFINITY, f64::min)
}

/// How long after the beginning of the system call a change of a file is in the table: of one at a time, which finds the watcher asleep,
/// and the last of all in a row.
fn noticed(watcher: &str, table: &Table, view: &View, files: &[File]) -> std::io::Result<()> {
    let slots = files.iter().map(|file| file.metadata().map(|status| table.slot(status.dev(), status.ino())));
    let slots: Vec<u64> = slots.collect::<std::io::Result<_>>()?;
    let until_seen = |began: Instant, slot, noted| {
        while view.stands(slot, noted) {
            assert!(began.elapsed() < Duration::from_secs(60), "the watcher told nothing");
            std::hint::spin_loop();
        }
        began.elapsed()
    };
    let mut behind = Vec::new();
    for (turn, (file, slot)) in files.iter().zip(&slots).take(1000).enumerate() {
        let (began, noted) = (Instant::now(), view.note(*slot));
        file.set_len(turn as u64 + 1)?;
        behind.push(until_seen(began, *slot, noted));
        thread::sleep(Duration::from_millis(2));
    }
    behind.sort_unstable();
    let [half, most, all] = [500, 990, 999].map(|at| behind[at].as_secs_f64() * 1e3);
    println!(
        "{watcher}: a change on the host is told after {half:.3} ms, {most:.3} ms (99 %), {all:.3} ms (the latest of 1,000)"
    );
    let began = Instant::now();
    let mut last = (began, 0, view.note(0));
    for (file, slot) in files.iter().zip(&slots) {
        last = (Instant::now(), *slot, view.note(*slot));
        file.set_len(5000)?;
    }
    let took = began.elapsed().as_secs_f64() * 1e3;
    let late = until_seen(last.0, last.1, last.2).as_secs_f64() * 1e3;
    println!("{watcher}: {} changes in {took:.1} ms, the last of which is told after {late:.3} ms", files.len());
    Ok(())
}

/// The same for both watchers, on a table of its own each.
fn watchers(directory: &Path) -> Result<(), Box<dyn std::error::Error>> {
    let open = |at: usize| File::options().write(true).open(directory.join(at.to_string()));
    let files = (0..1000).map(open).collect::<std::io::Result<Vec<_>>>()?;
    let table = Table::anonymous(1 << 20)?;
    match Watcher::start(Arc::clone(&table), File::open(directory)?) {
        Ok(_watcher) => noticed("watched file system", &table, &View::new(table.fd())?, &files)?,
        Err(error) => println!("watched file system: {error}"),
    }
    let table = Table::anonymous(1 << 20)?;
    let watcher = InodeWatcher::start(Arc::clone(&table), 2 * files.len())?;
    for file in &files {
        let status = file.metadata()?;
        watcher.see(|| Some(file), table.slot(status.dev(), status.ino()), &Watched::default());
    }
    Ok(noticed("watched inodes", &table, &View::new(table.fd())?, &files)?)
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let (dir, run) = (tempfile::tempdir()?, tempfile::tempdir()?);
    for at in 0..FILES {
        fs::write(dir.path().join(at.to_string()), "")?;
    }
    let table = Table::anonymous(virtiofs_coherence::DEFAULT_SLOTS)?;
    let view = Arc::new(View::new(table.fd())?);
    println!("bump: {:.1} ns", nanoseconds(ROUNDS, |slot| table.bump(black_box(slot))));
    let subscriber = table.changes();
    println!("bump, with a subscriber that does not sleep: {:.1} ns", nanoseconds(ROUNDS, |slot| table.bump(slot)));
    drop(subscriber);
    let noted = view.note(5);
    let look = nanoseconds(ROUNDS, |_| _ = black_box(view.stands(black_box(5), noted)));
    println!("look whether an answer stands: {look:.1} ns");

    let mut guests = Vec::new();
    for (name, remembers) in [("one", true), ("two", true), ("asks", false)] {
        let config = virtiofs_hostdir::Config {
            root: dir.path().into(),
            versions: Some(Arc::clone(&table)),
            ..Default::default()
        };
        let server = Arc::new(Server::new(Arc::new(HostDir::new(config)?), Limits::default()));
        let source = Source::Listening(UnixListener::bind(run.path().join(name))?);
        let settings = Config {
            identity: Identity::new("share", 1)?,
            once: false,
            slow_threads: 2,
            window: None,
            reconnect: Duration::ZERO,
            may_lose: false,
        };
        let daemon = Daemon::start(Arc::clone(&server), source, settings)?;
        let versions = remembers.then(|| Arc::clone(&view));
        let options = Options { versions, cached_names: 2 * FILES, ..Options::default() };
        guests.push((Guest::connect(&run.path().join(name), options)?, server, daemon));
    }
    let [(reader, server, _), (writer, ..), (asks, ..)] = &guests[..] else { return Ok(()) };
    let names: Vec<String> = (0..FILES).map(|at| at.to_string()).collect();
    let all = || names.iter().try_for_each(|name| reader.stat(name).map(drop));
    let requests = || server.metrics().operations().map(|(_, count, _)| count).sum::<u64>();
    all()?;
    all()?;
    let before = requests();
    let remembered = nanoseconds(1_000_000, |at| _ = black_box(reader.stat(&names[at as usize % FILES])));
    println!("stat of {FILES} files in turn: {remembered:.1} ns, {} requests", requests() - before);
    let one = nanoseconds(1_000_000, |_| _ = black_box(reader.stat(&names[7])));
    println!("stat of one file: {one:.1} ns");
    let asked = nanoseconds(20_000, |_| _ = black_box(asks.stat(&names[7])));
    println!("stat of one file by a guest that keeps nothing (LOOKUP and GETATTR): {asked:.0} ns");

    let seconds = std::env::args().nth(1).map_or(Ok(20), |seconds| seconds.parse::<u64>())?;
    let slots = names.iter().map(|name| dir.path().join(name).metadata().map(|it| table.slot(it.dev(), it.ino())));
    let slots: Vec<u64> = slots.collect::<std::io::Result<_>>()?;
    let (before, began, mut looked, mut told) = (requests(), Instant::now(), 0, 0);
    for at in 0..seconds {
        let changed = (at as usize * 100) % FILES;
        told += slots.iter().filter(|slot| **slot == slots[changed]).count();
        writer.truncate(&names[changed], at + 1)?;
        while began.elapsed() < Duration::from_secs(at + 1) {
            all()?;
            looked += FILES;
        }
    }
    let asked = requests() - before;
    println!(
        "{seconds} s, a change in each: {looked} stats of {FILES} files, {asked} requests for {told} files in the slots"
    );
    drop(guests);
    watchers(dir.path())
}
