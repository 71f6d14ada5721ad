//! The ring alone: a chain is taken, resolved to memory, and given back.

use criterion::{Criterion, criterion_group, criterion_main};
use virtiofs_micro::Driver;
use virtiofs_virtqueue::{Chain, Popped};

fn queue(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("queue");
    for (name, room) in [("2 descriptors", 104), ("33 descriptors, 128 KiB", 128 << 10), ("257, 1 MiB", 1 << 20)] {
        let (mut driver, mut available, mut used) = Driver::new();
        driver.lay_out(&[0; 56], room);
        let (memory, mut chain) = (driver.memory().clone(), Chain::default());
        group.bench_function(name, |bench| {
            bench.iter(|| {
                driver.offer();
                assert_eq!(available.pop(&memory, &mut chain).expect("a ring"), Popped::Request);
                used.complete(&memory, chain.head(), room).expect("a ring");
                used.wants_call(&memory).expect("a ring")
            });
        });
    }
    group.finish();
}

criterion_group!(benches, queue);
criterion_main!(benches);
