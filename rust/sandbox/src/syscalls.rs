//! System calls by name.

/// `(name, number)` of constants of `libc`, which are called `SYS_` and the name.
macro_rules! table {
    ($($constant:ident)*) => { &[$((stringify!($constant), libc::$constant)),*] };
}

/// What all architectures have.
#[rustfmt::skip]
const COMMON: &[(&str, libc::c_long)] = table![
    SYS_accept SYS_accept4 SYS_acct SYS_add_key SYS_adjtimex SYS_bind SYS_bpf SYS_brk SYS_capget SYS_capset SYS_chdir SYS_chroot
    SYS_clock_adjtime SYS_clock_getres SYS_clock_gettime SYS_clock_nanosleep SYS_clock_settime SYS_clone SYS_clone3 SYS_close
    SYS_close_range SYS_connect SYS_copy_file_range SYS_delete_module SYS_dup SYS_dup3 SYS_epoll_create1 SYS_epoll_ctl
    SYS_epoll_pwait SYS_epoll_pwait2 SYS_eventfd2 SYS_execve SYS_execveat SYS_exit SYS_exit_group SYS_faccessat SYS_faccessat2
    SYS_fadvise64 SYS_fallocate SYS_fanotify_init SYS_fanotify_mark SYS_fchdir SYS_fchmod SYS_fchmodat SYS_fchown SYS_fchownat
    SYS_fcntl SYS_fdatasync SYS_fgetxattr SYS_finit_module SYS_flistxattr SYS_flock SYS_fremovexattr SYS_fsconfig
    SYS_fsetxattr SYS_fsmount SYS_fsopen SYS_fspick SYS_fstat SYS_fstatfs SYS_fsync SYS_ftruncate SYS_futex SYS_futex_waitv
    SYS_getcpu SYS_getcwd SYS_getdents64 SYS_getegid SYS_geteuid SYS_getgid SYS_getgroups SYS_getpeername SYS_getpgid SYS_getpid
    SYS_getppid SYS_getrandom SYS_getresgid SYS_getresuid SYS_getrlimit SYS_getrusage SYS_getsockname SYS_getsockopt SYS_gettid
    SYS_gettimeofday SYS_getuid SYS_getxattr SYS_init_module SYS_inotify_add_watch SYS_inotify_init1 SYS_inotify_rm_watch
    SYS_io_uring_enter SYS_io_uring_register SYS_io_uring_setup SYS_ioctl SYS_kcmp SYS_kexec_load SYS_keyctl SYS_kill
    SYS_lgetxattr SYS_linkat SYS_listen SYS_listxattr SYS_llistxattr SYS_lookup_dcookie SYS_lremovexattr SYS_lseek
    SYS_lsetxattr SYS_madvise SYS_mbind SYS_membarrier SYS_memfd_create SYS_migrate_pages SYS_mincore SYS_mkdirat SYS_mknodat
    SYS_mmap SYS_mount SYS_mount_setattr SYS_move_mount SYS_move_pages SYS_mprotect SYS_mremap SYS_msync SYS_munmap
    SYS_name_to_handle_at SYS_nanosleep SYS_newfstatat SYS_nfsservctl SYS_open_by_handle_at SYS_open_tree SYS_openat
    SYS_openat2 SYS_perf_event_open SYS_personality SYS_pidfd_getfd SYS_pidfd_open SYS_pidfd_send_signal SYS_pipe2
    SYS_pivot_root SYS_ppoll SYS_prctl SYS_pread64 SYS_preadv SYS_preadv2 SYS_prlimit64 SYS_process_madvise
    SYS_process_vm_readv SYS_process_vm_writev SYS_pselect6 SYS_ptrace SYS_pwrite64 SYS_pwritev SYS_pwritev2 SYS_quotactl
    SYS_read SYS_readahead SYS_readlinkat SYS_readv SYS_reboot SYS_recvfrom SYS_recvmsg SYS_remap_file_pages SYS_removexattr
    SYS_renameat SYS_renameat2 SYS_request_key SYS_restart_syscall SYS_rseq SYS_rt_sigaction SYS_rt_sigprocmask
    SYS_rt_sigreturn SYS_rt_sigtimedwait SYS_sched_getaffinity SYS_sched_yield SYS_seccomp SYS_sendmsg SYS_sendto
    SYS_set_mempolicy SYS_set_robust_list SYS_set_tid_address SYS_setdomainname SYS_setfsgid SYS_setfsuid SYS_setgid
    SYS_setgroups SYS_sethostname SYS_setns SYS_setresgid SYS_setresuid SYS_setrlimit SYS_setsockopt SYS_settimeofday
    SYS_setuid SYS_setxattr SYS_shutdown SYS_sigaltstack SYS_socket SYS_socketpair SYS_splice SYS_statfs SYS_statx SYS_swapoff
    SYS_swapon SYS_symlinkat SYS_sync_file_range SYS_syncfs SYS_sysinfo SYS_syslog SYS_tgkill SYS_timerfd_create
    SYS_timerfd_settime SYS_umask SYS_umount2 SYS_uname SYS_unlinkat SYS_unshare SYS_userfaultfd SYS_utimensat SYS_vhangup
    SYS_vmsplice SYS_wait4 SYS_waitid SYS_write SYS_writev
];

/// What old architectures have beside what came after it.
#[cfg(target_arch = "x86_64")]
#[rustfmt::skip]
const OLD: &[(&str, libc::c_long)] = table![
    SYS_access SYS_arch_prctl SYS_dup2 SYS_epoll_create SYS_epoll_wait SYS_fork SYS_getdents SYS_ioperm SYS_iopl
    SYS_lstat SYS_mkdir SYS_modify_ldt SYS_open SYS_pipe SYS_poll SYS_readlink SYS_rename SYS_rmdir SYS_select
    SYS_stat SYS_uselib SYS_unlink SYS_vfork
];
#[cfg(not(target_arch = "x86_64"))]
const OLD: &[(&str, libc::c_long)] = &[];

/// Names in [`OLD`] on some architecture.
#[rustfmt::skip]
const SOMEWHERE: &[&str] = &[
    "access", "arch_prctl", "dup2", "epoll_create", "epoll_wait", "fork", "getdents", "ioperm", "iopl", "lstat",
    "mkdir", "modify_ldt", "open", "pipe", "poll", "readlink", "rename", "rmdir", "select", "stat", "uselib",
    "unlink", "vfork",
];

/// What the C library's headers have no constant for yet; these numbers are the same everywhere (`scripts/syscall.tbl`).
const NEW: &[(&str, libc::c_long)] = &[
    ("cachestat", 451),
    ("fchmodat2", 452),
    ("futex_wake", 454),
    ("futex_wait", 455),
    ("futex_requeue", 456),
    ("setxattrat", 463),
    ("getxattrat", 464),
    ("listxattrat", 465),
    ("removexattrat", 466),
    ("open_tree_attr", 467),
];

/// The number of `name` on this architecture.
pub(crate) fn by_name(name: &str) -> Option<libc::c_long> {
    let ours = COMMON.iter().chain(OLD).map(|&(constant, number)| (constant.trim_start_matches("SYS_"), number));
    ours.chain(NEW.iter().copied()).find(|&(known, _)| known == name).map(|(_, number)| number)
}

/// Whether `name` is that of a system call on some architecture.
pub(crate) fn is_known(name: &str) -> bool {
    by_name(name).is_some() || SOMEWHERE.contains(&name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_number_has_one_name() {
        let mut numbers: Vec<_> = COMMON.iter().chain(OLD).chain(NEW).map(|&(_, number)| number).collect();
        let count = numbers.len();
        numbers.sort_unstable();
        numbers.dedup();
        assert_eq!(numbers.len(), count);
    }

    #[test]
    fn names_lead_to_the_kernels_numbers() {
        assert_eq!(by_name("openat2"), Some(libc::SYS_openat2));
        assert_eq!(by_name("setxattrat"), Some(463));
        assert_eq!(by_name("SYS_read"), None);
        assert!(is_known("open") && is_known("fork"));
        assert!(OLD.iter().all(|(constant, _)| SOMEWHERE.contains(&constant.trim_start_matches("SYS_"))));
    }
}
