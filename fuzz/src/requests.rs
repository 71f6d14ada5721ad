//! Requests of one session on a real directory. The input is cut into messages; what it says of nodes and handles leads to those that
//! the session has, more often than not.

#![no_main]

use std::fs;
use std::sync::{Arc, LazyLock};

use libfuzzer_sys::fuzz_target;
use tempfile::TempDir;
use virtiofs_fuse::{Limits, Opcode, Operation, Outcome, Plain, Scratch, Server};
use virtiofs_hostdir::{Config, HostDir};

const ROOM: usize = 16 << 10;

struct Share {
    server: Server,
    dir: TempDir,
}

static SHARE: LazyLock<Share> = LazyLock::new(|| {
    let limit = rustix::process::Rlimit { current: Some(16 << 20), maximum: None };
    rustix::process::setrlimit(rustix::process::Resource::Fsize, limit).unwrap();
    // SAFETY: to ignore a signal runs no code of ours.
    unsafe { libc::signal(libc::SIGXFSZ, libc::SIG_IGN) };
    let dir = tempfile::tempdir().unwrap();
    let config = Config {
        root: dir.path().into(),
        xattr: true,
        posix_acl: true,
        descriptors: 200,
        nodes: 500,
        ..Config::default()
    };
    Share { server: Server::new(Arc::new(HostDir::new(config).unwrap()), Limits::default()), dir }
});

#[derive(Default)]
struct Known {
    nodes: Vec<u64>,
    handles: Vec<u64>,
}

fn nth(known: &[u64], which: u8) -> u64 {
    known.get(usize::from(which) % known.len().max(1)).copied().unwrap_or(1)
}

fn header(len: usize, opcode: u32, node: u64) -> Vec<u8> {
    let mut bytes = Vec::new();
    bytes.extend((len as u32).to_le_bytes());
    bytes.extend(opcode.to_le_bytes());
    bytes.extend(2u64.to_le_bytes());
    bytes.extend(node.to_le_bytes());
    bytes.resize(40, 0);
    bytes
}

fn send(server: &Server, scratch: &mut Scratch, bytes: Vec<u8>, room: usize) -> Vec<u8> {
    let mut message = Plain::new(bytes, vec![0; room]);
    let outcome = server.handle(&mut message, scratch, true);
    scratch.finish();
    let Outcome::Done(len) = outcome else { return Vec::new() };
    assert!(len == 0 || len >= 16 && len <= room, "{len} bytes");
    let reply = &message.reply()[..len];
    if len > 0 {
        let word = |at: usize| i32::from_le_bytes(reply[at..at + 4].try_into().unwrap());
        assert_eq!(word(0), len as i32);
        assert!((-511..=0).contains(&word(4)));
        if word(4) != 0 {
            return Vec::new();
        }
    }
    reply.to_vec()
}

fuzz_target!(|data: &[u8]| {
    let Share { server, dir } = &*SHARE;
    for entry in fs::read_dir(dir.path()).unwrap() {
        let path = entry.unwrap().path();
        fs::remove_dir_all(&path).or_else(|_| fs::remove_file(&path)).ok();
    }
    fs::write(dir.path().join("a"), [7; 5000]).unwrap();
    fs::create_dir_all(dir.path().join("b/c")).unwrap();
    let (mut scratch, mut known) = (Scratch::default(), Known { nodes: vec![1], handles: vec![] });
    let mut init = header(104, 26, 0);
    init.extend([7, 46, 1 << 20, u32::MAX, u32::MAX].iter().flat_map(|word: &u32| word.to_le_bytes()));
    init.resize(104, 0);
    send(server, &mut scratch, init, ROOM);
    let mut rest = data;
    for _ in 0..64 {
        // Operation, node, handle, traits, and how long the body is.
        let Some(([operation, node, handle, traits, len], after)) = rest.split_first_chunk() else { break };
        let (body, after) = after.split_at(after.len().min(usize::from(*len) * 4));
        rest = after;
        let opcode = u32::from(*operation);
        let row = Operation::by_number(opcode);
        // The first would wait for ever, the second empty or fill the disk.
        if [Opcode::Setlkw as u32, Opcode::Syncfs as u32].contains(&opcode) {
            continue;
        }
        let mut body = body.to_vec();
        if traits & 1 == 0 && row.is_some_and(|row| row.arguments > 0) {
            body.resize(body.len().max(row.map_or(0, |row| row.arguments)), 0);
            let fh = [Opcode::Setattr, Opcode::Getattr, Opcode::Statx].iter().any(|op| *op as u32 == opcode);
            let at = if fh { 8 } else { 0 };
            let with = match row.map(|row| row.opcode) {
                Some(Opcode::Rename | Opcode::Rename2 | Opcode::Link) => nth(&known.nodes, *handle),
                _ => nth(&known.handles, *handle),
            };
            let takes = row.is_some_and(|row| row.arguments >= at + 16 || row.arguments == 8 && row.names > 0);
            if takes && !matches!(opcode, 8 | 9 | 14 | 21 | 22 | 23 | 27 | 35 | 51) {
                body[at..at + 8].copy_from_slice(&with.to_le_bytes());
            }
        }
        if opcode == Opcode::Fallocate as u32 && body.len() >= 32 {
            body[19..24].fill(0);
        }
        let lies = if traits & 2 != 0 { usize::from(*traits) } else { 40 + body.len() };
        let mut bytes = header(lies, opcode, nth(&known.nodes, *node));
        bytes.extend(body);
        let room = if traits & 4 != 0 { usize::from(*traits) } else { ROOM };
        let reply = send(server, &mut scratch, bytes, room);
        let word = |at: usize| reply.get(at..at + 8).map(|bytes| u64::from_le_bytes(bytes.try_into().unwrap()));
        match row.map(|row| row.opcode) {
            Some(Opcode::Lookup | Opcode::Mkdir | Opcode::Mknod | Opcode::Symlink | Opcode::Link) => {
                known.nodes.extend(word(16))
            }
            Some(Opcode::Create | Opcode::Tmpfile) => {
                known.nodes.extend(word(16));
                known.handles.extend(word(16 + 128));
            }
            Some(Opcode::Open | Opcode::Opendir) => known.handles.extend(word(16)),
            _ => {}
        }
    }
    server.reset();
    assert_eq!(server.metrics().panics(), 0);
    assert_eq!((server.held().nodes, server.held().handles), (1, 0));
});
