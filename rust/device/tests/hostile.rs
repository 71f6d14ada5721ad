//! Guests and front-ends that break every rule, one at a time: each costs at most its own request or its own connection.

use std::fs;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::Duration;

use tempfile::TempDir;
use virtiofs_device::Identity;
use virtiofs_device::vhost_user::{Config, Daemon, Source};
use virtiofs_fuse::{Limits, Opcode, Server};
use virtiofs_guest::{Connection, Descriptor, Guest, Memory, Options, RawQueue, RawRequest};
use virtiofs_hostdir::HostDir;

const PATIENCE: Duration = Duration::from_secs(10);

struct Share {
    dir: TempDir,
    run: TempDir,
    daemon: Daemon,
}

impl Share {
    fn new() -> Share {
        Share::of(1)
    }

    fn of(request_queues: u16) -> Share {
        let (dir, run) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        fs::write(dir.path().join("file"), [7; 10_000]).unwrap();
        let config = virtiofs_hostdir::Config { root: dir.path().into(), xattr: true, ..Default::default() };
        let fs = Arc::new(HostDir::sharing(config, Arc::default()).unwrap());
        let server = Arc::new(Server::new(fs, Limits::default()));
        let source = Source::Listening(UnixListener::bind(run.path().join("s")).unwrap());
        let identity = Identity::new("share", request_queues).unwrap();
        let daemon = Daemon::start(
            server,
            source,
            Config { identity, once: false, slow_threads: 4, window: None, reconnect: Duration::ZERO, may_lose: false },
        )
        .unwrap();
        Share { dir, run, daemon }
    }

    fn guest(&self) -> Guest {
        let options = Options { timeout: PATIENCE, regions: 2, ..Options::default() };
        Guest::connect(&self.run.path().join("s"), options).unwrap()
    }

    fn connection(&self) -> Connection {
        let stream = UnixStream::connect(self.run.path().join("s")).unwrap();
        Connection::new(stream, PATIENCE).unwrap()
    }

    fn check(&self, after: &str) {
        let guest = self.guest();
        assert_eq!(guest.read_file("file").unwrap(), [7; 10_000], "after {after}");
        assert_eq!(self.daemon.server().metrics().panics(), 0, "after {after}");
    }
}

/// Buffers of a raw request: a GETATTR of the root, a room for its reply, and addresses that are nobody's.
struct Buffers {
    request: u64,
    reply: u64,
    /// One page, for indirect tables.
    table: u64,
    /// The first address behind the first region.
    end: u64,
}

fn request(opcode: u32, len: u32) -> Vec<u8> {
    let mut bytes = Vec::new();
    bytes.extend(len.to_le_bytes());
    bytes.extend(opcode.to_le_bytes());
    bytes.extend(4242u64.to_le_bytes());
    bytes.extend(1u64.to_le_bytes());
    bytes.resize(40 + 64, 0);
    bytes
}

impl Buffers {
    fn new(guest: &Guest, queue: &RawQueue<'_>) -> Buffers {
        let memory = guest.client().memory();
        let first = memory.regions()[0].clone();
        let (request_at, reply, table) =
            (queue.buffer(4096).unwrap(), queue.buffer(4096).unwrap(), queue.buffer(8192).unwrap());
        memory.write(request_at, &request(Opcode::Getattr as u32, 56)).unwrap();
        Buffers { request: request_at, reply, table, end: first.address + first.size }
    }
}

fn plain(address: u64, len: u32, flags: u16, next: u16) -> Descriptor {
    Descriptor { address, len, flags, next }
}

const N: u16 = Descriptor::NEXT;
const W: u16 = Descriptor::WRITE;
const I: u16 = Descriptor::INDIRECT;

/// A malformed chain: its name, the ring's descriptors from 0 on, the indirect table.
type Chain = (&'static str, Vec<Descriptor>, Vec<Descriptor>);

fn chains(b: &Buffers) -> Vec<Chain> {
    let (req, rep, tab, end) = (b.request, b.reply, b.table, b.end);
    let good = || vec![plain(req, 56, N, 1), plain(rep, 120, W, 0)];
    vec![
        ("a descriptor that follows itself", vec![plain(req, 56, N, 0)], vec![]),
        ("two that follow each other", vec![plain(req, 40, N, 1), plain(req + 40, 16, N, 0)], vec![]),
        ("a loop of writable ones", vec![plain(req, 56, N, 1), plain(rep, 120, N | W, 1)], vec![]),
        ("next beyond the ring", vec![plain(req, 56, N, u16::MAX)], vec![]),
        ("request at address 0", vec![plain(0, 56, N, 1), plain(rep, 120, W, 0)], vec![]),
        ("request behind memory", vec![plain(end, 56, N, 1), plain(rep, 120, W, 0)], vec![]),
        ("request across the end of a region", vec![plain(end - 8, 56, N, 1), plain(rep, 120, W, 0)], vec![]),
        ("address at the end of all addresses", vec![plain(u64::MAX - 10, 56, N, 1), plain(rep, 120, W, 0)], vec![]),
        ("reply at address 0", vec![plain(req, 56, N, 1), plain(0, 120, W, 0)], vec![]),
        ("reply behind memory", vec![plain(req, 56, N, 1), plain(end, 120, W, 0)], vec![]),
        ("reply across the end of a region", vec![plain(req, 56, N, 1), plain(end - 20, 120, W, 0)], vec![]),
        ("reply of 4 GiB", vec![plain(req, 56, N, 1), plain(rep, u32::MAX, W, 0)], vec![]),
        ("request of 4 GiB", vec![plain(req, u32::MAX, N, 1), plain(rep, 120, W, 0)], vec![]),
        ("request of no bytes", vec![plain(req, 0, N, 1), plain(rep, 120, W, 0)], vec![]),
        ("nothing but a request", vec![plain(req, 56, 0, 0)], vec![]),
        ("nothing but room", vec![plain(rep, 120, W, 0)], vec![]),
        ("nothing at all", vec![plain(0, 0, 0, 0)], vec![]),
        ("room before the request", vec![plain(rep, 120, N | W, 1), plain(req, 56, 0, 0)], vec![]),
        ("a header cut short", vec![plain(req, 39, N, 1), plain(rep, 120, W, 0)], vec![]),
        ("a header alone", vec![plain(req, 40, N, 1), plain(rep, 120, W, 0)], vec![]),
        ("arguments cut short", vec![plain(req, 50, N, 1), plain(rep, 120, W, 0)], vec![]),
        ("room for half a reply header", vec![plain(req, 56, N, 1), plain(rep, 8, W, 0)], vec![]),
        ("room for one byte too little", vec![plain(req, 56, N, 1), plain(rep, 119, W, 0)], vec![]),
        ("reply over the request", vec![plain(req, 56, N, 1), plain(req, 120, W, 0)], vec![]),
        ("indirect table of no bytes", vec![plain(tab, 0, I, 0)], good()),
        ("indirect table of odd length", vec![plain(tab, 17, I, 0)], good()),
        ("indirect table of 4 GiB", vec![plain(tab, !15, I, 0)], good()),
        ("indirect table at address 0", vec![plain(0, 32, I, 0)], good()),
        ("indirect table behind memory", vec![plain(end, 32, I, 0)], good()),
        ("indirect table across the end of a region", vec![plain(end - 16, 32, I, 0)], good()),
        ("indirect table that goes on", vec![plain(tab, 32, I | N, 1), plain(rep, 120, W, 0)], good()),
        ("indirect table for writing", vec![plain(tab, 32, I | W, 0)], good()),
        ("indirect within indirect", vec![plain(tab, 32, I, 0)], vec![plain(tab, 32, I, 0), plain(rep, 120, W, 0)]),
        ("a loop in the table", vec![plain(tab, 32, I, 0)], vec![plain(req, 56, N, 0)]),
        ("next beyond the table", vec![plain(tab, 32, I, 0)], vec![plain(req, 56, N, 2), plain(rep, 120, W, 0)]),
        ("the table as buffer", vec![plain(tab, 32, I, 0)], vec![plain(req, 56, N, 1), plain(tab, 120, W, 0)]),
        ("undefined flags", vec![plain(req, 56, 0xfff8 | N, 1), plain(rep, 120, 0xfff8 | W, 0)], vec![]),
    ]
}

#[test]
fn each_malformed_chain_comes_back_and_the_queue_goes_on() {
    let share = Share::new();
    let guest = share.guest();
    let client = guest.client();
    for queue in [1, 0] {
        let buffers = Buffers::new(&guest, &client.raw_queue(queue).unwrap());
        for (name, ring, table) in chains(&buffers) {
            let mut raw = client.raw_queue(queue).unwrap();
            let memory = client.memory();
            memory.write(buffers.request, &request(Opcode::Getattr as u32, 56)).unwrap();
            for (index, descriptor) in (0..).zip(&ring) {
                raw.set(index, *descriptor).unwrap();
            }
            for (at, descriptor) in (0..).map(|k| buffers.table + 16 * k).zip(&table) {
                write_descriptor(memory, at, *descriptor);
            }
            raw.offer(0);
            raw.kick().unwrap();
            let returned = raw.returned(1, PATIENCE).unwrap();
            assert_eq!(returned.len(), 1, "queue {queue}, {name}: the chain never came back");
            let (head, len) = returned[0];
            assert_eq!(head, 0, "queue {queue}, {name}");
            assert!(matches!(len, 0 | 16 | 120), "queue {queue}, {name}: {len} bytes");
            drop(raw);
            assert_eq!(client.getattr(1, None).unwrap().attr.ino, guest.stat("").unwrap().ino, "queue {queue}, {name}");
        }
    }
    assert!(share.daemon.server().metrics().malformed() > 0);
    drop(guest);
    share.check("all malformed chains");
}

#[test]
fn data_outside_of_memory_are_efault_for_who_asked() {
    let share = Share::new();
    let guest = share.guest();
    let client = guest.client();
    let buffers = Buffers::new(&guest, &client.raw_queue(1).unwrap());
    let Buffers { request: req, reply: rep, end, .. } = buffers;
    let read = vec![plain(req, 80, N, 1), plain(rep, 16, N | W, 2), plain(end, 4096, W, 0)];
    let write = vec![plain(req, 80, N, 1), plain(end - 100, 4096, N, 2), plain(rep, 24, W, 0)];
    for (opcode, ring) in [(Opcode::Read, read), (Opcode::Write, write)] {
        let mut raw = client.raw_queue(1).unwrap();
        client.memory().write(req, &request(opcode as u32, 80)).unwrap();
        for (index, descriptor) in (0..).zip(&ring) {
            raw.set(index, *descriptor).unwrap();
        }
        raw.offer(0);
        raw.kick().unwrap();
        assert_eq!(raw.returned(1, PATIENCE).unwrap(), [(0, 16)], "{opcode:?}");
        let mut header = [0; 16];
        client.memory().read(rep, &mut header).unwrap();
        let expected = [words32(&[16, (-libc::EFAULT) as u32]), words64(&[4242])].concat();
        assert_eq!(header[..], expected, "{opcode:?}");
    }
    assert_eq!(share.daemon.server().metrics().malformed(), 0, "no fault of the driver");
    drop(guest);
    share.check("data outside of memory");
}

fn write_descriptor(memory: &Memory, at: u64, descriptor: Descriptor) {
    let Descriptor { address, len, flags, next } = descriptor;
    memory.write(at, &address.to_le_bytes()).unwrap();
    memory.write(at + 8, &len.to_le_bytes()).unwrap();
    memory.write(at + 12, &flags.to_le_bytes()).unwrap();
    memory.write(at + 14, &next.to_le_bytes()).unwrap();
}

#[test]
fn rings_that_make_no_sense_cost_the_ring_and_a_reboot_mends_it() {
    let share = Share::new();
    let guest = share.guest();
    let client = guest.client();
    type Damage = fn(&mut RawQueue<'_>);
    let damages: [(&str, Damage); 5] = [
        ("a head beyond the ring", |raw| raw.offer(raw.size())),
        ("the largest head", |raw| raw.offer(u16::MAX)),
        ("more entries than the ring has", |raw| raw.set_available_index(40_000).unwrap()),
        ("an index that went back", |raw| raw.set_available_index(u16::MAX - 3).unwrap()),
        ("one head many times", |raw| (0..600).for_each(|_| raw.offer(3))),
    ];
    for (name, damage) in damages {
        for queue in [1, 0] {
            let mut raw = client.raw_queue(queue).unwrap();
            damage(&mut raw);
            raw.kick().unwrap();
            // The device may return entries or declare the ring broken; both are fine.
            raw.returned(1, Duration::from_millis(50)).unwrap();
            drop(raw);
            client.reboot(false).unwrap();
            assert_eq!(guest.read_file("file").unwrap().len(), 10_000, "{name}, queue {queue}");
            guest.drop_caches().unwrap();
        }
    }
    drop(guest);
    share.check("all broken rings");
}

#[test]
fn names_that_no_directory_has_are_refused_with_an_errno() {
    let share = Share::new();
    let guest = share.guest();
    let long = [b'x'; 256];
    let bad: [&[u8]; 9] =
        [b"\0", b".\0", b"..\0", b"/\0", b"a/b\0", b"../file\0", b"no end", b"", &[&long[..], b"\0"].concat()];
    for opcode in [Opcode::Mkdir, Opcode::Mknod, Opcode::Create, Opcode::Unlink, Opcode::Rmdir, Opcode::Symlink] {
        for name in bad {
            let arguments = [0u8; 16];
            let row = opcode.operation();
            let parts: [&[u8]; 3] = [&arguments[..row.arguments], name, if row.names == 2 { b"t\0" } else { b"" }];
            let raw =
                RawRequest { opcode: opcode as u32, nodeid: 1, body: &parts, room: Some(256), ..RawRequest::default() };
            let reply = guest.client().raw(&raw).unwrap();
            assert_eq!(reply.used, 16, "{opcode:?} of {:?}", String::from_utf8_lossy(name));
            let errno = i32::from_le_bytes(reply.bytes[4..8].try_into().unwrap());
            assert!((-511..0).contains(&errno), "{opcode:?} of {:?}: {errno}", String::from_utf8_lossy(name));
        }
    }
    assert_eq!(fs::read_dir(share.dir.path()).unwrap().count(), 1);
}

#[test]
fn any_opcode_with_any_body_is_answered() {
    let share = Share::new();
    let guest = share.guest();
    let client = guest.client();
    let mut state = 0x1234_5678_9abc_def1u64;
    let mut random = move |below: u64| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state % below
    };
    for round in 0..30_000u64 {
        let opcode = match random(20) {
            0 => random(u64::from(u32::MAX)) as u32,
            _ => random(60) as u32,
        };
        // SETLKW may wait for ever, and rightly; FALLOCATE of random sizes would fill the disk.
        if [Opcode::Setlkw as u32, Opcode::Fallocate as u32].contains(&opcode) {
            continue;
        }
        let mut body: Vec<u8> = (0..random(120)).map(|_| if random(3) == 0 { random(256) as u8 } else { 0 }).collect();
        if random(2) == 0 {
            body.extend(b"file\0other\0");
        }
        // The hiprio queue's slots have one page for data.
        let hiprio = random(10) == 0;
        let most = if hiprio { 2_000 } else { 9_000 };
        let data = vec![0x55; if random(10) == 0 { random(most) as usize } else { 0 }];
        let raw = RawRequest {
            opcode,
            nodeid: random(4),
            body: &[&body],
            data: &data,
            room: if random(50) == 0 { None } else { Some(random(most) as usize) },
            extlen: if random(10) == 0 { random(65_536) as u16 } else { 0 },
            hiprio,
            unique: None,
            len: if random(20) == 0 { Some(random(10_000) as u32) } else { None },
        };
        let reply = client.raw(&raw).unwrap_or_else(|error| panic!("round {round}, {raw:?}: {error}"));
        if reply.used > 0 {
            let len = u32::from_le_bytes(reply.bytes[..4].try_into().unwrap());
            assert_eq!(len, reply.used, "round {round}, {raw:?}");
            let errno = i32::from_le_bytes(reply.bytes[4..8].try_into().unwrap());
            assert!((-511..=0).contains(&errno), "round {round}, {raw:?}: {errno}");
            assert!(errno == 0 || len == 16, "round {round}, {raw:?}: {errno} with {len} bytes");
        }
    }
    drop(guest);
    // Whatever the ops did to the one file there.
    fs::remove_dir_all(share.dir.path().join("file")).or_else(|_| fs::remove_file(share.dir.path().join("file"))).ok();
    fs::write(share.dir.path().join("file"), [7; 10_000]).unwrap();
    share.check("random requests");
}

fn words32(values: &[u32]) -> Vec<u8> {
    values.iter().flat_map(|value| value.to_ne_bytes()).collect()
}

fn words64(values: &[u64]) -> Vec<u8> {
    values.iter().flat_map(|value| value.to_ne_bytes()).collect()
}

/// SET_MEM_TABLE's payload: (guest address, size, user address, file offset) each, under any count.
fn table(count: u32, regions: &[[u64; 4]]) -> Vec<u8> {
    [words32(&[count, 0]), regions.iter().flat_map(|region| words64(region)).collect()].concat()
}

#[test]
fn messages_that_make_no_sense_cost_the_connection_at_most() {
    let share = Share::new();
    let memory = Memory::new(4 << 20, 1).unwrap();
    let region = memory.regions()[0].clone();
    let (pipe, _other_end) = std::io::pipe().unwrap();
    let directory = fs::File::open(share.dir.path()).unwrap();
    let (end, dir) = ([pipe.as_fd()], [directory.as_fd()]);
    let good = [region.address, region.size, region.host, 0];
    let mem: &[BorrowedFd<'_>] = &[region.fd()];
    let two: &[BorrowedFd<'_>] = &[region.fd(), region.fd()];
    let max = u64::MAX;
    // Name, request number, payload, descriptors.
    let messages: Vec<(&str, u32, Vec<u8>, &[BorrowedFd<'_>])> = vec![
        ("request 0", 0, vec![], &[]),
        ("request 9999", 9999, vec![0; 8], &[]),
        ("GET_FEATURES with a payload", 1, vec![0; 64], &[]),
        ("SET_FEATURES of all bits", 2, words64(&[max]), &[]),
        ("SET_FEATURES of 3 bytes", 2, vec![0; 3], &[]),
        ("SET_PROTOCOL_FEATURES of all bits", 16, words64(&[max]), &[]),
        ("SET_MEM_TABLE of nothing", 5, vec![], &[]),
        ("SET_MEM_TABLE of 0 regions", 5, table(0, &[]), &[]),
        ("SET_MEM_TABLE without descriptors", 5, table(1, &[good]), &[]),
        ("SET_MEM_TABLE with too many descriptors", 5, table(1, &[good]), two),
        ("SET_MEM_TABLE of more than it says", 5, table(u32::MAX, &[good]), mem),
        ("SET_MEM_TABLE of overlapping regions", 5, table(2, &[good, good]), two),
        ("SET_MEM_TABLE of an empty region", 5, table(1, &[[region.address, 0, region.host, 0]]), mem),
        ("SET_MEM_TABLE of an endless region", 5, table(1, &[[region.address, max, region.host, 0]]), mem),
        ("SET_MEM_TABLE beyond the file", 5, table(1, &[[region.address, 1 << 40, region.host, 0]]), mem),
        ("SET_MEM_TABLE at an offset beyond the file", 5, table(1, &[[0, 4096, 0, 1 << 50]]), mem),
        ("SET_MEM_TABLE of a directory", 5, table(1, &[good]), &dir),
        ("SET_MEM_TABLE of a pipe", 5, table(1, &[good]), &end),
        ("ADD_MEM_REG of an endless region", 37, words64(&[0, 0, max, 0, 0]), mem),
        ("ADD_MEM_REG without a descriptor", 37, words64(&[0, 0, 4096, 0, 0]), &[]),
        ("REM_MEM_REG of what is not there", 38, words64(&[0, 77, 4096, 0, 0]), &[]),
        ("SET_VRING_NUM 0", 8, words32(&[1, 0]), &[]),
        ("SET_VRING_NUM 3", 8, words32(&[1, 3]), &[]),
        ("SET_VRING_NUM 65536", 8, words32(&[1, 65_536]), &[]),
        ("SET_VRING_NUM of queue 99", 8, words32(&[99, 128]), &[]),
        ("SET_VRING_NUM of the last queue there is", 8, words32(&[u32::MAX, 128]), &[]),
        ("SET_VRING_BASE 70000", 10, words32(&[1, 70_000]), &[]),
        ("SET_VRING_ADDR nowhere", 9, [words32(&[1, 0]), words64(&[max - 15, max - 15, max - 15, 0])].concat(), &[]),
        ("SET_VRING_ADDR unaligned", 9, [words32(&[1, 0]), words64(&[1, 1, 1, 0])].concat(), &[]),
        ("SET_VRING_ADDR of queue 99", 9, [words32(&[99, 0]), words64(&[0, 0, 0, 0])].concat(), &[]),
        ("SET_VRING_KICK without a descriptor", 12, words64(&[1]), &[]),
        ("SET_VRING_KICK of a directory", 12, words64(&[1]), &dir),
        ("SET_VRING_KICK of queue 99", 12, words64(&[99]), &end),
        ("SET_VRING_CALL of queue 99", 13, words64(&[99]), &end),
        ("SET_VRING_ENABLE before anything else", 18, words32(&[1, 1]), &[]),
        ("SET_VRING_ENABLE of queue 99", 18, words32(&[99, 1]), &[]),
        ("GET_VRING_BASE of queue 99", 11, words32(&[99, 0]), &[]),
        ("GET_VRING_BASE before anything else", 11, words32(&[1, 0]), &[]),
        ("GET_CONFIG far out", 24, [words32(&[4_000, 200, 0]), vec![0; 200]].concat(), &[]),
        ("GET_CONFIG of 4 GiB", 24, words32(&[0, u32::MAX, 0]), &[]),
        ("SET_CONFIG", 25, [words32(&[0, 4, 0]), vec![b'x'; 4]].concat(), &[]),
        ("SET_LOG_BASE", 6, words64(&[4096, 0]), mem),
        ("SET_BACKEND_REQ_FD of a directory", 21, vec![], &dir),
    ];
    for (name, request, payload, fds) in &messages {
        // With a reply wanted and without, before and after the owner was set.
        for (need_reply, owned) in [(0, false), (8, false), (0, true), (8, true)] {
            let connection = share.connection();
            if owned {
                connection.send(2, 0, &words64(&[1 << 32 | 1 << 30]), &[]).unwrap();
                connection.send(3, 0, &[], &[]).unwrap();
            }
            // It may have hung up already; that is its right.
            let _ = connection.send(*request, need_reply, payload, fds);
            let _ = connection.send(1, 0, &[], &[]);
            connection.hang_up();
            drop(connection);
        }
        share.check(name);
    }
    let streams: [(&str, &[u8]); 5] = [
        ("half a header", &[1, 0, 0, 0, 1]),
        ("a header that promises 4 GiB", &[2, 0, 0, 0, 1, 0, 0, 0, 255, 255, 255, 255]),
        ("a payload cut short", &[2, 0, 0, 0, 1, 0, 0, 0, 8, 0, 0, 0, 1, 2]),
        ("version 3", &[1, 0, 0, 0, 3, 0, 0, 0, 0, 0, 0, 0]),
        ("a reply that nobody asked for", &[1, 0, 0, 0, 5, 0, 0, 0, 0, 0, 0, 0]),
    ];
    for (name, bytes) in streams {
        let connection = share.connection();
        connection.send_bytes(bytes, &[]).unwrap();
        drop(connection);
        share.check(name);
    }
    share.check("all messages");
}

#[test]
fn memory_that_is_taken_away_under_way_costs_requests_and_nothing_else() {
    let share = Share::new();
    let guest = share.guest();
    let client = guest.client();
    let added = client.add_memory(2 << 20).unwrap();
    let mut raw = client.raw_queue(1).unwrap();
    let reply = raw.buffer(4096).unwrap();
    client.memory().write(added.address, &request(Opcode::Getattr as u32, 56)).unwrap();
    raw.set_chain(0, &[(added.address, 56, false), (reply, 120, true)]).unwrap();
    raw.offer(0);
    raw.kick().unwrap();
    assert_eq!(raw.returned(1, PATIENCE).unwrap(), [(0, 120)], "memory added while running is good for requests");
    drop(raw);
    guest.client().vanish();
    drop(guest);
    share.check("a guest that vanished with memory added");
}

/// The thread that serves the broken ring may just have taken FORGETs along, of which the driver then tells nobody.
#[test]
fn a_ring_that_breaks_leaves_no_forgets_behind() {
    let share = Share::of(2);
    for round in 0..40 {
        let options = Options { timeout: PATIENCE, regions: 2, request_queues: 2, ..Options::default() };
        let guest = Guest::connect(&share.run.path().join("s"), options).unwrap();
        let client = guest.client();
        let mut raw = client.raw_queue(1).unwrap();
        let (at, reply) = (raw.buffer(4096).unwrap(), raw.buffer(4096).unwrap());
        client.memory().write(at, &request(Opcode::Getattr as u32, 56)).unwrap();
        raw.set_chain(0, &[(at, 56, false), (reply, 120, true)]).unwrap();
        let (over, forgotten) = (AtomicBool::new(false), AtomicU32::new(0));
        std::thread::scope(|scope| {
            let honest = scope.spawn(|| {
                while !over.load(Ordering::Relaxed) {
                    guest.stat("file").unwrap();
                    // Fails if the FORGET is not taken in time.
                    guest.drop_caches().unwrap();
                    forgotten.fetch_add(1, Ordering::Relaxed);
                }
            });
            // Busy until FORGETs were taken beside requests.
            while forgotten.load(Ordering::Relaxed) < 20 + round && !honest.is_finished() {
                raw.offer(0);
                raw.kick().unwrap();
                assert_eq!(raw.returned(1, PATIENCE).unwrap(), [(0, 120)]);
            }
            raw.set_available_index(40_000).unwrap();
            raw.kick().unwrap();
            let before = forgotten.load(Ordering::Relaxed);
            while forgotten.load(Ordering::Relaxed) < before + 2 && !honest.is_finished() {
                std::thread::yield_now();
            }
            over.store(true, Ordering::Relaxed);
        });
        drop(raw);
        guest.client().vanish();
    }
    share.check("rings that broke");
}
