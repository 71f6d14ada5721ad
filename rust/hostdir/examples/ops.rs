//! What one operation costs, without a transport: `cargo run --release --example ops -- [DIR] [OP...]`.
//!
//! Prints nanoseconds per operation, best of five rounds. DIR (default: a folder in the system's temporary directory) decides about the
//! host file system. With one OP and under `strace -c -f` it shows the system calls of that operation: it runs
//! exactly 10,000 times in one round then (`OPS_ONCE=1`). `memory` looks up 100,000 files and prints what that adds.

use std::ffi::CString;
use std::hint::black_box;
use std::path::Path;
use std::time::{Duration, Instant};

use virtiofs_fuse::wire::*;
use virtiofs_fuse::{Context, Creation, DirBuffer, FileSystem, Negotiated, Segments};
use virtiofs_hostdir::{Config, Effects, HostDir};

const FILES: usize = 1000;
const TURNS: usize = 10_000;
const CX: Context = Context { unique: 1, uid: 0, gid: 0, pid: 1, may_block: false };
const USER: Context = Context { uid: 1000, gid: 1000, ..CX };

struct Bench {
    fs: HostDir,
    once: bool,
    wanted: Vec<String>,
}

impl Bench {
    /// Times `work`, which does `per_turn` operations each time it is called.
    fn run(&self, name: &str, turns: usize, per_turn: usize, mut work: impl FnMut(&HostDir, usize)) {
        if !self.wanted.is_empty() && !self.wanted.iter().any(|wanted| wanted == name) {
            return;
        }
        let rounds = if self.once { 1 } else { 5 };
        let best = (0..rounds)
            .map(|_| {
                let start = Instant::now();
                for turn in 0..turns {
                    work(&self.fs, turn);
                }
                start.elapsed()
            })
            .min()
            .unwrap_or(Duration::ZERO);
        println!("{name:24} {:8} ns", best.as_nanos() as usize / (turns * per_turn));
    }
}

fn main() {
    let mut args = std::env::args().skip(1);
    let parent = args.next().unwrap_or_else(|| std::env::temp_dir().to_string_lossy().into_owned());
    let wanted: Vec<String> = args.collect();
    let dir = tempfile::tempdir_in(parent).expect("a directory to work in");
    if wanted.iter().any(|name| name == "memory") {
        return memory(dir.path());
    }
    for i in 0..FILES {
        std::fs::write(dir.path().join(format!("f{i}")), "").expect("a file");
    }
    std::fs::write(dir.path().join("data"), vec![7; 8 << 20]).expect("a file");
    let fs = open(dir.path());
    let bench = Bench { fs, once: std::env::var_os("OPS_ONCE").is_some(), wanted };
    names(&bench);
    files(&bench);
    println!("{} nodes, {} handles at the end", bench.fs.nodes(), bench.fs.handles());
}

fn open(root: &Path) -> HostDir {
    let effects = Effects { entry_ttl: Duration::from_secs(1), attr_ttl: Duration::from_secs(1), ..Effects::default() };
    let fs = HostDir::new(Config { root: root.into(), effects, xattr: true, ..Config::default() }).expect("a share");
    fs.init(&Negotiated {
        minor: 46,
        flags: init::SUBMOUNTS,
        max_write: 1 << 20,
        max_readahead: 1 << 20,
        ..Negotiated::default()
    });
    fs
}

fn names(bench: &Bench) {
    let names: Vec<CString> = (0..FILES).map(|i| CString::new(format!("f{i}")).expect("a name")).collect();
    bench.run("lookup-new+forget", TURNS, 1, |fs, i| {
        let entry = fs.lookup(&CX, ROOT_ID, &names[i % FILES]).expect("lookup");
        fs.forget(entry.nodeid, 1);
    });
    bench.run("lookup-miss", TURNS, 1, |fs, _| _ = black_box(fs.lookup(&CX, ROOT_ID, c"absent")));
    bench.run("readdirplus-new", TURNS / FILES, FILES, |fs, _| {
        list(fs, true).into_iter().for_each(|node| _ = fs.forget(node, 1));
    });
    bench.run("readdir", TURNS / FILES, FILES, |fs, _| _ = list(fs, false));
    bench.run("create+unlink", TURNS, 1, |fs, _| create_unlink(fs, &CX));
    bench.run("create+unlink user", TURNS, 1, |fs, _| create_unlink(fs, &USER));
    bench.run("mkdir+rmdir", TURNS, 1, |fs, _| {
        let entry = fs.mkdir(&CX, ROOT_ID, c"dir", 0o755, &Creation::default()).expect("mkdir");
        fs.rmdir(&CX, ROOT_ID, c"dir").expect("rmdir");
        fs.forget(entry.nodeid, 1);
    });
    let nodes: Vec<u64> =
        names.iter().map(|name| bench.fs.lookup(&CX, ROOT_ID, name).expect("lookup").nodeid).collect();
    bench.run("rename", TURNS, 1, |fs, i| {
        let (from, to) = if i % 2 == 0 { (c"f0", c"g0") } else { (c"g0", c"f0") };
        fs.rename(&CX, ROOT_ID, from, ROOT_ID, to, 0).expect("rename");
    });
    bench.run("lookup-known", TURNS, 1, |fs, i| {
        black_box(fs.lookup(&CX, ROOT_ID, &names[i % FILES]).expect("lookup"));
    });
    bench.run("readdirplus-known", TURNS / FILES, FILES, |fs, _| {
        list(fs, true).into_iter().for_each(|node| _ = fs.forget(node, 1));
    });
    bench.run("getattr", TURNS, 1, |fs, i| {
        black_box(fs.getattr(&CX, nodes[i % FILES], None).expect("getattr"));
    });
    bench.run("setattr-mode", TURNS, 1, |fs, i| {
        let args = SetattrIn { valid: fattr::MODE, mode: 0o600 + (i as u32 % 2) * 0o44, ..SetattrIn::default() };
        black_box(fs.setattr(&CX, nodes[i % FILES], &args).expect("setattr"));
    });
    bench.run("getxattr-none", TURNS, 1, |fs, i| {
        _ = black_box(fs.getxattr(&CX, nodes[i % FILES], c"security.capability", &mut [0; 64]));
    });
    bench.run("open+release", TURNS, 1, |fs, i| {
        let fh = fs.open(&CX, nodes[i % FILES], libc::O_RDONLY as u32, false).expect("open").fh;
        drop(fs.release(&CX, 0, &ReleaseIn { fh, ..ReleaseIn::default() }).expect("release"));
    });
}

fn create_unlink(fs: &HostDir, cx: &Context) {
    let flags = libc::O_RDWR as u32;
    let (entry, open) = fs.create(cx, ROOT_ID, c"new", flags, 0o644, false, &Creation::default()).expect("create");
    drop(fs.release(cx, 0, &ReleaseIn { fh: open.fh, ..ReleaseIn::default() }).expect("release"));
    fs.unlink(cx, ROOT_ID, c"new").expect("unlink");
    fs.forget(entry.nodeid, 1);
}

fn files(bench: &Bench) {
    let fs = &bench.fs;
    let node = fs.lookup(&CX, ROOT_ID, c"data").expect("lookup").nodeid;
    let fh = fs.open(&CX, node, libc::O_RDWR as u32, false).expect("open").fh;
    let mut page = vec![0u8; 4096];
    let one = [libc::iovec { iov_base: page.as_mut_ptr().cast(), iov_len: page.len() }];
    let mut large = vec![0u8; 1 << 20];
    let many: Vec<_> =
        large.chunks_mut(4096).map(|page| libc::iovec { iov_base: page.as_mut_ptr().cast(), iov_len: 4096 }).collect();
    let read = |fs: &HostDir, offset: u64, segments: Segments<'_>| {
        let args = ReadIn { fh, offset, size: segments.len() as u32, ..ReadIn::default() };
        assert_eq!(fs.read(&CX, node, &args, segments), Ok(segments.len()));
    };
    let write = |fs: &HostDir, offset: u64, write_flags: u32, segments: Segments<'_>| {
        let args = WriteIn { fh, offset, size: segments.len() as u32, write_flags, ..WriteIn::default() };
        assert_eq!(fs.write(&CX, node, &args, segments), Ok(segments.len()));
    };
    let page_offset = |i: usize| (i * 7919 % 2048 * 4096) as u64;
    bench.run("read-4k", TURNS, 1, |fs, i| read(fs, page_offset(i), Segments::new(&one, 4096)));
    bench.run("write-4k", TURNS, 1, |fs, i| write(fs, page_offset(i), 0, Segments::new(&one, 4096)));
    let kill = bits::WRITE_KILL_SUIDGID;
    bench.run("write-4k kill", TURNS, 1, |fs, i| write(fs, page_offset(i), kill, Segments::new(&one, 4096)));
    bench.run("read-1m", 1000, 1, |fs, i| read(fs, (i as u64 % 8) << 20, Segments::new(&many, 1 << 20)));
    bench.run("write-1m", 1000, 1, |fs, i| write(fs, (i as u64 % 8) << 20, 0, Segments::new(&many, 1 << 20)));
}

/// All nodes of the root's listing that are not `.` and `..`.
fn list(fs: &HostDir, plus: bool) -> Vec<u64> {
    let fh = fs.opendir(&CX, ROOT_ID, 0).expect("opendir").fh;
    let mut out = DirBuffer::default();
    let (mut nodes, mut offset) = (Vec::new(), 0);
    loop {
        out.restart(128 * 1024);
        fs.readdir(&CX, ROOT_ID, fh, offset, plus, &mut out).expect("readdir");
        let mut bytes = out.as_bytes();
        if bytes.is_empty() {
            break;
        }
        while !bytes.is_empty() {
            let head = if plus { size_of::<EntryOut>() } else { 0 };
            let number =
                |at: usize| bytes.get(at..at + 8).map_or(0, |raw| u64::from_le_bytes(raw.try_into().expect("8")));
            offset = number(head + 8);
            if plus && number(0) != 0 {
                nodes.push(number(0));
            }
            let length = (head + 24 + (number(head + 16) & 0xffff_ffff) as usize).next_multiple_of(8);
            bytes = bytes.get(length..).unwrap_or(&[]);
        }
    }
    drop(fs.releasedir(&CX, ROOT_ID, &ReleaseIn { fh, ..ReleaseIn::default() }).expect("releasedir"));
    nodes
}

/// 100,000 nodes, or as many as there may be descriptors.
fn memory(dir: &Path) {
    let resident = || {
        let pages = std::fs::read_to_string("/proc/self/statm").expect("statm");
        pages.split(' ').nth(1).and_then(|pages| pages.parse::<usize>().ok()).expect("resident pages") * 4
    };
    let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile).maximum.unwrap_or(u64::MAX);
    let raised = rustix::process::Rlimit { current: Some(limit), maximum: Some(limit) };
    rustix::process::setrlimit(rustix::process::Resource::Nofile, raised).expect("rlimit");
    let count = limit.saturating_sub(100).min(100_000);
    let fs = open(dir);
    for i in 0..count {
        std::fs::File::create(dir.join(format!("{i}"))).expect("a file");
    }
    let before = resident();
    let start = Instant::now();
    for i in 0..count {
        let name = CString::new(i.to_string()).expect("a name");
        fs.lookup(&CX, ROOT_ID, &name).expect("lookup");
    }
    println!("{} nodes add {} KiB, {:?}", fs.nodes(), resident() - before, start.elapsed());
}
