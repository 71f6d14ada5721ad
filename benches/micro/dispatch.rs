//! A whole request but for the file system and the wake-ups: from the ring to a handler, and back to the ring.

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use virtiofs_device::Request;
use virtiofs_fuse::wire::{GetattrIn, ReadIn};
use virtiofs_fuse::{Opcode, Outcome, Scratch};
use virtiofs_micro::{Driver, greet, request};
use virtiofs_virtqueue::Popped;
use zerocopy::IntoBytes;

fn dispatch(criterion: &mut Criterion) {
    let read = |size| request(Opcode::Read, ReadIn { size, ..ReadIn::default() }.as_bytes());
    let cases = [
        ("getattr", request(Opcode::Getattr, GetattrIn::default().as_bytes()), 16 + 104),
        ("lookup", request(Opcode::Lookup, b"a-name\0"), 16 + 128),
        ("read of 4 KiB", read(4096), 16 + 4096),
        ("read of 1 MiB", read(1 << 20), 16 + (1 << 20)),
    ];
    let server = greet();
    let mut scratch = Scratch::default();
    let mut group = criterion.benchmark_group("dispatch");
    group.throughput(Throughput::Elements(1));
    for (name, bytes, room) in cases {
        let (mut driver, mut available, mut used) = Driver::new();
        driver.lay_out(&bytes, room);
        let (memory, mut message) = (driver.memory().clone(), Request::default());
        group.bench_function(name, |bench| {
            bench.iter(|| {
                driver.offer();
                assert_eq!(available.pop(&memory, &mut message.0).expect("a ring"), Popped::Request);
                let Outcome::Done(len) = server.handle(&mut message, &mut scratch, true) else { panic!("it blocks") };
                assert!(len > 16 && message.0.settle(len));
                scratch.finish();
                used.complete(&memory, message.0.head(), len as u32).expect("a ring");
                used.wants_call(&memory).expect("a ring")
            });
        });
    }
    group.finish();
}

criterion_group!(benches, dispatch);
criterion_main!(benches);
