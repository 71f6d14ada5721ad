//! A device in the process of its VMM: a request from kick to completion beside the same system call in another thread, an access to a
//! register, and what a device costs that nobody has started.

use std::hint::black_box;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::thread;

use criterion::{Criterion, criterion_group, criterion_main};
use rustix::event::{EventfdFlags, eventfd};
use rustix::fs::{AtFlags, StatxFlags, statx};
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

fn getattr(criterion: &mut Criterion) {
    let (mut driver, _, _) = Driver::new();
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
    let mut ask = |bytes: &[u8], room| {
        driver.lay_out(bytes, room);
        driver.offer();
        kick.signal();
        wait(&called);
    };
    let init = InitIn { major: 7, minor: 46, flags: u32::MAX, flags2: u32::MAX, ..InitIn::default() };
    ask(&request(Opcode::Init, init.as_bytes()), 80);
    ask(&request(Opcode::Getattr, GetattrIn::default().as_bytes()), ROOM);
    let mut group = criterion.benchmark_group("embedded");
    group.bench_function("GETATTR, from kick to interrupt", |bench| {
        bench.iter(|| {
            driver.offer();
            kick.signal();
            wait(&called);
        });
    });
    device.close();

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
    group.bench_function("statx, and an eventfd each way", |bench| {
        bench.iter(|| {
            ring(&there);
            wait(&back);
        });
    });
    group.finish();
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
