//! Every reply of every operation, as strictly as Linux 7.3 looks at it: a success has exactly its length, an error exactly a header.
//!
//! The rows come from the table of operations: `rows` has an arm for each opcode, so a new one without a row does not compile, and
//! what follows from a row alone (short arguments, bad names, a read-only share, no session, no room) is tried on all of them.

mod rows;
mod share;

use std::collections::BTreeSet;

use virtiofs_fuse::op::{OPERATIONS, Operation, ReplyForm};
use virtiofs_fuse::wire::OutHeader;
use virtiofs_fuse::{Opcode, wire};
use virtiofs_guest::{Client, Expect, RawRequest};
use zerocopy::{FromBytes, IntoBytes};

use rows::{Case, Want, rows};
use share::{Setup, Share};

/// Sends a case and holds its reply to the kernel's rules. Answers the errno, 0 for success, `None` for no reply.
fn ask(client: &Client, row: &Operation, case: &Case, room: Option<usize>) -> Option<i32> {
    static UNIQUE: std::sync::atomic::AtomicU64 = std::sync::atomic::AtomicU64::new(1 << 40);
    let unique = UNIQUE.fetch_add(2, std::sync::atomic::Ordering::Relaxed);
    let (opcode, body) = (row.opcode as u32, [case.body.as_slice()]);
    let request = RawRequest {
        opcode,
        nodeid: case.node,
        body: &body,
        data: &case.data,
        room,
        unique: Some(unique),
        hiprio: case.hiprio,
        ..RawRequest::default()
    };
    let who = format!("{}: {}", row.name, case.what);
    let reply = client.raw(&request).unwrap_or_else(|error| panic!("{who}: {error}"));
    let header = OutHeader::read_from_prefix(&reply.bytes).map_or(OutHeader::default(), |(header, _)| header);
    let size_only = matches!(row.reply, ReplyForm::SizeOr(_)) && case.body.starts_with(&[0; 4]);
    let expect = Expect { opcode, unique, room: room.map_or(0, |room| 16 + room as u32), size_only };
    expect.verify(reply.used, &header).unwrap_or_else(|error| panic!("{who}: {error}"));
    room.map(|_| -header.error)
}

/// As much room as Linux gives.
fn room(row: &Operation, case: &Case) -> Option<usize> {
    match row.reply {
        ReplyForm::Nothing => None,
        ReplyForm::Exact(size) => Some(size),
        ReplyForm::SizeOr(size) if case.body.starts_with(&[0; 4]) => Some(size),
        ReplyForm::SizeOr(_) | ReplyForm::UpTo => Some(case.room),
    }
}

/// A body of the right length and no meaning.
fn filler(row: &Operation) -> Vec<u8> {
    let mut body = vec![0; row.arguments];
    if row.opcode == Opcode::Setxattr {
        body.resize(size_of::<wire::SetxattrIn>(), 0);
    }
    for name in 0..row.names {
        body.extend([b'a' + name as u8, 0]);
    }
    body
}

fn case(what: &str, node: u64, body: Vec<u8>) -> Case {
    Case::new(what, node, body, Want::Refused)
}

#[test]
fn every_case_of_every_operation_is_answered_as_linux_wants_it() {
    let (mut provoked, mut wrong) = (BTreeSet::new(), Vec::new());
    for row in OPERATIONS {
        let window = matches!(row.opcode, Opcode::Setupmapping | Opcode::Removemapping);
        let share = Share::new(Setup { window, ..Setup::default() });
        let (mut succeeded, mut failed) = (0, 0);
        for case in rows(row.opcode, &share) {
            let who = format!("{}: {}", row.name, case.what);
            share.client().set_caller(case.uid, case.uid, 1);
            let answer = ask(share.client(), row, &case, room(row, &case));
            share.client().set_caller(0, 0, 1);
            match (case.want, answer) {
                (Want::Nothing, None) => succeeded += 1,
                (Want::Done, Some(0)) => succeeded += 1,
                (Want::Fails(errno), Some(found)) if errno == found => {
                    failed += 1;
                    provoked.insert(found);
                }
                (Want::Refused, Some(found)) if found > 0 => failed += 1,
                (Want::Host(errnos), Some(found)) if found == 0 || errnos.contains(&found) => succeeded += 1,
                (want, found) => wrong.push(format!("{who}: {want:?} was expected, {found:?} came")),
            }
        }
        let never_succeeds = matches!(row.opcode, Opcode::Poll | Opcode::Bmap);
        assert!(succeeded > 0 || never_succeeds, "{} has no case of success", row.name);
        let never_fails = row.reply == ReplyForm::Nothing || row.opcode == Opcode::Destroy;
        assert!(failed > 0 || never_fails, "{} has no case of failure", row.name);
        let metrics = share.daemon.server().metrics();
        assert_eq!(metrics.panics(), 0, "{}", row.name);
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    // Whatever part of the table is changed, this much must come out of it.
    for errno in [
        libc::EPERM,
        libc::ENOENT,
        libc::ENXIO,
        libc::E2BIG,
        libc::EBADF,
        libc::EAGAIN,
        libc::EEXIST,
        libc::ENOTDIR,
        libc::EISDIR,
        libc::EINVAL,
        libc::ENOTTY,
        libc::EFBIG,
        libc::ERANGE,
        libc::ENAMETOOLONG,
        libc::ENOSYS,
        libc::ENOTEMPTY,
        libc::ELOOP,
        libc::ENODATA,
        libc::EPROTO,
        libc::EOPNOTSUPP,
        libc::ESTALE,
    ] {
        assert!(provoked.contains(&errno), "no case provokes {}", std::io::Error::from_raw_os_error(errno));
    }
    if share::has_mounts() {
        for errno in [libc::ENOSPC, libc::EXDEV, libc::EACCES] {
            assert!(provoked.contains(&errno), "no case provokes {}", std::io::Error::from_raw_os_error(errno));
        }
    }
}

#[test]
fn without_a_window_nothing_is_mapped() {
    let with = Share::new(Setup { window: true, ..Setup::default() });
    let share = Share::new(Setup::default());
    for row in OPERATIONS.iter().filter(|row| matches!(row.opcode, Opcode::Setupmapping | Opcode::Removemapping)) {
        for case in rows(row.opcode, &with) {
            let answer = ask(share.client(), row, &case, room(row, &case));
            assert!(matches!(answer, Some(libc::EOPNOTSUPP | libc::EINVAL)), "{}: {}: {answer:?}", row.name, case.what);
        }
    }
}

#[test]
fn arguments_that_are_cut_short_are_refused_at_any_length() {
    let share = Share::new(Setup::default());
    for row in OPERATIONS.iter().filter(|row| row.arguments > 0 && row.opcode != Opcode::Init) {
        let whole = filler(row);
        for length in 0..row.arguments {
            let case = case(&format!("{length} bytes"), 1, whole[..length].to_vec());
            let answer = ask(share.client(), row, &case, room(row, &case));
            assert!(answer.is_none_or(|errno| errno == libc::EINVAL), "{}: {length} bytes: {answer:?}", row.name);
        }
    }
}

#[test]
fn names_are_one_component_everywhere() {
    let share = Share::new(Setup::default());
    let long = [b'x'; 256];
    let bad: [(&[u8], i32); 7] = [
        (b"", libc::EINVAL),
        (b".", libc::EINVAL),
        (b"..", libc::EINVAL),
        (b"/", libc::EINVAL),
        (b"a/b", libc::EINVAL),
        (b"../file", libc::EINVAL),
        (&long, libc::ENAMETOOLONG),
    ];
    let xattr = [Opcode::Setxattr, Opcode::Getxattr, Opcode::Removexattr];
    for row in OPERATIONS.iter().filter(|row| row.names > 0 && !xattr.contains(&row.opcode)) {
        // The name of a TMPFILE means nothing, and a symlink's target is no name.
        let count = match row.opcode {
            Opcode::Tmpfile => continue,
            Opcode::Symlink => 1,
            _ => row.names,
        };
        for at in 0..count {
            for (name, errno) in bad {
                let mut body = vec![0; row.arguments];
                for index in 0..row.names {
                    body.extend(if index == at { name } else { b"other" });
                    body.push(0);
                }
                let case = case(&format!("name {at} {:?}", String::from_utf8_lossy(name)), 1, body);
                assert_eq!(ask(share.client(), row, &case, room(row, &case)), Some(errno), "{}", case.what);
            }
        }
        for unended in
            [filler(row).split_last().map(|(_, rest)| rest.to_vec()).unwrap_or_default(), vec![0; row.arguments]]
        {
            let case = case("names without an end", 1, unended);
            assert_eq!(ask(share.client(), row, &case, room(row, &case)), Some(libc::EINVAL), "{}", row.name);
        }
        let case = case("more behind the names", 1, [filler(row), b"more\0".to_vec()].concat());
        assert_eq!(ask(share.client(), row, &case, room(row, &case)), Some(libc::EINVAL), "{}", row.name);
    }
}

#[test]
fn a_read_only_share_refuses_whatever_changes_it() {
    let share = Share::new(Setup { read_only: true, ..Setup::default() });
    for row in OPERATIONS.iter().filter(|row| row.mutates) {
        let case = case("on a read-only share", 1, filler(row));
        assert_eq!(ask(share.client(), row, &case, room(row, &case)), Some(libc::EROFS), "{}", row.name);
    }
}

#[test]
fn nothing_is_served_outside_of_a_session() {
    let share = Share::new(Setup { no_session: true, ..Setup::default() });
    for row in OPERATIONS.iter().filter(|row| !matches!(row.opcode, Opcode::Init | Opcode::Destroy)) {
        let case = case("before INIT", 1, filler(row));
        let answer = ask(share.client(), row, &case, room(row, &case));
        assert!(answer.is_none_or(|errno| errno == libc::EIO), "{}: {answer:?}", row.name);
    }
}

#[test]
fn too_little_room_is_an_error_and_no_room_is_no_reply() {
    let share = Share::new(Setup::default());
    for row in OPERATIONS.iter().filter(|row| row.opcode != Opcode::Setlkw) {
        let case = case("without room", 1, filler(row));
        let request = RawRequest { opcode: row.opcode as u32, nodeid: 1, body: &[&case.body], ..RawRequest::default() };
        assert_eq!(share.client().raw(&request).unwrap().used, 0, "{}", row.name);
        if let ReplyForm::Exact(size @ 1..) = row.reply {
            for room in [0, 1, size - 1] {
                assert_ne!(ask(share.client(), row, &case, Some(room)), Some(0), "{}: {room} bytes", row.name);
            }
        }
        // DESTROY among them has ended the session.
        share.guest.client().init().unwrap();
    }
}

#[test]
fn numbers_that_are_no_operation_are_not_implemented() {
    let share = Share::new(Setup::default());
    let known = |number: &u32| Operation::by_number(*number).is_none();
    for opcode in (0..100).filter(known).chain([4096, u32::MAX]) {
        let request = RawRequest { opcode, nodeid: 1, body: &[&[0; 64]], room: Some(64), ..RawRequest::default() };
        let reply = share.client().raw(&request).unwrap();
        let header = OutHeader::read_from_bytes(&reply.bytes).unwrap();
        assert_eq!((reply.used, header.len, header.error), (16, 16, -libc::ENOSYS), "{opcode}");
    }
}

/// A struct as it travels.
fn bytes(value: &(impl IntoBytes + zerocopy::Immutable)) -> Vec<u8> {
    value.as_bytes().to_vec()
}
