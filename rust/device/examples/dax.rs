// UNSAFETY: what the window is compared with, a mapping of the host's own, is made and read by hand.
#![allow(unsafe_code)]
//! What the DAX window costs, beside the host's own mappings and beside requests. Needs a quiet machine and a release build:
//! `cargo run --release -p virtiofs-device --example dax [MEGABYTES]`

use std::hint::black_box;
use std::os::fd::AsFd;
use std::os::unix::net::UnixListener;
use std::ptr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::mm::{MapFlags, ProtFlags, mmap, munmap};
use virtiofs_dax::{GRANULE, Range, Refusal, Reserved, Window};
use virtiofs_device::Identity;
use virtiofs_device::vhost_user::{Config, Daemon, Source, WindowSettings};
use virtiofs_fuse::wire::{RemovemappingOne, SetupmappingIn, bits, init};
use virtiofs_fuse::{Limits, Server};
use virtiofs_guest::{Guest, Options};
use virtiofs_hostdir::{Effects, HostDir};

const BLOCK: usize = 1 << 20;
const PAGE: usize = 4096;
const ROUNDS: usize = 5;

fn median(mut times: Vec<Duration>) -> Duration {
    times.sort();
    times.get(times.len() / 2).copied().unwrap_or_default()
}

fn timed(times: usize, mut what: impl FnMut(usize)) -> Duration {
    median(
        (0..times)
            .map(|at| {
                let began = Instant::now();
                what(at);
                began.elapsed()
            })
            .collect(),
    )
}

/// A pseudo-random page below `pages`.
fn page(at: usize, pages: usize) -> usize {
    (at.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 20) % pages
}

fn main() {
    let megabytes: usize = std::env::args().nth(1).and_then(|word| word.parse().ok()).unwrap_or(256);
    let size = megabytes.next_power_of_two() * BLOCK;
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("file");
    std::fs::write(&path, vec![5; size]).expect("a file");
    let file = std::fs::File::options().read(true).write(true).open(&path).expect("it was written");

    let effects = Effects { dax: Some(0), ..Effects::default() };
    let config = virtiofs_hostdir::Config { root: directory.path().into(), effects, ..Default::default() };
    let fs = HostDir::sharing(config, Arc::default()).expect("a share");
    let want = Limits::default().want | init::MAP_ALIGNMENT | init::HAS_INODE_DAX;
    let server = Arc::new(Server::new(Arc::new(fs), Limits { want, ..Limits::default() }));
    let run = tempfile::tempdir().expect("a directory");
    let listener = UnixListener::bind(run.path().join("s")).expect("a socket");
    let granules = size as u64 / GRANULE;
    let (mappings, patience) = (granules as usize, Duration::from_secs(10));
    let window = Some(WindowSettings { size: size as u64, mappings, barrier: false, patience });
    let identity = Identity::new("dax", 1).expect("a tag");
    let config = Config { identity, once: false, slow_threads: 4, window, reconnect: Duration::ZERO, may_lose: false };
    let _daemon = Daemon::start(server, Source::Listening(listener), config).expect("a daemon");
    let guest = Guest::connect(&run.path().join("s"), Options { dax: true, ..Options::default() }).expect("a guest");
    let node = guest.nodeid("file").expect("a node");
    let seen = guest.client().window().expect("a window");

    let flags = bits::SETUPMAPPING_READ;
    let set_up = |granule: usize| {
        let at = granule as u64 * GRANULE;
        let args = SetupmappingIn { fh: u64::MAX, foffset: at, len: GRANULE, flags, moffset: at };
        guest.client().setupmapping(node, &args).expect("a mapping");
    };
    println!("SETUPMAPPING of 2 MiB, by message: median {:?}", timed(granules as usize, set_up));

    // SAFETY: a new mapping of our own file, at an address that the kernel chooses.
    let host =
        unsafe { mmap(ptr::null_mut(), size, ProtFlags::READ, MapFlags::SHARED, file.as_fd(), 0) }.expect("mmap");
    let mut block = vec![0; BLOCK];
    let mut sequential = |read: &mut dyn FnMut(usize, &mut [u8])| {
        let time = timed(ROUNDS, |_| (0..size / BLOCK).for_each(|at| read(at * BLOCK, black_box(&mut block))));
        size as f64 / time.as_secs_f64() / f64::from(1 << 30)
    };
    let by_window = sequential(&mut |at, out| seen.load(at as u64, out).expect("mapped"));
    let by_mmap = sequential(&mut |at, out| {
        // SAFETY: `at` and a block lie in the mapping, which lives until the end; the block is ours.
        unsafe { ptr::copy_nonoverlapping(host.cast::<u8>().add(at), out.as_mut_ptr(), out.len()) }
    });
    println!("sequential: window {by_window:.2} GiB/s, host mmap {by_mmap:.2} GiB/s, ratio {:.2}", by_window / by_mmap);

    let mut small = vec![0; PAGE];
    let open = guest.open("file", libc::O_RDONLY, 0).expect("open");
    // All of the file, which comes from memory, and as much as a processor's cache holds.
    for (what, part) in [("the file", size), ("4 MiB of it", size.min(4 * BLOCK))] {
        let (pages, count, asked) = (part / PAGE, 200_000, 20_000);
        let per_second = |count: usize, read: &mut dyn FnMut(usize)| {
            let time = timed(ROUNDS, |_| (0..count).for_each(|at| read(page(at, pages) * PAGE)));
            count as f64 / time.as_secs_f64()
        };
        let by_window = per_second(count, &mut |at| seen.load(at as u64, black_box(&mut small)).expect("mapped"));
        let by_mmap = per_second(count, &mut |at| {
            let out = black_box(&mut small);
            // SAFETY: `at` and a page lie in the mapping, which lives until the end; the page is ours.
            unsafe { ptr::copy_nonoverlapping(host.cast::<u8>().add(at), out.as_mut_ptr(), out.len()) }
        });
        let by_read = per_second(asked, &mut |at| {
            black_box(guest.client().read(node, open.fh(), at as u64, PAGE).expect("read"));
        });
        println!(
            "random 4 KiB of {what}: window {by_window:.0}/s, host mmap {by_mmap:.0}/s, READ {by_read:.0}/s, window / READ {:.1}",
            by_window / by_read
        );
    }
    let all: Vec<_> =
        (0..granules.min(256)).map(|at| RemovemappingOne { moffset: at * GRANULE, len: GRANULE }).collect();
    let began = Instant::now();
    guest.client().removemapping(node, &all).expect("removed");
    println!("REMOVEMAPPING of {}, by message: {:?}", all.len(), began.elapsed());

    let size = 256 * GRANULE;
    let here = Window::new(Reserved::new(size).expect("addresses"), size, 256).expect("a window");
    let open = |_| Ok::<_, Refusal>((file.try_clone()?.into(), true));
    let inside = timed(256, |at| {
        let range = Range { offset: at as u64 * GRANULE, len: GRANULE, file_offset: 0, write: false };
        here.map(1, range, open).expect("mapped");
    });
    let began = Instant::now();
    (0..256).for_each(|at| here.unmap(at * GRANULE, GRANULE).expect("unmapped"));
    let removal = began.elapsed();
    let bare = timed(256, |at| {
        // SAFETY: the first 2 MiB of our mapping of the file, mapped over by the same file; nothing refers into it.
        unsafe {
            mmap(
                host,
                GRANULE as usize,
                ProtFlags::READ,
                MapFlags::SHARED | MapFlags::FIXED,
                file.as_fd(),
                (at % 2) as u64 * GRANULE,
            )
        }
        .expect("mmap");
    });
    println!("in this process: mapping {inside:?} (bare mmap {bare:?}), removal of 256 {removal:?}");
    // SAFETY: made above, and not used any more.
    unsafe { munmap(host, megabytes.next_power_of_two() * BLOCK) }.expect("munmap");
}
