// UNSAFETY: signal masks are the C library's, and its sets are filled in through pointers.
#![allow(unsafe_code)]
//! Signals of the process are not for threads that serve guests.
//!
//! A signal with a handler ends the system call that its thread waits in, where the host's file system lets it (FUSE, NFS): the guest's
//! program would get EINTR without a signal of its own, perhaps for what was done all the same (signal(7), "Interruption of system calls").

use std::ptr;

/// What an access or an instruction of the thread itself raises: it cannot be put off, and windows and sandboxes have handlers for it.
const OWN: [libc::c_int; 6] = [libc::SIGBUS, libc::SIGSEGV, libc::SIGILL, libc::SIGFPE, libc::SIGTRAP, libc::SIGSYS];

/// From now on signals of the process go to other threads than this one.
pub(crate) fn leave_to_others() {
    // SAFETY: a set of zeros is a valid value of the type; the calls only change this set, and the last one the mask of this
    // thread, which nobody else depends on: it was made for this.
    unsafe {
        let mut set: libc::sigset_t = std::mem::zeroed();
        libc::sigfillset(&mut set);
        for signal in OWN {
            libc::sigdelset(&mut set, signal);
        }
        libc::pthread_sigmask(libc::SIG_BLOCK, &set, ptr::null_mut());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn is_blocked(signal: libc::c_int) -> bool {
        // SAFETY: as above; a null pointer for the new mask only asks.
        unsafe {
            let mut set: libc::sigset_t = std::mem::zeroed();
            libc::pthread_sigmask(libc::SIG_BLOCK, ptr::null(), &mut set);
            libc::sigismember(&set, signal) == 1
        }
    }

    #[test]
    fn all_signals_go_elsewhere_but_ones_own() {
        let blocked = std::thread::spawn(|| {
            leave_to_others();
            [libc::SIGTERM, libc::SIGINT, libc::SIGALRM, libc::SIGPROF, libc::SIGUSR1].map(is_blocked)
        });
        assert_eq!(blocked.join().unwrap(), [true; 5]);
        let own = std::thread::spawn(|| {
            leave_to_others();
            OWN.map(is_blocked)
        });
        assert_eq!(own.join().unwrap(), [false; 6]);
    }
}
