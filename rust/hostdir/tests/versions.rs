//! Which counters of the version table each operation moves.

mod common;

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::sync::Arc;

use common::{ROOT, Share, config};
use virtiofs_coherence::{Changed, Table, slot_of};
use virtiofs_fuse::op::OPERATIONS;
use virtiofs_fuse::wire::*;
use virtiofs_fuse::{Creation, FileSystem, Opcode};
use virtiofs_hostdir::{Config, HostDir};

const SLOTS: u64 = 1 << 16;
const PLAIN: Creation<'static> = Creation { umask: 0, security: None, supplementary_group: None };

struct World {
    share: Share,
    table: Arc<Table>,
}

/// Files `f` (also called `g`) and `h`, directory `d` with `x` and the empty directory `e` in it, symlink `l`.
fn world() -> World {
    let table = Table::anonymous(SLOTS).unwrap();
    let share = Share::with(Config { versions: Some(Arc::clone(&table)), ..config() }, init::DONT_MASK);
    fs::write(share.path("f"), "content").unwrap();
    fs::hard_link(share.path("f"), share.path("g")).unwrap();
    fs::write(share.path("h"), "other").unwrap();
    fs::create_dir_all(share.path("d/e")).unwrap();
    fs::write(share.path("d/x"), "x").unwrap();
    std::os::unix::fs::symlink("f", share.path("l")).unwrap();
    World { share, table }
}

impl World {
    fn fs(&self) -> &HostDir {
        &self.share.fs
    }

    fn file(&self, name: &str, flags: i32) -> u64 {
        self.share.open(self.share.node(name), flags).unwrap()
    }

    fn d(&self) -> u64 {
        self.share.node("d")
    }

    /// The slots of paths by what stat(2) says; that of the root brings slot 1 along.
    fn slots(&self, paths: &[&str]) -> BTreeSet<u64> {
        let mut slots = BTreeSet::new();
        for path in paths {
            let status = fs::symlink_metadata(self.share.path(path)).unwrap();
            slots.insert(slot_of(status.dev(), status.ino()) & (SLOTS - 1));
            slots.extend(path.is_empty().then_some(1));
        }
        slots
    }
}

/// An operation, what is called for it, and the paths whose counters move, as they are before.
type Case = (Opcode, &'static [&'static str], fn(&World, &mut Prepared));

/// What a case opens before the look at the table.
#[derive(Default)]
struct Prepared {
    fh: u64,
    node: u64,
}

fn done<T>(result: virtiofs_fuse::Result<T>) {
    result.map(drop).unwrap();
}

#[rustfmt::skip]
const CHANGING: &[Case] = &[
    (Opcode::Setattr, &["f"], |w, p| done(w.fs().setattr(&ROOT, p.node, &SetattrIn { valid: fattr::MODE, mode: 0o600, ..SetattrIn::default() }))),
    (Opcode::Symlink, &["d"], |w, _| done(w.fs().symlink(&ROOT, w.d(), c"new", c"target", &PLAIN))),
    (Opcode::Mknod, &["d"], |w, _| done(w.fs().mknod(&ROOT, w.d(), c"new", libc::S_IFIFO | 0o600, 0, &PLAIN))),
    (Opcode::Mkdir, &["d"], |w, _| done(w.fs().mkdir(&ROOT, w.d(), c"new", 0o700, &PLAIN))),
    (Opcode::Mkdir, &[""], |w, _| done(w.fs().mkdir(&ROOT, ROOT_ID, c"new", 0o700, &PLAIN))),
    (Opcode::Mkdir, &[], |w, _| assert!(w.fs().mkdir(&ROOT, ROOT_ID, c"d", 0o700, &PLAIN).is_err())),
    (Opcode::Create, &["d"], |w, _| done(w.fs().create(&ROOT, w.d(), c"new", libc::O_RDWR as u32, 0o600, false, &PLAIN))),
    (Opcode::Create, &[], |w, _| done(w.fs().create(&ROOT, ROOT_ID, c"f", libc::O_RDWR as u32, 0o600, false, &PLAIN))),
    (Opcode::Create, &["f"], |w, _| done(w.fs().create(&ROOT, ROOT_ID, c"f", (libc::O_RDWR | libc::O_TRUNC) as u32, 0o600, false, &PLAIN))),
    (Opcode::Create, &[], |w, _| assert!(w.fs().create(&ROOT, ROOT_ID, c"f", (libc::O_RDWR | libc::O_EXCL) as u32, 0o600, false, &PLAIN).is_err())),
    (Opcode::Tmpfile, &[], |w, _| done(w.fs().tmpfile(&ROOT, ROOT_ID, libc::O_RDWR as u32, 0o600, &PLAIN))),
    (Opcode::Unlink, &["", "f"], |w, _| done(w.fs().unlink(&ROOT, ROOT_ID, c"g"))),
    (Opcode::Unlink, &[], |w, _| assert!(w.fs().unlink(&ROOT, ROOT_ID, c"absent").is_err())),
    (Opcode::Rmdir, &["d", "d/e"], |w, _| done(w.fs().rmdir(&ROOT, w.d(), c"e"))),
    (Opcode::Rmdir, &[], |w, _| assert!(w.fs().rmdir(&ROOT, ROOT_ID, c"d").is_err())),
    (Opcode::Rename, &["d", "", "d/x"], |w, _| done(w.fs().rename(&ROOT, w.d(), c"x", ROOT_ID, c"new", 0))),
    (Opcode::Rename, &["d", "", "d/x", "f"], |w, _| done(w.fs().rename(&ROOT, w.d(), c"x", ROOT_ID, c"g", 0))),
    (Opcode::Rename2, &["d", "", "d/x", "f"], |w, _| done(w.fs().rename(&ROOT, w.d(), c"x", ROOT_ID, c"g", libc::RENAME_EXCHANGE))),
    (Opcode::Rename2, &[], |w, _| assert!(w.fs().rename(&ROOT, w.d(), c"x", ROOT_ID, c"g", libc::RENAME_NOREPLACE).is_err())),
    (Opcode::Link, &["d", "h"], |w, _| done(w.fs().link(&ROOT, w.share.node("h"), w.d(), c"new"))),
    (Opcode::Open, &["f"], |w, p| done(w.fs().open(&ROOT, p.node, (libc::O_WRONLY | libc::O_TRUNC) as u32, false))),
    (Opcode::Open, &[], |w, p| done(w.fs().open(&ROOT, p.node, libc::O_RDWR as u32, false))),
    (Opcode::Write, &["f"], |w, p| done(w.share.write(p.fh, 0, b"new"))),
    (Opcode::Setxattr, &["f"], |w, p| _ = w.fs().setxattr(&ROOT, p.node, c"user.a", b"1", 0, false)),
    (Opcode::Removexattr, &["f"], |w, p| _ = w.fs().removexattr(&ROOT, p.node, c"user.a")),
    (Opcode::Fallocate, &["f"], |w, p| done(w.fs().fallocate(&ROOT, 0, &FallocateIn { fh: p.fh, length: 9000, ..FallocateIn::default() }))),
    (Opcode::CopyFileRange, &["h"], copy),
    (Opcode::CopyFileRange64, &["h"], copy),
    (Opcode::Ioctl, &["f"], |w, p| {
        // FS_IOC_SETFLAGS; the file system of the test may lack it, which the host finds out.
        let args = IoctlIn { fh: p.fh, cmd: 0x4008_6602, in_size: 4, ..IoctlIn::default() };
        _ = w.fs().ioctl(&ROOT, 0, &args, &[0; 4], &mut Vec::new());
    }),
];

fn copy(w: &World, p: &mut Prepared) {
    let to = w.file("h", libc::O_RDWR);
    let args = CopyFileRangeIn { fh_in: p.fh, fh_out: to, len: 4, ..CopyFileRangeIn::default() };
    done(w.fs().copy_file_range(&ROOT, 0, &args));
}

#[rustfmt::skip]
const READING: &[Case] = &[
    (Opcode::Lookup, &[], |w, _| _ = w.d()),
    (Opcode::Getattr, &[], |w, p| done(w.fs().getattr(&ROOT, p.node, Some(p.fh)))),
    (Opcode::Statx, &[], |w, p| done(w.fs().statx(&ROOT, p.node, None, 0xfff))),
    (Opcode::Readlink, &[], |w, _| done(w.fs().readlink(&ROOT, w.share.node("l"), &mut Vec::new()))),
    (Opcode::Read, &[], |w, p| assert_eq!(w.share.read(p.fh, 0, 3).unwrap(), b"con")),
    (Opcode::Statfs, &[], |w, p| done(w.fs().statfs(&ROOT, p.node))),
    (Opcode::Flush, &[], |w, p| done(w.fs().flush(&ROOT, 0, &FlushIn { fh: p.fh, ..FlushIn::default() }))),
    (Opcode::Fsync, &[], |w, p| done(w.fs().fsync(&ROOT, 0, p.fh, false))),
    (Opcode::Release, &[], |w, p| w.share.release(p.fh)),
    (Opcode::Getxattr, &[], |w, p| _ = w.fs().getxattr(&ROOT, p.node, c"user.a", &mut [0; 9])),
    (Opcode::Listxattr, &[], |w, p| _ = w.fs().listxattr(&ROOT, p.node, &mut [0; 99])),
    (Opcode::Access, &[], |w, p| done(w.fs().access(&ROOT, p.node, 4))),
    (Opcode::Lseek, &[], |w, p| done(w.fs().lseek(&ROOT, 0, p.fh, 0, libc::SEEK_HOLE as u32))),
    (Opcode::Readdir, &[], |w, _| assert_eq!(w.share.list(w.d(), false, 4096).len(), 4)),
    (Opcode::Readdirplus, &[], |w, _| assert_eq!(w.share.list(w.d(), true, 4096).len(), 4)),
];

#[test]
fn every_operation_moves_the_counters_of_what_it_changes_and_no_others() {
    for (opcode, paths, call) in CHANGING.iter().chain(READING) {
        let w = world();
        let mut prepared = Prepared { node: w.share.node("f"), fh: w.file("f", libc::O_RDWR) };
        // Known before: what the look at the table is about is the call alone.
        w.share.node("h");
        let expected = w.slots(paths);
        let mut changes = w.table.changes();
        call(&w, &mut prepared);
        let moved = match changes.take() {
            None => BTreeSet::new(),
            Some(Changed::Slots(slots)) => slots.into_iter().collect(),
            Some(Changed::All) => panic!("{opcode:?} on {paths:?}: everything"),
        };
        assert_eq!(moved, expected, "{opcode:?} on {paths:?}");
    }
}

/// The cases above leave out no operation that the table of the protocol says to change something.
#[test]
fn no_operation_is_forgotten() {
    let tried: BTreeSet<_> = CHANGING.iter().map(|case| case.0).collect();
    // OPEN truncates, and an IOCTL sets flags: they mutate by their arguments.
    let mutating = OPERATIONS.iter().filter(|row| row.mutates).map(|row| row.opcode);
    assert_eq!(tried, mutating.chain([Opcode::Open, Opcode::Ioctl]).collect());
}

#[test]
fn node_ids_carry_the_slot_that_stat_gives_in_every_share() {
    let w = world();
    let below = Config { versions: Some(Arc::clone(&w.table)), root: w.share.path("d"), ..config() };
    let below = HostDir::new(below).unwrap();
    below.init(&virtiofs_fuse::Negotiated::default());
    for name in ["f", "g", "h", "d", "l"] {
        assert!(w.slots(&[name]).contains(&(w.share.node(name) & (SLOTS - 1))), "{name}");
    }
    let x = below.lookup(&ROOT, ROOT_ID, c"x").unwrap().nodeid;
    let above = w.fs().lookup(&ROOT, w.d(), c"x").unwrap().nodeid;
    assert_eq!(x & (SLOTS - 1), above & (SLOTS - 1));
    // The root of one share is a plain directory of the other, where it has another id.
    let mut changes = w.table.changes();
    done(w.fs().mkdir(&ROOT, w.d(), c"new", 0o700, &PLAIN));
    let Some(Changed::Slots(slots)) = changes.take() else { panic!("nothing moved") };
    assert!(slots.contains(&1) && slots.contains(&(w.d() & (SLOTS - 1))), "{slots:?}");
    // Ids stay unique: a file that is forgotten and found again is a new node on the same slot.
    let first = w.share.node("h");
    w.fs().forget(first, 2);
    let again = w.share.node("h");
    assert_ne!(first, again);
    assert_eq!(first & (SLOTS - 1), again & (SLOTS - 1));
}

#[test]
fn what_fails_half_way_counts_as_a_change() {
    let w = world();
    let node = w.share.node("f");
    let mut changes = w.table.changes();
    // The mode is changed, the size refused.
    let valid = fattr::MODE | fattr::SIZE;
    assert!(
        w.fs().setattr(&ROOT, node, &SetattrIn { valid, mode: 0o640, size: u64::MAX, ..SetattrIn::default() }).is_err()
    );
    assert_eq!(w.share.attr(node).mode & 0o777, 0o640);
    assert!(matches!(changes.take(), Some(Changed::Slots(slots)) if slots == [node & (SLOTS - 1)]));
}

#[test]
fn without_a_table_node_ids_are_small() {
    let share = common::share();
    fs::write(share.path("f"), "").unwrap();
    assert!(share.node("f") < 1 << 8);
}
