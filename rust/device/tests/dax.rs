//! The DAX window over vhost-user, with the embedded guest's front end and with front ends that do not do their part.

use std::fs;
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use tempfile::TempDir;
use vhost::vhost_user::message::{BackendReq, FrontendReq};
use virtiofs_coherence::Table;
use virtiofs_dax::{GRANULE, PAGE};
use virtiofs_device::vhost_user::{Config, Daemon, Source, WindowSettings};
use virtiofs_device::{Identity, Notices};
use virtiofs_fuse::wire::{RemovemappingOne, SetattrIn, SetupmappingIn, bits, fattr, init};
use virtiofs_fuse::{Limits, Server};
use virtiofs_guest::{Client, Connection, Error, Guest, LINUX_FLAGS, Mapped, Options};
use virtiofs_hostdir::{Effects, HostDir};

const DAX_FLAGS: u64 = init::MAP_ALIGNMENT | init::HAS_INODE_DAX;
const READ: u64 = bits::SETUPMAPPING_READ;
const WRITE: u64 = bits::SETUPMAPPING_READ | bits::SETUPMAPPING_WRITE;

struct Share {
    dir: TempDir,
    run: TempDir,
    daemon: Daemon,
}

struct Setup {
    read_only: bool,
    mappings: usize,
    patience: Duration,
}

const USUAL: Setup = Setup { read_only: false, mappings: 8, patience: Duration::from_secs(20) };

impl Share {
    fn new(setup: Setup) -> Share {
        let (dir, run) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        fs::write(dir.path().join("file"), [7; 10_000]).unwrap();
        fs::write(dir.path().join("small"), [8; 10]).unwrap();
        let effects = Effects { dax: Some(100), ..Effects::default() };
        let root = dir.path().into();
        let config = virtiofs_hostdir::Config { root, effects, read_only: setup.read_only, ..Default::default() };
        let fs = Arc::new(HostDir::sharing(config, Arc::default()).unwrap());
        let want = Limits::default().want | DAX_FLAGS;
        let server = Arc::new(Server::new(fs, Limits { want, ..Limits::default() }));
        let source = Source::Listening(UnixListener::bind(run.path().join("s")).unwrap());
        let identity = Identity::new("share", 1).unwrap();
        let Setup { mappings, patience, .. } = setup;
        let window = Some(WindowSettings { size: 8 * GRANULE, mappings, barrier: true, patience });
        let daemon = Daemon::start(
            server,
            source,
            Config { identity, once: false, slow_threads: 4, window, reconnect: Duration::ZERO, may_lose: false },
        )
        .unwrap();
        Share { dir, run, daemon }
    }

    fn guest(&self, options: Options) -> Guest {
        Guest::connect(&self.run.path().join("s"), options).unwrap()
    }

    fn host(&self, name: &str) -> fs::File {
        fs::File::options().read(true).write(true).open(self.dir.path().join(name)).unwrap()
    }
}

fn dax() -> Options {
    Options { dax: true, ..Options::default() }
}

fn window(guest: &Guest) -> &Mapped {
    guest.client().window().unwrap()
}

/// Maps 2 MiB of a file at a granule of the window, as Linux does.
fn map(guest: &Guest, name: &str, granule: u64, flags: u64) -> Result<(), Error> {
    let node = guest.nodeid(name).unwrap();
    let args = SetupmappingIn { fh: u64::MAX, foffset: 0, len: GRANULE, flags, moffset: granule * GRANULE };
    guest.client().setupmapping(node, &args)
}

fn unmap(guest: &Guest, granules: &[u64]) -> Result<(), Error> {
    let one = |granule: &u64| RemovemappingOne { moffset: granule * GRANULE, len: GRANULE };
    guest.client().removemapping(1, &granules.iter().map(one).collect::<Vec<_>>())
}

fn bytes(guest: &Guest, at: u64, len: usize) -> Vec<u8> {
    let mut out = vec![0; len];
    window(guest).load(at, &mut out).unwrap();
    out
}

fn errno<T: std::fmt::Debug>(result: Result<T, Error>) -> i32 {
    match result {
        Err(Error::Errno(errno)) => errno,
        other => panic!("no errno: {other:?}"),
    }
}

/// As QEMU 11.1 maps. Takes a daemon that may help it.
fn strict() -> Option<Options> {
    rustix::process::geteuid().is_root().then(|| Options { whole_pages: true, ..dax() })
}

#[test]
fn guest_and_host_share_the_memory_of_a_file() {
    for options in [Some(dax()), strict()].into_iter().flatten() {
        let share = Share::new(USUAL);
        let guest = share.guest(options.clone());
        assert_eq!(guest.client().session().reply.map_alignment, 12);
        map(&guest, "file", 1, WRITE).unwrap();
        assert_eq!(bytes(&guest, GRANULE + 9_990, 12), [7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 0, 0], "{options:?}");
        window(&guest).store(GRANULE + 5, b"guest").unwrap();
        let mut back = [0; 7];
        share.host("file").read_exact_at(&mut back, 4).unwrap();
        assert_eq!(&back, b"\x07guest\x07");
        // It grows, by the host and by the guest, and all of it is there already.
        share.host("file").write_all_at(b"host", 1_000_000).unwrap();
        assert_eq!(bytes(&guest, GRANULE + 1_000_000, 4), b"host");
        let file = guest.open("file", libc::O_RDWR, 0).unwrap();
        file.write_at(1_500_000, b"request").unwrap();
        assert_eq!(bytes(&guest, GRANULE + 1_500_000, 7), b"request");
        window(&guest).store(GRANULE + 1_500_000, b"MAPPING").unwrap();
        assert_eq!(file.read_at(1_500_000, 7).unwrap(), b"MAPPING");
        drop(file);
        // The same again for more, another file over it, and away.
        map(&guest, "file", 1, READ).unwrap();
        map(&guest, "small", 1, READ).unwrap();
        assert_eq!(bytes(&guest, GRANULE, 11), [8, 8, 8, 8, 8, 8, 8, 8, 8, 8, 0]);
        map(&guest, "file", 2, READ).unwrap();
        unmap(&guest, &[1, 2, 7]).unwrap();
        assert!(window(&guest).is_empty());
        guest.unmount().unwrap();
    }
}

#[test]
fn large_files_are_announced() {
    let share = Share::new(USUAL);
    let guest = share.guest(dax());
    let flags = |name: &str| guest.client().lookup(1, name.as_bytes()).unwrap().attr.flags & bits::ATTR_DAX;
    assert_eq!((flags("file"), flags("small")), (bits::ATTR_DAX, 0));
    share.host("small").set_len(100).unwrap();
    let node = guest.nodeid("small").unwrap();
    assert_eq!(guest.client().getattr(node, None).unwrap().attr.flags & bits::ATTR_DAX, bits::ATTR_DAX);
    let shrink = SetattrIn { valid: fattr::SIZE, size: 99, ..SetattrIn::default() };
    assert_eq!(guest.client().setattr(node, &shrink).unwrap().attr.flags & bits::ATTR_DAX, 0);
    drop(guest);
    // Who has no window is told nothing.
    let guest = share.guest(Options { init_flags: LINUX_FLAGS | DAX_FLAGS, ..Options::default() });
    assert_eq!(guest.client().session().flags & DAX_FLAGS, 0);
    assert_eq!(guest.client().lookup(1, b"file").unwrap().attr.flags & bits::ATTR_DAX, 0);
    assert_eq!(guest.read_file("file").unwrap(), [7; 10_000]);
    assert_eq!(errno(map(&guest, "file", 0, READ)), libc::EOPNOTSUPP);
}

#[test]
fn what_cannot_be_mapped_has_an_errno_that_ends_it() {
    let share = Share::new(Setup { mappings: 3, ..USUAL });
    let guest = share.guest(dax());
    for granule in 0..3 {
        map(&guest, "file", granule, READ).unwrap();
    }
    assert_eq!(errno(map(&guest, "file", 3, READ)), libc::ENOSPC);
    map(&guest, "small", 2, WRITE).unwrap();
    assert_eq!(errno(map(&guest, "file", 8, READ)), libc::EINVAL);
    assert_eq!(errno(map(&guest, "", 0, READ)), libc::EISDIR);
    let node = guest.nodeid("file").unwrap();
    for (foffset, len, moffset) in
        [(1, GRANULE, 0), (0, 1, 0), (0, GRANULE, 1), (0, u64::MAX, PAGE), (u64::MAX, PAGE, 0)]
    {
        let args = SetupmappingIn { fh: u64::MAX, foffset, len, flags: READ, moffset };
        assert_eq!(errno(guest.client().setupmapping(node, &args)), libc::EINVAL, "{args:?}");
    }
    assert_eq!(
        errno(guest.client().setupmapping(999, &SetupmappingIn { len: PAGE, ..SetupmappingIn::default() })),
        libc::ESTALE
    );
    assert_eq!(errno(guest.client().removemapping(1, &[RemovemappingOne { moffset: 0, len: 1 }])), libc::EINVAL);
    assert_eq!(window(&guest).len(), 3);
    assert_eq!(bytes(&guest, 0, 1), [7]);
    assert_eq!(bytes(&guest, 2 * GRANULE, 1), [8]);
}

#[test]
fn a_read_only_share_is_never_mapped_for_writing() {
    let share = Share::new(Setup { read_only: true, ..USUAL });
    let guest = share.guest(dax());
    map(&guest, "file", 0, READ).unwrap();
    assert_eq!(bytes(&guest, 0, 3), [7, 7, 7]);
    assert!(window(&guest).store(0, b"x").is_err());
    assert_eq!(errno(map(&guest, "file", 1, WRITE)), libc::EROFS);
    assert_eq!(guest.client().lookup(1, b"file").unwrap().attr.flags & bits::ATTR_DAX, bits::ATTR_DAX);
    drop(guest);
    // A front end that maps for writing alone gets nothing, and is told so before it asks.
    if let Some(strict) = strict() {
        let guest = share.guest(strict);
        assert_eq!(guest.client().lookup(1, b"file").unwrap().attr.flags & bits::ATTR_DAX, 0);
        assert_eq!(guest.read_file("file").unwrap(), [7; 10_000]);
        assert!(map(&guest, "file", 0, READ).is_err());
    }
}

#[test]
fn whatever_ends_a_session_ends_its_mappings() {
    let share = Share::new(USUAL);
    let guest = share.guest(dax());
    for by_reset in [false, true] {
        for granule in 0..5 {
            map(&guest, "file", granule, WRITE).unwrap();
        }
        assert_eq!(window(&guest).len(), 5);
        guest.client().reboot(by_reset).unwrap();
        // The next INIT takes them away, if nothing did before.
        assert!(window(&guest).is_empty(), "by_reset {by_reset}");
    }
    map(&guest, "file", 0, WRITE).unwrap();
    guest.client().destroy().unwrap();
    assert!(window(&guest).is_empty());
    drop(guest);
    for _ in 0..10 {
        let guest = share.guest(dax());
        map(&guest, "file", 3, WRITE).unwrap();
        guest.client().vanish();
    }
    let open = fs::read_dir("/proc/self/fd").unwrap();
    let file = share.dir.path().join("file").canonicalize().unwrap();
    let held = open.filter_map(|fd| fs::read_link(fd.ok()?.path()).ok()).filter(|to| *to == file).count();
    assert!(held <= 4, "{held} descriptors of a file that nobody has mapped any more");
    let guest = share.guest(dax());
    map(&guest, "file", 3, WRITE).unwrap();
    assert_eq!(share.daemon.server().metrics().panics(), 0);
}

/// A front end of the test's own: the guest's socket, and the other end of the channel that the device asks on.
struct Odd {
    guest: Guest,
    channel: Connection,
}

const PATIENCE: Duration = Duration::from_secs(20);

impl Odd {
    fn new(share: &Share) -> Odd {
        let init_flags = LINUX_FLAGS | DAX_FLAGS;
        let guest = share.guest(Options { init: false, init_flags, timeout: PATIENCE, ..Options::default() });
        let (ours, theirs) = UnixStream::pair().unwrap();
        let sent = guest.client().with_connection(|connection| {
            let config = connection.ask(FrontendReq::GET_SHMEM_CONFIG, &[], &[]).unwrap();
            assert_eq!((config.payload.len(), &config.payload[..4]), (2056, &[1, 0, 0, 0][..]));
            connection.tell(FrontendReq::SET_BACKEND_REQ_FD, &[], &[theirs.as_fd()]).unwrap();
        });
        assert!(sent.is_some());
        Odd { guest, channel: Connection::new(ours, PATIENCE).unwrap() }
    }

    fn client(&self) -> &Client {
        self.guest.client()
    }

    /// Answers all that comes, counts it, and ends with the channel.
    fn answer(&self, value: u64, count: &AtomicU32) {
        while let Ok(message) = self.channel.receive() {
            assert_ne!(message.flags & 1 << 3, 0, "a reply is needed");
            count.fetch_add(1, Ordering::Relaxed);
            if self.channel.send(message.request, 1 << 2, &value.to_ne_bytes(), &[]).is_err() {
                break;
            }
        }
    }

    fn enable(&self, on: bool) {
        self.client().with_connection(|connection| {
            for queue in [0, 1] {
                let state = [queue, u32::from(on)].map(u32::to_ne_bytes).concat();
                connection.tell(FrontendReq::SET_VRING_ENABLE, &state, &[]).unwrap();
            }
        });
    }
}

#[test]
fn a_front_end_that_refuses_everything_has_no_window() {
    let share = Share::new(USUAL);
    let odd = Odd::new(&share);
    let count = AtomicU32::new(0);
    std::thread::scope(|scope| {
        scope.spawn(|| odd.answer(1, &count));
        let session = odd.client().init().unwrap();
        assert_eq!(session.flags & DAX_FLAGS, 0);
        assert_eq!(odd.guest.read_file("file").unwrap(), [7; 10_000]);
        odd.channel.hang_up();
    });
    assert!(count.load(Ordering::Relaxed) > 0);
}

#[test]
fn a_front_end_that_never_answers_holds_up_its_own_session_alone_and_not_for_long() {
    let share = Share::new(Setup { patience: Duration::from_millis(300), ..USUAL });
    let odd = Odd::new(&share);
    std::thread::scope(|scope| {
        let beginning = scope.spawn(|| odd.client().init().unwrap());
        let asked = odd.channel.receive().unwrap();
        assert_eq!(asked.request, BackendReq::SHMEM_MAP as u32);
        assert_eq!((asked.payload.len(), asked.fds.len()), (40, 1));
        // The other channel is served meanwhile.
        odd.client().with_connection(|connection| connection.ask_number(FrontendReq::GET_FEATURES).unwrap());
        assert_eq!(beginning.join().unwrap().flags & DAX_FLAGS, 0);
    });
    assert_eq!(odd.guest.read_file("file").unwrap(), [7; 10_000]);
}

#[test]
fn a_front_end_that_answers_nonsense_or_hangs_up_is_served_without() {
    for (flags, payload) in [(1 << 2, vec![0; 4]), (0, vec![0; 8]), (1 << 2, vec![0; 400])] {
        let share = Share::new(USUAL);
        let odd = Odd::new(&share);
        std::thread::scope(|scope| {
            let beginning = scope.spawn(|| odd.client().init().unwrap());
            let asked = odd.channel.receive().unwrap();
            odd.channel.send(asked.request, flags, &payload, &[]).unwrap();
            if payload.len() < 8 {
                odd.channel.hang_up();
            }
            assert_eq!(beginning.join().unwrap().flags & DAX_FLAGS, 0);
        });
        assert_eq!(odd.guest.read_file("file").unwrap(), [7; 10_000]);
    }
}

#[test]
fn a_device_that_is_stopped_says_nothing_and_goes_on_where_it_was() {
    let share = Share::new(USUAL);
    let odd = Odd::new(&share);
    let count = AtomicU32::new(0);
    std::thread::scope(|scope| {
        let beginning = scope.spawn(|| odd.client().init().unwrap());
        let first = odd.channel.receive().unwrap();
        // It waits for an answer, and stops at once all the same.
        odd.enable(false);
        assert!(!beginning.is_finished());
        // The answer that was owed comes late; then the request is made again.
        odd.channel.send(first.request, 1 << 2, &[0; 8], &[]).unwrap();
        scope.spawn(|| odd.answer(0, &count));
        std::thread::sleep(Duration::from_millis(50));
        assert_eq!(count.load(Ordering::Relaxed), 0, "it spoke while it was stopped");
        odd.enable(true);
        assert_eq!(beginning.join().unwrap().flags & DAX_FLAGS, DAX_FLAGS);
        assert!(count.load(Ordering::Relaxed) > 2);
        assert_eq!(odd.guest.read_file("file").unwrap(), [7; 10_000]);
        odd.channel.hang_up();
    });
}

/// The VMM is killed while its guest waits for a mapping: before it has mapped the file, or before it has said that the guest can see it.
#[test]
fn a_vmm_that_dies_in_the_middle_of_a_mapping_leaves_nothing() {
    let share = Share::new(USUAL);
    let file = share.dir.path().join("file");
    let held = || {
        let open = fs::read_dir("/proc/self/fd").unwrap();
        open.filter(|fd| fd.as_ref().is_ok_and(|fd| fs::read_link(fd.path()).is_ok_and(|to| to == file))).count()
    };
    for answered in [0, 1] {
        let odd = Odd::new(&share);
        std::thread::scope(|scope| {
            let mapping = scope.spawn(|| {
                odd.client().init().unwrap();
                map(&odd.guest, "file", 0, WRITE)
            });
            let is_file = |fd: &std::os::fd::OwnedFd| {
                let [sent, ours] = [rustix::fs::fstat(fd), rustix::fs::stat(&file)].map(Result::unwrap);
                (sent.st_dev, sent.st_ino) == (ours.st_dev, ours.st_ino)
            };
            let asked = || odd.channel.receive().unwrap();
            let answer = |request| odd.channel.send(request, 1 << 2, &[0; 8], &[]).unwrap();
            // First comes what the device tries out.
            let mut last = asked();
            while !last.fds.iter().any(is_file) {
                answer(last.request);
                last = asked();
            }
            for _ in 0..answered {
                answer(last.request);
                last = asked();
            }
            odd.channel.hang_up();
            odd.client().vanish();
            assert!(mapping.join().unwrap().is_err(), "answered {answered}");
        });
        drop(odd);
        // The next guest is served once nothing is left of this one.
        let guest = share.guest(dax());
        assert!(window(&guest).is_empty());
        assert_eq!(guest.read_file("file").unwrap(), [7; 10_000]);
        map(&guest, "file", 3, WRITE).unwrap();
        assert_eq!(bytes(&guest, 3 * GRANULE, 2), [7, 7]);
    }
    assert_eq!(share.daemon.server().metrics().panics(), 0);
    let deadline = std::time::Instant::now() + PATIENCE;
    while held() > 0 && std::time::Instant::now() < deadline {
        std::thread::sleep(Duration::from_millis(10));
    }
    assert_eq!(held(), 0, "descriptors of a file that nobody has mapped any more");
}

#[test]
fn a_guest_that_maps_everything_is_refused_where_not_everything_can_be_mapped() {
    let Some(strict) = strict() else { return eprintln!("skipped: only root can help such a front end") };
    let share = Share::new(Setup { read_only: true, ..USUAL });
    let guest = share.guest(Options { init: false, init_flags: LINUX_FLAGS | init::MAP_ALIGNMENT, ..strict });
    // With a window this guest offers per-file DAX as well; as without it:
    let body = virtiofs_fuse::wire::InitIn {
        major: 7,
        minor: 46,
        flags: (LINUX_FLAGS | init::MAP_ALIGNMENT) as u32,
        ..Default::default()
    };
    let reply = guest
        .client()
        .raw(&virtiofs_guest::RawRequest {
            opcode: virtiofs_fuse::Opcode::Init as u32,
            body: &[zerocopy::IntoBytes::as_bytes(&body)],
            room: Some(64),
            ..Default::default()
        })
        .unwrap();
    assert_eq!(reply.bytes.get(4..8), Some(&(-libc::EOPNOTSUPP).to_le_bytes()[..]));
}

/// Waits for what somebody else's thread does.
fn until(what: &str, mut done: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(60);
    while !done() {
        assert!(Instant::now() < deadline, "never: {what}");
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// What the front end has mapped: where, and how much.
fn laid(guest: &Guest) -> Vec<(u64, u64)> {
    window(guest).mappings().iter().map(|mapping| (mapping.offset, mapping.len)).collect()
}

/// A number for each mapping that was ever made.
fn keys(guest: &Guest) -> Vec<u64> {
    window(guest).mappings().iter().map(|mapping| mapping.file.key()).collect()
}

#[test]
fn zeros_take_the_place_of_what_somebody_cuts_off_until_it_is_there_again() {
    for options in [Some(dax()), strict()].into_iter().flatten() {
        let share = Share::new(USUAL);
        let host = share.host("file");
        host.set_len(GRANULE + 100).unwrap();
        let guest = share.guest(options);
        map(&guest, "file", 1, WRITE).unwrap();
        let node = guest.nodeid("file").unwrap();
        let second =
            SetupmappingIn { fh: u64::MAX, foffset: GRANULE, len: GRANULE, flags: WRITE, moffset: 2 * GRANULE };
        guest.client().setupmapping(node, &second).unwrap();
        assert_eq!(laid(&guest), [(GRANULE, GRANULE), (2 * GRANULE, GRANULE)]);

        let before = keys(&guest)[1];
        host.set_len(5000).unwrap();
        let cut = [(GRANULE, 8192), (GRANULE + 8192, GRANULE - 8192), (2 * GRANULE, GRANULE)];
        until("the mapping is cut", || laid(&guest) == cut && keys(&guest)[2] != before);
        assert_eq!(bytes(&guest, GRANULE + 4998, 4), [7, 7, 0, 0]);
        // All of it can be touched, and what is stored behind the end is lost.
        window(&guest).store(2 * GRANULE + 5, b"lost").unwrap();
        window(&guest).store(GRANULE + 9000, b"lost").unwrap();
        window(&guest).store(GRANULE + 1, b"kept").unwrap();
        let mut back = [0; 4];
        host.read_exact_at(&mut back, 1).unwrap();
        assert_eq!((&back, host.metadata().unwrap().len()), (b"kept", 5000));

        // The guest hears that it has grown, so it has to be there.
        host.write_all_at(b"back", GRANULE + 10).unwrap();
        assert_eq!(guest.client().getattr(node, None).unwrap().attr.size, GRANULE + 14);
        assert_eq!(bytes(&guest, 2 * GRANULE + 3, 11), b"\0\0\0\0\0\0\0back");
        assert_eq!(bytes(&guest, GRANULE + 9000, 4), [0; 4]);
        window(&guest).store(GRANULE + 9000, b"mine").unwrap();
        host.read_exact_at(&mut back, 9000).unwrap();
        assert_eq!(&back, b"mine");
        unmap(&guest, &[1, 2]).unwrap();
        assert!(window(&guest).is_empty());
        guest.unmount().unwrap();
    }
}

#[test]
fn what_is_behind_the_end_from_the_start_is_zeros_and_the_file_once_that_is_longer() {
    let share = Share::new(USUAL);
    let guest = share.guest(dax());
    let node = guest.nodeid("small").unwrap();
    let behind = SetupmappingIn { fh: u64::MAX, foffset: GRANULE, len: GRANULE, flags: WRITE, moffset: 0 };
    guest.client().setupmapping(node, &behind).unwrap();
    window(&guest).store(0, b"nobody's").unwrap();
    assert_eq!(share.host("small").metadata().unwrap().len(), 10);
    let file = guest.open("small", libc::O_RDWR, 0).unwrap();
    file.write_at(GRANULE, b"written").unwrap();
    assert_eq!(bytes(&guest, 0, 9), b"written\0\0");
}

#[test]
fn what_the_guest_cuts_off_itself_stays_as_it_is() {
    let share = Share::new(USUAL);
    let guest = share.guest(dax());
    map(&guest, "file", 0, WRITE).unwrap();
    map(&guest, "small", 1, WRITE).unwrap();
    let file = guest.open("file", libc::O_RDWR, 0).unwrap();
    file.truncate(100).unwrap();
    // Whatever is heard of the second was heard of the first before.
    let before = keys(&guest);
    share.host("small").set_len(0).unwrap();
    // For a moment there is nothing in the place of the second.
    let both = [(0, GRANULE), (GRANULE, GRANULE)];
    until("the other is zeros", || laid(&guest) == both && keys(&guest).last() != before.last());
    assert_eq!(keys(&guest).first(), before.first(), "never laid anew");
}

#[test]
fn the_version_table_is_shown_to_be_read_alone() {
    let (dir, run) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    fs::write(dir.path().join("file"), [7; 10]).unwrap();
    let table = Table::anonymous(1024).unwrap();
    let (root, versions) = (dir.path().into(), Some(Arc::clone(&table)));
    let config = virtiofs_hostdir::Config { root, versions, ..Default::default() };
    let fs = Arc::new(HostDir::sharing(config, Arc::default()).unwrap());
    let want = Limits::default().want | DAX_FLAGS;
    let server = Arc::new(Server::new(fs, Limits { want, ..Limits::default() }));
    let socket = run.path().join("s");
    let source = Source::Listening(UnixListener::bind(&socket).unwrap());
    let window = Some(WindowSettings { size: GRANULE, mappings: 1, barrier: true, patience: USUAL.patience });
    let config = Config {
        identity: Identity::new("share", 1).unwrap(),
        once: false,
        slow_threads: 1,
        window,
        reconnect: Duration::ZERO,
        may_lose: false,
    };
    let daemon = Daemon::new(server, source, config).unwrap().with_notices(Arc::new(Notices::new(table).unwrap()));
    daemon.begin().unwrap();
    // A second session gets it as well.
    for _ in 0..2 {
        let guest = Guest::connect(&socket, Options { find_versions: true, ..Options::default() }).unwrap();
        assert_eq!(guest.client().options().versions.as_ref().map(|view| view.slots()), Some(1024));
        assert_eq!(guest.stat("file").unwrap().size, 10);
        guest.truncate("file", 5).unwrap();
        assert_eq!(guest.stat("file").unwrap().size, 5, "the counter has moved");
        guest.truncate("file", 10).unwrap();
        guest.unmount().unwrap();
    }
    // QEMU 11.1 maps for writing alone.
    let strict = Guest::connect(&socket, Options { find_versions: true, whole_pages: true, ..Options::default() });
    assert!(matches!(strict, Err(Error::Protocol(why)) if why.contains("no version table")));
}
