//! Requests against a host directory, one after the other in one thread, for counting: `instructions -- OP COUNT [DIR]`.
//!
//! What a request costs shows in instructions and system calls even where other load makes times worthless:
//!
//! ```sh
//! cargo build --release -p virtiofs-micro --example instructions
//! valgrind --tool=callgrind --toggle-collect='*serve_one*' target/release/examples/instructions getattr 10000   # ours alone
//! strace -c -f target/release/examples/instructions churn 1000
//! ```
//!
//! Each request goes the way that a worker's takes: from the ring through the server to the file system and back to the ring. Kicks and
//! interrupts are left out.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use virtiofs_device::Request;
use virtiofs_fuse::wire::*;
use virtiofs_fuse::{Limits, Opcode, Outcome, Scratch, Server};
use virtiofs_hostdir::{Config, Effects, HostDir};
use virtiofs_micro::{Driver, request};
use virtiofs_virtqueue::{Available, Memory, Popped, Used};
use zerocopy::{FromBytes, FromZeros, IntoBytes};

const FILES: usize = 1000;
const HEADER: usize = size_of::<OutHeader>();
/// Where `Driver` puts the reply.
const REPLY: u64 = 0x1_0000;

struct Guest {
    driver: Driver,
    memory: Arc<Memory>,
    available: Available,
    used: Used,
    message: Request,
    scratch: Scratch,
    server: Server,
}

impl Guest {
    fn new(root: &Path) -> Guest {
        let second = Duration::from_secs(1);
        let effects = Effects { entry_ttl: second, attr_ttl: second, ..Effects::default() };
        let fs = HostDir::new(Config { root: root.into(), effects, ..Config::default() }).expect("a share");
        let server = Server::new(Arc::new(fs), Limits::default());
        let (driver, available, used) = Driver::new();
        let (memory, message, scratch) = (driver.memory().clone(), Request::default(), Scratch::default());
        let mut guest = Guest { driver, memory, available, used, message, scratch, server };
        let init = InitIn { major: 7, minor: 46, flags: u32::MAX, flags2: u32::MAX, ..InitIn::default() };
        guest.ask(Opcode::Init, 0, &[init.as_bytes()], 64);
        guest
    }

    /// Sends one request and answers the length of its reply, which must be no error.
    fn ask(&mut self, opcode: Opcode, node: u64, arguments: &[&[u8]], room: usize) -> usize {
        let mut bytes = request(opcode, &arguments.concat());
        bytes[16..24].copy_from_slice(&node.to_le_bytes());
        self.driver.lay_out(&bytes, (HEADER + room) as u32);
        self.again(opcode)
    }

    /// Sends what was sent last.
    fn again(&mut self, opcode: Opcode) -> usize {
        self.driver.offer();
        let len = self.serve_one();
        if len > 0 {
            let mut header = OutHeader::new_zeroed();
            self.memory.read(REPLY, header.as_mut_bytes()).expect("a reply");
            assert_eq!(header.error, 0, "{opcode:?}");
        }
        len
    }

    #[inline(never)]
    fn serve_one(&mut self) -> usize {
        assert_eq!(self.available.pop(&self.memory, &mut self.message.0).expect("a ring"), Popped::Request);
        let outcome = self.server.handle(&mut self.message, &mut self.scratch, false);
        let Outcome::Done(len) = outcome else { panic!("{outcome:?}") };
        assert!(self.message.0.settle(len));
        self.used.complete(&self.memory, self.message.0.head(), len as u32).expect("a ring");
        self.used.wants_call(&self.memory).expect("a ring");
        self.scratch.finish();
        len
    }

    fn reply<T: FromBytes + IntoBytes>(&self, offset: usize) -> T {
        let mut value = T::new_zeroed();
        self.memory.read(REPLY + (HEADER + offset) as u64, value.as_mut_bytes()).expect("a reply");
        value
    }

    fn lookup(&mut self, name: &str) -> u64 {
        self.ask(Opcode::Lookup, ROOT_ID, &[name.as_bytes(), b"\0"], 128);
        self.reply::<EntryOut>(0).nodeid
    }

    fn forget(&mut self, node: u64) {
        self.ask(Opcode::Forget, node, &[ForgetIn { nlookup: 1 }.as_bytes()], 0);
    }

    fn open(&mut self, node: u64, flags: i32) -> u64 {
        self.ask(Opcode::Open, node, &[OpenIn { flags: flags as u32, ..OpenIn::default() }.as_bytes()], 16);
        self.reply::<OpenOut>(0).fh
    }

    fn close(&mut self, opcode: Opcode, node: u64, fh: u64) {
        self.ask(opcode, node, &[ReleaseIn { fh, ..ReleaseIn::default() }.as_bytes()], 0);
    }

    fn churn(&mut self, page: &[u8]) {
        let args = CreateIn { flags: libc::O_RDWR as u32, mode: 0o644, umask: 0o22, ..CreateIn::default() };
        self.ask(Opcode::Create, ROOT_ID, &[args.as_bytes(), b"new\0"], 144);
        let (node, fh) = (self.reply::<EntryOut>(0).nodeid, self.reply::<OpenOut>(128).fh);
        let args = WriteIn { fh, size: page.len() as u32, ..WriteIn::default() };
        self.ask(Opcode::Write, node, &[args.as_bytes(), page], 8);
        self.close(Opcode::Release, node, fh);
        self.ask(Opcode::Unlink, ROOT_ID, &[b"new\0"], 0);
        self.forget(node);
    }

    /// A listing of the root, and the FORGETs of what it entered. Answers the number of entries.
    fn list(&mut self) -> usize {
        self.ask(Opcode::Opendir, ROOT_ID, &[OpenIn::default().as_bytes()], 16);
        let fh = self.reply::<OpenOut>(0).fh;
        let (mut offset, mut nodes) = (0, Vec::new());
        loop {
            let args = ReadIn { fh, offset, size: 4000, ..ReadIn::default() };
            let len = self.ask(Opcode::Readdirplus, ROOT_ID, &[args.as_bytes()], 4000) - HEADER;
            if len == 0 {
                break;
            }
            let mut at = 0;
            while at < len {
                let (entry, dirent): (EntryOut, Dirent) = (self.reply(at), self.reply(at + size_of::<EntryOut>()));
                offset = dirent.off;
                nodes.push(entry.nodeid);
                at += (size_of::<EntryOut>() + size_of::<Dirent>() + dirent.namelen as usize).next_multiple_of(8);
            }
        }
        self.close(Opcode::Releasedir, ROOT_ID, fh);
        let entries = nodes.len();
        nodes.into_iter().filter(|node| *node != 0).for_each(|node| self.forget(node));
        entries
    }
}

fn main() {
    let mut arguments = std::env::args().skip(1);
    let (Some(op), Some(count)) = (arguments.next(), arguments.next().and_then(|count| count.parse().ok())) else {
        eprintln!(
            "usage: instructions getattr|lookup|lookup-hit|lookup-miss|open|churn|list|rename|read|write|read-1m COUNT [DIR]"
        );
        std::process::exit(2);
    };
    let parent = arguments.next().unwrap_or_else(|| std::env::temp_dir().to_string_lossy().into_owned());
    let root = tempfile::tempdir_in(parent).expect("a directory to work in");
    let names: Vec<String> = (0..FILES).map(|file| format!("file-{file}")).collect();
    for name in &names {
        std::fs::write(root.path().join(name), "").expect("a file");
    }
    std::fs::write(root.path().join("data"), vec![7; 8 << 20]).expect("a file");
    let mut guest = Guest::new(root.path());
    let name = |turn: usize| &*names[turn % FILES];
    let start = Instant::now();
    let mut done = count;
    match &*op {
        "lookup-miss" => (0..count).for_each(|_| {
            let (name, room) = (b"absent\0".as_slice(), HEADER + 128);
            guest.driver.lay_out(&request(Opcode::Lookup, name), room as u32);
            guest.driver.offer();
            guest.serve_one();
        }),
        "lookup-hit" => (0..count).for_each(|turn| {
            let node = guest.lookup(name(turn));
            guest.forget(node);
        }),
        "list" => done = (0..count).map(|_| guest.list()).sum(),
        "churn" => (0..count).for_each(|_| guest.churn(&[0; 4096])),
        "rename" => (0..count).for_each(|turn| {
            let (from, to) = if turn % 2 == 0 { ("data\0", "other\0") } else { ("other\0", "data\0") };
            let args = RenameIn { newdir: ROOT_ID };
            guest.ask(Opcode::Rename, ROOT_ID, &[args.as_bytes(), from.as_bytes(), to.as_bytes()], 0);
        }),
        "getattr" | "lookup" | "open" => {
            let nodes: Vec<u64> = (0..FILES).map(|turn| guest.lookup(name(turn))).collect();
            let node = |turn: usize| nodes[turn % FILES];
            // Asked for once more, each has its descriptor.
            for turn in (0..2 * FILES).chain(0..count) {
                match &*op {
                    "lookup" => _ = guest.lookup(name(turn)),
                    "getattr" => {
                        _ = guest.ask(Opcode::Getattr, node(turn), &[GetattrIn::default().as_bytes()], 104);
                    }
                    _ => {
                        let fh = guest.open(node(turn), libc::O_RDONLY);
                        guest.close(Opcode::Release, node(turn), fh);
                    }
                }
            }
            done += 2 * FILES;
        }
        "read" | "write" | "read-1m" => {
            let node = guest.lookup("data");
            let fh = guest.open(node, libc::O_RDWR);
            let size = if op == "read-1m" { 1 << 20 } else { 4096 };
            for turn in 0..count {
                let offset = (turn * 7919 * size % (8 << 20)) as u64;
                if op == "write" {
                    let args = WriteIn { fh, offset, size: size as u32, ..WriteIn::default() };
                    guest.ask(Opcode::Write, node, &[args.as_bytes(), &[1; 4096]], 8);
                } else {
                    let args = ReadIn { fh, offset, size: size as u32, ..ReadIn::default() };
                    guest.ask(Opcode::Read, node, &[args.as_bytes()], size);
                }
            }
        }
        _ => panic!("no operation {op:?}"),
    }
    println!("{op}: {done} times, {} ns each, the driver's part included", start.elapsed().as_nanos() as usize / done);
}
