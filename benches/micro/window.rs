//! The DAX window: its own book-keeping, beside what mmap(2) of the same costs.

use criterion::{BenchmarkId, Criterion, criterion_group, criterion_main};
use rustix::fs::{MemfdFlags, ftruncate, memfd_create};
use virtiofs_dax::{GRANULE, Mapper, Mapping, Range, Refusal, Reserved, Window};

const GRANULES: u64 = 256;
const SIZE: u64 = GRANULES * GRANULE;

/// Maps nothing.
#[derive(Debug)]
struct Nothing;

impl Mapper for Nothing {
    fn overlays(&self) -> bool {
        true
    }

    fn map(&self, _: &Mapping) -> Result<(), Refusal> {
        Ok(())
    }

    fn unmap(&self, _: u64, _: u64) -> Result<(), Refusal> {
        Ok(())
    }
}

fn cases(criterion: &mut Criterion, name: &str, window: &Window<impl Mapper>) {
    let file = memfd_create("file", MemfdFlags::CLOEXEC).expect("a memfd");
    ftruncate(&file, SIZE).expect("its size");
    let map = |granule: u64| {
        let at = granule % GRANULES * GRANULE;
        let range = Range { offset: at, len: GRANULE, file_offset: at, write: false };
        window.map(1, range, |_| Ok::<_, Refusal>((file.try_clone()?, true))).expect("mapped");
    };
    (0..GRANULES).for_each(map);
    let mut group = criterion.benchmark_group("window");
    let mut granule = 0;
    group.bench_function(BenchmarkId::new("map over 2 MiB", name), |bench| {
        bench.iter(|| {
            map(granule);
            granule += 1;
        });
    });
    group.bench_function(BenchmarkId::new("remove and map 256", name), |bench| {
        bench.iter(|| {
            (0..GRANULES).for_each(|at| window.unmap(at * GRANULE, GRANULE).expect("unmapped"));
            (0..GRANULES).for_each(map);
        });
    });
    group.bench_function(BenchmarkId::new("resolve", name), |bench| {
        bench.iter(|| {
            granule += 1;
            window.resolve(granule % GRANULES * GRANULE).expect("mapped").file_offset
        });
    });
    group.finish();
}

fn window(criterion: &mut Criterion) {
    cases(criterion, "table alone", &Window::new(Nothing, SIZE, 1024).expect("a window"));
    let reserved = Reserved::new(SIZE).expect("addresses");
    cases(criterion, "in process", &Window::new(reserved, SIZE, 1024).expect("a window"));
}

criterion_group!(benches, window);
criterion_main!(benches);
