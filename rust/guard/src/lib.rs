// UNSAFETY: a signal handler that maps memory, and the tables that it may look at: it may take no lock and allocate nothing.
#![allow(unsafe_code)]
//! What happens when a mapped file becomes shorter: the kernel sends SIGBUS to whoever touches a page behind the new end.
//!
//! For addresses that are guarded (a DAX window, the memory of a VMM in another process) the handler puts zeros there, notes it, and the
//! access goes on. For all others it does what was done before it: the handler that was there is called, or the default is restored, which ends the process.
//!
//! That is one page at a time, until there were so many that a guest seems to use up the mappings that its process may have: then the rest
//! of each granule.

use std::ffi::{c_int, c_void};
use std::io;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicPtr, AtomicU64, AtomicUsize, Ordering};
use std::{mem, ptr};

/// What the pages of a range are noted by: so many bytes at a time.
pub const GRANULE: u64 = 2 << 20;

const PAGE: usize = 4096;

/// Pages that are replaced one by one, from one [`Guard::take`] to the next.
const SINGLE: u64 = 1024;

/// Ranges that one process may have: a VMM may cut its memory into some hundred.
const SLOTS: usize = 4096;

/// A range, as the handler sees it.
#[derive(Debug)]
struct Slot {
    taken: AtomicBool,
    start: AtomicUsize,
    /// 0 while the slot is not in use.
    size: AtomicUsize,
    /// A bit for each granule: a part of it was replaced.
    healed: AtomicPtr<AtomicU64>,
    /// Some bit is set.
    any: AtomicBool,
    count: AtomicU64,
    /// The same since [`Guard::take`].
    recent: AtomicU64,
}

static SLOTS_TABLE: [Slot; SLOTS] = [const {
    Slot {
        taken: AtomicBool::new(false),
        start: AtomicUsize::new(0),
        size: AtomicUsize::new(0),
        healed: AtomicPtr::new(ptr::null_mut()),
        any: AtomicBool::new(false),
        count: AtomicU64::new(0),
        recent: AtomicU64::new(0),
    }
}; SLOTS];

/// What was done about SIGBUS before.
static BEFORE: OnceLock<libc::sigaction> = OnceLock::new();

/// The guard over one range of addresses, for as long as it lives.
#[derive(Debug)]
pub struct Guard {
    slot: &'static Slot,
    /// Kept for the handler, which has a pointer to it.
    healed: Box<[AtomicU64]>,
}

impl Guard {
    /// Guards `size` bytes from `start` on, which are mapped. Its owner gives them up to be mapped over, and drops this before it unmaps them.
    pub fn new(start: usize, size: usize) -> io::Result<Guard> {
        install()?;
        let free = SLOTS_TABLE
            .iter()
            .find(|slot| slot.taken.compare_exchange(false, true, Ordering::AcqRel, Ordering::Relaxed).is_ok());
        let Some(slot) = free else {
            return Err(io::Error::other(format!(
                "{SLOTS} ranges of guest memory and DAX windows are the most that one process can have"
            )));
        };
        let granules = size.div_ceil(GRANULE as usize);
        let healed: Box<[AtomicU64]> = (0..granules.div_ceil(64)).map(|_| AtomicU64::new(0)).collect();
        slot.count.store(0, Ordering::Relaxed);
        slot.recent.store(0, Ordering::Relaxed);
        slot.any.store(false, Ordering::Relaxed);
        slot.start.store(start, Ordering::Relaxed);
        slot.healed.store(healed.as_ptr().cast_mut(), Ordering::Relaxed);
        slot.size.store(size, Ordering::Release);
        Ok(Guard { slot, healed })
    }

    /// How often something was replaced so far.
    pub fn count(&self) -> u64 {
        self.slot.count.load(Ordering::Relaxed)
    }

    /// Where granules begin of which a part was replaced since this was asked last, in order.
    pub fn take(&self) -> Vec<u64> {
        if !self.slot.any.load(Ordering::Relaxed) || !self.slot.any.swap(false, Ordering::AcqRel) {
            return Vec::new();
        }
        self.slot.recent.store(0, Ordering::Relaxed);
        let words = self.healed.iter().map(|word| word.swap(0, Ordering::AcqRel));
        let bits = words.enumerate().flat_map(|(at, word)| {
            (0..64u64).filter(move |bit| word >> bit & 1 != 0).map(move |bit| (at as u64 * 64 + bit) * GRANULE)
        });
        bits.collect()
    }

    /// Puts zeros at an address, if it lies in the range.
    pub fn heal(&self, address: usize) -> bool {
        self.slot.heal(address)
    }

    /// Guards nothing any more.
    pub fn close(&self) {
        self.slot.size.store(0, Ordering::Release);
        self.slot.healed.store(ptr::null_mut(), Ordering::Release);
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        self.close();
        self.slot.taken.store(false, Ordering::Release);
    }
}

fn install() -> io::Result<()> {
    static INSTALLED: parking_lot::Mutex<bool> = parking_lot::Mutex::new(false);
    let mut installed = INSTALLED.lock();
    if *installed {
        return Ok(());
    }
    // SAFETY: a `sigaction` of zeros is a valid one; the call fills it in.
    let mut before: libc::sigaction = unsafe { mem::zeroed() };
    // SAFETY: a null pointer for the new action only asks; `before` is ours until the call returns.
    check(unsafe { libc::sigaction(libc::SIGBUS, ptr::null(), &mut before) })?;
    // Known before the handler is, which may need it at once.
    let _ = BEFORE.set(before);
    // SAFETY: as above.
    let mut ours: libc::sigaction = unsafe { mem::zeroed() };
    ours.sa_sigaction = handler as *const () as usize;
    ours.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK;
    // SAFETY: `handler` has the signature that SA_SIGINFO calls for, lives for ever, and keeps to what a signal handler may do.
    check(unsafe { libc::sigaction(libc::SIGBUS, &ours, ptr::null_mut()) })?;
    *installed = true;
    Ok(())
}

fn check(result: c_int) -> io::Result<()> {
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

extern "C" fn handler(signal: c_int, info: *mut libc::siginfo_t, context: *mut c_void) {
    // SAFETY: errno is this thread's own; the code that was interrupted finds it as it left it.
    let (at, errno) = unsafe { (libc::__errno_location(), *libc::__errno_location()) };
    // SAFETY: with SA_SIGINFO the kernel hands over a siginfo_t, which for SIGBUS has an address.
    let (code, address) = unsafe { ((*info).si_code, (*info).si_addr() as usize) };
    // An error of the memory itself is not ours to hide.
    if code != libc::BUS_ADRERR || !heal(address) {
        pass_on(signal, info, context);
    }
    // SAFETY: as above.
    unsafe { *at = errno };
}

/// Puts zeros over so many bytes.
fn replace(at: usize, len: usize) -> bool {
    // SAFETY: the bytes lie in a range that its owner gave up to be mapped over at any time, and holds until it has taken the guard away; what
    // was mapped at the address cannot be accessed, or the signal would not have come. mmap(2) is one system call.
    let mapped = unsafe {
        let access = libc::PROT_READ | libc::PROT_WRITE;
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE | libc::MAP_FIXED;
        libc::mmap(at as *mut c_void, len, access, flags, -1, 0)
    };
    mapped != libc::MAP_FAILED
}

/// Puts zeros at an address, if it lies in a range that is guarded.
fn heal(address: usize) -> bool {
    SLOTS_TABLE.iter().any(|slot| slot.heal(address))
}

impl Slot {
    fn heal(&self, address: usize) -> bool {
        let size = self.size.load(Ordering::Acquire);
        let offset = address.checked_sub(self.start.load(Ordering::Relaxed)).filter(|offset| *offset < size);
        let Some(offset) = offset else { return false };
        let page = offset & !(PAGE - 1);
        let single = self.recent.fetch_add(1, Ordering::Relaxed) < SINGLE;
        let rest = (GRANULE as usize - page % GRANULE as usize).min(size.next_multiple_of(PAGE) - page);
        let at = address - (offset - page);
        // Of huge pages there is no part to be had.
        let (huge, end) = (address & !(GRANULE as usize - 1), address - offset + size);
        let whole = huge >= address - offset && end - huge >= GRANULE as usize;
        let healed = replace(at, if single { PAGE } else { rest }) || whole && replace(huge, GRANULE as usize);
        if !healed {
            return false;
        }
        self.count.fetch_add(1, Ordering::Relaxed);
        let (granule, healed) = (offset / GRANULE as usize, self.healed.load(Ordering::Acquire));
        if !healed.is_null() {
            // SAFETY: the array has a bit for each granule of `size` bytes and lives as long as the guard, whose range this is.
            unsafe { (*healed.add(granule / 64)).fetch_or(1 << (granule % 64), Ordering::AcqRel) };
            self.any.store(true, Ordering::Release);
        }
        true
    }
}

fn pass_on(signal: c_int, info: *mut libc::siginfo_t, context: *mut c_void) {
    let Some(before) = BEFORE.get() else { return };
    match before.sa_sigaction {
        // The access is tried again when we return, and the signal does what it would have done. It cannot be ignored either.
        libc::SIG_DFL | libc::SIG_IGN => {
            // SAFETY: a `sigaction` of zeros is the default action.
            unsafe { libc::sigaction(signal, &mem::zeroed(), ptr::null_mut()) };
        }
        other if before.sa_flags & libc::SA_SIGINFO != 0 => {
            // SAFETY: sigaction(2) gave this address as a handler with three arguments.
            let other: extern "C" fn(c_int, *mut libc::siginfo_t, *mut c_void) = unsafe { mem::transmute(other) };
            other(signal, info, context);
        }
        other => {
            // SAFETY: sigaction(2) gave this address as a handler with one argument.
            let other: extern "C" fn(c_int) = unsafe { mem::transmute(other) };
            other(signal);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::File;

    #[test]
    fn memory_whose_file_is_cut_off_reads_as_zeros_and_can_be_written() {
        let file = File::from(rustix::fs::memfd_create("short", rustix::fs::MemfdFlags::CLOEXEC).unwrap());
        let size = (2 << 20) + 5 * PAGE;
        file.set_len(size as u64).unwrap();
        use rustix::mm::{MapFlags, ProtFlags, mmap, munmap};
        // SAFETY: a new mapping at an address that the kernel chooses.
        let start =
            unsafe { mmap(ptr::null_mut(), size, ProtFlags::READ | ProtFlags::WRITE, MapFlags::SHARED, &file, 0) };
        let start = start.unwrap();
        let guard = Guard::new(start.addr(), size).unwrap();
        let bytes = start.cast::<u8>();
        // SAFETY: all of these lie in the mapping, which nobody else uses.
        unsafe {
            bytes.write_volatile(7);
            bytes.add(3 * PAGE).write_volatile(7);
            file.set_len(PAGE as u64).unwrap();
            assert_eq!(bytes.read_volatile(), 7);
            for page in (1..size / PAGE).rev() {
                assert_eq!(bytes.add(page * PAGE + 9).read_volatile(), 0);
                bytes.add(page * PAGE + 9).write_volatile(5);
                assert_eq!(bytes.add(page * PAGE + 9).read_volatile(), 5);
            }
        }
        assert!(guard.count() > 0);
        assert_eq!(guard.take(), [0, GRANULE]);
        drop(guard);
        // SAFETY: nobody uses it any more.
        unsafe { munmap(start, size) }.unwrap();
    }
}
