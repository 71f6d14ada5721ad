//! The server over a message in plain memory: reply forms, refusals, and what no honest guest sends.

use std::ffi::CStr;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use virtiofs_fuse::op::{OPERATIONS, ReplyForm};
use virtiofs_fuse::wire::*;
use virtiofs_fuse::{
    Backing, Context, Creation, DirBuffer, Error, FileSystem, Limits, Mappable, Opcode, Outcome, Plain, Result,
    Scratch, Segments, Server, Wait, Window,
};
use zerocopy::{FromBytes, IntoBytes};

/// A request, and room for its reply, in which nothing is 0.
fn plain(opcode: u32, body: &[u8], room: usize) -> Plain {
    let header = InHeader { len: 40 + body.len() as u32, opcode, unique: 0x4242, nodeid: 7, ..InHeader::default() };
    Plain::new([header.as_bytes(), body].concat(), vec![0xee; room])
}

fn header(message: &Plain) -> OutHeader {
    OutHeader::read_from_prefix(message.reply()).unwrap().0
}

/// Answers everything, and fails with `errno` where that is not 0.
#[derive(Default)]
struct Willing {
    errno: i32,
    waits: Option<Wait>,
    sessions_ended: AtomicU64,
    forgotten: AtomicU64,
}

impl Willing {
    fn answer<T>(&self, value: T) -> Result<T> {
        match self.errno {
            0 => Ok(value),
            i32::MAX => panic!("a handler with a bug"),
            errno => Err(Error::Errno(errno)),
        }
    }
}

type Cx<'a> = &'a Context;

#[rustfmt::skip]
impl FileSystem for Willing {
    fn destroy(&self) { self.sessions_ended.fetch_add(1, Ordering::Relaxed); }
    fn forget(&self, _: u64, nlookup: u64) -> bool { self.forgotten.fetch_add(nlookup, Ordering::Relaxed); false }
    fn lookup(&self, _: Cx<'_>, _: u64, _: &CStr) -> Result<EntryOut> { self.answer(EntryOut::default()) }
    fn getattr(&self, _: Cx<'_>, _: u64, _: Option<u64>) -> Result<AttrOut> { self.answer(AttrOut::default()) }
    fn statx(&self, _: Cx<'_>, _: u64, _: Option<u64>, _: u32) -> Result<StatxOut> { self.answer(StatxOut::default()) }
    fn setattr(&self, _: Cx<'_>, _: u64, _: &SetattrIn) -> Result<AttrOut> { self.answer(AttrOut::default()) }
    fn readlink(&self, _: Cx<'_>, _: u64, out: &mut Vec<u8>) -> Result<()> { out.extend(b"target"); self.answer(()) }
    fn symlink(&self, _: Cx<'_>, _: u64, _: &CStr, _: &CStr, _: &Creation<'_>) -> Result<EntryOut> { self.answer(EntryOut::default()) }
    fn mknod(&self, _: Cx<'_>, _: u64, _: &CStr, _: u32, _: u32, _: &Creation<'_>) -> Result<EntryOut> { self.answer(EntryOut::default()) }
    fn mkdir(&self, _: Cx<'_>, _: u64, _: &CStr, _: u32, _: &Creation<'_>) -> Result<EntryOut> { self.answer(EntryOut::default()) }
    fn unlink(&self, _: Cx<'_>, _: u64, _: &CStr) -> Result<()> { self.answer(()) }
    fn rmdir(&self, _: Cx<'_>, _: u64, _: &CStr) -> Result<()> { self.answer(()) }
    fn rename(&self, _: Cx<'_>, _: u64, _: &CStr, _: u64, _: &CStr, _: u32) -> Result<()> { self.answer(()) }
    fn link(&self, _: Cx<'_>, _: u64, _: u64, _: &CStr) -> Result<EntryOut> { self.answer(EntryOut::default()) }
    fn open(&self, _: Cx<'_>, _: u64, _: u32, _: bool) -> Result<OpenOut> { self.answer(OpenOut::default()) }
    fn create(&self, _: Cx<'_>, _: u64, _: &CStr, _: u32, _: u32, _: bool, _: &Creation<'_>) -> Result<(EntryOut, OpenOut)> { self.answer((EntryOut::default(), OpenOut::default())) }
    fn tmpfile(&self, _: Cx<'_>, _: u64, _: u32, _: u32, _: &Creation<'_>) -> Result<(EntryOut, OpenOut)> { self.answer((EntryOut::default(), OpenOut::default())) }
    fn read(&self, _: Cx<'_>, _: u64, _: &ReadIn, out: Segments<'_>) -> Result<usize> { self.answer(out.len() / 2) }
    fn write(&self, _: Cx<'_>, _: u64, _: &WriteIn, data: Segments<'_>) -> Result<usize> { self.answer(data.len()) }
    fn flush(&self, _: Cx<'_>, _: u64, _: &FlushIn) -> Result<()> { self.answer(()) }
    fn release(&self, _: Cx<'_>, _: u64, _: &ReleaseIn) -> Result<Option<OwnedFd>> { self.answer(None) }
    fn fsync(&self, _: Cx<'_>, _: u64, _: u64, _: bool) -> Result<()> { self.answer(()) }
    fn opendir(&self, _: Cx<'_>, _: u64, _: u32) -> Result<OpenOut> { self.answer(OpenOut::default()) }
    fn readdir(&self, _: Cx<'_>, _: u64, _: u64, _: u64, plus: bool, out: &mut DirBuffer) -> Result<()> {
        while if plus { out.push_plus(b"name", 1, 8, 1, &EntryOut::default()) } else { out.push(b"name", 1, 8, 1) } {}
        self.answer(())
    }
    fn releasedir(&self, _: Cx<'_>, _: u64, _: &ReleaseIn) -> Result<Option<OwnedFd>> { self.answer(None) }
    fn fsyncdir(&self, _: Cx<'_>, _: u64, _: u64, _: bool) -> Result<()> { self.answer(()) }
    fn statfs(&self, _: Cx<'_>, _: u64) -> Result<StatfsOut> { self.answer(StatfsOut::default()) }
    fn syncfs(&self, _: Cx<'_>, _: u64) -> Result<()> { self.answer(()) }
    fn setxattr(&self, _: Cx<'_>, _: u64, _: &CStr, _: &[u8], _: u32, _: bool) -> Result<()> { self.answer(()) }
    fn getxattr(&self, _: Cx<'_>, _: u64, _: &CStr, out: &mut [u8]) -> Result<usize> { self.answer(out.len().min(5)) }
    fn listxattr(&self, _: Cx<'_>, _: u64, out: &mut [u8]) -> Result<usize> { self.answer(out.len().min(5)) }
    fn removexattr(&self, _: Cx<'_>, _: u64, _: &CStr) -> Result<()> { self.answer(()) }
    fn access(&self, _: Cx<'_>, _: u64, _: u32) -> Result<()> { self.answer(()) }
    fn fallocate(&self, _: Cx<'_>, _: u64, _: &FallocateIn) -> Result<()> { self.answer(()) }
    fn lseek(&self, _: Cx<'_>, _: u64, _: u64, _: u64, _: u32) -> Result<u64> { self.answer(0) }
    fn copy_file_range(&self, _: Cx<'_>, _: u64, args: &CopyFileRangeIn) -> Result<u64> { self.answer(args.len) }
    fn ioctl(&self, _: Cx<'_>, _: u64, _: &IoctlIn, _: &[u8], out: &mut Vec<u8>) -> Result<i32> { out.extend([1, 2, 3, 4]); self.answer(0) }
    fn getlk(&self, _: Cx<'_>, _: u64, args: &LkIn) -> Result<FileLock> { self.answer(args.lk) }
    fn setlk(&self, _: Cx<'_>, _: u64, _: &LkIn) -> Result<()> { self.answer(()) }
    fn setlkw(&self, _: Cx<'_>, _: u64, _: &LkIn) -> Result<Option<Wait>> { self.answer(self.waits) }
}

/// The node of which the window has something mapped.
const MAPPED: u64 = 77;

/// A window that takes everything.
impl Window for Willing {
    fn begin(&self) -> Result<Option<Mappable>> {
        Ok(Some(Mappable { alignment: 12, read_only: true }))
    }
    fn map(&self, _: u64, _: &SetupmappingIn, _: &mut dyn FnMut(bool) -> Result<Backing>) -> Result<()> {
        self.answer(())
    }
    fn unmap(&self, _: &[RemovemappingOne]) -> Result<()> {
        self.answer(())
    }
    fn maps(&self, node: u64) -> bool {
        node == MAPPED
    }
    fn end(&self) {}
}

fn server(fs: Willing) -> (Arc<Willing>, Server) {
    let fs = Arc::new(fs);
    let want = Limits::default().want | init::MAP_ALIGNMENT | init::HAS_INODE_DAX;
    let server = Server::new(fs.clone(), Limits { want, ..Limits::default() });
    server.set_window(Some(fs.clone()));
    let request = InitIn { major: 7, minor: 46, flags: u32::MAX, flags2: u32::MAX, ..InitIn::default() };
    let mut init = plain(Opcode::Init as u32, request.as_bytes(), 80);
    assert_eq!(server.handle(&mut init, &mut Scratch::default(), true), Outcome::Done(80));
    assert_eq!(header(&init).error, 0);
    (fs, server)
}

fn ask(server: &Server, opcode: Opcode, body: &[u8], room: usize) -> (OutHeader, usize) {
    let mut message = plain(opcode as u32, body, room);
    let Outcome::Done(len) = server.handle(&mut message, &mut Scratch::default(), true) else { panic!("it may block") };
    (if len > 0 { header(&message) } else { OutHeader::default() }, len)
}

/// A body that the operation accepts.
fn body(opcode: Opcode) -> Vec<u8> {
    let row = opcode.operation();
    let mut body = vec![0; row.arguments];
    match opcode {
        Opcode::Setxattr => {
            body = [SetxattrIn { size: 3, ..SetxattrIn::default() }.as_bytes(), b"user.a\0abc"].concat()
        }
        Opcode::Write => body = [WriteIn { size: 5, ..WriteIn::default() }.as_bytes(), b"12345"].concat(),
        Opcode::Read | Opcode::Readdir | Opcode::Readdirplus => {
            body = ReadIn { size: 4096, ..ReadIn::default() }.as_bytes().to_vec();
        }
        Opcode::Lseek => body = LseekIn { whence: libc::SEEK_HOLE as u32, ..LseekIn::default() }.as_bytes().to_vec(),
        Opcode::CopyFileRange | Opcode::CopyFileRange64 => {
            body = CopyFileRangeIn { len: 1 << 40, ..CopyFileRangeIn::default() }.as_bytes().to_vec();
        }
        Opcode::Ioctl => body = IoctlIn { out_size: 4, ..IoctlIn::default() }.as_bytes().to_vec(),
        Opcode::Init => body = InitIn { major: 7, minor: 46, ..InitIn::default() }.as_bytes().to_vec(),
        _ => (0..row.names).for_each(|_| body.extend(b"name\0")),
    }
    body
}

#[test]
fn every_reply_has_exactly_the_length_that_linux_expects() {
    let (_, server) = server(Willing::default());
    for row in OPERATIONS.iter().filter(|row| row.opcode != Opcode::Destroy) {
        let (header, len) = ask(&server, row.opcode, &body(row.opcode), 16 + 4096);
        if matches!(row.opcode, Opcode::Poll | Opcode::Bmap) {
            assert_eq!((header.error, len), (-libc::ENOSYS, 16), "{}", row.name);
            continue;
        }
        match row.reply {
            ReplyForm::Nothing => assert_eq!(len, 0, "{}", row.name),
            ReplyForm::Exact(body) | ReplyForm::SizeOr(body) => assert_eq!(len, 16 + body, "{}", row.name),
            ReplyForm::UpTo => assert!((17..=16 + 4096).contains(&len), "{}: {len}", row.name),
        }
        if len > 0 {
            assert_eq!((header.len as usize, header.error, header.unique), (len, 0, 0x4242), "{}", row.name);
        }
    }
    assert_eq!(ask(&server, Opcode::Destroy, &[], 16), (OutHeader { len: 16, error: 0, unique: 0x4242 }, 16));
}

#[test]
fn every_error_is_a_header_alone_and_in_the_range_that_linux_accepts() {
    for (errno, wire) in [
        (libc::ENOENT, libc::ENOENT),
        (libc::ENOSYS, libc::EOPNOTSUPP),
        (libc::EINTR, libc::EIO),
        (524, libc::EOPNOTSUPP),
        (-1, libc::EIO),
    ] {
        let (_, server) = server(Willing { errno, ..Willing::default() });
        for row in OPERATIONS {
            if row.reply == ReplyForm::Nothing
                || matches!(row.opcode, Opcode::Init | Opcode::Destroy | Opcode::Poll | Opcode::Bmap)
            {
                continue;
            }
            let (header, len) = ask(&server, row.opcode, &body(row.opcode), 16 + 4096);
            assert_eq!((header.error, header.len, len), (-wire, 16, 16), "{} with {errno}", row.name);
        }
    }
}

#[test]
fn only_a_wait_that_a_signal_ended_is_answered_with_eintr() {
    let (_, server) = server(Willing { waits: Some(Wait(1)), ..Willing::default() });
    for (errno, wire) in [(libc::EINTR, libc::EINTR), (libc::ENOSYS, libc::EOPNOTSUPP), (libc::EDEADLK, libc::EDEADLK)]
    {
        let mut message = plain(Opcode::Setlkw as u32, &body(Opcode::Setlkw), 16);
        let Outcome::Later(pending) = server.handle(&mut message, &mut Scratch::default(), true) else {
            panic!("it waits")
        };
        assert_eq!(server.answer(&mut message, pending, Err(Error::Errno(errno))), 16);
        assert_eq!(header(&message), OutHeader { len: 16, error: -wire, unique: 0x4242 });
    }
}

#[test]
fn a_handler_that_panics_costs_its_own_request_only() {
    let (_, server) = server(Willing { errno: i32::MAX, ..Willing::default() });
    assert_eq!(ask(&server, Opcode::Getattr, &body(Opcode::Getattr), 200).0.error, -libc::EIO);
    assert_eq!(ask(&server, Opcode::Statfs, &[], 200).0.error, -libc::EIO);
    assert_eq!(server.metrics().panics(), 2);
}

#[test]
fn names_that_are_no_names_and_unknown_operations_get_an_errno() {
    let (_, server) = server(Willing::default());
    let long = [&[b'x'; 256][..], b"\0"].concat();
    let cases: [(&[u8], i32); 6] = [
        (b"\0", libc::EINVAL),
        (b".\0", libc::EINVAL),
        (b"..\0", libc::EINVAL),
        (b"a/b\0", libc::EINVAL),
        (b"unclosed", libc::EINVAL),
        (&long, libc::ENAMETOOLONG),
    ];
    for (name, errno) in cases {
        for opcode in [Opcode::Lookup, Opcode::Unlink, Opcode::Rmdir] {
            assert_eq!(ask(&server, opcode, name, 300).0.error, -errno, "{opcode:?} {name:?}");
        }
    }
    let mut unknown = plain(4711, b"", 100);
    assert_eq!(server.handle(&mut unknown, &mut Scratch::default(), true), Outcome::Done(16));
    assert_eq!(header(&unknown).error, -libc::ENOSYS);
}

#[test]
fn nothing_is_served_before_init_and_after_destroy() {
    let fs = Arc::new(Willing::default());
    let server = Server::new(fs.clone(), Limits::default());
    assert_eq!(ask(&server, Opcode::Statfs, &[], 200).0.error, -libc::EIO);
    let (fs, server) = self::server(Willing::default());
    assert_eq!(ask(&server, Opcode::Statfs, &[], 200).0.error, 0);
    assert_eq!(ask(&server, Opcode::Destroy, &[], 200).1, 16);
    assert_eq!(ask(&server, Opcode::Statfs, &[], 200).0.error, -libc::EIO);
    let ended = fs.sessions_ended.load(Ordering::Relaxed);
    server.reset();
    assert_eq!(fs.sessions_ended.load(Ordering::Relaxed), ended + 1, "what slipped in after DESTROY goes as well");
}

#[test]
fn a_second_init_ends_the_session_before_it() {
    let (fs, server) = server(Willing::default());
    let ended = fs.sessions_ended.load(Ordering::Relaxed);
    let init = InitIn { major: 7, minor: 31, ..InitIn::default() };
    assert_eq!(ask(&server, Opcode::Init, init.as_bytes(), 80).1, 80);
    assert_eq!(fs.sessions_ended.load(Ordering::Relaxed), ended + 1);
    assert_eq!(server.negotiated().unwrap().minor, 31);
}

#[test]
fn what_may_wait_is_put_off_where_waiting_is_not_allowed() {
    let (_, server) = server(Willing::default());
    let mut message = plain(Opcode::Fsync as u32, &body(Opcode::Fsync), 100);
    assert_eq!(server.handle(&mut message, &mut Scratch::default(), false), Outcome::WouldBlock);
    message.rewind();
    assert_eq!(server.handle(&mut message, &mut Scratch::default(), true), Outcome::Done(16));
    let (_, server) = self::server(Willing { errno: 0, ..Willing::default() });
    let mut message = plain(Opcode::Getattr as u32, &body(Opcode::Getattr), 200);
    assert_eq!(server.handle(&mut message, &mut Scratch::default(), false), Outcome::Done(120));
}

#[test]
fn batch_forget_takes_all_its_counts_back() {
    let (fs, server) = server(Willing::default());
    let head = BatchForgetIn { count: 2, dummy: 0 };
    let (one, two) = (ForgetOne { nodeid: 5, nlookup: 3 }, ForgetOne { nodeid: 6, nlookup: 4 });
    let body = [head.as_bytes(), one.as_bytes(), two.as_bytes()].concat();
    assert_eq!(ask(&server, Opcode::BatchForget, &body, 0).1, 0);
    assert_eq!(fs.forgotten.load(Ordering::Relaxed), 7);
    // As many as Linux sends at once, and one more than there are.
    let many = |count: u32, there: u64| {
        let mut body = BatchForgetIn { count, dummy: 0 }.as_bytes().to_vec();
        (0..there).for_each(|nodeid| body.extend(ForgetOne { nodeid, nlookup: 1 }.as_bytes()));
        assert_eq!(ask(&server, Opcode::BatchForget, &body, 0).1, 0);
        (fs.forgotten.swap(0, Ordering::Relaxed), server.metrics().malformed())
    };
    assert_eq!(many(0, 0), (7, 0));
    assert_eq!(many(1000, 1000), (1000, 0));
    assert_eq!(many(64, 64), (64, 0));
    assert_eq!(many(66, 65), (65, 1));
    assert_eq!(many(64, 65), (64, 1));
}

/// Those are taken from the message in one step, and FORGET the short way where there is no window.
#[test]
fn requests_as_short_as_forget_are_read_like_others() {
    let fs = Arc::new(Willing::default());
    let server = Server::new(fs.clone(), Limits::default());
    let forget = |len: u32, args: &[u8]| {
        let header = InHeader { len, opcode: Opcode::Forget as u32, nodeid: 7, ..InHeader::default() };
        let mut message = Plain::new([header.as_bytes(), args].concat(), Vec::new());
        assert_eq!(server.handle(&mut message, &mut Scratch::default(), false), Outcome::Done(0));
        fs.forgotten.swap(0, Ordering::Relaxed)
    };
    let args = ForgetIn { nlookup: 3 };
    assert_eq!(forget(48, args.as_bytes()), 0, "there is no session");
    let init = InitIn { major: 7, minor: 46, ..InitIn::default() };
    assert_eq!(ask(&server, Opcode::Init, init.as_bytes(), 80).1, 80);
    assert_eq!(forget(48, args.as_bytes()), 3);
    assert_eq!(forget(48, &[args.as_bytes(), b"more"].concat()), 3);
    let bad = server.metrics().malformed();
    assert_eq!(forget(39, args.as_bytes()) + forget(49, args.as_bytes()) + forget(47, &args.as_bytes()[1..]), 0);
    assert_eq!(server.metrics().malformed(), bad + 3);
    let asked = server.metrics().operations().find(|(name, _, _)| *name == "FORGET");
    assert_eq!(asked, Some(("FORGET", 6, 4)));

    for name in [b"sixsix\0".as_slice(), b"seven77\0", b"eight888\0"] {
        assert_eq!(ask(&server, Opcode::Lookup, name, 200), (OutHeader { len: 144, error: 0, unique: 0x4242 }, 144));
    }
    let errors = |opcode, body: &[u8]| ask(&server, opcode, body, 200).0.error;
    assert_eq!(errors(Opcode::Lookup, b"no end.."), -libc::EINVAL);
    assert_eq!(errors(Opcode::Lookup, b"sev/en7\0"), -libc::EINVAL);
    assert_eq!(errors(Opcode::Unlink, b"abc\0def\0"), -libc::EINVAL);
    assert_eq!((errors(Opcode::Access, &[0; 8]), errors(Opcode::Open, &[0; 8])), (0, 0));
    assert_eq!(errors(Opcode::Mkdir, &[0; 8]), -libc::EINVAL, "there is no name");
    assert_eq!(errors(Opcode::Mkdir, b"12345678name\0"), 0);
    assert_eq!(errors(Opcode::Getattr, &[0; 8]), -libc::EINVAL);
}

/// Every operation with its body cut at every length and every room for the reply, then a great many random bodies: an answer
/// always comes, and it is always one that Linux accepts.
#[test]
fn no_request_gets_an_answer_that_breaks_the_protocol() {
    let (_, server) = server(Willing::default());
    let check = |opcode: u32, body: &[u8], room: usize| {
        let mut message = plain(opcode, body, room);
        let Outcome::Done(len) = server.handle(&mut message, &mut Scratch::default(), true) else {
            panic!("it may block")
        };
        assert!(len == 0 || (16..=room).contains(&len), "opcode {opcode}: {len} of {room}");
        if len > 0 {
            let header = header(&message);
            assert_eq!((header.len as usize, header.unique), (len, 0x4242));
            assert!((-511..=0).contains(&header.error));
            assert!(header.error == 0 || len == 16);
        }
        if opcode == Opcode::Destroy as u32 {
            let init = InitIn { major: 7, minor: 46, flags: u32::MAX, flags2: u32::MAX, ..InitIn::default() };
            server.handle(&mut plain(26, init.as_bytes(), 80), &mut Scratch::default(), true);
        }
    };
    for row in OPERATIONS {
        let whole = body(row.opcode);
        for cut in 0..=whole.len() {
            for room in [0, 15, 16, 17, 100, 4096] {
                check(row.opcode as u32, &whole[..cut], room);
            }
        }
    }
    let mut state = 0x9e37_79b9_7f4a_7c15u64;
    let mut random = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state
    };
    for _ in 0..100_000 {
        let len = (random() % 200) as usize;
        let body: Vec<u8> = (0..len).map(|_| if random() % 3 == 0 { 0 } else { random() as u8 }).collect();
        check((random() % 56) as u32, &body, (random() % 300) as usize);
    }
    assert_eq!(server.metrics().panics(), 0);
}

#[test]
fn nothing_is_copied_onto_a_file_that_is_mapped() {
    let (_, server) = server(Willing::default());
    for opcode in [Opcode::CopyFileRange, Opcode::CopyFileRange64] {
        for (nodeid_out, error) in [(MAPPED, -libc::EOPNOTSUPP), (MAPPED + 1, 0)] {
            let args = CopyFileRangeIn { nodeid_out, len: 5, ..CopyFileRangeIn::default() };
            assert_eq!(ask(&server, opcode, args.as_bytes(), 24).0.error, error, "{opcode:?} {nodeid_out}");
        }
    }
}
