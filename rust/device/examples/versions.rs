//! What the version table costs and saves: nanoseconds of a bump and of a stat that asks nobody, beside one that asks, and requests when
//! little changes. The number is that of seconds with one change each, 20 if none is given.
//!
//!     cargo run --release -p virtiofs-device --example versions [SECONDS]

use std::fs;
use std::hint::black_box;
use std::os::unix::net::UnixListener;
use std::sync::Arc;
use std::time::{Duration, Instant};

use virtiofs_coherence::{Table, View};
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
    let (before, began, mut looked) = (requests(), Instant::now(), 0);
    for at in 0..seconds {
        writer.truncate(&names[(at as usize * 100) % FILES], at + 1)?;
        while began.elapsed() < Duration::from_secs(at + 1) {
            all()?;
            looked += FILES;
        }
    }
    println!("{seconds} s, a change in each: {looked} stats of {FILES} files, {} requests", requests() - before);
    Ok(())
}
