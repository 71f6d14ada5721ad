//! Locks that hold between guests, and between guests and the host.
//!
//! The host's kernel decides who has a lock: each owner (a process of one guest, or an open file of it for flock) has a descriptor of its
//! own on the file. What is kept here beside it is what the kernel does not tell: who waits, in which order, and for whom.
//!
//! A waiter costs an entry here and the descriptors of its request, no thread. It is tried again when a lock on its file goes
//! away here, and from time to time by one thread, since a process of the host lets go without telling us. A cycle of waiters
//! answers EDEADLK (POSIX locks only, like fcntl(2)), a waiter too many ENOLCK.
//!
//! Over 400 lines: holders and waiters change under one lock, in steps that only make sense side by side.

mod file;
mod ranges;

use std::collections::{HashMap, VecDeque};
use std::io;
use std::sync::{Arc, Weak};
use std::thread;
use std::time::Duration;

use parking_lot::Mutex;
use virtiofs_fuse::wire::{FileLock, LkIn, bits};
use virtiofs_fuse::{Error, Result, Settle, Wait};

use ranges::{Mode, Range, Ranges};

use crate::bounds::Counted;

/// Waiters of one guest. Each keeps slots of a ring; QEMU's default ring has 128.
const WAITERS_MAX: usize = 64;
/// Locks of one guest: each owner keeps a descriptor for each file.
const OWNERS_MAX: usize = 4096;
/// Ranges of one owner in one file.
const RANGES_MAX: usize = 4096;
/// Ranges of one guest, once an owner has more than a few.
const RANGES_IN_ALL: usize = 65_536;
const FEW: usize = 16;
/// How soon, and how late, a lock is tried again that a process of the host holds.
const RETRY: std::ops::Range<Duration> = Duration::from_millis(1)..Duration::from_millis(50);

/// What makes a host file one: device and inode number.
pub(crate) type FileKey = (u64, u64);

/// Who has a lock. Guests number their owners each by itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Owner {
    session: u64,
    number: u64,
    /// flock and POSIX locks do not see each other.
    flock: bool,
}

/// What an owner asks for.
#[derive(Clone, Copy, Debug)]
struct Ask {
    owner: Owner,
    range: Range,
    mode: Option<Mode>,
    pid: u32,
    /// The open file by which the guest asks.
    handle: u64,
}

/// The locks of all guests of one daemon.
#[derive(Debug, Default)]
pub struct Locks {
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    files: HashMap<FileKey, LockedFile>,
    /// Waits that ended before anybody said what to do then.
    ended: HashMap<Wait, Result<()>>,
    last_number: u64,
    refused: u64,
    keeper: bool,
}

#[derive(Default)]
struct LockedFile {
    held: HashMap<Owner, Held>,
    waiters: VecDeque<Waiter>,
}

struct Held {
    fd: Counted,
    ranges: Ranges,
    pid: u32,
    /// By which open file of the guest it got the last of them.
    handle: u64,
}

struct Waiter {
    wait: Wait,
    ask: Ask,
    /// The lock lands on it, unless the owner has a descriptor by then.
    fd: Counted,
    then: Option<Settle>,
}

impl std::fmt::Debug for State {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("State").field("files", &self.files.len()).field("waiters", &self.waiters()).finish()
    }
}

/// What became of a request for a lock.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Asked {
    Settled,
    Waits(Wait),
}

fn refuse<T>(errno: i32) -> Result<T> {
    Err(Error::Errno(errno))
}

impl Ask {
    fn new(session: u64, args: &LkIn) -> Result<Ask> {
        let flock = args.lk_flags & bits::LK_FLOCK != 0;
        let mode = match args.lk.kind as i32 {
            libc::F_RDLCK => Some(Mode::Shared),
            libc::F_WRLCK => Some(Mode::Exclusive),
            libc::F_UNLCK => None,
            _ => return refuse(libc::EINVAL),
        };
        let range =
            if flock { Range::ALL } else { Range { start: args.lk.start, end: args.lk.end.min(Range::ALL.end) } };
        if range.start > range.end {
            return refuse(libc::EINVAL);
        }
        Ok(Ask { owner: Owner { session, number: args.owner, flock }, range, mode, pid: args.lk.pid, handle: args.fh })
    }

    /// Asks the host's kernel. False if somebody else is in the way.
    fn on(&self, fd: &Counted) -> Result<bool> {
        let asked = match self.owner.flock {
            true => file::set_whole(fd, self.mode),
            false => file::set_range(fd, self.range, self.mode),
        };
        match asked {
            Ok(()) => Ok(true),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(false),
            Err(error) => Err(error.into()),
        }
    }
}

impl Locks {
    /// A number that no other guest has.
    pub(crate) fn session(&self) -> u64 {
        let mut state = self.state.lock();
        state.last_number += 1;
        state.last_number
    }

    /// Sets or clears a lock on `key`; `open` makes a descriptor of the file if the owner has none yet. Where somebody is in the way
    /// the answer is EAGAIN, or with `wait` a [`Wait`].
    pub(crate) fn set(
        self: &Arc<Self>,
        session: u64,
        key: FileKey,
        args: &LkIn,
        wait: bool,
        open: impl Fn() -> Result<Counted>,
    ) -> Result<Asked> {
        let ask = Ask::new(session, args)?;
        let mut state = self.state.lock();
        let Some(mode) = ask.mode else {
            let freed = state.unlock(key, &ask)?;
            let settled = if freed { state.retry(key) } else { Vec::new() };
            drop(state);
            settle(settled);
            return Ok(Asked::Settled);
        };
        let granted = state.grant(key, &ask, &open);
        let asked = match granted {
            Ok(true) => Ok(Asked::Settled),
            Ok(false) if wait => state.wait(key, ask, mode, &open),
            Ok(false) => refuse(libc::EAGAIN),
            Err(error) => Err(error),
        };
        // A lock that became weaker (from exclusive to shared, or gone in order to wait for another) may let somebody in.
        let settled = state.retry(key);
        state.tidy(key);
        if matches!(asked, Ok(Asked::Waits(_))) {
            self.keep(&mut state);
        }
        drop(state);
        settle(settled);
        asked
    }

    /// The lock that is in the way of `args.lk`, or one of kind F_UNLCK. Its pid is known for locks of the same guest only.
    pub(crate) fn get(
        &self,
        session: u64,
        key: FileKey,
        args: &LkIn,
        open: impl Fn() -> Result<Counted>,
    ) -> Result<FileLock> {
        let ask = Ask::new(session, args)?;
        let free = FileLock { kind: libc::F_UNLCK as u32, ..args.lk };
        let Some(mode) = ask.mode else { return Ok(free) };
        let state = self.state.lock();
        let file = state.files.get(&key);
        for (owner, held) in file.iter().flat_map(|file| &file.held) {
            if *owner != ask.owner
                && owner.flock == ask.owner.flock
                && let Some((range, mode)) = held.ranges.conflict(ask.range, mode)
            {
                let pid = if owner.session == session { held.pid } else { 0 };
                return Ok(wire(range, mode, pid));
            }
        }
        if ask.owner.flock {
            return Ok(free);
        }
        let mine = file.and_then(|file| file.held.get(&ask.owner));
        let blocking = match mine {
            Some(held) => file::blocking_range(&held.fd, ask.range, mode),
            None => file::blocking_range(&*open()?, ask.range, mode),
        };
        Ok(blocking?.map_or(free, |(range, mode)| wire(range, mode, 0)))
    }

    /// A process closed the file: all its POSIX locks on `key` go.
    pub(crate) fn forget_owner(&self, session: u64, key: FileKey, number: u64) {
        let gone = Owner { session, number, flock: false };
        self.forget(key, |owner, _| *owner == gone);
    }

    /// An open file is gone: locks on `key` that were got through it, and are still there, were its own.
    pub(crate) fn forget_handle(&self, session: u64, key: FileKey, handle: u64) {
        self.forget(key, |owner, held| owner.session == session && held.handle == handle);
    }

    fn forget(&self, key: FileKey, gone: impl Fn(&Owner, &Held) -> bool) {
        let mut state = self.state.lock();
        let Some(file) = state.files.get_mut(&key) else { return };
        let before = file.held.len();
        file.held.retain(|owner, held| !gone(owner, held));
        if file.held.len() < before {
            let settled = state.retry(key);
            state.tidy(key);
            drop(state);
            settle(settled);
        }
    }

    /// All locks and waiters of a guest go.
    pub(crate) fn forget_session(&self, session: u64) {
        let mut state = self.state.lock();
        let mut gone = Vec::new();
        for file in state.files.values_mut() {
            file.held.retain(|owner, _| owner.session != session);
            let waiters = std::mem::take(&mut file.waiters).into_iter();
            let (of_session, others): (VecDeque<_>, VecDeque<_>) =
                waiters.partition(|waiter| waiter.ask.owner.session == session);
            file.waiters = others;
            gone.extend(of_session);
        }
        let keys: Vec<FileKey> = state.files.keys().copied().collect();
        let settled: Vec<_> = keys.iter().flat_map(|key| state.retry(*key)).collect();
        keys.iter().for_each(|key| state.tidy(*key));
        drop(state);
        // Dropped, not called: nobody is there to be answered.
        drop(gone);
        settle(settled);
    }

    /// Says what to do when `wait` is over.
    pub(crate) fn settle(&self, wait: Wait, then: Settle) {
        let mut state = self.state.lock();
        if let Some(result) = state.ended.remove(&wait) {
            drop(state);
            return then(result);
        }
        let waiter = state.files.values_mut().flat_map(|file| &mut file.waiters).find(|waiter| waiter.wait == wait);
        if let Some(waiter) = waiter {
            waiter.then = Some(then);
        }
    }

    /// Ends `wait` with EINTR if it is not over yet.
    pub(crate) fn interrupt(&self, wait: Wait) {
        let mut state = self.state.lock();
        let found = state.files.iter_mut().find_map(|(key, file)| {
            let at = file.waiters.iter().position(|waiter| waiter.wait == wait)?;
            Some((*key, file.waiters.remove(at)?))
        });
        let Some((key, waiter)) = found else { return };
        state.tidy(key);
        match waiter.then {
            Some(then) => {
                drop(state);
                then(refuse(libc::EINTR));
            }
            None => drop(state.ended.insert(wait, refuse(libc::EINTR))),
        }
    }

    /// All locks of a guest, as it would ask for them.
    pub(crate) fn of_session(&self, session: u64) -> Vec<LkIn> {
        let state = self.state.lock();
        let owners = state.files.values().flat_map(|file| &file.held).filter(|(owner, _)| owner.session == session);
        let asks = owners.flat_map(|(owner, held)| {
            let lk_flags = if owner.flock { bits::LK_FLOCK } else { 0 };
            let ask = move |(range, mode)| LkIn {
                fh: held.handle,
                owner: owner.number,
                lk: wire(range, mode, held.pid),
                lk_flags,
                ..LkIn::default()
            };
            held.ranges.iter().map(ask)
        });
        asks.collect()
    }

    /// Owners that hold locks, and waiters.
    pub fn count(&self) -> (usize, usize) {
        let state = self.state.lock();
        (state.files.values().map(|file| file.held.len()).sum(), state.waiters())
    }

    /// Has a thread try the waiters again, for as long as there are any.
    fn keep(self: &Arc<Self>, state: &mut State) {
        if state.keeper {
            return;
        }
        let weak = Arc::downgrade(self);
        match thread::Builder::new().name("virtiofs-locks".into()).spawn(move || keep_trying(&weak)) {
            Ok(_) => state.keeper = true,
            Err(error) => {
                tracing::warn!(%error, "no thread to watch locks of host processes: waiters see guests' unlocks only")
            }
        }
    }
}

/// The thread of [`Locks::keep`]. It ends when nobody waits.
fn keep_trying(locks: &Weak<Locks>) {
    let mut pause = RETRY.start;
    loop {
        thread::sleep(pause);
        let Some(locks) = locks.upgrade() else { return };
        let mut state = locks.state.lock();
        if state.waiters() == 0 {
            state.keeper = false;
            return;
        }
        let keys: Vec<FileKey> =
            state.files.iter().filter(|(_, file)| !file.waiters.is_empty()).map(|(key, _)| *key).collect();
        let settled: Vec<_> = keys.into_iter().flat_map(|key| state.retry(key)).collect();
        drop(state);
        pause = if settled.is_empty() { (pause * 2).min(RETRY.end) } else { RETRY.start };
        settle(settled);
    }
}

fn settle(settled: Vec<(Settle, Result<()>)>) {
    for (then, result) in settled {
        then(result);
    }
}

fn wire(range: Range, mode: Mode, pid: u32) -> FileLock {
    let kind = match mode {
        Mode::Shared => libc::F_RDLCK,
        Mode::Exclusive => libc::F_WRLCK,
    };
    FileLock { start: range.start, end: range.end, kind: kind as u32, pid }
}

impl LockedFile {
    fn hold(&mut self, ask: &Ask, fd: Counted) {
        let new = || Held { fd, ranges: Ranges::default(), pid: ask.pid, handle: ask.handle };
        let held = self.held.entry(ask.owner).or_insert_with(new);
        held.ranges.set(ask.range, ask.mode);
        held.handle = ask.handle;
    }

    /// Owners that stand in the way.
    fn blockers(&self, ask: &Ask, mode: Mode) -> impl Iterator<Item = Owner> + '_ {
        let (asking, range) = (ask.owner, ask.range);
        self.held
            .iter()
            .filter(move |(owner, held)| {
                **owner != asking && owner.flock == asking.flock && held.ranges.conflict(range, mode).is_some()
            })
            .map(|(owner, _)| *owner)
    }
}

impl State {
    fn waiters(&self) -> usize {
        self.files.values().map(|file| file.waiters.len()).sum()
    }

    /// Ranges that a guest has locked.
    fn ranges(&self, session: u64) -> usize {
        let held = self.files.values().flat_map(|file| &file.held);
        held.filter(|(owner, _)| owner.session == session).map(|(_, held)| held.ranges.len()).sum()
    }

    /// Refuses a lock, an owner or a waiter too many; of a thousand refusals the first is told.
    fn too_many<T>(&mut self) -> Result<T> {
        if self.refused.is_multiple_of(1000) {
            tracing::warn!("a guest has as many locks, or waits for as many, as it may: it gets ENOLCK for more");
        }
        self.refused += 1;
        refuse(libc::ENOLCK)
    }

    /// Tries to get a lock, on the owner's descriptor if it has one.
    fn grant(&mut self, key: FileKey, ask: &Ask, open: &dyn Fn() -> Result<Counted>) -> Result<bool> {
        let theirs =
            self.files.get(&key).and_then(|file| file.held.get(&ask.owner)).map_or(0, |held| held.ranges.len());
        if theirs >= RANGES_MAX || theirs >= FEW && self.ranges(ask.owner.session) >= RANGES_IN_ALL {
            return self.too_many();
        }
        if let Some(held) = self.files.entry(key).or_default().held.get_mut(&ask.owner) {
            let granted = ask.on(&held.fd)?;
            if granted {
                held.ranges.set(ask.range, ask.mode);
                held.handle = ask.handle;
            } else if ask.owner.flock {
                // flock(2) gives the old lock up before it tries for the new mode.
                held.ranges.set(ask.range, None);
            }
            return Ok(granted);
        }
        let owners = self.files.values().flat_map(|file| file.held.keys());
        if owners.filter(|owner| owner.session == ask.owner.session).count() >= OWNERS_MAX {
            return self.too_many();
        }
        let fd = open()?;
        let granted = ask.on(&fd)?;
        if granted {
            self.files.entry(key).or_default().hold(ask, fd);
        }
        Ok(granted)
    }

    /// Clears a lock; answers whether there was one.
    fn unlock(&mut self, key: FileKey, ask: &Ask) -> Result<bool> {
        let Some(file) = self.files.get_mut(&key) else { return Ok(false) };
        let Some(held) = file.held.get_mut(&ask.owner) else { return Ok(false) };
        ask.on(&held.fd)?;
        held.ranges.set(ask.range, None);
        if held.ranges.is_empty() {
            file.held.remove(&ask.owner);
        }
        self.tidy(key);
        Ok(true)
    }

    fn wait(&mut self, key: FileKey, ask: Ask, mode: Mode, open: &dyn Fn() -> Result<Counted>) -> Result<Asked> {
        let waiters = self.files.values().flat_map(|file| &file.waiters);
        if waiters.filter(|waiter| waiter.ask.owner.session == ask.owner.session).count() >= WAITERS_MAX {
            return self.too_many();
        }
        if !ask.owner.flock && self.would_deadlock(key, &ask, mode) {
            return refuse(libc::EDEADLK);
        }
        self.last_number += 1;
        let wait = Wait(self.last_number);
        let Some(file) = self.files.get_mut(&key) else { return refuse(libc::EIO) };
        // Its own, even if the owner has one already: that one must take the owner's locks along when it is closed.
        file.waiters.push_back(Waiter { wait, ask, fd: open()?, then: None });
        Ok(Asked::Waits(wait))
    }

    /// Whether somebody in the way of `ask` waits, directly or through others, for a lock that the asking owner has.
    fn would_deadlock(&self, key: FileKey, ask: &Ask, mode: Mode) -> bool {
        let Some(file) = self.files.get(&key) else { return false };
        let mut seen: Vec<Owner> = file.blockers(ask, mode).collect();
        let mut next = 0;
        while let Some(&owner) = seen.get(next) {
            next += 1;
            if owner == ask.owner {
                return true;
            }
            for file in self.files.values() {
                for waiter in file.waiters.iter().filter(|waiter| waiter.ask.owner == owner) {
                    let Some(mode) = waiter.ask.mode else { continue };
                    for blocker in file.blockers(&waiter.ask, mode) {
                        if !seen.contains(&blocker) {
                            seen.push(blocker);
                        }
                    }
                }
            }
        }
        false
    }

    /// Tries the waiters of a file, first come first served; answers those whose wait is over, to be told without our lock.
    fn retry(&mut self, key: FileKey) -> Vec<(Settle, Result<()>)> {
        let Some(file) = self.files.get_mut(&key) else { return Vec::new() };
        let (mut settled, mut still) = (Vec::new(), VecDeque::new());
        for waiter in std::mem::take(&mut file.waiters) {
            // By now the owner may have got other locks: all of them belong on one descriptor, or they would be in each other's way.
            let fd = file.held.get(&waiter.ask.owner).map_or(&waiter.fd, |held| &held.fd);
            let result = match waiter.ask.on(fd) {
                Ok(false) => {
                    still.push_back(waiter);
                    continue;
                }
                Ok(true) => Ok(()),
                Err(error) => Err(error),
            };
            let Waiter { wait, ask, fd, then } = waiter;
            if result.is_ok() {
                file.hold(&ask, fd);
            }
            match then {
                Some(then) => settled.push((then, result)),
                None => drop(self.ended.insert(wait, result)),
            }
        }
        file.waiters = still;
        settled
    }

    /// Drops what is left of a file that nobody has locked or waits for.
    fn tidy(&mut self, key: FileKey) {
        if let Some(file) = self.files.get_mut(&key) {
            file.held.retain(|_, held| !held.ranges.is_empty());
            if file.held.is_empty() && file.waiters.is_empty() {
                self.files.remove(&key);
            }
        }
    }
}

#[cfg(test)]
#[path = "locks_tests.rs"]
mod tests;
