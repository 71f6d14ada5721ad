//! A device in the process of its VMM: a request from kick to completion beside the same system call in another thread, an access to a
//! register, and what a device costs that nobody has started.

use std::hint::black_box;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use criterion::{Criterion, criterion_group, criterion_main};
use rustix::event::{EventfdFlags, eventfd};
use rustix::fs::{AtFlags, StatxFlags, statx};
use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};
use virtiofs_device::mmio::Mmio;
use virtiofs_device::{Device, Identity, QueueSetup, Threads};
use virtiofs_fuse::wire::{GetattrIn, InitIn};
use virtiofs_fuse::{Limits, Opcode, Server};
use virtiofs_hostdir::{Config, HostDir};
use virtiofs_micro::{Driver, PLACE, Place, request};
use virtiofs_virtqueue::{Event, SharedMemory};
use zerocopy::IntoBytes;

/// VIRTIO_F_VERSION_1: without EVENT_IDX, so that each completion interrupts.
const FEATURES: u64 = 1 << 32;
const STATUS: u64 = 0x70;
const ROOM: u32 = 16 + 104;

/// An eventfd whose reader waits.
fn bell() -> OwnedFd {
    eventfd(0, EventfdFlags::CLOEXEC).expect("an eventfd")
}

fn ring(bell: &impl AsFd) {
    rustix::io::write(bell, &1u64.to_ne_bytes()).expect("an eventfd is writable");
}

fn wait(bell: &impl AsFd) {
    rustix::io::read(bell, &mut [0; 8]).expect("an eventfd is readable");
}

fn device(memory: Arc<SharedMemory>) -> Device {
    let config = Config { root: std::env::temp_dir(), ..Config::default() };
    let fs = HostDir::sharing(config, Arc::default()).expect("a share");
    let server = Arc::new(Server::new(Arc::new(fs), Limits::default()));
    Device::new(Identity::new("micro", 1).expect("a tag"), server, memory, Threads::Own { slow: 1 })
}

/// Binds this thread, and those that it begins, to the given processor.
fn bind(processor: usize) {
    let mut set = CpuSet::new();
    set.set(processor);
    sched_setaffinity(None, &set).expect("a processor of ours");
}

/// The processors that this thread may use.
fn processors() -> Vec<usize> {
    let set = sched_getaffinity(None).expect("those of this thread");
    (0..CpuSet::MAX_CPU).filter(|processor| set.is_set(*processor)).collect()
}

/// A device that answers GETATTR at once, and its driver.
struct Asked {
    driver: Driver,
    device: Device,
    kick: Arc<Event>,
    called: OwnedFd,
}

impl Asked {
    fn new() -> Asked {
        let (driver, _, _) = Driver::new();
        let memory = Arc::new(SharedMemory::default());
        memory.store((**driver.memory()).clone());
        let device = device(memory);
        let (kick, called) = (Arc::new(Event::new().expect("an eventfd")), bell());
        let call = Event::from_fd(called.try_clone().expect("a descriptor")).expect("an eventfd");
        let Place { size, desc, avail, used } = PLACE;
        let setup = QueueSetup {
            index: 1,
            size,
            desc,
            avail,
            used,
            next: 0,
            kick: Some(Arc::clone(&kick)),
            call: Some(call.into()),
        };
        device.start(FEATURES, vec![setup]).expect("started");
        let mut asked = Asked { driver, device, kick, called };
        let init = InitIn { major: 7, minor: 46, flags: u32::MAX, flags2: u32::MAX, ..InitIn::default() };
        asked.driver.lay_out(&request(Opcode::Init, init.as_bytes()), 80);
        asked.once();
        asked.driver.lay_out(&request(Opcode::Getattr, GetattrIn::default().as_bytes()), ROOM);
        asked
    }

    /// One request, from kick to interrupt.
    fn once(&mut self) {
        self.driver.offer();
        self.kick.signal();
        wait(&self.called);
    }
}

/// The same system call in another thread, and an eventfd each way.
struct Plain {
    there: OwnedFd,
    back: OwnedFd,
}

impl Plain {
    fn new() -> Plain {
        let (there, back) = (bell(), bell());
        let (theirs, ours) = (there.try_clone().expect("a descriptor"), back.try_clone().expect("a descriptor"));
        let root = std::fs::File::open(std::env::temp_dir()).expect("a directory");
        // It waits for ever in the end, and goes with the process.
        thread::spawn(move || {
            loop {
                wait(&theirs);
                black_box(statx(&root, c"", AtFlags::EMPTY_PATH, StatxFlags::BASIC_STATS).expect("statx"));
                ring(&ours);
            }
        });
        Plain { there, back }
    }

    fn once(&mut self) {
        ring(&self.there);
        wait(&self.back);
    }
}

/// Microseconds for each of `count` calls, with a pause before each that is not counted.
fn time(count: u32, pause: Duration, mut once: impl FnMut()) -> f64 {
    let mut taken = Duration::ZERO;
    if pause.is_zero() {
        let begin = Instant::now();
        (0..count).for_each(|_| once());
        taken = begin.elapsed();
    } else {
        for _ in 0..count {
            thread::sleep(pause);
            let begin = Instant::now();
            once();
            taken += begin.elapsed();
        }
    }
    taken.as_secs_f64() * 1e6 / f64::from(count)
}

fn quartiles(mut of: Vec<f64>) -> [f64; 3] {
    of.sort_by(f64::total_cmp);
    [1, 2, 3].map(|quarter| of[(of.len() - 1) * quarter / 4])
}

/// Both by turns, where they share a processor and where they do not, one after the other and after both sides have slept. criterion
/// measures one after the other, and between the two a machine changes by more than they differ.
fn getattr(_: &mut Criterion) {
    const ROUNDS: usize = 41;
    let own = processors();
    let apart = own.last().copied().unwrap_or(0);
    for (where_, far) in [("on one processor", own[0]), ("on two processors", apart)] {
        for (how, count, pause) in [("awake", 3000, Duration::ZERO), ("after a rest", 40, Duration::from_micros(500))] {
            let both = thread::spawn({
                let near = own[0];
                move || {
                    bind(far);
                    let (mut asked, mut plain) = (Asked::new(), Plain::new());
                    bind(near);
                    let (mut ours, mut theirs) = (Vec::new(), Vec::new());
                    for _ in 0..ROUNDS {
                        ours.push(time(count, pause, || asked.once()));
                        theirs.push(time(count, pause, || plain.once()));
                    }
                    asked.device.close();
                    (quartiles(ours), quartiles(theirs))
                }
            });
            let (ours, theirs) = both.join().expect("both were measured");
            let told = |[low, middle, high]: [f64; 3]| format!("{middle:.2} µs ({low:.2} to {high:.2})");
            let more = ours[1] - theirs[1];
            println!("embedded/GETATTR {where_}, {how}: {}, statx: {}, {more:+.2} µs", told(ours), told(theirs));
        }
    }
}

fn registers(criterion: &mut Criterion) {
    let mmio = Mmio::new(Arc::new(device(Arc::default()))).expect("registers");
    let mut group = criterion.benchmark_group("embedded");
    let mut data = [0; 4];
    group.bench_function("read of a register", |bench| bench.iter(|| mmio.read(black_box(STATUS), &mut data)));
    group.finish();
}

fn resident() -> usize {
    let statm = std::fs::read_to_string("/proc/self/statm").expect("procfs");
    statm.split(' ').nth(1).and_then(|pages| pages.parse().ok()).unwrap_or(0)
}

fn idle(_: &mut Criterion) {
    let (count, before) = (1000, resident());
    let devices: Vec<_> = (0..count).map(|_| device(Arc::default())).collect();
    println!("embedded/idle: {} KiB for each of {count} devices", (resident() - before) * 4 / devices.len());
}

criterion_group!(benches, getattr, registers, idle);
criterion_main!(benches);
