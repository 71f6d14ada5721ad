//! For each operation: requests that succeed, and requests that fail in as many ways as the operation has. One table, hence long.

use virtiofs_fuse::Opcode;
use virtiofs_fuse::wire::*;

use crate::bytes;
use crate::share::{Share, WINDOW};

/// What must come back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Want {
    /// Success, of the length that the table says.
    Done,
    /// This errno.
    Fails(i32),
    /// Some errno.
    Refused,
    /// What the host's file system has to say: success or one of these.
    Host(&'static [i32]),
    /// No reply.
    Nothing,
}

use Want::{Done, Fails, Host, Nothing, Refused};

/// One request.
#[derive(Debug)]
pub(crate) struct Case {
    pub(crate) what: String,
    pub(crate) node: u64,
    pub(crate) body: Vec<u8>,
    pub(crate) data: Vec<u8>,
    /// Room for a reply of no fixed length.
    pub(crate) room: usize,
    pub(crate) uid: u32,
    pub(crate) hiprio: bool,
    pub(crate) want: Want,
}

impl Case {
    pub(crate) fn new(what: &str, node: u64, body: Vec<u8>, want: Want) -> Case {
        Case { what: what.into(), node, body, data: Vec::new(), room: 8192, uid: 0, hiprio: false, want }
    }

    fn data(self, data: &[u8]) -> Case {
        Case { data: data.to_vec(), ..self }
    }

    fn room(self, room: usize) -> Case {
        Case { room, ..self }
    }

    fn uid(self, uid: u32) -> Case {
        Case { uid, ..self }
    }
}

fn row(what: &str, node: u64, body: Vec<u8>, want: Want) -> Case {
    Case::new(what, node, body, want)
}

/// A struct and the names behind it.
fn named(head: Vec<u8>, names: &[&str]) -> Vec<u8> {
    names.iter().fold(head, |mut body, name| {
        body.extend(name.as_bytes());
        body.push(0);
        body
    })
}

fn name(name: &str) -> Vec<u8> {
    named(Vec::new(), &[name])
}

/// No node has this number, no handle either.
const NOBODY: u64 = 0xdead_0000;
const ROOT: u64 = ROOT_ID;
const FAR: u64 = i64::MAX as u64 + 1;
const SMALL_DISK: u64 = 1 << 20;
const PAGE: u64 = 4096;
const GRANULE: u64 = 2 << 20;

#[rustfmt::skip]
pub(crate) fn rows(opcode: Opcode, share: &Share) -> Vec<Case> {
    let (file, dir, link) = (share.node("file"), share.node("dir"), share.node("link"));
    match opcode {
        Opcode::Lookup => vec![
            row("a file", ROOT, name("file"), Done),
            row("a longest name", ROOT, name(&"x".repeat(255)), Fails(libc::ENOENT)),
            row("nothing of that name", ROOT, name("missing"), Fails(libc::ENOENT)),
            row("below a file", file, name("x"), Fails(libc::ENOTDIR)),
            row("below a symlink", link, name("x"), Fails(libc::ENOTDIR)),
            row("in a directory that is gone", share.gone(), name("x"), Fails(libc::ENOENT)),
            row("below no node", NOBODY, name("x"), Fails(libc::ESTALE)),
        ],
        Opcode::Forget => vec![
            row("a node", dir, bytes(&ForgetIn { nlookup: 1 }), Nothing),
            Case { hiprio: true, ..row("by the hiprio queue", file, bytes(&ForgetIn { nlookup: 1 }), Nothing) },
            row("more than there was", link, bytes(&ForgetIn { nlookup: u64::MAX }), Nothing),
            row("no node", NOBODY, bytes(&ForgetIn { nlookup: 1 }), Nothing),
            row("the root", ROOT, bytes(&ForgetIn { nlookup: 1 }), Nothing),
        ],
        Opcode::BatchForget => vec![
            row("two", 0, [bytes(&BatchForgetIn { count: 2, dummy: 0 }), bytes(&ForgetOne { nodeid: file, nlookup: 1 }),
                           bytes(&ForgetOne { nodeid: NOBODY, nlookup: 1 })].concat(), Nothing),
            row("fewer than it says", 0, bytes(&BatchForgetIn { count: u32::MAX, dummy: 0 }), Nothing),
        ],
        Opcode::Getattr => {
            let fh = share.open("file", libc::O_RDONLY);
            let by = |fh| bytes(&GetattrIn { getattr_flags: bits::GETATTR_FH, dummy: 0, fh });
            vec![
                row("the root", ROOT, bytes(&GetattrIn::default()), Done),
                row("a symlink", link, bytes(&GetattrIn::default()), Done),
                row("an open file", file, by(fh), Done),
                row("no handle", file, by(NOBODY), Fails(libc::EBADF)),
                row("no node", NOBODY, bytes(&GetattrIn::default()), Fails(libc::ESTALE)),
            ]
        }
        Opcode::Statx => {
            let fh = share.open("file", libc::O_RDONLY);
            let by = |getattr_flags, fh, sx_mask| bytes(&StatxIn { getattr_flags, fh, sx_mask, ..StatxIn::default() });
            vec![
                row("all", file, by(0, 0, u32::MAX), Done),
                row("nothing", file, by(0, 0, 0), Done),
                row("an open file", file, by(bits::GETATTR_FH, fh, 0xfff), Done),
                row("no handle", file, by(bits::GETATTR_FH, NOBODY, 0xfff), Fails(libc::EBADF)),
                row("no node", NOBODY, by(0, 0, 0xfff), Fails(libc::ESTALE)),
            ]
        }
        Opcode::Setattr => {
            let (rw, ro) = (share.open("file", libc::O_RDWR), share.open("file", libc::O_RDONLY));
            let set = |valid, size, fh| bytes(&SetattrIn { valid, size, fh, mode: 0o640, uid: u32::MAX, ..SetattrIn::default() });
            let mut cases = vec![
                row("nothing", file, set(0, 0, 0), Done),
                row("the mode", file, set(fattr::MODE, 0, 0), Done),
                row("the size", file, set(fattr::SIZE, 100, 0), Done),
                row("the size of an open file", file, set(fattr::SIZE | fattr::FH, 50, rw), Done),
                row("the size by a handle that only reads", file, set(fattr::SIZE | fattr::FH, 50, ro), Done),
                row("times", file, set(fattr::ATIME_NOW | fattr::MTIME | fattr::CTIME, 0, 0), Done),
                row("the size of a directory", dir, set(fattr::SIZE, 0, 0), Fails(libc::EISDIR)),
                row("the size of a symlink", link, set(fattr::SIZE, 0, 0), Fails(libc::ELOOP)),
                row("no size", file, set(fattr::SIZE, FAR, 0), Fails(libc::EFBIG)),
                row("nobody's", file, set(fattr::UID, 0, 0), Fails(libc::EINVAL)),
                row("the mode of a symlink", link, set(fattr::MODE, 0, 0), Fails(libc::EOPNOTSUPP)),
                row("no handle", file, set(fattr::SIZE | fattr::FH, 0, NOBODY), Fails(libc::EBADF)),
                row("no node", NOBODY, set(fattr::MODE, 0, 0), Fails(libc::ESTALE)),
            ];
            cases.push(row("no time", file, bytes(&SetattrIn { valid: fattr::MTIME, mtimensec: 2_000_000_000, ..SetattrIn::default() }),
                           Fails(libc::EINVAL)));
            cases
        }
        Opcode::Readlink => vec![
            row("a symlink", link, vec![], Done).room(4095),
            row("a file", file, vec![], Fails(libc::EINVAL)),
            row("a directory", ROOT, vec![], Fails(libc::EINVAL)),
            row("no node", NOBODY, vec![], Fails(libc::ESTALE)),
        ],
        Opcode::Symlink => {
            let of = |name: &str, target: &str| named(vec![], &[name, target]);
            vec![
                row("to anywhere", ROOT, of("new", "../../any/where"), Done),
                row("longest", ROOT, of("long", &"x".repeat(4095)), Done),
                row("a name that is taken", ROOT, of("file", "x"), Fails(libc::EEXIST)),
                row("to nothing", ROOT, of("other", ""), Fails(libc::ENOENT)),
                row("to too far", ROOT, of("other", &"x".repeat(4096)), Fails(libc::ENAMETOOLONG)),
                row("in a file", file, of("other", "x"), Fails(libc::ENOTDIR)),
                row("in a directory that is gone", share.gone(), of("other", "x"), Fails(libc::ENOENT)),
                row("in no node", NOBODY, of("other", "x"), Fails(libc::ESTALE)),
            ]
        }
        Opcode::Mknod => {
            let of = |mode, name: &str| named(bytes(&MknodIn { mode, ..MknodIn::default() }), &[name]);
            vec![
                row("a FIFO", ROOT, of(libc::S_IFIFO | 0o600, "fifo"), Done),
                row("a file", ROOT, of(libc::S_IFREG | 0o600, "new"), Done),
                row("a name that is taken", ROOT, of(libc::S_IFREG, "file"), Fails(libc::EEXIST)),
                row("a directory", ROOT, of(libc::S_IFDIR, "other"), Fails(libc::EINVAL)),
                row("no type", ROOT, of(libc::S_IFMT, "other"), Fails(libc::EINVAL)),
                row("in a file", file, of(libc::S_IFREG, "other"), Fails(libc::ENOTDIR)),
                row("in a directory that is gone", share.gone(), of(libc::S_IFREG, "x"), Fails(libc::ENOENT)),
                row("in no node", NOBODY, of(libc::S_IFREG, "other"), Fails(libc::ESTALE)),
            ]
        }
        Opcode::Mkdir => {
            let of = |name: &str| named(bytes(&MkdirIn { mode: 0o755, umask: 0 }), &[name]);
            vec![
                row("a directory", ROOT, of("new"), Done),
                row("a name that is taken", ROOT, of("dir"), Fails(libc::EEXIST)),
                row("in a file", file, of("x"), Fails(libc::ENOTDIR)),
                row("in a directory that is gone", share.gone(), of("x"), Fails(libc::ENOENT)),
                row("in no node", NOBODY, of("x"), Fails(libc::ESTALE)),
            ]
        }
        Opcode::Unlink => vec![
            row("a directory", ROOT, name("dir"), Fails(libc::EISDIR)),
            row("nothing of that name", ROOT, name("missing"), Fails(libc::ENOENT)),
            row("below a file", file, name("x"), Fails(libc::ENOTDIR)),
            row("below no node", NOBODY, name("x"), Fails(libc::ESTALE)),
            row("a file", ROOT, name("file"), Done),
        ],
        Opcode::Rmdir => {
            let mut cases = vec![
                row("a file", ROOT, name("file"), Fails(libc::ENOTDIR)),
                row("a full directory", ROOT, name("dir"), Fails(libc::ENOTEMPTY)),
                row("nothing of that name", ROOT, name("missing"), Fails(libc::ENOENT)),
                row("below no node", NOBODY, name("x"), Fails(libc::ESTALE)),
                row("an empty directory", ROOT, name("empty"), Done),
            ];
            if share.small().is_some() {
                cases.push(row("a mount point", ROOT, name("small"), Fails(libc::EBUSY)));
            }
            cases
        }
        Opcode::Rename | Opcode::Rename2 => {
            let of = |newdir, flags, from: &str, to: &str| {
                let head = match opcode {
                    Opcode::Rename => bytes(&RenameIn { newdir }),
                    _ => bytes(&Rename2In { newdir, flags, padding: 0 }),
                };
                named(head, &[from, to])
            };
            let mut cases = vec![
                row("nothing of that name", ROOT, of(ROOT, 0, "missing", "x"), Fails(libc::ENOENT)),
                row("a file over a directory", ROOT, of(ROOT, 0, "file", "empty"), Fails(libc::EISDIR)),
                row("a directory over a file", ROOT, of(ROOT, 0, "empty", "file"), Fails(libc::ENOTDIR)),
                row("over a full directory", ROOT, of(ROOT, 0, "empty", "dir"), Fails(libc::ENOTEMPTY)),
                row("a directory into itself", ROOT, of(dir, 0, "dir", "x"), Fails(libc::EINVAL)),
                row("into a file", ROOT, of(file, 0, "dir", "x"), Fails(libc::ENOTDIR)),
                row("into a directory that is gone", ROOT, of(share.gone(), 0, "dir", "x"), Fails(libc::ENOENT)),
                row("into no node", ROOT, of(NOBODY, 0, "file", "x"), Fails(libc::ESTALE)),
                row("from no node", NOBODY, of(ROOT, 0, "file", "x"), Fails(libc::ESTALE)),
                row("a file", ROOT, of(dir, 0, "file", "moved"), Done),
            ];
            if let Some(small) = share.small() {
                cases.push(row("to another file system", ROOT, of(small, 0, "empty", "x"), Fails(libc::EXDEV)));
            }
            if opcode == Opcode::Rename2 {
                let (noreplace, exchange) = (libc::RENAME_NOREPLACE, libc::RENAME_EXCHANGE);
                cases.extend([
                    row("over what must not be", ROOT, of(ROOT, noreplace, "link", "dir"), Fails(libc::EEXIST)),
                    row("to a free name", ROOT, of(ROOT, noreplace, "link", "fresh"), Done),
                    row("each for the other", ROOT, of(ROOT, exchange, "fresh", "dir"), Done),
                    row("nothing for something", ROOT, of(ROOT, exchange, "missing", "dir"), Fails(libc::ENOENT)),
                    row("both at once", ROOT, of(ROOT, noreplace | exchange, "fresh", "dir"), Fails(libc::EINVAL)),
                    row("flags that mean nothing", ROOT, of(ROOT, 1 << 20, "fresh", "dir"), Fails(libc::EINVAL)),
                ]);
            }
            cases
        }
        Opcode::Link => {
            let of = |oldnodeid, name: &str| named(bytes(&LinkIn { oldnodeid }), &[name]);
            let mut cases = vec![
                row("a file", ROOT, of(file, "second"), Done),
                row("a symlink itself", ROOT, of(link, "second-link"), Done),
                row("a name that is taken", ROOT, of(file, "dir"), Fails(libc::EEXIST)),
                row("a directory", ROOT, of(dir, "x"), Fails(libc::EPERM)),
                row("in a file", file, of(file, "x"), Fails(libc::ENOTDIR)),
                row("no node", ROOT, of(NOBODY, "x"), Fails(libc::ESTALE)),
                row("in no node", NOBODY, of(file, "x"), Fails(libc::ESTALE)),
            ];
            if let Some(small) = share.small() {
                cases.push(row("to another file system", small, of(file, "x"), Fails(libc::EXDEV)));
            }
            cases
        }
        Opcode::Open => {
            let with = |flags: i32| bytes(&OpenIn { flags: flags as u32, open_flags: 0 });
            let fifo = share.client().mknod(ROOT, b"fifo", libc::S_IFIFO | 0o600, 0, 0).unwrap().nodeid;
            vec![
                row("to read", file, with(libc::O_RDONLY), Done),
                row("to write, truncated", file, with(libc::O_WRONLY | libc::O_TRUNC), Done),
                row("to leave the time alone", file, with(libc::O_RDWR | libc::O_NOATIME), Done),
                row("a directory", dir, with(libc::O_RDONLY), Fails(libc::EISDIR)),
                row("a symlink", link, with(libc::O_RDONLY), Fails(libc::ELOOP)),
                row("a FIFO", fifo, with(libc::O_RDONLY), Fails(libc::ENXIO)),
                row("in no way", file, with(libc::O_ACCMODE), Fails(libc::EINVAL)),
                row("no node", NOBODY, with(libc::O_RDONLY), Fails(libc::ESTALE)),
            ]
        }
        Opcode::Read => {
            let (ro, wo) = (share.open("file", libc::O_RDONLY), share.open("file", libc::O_WRONLY));
            let of = |fh, offset, size| bytes(&ReadIn { fh, offset, size, ..ReadIn::default() });
            vec![
                row("all", file, of(ro, 0, 4096), Done).room(4096),
                row("a part", file, of(ro, 3, 4), Done).room(4),
                row("nothing", file, of(ro, 0, 0), Done).room(0),
                row("at the end", file, of(ro, 10, 4096), Done),
                row("more than there is room for", file, of(ro, 0, u32::MAX), Done).room(5),
                row("nowhere", file, of(ro, FAR, 10), Fails(libc::EINVAL)),
                row("by a handle that only writes", file, of(wo, 0, 10), Fails(libc::EBADF)),
                row("by the handle of a directory", dir, of(share.opendir("dir") + 1000, 0, 10), Fails(libc::EBADF)),
                row("by no handle", file, of(NOBODY, 0, 10), Fails(libc::EBADF)),
            ]
        }
        Opcode::Write => {
            let (rw, ro) = (share.open("file", libc::O_RDWR), share.open("file", libc::O_RDONLY));
            let of = |fh, offset, size| bytes(&WriteIn { fh, offset, size, ..WriteIn::default() });
            let killing = WriteIn { fh: rw, size: 4, write_flags: bits::WRITE_KILL_SUIDGID, ..WriteIn::default() };
            let appending = WriteIn { fh: rw, size: 4, flags: libc::O_APPEND as u32, ..WriteIn::default() };
            let mut cases = vec![
                row("some", file, of(rw, 5, 4), Done).data(b"data"),
                row("as one who loses setuid", file, bytes(&killing), Done).data(b"data"),
                row("at the end", file, bytes(&appending), Done).data(b"data"),
                row("nothing", file, of(rw, 0, 0), Done),
                row("less than it says", file, of(rw, 0, 100), Fails(libc::EINVAL)).data(b"data"),
                row("nowhere", file, of(rw, FAR, 4), Fails(libc::EINVAL)).data(b"data"),
                row("where no file reaches", file, of(rw, FAR - 2, 4), Refused).data(b"data"),
                row("by a handle that only reads", file, of(ro, 0, 4), Fails(libc::EBADF)).data(b"data"),
                row("by no handle", file, of(NOBODY, 0, 4), Fails(libc::EBADF)).data(b"data"),
            ];
            if let Some(small) = share.small() {
                let (entry, open) = share.client().create_file(small, b"f", libc::O_RDWR as u32, 0o600, 0).unwrap();
                share.client().write(entry.nodeid, open.fh, 0, &[1; 1 << 16]).unwrap();
                cases.push(row("on a full disk", entry.nodeid, of(open.fh, SMALL_DISK, 4), Fails(libc::ENOSPC)).data(b"data"));
            }
            cases
        }
        Opcode::Statfs => vec![
            row("of the root", ROOT, vec![], Done),
            row("of a symlink", link, vec![], Done),
            row("of no node", NOBODY, vec![], Fails(libc::ESTALE)),
        ],
        Opcode::Release => {
            let fh = share.open("file", libc::O_RDWR);
            let of = |fh| bytes(&ReleaseIn { fh, ..ReleaseIn::default() });
            vec![
                row("a file", file, of(fh), Done),
                row("again", file, of(fh), Fails(libc::EBADF)),
                row("no handle", file, of(NOBODY), Fails(libc::EBADF)),
            ]
        }
        Opcode::Fsync | Opcode::Fsyncdir => {
            let fh = if opcode == Opcode::Fsync { share.open("file", libc::O_RDWR) } else { share.opendir("dir") };
            let of = |fh, fsync_flags| bytes(&FsyncIn { fh, fsync_flags, padding: 0 });
            vec![
                row("all", file, of(fh, 0), Done),
                row("data", file, of(fh, bits::FSYNC_FDATASYNC), Done),
                row("by no handle", file, of(NOBODY, 0), Fails(libc::EBADF)),
            ]
        }
        Opcode::Setxattr => {
            let of = |name: &str, size, flags: i32| {
                named(bytes(&SetxattrIn { size, flags: flags as u32, ..SetxattrIn::default() }), &[name])
            };
            vec![
                row("an attribute", file, of("user.a", 5, 0), Done).data(b"value"),
                row("nothing in it", file, of("user.b", 0, 0), Done),
                row("one that must not be there", file, of("user.a", 1, libc::XATTR_CREATE), Fails(libc::EEXIST)).data(b"x"),
                row("one that must be there", file, of("user.x", 1, libc::XATTR_REPLACE), Fails(libc::ENODATA)).data(b"x"),
                row("of a symlink", link, of("user.a", 1, 0), Fails(libc::EPERM)).data(b"x"),
                row("in no namespace", file, of("nowhere.a", 1, 0), Fails(libc::EOPNOTSUPP)).data(b"x"),
                row("an ACL", file, of("system.posix_acl_access", 1, 0), Fails(libc::EOPNOTSUPP)).data(b"x"),
                row("too much in it", file, of("user.a", XATTR_MAX as u32 + 1, 0), Fails(libc::E2BIG)).data(&[1; XATTR_MAX + 1]),
                row("a longer name than there is", file, of(&format!("user.{}", "x".repeat(251)), 1, 0), Fails(libc::ERANGE)).data(b"x"),
                row("no name", file, of("", 1, 0), Fails(libc::ERANGE)).data(b"x"),
                row("less in it than it says", file, of("user.a", 100, 0), Fails(libc::EINVAL)).data(b"x"),
                row("flags that mean nothing", file, of("user.a", 1, 1 << 20), Fails(libc::EINVAL)).data(b"x"),
                row("of no node", NOBODY, of("user.a", 1, 0), Fails(libc::ESTALE)).data(b"x"),
            ]
        }
        Opcode::Getxattr => {
            share.client().setxattr(file, b"user.a", b"value", 0).unwrap();
            let of = |name: &str, size| named(bytes(&GetxattrIn { size, padding: 0 }), &[name]);
            vec![
                row("its size", file, of("user.a", 0), Done),
                row("its value", file, of("user.a", 100), Done).room(100),
                row("its value, just", file, of("user.a", 5), Done).room(5),
                row("more than there is room for", file, of("user.a", 4), Fails(libc::ERANGE)).room(4),
                row("none of that name", file, of("user.x", 100), Fails(libc::ENODATA)).room(100),
                row("the size of none", file, of("user.x", 0), Fails(libc::ENODATA)),
                row("in no namespace", file, of("nowhere.a", 100), Fails(libc::EOPNOTSUPP)).room(100),
                row("an ACL", file, of("system.posix_acl_access", 100), Fails(libc::EOPNOTSUPP)).room(100),
                row("no name", file, of("", 100), Fails(libc::ERANGE)).room(100),
                row("of no node", NOBODY, of("user.a", 100), Fails(libc::ESTALE)).room(100),
            ]
        }
        Opcode::Listxattr => {
            share.client().setxattr(file, b"user.a", b"value", 0).unwrap();
            let of = |size| bytes(&GetxattrIn { size, padding: 0 });
            vec![
                row("their size", file, of(0), Done),
                row("the names", file, of(100), Done).room(100),
                row("none", dir, of(100), Done).room(100),
                row("the size of none", dir, of(0), Done),
                row("more than there is room for", file, of(3), Fails(libc::ERANGE)).room(3),
                row("of no node", NOBODY, of(100), Fails(libc::ESTALE)).room(100),
            ]
        }
        Opcode::Removexattr => {
            share.client().setxattr(file, b"user.a", b"value", 0).unwrap();
            vec![
                row("an attribute", file, name("user.a"), Done),
                row("none of that name", file, name("user.a"), Fails(libc::ENODATA)),
                row("of a symlink", link, name("user.a"), Fails(libc::EPERM)),
                row("in no namespace", file, name("nowhere.a"), Fails(libc::EOPNOTSUPP)),
                row("no name", file, name(""), Fails(libc::ERANGE)),
                row("of no node", NOBODY, name("user.a"), Fails(libc::ESTALE)),
            ]
        }
        Opcode::Flush => {
            let (rw, ro) = (share.open("file", libc::O_RDWR), share.open("file", libc::O_RDONLY));
            let of = |fh| bytes(&FlushIn { fh, ..FlushIn::default() });
            vec![
                row("one that writes", file, of(rw), Done),
                row("one that reads", file, of(ro), Done),
                row("no handle", file, of(NOBODY), Fails(libc::EBADF)),
            ]
        }
        Opcode::Init => {
            let of = |major, minor| bytes(&InitIn { major, minor, ..InitIn::default() });
            vec![
                row("an old guest", 0, of(7, 26), Fails(libc::EPROTO)),
                row("an ancient guest", 0, of(6, 46), Fails(libc::EPROTO)),
                row("nothing in it", 0, vec![], Fails(libc::EINVAL)),
                row("a guest of tomorrow", 0, of(8, 0), Done).room(64),
                row("a guest before minor 36", 0, bytes(&InitInCompat { major: 7, minor: 31, ..InitInCompat::default() }), Done).room(64),
                row("a guest of today", 0, of(7, 46), Done).room(64),
                row("no room", 0, of(7, 46), Refused).room(20),
            ]
        }
        Opcode::Opendir => {
            let with = |flags: i32| bytes(&OpenIn { flags: flags as u32, open_flags: 0 });
            vec![
                row("the root", ROOT, with(libc::O_DIRECTORY), Done),
                row("a file", file, with(libc::O_DIRECTORY), Fails(libc::ENOTDIR)),
                row("a symlink", link, with(libc::O_DIRECTORY), Fails(libc::ENOTDIR)),
                row("a directory that is gone", share.gone(), with(libc::O_DIRECTORY), Done),
                row("no node", NOBODY, with(libc::O_DIRECTORY), Fails(libc::ESTALE)),
            ]
        }
        Opcode::Readdir | Opcode::Readdirplus => {
            let (fh, opened) = (share.opendir("dir"), share.open("file", libc::O_RDONLY));
            let of = |fh, offset, size| bytes(&ReadIn { fh, offset, size, ..ReadIn::default() });
            vec![
                row("all", dir, of(fh, 0, 4096), Done).room(4096),
                row("the rest", dir, of(fh, i64::MAX as u64, 4096), Host(&[libc::EINVAL])).room(4096),
                row("one entry", dir, of(fh, 0, 200), Done).room(200),
                row("less than an entry", dir, of(fh, 0, 16), Fails(libc::EINVAL)).room(16),
                row("nowhere", dir, of(fh, FAR, 4096), Fails(libc::EINVAL)).room(4096),
                row("by the handle of a file", file, of(opened + 1000, 0, 4096), Fails(libc::EBADF)).room(4096),
                row("by no handle", dir, of(NOBODY, 0, 4096), Fails(libc::EBADF)).room(4096),
            ]
        }
        Opcode::Releasedir => {
            let fh = share.opendir("dir");
            let of = |fh| bytes(&ReleaseIn { fh, ..ReleaseIn::default() });
            vec![row("a directory", dir, of(fh), Done), row("again", dir, of(fh), Fails(libc::EBADF))]
        }
        Opcode::Getlk | Opcode::Setlk | Opcode::Setlkw => {
            let (rw, ro) = (share.open("file", libc::O_RDWR), share.open("file", libc::O_RDONLY));
            let of = |fh, owner, kind: i32, start, end| {
                bytes(&LkIn { fh, owner, lk: FileLock { start, end, kind: kind as u32, pid: 7 }, ..LkIn::default() })
            };
            let mut cases = vec![
                row("a free range", file, of(rw, 1, libc::F_WRLCK, 0, 9), Done),
                row("another", file, of(rw, 2, libc::F_RDLCK, 10, i64::MAX as u64), Done),
                row("through a handle that reads", file, of(ro, 2, libc::F_RDLCK, 10, 12), Done),
                row("one's own", file, of(rw, 1, libc::F_RDLCK, 0, 5), Done),
                row("no kind of lock", file, of(rw, 1, 77, 0, 9), Fails(libc::EINVAL)),
                row("backwards", file, of(rw, 1, libc::F_WRLCK, 9, 0), Fails(libc::EINVAL)),
                row("by no handle", file, of(NOBODY, 1, libc::F_WRLCK, 0, 9), Fails(libc::EBADF)),
            ];
            if opcode == Opcode::Setlk {
                cases.push(row("somebody else's", file, of(rw, 3, libc::F_WRLCK, 8, 8), Fails(libc::EAGAIN)));
                cases.push(row("nobody's any more", file, of(rw, 1, libc::F_UNLCK, 0, 9), Done));
            }
            cases
        }
        Opcode::Access => {
            let of = |mask: i32| bytes(&AccessIn { mask: mask as u32, padding: 0 });
            let mut cases = vec![
                row("to be", file, of(libc::F_OK), Done),
                row("to read", file, of(libc::R_OK), Done),
                row("in no way", file, of(0x40), Fails(libc::EINVAL)),
                row("no node", NOBODY, of(libc::R_OK), Fails(libc::ESTALE)),
            ];
            if share.small().is_some() {
                share.client().setattr(file, &SetattrIn { valid: fattr::MODE, mode: 0o600, ..SetattrIn::default() }).unwrap();
                cases.push(row("as another user", file, of(libc::R_OK), Fails(libc::EACCES)).uid(1234));
            }
            cases
        }
        Opcode::Create | Opcode::Tmpfile => {
            let of = |flags: i32, name: &str| named(bytes(&CreateIn { flags: flags as u32, mode: 0o644, ..CreateIn::default() }), &[name]);
            let wants = libc::O_RDWR;
            let gone = match opcode {
                Opcode::Create => Fails(libc::ENOENT),
                _ => Host(&[libc::ENOENT, libc::EPERM, libc::EOPNOTSUPP]),
            };
            let mut cases = vec![
                row("in a file", file, of(wants, "x"), Fails(libc::ENOTDIR)),
                row("in a directory that is gone", share.gone(), of(wants, "x"), gone),
                row("in no way", ROOT, of(libc::O_ACCMODE, "x"), Fails(libc::EINVAL)),
                row("in no node", NOBODY, of(wants, "x"), Fails(libc::ESTALE)),
            ];
            if opcode == Opcode::Tmpfile {
                cases.push(row("a file", ROOT, of(wants, "/"), Host(&[libc::EOPNOTSUPP])));
                return cases;
            }
            cases.extend([
                row("a file", ROOT, of(wants, "new"), Done),
                row("a file that is there", ROOT, of(wants | libc::O_TRUNC, "file"), Done),
                row("a file that must not be there", ROOT, of(wants | libc::O_EXCL, "file"), Fails(libc::EEXIST)),
                row("a directory is there", ROOT, of(wants, "dir"), Fails(libc::ESTALE)),
                row("a symlink is there", ROOT, of(wants, "link"), Fails(libc::ESTALE)),
            ]);
            cases
        }
        Opcode::Interrupt => vec![row("a request", 0, bytes(&InterruptIn { unique: 2 }), Nothing)],
        Opcode::NotifyReply => vec![row("something", ROOT, vec![0; 40], Nothing)],
        Opcode::Bmap => vec![row("a block", file, bytes(&BmapIn::default()), Fails(libc::ENOSYS))],
        Opcode::Poll => vec![row("a file", file, bytes(&PollIn::default()), Fails(libc::ENOSYS))],
        Opcode::Destroy => vec![row("the session", 0, vec![], Done), row("no session", 0, vec![], Done)],
        Opcode::Ioctl => {
            const GETFLAGS: u32 = 0x8008_6601;
            const FSSETXATTR: u32 = 0x401c_5820;
            let fh = share.open("file", libc::O_RDWR);
            let of = |fh, cmd, in_size, out_size| bytes(&IoctlIn { fh, cmd, in_size, out_size, ..IoctlIn::default() });
            let unsupported = &[libc::ENOTTY, libc::EOPNOTSUPP];
            vec![
                row("its flags", file, of(fh, GETFLAGS, 0, 8), Host(unsupported)).room(24),
                row("its flags, without room for them", file, of(fh, GETFLAGS, 0, 0), Host(unsupported)).room(16),
                row("a directory's flags", ROOT, bytes(&IoctlIn { fh: share.opendir("dir"), cmd: GETFLAGS, flags: bits::IOCTL_DIR,
                                                               out_size: 8, ..IoctlIn::default() }), Host(unsupported)).room(24),
                row("what is not allowed", file, of(fh, 0x5401, 0, 64), Fails(libc::ENOTTY)).room(80),
                row("less than it takes", file, of(fh, FSSETXATTR, 4, 0), Fails(libc::EINVAL)).data(b"1234").room(16),
                row("less than it says", file, of(fh, FSSETXATTR, 28, 0), Fails(libc::EINVAL)).room(16),
                row("by no handle", file, of(NOBODY, GETFLAGS, 0, 8), Fails(libc::EBADF)).room(24),
            ]
        }
        Opcode::Fallocate => {
            let (rw, ro) = (share.open("file", libc::O_RDWR), share.open("file", libc::O_RDONLY));
            let of = |fh, offset, length, mode: i32| bytes(&FallocateIn { fh, offset, length, mode: mode as u32, padding: 0 });
            let mut cases = vec![
                row("some", file, of(rw, 0, 8192, 0), Done),
                row("nothing", file, of(rw, 0, 0, 0), Fails(libc::EINVAL)),
                row("in no way", file, of(rw, 0, 1, 1 << 20), Fails(libc::EOPNOTSUPP)),
                row("where no file reaches", file, of(rw, FAR - 2, 4, 0), Fails(libc::EFBIG)),
                row("by a handle that only reads", file, of(ro, 0, 1, 0), Fails(libc::EBADF)),
                row("by no handle", file, of(NOBODY, 0, 1, 0), Fails(libc::EBADF)),
            ];
            if let Some(small) = share.small() {
                let (entry, open) = share.client().create_file(small, b"f", libc::O_RDWR as u32, 0o600, 0).unwrap();
                cases.push(row("more than the disk has", entry.nodeid, of(open.fh, 0, SMALL_DISK, 0), Fails(libc::ENOSPC)));
            }
            cases
        }
        Opcode::Lseek => {
            let fh = share.open("file", libc::O_RDONLY);
            let of = |fh, offset, whence: i32| bytes(&LseekIn { fh, offset, whence: whence as u32, padding: 0 });
            vec![
                row("data", file, of(fh, 0, libc::SEEK_DATA), Done),
                row("a hole", file, of(fh, 0, libc::SEEK_HOLE), Done),
                row("behind the end", file, of(fh, 100, libc::SEEK_DATA), Fails(libc::ENXIO)),
                row("nowhere", file, of(fh, FAR, libc::SEEK_HOLE), Fails(libc::ENXIO)),
                row("the guest's own business", file, of(fh, 0, libc::SEEK_END), Fails(libc::EINVAL)),
                row("by no handle", file, of(NOBODY, 0, libc::SEEK_DATA), Fails(libc::EBADF)),
            ]
        }
        Opcode::CopyFileRange | Opcode::CopyFileRange64 => {
            let (rw, ro) = (share.open("file", libc::O_RDWR), share.open("file", libc::O_RDONLY));
            let of = |fh_in, fh_out, off_out, flags| {
                bytes(&CopyFileRangeIn { fh_in, off_in: 0, nodeid_out: file, fh_out, off_out, len: 10, flags })
            };
            vec![
                row("in one file", file, of(ro, rw, 20, 0), Done),
                row("over itself", file, of(ro, rw, 5, 0), Fails(libc::EINVAL)),
                row("flags that mean nothing", file, of(ro, rw, 20, 1), Fails(libc::EINVAL)),
                row("to a handle that only reads", file, of(rw, ro, 20, 0), Fails(libc::EBADF)),
                row("from no handle", file, of(NOBODY, rw, 20, 0), Fails(libc::EBADF)),
                row("to no handle", file, of(ro, NOBODY, 20, 0), Fails(libc::EBADF)),
            ]
        }
        Opcode::Setupmapping => {
            let whole = SetupmappingIn { fh: u64::MAX, len: GRANULE, flags: bits::SETUPMAPPING_READ, ..SetupmappingIn::default() };
            let at = |foffset, moffset, len| bytes(&SetupmappingIn { foffset, moffset, len, ..whole });
            let wrong = |what, foffset, moffset, len| row(what, file, at(foffset, moffset, len), Fails(libc::EINVAL));
            vec![
                row("a file", file, at(0, 0, GRANULE), Done),
                row("the same again", file, at(0, 0, GRANULE), Done),
                row("and for writing", file, bytes(&SetupmappingIn { flags: bits::SETUPMAPPING_READ | bits::SETUPMAPPING_WRITE, ..whole }), Done),
                row("over a part of it", file, at(PAGE, PAGE, PAGE), Done),
                row("behind its end", file, at(GRANULE, GRANULE, GRANULE), Done),
                row("the whole window", file, at(0, 0, WINDOW), Done),
                row("a directory", dir, at(0, 0, GRANULE), Fails(libc::EISDIR)),
                row("a symlink", link, at(0, 0, GRANULE), Fails(libc::ELOOP)),
                row("no node", NOBODY, at(0, 0, GRANULE), Fails(libc::ESTALE)),
                wrong("nothing", 0, 0, 0),
                wrong("a part of a page", 0, 0, PAGE - 1),
                wrong("from within a page of the file", 1, 0, PAGE),
                wrong("from within a page of the window", 0, 1, PAGE),
                wrong("behind the window", 0, WINDOW, PAGE),
                wrong("past the window", 0, WINDOW - PAGE, GRANULE),
                wrong("where no file reaches", FAR - PAGE, 0, GRANULE),
                wrong("around the end of all files", 0u64.wrapping_sub(PAGE), 0, GRANULE),
                wrong("around the end of all windows", 0, 0u64.wrapping_sub(PAGE), GRANULE),
                wrong("more than there are numbers", 0, PAGE, 0u64.wrapping_sub(PAGE)),
            ]
        }
        Opcode::Removemapping => {
            let map = |moffset| share.client().setupmapping(file, &SetupmappingIn { len: GRANULE, moffset, ..SetupmappingIn::default() }).unwrap();
            map(0);
            map(GRANULE);
            let of = |ranges: &[(u64, u64)]| {
                let one = |&(moffset, len): &(u64, u64)| bytes(&RemovemappingOne { moffset, len });
                [vec![bytes(&RemovemappingIn { count: ranges.len() as u32 })], ranges.iter().map(one).collect()].concat().concat()
            };
            let many = bytes(&RemovemappingOne { moffset: 0, len: PAGE }).repeat(4097);
            let wrong = |what, range| row(what, 0, of(&[range]), Fails(libc::EINVAL));
            vec![
                row("out of the middle", 0, of(&[(PAGE, PAGE)]), Done),
                row("across two", 0, of(&[(GRANULE - PAGE, 2 * PAGE)]), Done),
                row("all, and what is not there", 0, of(&[(0, GRANULE), (GRANULE, GRANULE), (GRANULE, GRANULE), (0, WINDOW)]), Done),
                row("none", 0, of(&[]), Done),
                row("as many as Linux sends", 0, bytes(&RemovemappingIn { count: 4096 }), Done).data(&many),
                row("more", 0, bytes(&RemovemappingIn { count: 4097 }), Fails(libc::EINVAL)).data(&many),
                row("fewer than it says", 0, bytes(&RemovemappingIn { count: u32::MAX }), Fails(libc::EINVAL)),
                wrong("nothing", (0, 0)),
                wrong("a part of a page", (0, 1)),
                wrong("from within a page", (1, PAGE)),
                wrong("behind the window", (WINDOW, PAGE)),
                wrong("past the window", (WINDOW - PAGE, GRANULE)),
                wrong("around the end of all windows", (0u64.wrapping_sub(PAGE), GRANULE)),
            ]
        }
        Opcode::Syncfs => vec![
            row("all", ROOT, bytes(&SyncfsIn::default()), Done),
            row("no node", NOBODY, bytes(&SyncfsIn::default()), Fails(libc::ESTALE)),
        ],
    }
}
