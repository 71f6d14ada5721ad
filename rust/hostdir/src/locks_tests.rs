use std::fs::{File, OpenOptions};
use std::os::fd::OwnedFd;
use std::sync::mpsc;

use super::*;

const KEY: FileKey = (1, 1);
const OTHER: FileKey = (1, 2);

struct Rig {
    locks: Arc<Locks>,
    dir: tempfile::TempDir,
}

impl Rig {
    fn new() -> Rig {
        let dir = tempfile::tempdir().unwrap();
        for (_, ino) in [KEY, OTHER] {
            File::create(dir.path().join(ino.to_string())).unwrap();
        }
        Rig { locks: Arc::default(), dir }
    }

    fn open(&self, key: FileKey) -> OwnedFd {
        OpenOptions::new().read(true).write(true).open(self.dir.path().join(key.1.to_string())).unwrap().into()
    }

    fn set(&self, session: u64, owner: u64, key: FileKey, kind: i32, range: (u64, u64), wait: bool) -> Result<Asked> {
        self.locks.set(session, key, &args(owner, kind, range, 0), wait, || Ok(counted(self.open(key))))
    }

    fn waits(
        &self,
        session: u64,
        owner: u64,
        key: FileKey,
        kind: i32,
        range: (u64, u64),
    ) -> mpsc::Receiver<Result<()>> {
        let Ok(Asked::Waits(wait)) = self.set(session, owner, key, kind, range, true) else { panic!("it should wait") };
        let (sender, receiver) = mpsc::channel();
        self.locks.settle(wait, Box::new(move |result| sender.send(result).unwrap()));
        receiver
    }
}

fn counted(fd: OwnedFd) -> Counted {
    Counted::new(fd, &Arc::default())
}

/// Each owner asks by an open file of its own, unless a test says otherwise.
fn args(owner: u64, kind: i32, (start, end): (u64, u64), lk_flags: u32) -> LkIn {
    let lk = FileLock { start, end, kind: kind as u32, pid: 100 + owner as u32 };
    LkIn { fh: 1000 + owner, owner, lk, lk_flags, ..LkIn::default() }
}

const ALL: (u64, u64) = (0, i64::MAX as u64);
const EAGAIN: Result<Asked> = Err(Error::Errno(libc::EAGAIN));
const SOON: Duration = Duration::from_secs(10);

#[test]
fn owners_of_two_guests_exclude_each_other_even_with_one_number() {
    let rig = Rig::new();
    rig.set(1, 5, KEY, libc::F_WRLCK, (0, 9), false).unwrap();
    assert_eq!(rig.set(2, 5, KEY, libc::F_RDLCK, (9, 20), false), EAGAIN);
    rig.set(2, 5, KEY, libc::F_RDLCK, (10, 20), false).unwrap();
    rig.set(1, 5, KEY, libc::F_UNLCK, ALL, false).unwrap();
    rig.set(2, 5, KEY, libc::F_WRLCK, (0, 9), false).unwrap();
    rig.locks.forget_session(2);
    assert_eq!(rig.locks.count(), (0, 0));
}

#[test]
fn getlk_names_the_lock_and_the_pid_of_the_same_guest_only() {
    let rig = Rig::new();
    rig.set(1, 5, KEY, libc::F_WRLCK, (10, 19), false).unwrap();
    let get = |session, owner, range| {
        rig.locks.get(session, KEY, &args(owner, libc::F_RDLCK, range, 0), || Ok(counted(rig.open(KEY)))).unwrap()
    };
    assert_eq!(get(1, 6, (0, 99)), FileLock { start: 10, end: 19, kind: libc::F_WRLCK as u32, pid: 105 });
    assert_eq!(get(2, 6, (0, 99)).pid, 0);
    assert_eq!(get(1, 6, (20, 99)).kind, libc::F_UNLCK as u32);
    assert_eq!(get(1, 5, (0, 99)).kind, libc::F_UNLCK as u32, "an owner is never in its own way");
    let host = rig.open(KEY);
    file::set_range(&host, Range { start: 50, end: 50 }, Some(Mode::Exclusive)).unwrap();
    assert_eq!(get(1, 5, (0, 99)), FileLock { start: 50, end: 50, kind: libc::F_WRLCK as u32, pid: 0 });
}

#[test]
fn waiters_are_served_in_turn_when_a_guest_unlocks() {
    let rig = Rig::new();
    rig.set(1, 1, KEY, libc::F_WRLCK, ALL, false).unwrap();
    let second = rig.waits(2, 2, KEY, libc::F_WRLCK, ALL);
    let third = rig.waits(1, 3, KEY, libc::F_WRLCK, ALL);
    assert_eq!(rig.locks.count(), (1, 2));
    rig.locks.forget_owner(1, KEY, 1);
    assert_eq!(second.try_recv(), Ok(Ok(())));
    assert!(third.try_recv().is_err());
    rig.locks.forget_session(2);
    assert_eq!(third.try_recv(), Ok(Ok(())));
}

#[test]
fn a_wait_that_is_over_before_anybody_says_what_then_is_not_lost() {
    let rig = Rig::new();
    rig.set(1, 1, KEY, libc::F_WRLCK, ALL, false).unwrap();
    let Ok(Asked::Waits(wait)) = rig.set(1, 2, KEY, libc::F_WRLCK, ALL, true) else { panic!() };
    rig.set(1, 1, KEY, libc::F_UNLCK, ALL, false).unwrap();
    let (sender, receiver) = mpsc::channel();
    rig.locks.settle(wait, Box::new(move |result| sender.send(result).unwrap()));
    assert_eq!(receiver.try_recv(), Ok(Ok(())));
}

#[test]
fn a_process_of_the_host_is_waited_for_as_well() {
    let rig = Rig::new();
    let host = rig.open(KEY);
    file::set_range(&host, Range::ALL, Some(Mode::Exclusive)).unwrap();
    assert_eq!(rig.set(1, 1, KEY, libc::F_RDLCK, (5, 5), false), EAGAIN);
    let waiter = rig.waits(1, 1, KEY, libc::F_RDLCK, (5, 5));
    assert!(waiter.try_recv().is_err());
    drop(host);
    assert_eq!(waiter.recv_timeout(SOON), Ok(Ok(())));
}

#[test]
fn a_cycle_of_waiters_is_a_deadlock() {
    let rig = Rig::new();
    rig.set(1, 1, KEY, libc::F_WRLCK, (0, 0), false).unwrap();
    rig.set(2, 2, KEY, libc::F_WRLCK, (1, 1), false).unwrap();
    rig.set(1, 3, OTHER, libc::F_WRLCK, (0, 0), false).unwrap();
    let one = rig.waits(1, 1, KEY, libc::F_WRLCK, (1, 1));
    let two = rig.waits(2, 2, OTHER, libc::F_WRLCK, (0, 0));
    assert_eq!(rig.set(1, 3, KEY, libc::F_WRLCK, (0, 0), true), Err(Error::Errno(libc::EDEADLK)));
    rig.set(1, 3, OTHER, libc::F_UNLCK, ALL, false).unwrap();
    assert_eq!(two.try_recv(), Ok(Ok(())));
    assert!(one.try_recv().is_err());
}

#[test]
fn flock_and_posix_locks_do_not_see_each_other() {
    let rig = Rig::new();
    let flock = |owner, kind| {
        let args = args(owner, kind, ALL, bits::LK_FLOCK);
        rig.locks.set(1, KEY, &args, false, || Ok(counted(rig.open(KEY))))
    };
    rig.set(1, 1, KEY, libc::F_WRLCK, ALL, false).unwrap();
    flock(2, libc::F_WRLCK).unwrap();
    assert_eq!(flock(3, libc::F_RDLCK), EAGAIN);
    flock(2, libc::F_RDLCK).unwrap();
    flock(3, libc::F_RDLCK).unwrap();
    assert_eq!(flock(2, libc::F_WRLCK), EAGAIN, "and the shared lock is given up, as by flock(2)");
    flock(3, libc::F_WRLCK).unwrap();
    rig.locks.forget_handle(1, KEY, 1003);
    assert_eq!(rig.locks.count(), (1, 0));
}

#[test]
fn what_an_open_file_has_locked_goes_with_it_and_nothing_else() {
    let rig = Rig::new();
    rig.set(1, 1, KEY, libc::F_WRLCK, (0, 9), false).unwrap();
    rig.set(1, 2, KEY, libc::F_WRLCK, (10, 19), false).unwrap();
    rig.set(2, 1, KEY, libc::F_WRLCK, (20, 29), false).unwrap();
    let waiter = rig.waits(2, 5, KEY, libc::F_WRLCK, (0, 19));
    rig.locks.forget_handle(1, KEY, 1001);
    assert_eq!(rig.locks.count(), (2, 1), "neither another file's nor another guest's");
    // A process that locked again by another file keeps what it has there.
    let again = LkIn { fh: 7, ..args(2, libc::F_WRLCK, (15, 15), 0) };
    rig.locks.set(1, KEY, &again, false, || Ok(counted(rig.open(KEY)))).unwrap();
    rig.locks.forget_handle(1, KEY, 1002);
    assert_eq!(rig.locks.count(), (2, 1));
    rig.locks.forget_handle(1, KEY, 7);
    assert_eq!(waiter.recv_timeout(SOON), Ok(Ok(())));
    // A lock that was waited for is its open file's as well.
    rig.locks.forget_handle(2, KEY, 1005);
    assert_eq!(rig.locks.count(), (1, 0));
}

#[test]
fn a_guest_cannot_have_more_waiters_than_its_rings_bear() {
    let rig = Rig::new();
    rig.set(1, 1, KEY, libc::F_WRLCK, ALL, false).unwrap();
    let waiters: Vec<_> = (0..WAITERS_MAX as u64).map(|at| rig.waits(1, 10 + at, KEY, libc::F_RDLCK, ALL)).collect();
    assert_eq!(rig.set(1, 9, KEY, libc::F_RDLCK, ALL, true), Err(Error::Errno(libc::ENOLCK)));
    let another_guest = rig.waits(2, 9, KEY, libc::F_RDLCK, ALL);
    rig.set(1, 1, KEY, libc::F_UNLCK, ALL, false).unwrap();
    assert!(waiters.iter().chain([&another_guest]).all(|waiter| waiter.try_recv() == Ok(Ok(()))));
}

#[test]
fn ranges_that_end_before_they_begin_and_unknown_kinds_are_refused() {
    let rig = Rig::new();
    assert_eq!(rig.set(1, 1, KEY, libc::F_WRLCK, (9, 8), false), Err(Error::Errno(libc::EINVAL)));
    assert_eq!(rig.set(1, 1, KEY, 77, (0, 8), false), Err(Error::Errno(libc::EINVAL)));
    assert_eq!(rig.set(1, 1, KEY, libc::F_WRLCK, (u64::MAX, u64::MAX), false), Err(Error::Errno(libc::EINVAL)));
    assert_eq!(rig.locks.count(), (0, 0));
}

/// Two threads of one process wait and lock side by side: one owner.
#[test]
fn locks_that_one_owner_gets_while_it_waits_for_another_all_hold() {
    let rig = Rig::new();
    rig.set(2, 9, KEY, libc::F_WRLCK, (0, 9), false).unwrap();
    let waiter = rig.waits(1, 1, KEY, libc::F_WRLCK, (0, 9));
    let second = rig.waits(1, 1, KEY, libc::F_WRLCK, (5, 5));
    rig.set(1, 1, KEY, libc::F_WRLCK, (20, 29), false).unwrap();
    rig.locks.forget_owner(2, KEY, 9);
    assert_eq!(waiter.recv_timeout(SOON), Ok(Ok(())));
    assert_eq!(second.recv_timeout(SOON), Ok(Ok(())));
    let host = rig.open(KEY);
    for range in [(0, 9), (20, 29)] {
        assert_eq!(rig.set(2, 9, KEY, libc::F_RDLCK, range, false), EAGAIN);
        let range = Range { start: range.0, end: range.1 };
        assert!(file::blocking_range(&host, range, Mode::Shared).unwrap().is_some(), "the host sees {range:?}");
    }
    rig.locks.forget_owner(1, KEY, 1);
    assert_eq!(file::blocking_range(&host, Range::ALL, Mode::Exclusive).unwrap(), None);
}

#[test]
fn a_waiter_that_is_interrupted_answers_eintr_and_takes_nothing() {
    let rig = Rig::new();
    rig.set(1, 1, KEY, libc::F_WRLCK, ALL, false).unwrap();
    let Ok(Asked::Waits(wait)) = rig.set(2, 2, KEY, libc::F_WRLCK, ALL, true) else { panic!("it should wait") };
    let next = rig.waits(3, 3, KEY, libc::F_WRLCK, ALL);
    let (sender, interrupted) = mpsc::channel();
    rig.locks.settle(wait, Box::new(move |result| sender.send(result).unwrap()));
    rig.locks.interrupt(wait);
    assert_eq!(interrupted.recv_timeout(SOON).unwrap(), refuse(libc::EINTR));
    rig.locks.interrupt(wait);
    rig.set(1, 1, KEY, libc::F_UNLCK, ALL, false).unwrap();
    assert_eq!(next.recv_timeout(SOON).unwrap(), Ok(()));
    assert_eq!(rig.locks.count(), (1, 0));

    // Before it was said what to do then.
    let Ok(Asked::Waits(wait)) = rig.set(2, 2, KEY, libc::F_WRLCK, ALL, true) else { panic!("it should wait") };
    rig.locks.interrupt(wait);
    let (sender, interrupted) = mpsc::channel();
    rig.locks.settle(wait, Box::new(move |result| sender.send(result).unwrap()));
    assert_eq!(interrupted.recv_timeout(SOON).unwrap(), refuse(libc::EINTR));
    assert_eq!(rig.locks.count(), (1, 0));
}
