//! From the bytes of a request to a handler that answers at once, and to the bytes of its reply, in plain memory.

use criterion::{Criterion, criterion_group, criterion_main};
use virtiofs_fuse::wire::{GetattrIn, ReadIn, WriteIn};
use virtiofs_fuse::{Opcode, Outcome, Plain, Scratch};
use virtiofs_micro::{greet, request};
use zerocopy::IntoBytes;

fn decode(criterion: &mut Criterion) {
    let read = |size| ReadIn { size, ..ReadIn::default() };
    let write = [WriteIn { size: 4096, ..WriteIn::default() }.as_bytes(), &[0; 4096]].concat();
    let cases = [
        ("getattr", request(Opcode::Getattr, GetattrIn::default().as_bytes()), 16 + 104),
        ("lookup", request(Opcode::Lookup, b"a-name\0"), 16 + 128),
        ("read of 4 KiB", request(Opcode::Read, read(4096).as_bytes()), 16 + 4096),
        ("write of 4 KiB", request(Opcode::Write, &write), 16 + 8),
        ("readdirplus of 32 KiB", request(Opcode::Readdirplus, read(32 << 10).as_bytes()), 16 + (32 << 10)),
        ("a lookup of an impossible name", request(Opcode::Lookup, b"a/b\0"), 16 + 128),
    ];
    let server = greet();
    let mut scratch = Scratch::default();
    let mut group = criterion.benchmark_group("decode");
    for (name, bytes, room) in cases {
        let mut message = Plain::new(bytes, vec![0; room]);
        group.bench_function(name, |bench| {
            bench.iter(|| {
                message.rewind();
                let outcome = server.handle(&mut message, &mut scratch, true);
                assert!(matches!(outcome, Outcome::Done(16..)));
                scratch.finish();
            });
        });
    }
    group.finish();
}

criterion_group!(benches, decode);
criterion_main!(benches);
