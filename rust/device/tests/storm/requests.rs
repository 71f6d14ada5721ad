//! FUSE requests of every kind, most of them nearly right: those come far before they are refused.

use virtiofs_fuse::Opcode;
use virtiofs_fuse::op::{OPERATIONS, Operation};

use crate::dice::Dice;

/// Behind this header an opcode may say anything, but not how much of the host's disk is used.
const OFFSETS: [u64; 9] = [0, 1, 4095, 4096, 65_536, 1 << 20, 1 << 40, i64::MAX as u64, u64::MAX];
const LENGTHS: [u64; 8] = [0, 1, 100, 4096, 65_536, 256 << 10, i64::MAX as u64, u64::MAX];
const NAMES: [&[u8]; 22] = [
    b"file",
    b"file",
    b"dir",
    b"a",
    b"b",
    b"c",
    b"d",
    b"escape",
    b"escapes",
    b"loop",
    b"..",
    b".",
    b"",
    b"/",
    b"../outside/secret",
    b"dir/file",
    b"/etc/passwd",
    b"\xff\xfe",
    b"new\nline",
    &[b'x'; 255],
    &[b'x'; 256],
    &[b'y'; 4096],
];
const TARGETS: [&[u8]; 7] = [b"file", b"/etc/passwd", b"../outside/secret", b"..", b"loop", b"", &[b'z'; 4096]];
const XATTRS: [&[u8]; 8] = [
    b"user.a",
    b"user.b",
    b"trusted.a",
    b"security.capability",
    b"system.posix_acl_access",
    b"",
    b"user.",
    &[b'u'; 256],
];

fn one(dice: &mut Dice, of: &[&'static [u8]]) -> &'static [u8] {
    of[dice.below(of.len() as u64) as usize]
}

/// What the guest was told so far.
#[derive(Debug, Default)]
pub(crate) struct Known {
    pub(crate) nodes: Vec<u64>,
    pub(crate) handles: Vec<u64>,
}

impl Known {
    fn node(&self, dice: &mut Dice) -> u64 {
        match dice.below(16) {
            0 => dice.word(),
            1 => *dice.of(&[0, 2, u64::MAX, 1 << 63]),
            2..=6 => 1,
            _ if self.nodes.is_empty() => 1,
            _ => *dice.of(&self.nodes),
        }
    }

    fn handle(&self, dice: &mut Dice) -> u64 {
        match dice.below(12) {
            0 => dice.word(),
            1 => *dice.of(&[0, 1, u64::MAX, 1 << 63]),
            _ if self.handles.is_empty() => 1,
            _ => *dice.of(&self.handles),
        }
    }

    /// Takes in what a good reply tells.
    pub(crate) fn learn(&mut self, opcode: u32, body: &[u8]) {
        let word = |at: usize| body.get(at..at + 8).map(|bytes| u64::from_le_bytes(bytes.try_into().unwrap()));
        let is = |opcodes: &[Opcode]| opcodes.iter().any(|other| *other as u32 == opcode);
        let entry = [Opcode::Lookup, Opcode::Mkdir, Opcode::Mknod, Opcode::Symlink, Opcode::Link];
        if is(&[Opcode::Init]) {
            *self = Known::default();
        }
        let both = is(&[Opcode::Create, Opcode::Tmpfile]);
        if is(&entry) || both {
            push(&mut self.nodes, word(0));
        }
        if is(&[Opcode::Open, Opcode::Opendir]) {
            push(&mut self.handles, word(0));
        } else if both {
            push(&mut self.handles, word(128));
        }
    }
}

fn push(known: &mut Vec<u64>, number: Option<u64>) {
    known.extend(number);
    if known.len() > 256 {
        known.drain(..64);
    }
}

/// Which operations a storm consists of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// All there are, and some that there are not.
    All,
    /// Those that neither change the share nor the session of others who use the same device.
    Harmless,
}

/// One request: header, arguments, names, data, and how much room its reply gets.
#[derive(Debug)]
pub(crate) struct Request {
    pub(crate) opcode: u32,
    pub(crate) bytes: Vec<u8>,
    pub(crate) room: usize,
}

#[derive(Default)]
struct Body(Vec<u8>);

impl Body {
    fn word(&mut self, value: u64) -> &mut Body {
        self.0.extend(value.to_le_bytes());
        self
    }

    fn half(&mut self, value: u32) -> &mut Body {
        self.0.extend(value.to_le_bytes());
        self
    }

    fn name(&mut self, name: &[u8], dice: &mut Dice) -> &mut Body {
        self.0.extend(name);
        if !dice.once_in(40) {
            self.0.push(0);
        }
        self
    }
}

/// Makes a request of up to `most` bytes.
pub(crate) fn make(dice: &mut Dice, known: &Known, kind: Kind, most: usize) -> Request {
    let harmless = [
        Opcode::Lookup,
        Opcode::Getattr,
        Opcode::Statx,
        Opcode::Read,
        Opcode::Readdir,
        Opcode::Getxattr,
        Opcode::Listxattr,
        Opcode::Statfs,
        Opcode::Access,
        Opcode::Readlink,
        Opcode::Forget,
        Opcode::BatchForget,
        Opcode::Lseek,
        Opcode::Getlk,
        Opcode::Interrupt,
    ];
    let opcode = match kind {
        _ if dice.once_in(60) => *dice.of(&[0, 7, 19, 54, 55, 4096, 26 << 24, u32::MAX]),
        Kind::Harmless => *dice.of(&harmless) as u32,
        Kind::All => dice.of(OPERATIONS).opcode as u32,
    };
    let row = Operation::by_number(opcode);
    // These wait for the disk, or end what the others build up: now and then is enough.
    let rare = [Opcode::Init, Opcode::Syncfs, Opcode::Fsync, Opcode::Fsyncdir, Opcode::Setlkw];
    let again = match opcode {
        _ if opcode == Opcode::Destroy as u32 => !dice.once_in(2000),
        _ => rare.iter().any(|rare| *rare as u32 == opcode) && !dice.once_in(50),
    };
    if again {
        return make(dice, known, kind, most);
    }
    let mut body = Body::default();
    match row {
        Some(row) => arguments(&mut body, dice, known, kind, row, most),
        None => (0..dice.below(20)).for_each(|_| _ = body.word(dice.word())),
    }
    let mut bytes = body.0;
    match dice.below(40) {
        0 => bytes.truncate(dice.below(bytes.len() as u64 + 1) as usize),
        1 => bytes.resize(bytes.len() + dice.below(300) as usize, 0x41),
        2 => bytes.resize(most - 40, 0),
        _ => {}
    }
    bytes.truncate(most - 40);
    let len = match dice.below(30) {
        0 => dice.word() as u32,
        1 => *dice.of(&[0, 39, 40, u32::MAX]),
        _ => 40 + bytes.len() as u32,
    };
    let node = if kind == Kind::Harmless && opcode == Opcode::Forget as u32 {
        dice.word() | 1 << 40
    } else {
        known.node(dice)
    };
    let mut all = Body::default();
    all.half(len).half(opcode).word(dice.word() & !1).word(node);
    all.half(*dice.of(&[0, 0, 0, 1000, u32::MAX])).half(*dice.of(&[0, 0, 1000, u32::MAX])).half(dice.word() as u32);
    all.half(if dice.once_in(40) { dice.word() as u32 } else { 0 });
    all.0.extend(bytes);
    let room = match dice.below(20) {
        0 => dice.below(200) as usize,
        1 => 16,
        2 => 0,
        _ => most,
    };
    Request { opcode, bytes: all.0, room }
}

#[rustfmt::skip]
fn arguments(body: &mut Body, dice: &mut Dice, known: &Known, kind: Kind, row: &Operation, most: usize) {
    use Opcode::*;
    let (node, handle) = (known.node(dice), known.handle(dice));
    let (offset, length) = (*dice.of(&OFFSETS), *dice.of(&LENGTHS));
    let size = *dice.of(&[0u32, 1, 100, 4096, 7000, 65_536, 1 << 20, u32::MAX]);
    let open = dice.of(&[libc::O_RDONLY, libc::O_WRONLY, libc::O_RDWR, libc::O_ACCMODE])
        | if dice.once_in(4) { dice.of(&[libc::O_TRUNC, libc::O_APPEND, libc::O_EXCL, libc::O_DIRECT, libc::O_NOATIME, libc::O_SYNC, libc::O_PATH, -1]) } else { &0 };
    let mode = if dice.once_in(8) { dice.word() as u32 } else { *dice.of(&[0o644, 0o755, 0o4755, 0o2777, 0]) };
    let name = *dice.of(&NAMES);
    match row.opcode {
        Lookup | Unlink | Rmdir => _ = body.name(name, dice),
        Symlink => _ = body.name(name, dice).name(one(dice, &TARGETS), dice),
        Mknod => {
            let kind = *dice.of(&[libc::S_IFREG, libc::S_IFIFO, libc::S_IFSOCK, libc::S_IFCHR, libc::S_IFBLK, libc::S_IFDIR, 0]);
            body.half(kind | mode).half(dice.word() as u32).half(0o22).half(0).name(name, dice);
        }
        Mkdir => _ = body.half(mode).half(0o22).name(name, dice),
        Create | Tmpfile => _ = body.half(open as u32).half(mode).half(0o22).half(0).name(name, dice),
        Rename => _ = body.word(node).name(name, dice).name(one(dice, &NAMES), dice),
        Rename2 => _ = body.word(node).half(dice.below(9) as u32).half(0).name(name, dice).name(one(dice, &NAMES), dice),
        Link => _ = body.word(node).name(name, dice),
        Open | Opendir => _ = body.half(open as u32).half(dice.below(3) as u32),
        Read | Readdir | Readdirplus => _ = body.word(handle).word(offset).half(size).half(dice.below(4) as u32).word(0).half(open as u32).half(0),
        Write => {
            let data = dice.below(most as u64 - 100) as u32;
            let lies = if dice.once_in(10) { size } else { data };
            body.word(handle).word(offset).half(lies).half(dice.below(8) as u32).word(0).half(open as u32).half(0);
            body.0.resize(body.0.len() + data as usize, 0x77);
        }
        Setattr => {
            body.half(dice.word() as u32 & 0xfff).half(0).word(handle).word(offset).word(0);
            (0..3).for_each(|_| _ = body.word(dice.word() >> dice.below(64)));
            (0..3).for_each(|_| _ = body.half(dice.word() as u32 >> dice.below(32)));
            body.half(mode).half(0).half(*dice.of(&[0, 1000, u32::MAX])).half(*dice.of(&[0, 1000, u32::MAX])).half(0);
        }
        Setxattr => {
            let value = dice.below(most as u64 - 400) as u32;
            let lies = if dice.once_in(10) { size } else { value };
            body.half(lies).half(dice.below(4) as u32).half(0).half(0).name(one(dice, &XATTRS), dice);
            body.0.resize(body.0.len() + value as usize, 0x78);
        }
        Getxattr => _ = body.half(size).half(0).name(one(dice, &XATTRS), dice),
        Listxattr => _ = body.half(size).half(0),
        Removexattr => _ = body.name(one(dice, &XATTRS), dice),
        Fallocate => _ = body.word(handle).word(offset).word(length).half(*dice.of(&[0, 1, 3, 16, u32::MAX])).half(0),
        CopyFileRange | CopyFileRange64 => {
            let length = if dice.once_in(64) { length } else { length & 0xf_ffff };
            body.word(handle).word(offset).word(node).word(known.handle(dice)).word(*dice.of(&OFFSETS)).word(length).word(0);
        }
        Lseek => _ = body.word(handle).word(offset).half(dice.below(6) as u32).half(0),
        Getlk | Setlk | Setlkw => {
            body.word(handle).word(dice.below(4)).word(offset).word(*dice.of(&OFFSETS));
            body.half(dice.below(4) as u32).half(7).half(dice.below(2) as u32).half(0);
        }
        Ioctl => {
            // Not the flags that would keep the test from cleaning up: immutable, append only.
            let command = *dice.of(&[0x8008_6601u32, 0x4008_6602, 0x801c_581f, 0x401c_5820, 0x5401, 0]);
            body.word(handle).half(dice.below(20) as u32).half(command).word(0).half(*dice.of(&[0, 8, 28, 4096])).half(*dice.of(&[0, 8, 28, 4096]));
            body.word(*dice.of(&[0, 0x40, 0x80])).word(0).word(0).half(0);
        }
        Init => {
            // One that fails ends the session all the same, and with it most of what others could come to.
            let (major, minor) = if dice.once_in(20) { (*dice.of(&[6, 8, 0]), *dice.of(&[26, 0, 99])) } else { (7, *dice.of(&[27, 31, 46, 99])) };
            body.half(major).half(minor).half(1 << 20).half(dice.word() as u32 | 1 << 30).half(dice.word() as u32);
            body.word(0).word(0).word(0).word(0).word(0).half(0);
        }
        Forget => _ = body.word(dice.below(4)),
        BatchForget => {
            let count = dice.below(60) as u32;
            body.half(if dice.once_in(10) { u32::MAX } else { count }).half(0);
            (0..count).for_each(|_| {
                let node = if kind == Kind::Harmless { dice.word() | 1 << 40 } else { known.node(dice) };
                body.word(node).word(dice.below(3));
            });
        }
        Removemapping => {
            let count = dice.below(20);
            body.half(count as u32);
            (0..2 * count).for_each(|_| _ = body.word(*dice.of(&OFFSETS)));
        }
        _ => {
            body.word(handle);
            while body.0.len() < row.arguments {
                body.half(if dice.once_in(3) { dice.word() as u32 } else { dice.below(4) as u32 });
            }
        }
    }
}
